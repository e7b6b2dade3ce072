"""Depth Anything V1 and V2 (Yang et al. 2024), with the key names of the published `.pth` files.

The relative networks give disparity: inverse z-depth up to one factor and one shift per picture, never below 0. The metric ones
(V2) give z-depth in metres below `max_depth` (20 for rooms, 80 for streets in the published weights).
V1 reads the last four blocks of the encoder, V2 four spread over its depth; nothing else differs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from recon.models.dpt import DPTHead
from recon.models.vit import PATCH_PX, TRAINED_PX, VIT_SIZES, DinoVisionTransformer, VitSize
from recon.types import ReconError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class DepthAnythingSize:
    """Encoder and head of one size."""

    vit: VitSize
    features: int
    channels: tuple[int, int, int, int]
    """Of the pyramid, finest first."""
    spread_blocks: tuple[int, int, int, int]
    """The blocks (0-based) that V2 and its descendants read."""

    @property
    def last_blocks(self) -> tuple[int, int, int, int]:
        """The blocks (0-based) that V1 reads."""
        last = self.vit.num_blocks - 1
        return last - 3, last - 2, last - 1, last


SIZES = {
    "small": DepthAnythingSize(VIT_SIZES["small"], 64, (48, 96, 192, 384), (2, 5, 8, 11)),
    "base": DepthAnythingSize(VIT_SIZES["base"], 128, (96, 192, 384, 768), (2, 5, 8, 11)),
    "large": DepthAnythingSize(VIT_SIZES["large"], 256, (256, 512, 1024, 1024), (4, 11, 17, 23)),
}


class DepthAnything(nn.Module):
    """One of the published networks (`size` from SIZES), or one like them. `max_depth` (metres) makes a V2 metric."""

    def __init__(self, version: Literal[1, 2], size: DepthAnythingSize, max_depth: float | None = None) -> None:
        super().__init__()
        if max_depth is not None and (version == 1 or max_depth <= 0):
            raise ReconError(f"Depth Anything V{version} with max_depth {max_depth}: only V2 is metric, with max_depth above 0")
        self.blocks = size.last_blocks if version == 1 else size.spread_blocks
        self.factor = 1.0 if max_depth is None else max_depth
        self.pretrained = DinoVisionTransformer(size.vit)
        activation = nn.ReLU() if max_depth is None else nn.Sigmoid()
        self.depth_head = DPTHead(size.vit.width, size.features, size.channels, activation)

    def forward(self, image: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b h w"]:
        """Disparity (relative) or z-depth in metres (metric) of ImageNet-normalised RGB; h and w multiples of 14."""
        return self.factor * self.depth_head(self.pretrained(image, self.blocks))


def imagenet_normalised(image: Float[Tensor, "*batch 3 h w"]) -> Float[Tensor, "*batch 3 h w"]:
    """RGB in [0, 1] as the encoder was trained to see it."""
    mean, std = (torch.tensor(values, dtype=image.dtype, device=image.device)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    return (image - mean) / std


def network_size(width_px: int, height_px: int, shorter_px: int = TRAINED_PX) -> tuple[int, int]:
    """Width and height at which the authors look at a picture: its aspect, whole patches, no side below `shorter_px`."""
    scale = max(shorter_px / width_px, shorter_px / height_px)
    return _whole_patches(scale * width_px, shorter_px), _whole_patches(scale * height_px, shorter_px)


def _whole_patches(side_px: float, least_px: int) -> int:
    nearest = round(side_px / PATCH_PX) * PATCH_PX
    return nearest if nearest >= least_px else -int(-side_px // PATCH_PX) * PATCH_PX
