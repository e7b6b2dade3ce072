"""Cuts of an edited recording: where a frame shows another place than the one before it.

A cut is a jump that stays: the picture changes far more than it does from frame to frame around it, and the frames beyond
the two are as far apart, which a flash or a splash of water leaves alike. Hard cuts as in Lienhart, "Comparison of automatic shot
boundary detection algorithms" (1999), on small pictures with their exposure taken out.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8

GRID = (16, 12)
"""Width and height of the small pictures."""
NEIGHBOURS = 12
"""Steps to either side that say how much the picture ordinarily changes."""
JUMP = 3.0
"""A cut changes the picture this many times as much as the ordinary step (median), and lies as many spreads above it."""
MIN_JUMP = 0.15
"""Least change of a cut: mean difference over mean brightness."""
STAYS = 0.7
"""Of the jump, what must be left of it a frame later, and a frame before."""


@dataclass
class CutFinder:
    """Takes the frames of a recording one by one and keeps two small pictures of them."""

    changes: list[tuple[int, float, float]] = field(default_factory=list)
    """Per frame: its index, its difference from the frame before, and from the one before that."""
    _last: tuple[np.ndarray, ...] = ()

    def add(self, index: int, image: UInt8[np.ndarray, "h w 3"], valid: Bool[np.ndarray, "h w"]) -> None:
        """The next frame that shows something."""
        small = small_picture(image, valid)
        differences = [float(np.abs(small - before).mean()) for before in self._last]
        self.changes.append((index, *[*differences, 0.0, 0.0][:2]))
        self._last = (small, *self._last[:1])

    def cuts(self) -> list[int]:
        """Indices of the frames that begin another shot, in order."""
        step = np.array([change for _, change, _ in self.changes])
        two = np.array([change for _, _, change in self.changes])
        return [self.changes[k][0] for k in range(1, len(step)) if _is_cut(step, two, k)]


def small_picture(image: UInt8[np.ndarray, "h w 3"], valid: Bool[np.ndarray, "h w"]) -> Float[np.ndarray, "12 16 3"]:
    """The picture at 16x12, in units of its own mean; what is not valid has the mean brightness."""
    weight = cv2.resize(valid.astype(np.float32), GRID, interpolation=cv2.INTER_AREA)[..., None]
    small = cv2.resize(image.astype(np.float32) * valid[..., None], GRID, interpolation=cv2.INTER_AREA)
    mean = small.sum() / max(3.0 * float(weight.sum()), 1e-6)
    return np.where(weight > 0.05, small / np.maximum(weight, 1e-6) / max(mean, 1e-6), 1.0).astype(np.float32)


def _is_cut(step: np.ndarray, two: np.ndarray, k: int) -> bool:
    around = np.concatenate([step[max(1, k - NEIGHBOURS) : k], step[k + 1 : k + 1 + NEIGHBOURS]])
    if len(around) == 0:
        return False
    ordinary = float(np.median(around))
    spread = 1.4826 * float(np.median(np.abs(around - ordinary)))
    before = k < 2 or two[k] > STAYS * step[k]
    after = k + 1 == len(step) or two[k + 1] > STAYS * step[k]
    return bool(step[k] > max(MIN_JUMP, JUMP * ordinary, ordinary + JUMP * spread) and before and after)
