"""Which posed frames are fused, and which other frames judge each of them."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Int


def select_frames(
    T_world_camera: Float[np.ndarray, "n 4 4"],
    is_keyframe: Bool[np.ndarray, " n"],
    median_depth: float,
    max_frames: int,
    min_step: float = 0.02,
    min_turn_rad: float = 0.035,
) -> Int[np.ndarray, " m"]:
    """Return positions of at most `max_frames` frames, in time order.

    A frame that moved less than `min_step` median depths and turned less than `min_turn_rad` since the last one taken adds
    nothing new and is left out unless it is a keyframe; what is left over the limit is thinned evenly.
    """
    chosen: list[int] = []
    for i, pose in enumerate(T_world_camera):
        if chosen and not is_keyframe[i]:
            last = T_world_camera[chosen[-1]]
            step = np.linalg.norm(pose[:3, 3] - last[:3, 3]) / median_depth
            if step < min_step and _turn_rad(pose, last) < min_turn_rad:
                continue
        chosen.append(i)
    if len(chosen) > max_frames:
        keep = np.unique(np.linspace(0, len(chosen) - 1, max_frames).round().astype(int))
        chosen = [chosen[k] for k in keep]
    return np.array(chosen, dtype=np.int64)


def select_neighbours(
    T_world_camera: Float[np.ndarray, "n 4 4"],
    position: int,
    median_depth: float,
    num: int,
    best_parallax: float = 0.15,
    max_parallax: float = 1.0,
    max_turn_rad: float = 1.0,
) -> Int[np.ndarray, " k"]:
    """Return up to `num` frames that see the same place from somewhere else, the best first.

    A network repeats its own error on nearly the same picture, so neighbours are wanted whose distance is near
    `best_parallax` median depths; farther than `max_parallax` or turned away they see something else. Half come from
    before and half from after where there are enough.
    """
    pose = T_world_camera[position]
    offset = T_world_camera[:, :3, 3] - pose[:3, 3]
    parallax = np.linalg.norm(offset, axis=1) / median_depth
    turn = np.array([_turn_rad(pose, other) for other in T_world_camera])
    able = (parallax < max_parallax) & (turn < max_turn_rad) & (parallax > 0.01)
    able[position] = False
    cost = np.abs(np.log(np.maximum(parallax, 1e-6) / best_parallax)) + turn
    order = [i for i in np.argsort(cost, kind="stable") if able[i]]
    before = [i for i in order if i < position][: (num + 1) // 2]
    after = [i for i in order if i > position][: num // 2]
    rest = [i for i in order if i not in before and i not in after]
    return np.array(sorted((before + after + rest)[:num], key=order.index), dtype=np.int64)


def _turn_rad(first: np.ndarray, second: np.ndarray) -> float:
    cosine = (np.trace(first[:3, :3].T @ second[:3, :3]) - 1) / 2
    return float(np.arccos(np.clip(cosine, -1, 1)))
