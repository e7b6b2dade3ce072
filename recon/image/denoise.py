"""Depth maps freed of the noise that a stereo matcher leaves from pixel to pixel, edges kept."""

from __future__ import annotations

import cv2
import numpy as np
from jaxtyping import Bool, Float

from recon.image.filling import membrane

RADIUS_SHARE = 0.015
"""Standard deviation of the filter in space, of the picture's width."""
EDGE_NOISES = 3.0
"""Differences of this many standard deviations of the noise still count half as much as none."""


def denoised(depth: Float[np.ndarray, "h w"], known: Bool[np.ndarray, "h w"]) -> Float[np.ndarray, "h w"]:
    """Bilateral mean of known depth (Tomasi & Manduchi 1998), as wide in depth as the map's own noise; 0 where unknown.

    Smooth depth has no noise and stays what it is.
    """
    if not known.any():
        return np.zeros_like(depth, dtype=np.float32)
    filled = membrane(depth, known)
    # The median of the absolute second difference across a pixel says the noise of what is smooth otherwise.
    bend = np.abs(filled[:, 2:] - 2 * filled[:, 1:-1] + filled[:, :-2])[known[:, 1:-1]]
    noise = 1.4826 * float(np.median(bend)) / np.sqrt(6.0) if bend.size else 0.0
    if noise <= 0:
        return np.where(known, filled, 0)
    smooth = cv2.bilateralFilter(filled, d=-1, sigmaColor=EDGE_NOISES * noise, sigmaSpace=RADIUS_SHARE * depth.shape[1])
    return np.where(known, smooth, 0).astype(np.float32)
