"""Points that move with others around them."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from scipy.spatial import cKDTree

NUM_CARRIERS = 8
SOFTNESS = 0.1
"""Of the median distance to the carriers: nearer ones do not outweigh the others without bound."""


class Carried:
    """Points held by the nearest of some anchors, by inverse distance."""

    def __init__(self, points: Float[np.ndarray, "n 3"], anchors: Float[np.ndarray, "m 3"]) -> None:
        self.points, self.anchors = points, anchors
        k = min(NUM_CARRIERS, len(anchors))
        distance, nearest = cKDTree(anchors).query(points, k=np.arange(1, k + 1))
        weight = 1.0 / (distance + SOFTNESS * np.median(distance) + 1e-12)
        self._nearest, self._weight = nearest, (weight / weight.sum(axis=1, keepdims=True))[..., None]

    def to(self, anchors: Float[np.ndarray, "m 3"]) -> Float[np.ndarray, "n 3"]:
        """Where the points are when the anchors are there."""
        return self.points + ((anchors - self.anchors)[self._nearest] * self._weight).sum(axis=1)
