"""Networks that see one picture and nothing of its lens, as depth models: sizes, colours, and from their output to z-depth.

Pictures are resized to the size that the weights were trained at, whatever their aspect, as the authors evaluate (Depth
Anything keeps the aspect); the output goes back to the picture's aspect before anything is inverted. These networks say
nothing of their certainty: SIGMA stands everywhere, so that nothing is weighed more than anything else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from PIL import Image
from torch import Tensor, nn

from recon.geometry.cameras import resize
from recon.models import DepthEstimate
from recon.models.adapters import merge
from recon.models.depth_anything import SIZES, DepthAnything, DepthAnythingSize, imagenet_normalised, network_size
from recon.models.endodac import GRID, EndoDAC
from recon.models.endoufm import EndoUFM, Parts
from recon.models.litemono import LiteMono
from recon.models.monodepth2 import Monodepth2, depth_from_sigmoid, load_parts
from recon.models.resnet import COUNTERS
from recon.models.student import lens_rays
from recon.models.weights import TRAINED, load_weights, read_numbers
from recon.types import Camera

SIGMA = 0.2
"""Of the log-depth, where a network does not tell: a usual error of zero-shot depth, not an estimate of it."""
ENDOSCOPIC_PX = (320, 256)
"""Width and height at which the endoscopic family is trained."""
MAX_RATIO = 50.0
"""Of the largest depth to the smallest that a relative disparity is read as: its zero is where the authors' pictures end."""
MIN_METRES = 1e-3


@dataclass(frozen=True)
class Reading:
    """How a network wants its pictures, and what its output means."""

    size: Callable[[int, int], tuple[int, int]]
    """From the picture's width and height to those that the network sees."""
    z_depth: Callable[[Float[np.ndarray, "h w"]], Float[np.ndarray, "h w"]]
    """From the output, resized to the picture's aspect, to z-depth above 0."""
    prepared: Callable[[Tensor], Tensor] = lambda colour: colour
    """From RGB in [0, 1] to what the network takes."""
    shrink: Callable[[np.ndarray, tuple[int, int]], np.ndarray] = lambda image, size: lanczos(image, size)
    """From RGB (H, W, 3) of 8 bit and (width, height) to RGB in [0, 1] of that size, as the authors resize."""


class PictureDepth:
    """A loaded network as a depth model. `network` maps (1, 3, h, w) to (1, h', w')."""

    def __init__(self, network: nn.Module, first: Callable[[object], Tensor], reading: Reading, device: str) -> None:
        self.network = network.eval().requires_grad_(False).to(device, memory_format=torch.channels_last)
        self.first, self.reading, self.device = first, reading, device

    @torch.inference_mode()
    def infer(self, image: UInt8[np.ndarray, "H W 3"], camera: Camera, mask: Bool[np.ndarray, "H W"]) -> DepthEstimate:
        """z-depth up to one factor (metric networks: metres), 0 outside the mask; sigma is SIGMA everywhere."""
        size = self.reading.size(image.shape[1], image.shape[0])
        colour = torch.from_numpy(self.reading.shrink(image, size)).permute(2, 0, 1)[None].to(self.device)
        seen = self.reading.prepared(colour).contiguous(memory_format=torch.channels_last)
        output = self.first(self.network(seen))[0].float().cpu().numpy()
        depth = self.reading.z_depth(of_aspect(output, camera))
        return on_tissue(depth, np.full_like(depth, SIGMA), camera, mask)


def of_aspect(values: Float[np.ndarray, "h w"], camera: Camera) -> Float[np.ndarray, "rows w"]:
    """A network's output at the picture's aspect; a network's grid is often of another."""
    rows = max(round(values.shape[1] * camera.height_px / camera.width_px), 1)
    return cv2.resize(values, (values.shape[1], rows), interpolation=cv2.INTER_LINEAR).reshape(rows, values.shape[1])


def on_tissue(
    depth: Float[np.ndarray, "h w"], sigma: Float[np.ndarray, "h w"], camera: Camera, mask: Bool[np.ndarray, "H W"]
) -> DepthEstimate:
    """Depth and its sigma, 0 outside the mask, where depth is not a positive number, and where the lens looks sideways."""
    rows, columns = depth.shape
    inside = cv2.resize(mask.astype(np.uint8), (columns, rows), interpolation=cv2.INTER_NEAREST) > 0
    known = inside & np.isfinite(depth) & (depth > 0) & (lens_rays(resize(camera, columns, rows))[..., 2] > 0)
    return DepthEstimate(np.where(known, depth, 0).astype(np.float32), np.where(known, sigma, 0).astype(np.float32))


def lanczos(image: UInt8[np.ndarray, "H W 3"], size: tuple[int, int]) -> Float[np.ndarray, "h w 3"]:
    """RGB in [0, 1] as monodepth2's loader makes it, which smooths before it shrinks."""
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS), dtype=np.float32) / 255


def cubic(image: UInt8[np.ndarray, "H W 3"], size: tuple[int, int]) -> Float[np.ndarray, "h w 3"]:
    """RGB near [0, 1] as Depth Anything's loader makes it: no smoothing, and cubics overshoot."""
    return cv2.resize(image.astype(np.float32) / 255, size, interpolation=cv2.INTER_CUBIC)


def depth_of_sigmoid(output: Float[np.ndarray, "h w"]) -> Float[np.ndarray, "h w"]:
    """monodepth2's rule, see `recon.models.monodepth2.depth_from_sigmoid`."""
    return depth_from_sigmoid(torch.from_numpy(output)).numpy()


def depth_of_relative(disparity: Float[np.ndarray, "h w"]) -> Float[np.ndarray, "h w"]:
    """Inverse of a disparity whose shift nobody knows: taken as 0, and nothing lies MAX_RATIO times farther than the nearest.

    A picture of no disparity at all is flat.
    """
    nearest = float(disparity.max())
    if nearest <= 0:
        return np.ones_like(disparity)
    return 1 / np.maximum(disparity / nearest, 1 / MAX_RATIO)


def depth_of_metres(output: Float[np.ndarray, "h w"]) -> Float[np.ndarray, "h w"]:
    """Metres as they are, kept above 0."""
    return np.maximum(output, MIN_METRES)


def load_monodepth2(centred: bool, device: str, weights: Path) -> PictureDepth:
    """monodepth2 and AF-SfMLearner, from the authors' folder (`encoder.pth`, `depth.pth`), one of `recon train`, or one file of both."""
    return _load_two_parts(Monodepth2(centred), device, weights)


def load_litemono(device: str, weights: Path) -> PictureDepth:
    """LiteNet's Lite-Mono, from the authors' folder or one file of both parts."""
    return _load_two_parts(LiteMono(), device, weights)


def load_endodac(device: str, weights: Path) -> PictureDepth:
    """EndoDAC, its adapters merged, from the authors' folder or its `depth_model.pth`, or from a folder of `recon train`.

    The published one is of the size "base"; a trained one says its encoder's width.
    """
    return _load_adapted(lambda size, grid, numbers: EndoDAC(size, grid), device, weights)


def load_endoufm(device: str, weights: Path) -> PictureDepth:
    """EndoUFM in the same way; a trained one also says which of its parts it has."""
    return _load_adapted(lambda size, grid, numbers: EndoUFM(size, grid, Parts.of(numbers)), device, weights)


def _load_adapted(
    build: Callable[[DepthAnythingSize, tuple[int, int], Mapping[str, int | float]], EndoDAC], device: str, weights: Path
) -> PictureDepth:
    if weights.is_dir():
        weights = weights / (TRAINED if (weights / TRAINED).exists() else "depth_model.pth")
    numbers = read_numbers(weights)
    size = next((size for size in SIZES.values() if size.vit.width == numbers.get("encoder_width")), SIZES["base"])
    network = build(size, (int(numbers.get("grid_rows", GRID[0])), int(numbers.get("grid_columns", GRID[1]))), numbers)
    load_weights(network, weights)
    merge(network)
    return PictureDepth(network, lambda outputs: outputs[0], Reading(_trained_size(numbers), depth_of_sigmoid), device)


def load_depth_anything(version: int, size: str, max_depth: float | None, device: str, weights: Path) -> PictureDepth:
    """Depth Anything, relative or metric, from the authors' or Hugging Face's file."""
    network = DepthAnything(version, SIZES[size], max_depth)
    load_weights(network, weights)
    z_depth = depth_of_relative if max_depth is None else depth_of_metres
    return PictureDepth(network, lambda output: output, Reading(network_size, z_depth, imagenet_normalised, cubic), device)


def _load_two_parts(network: nn.Module, device: str, weights: Path) -> PictureDepth:
    """The authors' encoder file tells at which size they trained, and so does the header of `recon train`'s."""
    if (weights / TRAINED).exists():
        weights = weights / TRAINED
    if weights.is_dir():
        load_parts(network, weights)
        numbers = read_numbers(weights / "encoder.pth")
    else:
        load_weights(network, weights, may_miss=COUNTERS)
        numbers = read_numbers(weights)
    return PictureDepth(network, lambda outputs: outputs[0], Reading(_trained_size(numbers), depth_of_sigmoid), device)


def _trained_size(numbers: Mapping[str, int | float]) -> Callable[[int, int], tuple[int, int]]:
    trained_px = (int(numbers.get("width", ENDOSCOPIC_PX[0])), int(numbers.get("height", ENDOSCOPIC_PX[1])))
    return lambda width, height: trained_px
