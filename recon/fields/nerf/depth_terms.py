"""What depth says to a field of density along rays. Every length is in median depths, and so is sigma.

Depth-nerfacto's sigma is a number of metres applied after the scene was squeezed into a box, so that it means something else in every
scene; here box units are median depths, and sigma is the relative error that the depth owns up to.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

MIN_WEIGHT = 1e-5


def termination_loss(
    weights: Float[Tensor, "n s"],
    middles: Float[Tensor, "n s"],
    lengths: Float[Tensor, "n s"],
    depth: Float[Tensor, " n"],
    sigma: float,
) -> Float[Tensor, " n"]:
    """Cross entropy between a normal distribution about the known depth and where rays end (DS-NeRF, Deng et al. 2022, eq. 5).

    Args:
        weights: probability that a ray ends in each of its samples.
        middles: depth of the samples along the same axis as `depth`.
        lengths: of the samples along that axis.
        depth: 0 where unknown, and there the loss is 0.
        sigma: standard deviation of the depth.
    """
    density = torch.exp(-0.5 * ((middles - depth[:, None]) / sigma) ** 2) / (sigma * math.sqrt(2 * math.pi))
    entropy = -(torch.log(weights + MIN_WEIGHT) * density * lengths).sum(dim=-1)
    return torch.where(depth > 0, entropy, 0.0)


def huber_depth_loss(rendered: Float[Tensor, " n"], depth: Float[Tensor, " n"], sigma: float) -> Float[Tensor, " n"]:
    """Quadratic within sigma and linear beyond, in units of sigma, so that a wrong depth pulls no harder than a doubtful one."""
    residual = torch.nn.functional.huber_loss(rendered / sigma, depth / sigma, reduction="none")
    return torch.where(depth > 0, residual, 0.0)


def mean_where_known(losses: Float[Tensor, " n"], depth: Float[Tensor, " n"]) -> Float[Tensor, ""]:
    """Mean over rays of known depth; 0 where there is none."""
    return losses.sum() / (depth > 0).sum().clamp(min=1)
