"""What stereo recordings share: left views stacked over right ones in one video, and OpenCV's calibration of a lens.

The left view is the one that is reconstructed. OpenCV knows up to 14 terms of distortion, this project's lens the first four;
where a calibration uses more, the four that come closest over the image are taken and how close is said.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from recon.data.truth import read_lines
from recon.data.video import Recording, open_recording
from recon.types import Camera, Frame, ReconError, SecondView

MAX_DISTORTION_TERMS = 14
"""OpenCV's order: k1 k2 p1 p2 k3 k4 k5 k6 s1 s2 s3 s4 tau_x tau_y."""

_GRID = 41
"""Points a side at which a lens with more terms is matched."""


def open_left_view(path: Path) -> Recording:
    """The upper half of every frame. Raises ReconError as `open_recording`, and for a video with an odd number of rows."""
    both = open_recording(path)
    if both.height_px % 2:
        raise ReconError(f"{path} has {both.height_px} rows; expected the left view over the right one, both of the same height")
    return replace(both, frames=_UpperHalves(both.frames, both.height_px // 2), height_px=both.height_px // 2)


def right_views(recording: Recording, camera: Camera, T_right_left_mm: Float[np.ndarray, "4 4"]) -> Callable[[int], SecondView | None]:
    """The lower halves of a recording of `open_left_view`, which were seen at the same times."""

    def view(index: int) -> SecondView:
        return SecondView(camera, T_right_left_mm, partial(_lower, recording.frames.stacked[index].load, recording.height_px))

    return view


def right_from_left(R: Float[np.ndarray, "3 3"], T_mm: Float[np.ndarray, " 3"]) -> Float[np.ndarray, "4 4"]:
    """OpenCV's x_right = R x_left + T as one matrix."""
    T = np.eye(4)
    T[:3, :3], T[:3, 3] = R, T_mm
    return T


def opencv_camera(
    source: Path, K: Float[np.ndarray, "3 3"], distortion: Float[np.ndarray, " terms"], width_px: int, height_px: int
) -> tuple[Camera, tuple[str, ...]]:
    """The lens of a camera matrix and OpenCV's distortion terms for images of this size, and what to say about it.

    Raises ReconError naming `source` for numbers that cannot be a lens of such images.
    """
    fx, fy, cx, cy = (float(value) for value in (K[0, 0], K[1, 1], K[0, 2], K[1, 2]))
    if not (np.all(np.isfinite(K)) and np.all(np.isfinite(distortion)) and len(distortion) <= MAX_DISTORTION_TERMS):
        raise ReconError(f"{source}: expected a finite camera matrix and at most {MAX_DISTORTION_TERMS} distortion terms")
    if min(fx, fy) <= 0 or not (0 < cx < width_px and 0 < cy < height_px):
        raise ReconError(f"{source}: fx {fx:g} fy {fy:g} cx {cx:g} cy {cy:g} do not fit images of {width_px}x{height_px}")
    terms = np.zeros(MAX_DISTORTION_TERMS)
    terms[: len(distortion)] = distortion
    notes: tuple[str, ...] = ()
    if terms[4:].any():
        terms, error_px = _nearest_four_terms(K, terms, width_px, height_px)
        notes = (f"{source.name} uses more distortion terms than k1 k2 p1 p2; these four follow them to {error_px:.2g} px",)
    return Camera("OPENCV", width_px, height_px, (fx, fy, cx, cy, *(float(term) for term in terms[:4]))), notes


def read_opencv_matrices(path: Path) -> dict[str, Float[np.ndarray, "rows cols"]]:
    """The top-level matrices of an OpenCV FileStorage YAML file; everything else in it is passed over."""
    layout = r"^(\w+):\s*!!opencv-matrix\s+rows:\s*(\d+)\s+cols:\s*(\d+)\s+dt:\s*\S+\s+data:\s*\[([^\]]*)\]"
    matrices = {}
    for name, rows, cols, data in re.findall(layout, "\n".join(read_lines(path)), re.MULTILINE):
        try:
            matrices[name] = np.array([float(word) for word in data.split(",")]).reshape(int(rows), int(cols))
        except ValueError as error:
            raise ReconError(f"{path}: matrix {name} is not {rows}x{cols} numbers") from error
    return matrices


class _UpperHalves(Sequence[Frame]):
    def __init__(self, stacked: Sequence[Frame], rows: int) -> None:
        self.stacked = stacked
        self._rows = rows

    def __len__(self) -> int:
        return len(self.stacked)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        frame = self.stacked[index]
        return replace(frame, load=partial(_upper, frame.load, self._rows))


def _upper(load: Callable[[], np.ndarray], rows: int) -> UInt8[np.ndarray, "h w 3"]:
    return np.ascontiguousarray(load()[:rows])


def _lower(load: Callable[[], np.ndarray], rows: int) -> UInt8[np.ndarray, "h w 3"]:
    return np.ascontiguousarray(load()[rows:])


def _nearest_four_terms(K: np.ndarray, terms: np.ndarray, width_px: int, height_px: int) -> tuple[np.ndarray, float]:
    """k1 k2 p1 p2 by least squares over the image, and the largest distance left, pixels. The model is linear in them."""
    u, v = np.meshgrid(np.linspace(0, width_px - 1, _GRID), np.linspace(0, height_px - 1, _GRID))
    x, y = (u.ravel() - K[0, 2]) / K[0, 0], (v.ravel() - K[1, 2]) / K[1, 1]
    rays = np.stack([x, y, np.ones_like(x)], axis=1)
    distorted = cv2.projectPoints(rays, np.zeros(3), np.zeros(3), np.eye(3), terms)[0].reshape(-1, 2)
    rr = x * x + y * y
    along_x = np.stack([x * rr, x * rr * rr, 2 * x * y, rr + 2 * x * x], axis=1)
    along_y = np.stack([y * rr, y * rr * rr, rr + 2 * y * y, 2 * x * y], axis=1)
    A, b = np.concatenate([along_x, along_y]), np.concatenate([distorted[:, 0] - x, distorted[:, 1] - y])
    fitted = np.linalg.lstsq(A, b, rcond=None)[0]
    left_over = (A @ fitted - b).reshape(2, -1) * np.array([[K[0, 0]], [K[1, 1]]])
    return fitted, float(np.hypot(*left_over).max())
