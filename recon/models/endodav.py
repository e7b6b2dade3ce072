"""EndoDAV (Zhou et al., "EndoDAV: depth any video in endoscopy with spatiotemporal accuracy", MICCAI 2025): Video Depth Anything,
frozen, whose feed-forward layers are scaled on both sides; with the key names of its authors' `depth_model.pth`.

Scaled are both layers of each perceptron of the encoder (spatial) and the last one of each temporal module (temporal): 46,080 and
3,520 numbers of the size "small". Pictures are RGB in [0, 1]; the network resizes and normalises them itself.
"""

from __future__ import annotations

from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from recon.models.adapters import attach, train_adapters
from recon.models.depth_anything import SIZES, DepthAnythingSize, imagenet_normalised
from recon.models.dpt import resized
from recon.models.video_depth_anything import VideoDepthAnything
from recon.models.vit import PATCH_PX
from recon.models.weights import LoadedWeights, load_weights

GRID = (16, 20)
"""Rows and columns of patches that the published weights were trained with."""
NUM_SCALES = 4
SPATIAL, TEMPORAL = "pretrained.blocks.*.mlp.fc[12]", "head.motion_modules.*.ff.net.2"
"""The layers that are scaled."""


class EndoDAV(VideoDepthAnything):
    """The whole network; the published one is of the size "small". Pictures are resized to `grid` (rows, columns) patches."""

    def __init__(self, size: DepthAnythingSize = SIZES["small"], grid: tuple[int, int] = GRID) -> None:
        super().__init__(size)
        self.grid = grid
        for layers in (SPATIAL, TEMPORAL):
            attach(self, layers, "ssb")
        self.train_part(temporal=False)

    def train_part(self, temporal: bool) -> None:
        """Freeze all but the scales of the temporal modules, or all but those of the encoder."""
        train_adapters(self, warm_up=True)
        (self.pretrained if temporal else self.head).requires_grad_(False)

    def forward(self, frames: Float[Tensor, "b t 3 h w"]) -> list[Float[Tensor, "b t _h _w"]]:
        """Disparity, 0 and more, of windows of frames in [0, 1] at 14, 7, 3 and 1 pixels a patch, whatever the frames' size.

        It is read as a sigmoid one is (`recon.models.monodepth2.depth_from_sigmoid`), though nothing keeps it below 1: depth is
        some hundredths of its unit. Raises ReconError for windows of more than 32 frames.
        """
        small = resized(frames.flatten(0, 1), (self.grid[0] * PATCH_PX, self.grid[1] * PATCH_PX))
        scales = [super().forward(imagenet_normalised(small).unflatten(0, frames.shape[:2]))]
        for _ in range(NUM_SCALES - 1):
            rows, columns = scales[-1].shape[-2:]
            scales.append(resized(scales[-1], (rows // 2, columns // 2)))
        return scales


def load_video_depth_anything(network: EndoDAV, path: Path) -> LoadedWeights:
    """Start from Video Depth Anything's weights (video_depth_anything_vits.pth); the scales keep their values.

    A file of EndoDAV itself loads with `recon.models.weights.load_weights`. Raises ReconError as that does.
    """
    return load_weights(network, path, may_miss=("*.lora_[AB]",))
