"""Structure from motion on one recording (COLMAP's incremental mapper, Schonberger and Frahm 2016).

Thresholds are lower than COLMAP's defaults where these expect wide baselines: an endoscope moves little between frames
and sees few corners.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pycolmap
from jaxtyping import Float, Int

from recon.io.colmap_camera import PIXEL_CENTRE_SHIFT, ColmapLens, colmap_lens, from_colmap
from recon.tracking.features import FeatureOptions, match_frames
from recon.types import Camera

MIN_MAP_FRAMES = 3
"""A map of fewer frames is not trusted."""
FOCAL_LENGTH_RATIO = (0.25, 2.5)
"""Focal lengths over the longer side of the image that a scope may have (127 to 23 degrees): a map outside is bogus."""


@dataclass(frozen=True)
class SparseMap:
    """Cameras and points that one run of structure from motion explains together, in a frame and unit of its own."""

    camera: Camera
    """The working camera, refined where that was asked for."""
    poses: Mapping[int, Float[np.ndarray, "4 4"]]
    """T_world_camera by frame index."""
    xyz: Float[np.ndarray, "p 3"]
    error_px: Float[np.ndarray, " p"]
    """Mean reprojection error of each point."""
    obs_point: Int[np.ndarray, " m"]
    """Row of `xyz` of each observation."""
    obs_frame: Int[np.ndarray, " m"]
    obs_px: Float[np.ndarray, "m 2"]
    """Working pixels, centres at integers."""
    obs_feature: Int[np.ndarray, " m"]
    """Which feature of the frame was seen: the same (frame, feature) in two maps is the same thing."""


def map_frames(
    images: Path,
    masks: Path | None,
    names: Mapping[int, str],
    camera: Camera,
    refine_camera: bool,
    work: Path,
    options: FeatureOptions,
) -> list[SparseMap]:
    """All maps of at least MIN_MAP_FRAMES that the images give, the largest first; none when nothing registers.

    `names` gives the file in `images` of each frame index, in the order of time. `work` keeps the database: it is made
    once and used again when a stopped run comes back.
    """
    # COLMAP writes every step to the terminal, and an error when nothing registers, which is an answer here.
    pycolmap.logging.minloglevel = pycolmap.logging.FATAL.value
    lens = colmap_lens(camera)
    database = matched_database(images, masks, names, lens, work, options)
    models = work / "models"
    shutil.rmtree(models, ignore_errors=True)
    models.mkdir()
    reconstructions = pycolmap.incremental_mapping(
        database_path=database, image_path=images, output_path=models, options=mapper_options(len(names), refine_camera, options)
    )
    index_of = {name: index for index, name in names.items()}
    maps = [_sparse_map(model, camera, lens, refine_camera, index_of) for _, model in sorted(reconstructions.items())]
    return sorted((m for m in maps if len(m.poses) >= MIN_MAP_FRAMES), key=lambda m: -len(m.poses))


def matched_database(
    images: Path, masks: Path | None, names: Mapping[int, str], lens: ColmapLens, work: Path, options: FeatureOptions
) -> Path:
    """The database of features and matches; one without its done-marker was interrupted and is thrown away."""
    work.mkdir(parents=True, exist_ok=True)
    database, done = work / "database.db", work / "matched"
    if not done.exists():
        for leftover in work.glob("database.db*"):
            leftover.unlink()
        match_frames(database, images, masks, list(names.values()), lens.camera, options)
        done.touch()
    return database


def mapper_options(num_frames: int, refine_camera: bool, options: FeatureOptions) -> pycolmap.IncrementalPipelineOptions:
    """COLMAP's options for hand-sized baselines, every seed and thread count set."""
    result = pycolmap.IncrementalPipelineOptions()
    result.min_model_size = max(3, min(10, num_frames // 2))
    result.max_num_models = 4
    result.extract_colors = False
    result.init_num_trials = 50
    # Global adjustment after the map grew by this factor, not COLMAP's 1.1: a third of the adjustments, the same end.
    result.ba_global_frames_ratio = result.ba_global_points_ratio = 1.3
    result.ba_global_max_refinements = 2
    result.ba_local_max_refinements = 1
    result.ba_global_max_num_iterations, result.ba_local_max_num_iterations = 25, 15
    result.mapper.ba_global_ignore_redundant_points3D = True
    result.structure_less_registration_fallback = False
    result.ba_refine_focal_length = refine_camera
    result.ba_refine_extra_params = refine_camera
    result.ba_refine_principal_point = False
    result.mapper.abs_pose_refine_focal_length = refine_camera
    result.mapper.abs_pose_refine_extra_params = refine_camera
    result.min_focal_length_ratio, result.max_focal_length_ratio = FOCAL_LENGTH_RATIO
    result.mapper.init_min_tri_angle = 8.0
    result.mapper.init_min_num_inliers = 60
    result.mapper.abs_pose_min_num_inliers = 20
    result.mapper.filter_min_tri_angle = 1.0
    result.triangulation.min_angle = 1.0
    result.num_threads = result.mapper.num_threads = options.num_threads
    result.random_seed = result.mapper.random_seed = result.triangulation.random_seed = options.seed
    return result


def _sparse_map(
    model: pycolmap.Reconstruction, camera: Camera, lens: ColmapLens, refine_camera: bool, index_of: Mapping[str, int]
) -> SparseMap:
    """Take a reconstruction into our conventions; observations in the order of points, then frames."""
    T_lens_camera = np.eye(4)
    T_lens_camera[:3, :3] = lens.R_camera_lens.T
    poses, frame_of = {}, {}
    for image_id in model.reg_image_ids():
        image = model.image(image_id)
        frame_of[image_id] = index_of[image.name]
        T_world_lens = np.eye(4)
        T_world_lens[:3] = image.cam_from_world().inverse().matrix()
        poses[frame_of[image_id]] = T_world_lens @ T_lens_camera
    point_ids = sorted(model.point3D_ids())
    points = [model.point3D(point_id) for point_id in point_ids]
    seen = [
        (row, frame_of[element.image_id], element.point2D_idx, element.image_id)
        for row, point in enumerate(points)
        for element in sorted(point.track.elements, key=lambda e: (e.image_id, e.point2D_idx))
    ]
    pixels = [model.image(image_id).points2D[feature].xy - PIXEL_CENTRE_SHIFT for _, _, feature, image_id in seen]
    columns = np.array([entry[:3] for entry in seen], dtype=np.int64).reshape(-1, 3)
    return SparseMap(
        camera=from_colmap(next(iter(model.cameras.values()))) if refine_camera else camera,
        poses=dict(sorted(poses.items())),
        xyz=np.array([point.xyz for point in points]).reshape(-1, 3),
        error_px=np.array([point.error for point in points]).reshape(-1),
        obs_point=columns[:, 0],
        obs_frame=columns[:, 1],
        obs_px=np.array(pixels).reshape(-1, 2),
        obs_feature=columns[:, 2],
    )
