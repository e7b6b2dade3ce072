"""Instrument masks that a user or a data set supplies, matched to frames by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Bool

from recon.data.folder import image_files
from recon.image.channels import brightest
from recon.io.images import read_image
from recon.types import Frame, FrameSequence, ReconError

MaskOf = Callable[[int], Bool[np.ndarray, "h w"] | None]


def instrument_masks(folder: Path, frames: Sequence[Frame]) -> MaskOf:
    """Masks of a folder, by the frame's name (suffix apart), its six-digit index, or, when the counts agree, by order.

    White pixels are instruments in the files and False in what is returned; whether a user meant it the other way round is
    for the masks stage to judge. Raises ReconError when the folder is missing, empty or fits no frame.
    """
    if not folder.is_dir():
        raise ReconError(f"{folder} is not a folder of instrument masks")
    return masks_from_files(files_of_frames(folder, frames))


def files_of_frames(folder: Path, frames: Sequence[Frame]) -> dict[int, Path]:
    """Images of a folder by frame index: named like the frame, like its six-digit index, or, when the counts agree, by order.

    Raises ReconError when none fits.
    """
    files = image_files(folder)
    by_stem = {file.stem: file for file in files}
    matched = {f.index: by_stem[key] for f in frames for key in (Path(f.name).stem, f"{f.index:06d}") if key in by_stem}
    if not matched and len(files) == len(frames):
        matched = dict(enumerate(files))
    if not matched:
        raise ReconError(f"{folder}: none of its {len(files)} images is named like a frame (such as {frames[0].name}) or like 000000.png")
    return matched


def masks_from_files(file_of: Mapping[int, Path]) -> MaskOf:
    """From frame index to a mask that is False where the file is white; None for frames without a file."""

    def load(index: int) -> Bool[np.ndarray, "h w"] | None:
        return ~_is_white(file_of[index]) if index in file_of else None

    return load


def _is_white(file: Path) -> Bool[np.ndarray, "h w"]:
    """Label masks hold 0 and 1 as often as 0 and 255, so white is what exceeds half of the file's own maximum."""
    brightness = brightest(read_image(file))
    return brightness > 0.5 * brightness.max()


def white_masks(sequence: FrameSequence, size_px: tuple[int, int]) -> MaskOf:
    """From frame index to True where the supplied mask is white, at the source's size (width, height); None where there is none.

    Raises ReconError, when asked for it, for a mask of another size.
    """
    width, height = size_px

    def load(index: int) -> Bool[np.ndarray, "h w"] | None:
        tissue = sequence.instrument_mask(index) if sequence.instrument_mask else None
        if tissue is not None and tissue.shape != (height, width):
            raise ReconError(
                f"the instrument mask of frame {sequence.frames[index].name} is {tissue.shape[1]}x{tissue.shape[0]}, "
                f"but the images of {sequence.name} are {width}x{height}; masks must have the images' size"
            )
        return None if tissue is None else ~tissue

    return load


def instruments_of(white_of: MaskOf, white_is_tissue: bool) -> MaskOf:
    """From frame index to True on instruments. A data set's own masks reach us with instruments white."""

    def load(index: int) -> Bool[np.ndarray, "h w"] | None:
        white = white_of(index)
        return ~white if white_is_tissue and white is not None else white

    return load


def scaled_mask(mask: Bool[np.ndarray, "h w"], shape: tuple[int, ...]) -> Bool[np.ndarray, "hs ws"]:
    """True where at least half of the source pixels are; `shape` is (height, width)."""
    return cv2.resize(mask.astype(np.float32), (shape[1], shape[0]), interpolation=cv2.INTER_AREA) >= 0.5
