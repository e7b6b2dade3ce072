"""Wavefront OBJ, strictly and fast: polygons as triangles with their texture indices, nothing else.

OBJ is read here rather than by a general library because the texture index of each face carries meaning (C3VD marks what
the camera saw by it), because libraries split the surface wherever the texture has a seam, and because an index of 0 must
not silently become the last vertex.
"""

from __future__ import annotations

import warnings
from collections import defaultdict
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from recon.types import ReconError

MAX_BYTES = 2_000_000_000


def read_obj(path: str | Path) -> tuple[Float[np.ndarray, "v 3"], Int[np.ndarray, "f 3"], Int[np.ndarray, "f 3"] | None]:
    """Vertices, faces and the texture index of every face corner (both from 0; None where not every face gives one).

    Polygons become fans around their first corner; negative indices count back from where they stand. Raises ReconError for
    anything but finite vertices and faces of at least three corners whose vertices exist.
    """
    path = Path(path)
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ReconError(f"{path} is larger than {MAX_BYTES // 10**9} GB")
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise ReconError(f"{path} cannot be read: {error.strerror}") from error
    vertex_lines = [line[2:] for line in lines if line.startswith(b"v ")]
    face_lines = [line[2:] for line in lines if line.startswith(b"f ")]
    if not vertex_lines or not face_lines:
        raise ReconError(f"{path} is not an OBJ mesh: found {len(vertex_lines)} vertices and {len(face_lines)} faces")
    vertices = _numbers(path, "vertices", vertex_lines, np.float64)
    if vertices.shape[1] not in (3, 4, 6) or not np.all(np.isfinite(vertices)):
        raise ReconError(f"{path}: vertices should be 3 finite numbers (4 with a weight, 6 with a colour)")
    faces, texture_idx = _corners(path, face_lines, _counts_before(lines) if any(b"-" in line for line in face_lines) else None)
    if faces.min() < 0 or faces.max() >= len(vertices):
        raise ReconError(f"{path}: a face names vertex {faces.max() + 1} or one below 1; the file has {len(vertices)}")
    return vertices[:, :3], faces, texture_idx


def _corners(path: Path, lines: list[bytes], before: np.ndarray | None) -> tuple[np.ndarray, np.ndarray | None]:
    """Vertex and texture indices from 0 of triangles, in the order of the lines.

    Corners are written `v`, `v/t`, `v//n` or `v/t/n`, alike within a line.
    """
    alike: dict[tuple[int, int, bool], list[int]] = defaultdict(list)
    for number, line in enumerate(lines):
        alike[len(line.split()), line.count(b"/"), b"//" in line].append(number)
    of_lines, corners, has_texture = [], [], True
    for (num_corners, slashes, is_double), numbers in alike.items():
        if num_corners < 3 or slashes % num_corners:
            raise ReconError(f"{path}: a face should have at least 3 corners written alike, found {_quoted(lines[numbers[0]])}")
        per_corner = slashes // num_corners + 1
        if {word.count(b"/") for k in numbers for word in lines[k].split()} != {per_corner - 1}:
            raise ReconError(f"{path}: the corners of a face should be written alike, found {_quoted(lines[numbers[0]])}")
        table = _numbers(path, "faces", [lines[k].replace(b"//", b"/0/").replace(b"/", b" ") for k in numbers], np.int64)
        has_texture &= per_corner > 1 and not is_double
        named = np.zeros((len(numbers), num_corners, 2), np.int64)
        named[:, :, : min(per_corner, 2)] = table.reshape(len(numbers), num_corners, per_corner)[:, :, :2]
        if before is not None:
            named += np.where(named < 0, before[numbers][:, None, :] + 1, 0)
        fan = np.stack([named[:, [0, k, k + 1]] for k in range(1, num_corners - 1)], axis=1)
        corners.append(fan.reshape(-1, 3, 2) - 1)
        of_lines.append(np.repeat(numbers, num_corners - 2))
    order = np.argsort(np.concatenate(of_lines), kind="stable")
    both = np.concatenate(corners)[order]
    return np.ascontiguousarray(both[..., 0]), np.ascontiguousarray(both[..., 1]) if has_texture else None


def _counts_before(lines: list[bytes]) -> np.ndarray:
    """How many vertices and texture points stand before each face."""
    num_vertices = num_texture = 0
    counts = []
    for line in lines:
        if line.startswith(b"v "):
            num_vertices += 1
        elif line.startswith(b"vt "):
            num_texture += 1
        elif line.startswith(b"f "):
            counts.append((num_vertices, num_texture))
    return np.array(counts, dtype=np.int64)


def _quoted(line: bytes) -> str:
    return repr(line.strip().decode("ascii", "replace")[:60])


def _numbers(path: Path, what: str, lines: list[bytes], dtype: type) -> np.ndarray:
    counts = {len(line.split()) for line in lines}
    if len(counts) != 1 or counts == {0}:
        raise ReconError(f"{path}: {what} should all have the same number of values, found {sorted(counts)[:4]}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            return np.array(b" ".join(lines).split()).astype(dtype).reshape(len(lines), -1)
    except (ValueError, OverflowError, Warning) as error:
        raise ReconError(f"{path}: {what} hold something that is not a number: {error}") from error
