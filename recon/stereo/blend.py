"""One distance map from stereo and network: stereo where views agree, and elsewhere the network, bent to meet stereo around it."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Bool, Float

REACH = 0.06
"""Standard deviation, over the picture's width, of the window through which stereo bends the network's distance."""
PRIOR = 0.02
"""Share of the window that stereo must fill for its word to weigh as much as the network's own scale."""
MIN_SIGMA = 0.004
"""Of the logarithm of distance: what lens, poses and windows leave even where stereo is sharp."""
STEP_SHARE = 0.3
"""Of a step of the hypotheses, the standard deviation of the refined maximum."""


@dataclass(frozen=True)
class Blend:
    """Distances along the rays, 0 where unknown."""

    distance: Float[np.ndarray, "h w"]
    sigma: Float[np.ndarray, "h w"]
    """Standard deviation of its logarithm."""
    from_stereo: Bool[np.ndarray, "h w"]


def blend(
    stereo: Float[np.ndarray, "h w"],
    precision: Float[np.ndarray, "h w"],
    trusted: Bool[np.ndarray, "h w"],
    network: Float[np.ndarray, "h w"],
    network_sigma: Float[np.ndarray, "h w"],
) -> Blend:
    """Complete a stereo map.

    Args:
        precision: relative step of distance between hypotheses, `Match.precision`.
        trusted: where stereo is confirmed by other views.
        network: distance in the same unit, 0 where unknown; `network_sigma` is the standard deviation of its logarithm.
    """
    both = trusted & (network > 0)
    ratio = np.where(both, np.log(np.where(both, stereo, 1.0) / np.where(both, network, 1.0)), 0.0)
    weight = _smooth(both)
    field = _smooth(ratio * both) / (weight + PRIOR)
    left = np.sqrt(_smooth(both * (ratio - field) ** 2) / (weight + PRIOR))
    distance = np.where(trusted, stereo, network * np.exp(field))
    sharp = np.hypot(STEP_SHARE * precision, MIN_SIGMA)
    sigma = np.where(trusted, sharp, np.where(network > 0, np.hypot(network_sigma, left), 0.0))
    return Blend(distance.astype(np.float32), sigma.astype(np.float32), trusted)


def _smooth(values: np.ndarray) -> np.ndarray:
    return cv2.GaussianBlur(values.astype(np.float32), (0, 0), REACH * values.shape[1], borderType=cv2.BORDER_CONSTANT)
