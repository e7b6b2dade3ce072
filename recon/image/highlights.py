"""Specular highlights: mirror images of the lamp, which move with the camera and say nothing of the tissue's colour.

The dichromatic model (Shafer, "Using color to separate reflection components", 1985): a pixel is the tissue's colour
times shading, plus the lamp's white times gloss. Shading keeps the ratio of the smallest to the largest colour channel,
gloss lifts it. What exceeds the tissue's usual ratio is gloss; a highlight is gloss that is small and stands out from its
surroundings (white top-hat), so broad pale or overexposed tissue near the lamp stays.
"""

from __future__ import annotations

import cv2
import numpy as np
from jaxtyping import Bool, UInt8

from recon.image.channels import brightest, darkest

REACH_SHARE = 0.025
"""Radius of the largest highlight, of the image's shorter side."""

CONTRAST = 0.25
"""By which a highlight's gloss exceeds its surroundings, of the frame's bright level."""

BRIGHTNESS = 0.6
"""Least brightness of a highlight, of the frame's bright level."""

MAX_TISSUE_RATIO = 0.75
"""Smallest over largest channel of the tissue; capped for pale or grey images, where gloss is mere brightness."""

RIM_SHARE = 0.004
"""Of the shorter side, added around each highlight: glare blends into the tissue there."""


def highlight_mask(image: UInt8[np.ndarray, "h w 3"], scope: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """True where there is NO specular highlight; the levels adapt to the brightness and colour inside `scope`."""
    if not scope.any():
        return np.ones(scope.shape, dtype=bool)
    shorter = min(scope.shape)
    brightness = brightest(image).astype(np.float32)
    bright_level = float(np.percentile(brightness[scope], 99.0))
    gloss = np.where(scope, _gloss(image, brightness, scope), 255.0)  # bright outside: tissue cut by the border is not small
    contrast = cv2.morphologyEx(gloss.astype(np.uint8), cv2.MORPH_TOPHAT, _disc(round(REACH_SHARE * shorter)))
    highlight = scope & (contrast > CONTRAST * bright_level) & (brightness > BRIGHTNESS * bright_level)
    return ~cv2.dilate(highlight.astype(np.uint8), _disc(max(1, round(RIM_SHARE * shorter)))).astype(bool)


def _gloss(image: np.ndarray, brightness: np.ndarray, scope: np.ndarray) -> np.ndarray:
    """Grey level of the white part of each pixel: solves smallest = ratio * diffuse + gloss, brightness = diffuse + gloss."""
    smallest = darkest(image).astype(np.float32)
    lit = scope & (brightness >= np.median(brightness[scope]))
    ratio = min(MAX_TISSUE_RATIO, float(np.median(smallest[lit] / np.maximum(brightness[lit], 1.0))))
    return np.clip((smallest - ratio * brightness) / (1.0 - ratio), 0.0, 255.0)


def _disc(radius_px: int) -> np.ndarray:
    return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius_px + 1, 2 * radius_px + 1))
