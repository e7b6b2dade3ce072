"""MiDaS 3.1 on BEiT (Birkl et al. 2023, after Ranftl et al. 2021), with the key names of its published state dicts.

It gives relative inverse depth, at least 0 and in the thousands, of colours in [-1, 1]. Each tapped block's patches are joined with
its class token before they become a level of the pyramid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from recon.models.beit import BEIT_LARGE, Beit, BeitSize
from recon.models.dpt import HEAD_CHANNELS, FusionNeck
from recon.models.weights import LoadedWeights, load_weights

UNUSED = (
    "pretrained.model.norm.*", "pretrained.model.fc_norm.*", "pretrained.model.head.*", "*.relative_position_index", "*.k_bias",
)  # fmt: skip
"""Stored by some versions and never of use: ImageNet's classifier, and what follows from the size alone."""


@dataclass(frozen=True)
class MidasSize:
    """Encoder and head of one size."""

    beit: BeitSize
    features: int
    channels: tuple[int, int, int, int]
    """Of the pyramid, finest first."""
    blocks: tuple[int, int, int, int]
    """The blocks (0-based) that are read."""


SIZES = {"large": MidasSize(BEIT_LARGE, 256, (256, 512, 1024, 1024), (5, 11, 17, 23))}


class Readout(nn.Module):
    """Each patch joined with the class token and brought back to its width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.project = nn.Sequential(nn.Linear(2 * width, width), nn.GELU())

    def forward(self, tokens: Float[Tensor, "b n c"]) -> Float[Tensor, "b m c"]:
        patches = tokens[:, 1:]
        return self.project(torch.cat([patches, tokens[:, :1].expand_as(patches)], dim=2))


class Reassemble(nn.Module):
    """From a block's tokens to a level of the pyramid. Its layers have the numbers that they have in the authors' list."""

    def __init__(self, width: int, channels: int, resize: nn.Module | None) -> None:
        super().__init__()
        self.add_module("0", Readout(width))
        self.add_module("3", nn.Conv2d(width, channels, 1))
        if resize is not None:
            self.add_module("4", resize)

    def forward(self, tokens: Float[Tensor, "b n c"], grid: tuple[int, int]) -> Float[Tensor, "b _c _h _w"]:
        readout, *layers = self.children()
        level = readout(tokens).transpose(1, 2).unflatten(2, grid)
        for layer in layers:
            level = layer(level)
        return level


class Midas(FusionNeck):
    """The whole network; the published one is of the size "large" (dpt_beit_large_512)."""

    def __init__(self, size: MidasSize = SIZES["large"]) -> None:
        super().__init__(size.features, size.channels)
        self.size = size
        self.pretrained = nn.Module()
        self.pretrained.model = Beit(size.beit)
        for level, (channels, resize) in enumerate(zip(size.channels, _resize_layers(size.channels), strict=True), start=1):
            self.pretrained.add_module(f"act_postprocess{level}", Reassemble(size.beit.width, channels, resize))
        self.scratch.output_conv = nn.Sequential(
            nn.Conv2d(size.features, size.features // 2, 3, padding=1),
            nn.Upsample(scale_factor=2.0, mode="bilinear", align_corners=True),
            nn.Conv2d(size.features // 2, HEAD_CHANNELS, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(HEAD_CHANNELS, 1, 1),
        )

    def forward(self, image: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b _h _w"]:
        """Inverse depth, up to factor and shift, of RGB in [-1, 1], on the whole patches of 16 px that the picture holds."""
        encoder = self.pretrained
        tapped, grid = encoder.model(image, self.size.blocks)
        stages = (encoder.act_postprocess1, encoder.act_postprocess2, encoder.act_postprocess3, encoder.act_postprocess4)
        finest = self.fused([stage(tokens, grid) for stage, tokens in zip(stages, tapped, strict=True)])[0]
        return functional.relu(self.scratch.output_conv(finest)).squeeze(1)


def load_midas(network: Midas, path: Path) -> LoadedWeights:
    """Give a network the weights of MiDaS or of a descendant. Raises ReconError as `load_weights`."""
    return load_weights(network, path, may_ignore=UNUSED)


def _resize_layers(channels: Sequence[int]) -> tuple[nn.Module | None, ...]:
    finest, fine, _, coarse = channels
    return nn.ConvTranspose2d(finest, finest, 4, 4), nn.ConvTranspose2d(fine, fine, 2, 2), None, nn.Conv2d(coarse, coarse, 3, 2, 1)
