"""How much one depth pixel counts: the inverse variance of a network's relative depth error, and what it cannot know."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float

from recon.fusion.view import rays
from recon.types import Camera

WEIGHT_RANGE = (0.002, 100.0)
"""A pixel may claim to be ten times as certain as is typical, or twenty times less, and no more."""


def pixel_weights(
    camera: Camera,
    depth: Float[np.ndarray, "h w"],
    normals: Float[np.ndarray, "h w 3"],
    sigma: Float[np.ndarray, "h w"],
    usable: Bool[np.ndarray, "h w"],
    median_depth: float,
    median_sigma: float,
    min_cosine: float,
) -> Float[np.ndarray, "h w"]:
    """Return inverse-variance weights, 1 for a frontal pixel of median depth and sigma, 0 where unknown.

    The standard deviation of depth is `sigma * depth` along the ray; a wall seen at a small angle adds the error of the
    pixel's footprint, hence the cosine. Below `min_cosine` the pixel is taken for a fold's edge and is unknown.

    Args:
        sigma: standard deviation of the logarithm of depth.
        usable: False where a mask or an edge says unknown.
    """
    viewing = rays(camera)
    cosine = -np.sum(normals * viewing, axis=-1) / np.linalg.norm(viewing, axis=-1)
    known = usable & (depth > 0) & (sigma > 0) & (cosine > min_cosine)
    spread = np.where(known, sigma * depth, 1.0) / (median_sigma * median_depth)
    weight = np.clip(cosine / spread**2, *WEIGHT_RANGE)
    return np.where(known, weight, 0).astype(np.float32)
