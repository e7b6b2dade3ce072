"""Calibration files that hold a pinhole matrix as bare numbers: 3x3, 3x4, transposed as MATLAB prints it, or four named numbers."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from jaxtyping import Float

from recon.data.truth import read_lines
from recon.types import Camera, ReconError

_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_NAMES = ("fx", "fy", "cx", "cy")
_OFF_CENTRE = 0.2
"""Rectified stereo pairs move the principal point, but a fifth of the image smells of another resolution."""


def read_pinhole(path: Path, width_px: int, height_px: int) -> tuple[Camera, tuple[str, ...]]:
    """The camera of a matrix file, taken as it stands for images of this size, and remarks on what looks odd in it.

    Raises ReconError naming the file when it is no such matrix or its principal point lies outside the image.
    """
    K = _matrix(path)
    fx, fy, cx, cy = lens = (K[0, 0], K[1, 1], K[0, 2], K[1, 2])
    if not np.all(np.isfinite(lens)) or min(fx, fy) <= 0 or not (0 < cx < width_px and 0 < cy < height_px):
        raise ReconError(f"{path}: fx fy cx cy = {[float(v) for v in lens]} do not fit images of {width_px}x{height_px}")
    notes = []
    if abs(K[0, 1]) > 0.5:
        notes.append(f"{path.name} has a skew of {K[0, 1]:.1f} px, which is left out")
    if abs(cx / width_px - 0.5) > _OFF_CENTRE or abs(cy / height_px - 0.5) > _OFF_CENTRE:
        notes.append(
            f"{path.name} puts the principal point at ({cx:.0f}, {cy:.0f}), far from the centre of images of "
            f"{width_px}x{height_px}: it may have been made for another size"
        )
    return Camera("PINHOLE", width_px, height_px, tuple(float(v) for v in lens)), tuple(notes)


def _matrix(path: Path) -> Float[np.ndarray, "3 3"]:
    text = "\n".join(read_lines(path))
    named = {name.lower(): float(value) for name, value in re.findall(rf"\b([fc][xy])\s*[:=]\s*({_NUMBER})", text, re.IGNORECASE)}
    if all(name in named for name in _NAMES):
        return np.array([[named["fx"], 0, named["cx"]], [0, named["fy"], named["cy"]], [0, 0, 1]])
    try:
        numbers = np.array([float(word) for word in re.split(r"[\s,;]+", text) if word])
    except ValueError:
        numbers = np.array([])
    if numbers.size not in (9, 12):
        raise ReconError(f"{path}: expected the 9 or 12 numbers of a 3x3 or 3x4 camera matrix, found {text.strip()[:60]!r}")
    K = numbers.reshape(3, -1)[:, :3]
    if numbers.size == 9 and not K[:2, 2].any():
        K = K.T
    if abs(K[1, 0]) > 1e-6 or np.abs(K[2] - (0, 0, 1)).max() > 1e-6:
        raise ReconError(f"{path}: expected a camera matrix [fx s cx; 0 fy cy; 0 0 1], found {K.tolist()}")
    return K
