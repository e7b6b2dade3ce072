"""Hamlyn laparoscopy as rectified by Recasens: the training and evaluation pack, and the pack for tracking.

The first holds stereo pairs (`image01`, `image02`) with depth by the stereo matcher Libelas (`depth01`), often one folder deeper
than its name says (`rectified08/rectified08`); the left image is the frame. The second holds `color` and the depth of the
authors' network. Depth is 16-bit millimetres, and the authors score what lies between 1 and 300 mm. The data set gives no pose,
and its authors state no error of their depth, so there is no noise floor.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from recon.data.depth_files import depth_files, depth_from_levels
from recon.data.folder import frame_number, image_files, still_sequence
from recon.data.pinhole_file import read_pinhole
from recon.io.images import read_integers
from recon.types import Camera, DepthMap, FrameSequence, ReconError

MIN_DEPTH_MM, MAX_DEPTH_MM = 1, 300
"""What the authors score (README of Endo-Depth-and-Motion)."""
STEP_MM = 1.0
"""Of the published depth; how wrong Libelas is nobody says."""
_FIRST_CROPPED = 14
"""From this sequence on the images are 720x288, and EndoDAC and those who follow it score a part of their columns."""


@dataclass(frozen=True)
class _Pack:
    root: Path
    images: str
    depths: str
    highest_mm: int
    truth: str


def matches(path: Path) -> bool:
    return _pack(path) is not None


def open_hamlyn(path: Path) -> FrameSequence:
    """One `rectifiedNN` folder of either pack. Raises ReconError naming what is missing or damaged."""
    pack = _pack(path)
    if pack is None:
        raise ReconError(f"{path} is no Hamlyn sequence: expected image01 with depth01 or image02, or color, depth and intrinsics.txt")
    files = image_files(pack.root / pack.images, r".*\d.*")
    stills = still_sequence(pack.root / pack.images, files)
    size_px = (stills.width_px, stills.height_px)
    depths = depth_files(pack.root / pack.depths, [frame_number(file.name) for file in files])
    name = path.resolve().name
    camera, notes = _camera(pack.root, name, size_px)
    if depths:
        notes += (pack.truth,)
    number = re.search(r"\d+$", name)
    if pack.images == "image01" and number and int(number[0]) >= _FIRST_CROPPED:
        notes += ("published scores (EndoDAC) of sequences 14 to 27 are of columns 180 to 589 only",)
    return FrameSequence(
        name,
        "hamlyn",
        stills.frames,
        camera=camera,
        unit="mm",
        noise_floor_mm=STEP_MM if depths else None,
        depth_gt=partial(_depth, depths, size_px, pack.highest_mm) if depths else None,
        notes=stills.notes + notes,
    )


def _pack(path: Path) -> _Pack | None:
    for root in (path, path / path.resolve().name):
        if (root / "image01").is_dir() and any((root / name).is_dir() for name in ("depth01", "image02")):
            truth = "the depth that comes with the data is a stereo matcher's (Libelas), whole millimetres with holes, not a measurement"
            return _Pack(root, "image01", "depth01", MAX_DEPTH_MM, truth)
        if all((root / name).is_dir() for name in ("color", "depth")) and (root / "intrinsics.txt").is_file():
            truth = "the depth that comes with the data is a network's estimate, not a measurement; it saturates at 300 mm"
            return _Pack(root, "color", "depth", MAX_DEPTH_MM - 1, truth)
    return None


def _camera(root: Path, name: str, size_px: tuple[int, int]) -> tuple[Camera | None, tuple[str, ...]]:
    """The sequence's own file, or that of the pack's folder `calibration`, which is sorted by bare number."""
    packs = [root.parent / "calibration", root.parent.parent / "calibration"]
    number = name.removeprefix("rectified")
    for file in (root / "intrinsics.txt", *(pack / folder / "intrinsics.txt" for pack in packs for folder in (number, name))):
        if file.is_file():
            return read_pinhole(file, *size_px)
    return None, ()


def _depth(file_of: Mapping[int, Path], size_px: tuple[int, int], highest_mm: int, index: int) -> DepthMap | None:
    if index not in file_of:
        return None
    return depth_from_levels(file_of[index], read_integers(file_of[index]), size_px, 1.0, MIN_DEPTH_MM, highest_mm)
