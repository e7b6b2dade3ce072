"""Brightness that changes between two views, taken out of the photometric error by a predicted appearance flow.

Shao et al., "Self-supervised monocular depth and ego-motion estimation in endoscopy: appearance flow to the rescue"
(AF-SfMLearner, 2022). Its smoothness is `smoothness.edge_aware(transform, target - registration.detach(), visible)`.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def refined_target(
    target: Float[Tensor, "b 3 h w"], transform: Float[Tensor, "b 3 h w"], visible: Bool[Tensor, "b h w"]
) -> Float[Tensor, "b 3 h w"]:
    """The target as bright as the source sees it: target + appearance flow where visible, held in 0..1."""
    return (target + transform * visible[:, None]).clamp(0.0, 1.0)


def transform_constraint(
    refined: Float[Tensor, "b 3 h w"], registration: Float[Tensor, "b 3 h w"], visible: Bool[Tensor, "b h w"]
) -> Float[Tensor, "b h w"]:
    """Absolute difference of the refined target from the source registered by optical flow, which takes no gradient; mean over channels."""
    return torch.where(visible, (refined - registration.detach()).abs().mean(dim=1), 0.0)
