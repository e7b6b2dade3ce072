"""Wavefront OBJ, strictly and fast: triangles with their texture indices, nothing else.

Meshes of data sets are read here rather than by a general library because the texture index of each face carries meaning
(C3VD marks what the camera saw by it), and libraries merge or drop it.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from recon.types import ReconError

MAX_BYTES = 2_000_000_000


def read_obj(path: str | Path) -> tuple[Float[np.ndarray, "v 3"], Int[np.ndarray, "f 3"], Int[np.ndarray, "f 3"] | None]:
    """Vertices, faces and the texture index of every face corner (both from 0; None where the file gives none).

    Raises ReconError for anything but finite vertices and triangles whose indices exist and are written alike.
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
    if vertices.shape[1] not in (3, 6) or not np.all(np.isfinite(vertices)):
        raise ReconError(f"{path}: vertices should be 3 finite numbers (or 6, with a colour)")
    faces, texture_idx = _corners(path, face_lines)
    if faces.min() < 0 or faces.max() >= len(vertices):
        raise ReconError(f"{path}: a face names vertex {faces.max() + 1} or one below 1; the file has {len(vertices)}")
    return vertices[:, :3], faces, texture_idx


def _corners(path: Path, lines: list[bytes]) -> tuple[np.ndarray, np.ndarray | None]:
    """Vertex and texture indices from 0 of corners written `v`, `v/t`, `v//n` or `v/t/n`."""
    slashes = lines[0].split()[0].count(b"/") if lines[0].split() else 0
    if any(line.count(b"/") != 3 * slashes for line in lines):
        raise ReconError(f"{path}: faces should all be triangles with corners written alike")
    has_texture = slashes > 0 and b"//" not in lines[0]
    table = _numbers(path, "faces", [line.replace(b"//", b"/0/").replace(b"/", b" ") for line in lines], np.int64)
    if table.shape[1] != 3 * (slashes + 1):
        raise ReconError(f"{path}: faces should all be triangles, found {table.shape[1] // (slashes + 1)} corners")
    corners = table.reshape(len(lines), 3, slashes + 1) - 1
    return corners[:, :, 0], corners[:, :, 1] if has_texture else None


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
