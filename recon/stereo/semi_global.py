"""Semi-global aggregation of matching costs (Hirschmuller 2008): smooth along many lines through each pixel."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

DIRECTIONS = ((0, 1), (0, -1), (1, 0), (-1, 0), (1, 1), (1, -1), (-1, 1), (-1, -1))
"""(down, right) of the eight lines."""


def aggregate(cost: Float[np.ndarray, "h w p"], small_step: float, large_step: float) -> Float[np.ndarray, "h w p"]:
    """Mean over eight directions of the cheapest path cost that ends at each pixel and plane.

    Args:
        small_step: penalty for a change by one plane between neighbours.
        large_step: penalty for any larger change: what an occlusion edge costs.
    """
    total = np.zeros_like(cost)
    for down, right in DIRECTIONS:
        if down == 0:
            _sweep(cost.transpose(1, 0, 2), total.transpose(1, 0, 2), right, 0, small_step, large_step)
        else:
            _sweep(cost, total, down, right, small_step, large_step)
    return total / len(DIRECTIONS)


def _sweep(cost: np.ndarray, total: np.ndarray, step: int, shift: int, small_step: float, large_step: float) -> None:
    """Add the path costs of one direction to `total`: along the first axis by `step`, along the second by `shift` a line."""
    lines = range(len(cost)) if step > 0 else range(len(cost) - 1, -1, -1)
    previous = None
    for line in lines:
        here = cost[line]
        if previous is None:
            path = here.copy()
        else:
            before = _shifted(previous, shift)
            least = before.min(axis=1, keepdims=True)
            best = np.minimum(before, least + large_step)
            np.minimum(best[:, 1:], before[:, :-1] + small_step, out=best[:, 1:])
            np.minimum(best[:, :-1], before[:, 1:] + small_step, out=best[:, :-1])
            path = here + (best - least)
        total[line] += path
        previous = path


def _shifted(line: np.ndarray, shift: int) -> np.ndarray:
    """The line as its neighbour sees it; a path that comes from outside starts anew."""
    if shift == 0:
        return line
    moved = np.zeros_like(line)
    if shift > 0:
        moved[shift:] = line[:-shift]
    else:
        moved[:shift] = line[-shift:]
    return moved
