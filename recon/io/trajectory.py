"""Trajectories as TUM text: `timestamp_s tx ty tz qx qy qz qw`, camera-to-world, OpenCV axes, one pose a line."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from recon.geometry.se3 import matrix_from_quat_wxyz, quat_wxyz_from_matrix
from recon.io.atomic import write_text
from recon.types import ReconError, Trajectory, Unit

MAX_VALUE = 1e12
"""Larger numbers (and NaN) are damage; Unix time in seconds or milliseconds stays below."""


def write_tum(path: str | Path, trajectory: Trajectory) -> None:
    """Timestamps with 4 decimals, which is how lines find their frames again."""
    lines = [f"# timestamp_s tx ty tz qx qy qz qw; camera to world, unit {trajectory.unit}"]
    for timestamp_s, T in zip(trajectory.timestamps_s, trajectory.T_world_camera, strict=True):
        w, x, y, z = quat_wxyz_from_matrix(T[:3, :3])
        lines.append(" ".join([f"{timestamp_s:.4f}", *(f"{v:.9g}" for v in (*T[:3, 3], x, y, z, w))]))
    write_text(path, "\n".join(lines) + "\n")


def read_tum(path: str | Path, unit: Unit = "unitless") -> Trajectory:
    """Poses in order of time; `frame_indices` is the position in that order.

    Raises ReconError naming the line for anything but 8 finite, sane numbers, a quaternion of length 0 or a repeated timestamp.
    """
    rows = _read_rows(Path(path))
    rows = rows[np.argsort(rows[:, 0], kind="stable")]
    repeated = np.flatnonzero(np.diff(rows[:, 0]) <= 0)
    if len(repeated):
        raise ReconError(f"{path}: timestamp {rows[repeated[0], 0]:.6f} occurs twice; every pose needs its own")
    T = np.tile(np.eye(4), (len(rows), 1, 1))
    quaternion = rows[:, [7, 4, 5, 6]]
    T[:, :3, :3] = matrix_from_quat_wxyz(quaternion / np.linalg.norm(quaternion, axis=1, keepdims=True))
    T[:, :3, 3] = rows[:, 1:4]
    return Trajectory(np.arange(len(rows)), rows[:, 0].copy(), T, unit)


def _read_rows(path: Path) -> np.ndarray:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ReconError(f"{path} cannot be read as a TUM trajectory: {error}") from error
    rows = [_parse_line(path, number, line) for number, line in enumerate(lines, 1) if line.strip() and not line.lstrip().startswith("#")]
    if not rows:
        raise ReconError(f"{path} holds no pose; expected lines of `timestamp tx ty tz qx qy qz qw`")
    return np.array(rows, dtype=np.float64)


def _parse_line(path: Path, number: int, line: str) -> list[float]:
    try:
        values = [float(word) for word in line.split()]
    except ValueError:
        values = []
    if len(values) != 8 or not all(abs(value) < MAX_VALUE for value in values):
        raise ReconError(f"{path} line {number}: expected 8 numbers `timestamp tx ty tz qx qy qz qw`, found {line.strip()[:80]!r}")
    if not 0.5 < np.linalg.norm(values[4:]) < 2:
        raise ReconError(f"{path} line {number}: the quaternion should have length 1, found {np.linalg.norm(values[4:]):.3g}")
    return values
