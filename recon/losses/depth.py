"""Losses between log-distances. Plain tensors in, unreduced tensors out; the caller reduces over the mask."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def masked_median(values: Float[Tensor, "b h w"], mask: Bool[Tensor, "b h w"]) -> Float[Tensor, " b"]:
    """Median over the mask of each image; 0 where the mask is empty."""
    flat = torch.where(mask, values, torch.nan).flatten(1)
    return torch.nan_to_num(flat.nanmedian(dim=1).values)


def log_residual(log_pred: Float[Tensor, "b h w"], log_gt: Float[Tensor, "b h w"], mask: Bool[Tensor, "b h w"]) -> Float[Tensor, "b h w"]:
    """Difference of logs after one factor per image (the median ratio, without gradient), 0 outside the mask.

    The scale-invariant error of Eigen et al. 2014 with the median in place of the mean: occlusion edges do not pull it.
    """
    difference = log_pred - log_gt
    factor = masked_median(difference.detach(), mask)
    return torch.where(mask, difference - factor[:, None, None], 0.0)


def gradient_residual(residual: Float[Tensor, "b h w"], mask: Bool[Tensor, "b h w"], step: int) -> Float[Tensor, "b h w"]:
    """Sum of absolute differences of a residual over `step` pixels right and down (MegaDepth, Li & Snavely 2018)."""
    total = torch.zeros_like(residual)
    across = (residual[:, :, step:] - residual[:, :, :-step]).abs() * (mask[:, :, step:] & mask[:, :, :-step])
    down = (residual[:, step:] - residual[:, :-step]).abs() * (mask[:, step:] & mask[:, :-step])
    total[:, :, :-step] += across
    total[:, :-step] += down
    return total


def laplace_nll(residual: Float[Tensor, "*shape"], log_scale: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Negative log-likelihood of a residual under a Laplace density of the given log-scale (Kendall & Gal 2017)."""
    return residual.abs() * torch.exp(-log_scale) + log_scale
