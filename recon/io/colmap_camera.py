"""Lenses across the border to COLMAP: its pixel centres lie at half integers, and it has no Scaramuzza model."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pycolmap
from jaxtyping import Float

from recon.geometry.fit import fit_fisheye
from recon.types import CAMERA_PARAMS, Camera

PIXEL_CENTRE_SHIFT = 0.5
"""COLMAP's pixel coordinates minus ours."""


@dataclass(frozen=True)
class ColmapLens:
    """A lens that COLMAP knows, standing in for a camera of ours."""

    camera: Camera
    """In our pixel convention, a model that COLMAP knows."""
    R_camera_lens: Float[np.ndarray, "3 3"]
    """Rotation from the axes of the stand-in to those of our camera; identity unless a fit was needed."""
    residual_px: float
    """Largest error of the stand-in over the image."""


def colmap_lens(camera: Camera) -> ColmapLens:
    """The camera itself where COLMAP knows its model, else the best Kannala-Brandt fisheye."""
    if camera.model != "SCARAMUZZA":
        return ColmapLens(camera, np.eye(3), 0.0)
    fisheye, R_camera_fisheye, residual_px = fit_fisheye(camera)
    return ColmapLens(fisheye, R_camera_fisheye, residual_px)


def colmap_params(camera: Camera) -> list[float]:
    """Parameters of the camera in COLMAP's pixel convention."""
    return _shifted(camera.model, camera.params, PIXEL_CENTRE_SHIFT)


def from_colmap(camera: pycolmap.Camera) -> Camera:
    """Our camera of one of COLMAP's."""
    name = camera.model.name
    return Camera(name, camera.width, camera.height, tuple(_shifted(name, tuple(camera.params), -PIXEL_CENTRE_SHIFT)))


def _shifted(model: str, params: tuple[float, ...], shift: float) -> list[float]:
    return [float(value) + (shift if name in ("cx", "cy") else 0.0) for name, value in zip(CAMERA_PARAMS[model], params, strict=True)]
