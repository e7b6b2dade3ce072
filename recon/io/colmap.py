"""COLMAP models: cameras, posed images and sparse points as other reconstruction programs read them.

COLMAP stores world-to-camera poses; pixels and lenses cross the border in `recon.io.colmap_camera`.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pycolmap
from jaxtyping import Float, Int

from recon.geometry.se3 import inverse
from recon.io.colmap_camera import PIXEL_CENTRE_SHIFT, colmap_lens, colmap_params
from recon.types import Camera, ReconError


@dataclass(frozen=True)
class SparsePoints:
    """World points and the pixels in which they were seen (pixel centres at integers)."""

    xyz: Float[np.ndarray, "p 3"]
    obs_point: Int[np.ndarray, " m"]
    obs_frame: Int[np.ndarray, " m"]
    obs_px: Float[np.ndarray, "m 2"]
    error_px: Float[np.ndarray, " p"]


def write_colmap(
    folder: str | Path,
    camera: Camera,
    image_names: Mapping[int, str],
    T_world_camera: Mapping[int, Float[np.ndarray, "4 4"]],
    points: SparsePoints | None = None,
) -> float:
    """Write a binary COLMAP model of the posed frames (keys are frame indices; image ids are those plus 1).

    Returns the largest error in pixels of the lens that stands in, 0 when COLMAP knows the model itself.
    """
    if not T_world_camera:
        raise ReconError("no frame is posed: there is nothing to write as a COLMAP model", exit_code=1)
    lens = colmap_lens(camera)
    R_lens_camera = lens.R_camera_lens.T
    model = pycolmap.Reconstruction()
    model.add_camera_with_trivial_rig(_colmap_camera(lens.camera))
    keypoints = _keypoints(points, T_world_camera)
    for index in sorted(T_world_camera):
        T_camera_world = inverse(np.asarray(T_world_camera[index], dtype=np.float64))
        pose = pycolmap.Rigid3d(pycolmap.Rotation3d(R_lens_camera @ T_camera_world[:3, :3]), R_lens_camera @ T_camera_world[:3, 3])
        image = pycolmap.Image(name=image_names[index], keypoints=keypoints[index][0], camera_id=1, image_id=index + 1)
        model.add_image_with_trivial_frame(image, pose)
    if points is not None:
        _add_points(model, points, keypoints)
    _write_whole(model, Path(folder))
    return lens.residual_px


def _colmap_camera(camera: Camera) -> pycolmap.Camera:
    size = {"width": camera.width_px, "height": camera.height_px}
    return pycolmap.Camera(camera_id=1, model=camera.model, params=colmap_params(camera), **size)


def _keypoints(points: SparsePoints | None, frames: Mapping[int, np.ndarray]) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """For each frame the observed pixels in COLMAP's convention, and which rows of the observations they are."""
    if points is None:
        return {index: (np.zeros((0, 2)), np.zeros(0, dtype=int)) for index in frames}
    rows_of = {index: np.flatnonzero(points.obs_frame == index) for index in frames}
    return {index: (points.obs_px[rows] + PIXEL_CENTRE_SHIFT, rows) for index, rows in rows_of.items()}


def _add_points(model: pycolmap.Reconstruction, points: SparsePoints, keypoints: dict[int, tuple[np.ndarray, np.ndarray]]) -> None:
    elements: list[list[tuple[int, int]]] = [[] for _ in points.xyz]
    for index in sorted(keypoints):
        for position, row in enumerate(keypoints[index][1]):
            elements[int(points.obs_point[row])].append((index + 1, position))
    for xyz, error_px, seen in zip(points.xyz, points.error_px, elements, strict=True):
        if len(seen) < 2:
            continue
        track = pycolmap.Track()
        for image_id, position in seen:
            track.add_element(image_id, position)
        point_id = model.add_point3D(np.asarray(xyz, dtype=np.float64), track)
        model.points3D[point_id].error = float(error_px)


def _write_whole(model: pycolmap.Reconstruction, folder: Path) -> None:
    """COLMAP's writer fills a folder; its files are moved into place when all of them are written."""
    part = folder / ".part-model"
    try:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        model.write(part)
        for file in sorted(part.iterdir()):
            os.replace(file, folder / file.name)
        part.rmdir()
    except (OSError, RuntimeError) as error:
        raise ReconError(f"{folder} cannot be written as a COLMAP model: {error}", exit_code=1) from error
