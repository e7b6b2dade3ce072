"""How much a map changes inside the segments of a picture, every segment counting alike (EndoUFM, arXiv 2508.17916).

Over the whole picture, large surfaces decide what smoothness costs; here each segment's changes are divided by its own size. A
change belongs to the segment of its left (or upper) pixel, as in the published code, so the step from one segment to the next counts
for the former.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from recon.losses.smoothness import edge_aware

MIN_PIXELS = 10
"""Segments with fewer pixels in the batch do not count."""


def changes(values: Float[Tensor, "b h w"], guide: Float[Tensor, "b g h w"], mask: Bool[Tensor, "b h w"]) -> Float[Tensor, "b h w"]:
    """Edge-aware changes to the right and down, summed at each pixel; 0 where either pixel of a change is outside the mask."""
    across, down, _, _ = edge_aware(values[:, None], guide, mask)
    total = torch.zeros_like(values)
    total[:, :, :-1] += across
    total[:, :-1] += down
    return total


def segment_mean(values: Float[Tensor, "b h w"], labels: Int[Tensor, "b h w"], mask: Bool[Tensor, "b h w"]) -> Float[Tensor, ""]:
    """The published reduction: the mean over the labels of the whole batch, 0 to the largest, of each label's mean inside the mask.

    Labels of fewer than MIN_PIXELS count as 0. Label 0 is one like any other. 0 where the mask is empty.
    """
    chosen = torch.where(mask, labels, 0).flatten().long()
    num_labels = int(chosen.max()) + 1
    counts = torch.zeros(num_labels, dtype=values.dtype, device=values.device).scatter_add_(0, chosen, mask.flatten().to(values.dtype))
    sums = torch.zeros(num_labels, dtype=values.dtype, device=values.device).scatter_add(0, chosen, (values * mask).flatten())
    return torch.where(counts >= MIN_PIXELS, sums / counts.clamp(min=1.0), 0.0).mean()
