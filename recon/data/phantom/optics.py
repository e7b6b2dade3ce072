"""What lens, sensor and video link do to a picture after its exposure: glare, blur, banding, compression."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import UInt8


@dataclass(frozen=True)
class Artefacts:
    """How much of each; all 0 (and quality 100) leaves the picture as it is."""

    glare: float = 0.0
    """Light that saturated parts spread around them."""
    defocus_px: float = 0.0
    """Sigma of the blur."""
    motion_px: tuple[float, float] = (0.0, 0.0)
    """Travel (x, y) of the picture during the exposure."""
    banding: float = 0.0
    """Amplitude of stripes along the rows, 0 to 1."""
    banding_rows: float = 12.0
    """Their period."""
    row_noise: float = 0.0
    """Sigma of a random offset of every row, 0 to 1."""
    jpeg_quality: int = 100


def random_artefacts(rng: np.random.Generator) -> Artefacts:
    """Each artefact in some of the pictures, seldom all of them."""

    def sometimes(share: float, value: float) -> float:
        return float(value) if rng.random() < share else 0.0

    angle, travel = rng.uniform(0, np.pi), sometimes(0.25, rng.uniform(1, 7))
    return Artefacts(
        glare=sometimes(0.35, rng.uniform(0.1, 0.9)),
        defocus_px=sometimes(0.35, rng.uniform(0.4, 1.8)),
        motion_px=(float(travel * np.cos(angle)), float(travel * np.sin(angle))),
        banding=sometimes(0.12, rng.uniform(0.005, 0.04)),
        banding_rows=float(rng.uniform(3, 40)),
        row_noise=sometimes(0.12, rng.uniform(0.002, 0.015)),
        jpeg_quality=int(rng.integers(25, 95)) if rng.random() < 0.5 else 100,
    )


def spoil(image: UInt8[np.ndarray, "h w 3"], artefacts: Artefacts, rng: np.random.Generator) -> UInt8[np.ndarray, "h w 3"]:
    """Apply the artefacts in the order in which light, sensor and coder add them."""
    value = image.astype(np.float32) / 255
    if artefacts.glare > 0:
        saturated = np.maximum(value - 0.85, 0) / 0.15
        value = value + artefacts.glare * cv2.GaussianBlur(saturated, (0, 0), image.shape[1] / 40)
    if artefacts.defocus_px > 0:
        value = cv2.GaussianBlur(value, (0, 0), artefacts.defocus_px)
    if artefacts.motion_px != (0.0, 0.0):
        value = cv2.filter2D(value, -1, motion_kernel(*artefacts.motion_px), borderType=cv2.BORDER_REPLICATE)
    rows = np.arange(len(image), dtype=np.float32)
    if artefacts.banding > 0:
        value = value + (artefacts.banding * np.sin(2 * np.pi * (rows / artefacts.banding_rows + rng.random())))[:, None, None]
    if artefacts.row_noise > 0:
        value = value + (artefacts.row_noise * rng.standard_normal(len(image)))[:, None, None]
    spoiled = (np.clip(value, 0, 1) * 255 + 0.5).astype(np.uint8)
    if artefacts.jpeg_quality < 100:
        # OpenCV codes BGR; the order matters, since the coder keeps brightness better than colour.
        coded = cv2.imencode(".jpg", spoiled[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, artefacts.jpeg_quality])[1]
        spoiled = np.ascontiguousarray(cv2.imdecode(coded, cv2.IMREAD_COLOR)[..., ::-1])
    return spoiled


def motion_kernel(across_px: float, down_px: float) -> np.ndarray:
    """A straight line of unit sum, centred, through which a picture is smeared."""
    size = 2 * int(np.ceil(max(abs(across_px), abs(down_px)) / 2)) + 1
    kernel = np.zeros((size, size), np.float32)
    share = np.linspace(-0.5, 0.5, 8 * size)
    column = np.rint(size // 2 + share * across_px).astype(int)
    row = np.rint(size // 2 + share * down_px).astype(int)
    np.add.at(kernel, (row, column), 1.0)
    return kernel / kernel.sum()
