"""monodepth2's depth network (Godard et al. 2019), and the decoder that its relatives share, with the published key names.

The authors keep each network in a file of its own (`encoder.pth`, `depth.pth`, ...). Here, networks that work together are
one module whose parts are named as those files, and `load_parts` reads them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from recon.models.resnet import CHANNELS, COUNTERS, ResNetEncoder
from recon.models.weights import LoadedWeights, load_weights

WIDTHS = (16, 32, 64, 128, 256)
"""Channels of the decoder's levels, finest first; level i has 1/2^i of the picture's size."""
NUM_SCALES = 4
NEAREST, FARTHEST = 0.1, 150.0
"""Depths, in the network's own unit, at a sigmoid of 1 and of 0: the values of the endoscopic family."""
UNUSED = ("encoder.fc.*", "convs_suqeeze.*")
"""Stored by the authors and never applied: ImageNet's classifier, and a layer of EndoDAC's intrinsics head."""


class Conv3x3(nn.Module):
    """A 3x3 convolution of the picture mirrored at its border."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3)

    def forward(self, x: Float[Tensor, "b _c h w"]) -> Float[Tensor, "b _d h w"]:
        return self.conv(functional.pad(x, (1, 1, 1, 1), mode="reflect"))


class ConvBlock(nn.Module):
    """The convolution and an ELU."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = Conv3x3(inputs, outputs)

    def forward(self, x: Float[Tensor, "b _c h w"]) -> Float[Tensor, "b _d h w"]:
        return functional.elu(self.conv(x))


class SkipDecoder(nn.Module):
    """From an encoder's maps back to pictures: two convolutions a level, the encoder's map joined between them.

    `skips` are the encoder's channels and `widths` the decoder's, finest first; `heads` stand on its finest levels. All lie
    in one list `decoder`, in the authors' order: levels from coarse to fine, then the heads from fine to coarse.
    """

    def __init__(self, skips: Sequence[int], widths: Sequence[int], heads: Sequence[nn.Module]) -> None:
        super().__init__()
        self.num_levels, self.num_heads = len(widths), len(heads)
        blocks, inputs = [], skips[-1]
        for level in reversed(range(self.num_levels)):
            joined = widths[level] + (skips[level - 1] if level else 0)
            blocks += [ConvBlock(inputs, widths[level]), ConvBlock(joined, widths[level])]
            inputs = widths[level]
        self.decoder = nn.ModuleList([*blocks, *heads])

    def decode(self, maps: Sequence[Float[Tensor, "b _c _h _w"]]) -> list[Float[Tensor, "b _d _h _w"]]:
        """What the heads say, finest first, before any activation."""
        x, outputs = maps[-1], []
        for level in reversed(range(self.num_levels)):
            place = 2 * (self.num_levels - 1 - level)
            x = self.enlarged(self.decoder[place](x))
            if level:
                x = torch.cat([x, maps[level - 1]], dim=1)
            x = self.decoder[place + 1](x)
            if level < self.num_heads:
                outputs.append(self.decoder[2 * self.num_levels + level](x))
        return outputs[::-1]

    def enlarged(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c 2*h 2*w"]:
        """Twice the size; each pixel four times."""
        return functional.interpolate(x, scale_factor=2.0, mode="nearest")


class DepthDecoder(SkipDecoder):
    """Sigmoid disparity at four scales."""

    def __init__(self) -> None:
        super().__init__(CHANNELS, WIDTHS, [Conv3x3(width, 1) for width in WIDTHS[:NUM_SCALES]])

    def forward(self, maps: Sequence[Float[Tensor, "b _c _h _w"]]) -> list[Float[Tensor, "b _h _w"]]:
        return [torch.sigmoid(output).squeeze(1) for output in self.decode(maps)]


class Monodepth2(nn.Module):
    """Encoder and decoder; `centred` as the weights want it, see `recon.models.resnet`."""

    def __init__(self, centred: bool = True) -> None:
        super().__init__()
        self.encoder = ResNetEncoder(1, centred)
        self.depth = DepthDecoder()

    def forward(self, image: Float[Tensor, "b 3 h w"]) -> list[Float[Tensor, "b _h _w"]]:
        """Sigmoid disparity of RGB in [0, 1] at 1, 1/2, 1/4 and 1/8 of its size; h and w are multiples of 32, at least 64."""
        return self.depth(self.encoder(image))


def depth_from_sigmoid(
    sigmoid: Float[Tensor, "*batch h w"], nearest: float = NEAREST, farthest: float = FARTHEST
) -> Float[Tensor, "*batch h w"]:
    """z-depth of a sigmoid disparity: 1 / (1/farthest + (1/nearest - 1/farthest) sigmoid), in the unit of the two bounds."""
    return 1 / (1 / farthest + (1 / nearest - 1 / farthest) * sigmoid)


def load_parts(network: nn.Module, folder: Path) -> dict[str, LoadedWeights]:
    """Load each part of a network from the authors' file of its name (`depth` from `depth.pth`); which file gave what, by part.

    Raises ReconError for a missing or damaged file and for one that does not fit.
    """
    return {
        name: load_weights(part, folder / f"{name}.pth", may_miss=COUNTERS, may_ignore=UNUSED) for name, part in network.named_children()
    }
