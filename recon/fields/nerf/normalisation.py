"""Between run units and nerfstudio's box: a shift and a scale by the scene's own depth, and back.

Nerfstudio scales a scene by the spread of its cameras; an endoscope may stand still. Here the median depth becomes 1, so that whatever
is trained is the same for a scene in metres and in millimetres, and the tissue's middle becomes the origin. Axes stay the world's.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from recon.fields.scene import Scene
from recon.geometry.cameras import unproject
from recon.types import ReconError

MARGIN = 0.15
"""Added on each side of the known depths, relative to them: tissue is pulled out of the range in which it was seen."""
OUTER_PERCENT = 0.1
"""Of the depths on either side, that are taken for mistakes."""


@dataclass(frozen=True)
class Normalisation:
    """p_box = (p_world - center) / length, and the part of space in which tissue can be."""

    center: Float[np.ndarray, " 3"]
    """World point that becomes the origin, run units."""
    length: float
    """Run units that become 1: the median depth."""
    half_side: float
    """Of the cube about the origin that holds the tissue, in box units."""
    near: float
    """Smallest z-depth of tissue, in box units."""
    far: float
    """Largest, likewise."""

    def pose_to_box(self, T_world_camera: Float[np.ndarray, "4 4"]) -> Float[np.ndarray, "4 4"]:
        """The same camera in the box; camera points then have box lengths too, so its axes keep unit length."""
        T = np.array(T_world_camera, dtype=np.float64)
        T[:3, 3] = (T[:3, 3] - self.center) / self.length
        return T

    def points_to_box(self, points: Float[np.ndarray, "*n 3"]) -> Float[np.ndarray, "*n 3"]:
        """From world points in run units."""
        return (points - self.center) / self.length

    def points_to_world(self, points: Float[np.ndarray, "*n 3"]) -> Float[np.ndarray, "*n 3"]:
        """The inverse of `points_to_box`."""
        return points * self.length + self.center

    def depth_to_world(self, depth: Float[np.ndarray, "*n"]) -> Float[np.ndarray, "*n"]:
        """z-depth in run units from z-depth in box units; 0 stays unknown."""
        return depth * self.length


def normalise(scene: Scene) -> Normalisation:
    """Fit the box to the frames that are trained on. Raises ReconError for a scene without depth, and when all frames are held out."""
    if scene.depth_kind == "none":
        raise ReconError(f"{scene.folder} has no depth, so nothing tells how far the tissue is and how large a box holds it: give depth")
    if not scene.kept:
        raise ReconError(f"all {len(scene.frames)} frames of {scene.folder} are held out: leave some to train on")
    length = float(scene.median_depth)
    near, far = _depth_range(scene)
    near, far = near * (1 - MARGIN), far * (1 + MARGIN)
    camera = scene.camera
    last_u, last_v = camera.width_px - 0.5, camera.height_px - 0.5
    rays = unproject(camera, np.array([(u, v) for u in (-0.5, last_u) for v in (-0.5, last_v)]))
    corners = np.concatenate([rays / rays[:, 2:] * z for z in (near, far)])
    poses = [scene.frames[position].T_world_camera for position in scene.kept]
    points = np.concatenate([corners @ T[:3, :3].T + T[:3, 3] for T in poses])
    center = (points.min(axis=0) + points.max(axis=0)) / 2
    half_side = (1 + MARGIN) * float(np.abs(points - center).max()) / length
    return Normalisation(center, length, half_side, near / length, far / length)


def _depth_range(scene: Scene) -> tuple[float, float]:
    """Smallest and largest z-depth of tissue in run units, mistakes left out."""
    ranges = []
    for position in scene.kept:
        view = scene.view(position)
        known = view.depth[view.tissue & (view.depth > 0)]
        if known.size:
            ranges.append(np.percentile(known, (OUTER_PERCENT, 100 - OUTER_PERCENT)))
    if not ranges:
        raise ReconError(f"no frame of {scene.folder} that is trained on has depth on tissue: give depth, or hold out fewer frames")
    return float(np.min(ranges)), float(np.max(ranges))
