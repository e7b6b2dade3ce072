"""EndoUFM's depth network ("EndoUFM: utilizing foundation models for monocular depth estimation of endoscopic images",
arXiv 2508.17916, 2025): EndoDAC with RVLoRA in place of DV-LoRA and two parts at four blocks in place of one, published key names.

At blocks 2, 5, 8 and 11 a depthwise separable convolution (Res-DSC) and attention over channels and places (CBAM, Woo et al. 2018)
change the patches; what CBAM makes of Res-DSC's outcome is added. Res-DSC's last norm starts at 0, so the network starts as Depth
Anything. The second foundation model is of training alone: `recon.models.intrinsic`.

The published code asks for Depth Anything's own file, whose names start with `pretrained.`, and passes over every name it does not
find: it trains a random frozen transformer without a word. Here `load_depth_anything` renames, and all of it must fit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from recon.models.adapters import attach
from recon.models.depth_anything import SIZES, DepthAnythingSize
from recon.models.endodac import BOTTLENECK, GRID, RANK, ChannelNorm, EndoDAC

REDUCTION = 16
"""How many times narrower CBAM's perceptron is inside."""
WINDOW_PX = 7
"""Of CBAM's convolution over places, in patches."""


@dataclass(frozen=True)
class Parts:
    """What EndoUFM adds to Depth Anything; all of it in the published network. Left out one by one to see what each is for."""

    rvlora: bool = True
    res_dsc: bool = True
    cbam: bool = True

    @staticmethod
    def of(numbers: Mapping[str, int | float]) -> Parts:
        """As a trained file's header says; the published ones where it says nothing."""
        return Parts(**{name: bool(numbers.get(name, True)) for name in ("rvlora", "res_dsc", "cbam")})


class ResDSC(nn.Module):
    """Narrow, depthwise 3x3, pointwise, wide: each followed by a norm over channels. 0 at first, for its last norm starts at 0."""

    def __init__(self, width: int) -> None:
        super().__init__()
        narrow = width // BOTTLENECK
        self.conv1 = nn.Conv2d(width, narrow, 1, bias=False)
        self.norm1 = ChannelNorm(narrow)
        self.conv2 = nn.Conv2d(narrow, narrow, 3, padding=1, groups=narrow, bias=False)
        self.norm2 = ChannelNorm(narrow)
        self.conv3 = nn.Conv2d(narrow, narrow, 1, bias=False)
        self.norm3 = ChannelNorm(narrow)
        self.conv4 = nn.Conv2d(narrow, width, 1, bias=False)
        self.norm4 = ChannelNorm(width)
        for layer in (self.conv1, self.conv2, self.conv3, self.conv4):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.norm4.weight)

    def forward(self, patches: Float[Tensor, "b c rows columns"]) -> Float[Tensor, "b c rows columns"]:
        inside = functional.gelu(self.norm1(self.conv1(patches)))
        inside = functional.gelu(self.norm2(self.conv2(inside)))
        inside = functional.gelu(self.norm3(self.conv3(inside)))
        return self.norm4(self.conv4(inside))


class ChannelAttention(nn.Module):
    """A share of each channel, from its mean and its largest value over all places."""

    def __init__(self, width: int) -> None:
        super().__init__()
        narrow = max(width // REDUCTION, 1)
        self.se = nn.Sequential(nn.Conv2d(width, narrow, 1, bias=False), nn.ReLU(), nn.Conv2d(narrow, width, 1, bias=False))

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c 1 1"]:
        mean, largest = x.mean(dim=(2, 3), keepdim=True), x.amax(dim=(2, 3), keepdim=True)
        return torch.sigmoid(self.se(largest) + self.se(mean))


class SpatialAttention(nn.Module):
    """A share of each place, from the largest value and the mean of its channels and of those around it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 1, WINDOW_PX, padding=WINDOW_PX // 2)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 1 h w"]:
        return torch.sigmoid(self.conv(torch.cat([x.amax(dim=1, keepdim=True), x.mean(dim=1, keepdim=True)], dim=1)))


class CBAM(nn.Module):
    """Features with their attended share added: channels first, then places."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.ca = ChannelAttention(width)
        self.sa = SpatialAttention()

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        attended = x * self.ca(x)
        return x + attended * self.sa(attended)


class EndoUFM(EndoDAC):
    """The whole network; the published one is of the size "base". Pictures are resized to `grid` (rows, columns) patches."""

    def __init__(self, size: DepthAnythingSize = SIZES["base"], grid: tuple[int, int] = GRID, parts: Parts = Parts()) -> None:
        self.parts = parts
        super().__init__(size, grid)

    def add_parts(self, width: int) -> None:
        """Put Res-DSC, CBAM and adapters into the encoder."""
        for index in self.neck_blocks:
            if self.parts.res_dsc:
                self.encoder.blocks[index].add_module("residual_", ResDSC(width))
            if self.parts.cbam:
                self.encoder.blocks[index].add_module("dual_attention_", CBAM(width))
        if self.parts.rvlora:
            attach(self.encoder, "blocks.*.mlp.fc[12]", "rvlora", RANK)

    def necks(self) -> dict[int, Callable[[Tensor], Tensor]]:
        """What changes the patches after a block, by its index; nothing where both parts are left out."""
        if not self.parts.res_dsc and not self.parts.cbam:
            return {}
        return {index: self._neck(self.encoder.blocks[index]) for index in self.neck_blocks}

    def _neck(self, block: nn.Module) -> Callable[[Tensor], Tensor]:
        def neck(patches: Tensor) -> Tensor:
            change = block.residual_(patches) if self.parts.res_dsc else patches
            return patches + (block.dual_attention_(change) if self.parts.cbam else change)

        return neck
