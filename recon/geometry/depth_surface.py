"""The triangle surface that a depth map shows: neighbouring pixels are joined unless the face would be seen edge-on.

A face across an occlusion edge hangs between two surfaces and is seen at a grazing angle, however far apart they are in
units of depth; the limit on that angle is a jump in depth relative to the pixel's own footprint on the surface. Of the two
diagonals of a pixel square the one with the smaller difference in depth is taken, so that cuts follow slanted edges.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Int

from recon.geometry.cameras import ray_grid, usable_mask
from recon.types import Camera, Mesh, ReconError


def depth_surface(camera: Camera, depth: Float[np.ndarray, "h w"], valid: Bool[np.ndarray, "h w"], max_grazing_deg: float = 85.0) -> Mesh:
    """Triangulate valid pixels of a z-depth map (mm) in its camera's axes, any lens; faces are oriented towards the camera.

    A face whose normal is `max_grazing_deg` or more away from the direction to the camera is left out, and so is a vertex
    without a face; vertices stay in the order of the pixels. Nothing valid gives an empty mesh. Raises ReconError when
    the camera is for another image size.
    """
    if depth.shape != (camera.height_px, camera.width_px):
        raise ReconError(
            f"depth map of {depth.shape[1]}x{depth.shape[0]}: the camera is for {camera.width_px}x{camera.height_px}; resize it first"
        )
    known = valid & np.isfinite(depth) & (depth > 0) & usable_mask(camera)
    rays = ray_grid(camera)
    points = np.where(known[..., None], rays * (depth / np.where(known, rays[..., 2], 1.0))[..., None], 0.0).reshape(-1, 3)
    faces = _grid_faces(np.where(known, depth, 0.0), known)
    faces = faces[_facing_cosine(points, faces) > np.cos(np.deg2rad(max_grazing_deg))]
    used, compact = np.unique(faces, return_inverse=True)
    return Mesh(points[used], compact.reshape(-1, 3), unit="mm")


def _grid_faces(depth: Float[np.ndarray, "h w"], known: Bool[np.ndarray, "h w"]) -> Int[np.ndarray, "f 3"]:
    """Up to two triangles for every square of pixels; three known corners make one."""
    index = np.arange(depth.size).reshape(depth.shape)
    a, b, c, d = (np.ascontiguousarray(corner).ravel() for corner in _corners(index))
    depth_a, depth_b, depth_c, depth_d = (corner.ravel() for corner in _corners(depth))
    has_a, has_b, has_c, has_d = (corner.ravel() for corner in _corners(known))
    # The diagonal of a square with an unknown corner must join that corner's two neighbours.
    split_ad = np.where(has_b & has_c, np.abs(depth_a - depth_d) < np.abs(depth_b - depth_c), True) & has_a & has_d
    faces = []
    for choice, corners, complete in (
        (~split_ad, (a, c, b), has_a & has_c & has_b),
        (~split_ad, (b, c, d), has_b & has_c & has_d),
        (split_ad, (a, c, d), has_a & has_c & has_d),
        (split_ad, (a, d, b), has_a & has_d & has_b),
    ):
        faces.append(np.stack(corners, axis=1)[choice & complete])
    return np.concatenate(faces)


def _corners(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Upper left, upper right, lower left and lower right of every square of pixels."""
    return values[:-1, :-1], values[:-1, 1:], values[1:, :-1], values[1:, 1:]


def _facing_cosine(points: Float[np.ndarray, "v 3"], faces: Int[np.ndarray, "f 3"]) -> Float[np.ndarray, " f"]:
    """Cosine between each face's normal and the direction from its centre to the camera."""
    p, q, r = (points[faces[:, corner]] for corner in range(3))
    normals, centers = np.cross(q - p, r - p), p + q + r
    lengths = np.linalg.norm(normals, axis=1) * np.linalg.norm(centers, axis=1)
    return -np.einsum("ij,ij->i", normals, centers) / np.where(lengths > 0, lengths, 1.0)
