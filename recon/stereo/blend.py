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


@dataclass(frozen=True)
class Blend:
    """Distances along the rays, 0 where unknown."""

    distance: Float[np.ndarray, "h w"]
    sigma: Float[np.ndarray, "h w"]
    """Standard deviation of its logarithm."""
    from_stereo: Bool[np.ndarray, "h w"]
    """Where stereo weighs more than the network."""


def blend(
    stereo: Float[np.ndarray, "h w"],
    stereo_sigma: Float[np.ndarray, "h w"],
    trusted: Bool[np.ndarray, "h w"],
    network: Float[np.ndarray, "h w"],
    network_sigma: Float[np.ndarray, "h w"],
) -> Blend:
    """Inverse-variance mean of stereo and of the network bent to it; where one is silent the other speaks alone.

    Args:
        stereo, network: distances in one unit, 0 where unknown; their sigmas are standard deviations of the logarithm.
        trusted: where stereo is confirmed by other views.
    """
    both = trusted & (network > 0)
    # A pixel bends the network around it as far as it is surer than the network.
    lead = np.where(both, network_sigma**2 / np.maximum(network_sigma**2 + stereo_sigma**2, 1e-12), 0.0)
    ratio = np.where(both, np.log(np.where(both, stereo, 1.0) / np.where(both, network, 1.0)), 0.0)
    weight = _smooth(lead)
    field = _smooth(ratio * lead) / (weight + PRIOR)
    left = np.sqrt(_smooth(lead * (ratio - field) ** 2) / (weight + PRIOR))
    bent_sigma = np.hypot(network_sigma, left)
    share = np.where(both, bent_sigma**2 / np.maximum(bent_sigma**2 + stereo_sigma**2, 1e-12), trusted)
    logs = share * np.log(np.where(trusted, stereo, 1.0)) + (1 - share) * (np.log(np.where(network > 0, network, 1.0)) + field)
    known = trusted | (network > 0)
    both_sigma = stereo_sigma * bent_sigma / np.maximum(np.hypot(stereo_sigma, bent_sigma), 1e-12)
    sigma = np.where(both, both_sigma, np.where(trusted, stereo_sigma, bent_sigma))
    return Blend((np.exp(logs) * known).astype(np.float32), (sigma * known).astype(np.float32), trusted & (share > 0.5))


def _smooth(values: np.ndarray) -> np.ndarray:
    return cv2.GaussianBlur(values.astype(np.float32), (0, 0), REACH * values.shape[1], borderType=cv2.BORDER_CONSTANT)
