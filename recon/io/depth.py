"""Depth maps as float32 TIFF: z-depth, 0 where unknown."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import tifffile
from jaxtyping import Float

from recon.io.atomic import atomic_path
from recon.io.images import MAX_PIXELS
from recon.types import ReconError


def write_depth(path: str | Path, depth: Float[np.ndarray, "h w"]) -> None:
    """Raises ReconError for values that are not depths (negative, NaN, infinite): unknown is 0."""
    _check_values(path, depth)
    with atomic_path(path) as part:
        tifffile.imwrite(part, depth.astype(np.float32), compression="zlib", metadata=None, software=False)


def read_depth(path: str | Path) -> Float[np.ndarray, "h w"]:
    """float32 z-depth, 0 unknown. Raises ReconError naming the file when it is damaged or holds anything else."""
    try:
        with tifffile.TiffFile(path) as tiff:
            page = tiff.pages[0]
            if len(tiff.pages) != 1 or len(page.shape) != 2 or page.dtype != np.float32:
                raise ReconError(f"{path} should be one float32 image of one channel, found {page.dtype} of shape {page.shape}")
            if page.size > MAX_PIXELS:
                raise ReconError(f"{path} claims {page.shape[1]}x{page.shape[0]} pixels; above {MAX_PIXELS // 10**6} megapixels is refused")
            depth = page.asarray()
    except ReconError:
        raise
    except FileNotFoundError as error:
        raise ReconError(f"{path} does not exist") from error
    except Exception as error:  # tifffile and zlib raise many unrelated types on damaged files.
        raise ReconError(f"{path} cannot be decoded as a depth TIFF: {type(error).__name__}: {error}") from error
    _check_values(path, depth)
    return depth


def _check_values(path: str | Path, depth: np.ndarray) -> None:
    if not np.all(np.isfinite(depth)) or depth.min(initial=0) < 0:
        raise ReconError(f"{path}: depth must be finite and not negative (0 = unknown)")
