"""Which pixels of one view another view sees too, from where the other view's pixels land.

AF-SfMLearner (Shao et al. 2022, after Wang et al., "Occlusion aware unsupervised learning of optical flow", 2018): the pixels of the
source are splatted onto the target by the flow; a target pixel on which nearly nothing lands is hidden from the source.
Masks are hard and carry no gradient. Flows have channels (y, x), in pixels.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from recon.geometry.warp import displaced

MIN_COUNT = 0.95
"""Source pixels that must land on a visible pixel."""


def visible_mask(flow_source_target: Float[Tensor, "b 2 h w"], min_count: float = MIN_COUNT) -> Bool[Tensor, "b h w"]:
    """Target pixels that the source sees, from where its pixels lie in the target: `flow_source_target` is on the source's grid."""
    return splat_count(flow_source_target) > min_count


@torch.no_grad()
def splat_count(flow: Float[Tensor, "b 2 h w"]) -> Float[Tensor, "b h w"]:
    """How many pixels land on each pixel when all are moved by the flow, each shared out bilinearly among four neighbours."""
    batch, _, height, width = flow.shape
    landing = displaced(flow)
    corner = landing.floor()
    share = landing - corner
    count = torch.zeros(batch, height * width, dtype=flow.dtype, device=flow.device)
    for right in (0, 1):
        for below in (0, 1):
            u, v = corner[..., 0] + right, corner[..., 1] + below
            weight = (share[..., 0] if right else 1.0 - share[..., 0]) * (share[..., 1] if below else 1.0 - share[..., 1])
            lands = (u >= 0) & (u < width) & (v >= 0) & (v < height)
            index = torch.where(lands, v * width + u, 0.0).long()
            count.scatter_add_(1, index.flatten(1), torch.where(lands, weight, 0.0).flatten(1))
    return count.reshape(batch, height, width)
