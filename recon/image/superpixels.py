"""A picture cut into small patches of like colour: SLIC (Achanta et al., "SLIC superpixels compared to state-of-the-art superpixel
methods", 2012) on a regular grid of centres, each pixel choosing among the nine around it.

Unlike in the paper nothing is joined afterwards: a patch may fall into pieces, which are near one another all the same.
"""

from __future__ import annotations

import cv2
import numpy as np
from jaxtyping import Float, Int, UInt8

NUM_SUPERPIXELS = 100
COMPACTNESS = 10.0
"""Colour difference (CIELAB) that weighs as much as the distance between neighbouring centres."""
NUM_ROUNDS = 5


def superpixels(image: UInt8[np.ndarray, "h w 3"], number: int = NUM_SUPERPIXELS) -> Int[np.ndarray, "h w"]:
    """Label every pixel of an RGB picture, from 0; about `number` labels. The same picture always gives the same labels."""
    height, width = image.shape[:2]
    spacing = max(np.sqrt(height * width / number), 1.0)
    rows, columns = max(round(height / spacing), 1), max(round(width / spacing), 1)
    lab = cv2.cvtColor(image.astype(np.float32) / 255.0, cv2.COLOR_RGB2LAB)
    v, u = np.indices((height, width), dtype=np.float32)
    features = np.concatenate([lab / COMPACTNESS, np.stack([u, v], axis=-1) / spacing], axis=-1)
    home_row, home_column = (v * rows / height).astype(int), (u * columns / width).astype(int)
    labels = home_row * columns + home_column
    for _ in range(NUM_ROUNDS):
        labels = _nearest(features, _centres(features, labels, rows * columns), (home_row, home_column), (rows, columns))
    return labels


def _centres(features: Float[np.ndarray, "h w c"], labels: Int[np.ndarray, "h w"], number: int) -> Float[np.ndarray, "n c"]:
    """Mean features of each label; those of nobody lie infinitely far away."""
    counts = np.bincount(labels.ravel(), minlength=number)
    sums = [np.bincount(labels.ravel(), weights=channel.ravel(), minlength=number) for channel in np.moveaxis(features, -1, 0)]
    with np.errstate(invalid="ignore", divide="ignore"):
        centres = np.stack(sums, axis=1) / counts[:, None]
    return np.where(counts[:, None] > 0, centres, np.inf).astype(np.float32)


def _nearest(
    features: Float[np.ndarray, "h w c"],
    centres: Float[np.ndarray, "n c"],
    home: tuple[Int[np.ndarray, "h w"], Int[np.ndarray, "h w"]],
    grid: tuple[int, int],
) -> Int[np.ndarray, "h w"]:
    """The nearest of the centres in a pixel's own cell of the (rows, columns) grid and the eight around it."""
    rows, columns = grid
    best, labels = np.full(features.shape[:2], np.inf, dtype=np.float32), np.zeros(features.shape[:2], dtype=int)
    for down in (-1, 0, 1):
        for across in (-1, 0, 1):
            candidate = np.clip(home[0] + down, 0, rows - 1) * columns + np.clip(home[1] + across, 0, columns - 1)
            distance = ((features - centres[candidate]) ** 2).sum(axis=-1)
            nearer = distance < best
            best, labels = np.where(nearer, distance, best), np.where(nearer, candidate, labels)
    return labels
