"""The brightest and the darkest channel of pictures. NumPy's reduction over a last axis of three takes ten times as long."""

from __future__ import annotations

import numpy as np
from jaxtyping import Shaped


def brightest(image: Shaped[np.ndarray, "*s 3"]) -> Shaped[np.ndarray, " *s"]:
    """The largest of three channels, of the same type."""
    return np.maximum(np.maximum(image[..., 0], image[..., 1]), image[..., 2])


def darkest(image: Shaped[np.ndarray, "*s 3"]) -> Shaped[np.ndarray, " *s"]:
    """The smallest of three channels, of the same type."""
    return np.minimum(np.minimum(image[..., 0], image[..., 1]), image[..., 2])
