"""How unlike a rendered picture is from the recorded one, as in 3-D Gaussian splatting (Kerbl et al. 2023): L1 and D-SSIM."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

WINDOW, SIGMA = 11, 1.5
C1, C2 = 0.01**2, 0.03**2


def dissimilarity(a: Float[Tensor, "h w c"], b: Float[Tensor, "h w c"]) -> Float[Tensor, "h w"]:
    """1 - SSIM over 11 x 11 Gaussian windows (Wang et al. 2004), mean over the channels; outside the picture is 0."""
    kernel = torch.exp(-0.5 * ((torch.arange(WINDOW, dtype=a.dtype, device=a.device) - WINDOW // 2) / SIGMA) ** 2)
    kernel = kernel / kernel.sum()
    planes = torch.cat([a, b, a * a, b * b, a * b], dim=2).permute(2, 0, 1)[:, None]
    smooth = functional.conv2d(planes, kernel.reshape(1, 1, 1, -1), padding=(0, WINDOW // 2))
    smooth = functional.conv2d(smooth, kernel.reshape(1, 1, -1, 1), padding=(WINDOW // 2, 0))[:, 0]
    mean_a, mean_b, square_a, square_b, product = smooth.reshape(5, a.shape[2], *a.shape[:2])
    luminance = (2 * mean_a * mean_b + C1) / (mean_a**2 + mean_b**2 + C1)
    contrast = (2 * (product - mean_a * mean_b) + C2) / (square_a - mean_a**2 + square_b - mean_b**2 + C2)
    return (1.0 - luminance * contrast).mean(dim=0)


def inverse_depth_error(
    depth: Float[Tensor, "h w"], target: Float[Tensor, "h w"], mask: Bool[Tensor, "h w"], floor: float
) -> Float[Tensor, "h w"]:
    """Absolute difference of inverse depths, 0 outside the mask; depths below `floor` count as it."""
    safe = torch.where(mask, target, 1.0)
    return torch.where(mask, (1.0 / depth.clamp_min(floor) - 1.0 / safe).abs(), 0.0)


def correlation_error(depth: Float[Tensor, "h w"], target: Float[Tensor, "h w"], mask: Bool[Tensor, "h w"]) -> Float[Tensor, ""]:
    """1 - Pearson correlation over the mask: what depth of unknown scale and shift still says; 0 where fewer than 2 pixels speak."""
    a, b = depth[mask], target[mask]
    if len(a) < 2:
        return depth.new_zeros(())
    a, b = a - a.mean(), b - b.mean()
    return 1.0 - (a * b).sum() / (a.norm() * b.norm()).clamp_min(1e-12)
