"""A light depth network that knows the lens: colour and ray directions in, distance along the ray out.

Wide lenses fail when a network sees pixels alone (the same picture means other depths behind another lens), so every
pixel carries the direction of its ray, and the output is a log-distance that the calibration turns into z-depth.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor, nn
from torch.nn import functional

from recon.geometry.cameras import crop, ray_grid, resize
from recon.models import DepthEstimate, ModelInfo
from recon.models.weights import PACKAGED, load_weights
from recon.types import Camera

WIDTHS = (20, 40, 64, 104, 160)
STRIDE = 32
INPUT_AREA_PX = 192 * 192
"""Of the largest pictures that it was trained on: real ones hold more detail than renders, and on still larger ones it knows less of
what lies apart."""
WEIGHTS = PACKAGED / "student.safetensors"
WINDOW_RASTER = 48
"""Steps across a picture in which the borders of a window are placed."""
INPUTS = 7
"""RGB, the unit ray's three components, the mask."""


def conv(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    """Convolution, batch norm, ReLU."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )


class Residual(nn.Module):
    """Two convolutions around a short cut (He et al. 2016)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = conv(width, width)
        self.second = nn.Sequential(nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        return functional.relu(x + self.second(self.first(x)))


class GlobalMixing(nn.Module):
    """Self-attention over all cells of the coarsest grid, so that exposure and layout are known everywhere."""

    def __init__(self, width: int, num_heads: int = 4) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, num_heads, batch_first=True)
        self.mlp = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        batch, width, rows, columns = x.shape
        tokens = x.flatten(2).transpose(1, 2)
        normed = self.norm(tokens)
        tokens = tokens + self.attention(normed, normed, normed, need_weights=False)[0]
        tokens = tokens + self.mlp(tokens)
        return tokens.transpose(1, 2).reshape(batch, width, rows, columns)


class Student(nn.Module):
    """A U-Net with attention at its bottom; about two million parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList()
        inputs = INPUTS
        for level, width in enumerate(WIDTHS):
            depth = 1 if level == 0 else 2
            self.stages.append(nn.Sequential(conv(inputs, width, stride=2), *[Residual(width) for _ in range(depth)]))
            inputs = width
        self.mixing = nn.Sequential(GlobalMixing(WIDTHS[-1]), GlobalMixing(WIDTHS[-1]))
        self.decoders = nn.ModuleList(
            [nn.Sequential(conv(deep + skip, skip), Residual(skip)) for deep, skip in zip(WIDTHS[:0:-1], WIDTHS[-2::-1], strict=True)]
        )
        self.head = nn.Sequential(conv(WIDTHS[0] + INPUTS, 12), nn.Conv2d(12, 2, 3, padding=1))

    def forward(self, x: Float[Tensor, "b 7 h w"]) -> tuple[Float[Tensor, "b h w"], Float[Tensor, "b h w"]]:
        """Log-distance up to one constant per image, and the log of its Laplace scale; h and w multiples of 32."""
        skips, features = [], x
        for stage in self.stages:
            features = stage(features)
            skips.append(features)
        features = self.mixing(features)
        for decoder, skip in zip(self.decoders, skips[-2::-1], strict=True):
            features = decoder(torch.cat([functional.interpolate(features, scale_factor=2.0, mode="bilinear"), skip], dim=1))
        # Half precision would say log-distance in steps of up to a percent: terraces on every surface.
        with torch.autocast(x.device.type, enabled=False):
            features = functional.interpolate(features.float(), scale_factor=2.0, mode="bilinear")
            output = self.head(torch.cat([features, x], dim=1))
        return output[:, 0], output[:, 1].clamp(-5.0, 2.0)


def student_input(
    image: Float[Tensor, "b 3 h w"], rays: Float[Tensor, "b 3 h w"], mask: Float[Tensor, "b 1 h w"]
) -> Float[Tensor, "b 7 h w"]:
    """Stack what the network sees: colour (0 to 1) centred, black outside the mask, unit rays, mask."""
    return torch.cat([(image - 0.4) * 3.0 * mask, rays, mask], dim=1)


def input_size(width_px: int, height_px: int, area_px: int = INPUT_AREA_PX) -> tuple[int, int]:
    """Width and height near a picture's aspect, multiples of 32, of about that area."""
    scale = np.sqrt(area_px / (width_px * height_px))
    return max(round(width_px * scale / STRIDE), 1) * STRIDE, max(round(height_px * scale / STRIDE), 1) * STRIDE


class StudentDepth:
    """The student with weights, as a depth model."""

    def __init__(self, weights: Path, device: str) -> None:
        self.device = device
        self.network = Student()
        load_weights(self.network, weights)
        self.network.eval().to(device, memory_format=torch.channels_last)
        self.in_bfloat16 = arithmetic(device) == "bfloat16"

    @torch.inference_mode()
    def infer(self, image: UInt8[np.ndarray, "H W 3"], camera: Camera, mask: Bool[np.ndarray, "H W"]) -> DepthEstimate:
        """Estimate z-depth: the network's distance times the cosine of each ray. Only the window of the mask is looked at."""
        window = seen_window(mask)
        size = input_size(window.width, window.height)
        layers = network_layers(window.cut(image), window.lens(camera), window.cut(mask), size)
        seen = student_input(*(torch.from_numpy(layer).permute(2, 0, 1)[None].to(self.device) for layer in layers))
        with torch.autocast(torch.device(self.device).type, torch.bfloat16, enabled=self.in_bfloat16):
            maps = torch.stack(self.network(seen.contiguous(memory_format=torch.channels_last)), dim=1)
        # Sides in multiples of the stride have not quite the picture's aspect; and one size serves for every window.
        columns = input_size(mask.shape[1], mask.shape[0])[0]
        rows = round(columns * mask.shape[0] / mask.shape[1])
        log_distance, log_scale = window.put_back(maps, mask.shape, (rows, columns))[0].cpu().numpy()
        inside = _shrunk(mask, (columns, rows))
        distance = np.exp(log_distance - np.median(log_distance[inside])) if inside.any() else np.ones_like(log_distance)
        # A Laplace density of scale b has the standard deviation sqrt(2) b.
        sigma = np.sqrt(2.0) * np.exp(log_scale)
        cosine = lens_rays(resize(camera, columns, rows))[..., 2]
        inside &= cosine > 0
        return DepthEstimate(np.where(inside, distance * cosine, 0).astype(np.float32), np.where(inside, sigma, 0).astype(np.float32))


class Window(NamedTuple):
    """A part of a picture, in its pixels."""

    left: int
    top: int
    width: int
    height: int

    def cut(self, picture: np.ndarray) -> np.ndarray:
        """The part of an array whose first axes are rows and columns."""
        return picture[self.top : self.top + self.height, self.left : self.left + self.width]

    def lens(self, camera: Camera) -> Camera:
        """The lens of the part."""
        return crop(camera, *self)

    def put_back(self, maps: Float[Tensor, "b c h w"], whole: tuple[int, int], size: tuple[int, int]) -> Float[Tensor, "b c rows columns"]:
        """Maps of the part on a grid of `size` for the picture of `whole` (rows, columns); around the part its border goes on."""
        across, down = whole[1] / self.width, whole[0] / self.height
        shift = (across * (1 - 2 * self.left / whole[1]) - 1, down * (1 - 2 * self.top / whole[0]) - 1)
        places = torch.tensor([[[across, 0, shift[0]], [0, down, shift[1]]]], device=maps.device, dtype=maps.dtype)
        grid = functional.affine_grid(places.expand(len(maps), -1, -1), [len(maps), 1, *size], align_corners=False)
        return functional.grid_sample(maps, grid, padding_mode="border", align_corners=False)


def seen_window(mask: Bool[np.ndarray, "H W"]) -> Window:
    """The part of a picture that its mask leaves: a round view in a wide black frame is seen larger, by the same lens.

    Its borders lie on a raster, so that a mask that moves a little moves them seldom. It is at least half as wide and half as high as
    the picture: a choice, for the network never met a lens much longer than that makes most of them.
    """
    left, right = _stretch(np.flatnonzero(mask.any(axis=0)), mask.shape[1])
    top, bottom = _stretch(np.flatnonzero(mask.any(axis=1)), mask.shape[0])
    return Window(left, top, right - left, bottom - top)


def _stretch(used: np.ndarray, num: int) -> tuple[int, int]:
    """First and last (exclusive) of `num` places, such that all used ones and half of all lie between them."""
    if not len(used):
        return 0, num
    step, half = max(num // WINDOW_RASTER, 1), (num + 1) // 2
    first, last = int(used[0]), int(used[-1]) + 1
    first = max(min(first, (first + last - half) // 2), 0)
    last = min(max(last, first + half), num)
    first = min(first, last - half)
    return first // step * step, min(-(-last // step) * step, num)


def network_layers(
    image: UInt8[np.ndarray, "H W 3"], camera: Camera, mask: Bool[np.ndarray, "H W"], size: tuple[int, int]
) -> tuple[Float[np.ndarray, "h w 3"], Float[np.ndarray, "h w 3"], Float[np.ndarray, "h w 1"]]:
    """Colour, rays and mask on the network's grid of `size` (width, height)."""
    colour = cv2.resize(image, size, interpolation=cv2.INTER_AREA).astype(np.float32) / 255
    return colour, lens_rays(resize(camera, *size)), _shrunk(mask, size)[..., None].astype(np.float32)


def _shrunk(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return cv2.resize(mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST) > 0


@lru_cache(maxsize=16)
def lens_rays(camera: Camera) -> Float[np.ndarray, "h w 3"]:
    """Unit rays of a lens, kept: most frames of a recording ask for the same ones."""
    return ray_grid(camera).astype(np.float32)


def arithmetic(device: str) -> str:
    """bfloat16 where the processor multiplies such numbers: faster there, and slowly emulated elsewhere."""
    return "bfloat16" if device == "cpu" and torch.cpu.get_capabilities().get("avx512_bf16", False) else "float32"


def info() -> ModelInfo:
    """The student's line in the registry."""
    num = sum(p.numel() for p in Student().parameters())
    return ModelInfo(
        name="student",
        parameters=num,
        trainable=num,
        licence="Apache-2.0",
        output="distance",
        trained_on=("phantom",),
        load=lambda device, weights: StudentDepth(weights, device),
        packaged=WEIGHTS,
        arithmetic=arithmetic,
        earlier=(
            "df582ef31878ce161a426ff198c54724c5a5622fc29dfaa1d766d50314ec3aa5",
            "040d8f48c2c201c190a26ded4c441c9c10d90721bbb0fe5ffd993b21d3e28fd7",
        ),
        published="`recon train configs/train/student.toml` writes such a file",
    )
