"""Whether the depth maps of two views are of one surface, at one scale.

Bian et al., "Unsupervised scale-consistent depth and ego-motion learning from monocular video" (SC-SfMLearner, 2019).
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from recon.geometry.warp import Correspondence, sample


def depth_inconsistency(
    where: Correspondence, depth_source: Float[Tensor, "b hs ws"], mask: Bool[Tensor, "b h w"]
) -> Float[Tensor, "b h w"]:
    """|a - b| / (a + b) in 0..1, a the target's point seen from the source and b the source's own depth there; 0 outside the mask.

    `where` is `warp.correspond` of the target's depth, and the mask a part of `where.valid`. One minus this is the paper's weight
    of the photometric error.
    """
    own = sample(depth_source[:, None], where.pixels)[:, 0]
    moved = torch.where(mask, where.depth, 1.0)
    return torch.where(mask, ((moved - own).abs() / (moved + own)).clamp(0.0, 1.0), 0.0)


def relative_change(depth: Float[Tensor, "b h w"], wanted: Float[Tensor, "b h w"], mask: Bool[Tensor, "b h w"]) -> Float[Tensor, "b h w"]:
    """|a - b| / b, b being what the depth should be, which takes no gradient; 0 outside the mask.

    Relative, because an absolute difference would be made small by making all depths small.
    """
    wanted = wanted.detach()
    return torch.where(mask, (depth - wanted).abs() / wanted, 0.0)


def projected_difference(
    where: Correspondence, depth_source: Float[Tensor, "b hs ws"], mask: Bool[Tensor, "b h w"]
) -> Float[Tensor, "b h w"]:
    """|a - b|, a the target's point seen from the source and b the source's own depth there; 0 outside the mask (EndoDAV, Zhou et al.
    2025). In the depths' unit: it grows with them. Gradients reach the depths of both."""
    own = sample(depth_source[:, None], where.pixels)[:, 0]
    return torch.where(mask, (torch.where(mask, where.depth, 0.0) - own).abs(), 0.0)
