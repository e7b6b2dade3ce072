"""Depth maps that anybody's program wrote: PNG, TIFF, NPY, NPZ, one map a file or a stack of them.

What is no depth (NaN, infinite, negative) is passed on as it is: whoever scores it counts it. Sizes that a header claims are
checked before anything is allocated, and nothing that a file holds is executed.
"""

from __future__ import annotations

import math
import shutil
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import tifffile
from jaxtyping import Float, Shaped
from PIL import Image

from recon.io.images import MAX_PIXELS, read_integers
from recon.types import ReconError

ARRAY_SUFFIXES = (".npy", ".npz")
DEPTH_SUFFIXES = (*ARRAY_SUFFIXES, ".tiff", ".tif", ".png")
MAX_UNPACKED_BYTES = 1_000_000_000
"""An archive that unpacks to more than this must not be packed tighter than `MAX_PACKING`: bombs are, depth is not."""
MAX_PACKING = 100

_NPY_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
_LZW, _FLOAT_PREDICTOR = 5, 3
"""What of TIFF tifffile leaves to a package of its own; Pillow brings both."""
_MAX_REASON = 200
"""Characters: zipfile quotes damaged headers at any length."""


def read_predicted_depth(path: str | Path, factor: float = 1.0) -> Float[np.ndarray, "h w"]:
    """One map as float32, file values times `factor`. 0 is unknown, and so are NaN, infinite and negative values, which stay.

    PNG and TIFF of 8- or 16-bit integers, TIFF of floats, NPY, NPZ (its only array, or the one named `depth`); axes of
    length 1 are dropped. Raises ReconError naming the file when it is damaged, absurdly large or holds no single map.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix in ARRAY_SUFFIXES:
        maps = open_stack(path)
        if len(maps) != 1:
            raise ReconError(f"{path} holds {len(maps)} maps; expected one map a file (or the stack given by itself, not in a folder)")
        return depth_of(maps[0], factor)
    if suffix == ".png":
        return depth_of(read_integers(path), factor)
    if suffix in DEPTH_SUFFIXES:
        return depth_of(_read_tiff(path), factor)
    raise ReconError(f"{path} is no depth format that is read ({', '.join(s[1:] for s in DEPTH_SUFFIXES)})")


def open_stack(path: str | Path) -> Shaped[np.ndarray, "n h w"]:
    """Maps (n, h, w) of an NPY or NPZ file in its own number type, mapped from disk rather than loaded.

    An archive is unpacked into a temporary file that vanishes with the array. Raises as `read_predicted_depth`.
    """
    path = Path(path)
    try:
        if path.suffix.lower() == ".npz":
            array = _unpacked(path)
        else:
            with path.open("rb") as file:
                array = _mapped(path, file)
    except ReconError:
        raise
    except FileNotFoundError as error:
        raise ReconError(f"{path} does not exist") from error
    except Exception as error:  # numpy and zipfile raise many unrelated types on damaged files.
        raise ReconError(f"{path} cannot be decoded as an array: {_first_line(error)}") from error
    return _as_maps(path, array)


def depth_of(values: Shaped[np.ndarray, "h w"], factor: float) -> Float[np.ndarray, "h w"]:
    """`factor` times the values, as float32; what is too large for that is infinite."""
    with np.errstate(over="ignore", invalid="ignore"):
        return np.asarray(values).astype(np.float32) * np.float32(factor)


def _unpacked(path: Path) -> np.ndarray:
    with zipfile.ZipFile(path) as archive, tempfile.TemporaryFile() as unpacked:
        members = {info.filename.removesuffix(".npy"): info for info in archive.infolist() if info.filename.endswith(".npy")}
        if "depth" not in members and len(members) != 1:
            raise ReconError(
                f"{path} holds the arrays {', '.join(members)[:_MAX_REASON] or 'none'}; expected one array, or one of them named depth"
            )
        member = members.get("depth") or next(iter(members.values()))
        if member.file_size > MAX_UNPACKED_BYTES and member.file_size > MAX_PACKING * member.compress_size:
            raise ReconError(f"{path} claims to unpack {member.compress_size} bytes to {member.file_size}: refused as a decompression bomb")
        with archive.open(member) as packed:
            shutil.copyfileobj(packed, unpacked, 1 << 20)
        unpacked.seek(0)
        return _mapped(path, unpacked)


def _mapped(path: Path, file: BinaryIO) -> np.ndarray:
    """The array of an NPY file, which must be as long as its header claims; nothing is loaded."""
    shape, is_fortran, dtype = _NPY_HEADERS[np.lib.format.read_magic(file)](file)
    if dtype.kind not in "fiu" or dtype.itemsize > 8:
        raise ReconError(f"{path} holds values of type {dtype}; expected depths as integers or floats")
    if min(shape, default=0) < 1:
        raise ReconError(f"{path} holds an array of shape {shape}: no map")
    start = file.tell()
    if start + math.prod(shape) * dtype.itemsize > file.seek(0, 2):
        raise ReconError(f"{path} claims an array of shape {shape}, more than the file holds: it is cut short or damaged")
    return np.memmap(file, dtype, "r", start, shape, "F" if is_fortran else "C")


def _as_maps(path: Path, array: np.ndarray) -> np.ndarray:
    """(n, h, w) of what programs write: (h, w), (h, w, 1), (n, h, w), (n, 1, h, w) and (n, h, w, 1)."""
    maps = array
    if maps.ndim in (3, 4) and maps.shape[-1] == 1:
        maps = maps[..., 0]
    elif maps.ndim == 4 and maps.shape[1] == 1:
        maps = maps[:, 0]
    maps = maps[None] if maps.ndim == 2 else maps
    if maps.ndim != 3:
        raise ReconError(f"{path} holds an array of shape {array.shape}; expected (h, w) or (n, h, w)")
    _check_size(path, maps.shape[1:])
    return maps


def _read_tiff(path: Path) -> np.ndarray:
    try:
        with tifffile.TiffFile(path) as tiff:
            page = tiff.pages[0]
            shape = tuple(length for length in page.shape if length != 1)
            if len(tiff.pages) != 1 or len(shape) != 2 or page.dtype is None or page.dtype.kind not in "fiu":
                raise ReconError(f"{path} should be one image of one channel, found {len(tiff.pages)} of {page.dtype}, shape {page.shape}")
            _check_size(path, shape)
            if page.compression != _LZW and page.predictor != _FLOAT_PREDICTOR:
                return page.asarray().reshape(shape)
        with Image.open(path, formats=["TIFF"]) as image:
            return np.array(image).reshape(shape)
    except ReconError:
        raise
    except FileNotFoundError as error:
        raise ReconError(f"{path} does not exist") from error
    except Exception as error:  # tifffile, zlib and Pillow raise many unrelated types on damaged files.
        raise ReconError(f"{path} cannot be decoded as a TIFF of depth: {_first_line(error)}") from error


def _check_size(path: Path, shape: Sequence[int]) -> None:
    if min(shape) < 1:
        raise ReconError(f"{path} holds an image of shape {tuple(shape)}: no map")
    if math.prod(shape) > MAX_PIXELS:
        raise ReconError(f"{path} claims {shape[1]}x{shape[0]} pixels; above {MAX_PIXELS // 10**6} megapixels is refused")


def _first_line(error: Exception) -> str:
    text = f"{type(error).__name__}: {error}".splitlines()[0]
    return text if len(text) <= _MAX_REASON else f"{text[:_MAX_REASON]}..."
