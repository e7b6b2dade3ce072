"""Depth without learning: a lamp beside the lens makes near tissue bright.

Radiance falls with the square of the distance and with the cosine of incidence, which in a tube seen along its axis
falls with the angle of the ray; so distance goes with cos(ray angle) over the root of linear brightness. It is the
floor that a network has to beat: it reads albedo as distance and a folded surface as a smooth one.
"""

from __future__ import annotations

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8

from recon.geometry.cameras import ray_grid, resize
from recon.models import DepthEstimate, ModelInfo
from recon.types import Camera

GAMMA = 2.2
WIDTH_PX = 192
FLOOR = 0.004
"""Linear brightness below which the sensor's noise speaks; about 20 of 255."""
SIGMA = 0.35
"""Typical error of the log-distance on phantom renders."""


class Falloff:
    """The inverse-square law as a depth model."""

    def infer(self, image: UInt8[np.ndarray, "H W 3"], camera: Camera, mask: Bool[np.ndarray, "H W"]) -> DepthEstimate:
        """Depth from smoothed brightness; see the module for the law."""
        height = max(round(WIDTH_PX * image.shape[0] / image.shape[1]), 1)
        small = resize(camera, WIDTH_PX, height)
        cosine = ray_grid(small)[..., 2]
        known = cv2.resize(mask.astype(np.uint8), (WIDTH_PX, height), interpolation=cv2.INTER_NEAREST) > 0
        brightness = smooth_within(cv2.resize(image, (WIDTH_PX, height), interpolation=cv2.INTER_AREA).mean(axis=2) / 255.0, known)
        distance = np.maximum(cosine, 0.05) / np.sqrt(np.maximum(brightness**GAMMA, FLOOR))
        depth = np.where(known & (cosine > 0), distance * cosine, 0).astype(np.float32)
        return DepthEstimate(depth, np.where(depth > 0, SIGMA, 0).astype(np.float32))


def smooth_within(values: Float[np.ndarray, "h w"], mask: Bool[np.ndarray, "h w"]) -> Float[np.ndarray, "h w"]:
    """Blur over the mask alone, so that what is outside does not leak in."""
    sigma = values.shape[1] / 64
    weight = cv2.GaussianBlur(mask.astype(np.float64), (0, 0), sigma)
    return cv2.GaussianBlur(values * mask, (0, 0), sigma) / np.maximum(weight, 1e-6)


INFO = ModelInfo(
    name="falloff",
    parameters=0,
    trainable=0,
    licence="Apache-2.0",
    output="distance",
    trained_on=(),
    load=lambda device, weights: Falloff(),
)
