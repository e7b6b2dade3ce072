"""Changes of a batch that leave its depth as it is: colour, blur, noise, mirror images."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
from jaxtyping import Float
from kornia.filters import box_blur
from torch import Tensor
from torch.nn.functional import interpolate

from recon.training.shards import Batch


def augment(batch: Batch, generator: torch.Generator) -> Batch:
    """Draw one change per batch for the mirrors and one per view for the rest."""
    mirrored = mirror(batch, *(torch.rand(2, generator=generator) < 0.5).tolist())
    return replace(mirrored, image=jitter(mirrored.image, generator) * mirrored.mask)


def mirror(batch: Batch, sideways: bool, upside_down: bool) -> Batch:
    """Flip a batch; the rays' components flip with the picture, so the lens stays true."""
    axes = [axis for axis, flip in ((-1, sideways), (-2, upside_down)) if flip]
    sign = torch.tensor([-1.0 if sideways else 1.0, -1.0 if upside_down else 1.0, 1.0], device=batch.rays.device)
    return Batch(
        image=batch.image.flip(axes),
        rays=batch.rays.flip(axes) * sign[:, None, None],
        mask=batch.mask.flip(axes),
        log_distance=batch.log_distance.flip(axes),
        known=batch.known.flip(axes),
    )


def jitter(image: Float[Tensor, "b 3 h w"], generator: torch.Generator) -> Float[Tensor, "b 3 h w"]:
    """Gain, gamma, black level, saturation, channel gains and mixing, blur and noise, one draw per view."""
    draw = partial(_draw, image, generator)
    image = image.clamp_min(1e-4) ** draw(0.75, 1.35) * draw(0.75, 1.2) * draw(0.88, 1.12, 3)
    grey = image.mean(1, keepdim=True)
    image = grey + (image - grey) * draw(0.0, 1.6)
    # Hue turns far in a quarter of the views: shape has to do without it.
    mixing = torch.softmax(3 * torch.randn(len(image), 3, 3, generator=generator), dim=2).to(image.device)
    image = torch.where(draw(0.0, 1.0) < 0.25, torch.einsum("bij,bjhw->bihw", mixing, image), image)
    lift = 0.08 * draw(0.0, 1.0) ** 2
    image = lift + (1 - lift) * image
    blurred = box_blur(image, (3, 3), border_type="replicate")
    image = image + (blurred - image) * (draw(-0.6, 1.6)).clamp(-0.5, 1.0)
    noise = torch.randn(image.shape, generator=generator).to(image.device)
    return (image + noise * 0.03 * draw(0.0, 1.0) ** 3).clamp(0, 1)


def estrange(image: Float[Tensor, "b 3 h w"], generator: torch.Generator) -> Float[Tensor, "b 3 h w"]:
    """Bend tones, colours and edges as a video processor might, far beyond what is rendered: one smooth gain, for each channel another
    one of less strength, one gamma, one sharpening per view.

    For pictures on which another network's answer is learnt, not the truth: the stranger they are, the more of what it says is kept.
    """
    draw = partial(_draw, image, generator)
    gain = draw(-1.0, 1.0, size=4) * draw(0.0, 1.0) + draw(-0.3, 0.3, channels=3, size=4) * draw(0.0, 1.0)
    gain = interpolate(gain, image.shape[-2:], mode="bicubic", align_corners=True).exp()
    bent = (image * gain).clamp(0, 1) ** draw(-0.7, 0.7).exp()
    return (bent + (bent - box_blur(bent, (5, 5), border_type="replicate")) * draw(0.0, 1.5)).clamp(0, 1)


def _draw(
    image: Float[Tensor, "b 3 h w"], generator: torch.Generator, low: float, high: float, channels: int = 1, size: int = 1
) -> Float[Tensor, "b channels size size"]:
    """Uniform numbers for every view."""
    return (low + (high - low) * torch.rand(len(image), channels, size, size, generator=generator)).to(image.device)
