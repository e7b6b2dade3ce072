"""EndoSynth: rendered single views of robotic instruments over tissue, each with depth and labels in one `.npz`.

`depth` is float16 metres, converted to float32 before it is scaled so that nothing overflows; `seg` is 0 on tissue and 1 to 6 on
instruments. The views do not follow one another, and neither lens nor pose is given. The authors state no error of their
rendered depth; the format's own is half a step of float16, 0.03 mm at 100 mm.
"""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, UInt8

from recon.data.folder import DEFAULT_FRAME_RATE_HZ
from recon.io.images import MAX_PIXELS
from recon.io.names import natural_key
from recon.types import DepthMap, Frame, FrameError, FrameSequence, ReconError

MM_PER_METRE = 1000.0
_NOTES = (
    "frames are unrelated rendered views: no trajectory can be expected",
    "depth is stored as float16 metres, in steps of 0.06 mm at 100 mm; whether along the optical axis or the ray is not stated, and "
    "it is taken as along the axis",
)


def matches(path: Path) -> bool:
    files = _samples(path)
    return bool(files) and {"rgb", "depth"} <= _keys(files[0])


def open_endosynth(path: Path) -> FrameSequence:
    """The root with its folder `samples`, or that folder. Raises ReconError when there are no samples or none can be read."""
    files = _samples(path)
    if len(files) < 2:
        raise ReconError(f"{path} holds {len(files)} samples of EndoSynth (samples/NNNNNN.npz); at least 2 are needed")
    shape = _first_shape(path, files)
    frames = tuple(Frame(index, file.name, index / DEFAULT_FRAME_RATE_HZ, partial(_image, file, shape)) for index, file in enumerate(files))
    return FrameSequence(
        path.resolve().name,
        "endosynth",
        frames,
        is_unrelated=True,
        unit="mm",
        depth_gt=partial(_depth, files, shape),
        instrument_mask=partial(_tissue, files, shape),
        notes=_NOTES,
    )


def _samples(path: Path) -> list[Path]:
    folder = path / "samples" if (path / "samples").is_dir() else path
    if not folder.is_dir():
        return []
    return sorted((file for file in folder.glob("*.npz") if file.stem.isdecimal()), key=lambda file: natural_key(file.name))


def _keys(file: Path) -> set[str]:
    try:
        with zipfile.ZipFile(file) as archive:
            return {name.removesuffix(".npy") for name in archive.namelist()}
    except (OSError, zipfile.BadZipFile):
        return set()


def _first_shape(path: Path, files: Sequence[Path]) -> tuple[int, int]:
    for file in files:
        try:
            shape, _ = _declared(file, "rgb")
        except FrameError:
            continue
        if len(shape) == 3:
            return shape[0], shape[1]
    raise ReconError(f"{path}: none of its {len(files)} samples holds a readable picture `rgb`; the first is {files[0].name}")


def _image(file: Path, shape: tuple[int, int]) -> UInt8[np.ndarray, "h w 3"]:
    return _array(file, "rgb", (*shape, 3), np.uint8)


def _depth(files: Sequence[Path], shape: tuple[int, int], index: int) -> DepthMap:
    metres = _array(files[index], "depth", shape, np.floating).astype(np.float32)
    valid = np.isfinite(metres) & (metres > 0)
    return DepthMap(np.where(valid, metres, 0) * np.float32(MM_PER_METRE), valid, "metric")


def _tissue(files: Sequence[Path], shape: tuple[int, int], index: int) -> Bool[np.ndarray, "h w"]:
    return _array(files[index], "seg", shape, np.uint8) == 0


def _array(file: Path, key: str, shape: tuple[int, ...], kind: type) -> np.ndarray:
    """One array of a sample; what its header declares is checked before memory is taken for it. Raises FrameError."""
    found, dtype = _declared(file, key)
    if found != shape or not np.issubdtype(dtype, kind):
        raise FrameError(f"{file}: {key} should be {kind.__name__} of shape {shape}, found {dtype} of shape {found}")
    return _from_member(file, key, partial(np.lib.format.read_array, allow_pickle=False))


def _declared(file: Path, key: str) -> tuple[tuple[int, ...], np.dtype]:
    shape, dtype = _from_member(file, key, _header)
    if np.prod(shape[:2], dtype=float) > MAX_PIXELS:
        raise FrameError(f"{file}: {key} claims shape {shape}; above {MAX_PIXELS // 10**6} megapixels is refused")
    return shape, dtype


def _header(stream: Any) -> tuple[tuple[int, ...], np.dtype]:
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(stream)
    return shape, dtype


def _from_member(file: Path, key: str, read: Any) -> Any:
    try:
        with zipfile.ZipFile(file) as archive, archive.open(f"{key}.npy") as stream:
            return read(stream)
    except FileNotFoundError as error:
        raise FrameError(f"{file} does not exist") from error
    except KeyError as error:
        raise FrameError(f"{file} has no array {key!r}") from error
    except Exception as error:  # zipfile, zlib and numpy raise a dozen unrelated types on damaged files.
        raise FrameError(f"{file}: {key} cannot be read: {type(error).__name__}: {str(error)[:80]}") from error
