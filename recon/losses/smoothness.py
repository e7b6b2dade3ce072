"""How much a map changes from pixel to pixel, less where a guide changes as well.

Edge-aware smoothness as in monodepth2 (Godard et al. 2019; Heise et al. 2013): `|dx m| exp(-|dx g|)` and the same down. The guide is
the image for disparity and optical flow, and target minus registration for AF-SfMLearner's appearance flow (Shao et al. 2022:
the residue's edges); without a guide it is plain total variation.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from recon.losses import masked_mean

MEAN_FLOOR = 1e-7
"""Added to the mean disparity, as published."""


class Differences(NamedTuple):
    """Changes between neighbours, which are one fewer than pixels: two maps with a mask each, 0 outside it."""

    across: Float[Tensor, "b h wm"]
    down: Float[Tensor, "b hm w"]
    across_mask: Bool[Tensor, "b h wm"]
    down_mask: Bool[Tensor, "b hm w"]

    def mean(self) -> Float[Tensor, ""]:
        """The published reduction: the mean of either direction over its own mask, summed."""
        return masked_mean(self.across, self.across_mask) + masked_mean(self.down, self.down_mask)


def relative_disparity(disparity: Float[Tensor, "b h w"], mask: Bool[Tensor, "b h w"]) -> Float[Tensor, "b h w"]:
    """Disparity over its mean over the mask of each image, so that smoothness cannot be had by shrinking (Wang et al. 2018)."""
    mean = (disparity * mask).sum(dim=(1, 2)) / mask.sum(dim=(1, 2)).clamp(min=1)
    return disparity / (mean + MEAN_FLOOR)[:, None, None]


def edge_aware(values: Float[Tensor, "b c h w"], guide: Float[Tensor, "b g h w"], mask: Bool[Tensor, "b h w"]) -> Differences:
    """Changes of a map (mean over channels), times exp(-change of the guide (mean over channels)).

    A change counts where both its pixels are in the mask. AF-SfMLearner asks the left or upper pixel only.
    """
    change, guide_change = total_variation(values, mask), total_variation(guide, mask)
    across, down = change.across * torch.exp(-guide_change.across), change.down * torch.exp(-guide_change.down)
    return change._replace(across=across, down=down)


def total_variation(values: Float[Tensor, "b c h w"], mask: Bool[Tensor, "b h w"]) -> Differences:
    """Absolute changes of a map, mean over channels."""
    across_mask, down_mask = mask[:, :, 1:] & mask[:, :, :-1], mask[:, 1:] & mask[:, :-1]
    across = (values[..., 1:] - values[..., :-1]).abs().mean(dim=1)
    down = (values[:, :, 1:] - values[:, :, :-1]).abs().mean(dim=1)
    return Differences(torch.where(across_mask, across, 0.0), torch.where(down_mask, down, 0.0), across_mask, down_mask)
