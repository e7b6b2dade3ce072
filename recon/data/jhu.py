"""The nasal endoscopy layout of JHU: undistorted images with that lab's own structure-from-motion.

Poses are camera-to-world (whatever older notes say) at an arbitrary scale. Intrinsics are fx fy cx cy once, or f cx cy for
every view; whether their pixel centres are at integers is not stated anywhere and they are taken as if they were: half a pixel
is below the reference's own error.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from jaxtyping import Float

from recon.data.folder import frame_number, image_files, still_sequence
from recon.data.truth import check_rigid, frame_trajectory, read_lines
from recon.geometry.se3 import matrix_from_quat_wxyz
from recon.types import Camera, FrameSequence, ReconError

_INTRINSICS = "camera_intrinsics_per_view"
_PSEUDO_TRUTH = "the poses are a structure-from-motion result of the data set's authors at an arbitrary scale, not a measurement"


def matches(path: Path) -> bool:
    return (path / "motion.yaml").is_file() and (path / _INTRINSICS).is_file()


def open_jhu(path: Path) -> FrameSequence:
    """Raises ReconError naming the file that is missing or damaged."""
    files = image_files(path, r"\d+\.jpg")
    if not files:
        raise ReconError(f"{path} holds no images named NNNNNNNN.jpg")
    stills = still_sequence(path, files)
    views = _integers(path / "visible_view_indexes")
    poses = read_motion(path / "motion.yaml")
    if len(views) != len(poses):
        raise ReconError(f"{path}: motion.yaml has {len(poses)} poses but visible_view_indexes names {len(views)} views")
    camera, notes = _camera(path / _INTRINSICS, len(views), stills.width_px, stills.height_px)
    numbers = [frame_number(file.name) for file in files]
    return FrameSequence(
        path.resolve().name,
        "jhu",
        stills.frames,
        camera=camera,
        unit="unitless",
        trajectory_gt=frame_trajectory(stills.frames, numbers, dict(zip(views, poses, strict=True)), "unitless"),
        notes=(*stills.notes, *notes, _PSEUDO_TRUTH),
    )


def read_motion(path: Path) -> Float[np.ndarray, "n 4 4"]:
    """Camera-to-world poses of a ROS PoseArray written as text, in order of their numbers."""
    values: list[dict[str, float]] = []
    section = ""
    for number, line in enumerate(read_lines(path), 1):
        key, _, value = (part.strip() for part in line.partition(":"))
        if re.fullmatch(r"poses\[\d+\]", key):
            if key != f"poses[{len(values)}]":
                raise ReconError(f"{path} line {number}: expected poses[{len(values)}], found {key}")
            values.append({})
        elif key in ("position", "orientation"):
            section = key
        elif key in ("x", "y", "z", "w") and values:
            values[-1][f"{section}.{key}"] = _float(path, number, value)
    if not values:
        raise ReconError(f"{path} holds no pose")
    T = np.stack([_pose(path, index, pose) for index, pose in enumerate(values)])
    check_rigid(path, T)
    return T


def _pose(path: Path, index: int, values: dict[str, float]) -> Float[np.ndarray, "4 4"]:
    try:
        position = [values[f"position.{axis}"] for axis in "xyz"]
        quaternion = np.array([values[f"orientation.{axis}"] for axis in "wxyz"])
    except KeyError as error:
        raise ReconError(f"{path}: poses[{index}] lacks {error.args[0]}") from error
    if np.abs(quaternion).max() > 2 or np.linalg.norm(quaternion) < 0.5:
        raise ReconError(f"{path}: the orientation of poses[{index}] should have length 1, found {quaternion.tolist()}")
    T = np.eye(4)
    T[:3, :3], T[:3, 3] = matrix_from_quat_wxyz(quaternion / np.linalg.norm(quaternion)), position
    return T


def _camera(path: Path, num_views: int, width_px: int, height_px: int) -> tuple[Camera, tuple[str, ...]]:
    numbers = np.array([_float(path, number, word) for number, line in enumerate(read_lines(path), 1) for word in line.split()])
    if len(numbers) == 3 * num_views:
        f, cx, cy = numbers.reshape(-1, 3).T
        views = np.stack([f, f, cx, cy], axis=1)
    elif len(numbers) in (4, 4 * num_views):
        views = numbers.reshape(-1, 4)
    else:
        raise ReconError(f"{path} holds {len(numbers)} numbers; expected 4, or 3 or 4 for each of {num_views} views")
    lens = np.median(views, axis=0)
    if not np.all(np.isfinite(lens)) or lens[:2].min() <= 0 or not (0 < lens[2] < width_px and 0 < lens[3] < height_px):
        raise ReconError(f"{path}: fx fy cx cy = {lens.tolist()} do not fit images of {width_px}x{height_px}")
    spread_px = np.abs(views - lens).max()
    notes = (f"intrinsics vary by up to {spread_px:.1f} px between views; their median is used",) if spread_px > 0.5 else ()
    return Camera("PINHOLE", width_px, height_px, tuple(lens.tolist())), notes


def _integers(path: Path) -> list[int]:
    try:
        return [int(word) for line in read_lines(path) for word in line.split()]
    except ValueError as error:
        raise ReconError(f"{path} should hold one whole number a line: {error}") from error


def _float(path: Path, number: int, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not np.isfinite(value):
        raise ReconError(f"{path} line {number}: expected a finite number, found {text[:40]!r}")
    return value
