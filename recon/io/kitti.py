"""Trajectories as KITTI text: the upper three rows of each pose in one line, without times.

Which frames the lines belong to stands, where it is known, in a file `<name>_frames.txt` beside, one frame index a line.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import Float

from recon.io.atomic import write_text
from recon.io.trajectory import pose_lines, read_rows
from recon.types import ReconError, Trajectory, Unit

ROTATION_TOLERANCE = 1e-3


def write_kitti(path: str | Path, T_world_camera: Float[np.ndarray, "n 4 4"]) -> None:
    """Camera-to-world, OpenCV axes, row by row."""
    write_text(path, "".join(" ".join(f"{v:.9g}" for v in T[:3].reshape(-1)) + "\n" for T in T_world_camera))


def read_kitti(path: str | Path, unit: Unit = "unitless") -> Trajectory:
    """Poses in order of the lines; `frame_indices` from the file beside, else the position; times are NaN.

    Raises ReconError naming the line for anything but 12 finite, sane numbers that hold a rotation.
    """
    path = Path(path)
    numbers, rows = read_rows(path, 12, "r11 r12 r13 tx r21 r22 r23 ty r31 r32 r33 tz")
    T = np.tile(np.eye(4), (len(rows), 1, 1))
    T[:, :3] = rows.reshape(-1, 3, 4)
    R = np.clip(T[:, :3, :3], -2, 2)
    error = np.abs(R @ np.swapaxes(R, 1, 2) - np.eye(3)).max(axis=(1, 2))
    bad = np.flatnonzero((error > ROTATION_TOLERANCE) | (np.linalg.det(R) < 0))
    if len(bad):
        raise ReconError(f"{path} line {numbers[bad[0]]}: the 3x3 part of the pose is no rotation")
    beside = path.with_name(f"{path.stem}_frames.txt")
    frame_idx = _read_frame_indices(beside, len(rows)) if beside.is_file() else np.arange(len(rows))
    return Trajectory(frame_idx, np.full(len(rows), np.nan), T, unit)


def _read_frame_indices(path: Path, num_poses: int) -> np.ndarray:
    words = [(number, line.strip()) for number, line in pose_lines(path)]
    for number, word in words:
        if not (word.isascii() and word.isdigit() and len(word) < 10):
            raise ReconError(f"{path} line {number}: expected one frame index, found {word[:80]!r}")
    indices = np.array([int(word) for _, word in words], dtype=np.int64)
    if len(indices) != num_poses or len(np.unique(indices)) != num_poses:
        raise ReconError(f"{path} should name {num_poses} different frames, one for each pose; found {len(np.unique(indices))}")
    return indices
