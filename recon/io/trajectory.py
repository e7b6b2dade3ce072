"""Trajectories as TUM text: `timestamp_s tx ty tz qx qy qz qw`, camera-to-world, OpenCV axes, one pose a line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import Float

from recon.geometry.se3 import matrix_from_quat_wxyz, quat_wxyz_from_matrix
from recon.io.atomic import write_text
from recon.types import ReconError, Trajectory, Unit

MAX_VALUE = 1e12
"""Larger numbers (and NaN) are damage; Unix time in seconds or milliseconds stays below."""
MAX_BYTES = 200_000_000


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
    numbers, rows = read_rows(Path(path), 8, "timestamp tx ty tz qx qy qz qw")
    length = np.linalg.norm(rows[:, 4:], axis=1)
    bad = np.flatnonzero((length <= 0.5) | (length >= 2))
    if len(bad):
        raise ReconError(f"{path} line {numbers[bad[0]]}: the quaternion should have length 1, found {length[bad[0]]:.3g}")
    rows = rows[np.argsort(rows[:, 0], kind="stable")]
    repeated = np.flatnonzero(np.diff(rows[:, 0]) <= 0)
    if len(repeated):
        raise ReconError(f"{path}: timestamp {rows[repeated[0], 0]:.6f} occurs twice; every pose needs its own")
    T = np.tile(np.eye(4), (len(rows), 1, 1))
    quaternion = rows[:, [7, 4, 5, 6]]
    T[:, :3, :3] = matrix_from_quat_wxyz(quaternion / np.linalg.norm(quaternion, axis=1, keepdims=True))
    T[:, :3, 3] = rows[:, 1:4]
    return Trajectory(np.arange(len(rows)), rows[:, 0].copy(), T, unit)


def read_rows(path: Path, columns: int, layout: str) -> tuple[list[int], Float[np.ndarray, "n columns"]]:
    """The numbers of a text file with one pose a line, and the line of each; empty lines and those after `#` are passed over.

    `layout` says in the error what a line should hold. Raises ReconError naming the line.
    """
    lines = pose_lines(path)
    if not lines:
        raise ReconError(f"{path} holds no pose; expected lines of `{layout}`")
    return [number for number, _ in lines], np.array([_parse_line(path, number, line, columns, layout) for number, line in lines])


def pose_lines(path: Path) -> list[tuple[int, str]]:
    """Lines with content and their numbers, from 1. Raises ReconError for what is no text, and for more than poses can take."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ReconError(f"{path} is larger than {MAX_BYTES // 10**6} MB: no file of poses")
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ReconError(f"{path} cannot be read as a trajectory: {error}") from error
    return [(number, line) for number, line in enumerate(lines, 1) if line.strip() and not line.lstrip().startswith("#")]


def _parse_line(path: Path, number: int, line: str, columns: int, layout: str) -> list[float]:
    try:
        values = [float(word) for word in line.split()]
    except ValueError:
        values = []
    if len(values) != columns or not all(abs(value) < MAX_VALUE for value in values):
        raise ReconError(f"{path} line {number}: expected {columns} numbers `{layout}`, found {line.strip()[:80]!r}")
    return values
