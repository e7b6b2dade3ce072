"""Surface: fuse the depth of posed frames into a truncated signed distance volume and extract its zero surface.

Only what neighbouring views agree on is fused; edges, grazing walls and masked pixels are unknown. The stage is one pass
of a minute or so and starts again when it was killed.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from recon.fusion.fuse import CACHED_VIEWS, UNMATCHED_CORRELATION, FusionSettings, fuse
from recon.fusion.review import review
from recon.fusion.selection import select_frames, select_neighbours
from recon.fusion.sightings import timestamps_of
from recon.fusion.views import ViewSettings, ViewSource
from recon.io.atomic import read_json, write_json
from recon.io.cameras import read_camera
from recon.io.meshes import write_ply
from recon.pipeline import Stage, track
from recon.types import MAX_THREADS, ReconError, bounded

MIN_MATCHED_SHARE = 0.15
"""Of the keyframes' depth, the least that matching must give for the surface to be made of keyframes; with less, more frames of the
network's depth say more."""


@dataclass(frozen=True)
class Config:
    """How finely and how strictly depth is fused; lengths follow the scene's own depth."""

    max_frames: int = bounded(200, 1)
    """At most this many frames are fused, spread over the recording; keyframes first."""
    num_neighbours: int = bounded(6, 0)
    """Views that judge each frame's depth; 0 fuses everything unjudged."""
    pinhole_fov_rad: float = bounded(2.08, 0.1, 2.9)
    """Horizontal field of view of the undistorted pictures, less where the lens sees less."""
    pinhole_width_px: int = bounded(416, 16, 4096)
    """Width of the undistorted pictures."""
    min_cosine: float = bounded(0.12, 0.0, 1.0)
    """Walls seen at a smaller cosine between normal and viewing ray are unknown."""
    max_jump: float = bounded(0.1, 0.001)
    """Relative step of depth between neighbouring pixels that counts as an occlusion edge."""
    max_depth_ratio: float = bounded(4.0, 1.0)
    """Depth beyond this many median depths is unknown."""
    voxels_per_depth: float = bounded(96.0, 1.0, 10_000.0)
    """Voxels along the median depth."""
    min_truncation_voxels: float = bounded(5.0, 1.0, 100.0)
    """Truncation distance in voxels, more where depth is noisy."""
    min_agreement: float = bounded(0.3, 0.0, 1.0)
    """Pixels of which neighbouring views agree less than this (0 to 1) are unknown."""
    num_threads: int = bounded(0, 0, MAX_THREADS, keyed=False)
    """Of the processor; 0 means all."""
    max_volume_mb: int = bounded(500, 1)
    """Of the volume at one time: one that needs more is fused region by region."""


def run(inputs: dict[str, Path], out: Path, config: Config) -> None:
    """Write `surface.ply` and `surface.json`. Raises ReconError (exit code 1) when no surface comes out."""
    trajectory = read_json(inputs["scale"] / "trajectory.json")
    unit = read_json(inputs["scale"] / "scale.json")["unit"]
    matched = read_json(inputs["stereo"] / "stereo.json")["keyframes"]
    if not matched or np.mean([keyframe["matched_share"] for keyframe in matched]) < MIN_MATCHED_SHARE:
        matched = []
    model = read_json(inputs["depth"] / "depth.json")["model"]
    depth_folder = inputs["stereo"] if matched else inputs["scale"]
    posed = [f for f in trajectory["frames"] if f["T_world_camera"] is not None and _has_depth(depth_folder, f["index"])]
    if not posed:
        message = "no frame has both a pose and a depth map, so there is nothing to fuse: trajectory.json says why frames are lost"
        raise ReconError(message, exit_code=1)
    poses = np.array([frame["T_world_camera"] for frame in posed], dtype=np.float64)
    camera = read_camera(inputs["trajectory"] / "camera.json")
    settings = ViewSettings(config.pinhole_fov_rad, config.pinhole_width_px, config.min_cosine, config.max_depth_ratio, config.max_jump)

    def views_of(positions: np.ndarray) -> ViewSource:
        indices = [posed[i]["index"] for i in positions]
        folders = (depth_folder, inputs["frames"] / "images", inputs["masks"] / "tissue")
        return ViewSource(camera, *folders, indices, poses[positions], settings)

    median_depth, typical_sigma = views_of(np.arange(len(posed))).medians
    is_keyframe = np.array([bool(matched) or frame["status"] == "keyframe" for frame in posed])
    chosen = select_frames(poses, is_keyframe, median_depth, config.max_frames)
    neighbours = [select_neighbours(poses[chosen], i, median_depth, config.num_neighbours) for i in range(len(chosen))]
    fusion = FusionSettings(
        voxels_per_depth=config.voxels_per_depth,
        min_truncation_voxels=config.min_truncation_voxels,
        min_agreement=config.min_agreement,
        max_volume_bytes=config.max_volume_mb * 1_000_000,
        # Where no keyframe is matched nothing tells how alike a network errs, and depth of a data set errs in ways of its own.
        unmatched_correlation=UNMATCHED_CORRELATION if matched and model != "dataset" else 0.0,
        num_threads=config.num_threads,
    )
    views = views_of(chosen)
    load = lru_cache(CACHED_VIEWS)(views.load)
    mesh, stats = fuse(load, neighbours, median_depth, typical_sigma, unit, fusion, track)
    times = timestamps_of(read_json(inputs["frames"] / "frames.json")["frames"], views.frame_indices)
    mesh, exposure = review(mesh, load, times, median_depth, stats.truncation, track, config.num_threads)
    write_ply(out / "surface.ply", mesh)
    numbers = {name: float(f"{value:.6g}") if isinstance(value, float) else value for name, value in asdict(stats).items()}
    counts = {"num_vertices": len(mesh.vertices), "num_faces": len(mesh.faces)}
    write_json(out / "surface.json", {"unit": unit, **numbers, **counts, "exposure": exposure.summary()})


def _has_depth(folder: Path, index: int) -> bool:
    return (folder / "depth" / f"{index:06d}.tiff").exists()


STAGE = Stage(
    config=Config,
    run=run,
    version=9,
    reads=("frames", "masks", "depth", "trajectory", "scale", "stereo"),
    writes=("surface.ply", "surface.json"),
    seconds_per_frame=0.6,
    bytes_per_frame=200_000,
)
