"""BEiT's vision transformer (Bao et al. 2022) as MiDaS 3.1 uses it, with the key names of its published state dicts.

Patches are 16 px wide and no position is added to them: every block knows, for each head, how much two patches look at one
another by how far apart they lie. That table was trained on one grid and is resampled bilinearly, block by block, to any other
(MiDaS's change to BEiT, Birkl et al., "MiDaS v3.1", 2023).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from recon.models.vit import Mlp

PATCH_PX = 16
NUM_CLASS_PAIRS = 3
"""Last entries of a table: from the class token to patches, from patches to it, and to itself."""


@dataclass(frozen=True)
class BeitSize:
    """How large a transformer is."""

    width: int
    num_blocks: int
    num_heads: int
    trained_px: int = 512
    """Side of the square picture for which the tables hold one entry a distance."""
    layer_scale: float = 1e-5
    """At which each residual branch starts."""

    @property
    def trained_side(self) -> int:
        """Patches along a side of that square."""
        return self.trained_px // PATCH_PX


BEIT_LARGE = BeitSize(1024, 24, 16)


class PatchEmbed(nn.Module):
    """One token a patch; what does not fill a patch at the right and the bottom is left out, as the authors do."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, PATCH_PX, PATCH_PX)

    def forward(self, image: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c rows columns"]:
        return self.proj(image)


class Attention(nn.Module):
    """Multi-head self-attention with a bias per pair of places; query and value have a bias, keys have none."""

    def __init__(self, size: BeitSize) -> None:
        super().__init__()
        self.num_heads, self.trained_side = size.num_heads, size.trained_side
        self.qkv = nn.Linear(size.width, 3 * size.width, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(size.width))
        self.v_bias = nn.Parameter(torch.zeros(size.width))
        num_distances = (2 * size.trained_side - 1) ** 2 + NUM_CLASS_PAIRS
        self.relative_position_bias_table = nn.Parameter(torch.zeros(num_distances, size.num_heads))
        self.proj = nn.Linear(size.width, size.width)

    def forward(self, tokens: Float[Tensor, "b n c"], grid: tuple[int, int]) -> Float[Tensor, "b n c"]:
        batch, number, width = tokens.shape
        bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        stacked = functional.linear(tokens, self.qkv.weight, bias)
        query, key, value = stacked.reshape(batch, number, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=self.position_bias(grid)[None])
        return self.proj(mixed.transpose(1, 2).reshape(batch, number, width))

    def position_bias(self, grid: tuple[int, int]) -> Float[Tensor, "heads n n"]:
        """What is added to the likeness of query and key, for the class token and a (rows, columns) grid of patches."""
        old, (rows, columns) = 2 * self.trained_side - 1, grid
        patches, classes = self.relative_position_bias_table.split([old * old, NUM_CLASS_PAIRS])
        square = patches.T.unflatten(1, (old, old))[None]
        resampled = functional.interpolate(square, (2 * rows - 1, 2 * columns - 1), mode="bilinear")[0].flatten(1)
        table = torch.cat([resampled, classes.T], dim=1)
        return table[:, distance_index(rows, columns).to(table.device)]


class Block(nn.Module):
    """Attention and perceptron, each normalised before and scaled after, around short cuts."""

    def __init__(self, size: BeitSize) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(size.width, eps=1e-6)
        self.attn = Attention(size)
        self.norm2 = nn.LayerNorm(size.width, eps=1e-6)
        self.mlp = Mlp(size.width)
        self.gamma_1 = nn.Parameter(torch.full((size.width,), size.layer_scale))
        self.gamma_2 = nn.Parameter(torch.full((size.width,), size.layer_scale))

    def forward(self, tokens: Float[Tensor, "b n c"], grid: tuple[int, int]) -> Float[Tensor, "b n c"]:
        tokens = tokens + self.gamma_1 * self.attn(self.norm1(tokens), grid)
        return tokens + self.gamma_2 * self.mlp(self.norm2(tokens))


class Beit(nn.Module):
    """The encoder. The published files also hold a classifier and the norm before it, which nothing here reads."""

    def __init__(self, size: BeitSize) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, size.width))
        self.patch_embed = PatchEmbed(size.width)
        self.blocks = nn.ModuleList([Block(size) for _ in range(size.num_blocks)])
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, image: Float[Tensor, "b 3 h w"], blocks: Sequence[int]) -> tuple[list[Float[Tensor, "b n c"]], tuple[int, int]]:
        """Tokens (the class, then patches row by row) after the given blocks (0-based, ascending), and (rows, columns) of patches."""
        patches = self.patch_embed(image)
        grid = (patches.shape[-2], patches.shape[-1])
        tokens = torch.cat([self.cls_token.expand(len(image), -1, -1), patches.flatten(2).transpose(1, 2)], dim=1)
        tapped = []
        for index, block in enumerate(self.blocks[: max(blocks) + 1]):
            tokens = block(tokens, grid)
            if index in blocks:
                tapped.append(tokens)
        return tapped, grid


@lru_cache(maxsize=4)
def distance_index(rows: int, columns: int) -> Int[Tensor, "n n"]:
    """Entry of a grid's table for each query (first) and key: how many rows and columns the query lies after the key, row by row."""
    place = torch.stack(torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")).flatten(1)
    down, across = place[:, :, None] - place[:, None] + torch.tensor([rows - 1, columns - 1])[:, None, None]
    width = 2 * columns - 1
    from_class = (2 * rows - 1) * width
    index = torch.empty(rows * columns + 1, rows * columns + 1, dtype=torch.long)
    index[1:, 1:] = down * width + across
    index[0], index[:, 0], index[0, 0] = from_class, from_class + 1, from_class + 2
    return index
