"""Light that moves with the camera, taken out of a comparison of two views without learning anything.

An endoscope carries its lamp, so tissue brightens as the camera nears it, more beside the lens than far away. Over patches that
are small against the image this is one factor (Lambert's law with a falloff that hardly changes over the patch).
"""

from __future__ import annotations

from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

WINDOWS_ACROSS = 6
"""The gain follows means over windows of the image's width over this."""
GAIN_RANGE = (0.25, 4.0)
FLOOR = 1e-3
"""Brightness below which nothing is divided."""


def match_exposure(
    source: Float[Tensor, "b c h w"], target: Float[Tensor, "b c h w"], mask: Bool[Tensor, "b h w"]
) -> Float[Tensor, "b c h w"]:
    """The source times a gain, all channels alike, that makes it as bright as the target over every window of the mask.

    The gain takes no gradient: what it explains is no error, and nothing can be gained by it.
    """
    gain = (_brightness(target, mask) + FLOOR) / (_brightness(source, mask) + FLOOR)
    return (source * gain.clamp(*GAIN_RANGE)).clamp(0.0, 1.0)


def _brightness(image: Tensor, mask: Tensor) -> Tensor:
    """Mean over channels and windows; means of both views run over the same pixels, so their number cancels in the ratio."""
    radius = max(1, image.shape[3] // (2 * WINDOWS_ACROSS))
    grey = (image.mean(dim=1, keepdim=True) * mask[:, None]).detach()
    return functional.avg_pool2d(functional.avg_pool2d(grey, 2 * radius + 1, 1, radius), 2 * radius + 1, 1, radius)
