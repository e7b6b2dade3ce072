"""Depth networks by name. Each turns one picture behind a known lens into z-depth with its uncertainty."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, UInt8

from recon.types import Camera, ReconError


@dataclass(frozen=True)
class DepthEstimate:
    """What a network says of one picture, on the picture's own lens resized to (h, w), of the picture's aspect."""

    depth: Float[np.ndarray, "h w"]
    """z-depth, up to one factor; 0 where the network says nothing."""
    sigma: Float[np.ndarray, "h w"]
    """One standard deviation of the log of the depth; 0 where the depth is 0."""


@runtime_checkable
class DepthModel(Protocol):
    """A loaded network."""

    def infer(self, image: UInt8[np.ndarray, "H W 3"], camera: Camera, mask: Bool[np.ndarray, "H W"]) -> DepthEstimate:
        """Estimate depth of one RGB image; `camera` has the image's size, `mask` is True on tissue."""


@dataclass(frozen=True)
class ModelInfo:
    """One line of `recon models`."""

    name: str
    parameters: int
    trainable: int
    licence: str
    weights: str
    """"in the package", "none needed", or how to get them."""
    output: Literal["distance", "depth", "disparity"]
    trained_on: tuple[str, ...]
    """Data sets (keys of `recon.data.DATASETS`, or names of splits) whose images or truth the weights have seen."""
    load: Callable[[str], DepthModel]
    """From a device to the model."""
    checksum: Callable[[], str]
    """SHA-256 of the weights; the empty string where there are none."""


def registry() -> dict[str, ModelInfo]:
    """All depth models of this installation by name."""
    from recon.models import falloff, student

    return {info.name: info for info in (student.info(), falloff.INFO)}


def model_info(name: str) -> ModelInfo:
    """Raises ReconError listing the known names."""
    known = registry()
    if name not in known:
        raise ReconError(f"depth.model {name!r} is not known; known: {', '.join(known)}")
    return known[name]


def load_depth_model(name: str, device: str = "cpu") -> DepthModel:
    """Load a depth model by its registered name."""
    return model_info(name).load(device)
