"""How unlike two pictures of one view are, and which pixels may say so.

Godard et al., "Digging into self-supervised monocular depth estimation" (monodepth2, 2019): 0.85 SSIM + 0.15 L1 with SSIM over
3x3 mean windows, the smallest error over the sources (`minimum_over_sources`), and pixels that do not change when the camera
moves left out (`auto_mask`). Images are RGB in 0..1.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

SSIM_WEIGHT = 0.85
C1, C2 = 0.01**2, 0.03**2
"""Stabilisers of the luminance and the contrast term for values in 0..1 (Wang et al. 2004)."""


def ssim_error(a: Float[Tensor, "b c h w"], b: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    """(1 - SSIM) / 2 held in 0..1, over 3x3 windows with equal weights; borders are reflected."""
    a, b = (functional.pad(image, (1, 1, 1, 1), mode="reflect") for image in (a, b))
    mean_a, mean_b = _window_mean(a), _window_mean(b)
    var_a, var_b = _window_mean(a**2) - mean_a**2, _window_mean(b**2) - mean_b**2
    covariance = _window_mean(a * b) - mean_a * mean_b
    likeness = (2.0 * mean_a * mean_b + C1) * (2.0 * covariance + C2)
    most = (mean_a**2 + mean_b**2 + C1) * (var_a + var_b + C2)
    return (0.5 * (1.0 - likeness / most)).clamp(0.0, 1.0)


def photometric_error(
    predicted: Float[Tensor, "b c h w"], target: Float[Tensor, "b c h w"], mask: Bool[Tensor, "b h w"]
) -> Float[Tensor, "b h w"]:
    """0.85 SSIM error + 0.15 absolute difference, each a mean over channels; 0 outside the mask.

    Windows of pixels beside the mask's edge reach one pixel beyond it, as in the published losses: shrink a mask whose outside is
    not picture at all.
    """
    difference = (target - predicted).abs().mean(dim=1)
    error = SSIM_WEIGHT * ssim_error(predicted, target).mean(dim=1) + (1.0 - SSIM_WEIGHT) * difference
    return torch.where(mask, error, 0.0)


def minimum_over_sources(
    errors: Float[Tensor, "s b h w"], masks: Bool[Tensor, "s b h w"]
) -> tuple[Float[Tensor, "b h w"], Bool[Tensor, "b h w"]]:
    """Smallest error over the sources that see the pixel, and whether any does: one source's occlusion is not held against depth."""
    smallest = torch.where(masks, errors, torch.inf).amin(dim=0)
    seen = masks.any(dim=0)
    return torch.where(seen, smallest, 0.0), seen


def auto_mask(error: Float[Tensor, "b h w"], unwarped_error: Float[Tensor, "b h w"], mask: Bool[Tensor, "b h w"]) -> Bool[Tensor, "b h w"]:
    """Pixels of the mask that the warp explains better than the source as it stands (`unwarped_error`).

    What moves with the camera, a still camera, and places without texture (a tie) leave no pixel behind; monodepth2 breaks ties by
    noise of 1e-5, which is left to chance and not wanted here.
    """
    return mask & (error < unwarped_error).detach()


def _window_mean(image: Tensor) -> Tensor:
    return functional.avg_pool2d(image, kernel_size=3, stride=1)
