"""Which part of a surface some cameras saw: in the image, inside the mask, and nothing in between.

A face counts from both sides, for foreign meshes are wound either way. What no camera saw is no fault of a reconstruction.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from recon.eval.distances import Surface, part
from recon.geometry.cameras import project, unproject
from recon.types import Camera, Mesh, ReconError

SIGHT_TOLERANCE = 1e-3
"""Share of the distance: what lies this close in front of a point is the point's own surface."""
MIN_COSINE_SLACK = 1e-6


@dataclass(frozen=True)
class Views:
    """Where one lens has been, in the coordinates of the surface it looked at."""

    camera: Camera
    T_world_camera: Float[np.ndarray, "n 4 4"]
    mask: Bool[np.ndarray, "h w"] | None = None
    """True where the image shows tissue, on the camera's own pixel grid."""

    def __post_init__(self) -> None:
        size = (self.camera.height_px, self.camera.width_px)
        if self.mask is not None and self.mask.shape != size:
            raise ReconError(f"views: the mask has {self.mask.shape} pixels (height, width), expected the camera's {size}")


def seen_points(points: Float[np.ndarray, "n 3"], occluder: Surface, views: Views) -> Bool[np.ndarray, " n"]:
    """Whether at least one view shows the point. The points may lie on the occluder."""
    seen = np.zeros(len(points), bool)
    min_cosine = _widest_cosine(views.camera)
    for idx in _spread_order(len(views.T_world_camera)):
        T = views.T_world_camera[idx]
        open_idx = np.flatnonzero(~seen)
        local = (points[open_idx] - T[:3, 3]) @ T[:3, :3]
        distance = np.linalg.norm(local, axis=1)
        near = (distance > 0) & (local[:, 2] >= min_cosine * distance)
        shown = open_idx[near][_in_image(local[near], views)]
        seen[shown] = ~occluder.hides(T[:3, 3], points[shown], SIGHT_TOLERANCE)
    return seen


def observed_part(mesh: Mesh, views: Views) -> Mesh:
    """The faces whose centre or one of whose corners some view shows; the whole mesh hides. Empty when none is seen."""
    if not len(mesh.faces):
        return part(mesh, np.zeros(0, bool))
    centres = mesh.vertices[mesh.faces].mean(axis=1)
    used = np.unique(mesh.faces)
    seen = seen_points(np.concatenate([mesh.vertices[used], centres]), Surface(mesh), views)
    vertex_seen = np.zeros(len(mesh.vertices), bool)
    vertex_seen[used] = seen[: len(used)]
    return part(mesh, vertex_seen[mesh.faces].any(axis=1) | seen[len(used) :])


def _in_image(local: np.ndarray, views: Views) -> np.ndarray:
    pixels, valid = project(views.camera, local)
    u, v = np.floor(pixels + 0.5).astype(np.int64).T  # pixel centres are at integers
    inside = valid & (u >= 0) & (v >= 0) & (u < views.camera.width_px) & (v < views.camera.height_px)
    if views.mask is not None:
        inside[inside] = views.mask[v[inside], u[inside]]
    return inside


def _widest_cosine(camera: Camera) -> float:
    """Cosine of the widest angle to the axis at the image's border: a cheap test before the lens' own arithmetic."""
    width, height = camera.width_px, camera.height_px
    u, v = np.linspace(-0.5, width - 0.5, width + 1), np.linspace(-0.5, height - 0.5, height + 1)
    rows = [np.stack([u, np.full_like(u, edge)], axis=1) for edge in (-0.5, height - 0.5)]
    columns = [np.stack([np.full_like(v, edge), v], axis=1) for edge in (-0.5, width - 0.5)]
    border = np.concatenate([*rows, *columns])
    return float(unproject(camera, border)[:, 2].min()) - MIN_COSINE_SLACK


def _spread_order(num: int) -> np.ndarray:
    """Views far apart first (bit-reversed numbers), so that most points are seen early and need no further test."""
    bits = max(1, (num - 1).bit_length())
    return np.argsort([int(f"{idx:0{bits}b}"[::-1], 2) for idx in range(num)])
