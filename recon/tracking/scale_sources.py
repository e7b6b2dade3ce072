"""Millimetres per world unit, measured: from another device's poses of the same camera (robot kinematics, an electromagnetic tracker)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from recon.eval.association import on_frames_of
from recon.geometry.alignment import umeyama
from recon.types import ReconError, Scale, Trajectory

MIN_POSES = 10
MIN_MOVED_MM = 2.0
"""Spread of the device's positions below which they say nothing about scale: trackers and joints err by about as much."""
NUM_BLOCKS = 10
"""Parts of the path that are left out in turn to see how sure the factor is."""
NUM_WINDOWS = 5


class WindowScale(NamedTuple):
    """The factor of one part of the path."""

    index: int
    """Frame in its middle."""
    factor_mm: float


@dataclass(frozen=True)
class MeasuredScale:
    """A scale and how it changes along the path."""

    scale: Scale
    windows: tuple[WindowScale, ...]
    residual_mm: float
    """Root mean square distance between the two paths after the fit."""


def scale_from_poses(ours: Trajectory, device_mm: Trajectory) -> MeasuredScale:
    """Least-squares similarity between the two paths' positions (Umeyama 1991); one sigma by the block jackknife.

    Blocks rather than frames are left out because errors of neighbouring frames go together. `device_mm` needs the recording's
    clock, or frame numbers for times. Raises ReconError when too few poses meet or the device hardly moved.
    """
    matched, _ = on_frames_of(device_mm, ours)
    _, rows, device_rows = np.intersect1d(ours.frame_indices, matched.frame_indices, return_indices=True)
    if len(rows) < MIN_POSES:
        raise ReconError(
            f"scale from poses needs {MIN_POSES} frames that both paths have, found {len(rows)} of {len(ours)} posed frames", 1
        )
    a, b = ours.T_world_camera[rows, :3, 3], matched.T_world_camera[device_rows, :3, 3]
    moved = float(np.linalg.norm(b - b.mean(axis=0), axis=1).max())
    if moved < MIN_MOVED_MM:
        raise ReconError(f"scale from poses needs a device that moves by {MIN_MOVED_MM:g} mm or more, found {moved:.2g} mm", 1)
    fit = umeyama(a, b)
    if fit.scale <= 0:
        raise ReconError("the device's path has nothing in common with the camera's: check its clock, and that it holds millimetres", 1)
    left_out = [_scale_without(a, b, block) for block in np.array_split(np.arange(len(a)), NUM_BLOCKS)]
    sigma = float(np.sqrt((NUM_BLOCKS - 1) / NUM_BLOCKS * np.sum((np.array(left_out) - np.mean(left_out)) ** 2)))
    frames = ours.frame_indices[rows]
    windows = tuple(
        WindowScale(int(frames[part[len(part) // 2]]), factor)
        for part in np.array_split(np.arange(len(a)), NUM_WINDOWS)
        if (factor := _spread_ratio(a[part], b[part])) is not None
    )
    residual = float(np.sqrt(np.mean(np.sum((fit.map(a) - b) ** 2, axis=1))))
    return MeasuredScale(Scale("poses", fit.scale, sigma), windows, residual)


def _scale_without(a: np.ndarray, b: np.ndarray, block: np.ndarray) -> float:
    kept = np.setdiff1d(np.arange(len(a)), block)
    return umeyama(a[kept], b[kept]).scale


def _spread_ratio(a: Float[np.ndarray, "n 3"], b: Float[np.ndarray, "n 3"]) -> float | None:
    """Ratio of the root mean square distances from the centre; None where one path stands still."""
    ours, theirs = (float(np.sqrt(np.mean(np.sum((p - p.mean(axis=0)) ** 2, axis=1)))) for p in (a, b))
    return theirs / ours if min(ours, theirs) > 1e-9 else None
