"""The one change of colour that all frames of a clip share (monodepth2's augmentation, Godard et al. 2019).

The parameters are drawn once per clip and the same map from colour to colour is applied to every frame: frame by frame, the
jitter would look to the losses like light that changes. So contrast turns about the clip's mean, not about each frame's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from kornia.color import hsv_to_rgb, rgb_to_hsv
from torch import Tensor

FACTOR_RANGE = (0.8, 1.2)
"""Of brightness, contrast and saturation."""
HUE_RANGE = (-0.1, 0.1)
"""In turns of the colour circle."""

Change = Literal["brightness", "contrast", "saturation", "hue"]
CHANGES: tuple[Change, ...] = ("brightness", "contrast", "saturation", "hue")

_LUMA = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class ColorJitter:
    """One draw: three factors around 1, a shift of hue in turns, and the order in which they are applied."""

    brightness: float = 1.0
    contrast: float = 1.0
    saturation: float = 1.0
    hue: float = 0.0
    order: tuple[Change, ...] = CHANGES


def draw_jitter(rng: np.random.Generator) -> ColorJitter:
    """Factors in `FACTOR_RANGE`, hue in `HUE_RANGE`, in random order."""
    brightness, contrast, saturation = (float(factor) for factor in rng.uniform(*FACTOR_RANGE, size=3))
    hue = float(rng.uniform(*HUE_RANGE))
    return ColorJitter(brightness, contrast, saturation, hue, tuple(CHANGES[i] for i in rng.permutation(len(CHANGES))))


def apply_jitter(clip: Float[Tensor, "t 3 h w"], jitter: ColorJitter) -> Float[Tensor, "t 3 h w"]:
    """Change all frames (RGB, 0 to 1) alike; the result is held within 0 to 1 after each step."""
    for change in jitter.order:
        if change == "hue":
            clip = _turn_hue(clip, jitter.hue)
        else:
            clip = _blend(clip, _opposite(clip, change), getattr(jitter, change))
    return clip


def _opposite(clip: Tensor, change: Change) -> Tensor:
    """What a factor of 0 would leave: black, the clip's mean grey, or each pixel's grey."""
    if change == "brightness":
        return torch.zeros_like(clip)
    grey = (clip * torch.tensor(_LUMA, dtype=clip.dtype, device=clip.device)[:, None, None]).sum(dim=1, keepdim=True)
    return grey.mean() if change == "contrast" else grey


def _blend(clip: Tensor, opposite: Tensor, factor: float) -> Tensor:
    return (opposite + factor * (clip - opposite)).clamp(0.0, 1.0)


def _turn_hue(clip: Tensor, turns: float) -> Tensor:
    hue, saturation, value = rgb_to_hsv(clip).unbind(dim=1)
    turned = torch.remainder(hue + 2.0 * torch.pi * turns, 2.0 * torch.pi)
    return hsv_to_rgb(torch.stack([turned, saturation, value], dim=1)).clamp(0.0, 1.0)
