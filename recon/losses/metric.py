"""How far a depth is from the true one, scale and all.

Scale-invariant logarithmic error (SiLog, Eigen et al. 2014) as Depth Anything V2 fine-tunes its metric networks (Yang et al. 2024),
and the plain difference of lengths. Any unit, the same for both.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from recon.losses import masked_mean

VARIANCE_FOCUS = 0.5
"""Share of the squared mean log error that SiLog forgives: 1 forgives any common factor, 0 none."""
FLOOR = 1e-12
"""Under the root, whose gradient at 0 would be infinite."""


def log_error(pred: Float[Tensor, "b h w"], truth: Float[Tensor, "b h w"], mask: Bool[Tensor, "b h w"]) -> Float[Tensor, "b h w"]:
    """log(truth) - log(pred) of depths above 0; 0 outside the mask."""
    return torch.where(mask, torch.log(torch.where(mask, truth, 1.0)) - torch.log(torch.where(mask, pred, 1.0)), 0.0)


def silog(errors: Float[Tensor, "b h w"], mask: Bool[Tensor, "b h w"], variance_focus: float = VARIANCE_FOCUS) -> Float[Tensor, ""]:
    """The published reduction of log errors, over the whole batch: sqrt(mean(g^2) - variance_focus mean(g)^2)."""
    return (masked_mean(errors**2, mask) - variance_focus * masked_mean(errors, mask) ** 2).clamp(min=FLOOR).sqrt()


def absolute_error(pred: Float[Tensor, "b h w"], truth: Float[Tensor, "b h w"], mask: Bool[Tensor, "b h w"]) -> Float[Tensor, "b h w"]:
    """|truth - pred|; 0 outside the mask."""
    return torch.where(mask, (truth - pred).abs(), 0.0)
