"""Which vertices of a finished surface a frame sees, and from where; and, over all frames, when and how well each was seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from scipy.spatial import cKDTree

from recon.fusion.view import View, lookup

MIN_COSINE = 0.05
"""Between a vertex' normal and the ray to the camera: seen at a flatter angle, front and back of a fold are not told apart."""


@dataclass(frozen=True)
class Sighting:
    """The vertices that one frame sees, and how."""

    vertex: Int[np.ndarray, " n"]
    pixel_xy: Float[np.ndarray, "n 2"]
    """Where they project, on the view's own grid."""
    distance: Float[np.ndarray, " n"]
    """From the camera, along the ray, world units."""
    cosine: Float[np.ndarray, " n"]
    """Between the vertex' normal and the ray back to the camera."""
    axis_cosine: Float[np.ndarray, " n"]
    """Between the ray and the optical axis."""


def sight(vertices: Float[np.ndarray, "v 3"], normals: Float[np.ndarray, "v 3"], view: View, reach: float) -> Sighting:
    """Return the vertices that the view sees: its own known depth lies within `reach` (world units) of theirs, and they face it.

    The view's depth and not the surface's decides, so that what stood before the surface in this frame alone hides it too.
    """
    T = view.T_world_camera
    offset = (vertices - T[:3, 3]).astype(np.float32)
    points = offset @ T[:3, :3].astype(np.float32)
    pixel, inside = lookup(view, points)
    vertex = np.flatnonzero(inside)
    pixel = pixel[vertex]
    near = view.valid.reshape(-1)[pixel] & (np.abs(view.depth.reshape(-1)[pixel] - points[vertex, 2]) < reach)
    vertex = vertex[near]
    distance = np.linalg.norm(offset[vertex], axis=1)
    cosine = -np.einsum("ij,ij->i", normals[vertex].astype(np.float32), offset[vertex]) / distance
    facing = cosine > MIN_COSINE
    vertex, distance = vertex[facing], distance[facing]
    seen = points[vertex]
    fx, fy, cx, cy = view.focal_center
    pixel_xy = seen[:, :2] / seen[:, 2:] * np.array([fx, fy], np.float32) + np.array([cx, cy], np.float32)
    return Sighting(vertex, pixel_xy, distance, cosine[facing], seen[:, 2] / distance)


class SeenFrom:
    """Per vertex, the last time that a frame saw it and the smallest angle that it was seen at; frames are added in any order."""

    def __init__(self, num_vertices: int) -> None:
        self._last_s = np.full(num_vertices, -np.inf)
        self._best_cosine = np.zeros(num_vertices, np.float32)

    def add(self, sighting: Sighting, timestamp_s: float) -> None:
        """Take note of one frame's sighting."""
        at = sighting.vertex
        self._last_s[at] = np.maximum(self._last_s[at], timestamp_s)
        self._best_cosine[at] = np.maximum(self._best_cosine[at], sighting.cosine)

    def last_seen_s(self, vertices: Float[np.ndarray, "v 3"]) -> Float[np.ndarray, " v"] | None:
        """Time of the last frame that saw each vertex; None when none was seen at all.

        A vertex that no frame sees stands at the rim of pixels that made it, and was seen when the nearest seen one was.
        """
        seen = np.isfinite(self._last_s)
        if not seen.any():
            return None
        return self._last_s[nearest_of(vertices, seen)]

    def viewing_angle_rad(self) -> Float[np.ndarray, " v"]:
        """Smallest angle between normal and viewing ray over the frames that saw the vertex; a right angle where none did."""
        return np.arccos(np.clip(self._best_cosine, 0.0, 1.0))


def nearest_of(vertices: Float[np.ndarray, "v 3"], chosen: Sequence[bool] | np.ndarray) -> Int[np.ndarray, " v"]:
    """Return for every vertex the nearest chosen one: itself where it is chosen. At least one must be."""
    index = np.arange(len(vertices))
    candidates, others = np.flatnonzero(chosen), np.flatnonzero(~np.asarray(chosen))
    if len(others):
        index[others] = candidates[cKDTree(vertices[candidates]).query(vertices[others])[1]]
    return index


def timestamps_of(frames: Sequence[dict], indices: Sequence[int]) -> list[float]:
    """Return the times (s) of the frames with these indices, from the entries of the frames stage."""
    time_of = {frame["index"]: float(frame["timestamp_s"]) for frame in frames}
    return [time_of[index] for index in indices]
