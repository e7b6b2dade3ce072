"""Video Depth Anything (Chen et al. 2025), with the key names of the published `.pth` files.

Depth Anything V2's network, in whose head four modules let each pixel's features attend to the same pixel in the other
frames of a window. Each ends in a Linear layer that starts at zero: untrained, the network is Depth Anything frame by frame,
and no gradient reaches the inside of a module before that layer has moved.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from recon.models.depth_anything import DepthAnythingSize
from recon.models.dpt import DPTHead
from recon.models.vit import DinoVisionTransformer
from recon.types import ReconError

MAX_FRAMES = 32
NUM_HEADS = 8
NUM_GROUPS = 32
NUM_ATTENTIONS = 2


class PositionalEncoding(nn.Module):
    """Sine and cosine of the frame's number, added (Vaswani et al. 2017). A buffer that the published files hold."""

    def __init__(self, width: int) -> None:
        super().__init__()
        angle = torch.arange(MAX_FRAMES)[:, None] * torch.exp(torch.arange(0, width, 2) * (-math.log(10000.0) / width))
        self.register_buffer("pe", torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)[None])

    def forward(self, tokens: Float[Tensor, "n t c"]) -> Float[Tensor, "n t c"]:
        return tokens + self.pe[:, : tokens.shape[1]]


class TemporalAttention(nn.Module):
    """Multi-head self-attention over the frames; query, key and value have no bias."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.pos_encoder = PositionalEncoding(width)
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k = nn.Linear(width, width, bias=False)
        self.to_v = nn.Linear(width, width, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(width, width)])

    def forward(self, tokens: Float[Tensor, "n t c"]) -> Float[Tensor, "n t c"]:
        placed = self.pos_encoder(tokens)
        query, key, value = (
            projection(placed).unflatten(2, (NUM_HEADS, -1)).transpose(1, 2) for projection in (self.to_q, self.to_k, self.to_v)
        )
        return self.to_out[0](functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))


class GatedGelu(nn.Module):
    """One half of a projection, gated by the GELU of the other (Shazeer 2020)."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width, 2 * inner)

    def forward(self, tokens: Float[Tensor, "n t c"]) -> Float[Tensor, "n t inner"]:
        values, gate = self.proj(tokens).chunk(2, dim=-1)
        return values * functional.gelu(gate)


class FeedForward(nn.Module):
    """A gated perceptron, four times as wide inside. `net.1` was a dropout of the authors' and has no weights."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.Sequential(GatedGelu(width, 4 * width), nn.Identity(), nn.Linear(4 * width, width))

    def forward(self, tokens: Float[Tensor, "n t c"]) -> Float[Tensor, "n t c"]:
        return self.net(tokens)


class TemporalBlock(nn.Module):
    """Two attentions and a perceptron, each normalised before, around short cuts."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.attention_blocks = nn.ModuleList([TemporalAttention(width) for _ in range(NUM_ATTENTIONS)])
        self.norms = nn.ModuleList([nn.LayerNorm(width) for _ in range(NUM_ATTENTIONS)])
        self.ff = FeedForward(width)
        self.ff_norm = nn.LayerNorm(width)

    def forward(self, tokens: Float[Tensor, "n t c"]) -> Float[Tensor, "n t c"]:
        for attention, norm in zip(self.attention_blocks, self.norms, strict=True):
            tokens = tokens + attention(norm(tokens))
        return tokens + self.ff(self.ff_norm(tokens))


class TemporalTransformer(nn.Module):
    """Attention over time at each pixel, around a short cut."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(NUM_GROUPS, width, eps=1e-6)
        self.proj_in = nn.Linear(width, width)
        self.transformer_blocks = nn.ModuleList([TemporalBlock(width)])
        self.proj_out = nn.Linear(width, width)
        nn.init.zeros_(self.proj_out.weight)
        nn.init.zeros_(self.proj_out.bias)

    def forward(self, frames: Float[Tensor, "b t c h w"]) -> Float[Tensor, "b t c h w"]:
        batch, number, _, height, width = frames.shape
        normed = self.norm(frames.flatten(0, 1)).unflatten(0, (batch, number))
        tokens = self.proj_in(normed.permute(0, 3, 4, 1, 2).flatten(0, 2))
        for block in self.transformer_blocks:
            tokens = block(tokens)
        return frames + self.proj_out(tokens).unflatten(0, (batch, height, width)).permute(0, 3, 4, 1, 2)


class TemporalModule(nn.Module):
    """The transformer under the name that the published files give it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.temporal_transformer = TemporalTransformer(width)

    def forward(self, frames: Float[Tensor, "b t c h w"]) -> Float[Tensor, "b t c h w"]:
        return self.temporal_transformer(frames)


class TemporalDPTHead(DPTHead):
    """The head with its four temporal modules, at the places `DPTNeck.paths` names."""

    def __init__(self, width: int, features: int, channels: Sequence[int]) -> None:
        super().__init__(width, features, channels, nn.ReLU())
        self.motion_modules = nn.ModuleList([TemporalModule(number) for number in (channels[2], channels[3], features, features)])

    def forward(self, maps: Sequence[Float[Tensor, "frames c rows columns"]], num_frames: int = 1) -> Float[Tensor, "frames h w"]:
        """Disparity of all frames of all windows, each window `num_frames` consecutive entries."""

        def mix(place: int, x: Tensor) -> Tensor:
            return self.motion_modules[place](x.unflatten(0, (-1, num_frames))).flatten(0, 1)

        return self.output(self.paths(maps, mix)[0], (maps[0].shape[-2], maps[0].shape[-1]))


class VideoDepthAnything(nn.Module):
    """One of the published networks (`size` from `depth_anything.SIZES`), or one like them."""

    def __init__(self, size: DepthAnythingSize) -> None:
        super().__init__()
        self.blocks = size.spread_blocks
        self.pretrained = DinoVisionTransformer(size.vit)
        self.head = TemporalDPTHead(size.vit.width, size.features, size.channels)

    def forward(self, frames: Float[Tensor, "b t 3 h w"]) -> Float[Tensor, "b t h w"]:
        """Disparity of windows of ImageNet-normalised RGB frames; one factor and shift per window; h and w multiples of 14.

        Raises ReconError for windows of more than 32 frames, the most that have a place in time.
        """
        batch, number = frames.shape[:2]
        if number > MAX_FRAMES:
            raise ReconError(f"a window of {number} frames: Video Depth Anything knows at most {MAX_FRAMES}; use shorter, overlapping ones")
        maps = self.pretrained(frames.flatten(0, 1), self.blocks)
        return self.head(maps, number).unflatten(0, (batch, number))
