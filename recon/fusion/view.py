"""One frame as the fusion sees it: a pinhole picture of depth, surface normal, weight and colour with its pose.

Everything here is on the pinhole's own pixel grid; z-depth is the same as in the lens it was undistorted from,
because both share the optical centre and axes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, UInt8

from recon.types import Camera


@dataclass(frozen=True)
class View:
    """One posed depth picture. Pixels of weight 0 are unknown: neither surface nor free space."""

    index: int
    """Of the source frame."""
    camera: Camera
    """A PINHOLE of the arrays' size."""
    T_world_camera: Float[np.ndarray, "4 4"]
    depth: Float[np.ndarray, "h w"]
    """z-depth, 0 where unknown."""
    normals: Float[np.ndarray, "h w 3"]
    """Unit, in the camera frame, facing the camera."""
    weight: Float[np.ndarray, "h w"]
    """About 1 for a frontal, certain pixel at the scene's median depth; 0 where unknown."""
    color: UInt8[np.ndarray, "h w 3"]
    matched: Bool[np.ndarray, "h w"]
    """Where the depth comes from matching views, not from a network."""
    sigma: Float[np.ndarray, "h w"] | None = None
    """Standard deviation of the logarithm of depth, as whoever made the depth says; None where nobody does."""

    @property
    def valid(self) -> Bool[np.ndarray, "h w"]:
        return (self.depth > 0) & (self.weight > 0)

    @property
    def focal_center(self) -> tuple[float, float, float, float]:
        """fx, fy, cx, cy in pixels."""
        fx, fy, cx, cy = self.camera.params
        return fx, fy, cx, cy


def rays(camera: Camera) -> Float[np.ndarray, "h w 3"]:
    """Return the viewing ray of every pixel of a PINHOLE, scaled to z = 1."""
    fx, fy, cx, cy = camera.params
    x = (np.arange(camera.width_px, dtype=np.float32) - cx) / fx
    y = (np.arange(camera.height_px, dtype=np.float32) - cy) / fy
    grid_x, grid_y = np.meshgrid(x, y)
    return np.stack([grid_x, grid_y, np.ones_like(grid_x)], axis=-1).astype(np.float32)


def lookup(view: View, points_camera: Float[np.ndarray, "n 3"]) -> tuple[np.ndarray, np.ndarray]:
    """Return for points in the view's camera frame the flat index of the nearest pixel, and whether they project inside."""
    fx, fy, cx, cy = view.focal_center
    h, w = view.depth.shape
    z = points_camera[:, 2]
    in_front = z > 1e-6
    safe_z = np.where(in_front, z, 1.0)
    # Clipped before the cast: a point beside the camera projects beyond what an integer holds.
    u = np.clip(np.rint(points_camera[:, 0] / safe_z * fx + cx), -1, w).astype(np.int32)
    v = np.clip(np.rint(points_camera[:, 1] / safe_z * fy + cy), -1, h).astype(np.int32)
    inside = in_front & (u >= 0) & (u < w) & (v >= 0) & (v < h)
    return np.where(inside, v * w + u, 0), inside
