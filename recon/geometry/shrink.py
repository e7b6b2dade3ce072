"""Depth maps made smaller without depth in mid-air."""

from __future__ import annotations

import cv2
import numpy as np
from jaxtyping import Bool, Float

MAX_SPREAD = 0.02
"""Relative standard deviation of depth within one new pixel, above which an edge runs through it."""


def shrunk_depth(
    depth: Float[np.ndarray, "h w"], valid: Bool[np.ndarray, "h w"], shape: tuple[int, int], least_share: float = 0.5
) -> Float[np.ndarray, "hs ws"]:
    """Mean of the valid depth that each pixel of the smaller map covers; where an edge runs through it, the nearest depth alone.

    Args:
        shape: (height, width), no larger than the map's.
        least_share: of a new pixel's area that must be valid; the rest is unknown (0).
    """
    size = shape[1], shape[0]
    known = valid & (depth > 0)
    if depth.shape == shape:
        return np.where(known, depth, 0).astype(np.float32)
    share, first, second = (
        cv2.resize(np.where(known, values, 0).astype(np.float64), size, interpolation=cv2.INTER_AREA)
        for values in (np.ones_like(depth), depth, depth.astype(np.float64) ** 2)
    )
    mean = first / np.maximum(share, 1e-9)
    spread = np.sqrt(np.maximum(second / np.maximum(share, 1e-9) - mean**2, 0))
    nearest = cv2.resize(np.where(known, depth, 0).astype(np.float32), size, interpolation=cv2.INTER_NEAREST)
    smaller = np.where(spread > MAX_SPREAD * mean, nearest, mean)
    return np.where(share >= least_share, smaller, 0).astype(np.float32)
