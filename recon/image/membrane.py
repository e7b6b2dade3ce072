"""Fill what is unknown in a picture as smoothly as its rim allows: the harmonic surface, found from coarse to fine."""

from __future__ import annotations

import cv2
import numpy as np
from jaxtyping import Bool, Float

SWEEPS = 40
"""Relaxations on each level of the pyramid; the coarse levels carry the shape, so few are needed."""
_NEIGHBOURS = np.array([[0, 1, 0], [1, 0, 1], [0, 1, 0]], np.float32) / 4


def membrane(values: Float[np.ndarray, "h w"], known: Bool[np.ndarray, "h w"]) -> Float[np.ndarray, "h w"]:
    """Values where `known`, elsewhere a solution of Laplace's equation between them; all 0 where nothing is known."""
    values = np.where(known, values, 0).astype(np.float32)
    if known.all() or not known.any():
        return values
    filled = _start(values, known)
    for _ in range(SWEEPS):
        filled = np.where(known, values, cv2.filter2D(filled, -1, _NEIGHBOURS, borderType=cv2.BORDER_REPLICATE))
    return filled


def _start(values: np.ndarray, known: np.ndarray) -> np.ndarray:
    """The membrane at half the size, brought back up."""
    height, width = values.shape
    size = (width + 1) // 2, (height + 1) // 2
    share = cv2.resize(known.astype(np.float32), size, interpolation=cv2.INTER_AREA)
    mean = cv2.resize(values, size, interpolation=cv2.INTER_AREA) / np.maximum(share, 1e-6)
    coarse = membrane(mean, share > 0)
    return np.where(known, values, cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR))
