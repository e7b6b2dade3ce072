"""Lite-Mono (Zhang et al. 2023) as LiteNet trims it for endoscopy (Zhu et al. 2026): 3.1 million parameters, published key names.

Its files `encoder.pth` and `depth.pth` are read by `recon.models.monodepth2.load_parts`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from recon.models.monodepth2 import Conv3x3, SkipDecoder
from recon.models.resnet import COUNTERS, MEAN, STD, check_stride
from recon.models.weights import LoadedWeights, load_weights

WIDTHS = (48, 80, 128)
"""Channels of the three stages, at 1/4, 1/8 and 1/16 of the picture."""
DILATIONS = ((1, 2, 3), (1, 2, 3), (1, 2, 3, 1, 2, 3, 2, 4, 6))
"""Of the convolutions of each stage, behind which stands one attention block."""
STRIDE_PX = 16
NUM_HEADS = 8
EXPANSION = 6
LAYER_SCALE = 1e-6
DROP_PATH = 0.2
"""Chance that the last block is skipped in training; it grows evenly from 0 at the first."""
POSITION_FREQUENCIES = 32
POSITION_TEMPERATURE = 10_000.0
CLASSIFIER = ("norm.*", "head.*")
"""What the encoder's ImageNet file holds beside it."""


class DropPath(nn.Module):
    """Stochastic depth (Huang et al. 2016): in training, the branch of a random part of the batch is left out."""

    def __init__(self, chance: float) -> None:
        super().__init__()
        self.chance = chance

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        if not self.training or self.chance == 0:
            return x
        kept = torch.rand(len(x), 1, 1, 1, device=x.device) >= self.chance
        return x * kept / (1 - self.chance)


class Bottleneck(nn.Module):
    """What both blocks end with: two Linear layers around a GELU, six times as wide inside, scaled and possibly dropped."""

    def __init__(self, width: int, drop_chance: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.pwconv1 = nn.Linear(width, EXPANSION * width)
        self.pwconv2 = nn.Linear(EXPANSION * width, width)
        self.gamma = nn.Parameter(torch.full((width,), LAYER_SCALE))
        self.drop_path = DropPath(drop_chance)

    def branch(self, x: Float[Tensor, "b h w c"]) -> Float[Tensor, "b c h w"]:
        inside = self.pwconv2(functional.gelu(self.pwconv1(x)))
        return self.drop_path((self.gamma * inside).permute(0, 3, 1, 2))


class DilatedConv(Bottleneck):
    """A dilated 3x3 convolution per channel. The published block holds a `norm` that it never applies, and so does this one."""

    def __init__(self, width: int, dilation: int, drop_chance: float) -> None:
        super().__init__(width, drop_chance)
        self.ddwconv = nn.Module()
        self.ddwconv.conv = nn.Conv2d(width, width, 3, padding=dilation, dilation=dilation, groups=width, bias=False)
        self.bn1 = nn.BatchNorm2d(width)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        return x + self.branch(self.bn1(self.ddwconv.conv(x)).permute(0, 2, 3, 1))


class CrossCovarianceAttention(nn.Module):
    """Attention among channels instead of places (XCiT, El-Nouby et al. 2021)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.temperature = nn.Parameter(torch.ones(NUM_HEADS, 1, 1))
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, tokens: Float[Tensor, "b n c"]) -> Float[Tensor, "b n c"]:
        query, key, value = self.qkv(tokens).unflatten(2, (3, NUM_HEADS, -1)).permute(2, 0, 3, 4, 1)
        likeness = functional.normalize(query, dim=-1) @ functional.normalize(key, dim=-1).transpose(-2, -1)
        mixed = (likeness * self.temperature).softmax(dim=-1) @ value
        return self.proj(mixed.flatten(1, 2).transpose(1, 2))


class FourierPositions(nn.Module):
    """Rows and columns as sines and cosines, projected to the features' width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.token_projection = nn.Conv2d(2 * POSITION_FREQUENCIES, width, 1)

    def forward(self, rows: int, columns: int) -> Float[Tensor, "1 c rows columns"]:
        like = self.token_projection.weight
        down, across = (self._waves(number, like.device).to(like.dtype) for number in (rows, columns))
        waves = torch.cat([down[:, :, None].expand(-1, -1, columns), across[:, None, :].expand(-1, rows, -1)])
        return self.token_projection(waves[None])

    @staticmethod
    def _waves(number: int, device: torch.device) -> Float[Tensor, "frequencies number"]:
        """Sine and cosine in turn; each pair has one wavelength, and the first turns once along the picture."""
        places = torch.arange(1, number + 1, device=device) / (number + 1e-6) * 2 * math.pi
        exponents = torch.arange(0, POSITION_FREQUENCIES, 2, device=device) / POSITION_FREQUENCIES
        phases = places / POSITION_TEMPERATURE ** exponents[:, None]
        return torch.stack([phases.sin(), phases.cos()], dim=1).flatten(0, 1)


class LocalGlobalInteraction(Bottleneck):
    """Attention over the whole map (LGFI); the first stage alone is told where its cells lie."""

    def __init__(self, width: int, drop_chance: float, positions: bool) -> None:
        super().__init__(width, drop_chance)
        self.pos_embd = FourierPositions(width) if positions else None
        self.norm_xca = nn.LayerNorm(width, eps=1e-6)
        self.gamma_xca = nn.Parameter(torch.full((width,), LAYER_SCALE))
        self.xca = CrossCovarianceAttention(width)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        rows, columns = x.shape[-2:]
        placed = x if self.pos_embd is None else x + self.pos_embd(rows, columns)
        tokens = placed.flatten(2).transpose(1, 2)
        tokens = tokens + self.gamma_xca * self.xca(self.norm_xca(tokens))
        return x + self.branch(self.norm(tokens.unflatten(1, (rows, columns))))


class ConvNormGelu(nn.Module):
    """A 3x3 convolution, with batch norm and GELU if `activated`."""

    def __init__(self, inputs: int, outputs: int, stride: int, activated: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn_gelu = nn.Module() if activated else None
        if self.bn_gelu is not None:
            self.bn_gelu.bn = nn.BatchNorm2d(outputs)

    def forward(self, x: Float[Tensor, "b _c _h _w"]) -> Float[Tensor, "b _d _e _f"]:
        x = self.conv(x)
        return x if self.bn_gelu is None else functional.gelu(self.bn_gelu.bn(x))


class LiteMonoEncoder(nn.Module):
    """Three stages; each also sees the picture itself, made smaller by averaging."""

    def __init__(self) -> None:
        super().__init__()
        finest = WIDTHS[0]
        stem = [ConvNormGelu(3, finest, 2, True), ConvNormGelu(finest, finest, 1, True), ConvNormGelu(finest, finest, 1, True)]
        steps = [nn.Sequential(ConvNormGelu(2 * WIDTHS[i] + 3, WIDTHS[i + 1], 2, False)) for i in range(2)]
        self.downsample_layers = nn.ModuleList([nn.Sequential(*stem), *steps])
        self.stem2 = nn.Sequential(ConvNormGelu(finest + 3, finest, 2, False))
        chances = iter(torch.linspace(0, DROP_PATH, sum(len(stage) + 1 for stage in DILATIONS)).tolist())
        self.stages = nn.ModuleList()
        for index, (width, dilations) in enumerate(zip(WIDTHS, DILATIONS, strict=True)):
            local = [DilatedConv(width, dilation, next(chances)) for dilation in dilations]
            self.stages.append(nn.Sequential(*local, LocalGlobalInteraction(width, next(chances), positions=index == 0)))
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, image: Float[Tensor, "b 3 h w"]) -> list[Float[Tensor, "b _c _h _w"]]:
        """The three maps of RGB in [0, 1], finest first. Raises ReconError unless h and w are multiples of 16, at least 32."""
        check_stride(image, STRIDE_PX)
        small = [(image - MEAN) / STD]
        for _ in range(3):
            small.append(functional.avg_pool2d(small[-1], 3, 2, 1))
        before = self.stem2(torch.cat([self.downsample_layers[0](small[0]), small[1]], dim=1))
        maps = [self.stages[0](before)]
        for index in (1, 2):
            before = self.downsample_layers[index](torch.cat([before, maps[-1], small[index + 1]], dim=1))
            maps.append(self.stages[index](before))
        return maps


class LiteMonoDecoder(SkipDecoder):
    """Sigmoid disparity at three scales; monodepth2's decoder, half as wide as the encoder and smoothly enlarged."""

    def __init__(self) -> None:
        widths = [width // 2 for width in WIDTHS]
        super().__init__(WIDTHS, widths, [Conv3x3(width, 1) for width in widths])
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def enlarged(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c 2*h 2*w"]:
        """Twice the size, corner pixels staying in the corners."""
        return functional.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=True)

    def forward(self, maps: Sequence[Float[Tensor, "b _c _h _w"]]) -> list[Float[Tensor, "b _h _w"]]:
        return [torch.sigmoid(self.enlarged(output)).squeeze(1) for output in self.decode(maps)]


class LiteMono(nn.Module):
    """The encoder and the decoder."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = LiteMonoEncoder()
        self.depth = LiteMonoDecoder()

    def forward(self, image: Float[Tensor, "b 3 h w"]) -> list[Float[Tensor, "b _h _w"]]:
        """Sigmoid disparity of RGB in [0, 1] at 1, 1/2 and 1/4 of its size; h and w are multiples of 16, at least 32."""
        return self.depth(self.encoder(image))


def load_imagenet_encoder(encoder: LiteMonoEncoder, path: Path) -> LoadedWeights:
    """Start from the encoder that the authors of Lite-Mono trained on ImageNet (lite-mono-pretrain.pth).

    Raises ReconError for a damaged file and one that does not fit.
    """
    return load_weights(encoder, path, may_miss=COUNTERS, may_ignore=CLASSIFIER)
