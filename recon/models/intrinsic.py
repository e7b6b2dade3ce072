"""A picture taken apart into what tissue reflects and the light on it, for EndoUFM's training (arXiv 2508.17916, after
IID-SfMLearner, 2024): picture = albedo * light, albedo in three channels and light in one, both within 0 and 1.

Albedo stays with the tissue when the camera and its lamp move, light does not: albedo is what is compared between frames, and a
small network says how the light has changed. In the published code the pyramid below the two heads keeps random weights for good,
for it is stored under a name that its loader does not find and its optimiser leaves out. Here it is trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from recon.models.depth_anything import DepthAnythingSize
from recon.models.dpt import DPTNeck, resized
from recon.models.monodepth2 import ConvBlock
from recon.models.sam import SamFeatures, SamSize

HEAD_CHANNELS = 16
ADJUSTMENT_CHANNELS = 32


class Intrinsics(NamedTuple):
    """The two parts of a picture."""

    albedo: Float[Tensor, "b 3 h w"]
    light: Float[Tensor, "b 1 h w"]

    def picture(self) -> Float[Tensor, "b 3 h w"]:
        """What the parts make together."""
        return self.albedo * self.light


class IntrinsicHead(nn.Module):
    """From the finest path and the picture itself to one of the parts, within 0 and 1."""

    def __init__(self, features: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(features, HEAD_CHANNELS, 3, padding=1)
        self.conv2 = nn.Conv2d(3, HEAD_CHANNELS, 3, padding=1)
        self.conv3 = nn.Conv2d(2 * HEAD_CHANNELS, outputs, 1)

    def forward(self, path: Float[Tensor, "b c _h _w"], image: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b outputs h w"]:
        """At the size of the picture; the published sizes make this twice the path's."""
        inside = functional.relu(self.conv1(resized(path, image.shape[-2:])))
        return torch.sigmoid(self.conv3(torch.cat([inside, functional.relu(self.conv2(image))], dim=1)))


class DecomposeHead(DPTNeck):
    """Depth Anything's pyramid with a head for each part."""

    def __init__(self, width: int, features: int, channels: Sequence[int]) -> None:
        super().__init__(width, features, channels)
        self.conv_albedo = IntrinsicHead(features, 3)
        self.conv_light = IntrinsicHead(features, 1)

    def forward(self, maps: Sequence[Float[Tensor, "b c rows columns"]], image: Float[Tensor, "b 3 h w"]) -> Intrinsics:
        path = self.paths(maps)[0]
        return Intrinsics(self.conv_albedo(path, image), self.conv_light(path, image))


class Decomposer(nn.Module):
    """SAM's frozen encoder with adapters, and the trained heads on a pyramid of the depth network's size."""

    def __init__(self, sam: SamSize, grid: tuple[int, int], pyramid: DepthAnythingSize) -> None:
        super().__init__()
        self.grid = grid
        self.encoder = SamFeatures(sam)
        self.decompose_head = DecomposeHead(sam.width, pyramid.features, pyramid.channels)

    def forward(self, image: Float[Tensor, "b 3 h w"]) -> Intrinsics:
        """The parts of RGB in [0, 1]."""
        return self.decompose_head(self.encoder(image, self.grid), image)


class LightAdjustment(nn.Module):
    """How much lighter the target is than the source's light moved onto it, from where the two pictures differ."""

    def __init__(self) -> None:
        super().__init__()
        width = ADJUSTMENT_CHANNELS
        self.decoder = nn.ModuleList([ConvBlock(3, width), ConvBlock(width, width), ConvBlock(width, width), nn.Conv2d(width, 1, 1)])

    def forward(self, difference: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 1 h w"]:
        """A change within -1 and 1, of the absolute difference of the pictures where both are known."""
        for layer in self.decoder:
            difference = layer(difference)
        return torch.tanh(difference)
