"""Masks as 1-bit PNG: white is valid."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import Bool
from PIL import Image

from recon.image.channels import brightest
from recon.io.atomic import atomic_path
from recon.io.images import read_image


def write_mask(path: str | Path, mask: Bool[np.ndarray, "h w"]) -> None:
    with atomic_path(path) as part:
        Image.fromarray(np.ascontiguousarray(mask)).save(part, format="PNG")


def read_mask(path: str | Path) -> Bool[np.ndarray, "h w"]:
    """True where the picture is brighter than half in any channel. Raises FrameError when it cannot be decoded."""
    return brightest(read_image(path)) > 127
