"""Parts of a scene found without labels in the features of a network, and whether two views agree on them.

Non-negative matrix factorisation of convolutional features gives each place shares of a few factors (deep feature factorisation,
Collins et al. 2018). Factors that several views share are the same parts in all of them, so that a view warped onto another
must show the same part, also where nothing else is to be seen (JDACS, Xu et al., "Self-supervised multi-view stereo via effective
co-segmentation and data-augmentation", 2021).
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

NUM_ITERATIONS = 50
CHECK_EVERY = 10
TOLERANCE = 1e-4
"""Relative fall of the error between two checks below which the factorisation ends."""
EPS = 1e-7
WINDOW_PX = 9
"""Texture is what changes within so many pixels."""


@torch.no_grad()
def factorised(
    values: Float[Tensor, "b n c"], num_factors: int, seed: int = 1
) -> tuple[Float[Tensor, "b n factors"], Float[Tensor, "b factors c"]]:
    """W and H, both at least 0, with W H near the values, by multiplicative updates (Lee & Seung 2001).

    Every factor (row of H) has length 1, so that weights (columns of W) can be compared with each other. It takes no gradient.

    Args:
        values: at least 0; places of all views of a scene along n, features along c.
        num_factors: how many.
        seed: of the random start; equal values have equal factors.
    """
    batch, places, channels = values.shape
    generator = torch.Generator().manual_seed(seed)
    scale = (values.mean(dim=(1, 2), keepdim=True) / num_factors).sqrt()
    weights = torch.randn(batch, places, num_factors, generator=generator).to(values).abs() * scale
    factors = torch.randn(batch, num_factors, channels, generator=generator).to(values).abs() * scale
    before = math.inf
    for iteration in range(NUM_ITERATIONS):
        weights = weights * (values @ factors.mT) / (weights @ (factors @ factors.mT) + EPS)
        factors = factors * (weights.mT @ values) / ((weights.mT @ weights) @ factors + EPS)
        if iteration % CHECK_EVERY == CHECK_EVERY - 1:
            error = float((values - weights @ factors).square().sum().sqrt())
            if before - error < TOLERANCE * before:
                break
            before = error
    length = factors.norm(dim=2)
    return weights * length[:, None], factors / (length[..., None] + EPS)


def shared_parts(features: Float[Tensor, "b views c rows columns"], num_parts: int) -> Float[Tensor, "b views parts rows columns"]:
    """Which share of each place belongs to each part; the parts are those of all views together. Shares add up to 1.

    Shares instead of JDACS's raw weights: they do not depend on how large the features are.
    """
    rows, columns = features.shape[-2:]
    places = features.permute(0, 1, 3, 4, 2).flatten(1, 3)
    weights = factorised(places, num_parts)[0] + EPS
    shares = weights / weights.sum(dim=2, keepdim=True)
    return shares.unflatten(1, (features.shape[1], rows, columns)).permute(0, 1, 4, 2, 3)


def part_error(warped: Float[Tensor, "b parts h w"], labels: Int[Tensor, "b h w"], mask: Bool[Tensor, "b h w"]) -> Float[Tensor, "b h w"]:
    """Cross entropy of the shares that a source, warped onto the target, gives to the target's own parts; 0 outside the mask."""
    share = warped.gather(1, labels[:, None])[:, 0]
    return torch.where(mask, -torch.log(share.clamp(min=EPS)), 0.0)


@torch.no_grad()
def weak_texture(image: Float[Tensor, "b c h w"], mask: Bool[Tensor, "b h w"], share: float) -> Bool[Tensor, "b h w"]:
    """The share of each image's masked pixels around which brightness changes least."""
    grey = image.mean(dim=1, keepdim=True)
    across, down = (grey[..., 1:] - grey[..., :-1]).abs(), (grey[:, :, 1:] - grey[:, :, :-1]).abs()
    change = functional.pad(across, (0, 1)) + functional.pad(down, (0, 0, 0, 1))
    texture = functional.avg_pool2d(change, WINDOW_PX, 1, WINDOW_PX // 2, count_include_pad=False)[:, 0]
    ranked = torch.where(mask, texture, torch.inf).flatten(1).sort(dim=1).values
    last = (share * mask.sum(dim=(1, 2))).ceil().long().clamp(min=1) - 1
    return mask & (texture <= ranked.gather(1, last[:, None])[:, :, None])
