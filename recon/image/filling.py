"""Fill what is unknown in a picture from its rim: the harmonic surface, found from coarse to fine, and one that also keeps slopes.

A membrane is flat where it has room and never leaves the range of its rim; a thin plate (Duchon 1977) carries slopes on and swings out
where the rim is noisy. Halfway between them, as a spline in tension (Smith & Wessel 1990), tissue under an instrument is met best.
"""

from __future__ import annotations

import cv2
import numpy as np
from jaxtyping import Bool, Float
from scipy.interpolate import RBFInterpolator

RIM_PX = 12
"""Width of the rim that a plate is bent to."""
MAX_RIM_POINTS = 400
MIN_RIM_POINTS = 20
SMOOTHING = 50.0
"""Of the plate: depth at the rim is noisy."""
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


def bridge(values: Float[np.ndarray, "h w"], known: Bool[np.ndarray, "h w"]) -> Float[np.ndarray, "h w"]:
    """Values where `known`, elsewhere the mean of a membrane and of a thin plate that is held to the rim's range and as much around it.

    All 0 where nothing is known; the membrane alone where the rim has too few pixels for a plate, or all on a line.
    """
    flat = membrane(values, known)
    hidden = ~known
    size = 2 * RIM_PX + 1
    rim = np.argwhere(known & (cv2.dilate(hidden.astype(np.uint8), np.ones((size, size), np.uint8)) > 0))
    if len(rim) < MIN_RIM_POINTS or not hidden.any():
        return flat
    rim = rim[np.linspace(0, len(rim) - 1, min(len(rim), MAX_RIM_POINTS)).round().astype(int)]
    at_rim = values[rim[:, 0], rim[:, 1]].astype(np.float64)
    if np.linalg.matrix_rank(rim - rim.mean(axis=0)) < 2:
        return flat
    plate = RBFInterpolator(rim.astype(np.float64), at_rim, kernel="thin_plate_spline", smoothing=SMOOTHING)
    half = 0.5 * np.ptp(at_rim)
    bent = np.clip(plate(np.argwhere(hidden).astype(np.float64)), at_rim.min() - half, at_rim.max() + half)
    out = flat.copy()
    out[hidden] = 0.5 * (out[hidden] + bent)
    return out


def _start(values: np.ndarray, known: np.ndarray) -> np.ndarray:
    """The membrane at half the size, brought back up."""
    height, width = values.shape
    size = (width + 1) // 2, (height + 1) // 2
    share = cv2.resize(known.astype(np.float32), size, interpolation=cv2.INTER_AREA)
    mean = cv2.resize(values, size, interpolation=cv2.INTER_AREA) / np.maximum(share, 1e-6)
    coarse = membrane(mean, share > 0)
    return np.where(known, values, cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR))
