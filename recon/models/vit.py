"""DINOv2's vision transformer (Oquab et al. 2023), with the key names of its published state dicts.

Depth Anything calls it `pretrained`. Patches are 14 px wide; tokens are one class token and then the patches row by row.
Inputs are what the network at hand was trained on: ImageNet-normalised colour for Depth Anything, plain [0, 1] for EndoDAC.

Away from the grid it was trained on, the position embedding is resampled as the authors do: bicubic by the factor
(patches + 0.1) / trained patches, whose offset once guarded against rounding. Hugging Face's port resamples to the exact
number of patches instead, which places patches up to a tenth of one elsewhere. The published weights were trained with the offset.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from recon.models.key_maps import original_names
from recon.models.weights import LoadedWeights, load_weights
from recon.types import ReconError

PATCH_PX = 14
TRAINED_PX = 518
"""Side of the square that the published position embeddings were trained for: 37 patches."""
RESAMPLING_OFFSET = 0.1


@dataclass(frozen=True)
class VitSize:
    """How large a transformer is."""

    width: int
    num_blocks: int
    num_heads: int
    trained_px: int = TRAINED_PX
    """Side of the square picture for which the position embedding holds one entry a patch."""


VIT_SIZES = {"small": VitSize(384, 12, 6), "base": VitSize(768, 12, 12), "large": VitSize(1024, 24, 16)}


class PatchEmbed(nn.Module):
    """One token a patch."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, PATCH_PX, PATCH_PX)

    def forward(self, image: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b patches c"]:
        return self.proj(image).flatten(2).transpose(1, 2)


class Attention(nn.Module):
    """Multi-head self-attention with one matrix for query, key and value, stacked in this order."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, tokens: Float[Tensor, "b n c"]) -> Float[Tensor, "b n c"]:
        batch, number, width = tokens.shape
        query, key, value = self.qkv(tokens).reshape(batch, number, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(query, key, value)
        return self.proj(mixed.transpose(1, 2).reshape(batch, number, width))


class Mlp(nn.Module):
    """Two Linear layers around a GELU, four times as wide inside."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, tokens: Float[Tensor, "b n c"]) -> Float[Tensor, "b n c"]:
        return self.fc2(functional.gelu(self.fc1(tokens)))


class LayerScale(nn.Module):
    """A learned factor per channel on a residual branch (Touvron et al. 2021)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, tokens: Float[Tensor, "b n c"]) -> Float[Tensor, "b n c"]:
        return tokens * self.gamma


class Block(nn.Module):
    """Attention and perceptron, each normalised before and scaled after, around short cuts."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, num_heads)
        self.ls1 = LayerScale(width)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = Mlp(width)
        self.ls2 = LayerScale(width)

    def forward(self, tokens: Float[Tensor, "b n c"]) -> Float[Tensor, "b n c"]:
        tokens = tokens + self.ls1(self.attn(self.norm1(tokens)))
        return tokens + self.ls2(self.mlp(self.norm2(tokens)))


class DinoVisionTransformer(nn.Module):
    """The encoder. `mask_token` is of no use at inference; the published files hold it."""

    def __init__(self, size: VitSize) -> None:
        super().__init__()
        self.size = size
        num_positions = (size.trained_px // PATCH_PX) ** 2 + 1
        self.cls_token = nn.Parameter(torch.empty(1, 1, size.width))
        self.pos_embed = nn.Parameter(torch.empty(1, num_positions, size.width))
        self.mask_token = nn.Parameter(torch.zeros(1, size.width))
        self.patch_embed = PatchEmbed(size.width)
        self.blocks = nn.ModuleList([Block(size.width, size.num_heads) for _ in range(size.num_blocks)])
        self.norm = nn.LayerNorm(size.width, eps=1e-6)
        self._initialise()

    def _initialise(self) -> None:
        """As the authors: truncated normal weights, zero biases, a class token that starts almost at nothing."""
        nn.init.normal_(self.cls_token, std=1e-6)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(
        self,
        image: Float[Tensor, "b 3 h w"],
        blocks: Sequence[int],
        necks: Mapping[int, Callable[[Tensor], Tensor]] | None = None,
    ) -> list[Float[Tensor, "b c rows columns"]]:
        """Patch features after the given blocks (0-based, ascending), each behind the final norm.

        A neck takes the patch features (b, c, rows, columns) after its block, at any grid size, and returns those that
        the next block sees; the class token passes it by. Raises ReconError where the image is not made of whole patches.
        """
        rows, columns = grid_size(image.shape[-2], image.shape[-1])
        tokens = torch.cat([self.cls_token.expand(image.shape[0], -1, -1), self.patch_embed(image)], dim=1)
        tokens = tokens + self._position_embedding(rows, columns)
        tapped = []
        for index, block in enumerate(self.blocks[: max(blocks) + 1]):
            tokens = block(tokens)
            if necks and index in necks:
                patches = necks[index](_as_map(tokens[:, 1:], rows, columns))
                tokens = torch.cat([tokens[:, :1], patches.flatten(2).transpose(1, 2)], dim=1)
            if index in blocks:
                tapped.append(_as_map(self.norm(tokens)[:, 1:], rows, columns))
        return tapped

    def _position_embedding(self, rows: int, columns: int) -> Float[Tensor, "1 n c"]:
        """One vector for the class and each patch of a (rows, columns) grid; see the module about the offset."""
        side = math.isqrt(self.pos_embed.shape[1] - 1)
        if rows == columns == side:
            return self.pos_embed
        trained = _as_map(self.pos_embed[:, 1:].float(), side, side)
        factor = ((rows + RESAMPLING_OFFSET) / side, (columns + RESAMPLING_OFFSET) / side)
        resampled = functional.interpolate(trained, scale_factor=factor, mode="bicubic")
        return torch.cat([self.pos_embed[:, :1], resampled.flatten(2).transpose(1, 2).to(self.pos_embed.dtype)], dim=1)


def _as_map(patches: Float[Tensor, "b patches c"], rows: int, columns: int) -> Float[Tensor, "b c rows columns"]:
    return patches.transpose(1, 2).unflatten(2, (rows, columns))


def grid_size(height_px: int, width_px: int) -> tuple[int, int]:
    """Rows and columns of patches. Raises ReconError where a side is not a multiple of the patch."""
    if height_px % PATCH_PX or width_px % PATCH_PX or not height_px or not width_px:
        raise ReconError(f"image of {width_px}x{height_px} px: both sides must be multiples of {PATCH_PX}; resize it first")
    return height_px // PATCH_PX, width_px // PATCH_PX


def load_dino(network: DinoVisionTransformer, path: Path) -> LoadedWeights:
    """Load DINOv2's weights from a file of its own or from one of a Depth Anything, original or Hugging Face's.

    Raises ReconError for a damaged file and one that does not fit.
    """

    def rename(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name.removeprefix("pretrained."): value for name, value in original_names(state).items()}

    return load_weights(network, path, rename, may_ignore=("depth_head.*", "head.*"))
