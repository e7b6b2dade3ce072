"""A folder of still images as a recording: natural order, one size, a stated frame rate.

The other data sets that store still images build on `image_files` and `still_sequence`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from recon.io.images import IMAGE_SUFFIXES, ImageInfo, read_image, read_info
from recon.io.names import last_number, natural_key
from recon.types import Frame, FrameError, FrameSequence, ReconError

DEFAULT_FRAME_RATE_HZ = 25.0
"""Images carry no times; recordings of endoscopes usually run at this rate."""


@dataclass(frozen=True)
class Stills:
    """Images of one size, decoded when asked for."""

    frames: tuple[Frame, ...]
    width_px: int
    height_px: int
    notes: tuple[str, ...]


def open_folder(path: Path) -> FrameSequence:
    """Every image of the folder (not of folders inside it). Raises ReconError for none, for one, and for mixed sizes."""
    if not path.is_dir():
        raise ReconError(f"{path} is not a folder")
    files = image_files(path)
    if not files:
        raise ReconError(f"{path} holds no image ({', '.join(s[1:] for s in IMAGE_SUFFIXES)})")
    stills = still_sequence(path, files)
    return FrameSequence(path.resolve().name, "folder", stills.frames, notes=stills.notes)


def image_files(folder: Path, pattern: str = r".*") -> list[Path]:
    """Images whose name matches `pattern` entirely, in natural order. Hidden files are left out."""
    names = (p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith("."))
    return sorted((p for p in names if re.fullmatch(pattern, p.name) and p.is_file()), key=lambda p: (natural_key(p.name), p.name))


def still_sequence(source: Path, files: Sequence[Path], names: Sequence[str] | None = None) -> Stills:
    """Read every header, decode nothing. A file without a readable header becomes a frame that raises when it is decoded.

    Raises ReconError for fewer than 2 images, for mixed sizes (naming the first odd one) and when no header can be read.
    """
    if len(files) < 2:
        raise ReconError(f"{source} holds {len(files)} image{'s' if len(files) != 1 else ''}; a reconstruction needs at least 2 frames")
    infos = [_info_or_none(file) for file in files]
    known = [(file, info) for file, info in zip(files, infos, strict=True) if info is not None]
    if not known:
        raise ReconError(f"{source}: none of its {len(files)} images can be decoded; the first is {files[0].name}")
    first_file, first = known[0]
    for file, info in known:
        if (info.width_px, info.height_px) != (first.width_px, first.height_px):
            raise ReconError(
                f"{file} is {info.width_px}x{info.height_px} but {first_file.name} is {first.width_px}x{first.height_px}; "
                "all images of a recording must have one size"
            )
    frames = tuple(
        Frame(index, names[index] if names else file.name, index / DEFAULT_FRAME_RATE_HZ, partial(read_image, file))
        for index, file in enumerate(files)
    )
    return Stills(frames, first.width_px, first.height_px, _conversion_notes(known))


def frame_number(name: str) -> int:
    """The last run of digits of a file name without its suffix. Raises ReconError when there is none."""
    number = last_number(name)
    if number is None:
        raise ReconError(f"{name} has no frame number in its name")
    return number


def _info_or_none(file: Path) -> ImageInfo | None:
    try:
        return read_info(file)
    except FrameError:
        return None


def _conversion_notes(known: Sequence[tuple[Path, ImageInfo]]) -> tuple[str, ...]:
    first_of: dict[str, tuple[str, int]] = {}
    for file, info in known:
        if info.conversion:
            name, count = first_of.get(info.conversion, (file.name, 0))
            first_of[info.conversion] = (name, count + 1)
    return tuple(f"{what} in {count} of {len(known)} images, the first is {name}" for what, (name, count) in first_of.items())
