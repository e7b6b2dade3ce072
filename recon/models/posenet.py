"""Motion between two pictures and, if wanted, the lens: monodepth2's pose network as the endoscopic family uses it.

Both source frames, before and after, go in as [source, target], and the motion that comes out maps points of the target
camera into the source camera, T_source_target, never inverted (AF-SfMLearner, EndoDAC). Weights of monodepth2 itself were
trained on frames in order of time and want the inverse for the earlier one; they are not interchangeable.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from recon.models.resnet import CHANNELS, ResNetEncoder

WIDTH = 256
MOTION_FACTOR = 0.001
"""What the network says is multiplied by this: 0.001 for endoscopy (0.01, monodepth2's, collapses on SCARED)."""
NUM_MOTIONS = 2
"""The published decoders give two motions, of which the first alone is used and trained."""


@dataclass(frozen=True)
class Motion:
    """From the target camera to the source camera, T_source_target, up to the scale of the depth it was trained with."""

    axis_angle: Float[Tensor, "b 3"]
    """rad."""
    translation: Float[Tensor, "b 3"]
    intrinsics: Float[Tensor, "b 4"] | None
    """fx, fy, cx, cy in pixels of the pictures; None where the network leaves them alone."""


class PoseDecoder(nn.Module):
    """From the encoder's coarsest map to a motion, averaged over the picture."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor
        self.net = nn.ModuleList(
            [
                nn.Conv2d(CHANNELS[-1], WIDTH, 1),
                nn.Conv2d(WIDTH, WIDTH, 3, 1, 1),
                nn.Conv2d(WIDTH, WIDTH, 3, 1, 1),
                nn.Conv2d(WIDTH, 6 * NUM_MOTIONS, 1),
            ]
        )

    def forward(self, coarsest: Float[Tensor, "b 512 h w"]) -> tuple[Float[Tensor, "b 6"], Float[Tensor, "b 256 h w"]]:
        """Axis-angle and translation, and the features from which the intrinsics are read (before their ReLU)."""
        squeeze, first, second, last = self.net
        features = second(functional.relu(first(functional.relu(squeeze(coarsest)))))
        return self.factor * last(functional.relu(features)).mean(dim=(2, 3))[:, :6], features


class IntrinsicsHead(nn.Module):
    """A pinhole lens from the pose decoder's features (EndoDAC): f = (softplus + 0.5) side, c = (x + 0.5) side."""

    def __init__(self) -> None:
        super().__init__()
        self.focal_length_conv = nn.Conv2d(WIDTH, 2, 1, bias=False)
        self.offsets_conv = nn.Conv2d(WIDTH, 2, 1, bias=False)

    def forward(self, features: Float[Tensor, "b 256 h w"], width_px: int, height_px: int) -> Float[Tensor, "b 4"]:
        """fx, fy, cx, cy in pixels of a picture of the given size."""
        pooled = features.mean(dim=(2, 3), keepdim=True)
        sides = pooled.new_tensor([width_px, height_px])
        focal = (functional.softplus(self.focal_length_conv(pooled).flatten(1)) + 0.5) * sides
        centre = (self.offsets_conv(pooled).flatten(1) + 0.5) * sides
        return torch.cat([focal, centre], dim=1)


class PoseNet(nn.Module):
    """Encoder of two pictures, pose decoder, intrinsics head."""

    def __init__(self, factor: float = MOTION_FACTOR, learn_intrinsics: bool = False, centred: bool = False) -> None:
        super().__init__()
        self.pose_encoder = ResNetEncoder(2, centred)
        self.pose = PoseDecoder(factor)
        self.intrinsics_head = IntrinsicsHead() if learn_intrinsics else None

    def forward(self, source: Float[Tensor, "b 3 h w"], target: Float[Tensor, "b 3 h w"]) -> Motion:
        """The motion between two RGB pictures in [0, 1]; h and w are multiples of 32, at least 64."""
        motion, features = self.pose(self.pose_encoder(source, target)[-1])
        rows, columns = target.shape[-2:]
        intrinsics = None if self.intrinsics_head is None else self.intrinsics_head(features, columns, rows)
        return Motion(motion[:, :3], motion[:, 3:], intrinsics)
