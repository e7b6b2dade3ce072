"""Optical flow and appearance flow (AF-SfMLearner, Shao et al. 2022), with the published key names.

In endoscopy the lamp moves with the lens, so the brightness of a point changes between frames. `FlowNet` ("position")
registers the source picture with the target by where things go; `AppearanceNet` ("transform") then tells what must be added
to the target for the two to be equally bright. Both are monodepth2's encoder and decoder with other heads.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from recon.models.monodepth2 import NUM_SCALES, WIDTHS, Conv3x3, SkipDecoder
from recon.models.resnet import CHANNELS, ResNetEncoder

FLOW_INIT_STD = 1e-5
"""Of the flow heads' weights at the start: almost no flow, so that registration begins at the identity."""


class PositionDecoder(SkipDecoder):
    """Optical flow at four scales."""

    def __init__(self) -> None:
        heads = [nn.Conv2d(width, 2, 3, padding=1) for width in WIDTHS[:NUM_SCALES]]
        for head in heads:
            nn.init.normal_(head.weight, std=FLOW_INIT_STD)
            nn.init.zeros_(head.bias)
        super().__init__(CHANNELS, WIDTHS, heads)

    def forward(self, maps: Sequence[Float[Tensor, "b _c _h _w"]]) -> list[Float[Tensor, "b 2 _h _w"]]:
        return self.decode(maps)


class TransformDecoder(SkipDecoder):
    """Change of colour at four scales, within -1 and 1."""

    def __init__(self) -> None:
        super().__init__(CHANNELS, WIDTHS, [Conv3x3(width, 3) for width in WIDTHS[:NUM_SCALES]])

    def forward(self, maps: Sequence[Float[Tensor, "b _c _h _w"]]) -> list[Float[Tensor, "b 3 _h _w"]]:
        return [torch.tanh(output) for output in self.decode(maps)]


class FlowNet(nn.Module):
    """Optical flow between two pictures."""

    def __init__(self, centred: bool = False) -> None:
        super().__init__()
        self.position_encoder = ResNetEncoder(2, centred)
        self.position = PositionDecoder()

    def forward(self, source: Float[Tensor, "b 3 h w"], target: Float[Tensor, "b 3 h w"]) -> list[Float[Tensor, "b 2 _h _w"]]:
        """Where each target pixel lies in the source, less where it is: channel 0 downwards (y), channel 1 to the right (x).

        At 1, 1/2, 1/4 and 1/8 of the pictures' size, but in pixels of the full size at every scale. RGB in [0, 1], h and w
        multiples of 32, at least 64.
        """
        return self.position(self.position_encoder(source, target))


class AppearanceNet(nn.Module):
    """Appearance flow of a target picture."""

    def __init__(self, centred: bool = False) -> None:
        super().__init__()
        self.transform_encoder = ResNetEncoder(2, centred)
        self.transform = TransformDecoder()

    def forward(self, registered: Float[Tensor, "b 3 h w"], target: Float[Tensor, "b 3 h w"]) -> list[Float[Tensor, "b 3 _h _w"]]:
        """What to add to the target, in [-1, 1], at 1, 1/2, 1/4 and 1/8 of its size; `registered` is the source warped by the flow.

        RGB in [0, 1], h and w multiples of 32, at least 64.
        """
        return self.transform(self.transform_encoder(registered, target))
