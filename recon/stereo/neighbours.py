"""Which frames become keyframes, and which others a keyframe is matched with: by overlap and triangulation angle.

Both are measured on points of the frames' own depth, so they mean the same in a tube, over a flat organ and where the camera turns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from recon.geometry.cameras import project, ray_grid, resize
from recon.geometry.se3 import inverse
from recon.types import Camera

SAMPLE_PX = 16
"""Points across a frame's picture on which overlap and angles are measured."""


GROUP = 4
"""Neighbouring keyframes that are kept together."""


@dataclass(frozen=True)
class PairOptions:
    """What makes a good partner; angles in radians."""

    num: int = 6
    best_angle_rad: float = 0.035
    """Two degrees: wider pairs find false maxima and lose what folds hide, narrower ones lose precision."""
    max_angle_rad: float = 0.2
    min_angle_rad: float = 0.004
    min_overlap: float = 0.4


@dataclass(frozen=True)
class Sighting:
    """How one frame sees the points of another."""

    overlap: float
    """Share of the points that lie in its picture."""
    angle_rad: float
    """Median angle between the two rays to a point."""


def sample_points(camera: Camera, depth: Float[np.ndarray, "h w"]) -> Float[np.ndarray, "n 3"]:
    """A few points of a depth map (0 unknown), in its camera's coordinates."""
    height = max(round(SAMPLE_PX * camera.height_px / camera.width_px), 1)
    rays = ray_grid(resize(camera, SAMPLE_PX, height))
    rows = ((np.arange(height) + 0.5) * depth.shape[0] / height).astype(int)
    columns = ((np.arange(SAMPLE_PX) + 0.5) * depth.shape[1] / SAMPLE_PX).astype(int)
    z = depth[np.ix_(rows, columns)]
    known = (z > 0) & (rays[..., 2] > 0.05)
    return (rays / rays[..., 2:])[known] * z[known][:, None]


def sighting(camera: Camera, points: Float[np.ndarray, "p 3"], T_other_camera: Float[np.ndarray, "4 4"]) -> Sighting:
    """How a frame at `T_other_camera` sees points given in the camera's coordinates."""
    if len(points) == 0:
        return Sighting(0.0, 0.0)
    moved = points @ T_other_camera[:3, :3].T + T_other_camera[:3, 3]
    pixels, visible = project(camera, moved)
    inside = visible & (pixels >= -0.5).all(1) & (pixels < np.array([camera.width_px, camera.height_px]) - 0.5).all(1)
    if not inside.any():
        return Sighting(0.0, 0.0)
    turned = points[inside] @ T_other_camera[:3, :3].T
    cosine = np.sum(turned * moved[inside], axis=1) / (np.linalg.norm(turned, axis=1) * np.linalg.norm(moved[inside], axis=1))
    return Sighting(float(inside.mean()), float(np.median(np.arccos(np.clip(cosine, -1, 1)))))


def choose_keyframes(
    camera: Camera,
    indices: Sequence[int],
    poses: Float[np.ndarray, "n 4 4"],
    depth_of: Callable[[int], Float[np.ndarray, "h w"]],
    max_angle_rad: float,
    min_overlap: float,
    max_num: int,
) -> list[int]:
    """Positions of keyframes in time order: a new one whenever the last is seen from too far aside or with too little overlap.

    What is over `max_num` is left out as `spread_groups` says.
    """
    chosen = [0]
    points = sample_points(camera, depth_of(indices[0]))
    for position in range(1, len(indices)):
        seen = sighting(camera, points, inverse(poses[position]) @ poses[chosen[-1]])
        if seen.angle_rad > max_angle_rad or seen.overlap < min_overlap or position == len(indices) - 1:
            chosen.append(position)
            points = sample_points(camera, depth_of(indices[position]))
    return [chosen[k] for k in spread_groups(len(chosen), max_num)]


def spread_groups(num: int, max_num: int) -> list[int]:
    """At most `max_num` of `num` positions: all, or groups of GROUP neighbours at even steps.

    Neighbours judge each other, and positions at even steps would have none.
    """
    if num <= max_num:
        return list(range(num))
    starts = np.linspace(0, max(num - GROUP, 0), max(max_num // GROUP, 1)).round().astype(int)
    return sorted({min(int(start) + k, num - 1) for start in starts for k in range(min(GROUP, max_num))})


def choose_partners(
    camera: Camera,
    points: Float[np.ndarray, "p 3"],
    position: int,
    poses: Float[np.ndarray, "n 4 4"],
    candidates: Sequence[int],
    options: PairOptions,
) -> list[int]:
    """Positions of at most `options.num` frames that see the same place from about the best angle, from before and after it in time."""
    costs: dict[int, float] = {}
    for candidate in candidates:
        if candidate == position:
            continue
        seen = sighting(camera, points, inverse(poses[candidate]) @ poses[position])
        if seen.overlap >= options.min_overlap and options.min_angle_rad <= seen.angle_rad <= options.max_angle_rad:
            costs[candidate] = abs(np.log(seen.angle_rad / options.best_angle_rad)) + 2.0 * (1.0 - seen.overlap)
    order = sorted(costs, key=lambda candidate: (costs[candidate], candidate))
    before = [c for c in order if c < position][: (options.num + 1) // 2]
    after = [c for c in order if c > position][: options.num // 2]
    rest = [c for c in order if c not in before and c not in after]
    return sorted((before + after + rest)[: options.num], key=order.index)
