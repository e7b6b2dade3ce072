"""EndoDAC (Cui et al. 2024): Depth Anything V1, frozen, with DV-LoRA, convolutional necks and four sigmoid heads, published key names.

Pictures are RGB in [0, 1] without any normalisation. The last four blocks of the encoder are read, as in Depth Anything V1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from recon.models.adapters import attach, train_adapters
from recon.models.depth_anything import SIZES, DepthAnythingSize
from recon.models.dpt import HEAD_CHANNELS, DPTNeck, resized
from recon.models.key_maps import original_names
from recon.models.vit import PATCH_PX, DinoVisionTransformer
from recon.models.weights import LoadedWeights, load_weights

RANK = 4
GRID = (16, 20)
"""Rows and columns of patches that the published weights were trained with."""
BOTTLENECK = 8
"""How many times narrower a neck is inside."""
NOT_IN_DEPTH_ANYTHING = ("*.lora_?", "*.residual_.*", "*.dual_attention_.*", "depth_head.conv_depth_*")
"""Parameters of an EndoDAC, or of a descendant, that weights of Depth Anything cannot fill."""
ALWAYS_TRAINED = (".residual_.", ".dual_attention_.", ".conv_depth_")
"""Parts of the names of what is trained beside the adapters."""


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of each place."""

    def __init__(self, width: int) -> None:
        super().__init__(width, eps=1e-6)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ConvNeck(nn.Module):
    """A convolutional residual on patch features, at any grid size; nothing at first, for its last norm starts at 0."""

    def __init__(self, width: int) -> None:
        super().__init__()
        narrow = width // BOTTLENECK
        self.conv1 = nn.Conv2d(width, narrow, 1, bias=False)
        self.norm1 = ChannelNorm(narrow)
        self.conv2 = nn.Conv2d(narrow, narrow, 3, padding=1, bias=False)
        self.norm2 = ChannelNorm(narrow)
        self.conv3 = nn.Conv2d(narrow, width, 1, bias=False)
        self.norm3 = ChannelNorm(width)
        for layer in (self.conv1, self.conv2, self.conv3):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.norm3.weight)

    def forward(self, patches: Float[Tensor, "b c rows columns"]) -> Float[Tensor, "b c rows columns"]:
        inside = functional.gelu(self.norm1(self.conv1(patches)))
        inside = functional.gelu(self.norm2(self.conv2(inside)))
        return patches + self.norm3(self.conv3(inside))


class DisparityHead(nn.Module):
    """From one path of the pyramid to a sigmoid disparity of twice its size."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.head = nn.Sequential(
            nn.Conv2d(features, features // 2, 3, padding=1),
            nn.Upsample(scale_factor=2.0, mode="bilinear", align_corners=True),
            nn.Conv2d(features // 2, HEAD_CHANNELS, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(HEAD_CHANNELS, 1, 1),
        )

    def forward(self, path: Float[Tensor, "b features h w"]) -> Float[Tensor, "b 2*h 2*w"]:
        return torch.sigmoid(self.head(path)).squeeze(1)


class EndoDACHead(DPTNeck):
    """Depth Anything's neck with a head on each path."""

    def __init__(self, size: DepthAnythingSize) -> None:
        super().__init__(size.vit.width, size.features, size.channels)
        for number in range(1, 5):
            self.add_module(f"conv_depth_{number}", DisparityHead(size.features))

    def forward(self, maps: Sequence[Float[Tensor, "b c rows columns"]]) -> list[Float[Tensor, "b _h _w"]]:
        heads = (self.conv_depth_1, self.conv_depth_2, self.conv_depth_3, self.conv_depth_4)
        return [head(path) for head, path in zip(heads, self.paths(maps), strict=True)]


class EndoDAC(nn.Module):
    """The whole network; the published one is of the size "base". Pictures are resized to `grid` (rows, columns) patches."""

    def __init__(self, size: DepthAnythingSize = SIZES["base"], grid: tuple[int, int] = GRID) -> None:
        super().__init__()
        self.grid = grid
        self.blocks = size.last_blocks
        self.neck_blocks = size.spread_blocks
        self.encoder = DinoVisionTransformer(size.vit)
        self.add_parts(size.vit.width)
        self.depth_head = EndoDACHead(size)
        self.train_part(warm_up=True)

    def add_parts(self, width: int) -> None:
        """Put necks and adapters into the encoder."""
        for index in self.neck_blocks:
            self.encoder.blocks[index].add_module("residual_", ConvNeck(width))
        attach(self.encoder, "blocks.*.mlp.fc[12]", "dvlora", RANK)

    def necks(self) -> dict[int, Callable[[Tensor], Tensor]]:
        """What changes the patches after a block, by its index."""
        return {index: self.encoder.blocks[index].residual_ for index in self.neck_blocks}

    def train_part(self, warm_up: bool) -> None:
        """Freeze all but necks, heads and, of the adapters, A and B in the warm-up (20,000 steps) or U and V after it."""
        train_adapters(self, warm_up)
        for name, parameter in self.named_parameters():
            if any(part in name for part in ALWAYS_TRAINED):
                parameter.requires_grad_(True)

    def forward(self, image: Float[Tensor, "b 3 h w"]) -> list[Float[Tensor, "b _h _w"]]:
        """Sigmoid disparity of RGB in [0, 1] at 16, 8, 4 and 2 pixels a patch, whatever the picture's size.

        See `recon.models.monodepth2.depth_from_sigmoid` for what it means.
        """
        image = resized(image, (self.grid[0] * PATCH_PX, self.grid[1] * PATCH_PX))
        return self.depth_head(self.encoder(image, self.blocks, self.necks()))


def load_depth_anything(network: EndoDAC, path: Path) -> LoadedWeights:
    """Start from Depth Anything V1's weights, original or Hugging Face's; necks, heads and adapters keep their values.

    Every tensor of the encoder and the pyramid must be there, under its own name (`pretrained.` becomes `encoder.`). A file of
    EndoDAC itself loads with `recon.models.weights.load_weights`. Raises ReconError as that does.
    """
    return load_weights(network, path, _endodac_names, NOT_IN_DEPTH_ANYTHING, may_ignore=("depth_head.scratch.output_conv*",))


def _endodac_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    theirs = "pretrained."
    return {
        f"encoder.{name.removeprefix(theirs)}" if name.startswith(theirs) else name: value for name, value in original_names(state).items()
    }
