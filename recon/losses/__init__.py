"""What training minimises: plain tensors in, one value per pixel out, 0 outside the mask. The caller weighs and reduces.

Masks are True where a pixel counts and never carry a gradient.
"""

from __future__ import annotations

from jaxtyping import Bool, Float
from torch import Tensor


def masked_mean(values: Float[Tensor, "*shape"], mask: Bool[Tensor, "*shape"]) -> Float[Tensor, ""]:
    """Mean over the mask of the whole batch; 0, with a gradient of 0, where the mask is empty."""
    return (values * mask).sum() / mask.sum().clamp(min=1)
