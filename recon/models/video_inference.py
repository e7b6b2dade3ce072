"""Networks that see windows of frames, as depth models: EndoDAV."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from PIL import Image
from torch import nn

from recon.models import DepthEstimate
from recon.models.adapters import merge
from recon.models.depth_anything import SIZES
from recon.models.endodav import GRID, EndoDAV
from recon.models.inference import ENDOSCOPIC_PX, MAX_RATIO, SIGMA, depth_of_sigmoid, of_aspect, on_tissue
from recon.models.weights import TRAINED, load_weights, read_numbers
from recon.models.windows import consistent_disparity
from recon.types import Camera


class VideoDepth:
    """EndoDAV with weights. Disparity of all frames of a recording is in the scale and shift of its first window.

    See `recon.models.windows` for how windows are cut and aligned; they are aligned at the network's size and not at the pictures'.
    """

    def __init__(self, network: nn.Module, size: tuple[int, int], device: str) -> None:
        """`network` is called as EndoDAV is; `size` is (width, height) at which it was trained to be shown pictures."""
        self.network = network.eval().requires_grad_(False).to(device)
        self.size, self.device = size, device

    def infer(self, image: UInt8[np.ndarray, "H W 3"], camera: Camera, mask: Bool[np.ndarray, "H W"]) -> DepthEstimate:
        """z-depth of one picture alone, up to one factor."""
        return self._estimate(self._disparity([self._shrunk(image)])[0], camera, mask)

    def infer_video(
        self, frames: Iterable[tuple[UInt8[np.ndarray, "H W 3"], Bool[np.ndarray, "H W"]]], camera: Camera
    ) -> Iterator[DepthEstimate]:
        """z-depth of consecutive pictures with their masks, in order, up to one factor of them all; holds one window of them."""
        masks: deque[np.ndarray] = deque()

        def shrunk() -> Iterator[np.ndarray]:
            for image, mask in frames:
                masks.append(mask)
                yield self._shrunk(image)

        for disparity in consistent_disparity(shrunk(), self._disparity, has_shift=True):
            yield self._estimate(disparity.astype(np.float32), camera, masks.popleft())

    def _shrunk(self, image: UInt8[np.ndarray, "H W 3"]) -> Float[np.ndarray, "h w 3"]:
        """RGB in [0, 1] as the authors' loader makes it: bilinear, smoothed before it shrinks."""
        return np.asarray(Image.fromarray(image).resize(self.size, Image.Resampling.BILINEAR), dtype=np.float32) / 255

    @torch.inference_mode()
    def _disparity(self, window: Sequence[Float[np.ndarray, "h w 3"]]) -> Float[np.ndarray, "t rows columns"]:
        frames = torch.from_numpy(np.stack(window)).permute(0, 3, 1, 2)[None].to(self.device)
        return self.network(frames)[0][0].float().cpu().numpy()

    @staticmethod
    def _estimate(disparity: Float[np.ndarray, "rows columns"], camera: Camera, mask: Bool[np.ndarray, "H W"]) -> DepthEstimate:
        depth = depth_of_sigmoid(of_aspect(disparity, camera))
        # A disparity of 0 is as far as can be told, and not where the formula puts it: 10,000 times as far as the nearest.
        depth = np.minimum(depth, MAX_RATIO * depth.min())
        return on_tissue(depth, np.full_like(depth, SIGMA), camera, mask)


def load_endodav(device: str, weights: Path) -> VideoDepth:
    """EndoDAV, its scales merged, from the authors' folder or its `depth_model.pth`, or from a folder of `recon train`.

    The published one is of the size "small"; a trained one says its encoder's width.
    """
    if weights.is_dir():
        weights = weights / (TRAINED if (weights / TRAINED).exists() else "depth_model.pth")
    numbers = read_numbers(weights)
    size = next((size for size in SIZES.values() if size.vit.width == numbers.get("encoder_width")), SIZES["small"])
    network = EndoDAV(size, (int(numbers.get("grid_rows", GRID[0])), int(numbers.get("grid_columns", GRID[1]))))
    load_weights(network, weights)
    merge(network)
    trained_px = (int(numbers.get("width", ENDOSCOPIC_PX[0])), int(numbers.get("height", ENDOSCOPIC_PX[1])))
    return VideoDepth(network, trained_px, device)
