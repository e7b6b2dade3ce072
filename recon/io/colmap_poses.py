"""Camera poses of a COLMAP model, text or binary, as anyone's program wrote it.

Read without COLMAP, whose readers trust their files: only `images.txt` or `images.bin` is opened, and every count is checked
against the file's size. COLMAP stores world-to-camera poses; they are inverted here.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import numpy as np

from recon.geometry.se3 import inverse, matrix_from_quat_wxyz
from recon.io.trajectory import MAX_VALUE
from recon.types import ReconError, Trajectory, Unit

PLACES = ("", "sparse/0", "sparse", "0")
"""Where in a workspace the model lies, in the order of trying."""
MAX_NAME_BYTES = 4096
MAX_LINE_CHARS = 100_000_000
_IMAGE = struct.Struct("<I7dI")
"""image id, quaternion wxyz, translation, camera id."""
_COUNT = struct.Struct("<Q")
_BYTES_PER_POINT = 24

_Posed = tuple[str, Sequence[float]]
"""Name; quaternion wxyz and translation of the world-to-camera pose."""


def find_model(path: str | Path) -> Path | None:
    """The `images.bin` or `images.txt` of a model folder, of a workspace around it, or the file itself."""
    path = Path(path)
    if path.name in ("images.bin", "images.txt") and path.is_file():
        return path
    files = (path / place / name for place in PLACES for name in ("images.bin", "images.txt"))
    return next((file for file in files if file.is_file()), None)


def read_colmap_poses(path: str | Path, unit: Unit = "unitless", frame_names: Sequence[str] = ()) -> Trajectory:
    """Poses in order of frames; times are NaN.

    An image belongs to the frame of that name (with or without folder and suffix) when all of them have one among `frame_names`,
    else to the frame whose index is the last number in its name. Raises ReconError for a damaged model and for images that
    cannot be told apart.
    """
    file = find_model(path)
    if file is None:
        raise ReconError(f"{path} holds no COLMAP model; expected images.bin or images.txt in it, or in sparse/0")
    try:
        with file.open("rb") as opened:
            posed = list(_read_binary(opened, file) if file.suffix == ".bin" else _read_text(opened, file))
    except OSError as error:
        raise ReconError(f"{file} cannot be read: {error.strerror}") from error
    if not posed:
        raise ReconError(f"{file} holds no posed image")
    frame_idx = _frame_indices(file, [name for name, _ in posed], frame_names)
    values = np.array([numbers for _, numbers in posed], dtype=np.float64)
    T_camera_world = np.tile(np.eye(4), (len(values), 1, 1))
    T_camera_world[:, :3, :3] = matrix_from_quat_wxyz(values[:, :4])
    T_camera_world[:, :3, 3] = values[:, 4:]
    order = np.argsort(frame_idx)
    return Trajectory(frame_idx[order], np.full(len(values), np.nan), inverse(T_camera_world)[order], unit)


def _read_binary(opened: BinaryIO, file: Path) -> Iterator[_Posed]:
    size = file.stat().st_size
    (count,) = _COUNT.unpack(_exactly(opened, _COUNT.size, file))
    for _ in range(count):
        _, *numbers, _ = _IMAGE.unpack(_exactly(opened, _IMAGE.size, file))
        start = opened.tell()
        name, end, _ = opened.read(MAX_NAME_BYTES).partition(b"\0")
        if not end:
            raise ReconError(f"{file} is damaged: an image's name has no end")
        opened.seek(start + len(name) + 1)
        (num_points,) = _COUNT.unpack(_exactly(opened, _COUNT.size, file))
        if num_points * _BYTES_PER_POINT > size - opened.tell():
            raise ReconError(f"{file} is cut short or damaged: it claims {num_points} points for {name[:80]!r}")
        opened.seek(num_points * _BYTES_PER_POINT, 1)
        yield _checked(file, name.decode("utf-8", "replace"), numbers)


def _exactly(opened: BinaryIO, num_bytes: int, file: Path) -> bytes:
    data = opened.read(num_bytes)
    if len(data) < num_bytes:
        raise ReconError(f"{file} is cut short or damaged")
    return data


def _read_text(opened: BinaryIO, file: Path) -> Iterator[_Posed]:
    """Every image takes two lines; the second, its points, may be empty and is passed over."""
    lines = enumerate(iter(lambda: opened.readline(MAX_LINE_CHARS), b""), 1)
    for number, raw in lines:
        line = raw.decode("utf-8", "replace").strip()
        if not line or line.startswith("#"):
            continue
        words = line.split(maxsplit=9)
        try:
            numbers = [float(word) for word in words[1:8]]
        except ValueError:
            numbers = []
        if len(words) != 10 or len(numbers) != 7:
            raise ReconError(f"{file} line {number}: expected `IMAGE_ID QW QX QY QZ TX TY TZ CAMERA_ID NAME`, found {line[:80]!r}")
        yield _checked(file, words[9], numbers)
        next(lines, None)


def _checked(file: Path, name: str, numbers: Sequence[float]) -> _Posed:
    if not all(abs(value) < MAX_VALUE for value in numbers) or not 0.5 < np.linalg.norm(numbers[:4]) < 2:
        raise ReconError(f"{file}: the pose of {name[:80]!r} is no finite rotation and translation")
    return name, numbers


def _frame_indices(file: Path, names: list[str], frame_names: Sequence[str]) -> np.ndarray:
    index_of = {PurePosixPath(name).stem: index for index, name in enumerate(frame_names)}
    stems = [PurePosixPath(name).stem for name in names]
    if len(index_of) == len(frame_names) and all(stem in index_of for stem in stems):
        indices = [index_of[stem] for stem in stems]
    else:
        indices = [_last_number(file, stem) for stem in stems]
    found, counts = np.unique(np.array(indices, dtype=np.int64), return_counts=True)
    if counts.max() > 1:
        twice = [name for name, index in zip(names, indices, strict=True) if index == found[np.argmax(counts)]]
        raise ReconError(f"{file}: {twice[0]!r} and {twice[1]!r} are the same frame; a model of one camera is expected")
    return np.array(indices, dtype=np.int64)


def _last_number(file: Path, stem: str) -> int:
    numbers = re.findall(r"\d{1,9}", stem, re.ASCII)
    if not numbers:
        raise ReconError(f"{file}: image {stem[:80]!r} has no number in its name, so its frame is not known")
    return int(numbers[-1])
