"""Pictures through Pillow: whatever a file holds becomes RGB uint8, and what was changed is said."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8, UInt16
from PIL import ExifTags, Image, ImageOps

from recon.io.atomic import atomic_path
from recon.types import FrameError, ReconError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp")
MAX_PIXELS = 64_000_000
"""Larger images are refused before they are decoded: no endoscope makes them, decompression bombs do."""

# Pillow warns of oddities it survives; sizes are checked here, before decoding. Said once: filters belong to all threads.
warnings.filterwarnings("ignore", module=r"PIL\.")

_FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "WEBP")
_CONVERSIONS = {
    "1": "black and white expanded to RGB",
    "L": "grey expanded to RGB",
    "LA": "grey expanded to RGB, transparency dropped",
    "La": "grey expanded to RGB, transparency dropped",
    "I;16": "16-bit grey (0 to 65535) scaled to 8-bit RGB",
    "I;16B": "16-bit grey (0 to 65535) scaled to 8-bit RGB",
    "I": "16-bit grey (0 to 65535) scaled to 8-bit RGB",
    "P": "palette expanded to RGB",
    "PA": "palette expanded to RGB, transparency dropped",
    "RGBA": "transparency dropped",
    "RGBa": "transparency dropped",
    "CMYK": "CMYK converted to RGB",
    "YCbCr": "YCbCr converted to RGB",
    "LAB": "Lab converted to RGB",
}


@dataclass(frozen=True)
class ImageInfo:
    """What the header of an image file says."""

    width_px: int
    height_px: int
    conversion: str | None
    """What `read_image` changes on the way to RGB uint8; None for a file that already is."""


def read_info(path: str | Path) -> ImageInfo:
    """The size as displayed (EXIF orientation applied) without decoding. Raises as `read_image`."""
    with _opened(path) as image:
        width, height = image.size
        if _orientation(image) in (5, 6, 7, 8):
            width, height = height, width
        return ImageInfo(width, height, _CONVERSIONS.get(image.mode))


def read_image(path: str | Path) -> UInt8[np.ndarray, "h w 3"]:
    """Decode to RGB, upright. Raises FrameError when the file cannot be decoded, ReconError when it is absurdly large."""
    with _opened(path) as image:
        upright = ImageOps.exif_transpose(image) if _orientation(image) != 1 else image
        return np.array(_to_rgb(upright), dtype=np.uint8)


def read_integers(path: str | Path) -> UInt8[np.ndarray, "h w"] | UInt16[np.ndarray, "h w"]:
    """One channel of raw integers as the file has them (8 or 16 bit, PNG or TIFF): data sets store depth so. Raises as `read_image`."""
    with _opened(path) as image:
        if image.mode not in ("L", "I;16", "I;16B", "I"):
            raise FrameError(f"{path} should hold one channel of integers, found pixels of kind {image.mode}")
        values = np.array(image)
    if values.min() < 0 or values.max() > 65535:
        raise FrameError(f"{path} should hold 16-bit integers, found values from {values.min()} to {values.max()}")
    return values.astype(np.uint8 if image.mode == "L" else np.uint16)


def write_jpeg(path: str | Path, image: UInt8[np.ndarray, "h w 3"]) -> None:
    """Quality 95 without chroma subsampling: vessels live in the colour."""
    with atomic_path(path) as part:
        Image.fromarray(np.ascontiguousarray(image)).save(part, format="JPEG", quality=95, subsampling=0)


def write_png(path: str | Path, image: UInt8[np.ndarray, "h w 3"] | UInt8[np.ndarray, "h w"] | UInt16[np.ndarray, "h w"]) -> None:
    with atomic_path(path) as part:
        Image.fromarray(np.ascontiguousarray(image)).save(part, format="PNG")


@contextmanager
def _opened(path: str | Path) -> Iterator[Image.Image]:
    """Open for reading and turn every way in which Pillow fails into one error that names the file."""
    try:
        with Image.open(path, formats=_FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ReconError(
                    f"{path} claims {image.width}x{image.height} pixels; images above {MAX_PIXELS // 10**6} megapixels are refused"
                )
            yield image
    except ReconError:
        raise
    except Image.DecompressionBombError as error:
        raise ReconError(f"{path} claims too many pixels; images above {MAX_PIXELS // 10**6} megapixels are refused") from error
    except FileNotFoundError as error:
        raise FrameError(f"{path} does not exist") from error
    except Exception as error:  # Pillow's decoders raise a dozen unrelated types on damaged files.
        raise FrameError(f"{path} cannot be decoded: {_reason(error)}") from error


def _orientation(image: Image.Image) -> int:
    """EXIF orientation as far as the header tells: asking a PNG without it would decode the picture."""
    if image.format == "PNG" and "exif" not in image.info:
        return 1
    return image.getexif().get(ExifTags.Base.Orientation, 1)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I"):
        values = np.clip(np.array(image), 0, 65535)
        return Image.fromarray(np.round(values / 257.0).astype(np.uint8)).convert("RGB")
    if image.mode not in _CONVERSIONS:
        raise ValueError(f"pixels of kind {image.mode} are not a picture")
    return image.convert("RGB")


def _reason(error: Exception) -> str:
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    return "not an image of a known format (png, jpg, tiff, bmp, webp)" if text.startswith("cannot identify") else text
