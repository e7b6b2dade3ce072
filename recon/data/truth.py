"""What data sets publish as truth, brought to the frames of a recording."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float

from recon.types import Frame, ReconError, Trajectory, Unit


def read_lines(path: Path) -> list[str]:
    """Raises ReconError naming the file when it cannot be read as text."""
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ReconError(f"{path} cannot be read as text: {error}") from error


def read_number_rows(path: Path, columns: int, separator: str | None = None) -> Float[np.ndarray, "n columns"]:
    """A text file of `columns` finite numbers a line; empty lines are passed over. Raises ReconError naming the line."""
    rows = []
    for number, line in enumerate(read_lines(path), 1):
        if not line.strip():
            continue
        try:
            row = [float(word) for word in line.split(separator)]
        except ValueError:
            row = []
        if len(row) != columns or not np.all(np.isfinite(row)):
            raise ReconError(f"{path} line {number}: expected {columns} finite numbers, found {line.strip()[:60]!r}")
        rows.append(row)
    if not rows:
        raise ReconError(f"{path} holds no numbers")
    return np.array(rows)


def check_rigid(path: Path, T: Float[np.ndarray, "n 4 4"]) -> None:
    """Raise ReconError naming the first pose that is not a rotation and a translation of sane size."""
    sane = (np.abs(T[:, :3, :3]).max(axis=(1, 2)) < 1.01) & (np.abs(T[:, :3, 3]).max(axis=1) < 1e9)
    R = np.where(sane[:, None, None], T[:, :3, :3], 0)
    error = np.abs(R @ R.transpose(0, 2, 1) - np.eye(3)).max(axis=(1, 2))
    bad = np.flatnonzero(~sane | (error > 1e-3) | (np.linalg.det(R) < 0) | (np.abs(T[:, 3] - (0, 0, 0, 1)).max(axis=1) > 1e-6))
    if len(bad):
        raise ReconError(f"{path}: pose {bad[0]} is not a rigid motion")


def frame_trajectory(
    frames: Sequence[Frame], numbers: Sequence[int], pose_of: Mapping[int, Float[np.ndarray, "4 4"]], unit: Unit
) -> Trajectory | None:
    """Poses of the frames whose number in the data set has one; None when no frame does."""
    posed = [(frame, pose_of[number]) for frame, number in zip(frames, numbers, strict=True) if number in pose_of]
    if not posed:
        return None
    return Trajectory(
        np.array([frame.index for frame, _ in posed]),
        np.array([frame.timestamp_s for frame, _ in posed]),
        np.stack([T for _, T in posed]),
        unit,
    )
