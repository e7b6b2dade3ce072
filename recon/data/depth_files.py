"""Depth that data sets store as integer pictures, one file a frame, matched by the number in its name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import UInt

from recon.data.folder import frame_number, image_files
from recon.types import DepthMap, FrameError


def depth_files(folder: Path, numbers: Sequence[int], pattern: str = r".*\d.*") -> dict[int, Path]:
    """From frame index to the depth file of the same number; `numbers` are those of the frames, in their order."""
    if not folder.is_dir():
        return {}
    by_number = {frame_number(file.name): file for file in image_files(folder, pattern)}
    return {index: by_number[number] for index, number in enumerate(numbers) if number in by_number}


def depth_from_levels(
    path: Path,
    levels: UInt[np.ndarray, "h w"],
    size_px: tuple[int, int],
    unit_per_level: float,
    lowest: int,
    highest: int,
    scale: Literal["metric", "scale_invariant"] = "metric",
) -> DepthMap:
    """Levels from `lowest` to `highest`, both included, are depth; all others are unknown.

    Raises FrameError when the picture is not `size_px` (width, height), the size of its frame.
    """
    if levels.shape[::-1] != size_px:
        found, expected = ("x".join(map(str, size)) for size in (levels.shape[::-1], size_px))
        raise FrameError(f"{path} is {found} but its frame is {expected}: truth must lie on the frame's own pixels")
    valid = (levels >= lowest) & (levels <= highest)
    return DepthMap(np.where(valid, levels * unit_per_level, 0).astype(np.float32), valid, scale)
