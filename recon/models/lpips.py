"""LPIPS, the perceptual distance of Zhang et al., "The unreasonable effectiveness of deep features as a perceptual metric" (2018).

AlexNet sees both pictures; at each of its five stages the features are brought to unit length along the channels, and their squared
differences are summed with learnt weights and averaged over the picture. Version 0.1, AlexNet. The weights lie in two files:
torchvision's `alexnet` (of which the classifier is not needed) and the linear layers of the `lpips` package (`alex.pth`).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from recon.models.weights import load_weights
from recon.types import ReconError

SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
"""Taken from and dividing pictures in -1..1: ImageNet's statistics on that scale."""
CHANNELS = (64, 192, 384, 256, 256)
TAPS = (1, 4, 7, 9, 11)
"""Places in `features` after which its maps are compared: behind each ReLU."""
EPSILON = 1e-10
"""Added to the length of a feature."""
MIN_SIDE_PX = 31
"""Of a smaller picture the last stages see nothing."""


class AlexNetFeatures(nn.Module):
    """torchvision's `alexnet` up to its last ReLU, with its names (`features.0.weight`, ...)."""

    def __init__(self) -> None:
        super().__init__()
        a, b, c, d, e = CHANNELS
        self.features = nn.Sequential(
            *(nn.Conv2d(3, a, 11, 4, 2), nn.ReLU(), nn.MaxPool2d(3, 2)),
            *(nn.Conv2d(a, b, 5, 1, 2), nn.ReLU(), nn.MaxPool2d(3, 2)),
            *(nn.Conv2d(b, c, 3, 1, 1), nn.ReLU(), nn.Conv2d(c, d, 3, 1, 1), nn.ReLU(), nn.Conv2d(d, e, 3, 1, 1), nn.ReLU()),
        )

    def forward(self, x: Float[Tensor, "b 3 h w"]) -> list[Float[Tensor, "b _c _h _w"]]:
        maps = []
        for place, layer in enumerate(self.features):
            x = layer(x)
            if place in TAPS:
                maps.append(x)
        return maps


class LinearLayers(nn.Module):
    """A weight a channel at each stage, with the names of the public package: `lin0.model.1.weight`, of shape (1, channels, 1, 1)."""

    def __init__(self) -> None:
        super().__init__()
        for stage, channels in enumerate(CHANNELS):
            inside = nn.Sequential(nn.Dropout(), nn.Conv2d(channels, 1, 1, bias=False))
            self.add_module(f"lin{stage}", nn.ModuleDict({"model": inside}))

    def forward(self, squares: list[Float[Tensor, "b _c _h _w"]]) -> Float[Tensor, " b"]:
        return sum(self.get_submodule(f"lin{stage}.model")(x).mean(dim=(1, 2, 3)) for stage, x in enumerate(squares))


class Lpips(nn.Module):
    """The distance of pictures in -1..1."""

    def __init__(self) -> None:
        super().__init__()
        self.alexnet, self.linear = AlexNetFeatures(), LinearLayers()
        self.register_buffer("shift", torch.tensor(SHIFT)[:, None, None], persistent=False)
        self.register_buffer("scale", torch.tensor(SCALE)[:, None, None], persistent=False)

    def forward(self, a: Float[Tensor, "b 3 h w"], b: Float[Tensor, "b 3 h w"]) -> Float[Tensor, " b"]:
        maps = zip(*(self.alexnet((x - self.shift) / self.scale) for x in (a, b)), strict=True)
        return self.linear([(_unit_length(p) - _unit_length(q)) ** 2 for p, q in maps])


def load_lpips(alexnet: Path, linear: Path) -> Lpips:
    """The network with its weights, ready to measure.

    Args:
        alexnet: torchvision's `alexnet-*.pth`.
        linear: `alex.pth` of the `lpips` package, version 0.1.

    Raises ReconError for a missing or damaged file, and lists the keys that a file lacks.
    """
    network = Lpips()
    load_weights(network.alexnet, alexnet, may_ignore=("classifier.*",))
    load_weights(network.linear, linear)
    return network.eval().requires_grad_(False)


def perceptual_distance(network: Lpips, a: Float[np.ndarray, "h w 3"], b: Float[np.ndarray, "h w 3"], is_signed: bool) -> float:
    """LPIPS of two pictures in 0..1.

    Args:
        is_signed: bring them to -1..1 first, as the network was trained; else feed 0..1 as it is, as EndoNeRF's evaluation does,
            whose figures are therefore smaller.
    """
    if min(a.shape[:2]) < MIN_SIDE_PX:
        raise ReconError(f"LPIPS needs pictures of at least {MIN_SIDE_PX} px on both sides, found {a.shape[1]}x{a.shape[0]}")
    pictures = [torch.from_numpy(np.ascontiguousarray(x, dtype=np.float32)).permute(2, 0, 1)[None] for x in (a, b)]
    if is_signed:
        pictures = [2.0 * x - 1.0 for x in pictures]
    device = network.shift.device
    with torch.no_grad():
        return float(network(*(x.to(device) for x in pictures)))


def _unit_length(x: Tensor) -> Tensor:
    return x / (torch.sqrt((x**2).sum(dim=1, keepdim=True)) + EPSILON)
