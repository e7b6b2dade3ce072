"""Points, normals and occlusion edges of a depth map on any lens. A depth of 0 is unknown."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float

from recon.geometry.cameras import ray_grid, resize
from recon.types import Camera

MIN_COSINE = 0.05
"""Rays flatter than this have no z-depth worth keeping."""


def backproject(camera: Camera, depth: Float[np.ndarray, "h w"]) -> Float[np.ndarray, "h w 3"]:
    """Camera points of a z-depth map: depth times ray / ray_z, and 0 where the depth is 0 or the ray points sideways."""
    return _points(depth, ray_grid(camera))


def normals_from_depth(depth: Float[np.ndarray, "h w"], rays: Float[np.ndarray, "h w 3"]) -> Float[np.ndarray, "h w 3"]:
    """Unit normals towards the camera, from differences to the known neighbours; 0 where depth or a direction is unknown."""
    points, known = _points(depth, rays), depth > 0.0
    along_v = _difference(points, known)
    along_u = _difference(points.swapaxes(0, 1), known.T).swapaxes(0, 1)
    normals = np.cross(along_v, along_u)
    length = np.linalg.norm(normals, axis=-1, keepdims=True)
    normals = np.where(known[..., None] & (length > 0.0), normals / np.where(length > 0.0, length, 1.0), 0.0)
    return np.where(np.sum(normals * points, axis=-1, keepdims=True) > 0.0, -normals, normals)


def edge_mask(depth: Float[np.ndarray, "h w"], valid: Bool[np.ndarray, "h w"], relative_jump: float) -> Bool[np.ndarray, "h w"]:
    """True where depth is valid and changes by less than `relative_jump` (ratio - 1) to each valid neighbour of eight."""
    log_depth = np.log(np.where(valid & (depth > 0.0), depth, 1.0))
    valid = valid & (depth > 0.0)
    smooth = valid.copy()
    for down, right in ((0, 1), (1, 0), (1, 1), (1, -1)):
        here = (slice(0, -down or None), slice(max(0, -right), -right if right > 0 else None))
        there = (slice(down, None), slice(max(0, right), right if right < 0 else None))
        jump = valid[here] & valid[there] & (np.abs(log_depth[here] - log_depth[there]) > np.log1p(relative_jump))
        smooth[here] &= ~jump
        smooth[there] &= ~jump
    return smooth


def _points(depth: np.ndarray, rays: np.ndarray) -> np.ndarray:
    forward = rays[..., 2:] > 0.0
    return np.where(forward, depth[..., None] * rays / np.where(forward, rays[..., 2:], 1.0), 0.0)


def _difference(points: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Central difference along the first axis, one-sided at borders and beside unknown points, 0 where neither side is known."""
    steps = np.zeros_like(points)
    steps[:-1] = np.diff(points, axis=0) * (known[1:] & known[:-1])[..., None]
    return steps + np.concatenate([np.zeros_like(points[:1]), steps[:-1]])


def with_lens(depth: Float[np.ndarray, "h w"], old: Camera, new: Camera) -> Float[np.ndarray, "h w"]:
    """z-depth on the same pixels when a refined lens gives their rays other angles: the distance along the ray stays."""
    if old == new:
        return depth
    height, width = depth.shape
    before, after = (ray_grid(resize(camera, width, height))[..., 2] for camera in (old, new))
    forward = (before > MIN_COSINE) & (after > MIN_COSINE)
    return np.where(forward, depth * after / np.where(forward, before, 1.0), 0.0).astype(depth.dtype)
