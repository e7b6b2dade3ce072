"""The ResNet-18 encoder (He et al. 2016) of monodepth2 and its descendants, with torchvision's key names below `encoder.`.

Fed with one picture or with two stacked, it gives five maps. Whether colours are centred first is part of the weights:
monodepth2 (Godard et al. 2019) does, AF-SfMLearner (Shao et al. 2022) and EndoDAC (Cui et al. 2024) feed [0, 1] as it is.
The classifier that comes with ImageNet weights has no place here.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from recon.models.weights import LoadedWeights, load_weights
from recon.types import ReconError

CHANNELS = (64, 64, 128, 256, 512)
"""Of the five maps, at 1/2, 1/4, 1/8, 1/16 and 1/32 of the picture."""
STRIDE_PX = 32
MEAN, STD = 0.45, 0.225
"""Of all colours, where they are centred."""
COUNTERS = ("*.num_batches_tracked",)
"""Beside batch norms; old files lack them and nothing reads them."""


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a short cut, which a 1x1 convolution fits to another size."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Float[Tensor, "b _c _h _w"]) -> Float[Tensor, "b _c _h _w"]:
        inside = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        return functional.relu(inside + self.downsample(x))


class ResNet18(nn.Module):
    """torchvision's `resnet18` without its classifier."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, CHANNELS[0], 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(CHANNELS[0])
        for layer in range(1, 5):
            before, after = CHANNELS[layer - 1], CHANNELS[layer]
            blocks = nn.Sequential(BasicBlock(before, after, 1 if layer == 1 else 2), BasicBlock(after, after, 1))
            self.add_module(f"layer{layer}", blocks)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Float[Tensor, "b c h w"]) -> list[Float[Tensor, "b _c _h _w"]]:
        maps = [functional.relu(self.bn1(self.conv1(x)))]
        x = functional.max_pool2d(maps[0], 3, 2, 1)
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = layer(x)
            maps.append(x)
        return maps


class ResNetEncoder(nn.Module):
    """ResNet-18 over `num_images` pictures stacked along the channels; `centred` subtracts MEAN and divides by STD first."""

    def __init__(self, num_images: int, centred: bool) -> None:
        super().__init__()
        self.centred = centred
        self.encoder = ResNet18(3 * num_images)

    def forward(self, *images: Float[Tensor, "b 3 h w"]) -> list[Float[Tensor, "b _c _h _w"]]:
        """The five maps of RGB in [0, 1], finest first. Raises ReconError unless h and w are multiples of 32, at least 64."""
        check_stride(images[0], STRIDE_PX)
        x = torch.cat(images, dim=1)
        return self.encoder((x - MEAN) / STD if self.centred else x)


def check_stride(image: Float[Tensor, "b c h w"], stride_px: int) -> None:
    """Raise ReconError unless both sides are whole cells of a network's coarsest map, two at least: borders are mirrored there."""
    rows, columns = image.shape[-2:]
    if rows % stride_px or columns % stride_px or min(rows, columns) < 2 * stride_px:
        raise ReconError(
            f"image of {columns}x{rows} px: both sides must be multiples of {stride_px} and at least {2 * stride_px}; resize it first"
        )


def load_imagenet(network: ResNetEncoder, path: Path) -> LoadedWeights:
    """Start from torchvision's `resnet18` weights (resnet18-*.pth).

    The first convolution is repeated for each picture and divided by their number, so that equal pictures give what one
    gives (as monodepth2 does). Raises ReconError for a damaged file and one that does not fit.
    """

    def rename(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        encoder = {f"encoder.{name}": value for name, value in state.items()}
        if "conv1.weight" in state:
            inputs = network.encoder.conv1.in_channels
            encoder["encoder.conv1.weight"] = state["conv1.weight"].repeat(1, inputs // 3, 1, 1) * (3 / inputs)
        return encoder

    return load_weights(network, path, rename, may_miss=COUNTERS, may_ignore=("encoder.fc.*",))
