"""StereoMIS: porcine surgery under a da Vinci stereo endoscope, with kinematic poses and instrument masks; no depth.

A recording is one folder: a video with left views over right ones, `StereoCalibration.ini` (OpenCV's terms), `groundtruth.txt`
(TUM lines, metres, camera-to-world, stamped with frame numbers from 0) and masks. Facts from aimi-lab/robust-pose-estimator:
frames of masks and splits count from 1; masks are non-zero where tissue can be used and lie on the pixels of the rectified
left image (stereoRectify with alpha = 0), mostly at half size, so they are brought back to the recorded image here; and the
poses come late: the authors score the frame that they number k with the pose stamped k - 4.
"""

from __future__ import annotations

import configparser
import re
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Bool, Float

from recon.data.folder import frame_number, image_files
from recon.data.position_quaternion import poses_from_quaternions
from recon.data.stereo import open_left_view, opencv_camera, right_from_left, right_views
from recon.data.truth import check_rigid, frame_trajectory, read_lines
from recon.image.channels import brightest
from recon.io.cameras import check_camera_size
from recon.io.images import read_image
from recon.types import FrameSequence, ReconError

POSE_LAG_FRAMES = 3
"""A frame's pose is stamped this many frames before its index: the authors' 4, less the 1 from which they count frames."""

_CALIBRATION = "StereoCalibration.ini"


@dataclass(frozen=True)
class StereoCalibration:
    """Both lenses at `width_px` by `height_px`, in OpenCV's terms: x_right = R x_left + T."""

    width_px: int
    height_px: int
    K: tuple[tuple[float, float, float, float], ...]
    """fx fy cx cy of left and right, pixels."""
    distortion: tuple[tuple[float, ...], ...]
    R: tuple[float, ...]
    """Row by row."""
    T: tuple[float, ...]
    """mm."""


def matches(path: Path) -> bool:
    return (path / _CALIBRATION).is_file() and any(path.glob("*.mp4"))


def open_stereomis(path: Path) -> FrameSequence:
    """One recording. Raises ReconError naming the file that is missing or damaged, or a calibration for another image size."""
    videos = sorted(path.glob("*.mp4")) if path.is_dir() else []
    if len(videos) != 1:
        raise ReconError(f"{path} holds {len(videos)} videos; expected the folder of one StereoMIS recording with one .mp4")
    recording = open_left_view(videos[0])
    calibration = read_calibration(path / _CALIBRATION)
    (camera, notes), (right, _) = (
        opencv_camera(path / _CALIBRATION, _matrix(K), np.array(distortion), calibration.width_px, calibration.height_px)
        for K, distortion in zip(calibration.K, calibration.distortion, strict=True)
    )
    T_right_left_mm = right_from_left(np.array(calibration.R).reshape(3, 3), np.array(calibration.T))
    check_camera_size(camera, recording.width_px, recording.height_px, path / _CALIBRATION, videos[0])
    poses = _poses(path / "groundtruth.txt") if (path / "groundtruth.txt").is_file() else {}
    masks = _mask_files(path / "masks")
    return FrameSequence(
        path.resolve().name,
        "stereomis",
        recording.frames,
        camera=camera,
        unit="mm",
        trajectory_gt=frame_trajectory(recording.frames, [index - POSE_LAG_FRAMES for index in range(len(recording.frames))], poses, "mm"),
        instrument_mask=partial(_usable, masks, calibration) if masks else None,
        second_view=right_views(recording, right, T_right_left_mm),
        incomplete=recording.incomplete,
        notes=(*recording.notes, *notes, *_notes(path, bool(poses), len(masks), len(recording.frames))),
    )


def read_calibration(path: Path) -> StereoCalibration:
    """Raises ReconError naming the file and the key that is missing or no number."""
    ini = configparser.ConfigParser(interpolation=None)
    try:
        ini.read_string("\n".join(read_lines(path)))
        left, right = ini["StereoLeft"], ini["StereoRight"]
        lenses = [tuple(float(side[key]) for key in ("fc_x", "fc_y", "cc_x", "cc_y")) for side in (left, right)]
        terms = [tuple(float(side.get(f"kc_{i}", "0")) for i in range(8)) for side in (left, right)]
        R, T = ([float(right[f"{key}_{i}"]) for i in range(count)] for key, count in (("R", 9), ("T", 3)))
        size = [int(float(left[key])) for key in ("res_x", "res_y")]
    except (configparser.Error, KeyError, ValueError, OverflowError) as error:
        reason = " ".join(str(error).split())
        raise ReconError(f"{path}: expected sections StereoLeft and StereoRight with res, fc, cc, kc, R and T; {reason}") from error
    check_rigid(path, np.block([[np.array(R).reshape(3, 3), np.array(T).reshape(3, 1)], [np.zeros(3), 1.0]])[None])
    return StereoCalibration(*size, tuple(lenses), tuple(terms), tuple(R), tuple(T))


def read_segments(path: Path) -> list[tuple[int, int]]:
    """(start, end) of a `train_split.csv` or `test_split.csv`, in the authors' frame numbers, which count from 1."""
    lines = [line.split(",") for line in read_lines(path) if line.strip()]
    try:
        return [(int(float(start)), int(float(end))) for start, end in (line[:2] for line in lines[1:])]
    except (ValueError, OverflowError) as error:
        raise ReconError(f"{path}: expected a heading and lines of `start,end` ({error})") from error


def _poses(path: Path) -> dict[int, Float[np.ndarray, "4 4"]]:
    """Camera-to-world in mm by frame number; by line where the stamps are times, which need not be those of the video."""
    rows = []
    for number, line in enumerate(read_lines(path), 1):
        if not line.strip() or line.startswith("#"):
            continue
        try:
            row = [float(word) for word in re.split(r"[,\s]+", line.strip())]
        except ValueError:
            row = []
        if len(row) != 8 or not np.all(np.isfinite(row)):
            raise ReconError(f"{path} line {number}: expected `frame tx ty tz qx qy qz qw`, found {line.strip()[:60]!r}")
        rows.append(row)
    if not rows:
        raise ReconError(f"{path} holds no pose; expected lines of `frame tx ty tz qx qy qz qw`")
    table = np.array(rows)
    T = poses_from_quaternions(path, 1000.0 * table[:, 1:4], table[:, 4:8])
    stamps = table[:, 0]
    numbered = np.all(stamps == np.round(stamps)) and np.all(np.diff(stamps) > 0) and 0 <= stamps[0] < len(stamps)
    return dict(zip(stamps.astype(np.int64).tolist() if numbered else range(len(T)), T, strict=True))


def _mask_files(folder: Path) -> dict[int, Path]:
    """By frame index. A file 000000l.png shows that they were numbered from 0."""
    files = {frame_number(file.name): file for file in image_files(folder, r"\d+l\.png")} if folder.is_dir() else {}
    first = 0 if 0 in files else 1
    return {number - first: file for number, file in files.items()}


def _usable(file_of: dict[int, Path], calibration: StereoCalibration, index: int) -> Bool[np.ndarray, "h w"] | None:
    if index not in file_of:
        return None
    usable = brightest(read_image(file_of[index])) > 0
    rows, columns = _rectified_places(calibration, usable.shape[1], usable.shape[0])
    return usable[rows, columns]


@lru_cache(maxsize=2)
def _rectified_places(calibration: StereoCalibration, width_px: int, height_px: int) -> tuple[np.ndarray, np.ndarray]:
    """Row and column in the rectified left image of that size for every recorded pixel; beyond its rim the nearest one.

    The rectification is the authors': focal lengths and centres scaled to the size of the mask, alpha = 0.
    """
    factors = np.array([width_px / calibration.width_px, height_px / calibration.height_px, 1.0])[:, None]
    left, right = (_matrix(lens) * factors for lens in calibration.K)
    terms = [np.array(distortion) for distortion in calibration.distortion]
    R, T = np.array(calibration.R).reshape(3, 3), np.array(calibration.T)
    R_left, _, P_left, *_ = cv2.stereoRectify(left, terms[0], right, terms[1], (width_px, height_px), R, T, alpha=0)
    u, v = np.meshgrid(np.arange(calibration.width_px, dtype=np.float64), np.arange(calibration.height_px, dtype=np.float64))
    pixels = np.stack([u.ravel(), v.ravel()], axis=1)[:, None]
    places = cv2.undistortPoints(pixels, _matrix(calibration.K[0]), terms[0], R=R_left, P=P_left).reshape(*u.shape, 2)
    nearest = np.clip(np.round(places), 0, (width_px - 1, height_px - 1)).astype(np.int32)
    return np.ascontiguousarray(nearest[..., 1]), np.ascontiguousarray(nearest[..., 0])


def _matrix(lens: tuple[float, float, float, float]) -> Float[np.ndarray, "3 3"]:
    fx, fy, cx, cy = lens
    return np.array([[fx, 0.0, cx], [0.0, fy, cy], [0.0, 0.0, 1.0]])


def _notes(path: Path, posed: bool, num_masks: int, num_frames: int) -> list[str]:
    notes = []
    if posed:
        notes.append(
            f"poses are robot kinematics; each frame takes the one {POSE_LAG_FRAMES} frames earlier, as the authors score it, "
            "which follows the video to a few frames"
        )
    if num_masks:
        notes.append(f"instrument masks of {num_masks} of {num_frames} frames are given on the rectified image and mapped back")
    for part in ("train", "test"):
        file = path / f"{part}_split.csv"
        if file.is_file():
            segments = ", ".join(f"{start} to {end}" for start, end in read_segments(file))
            notes.append(f"the authors use frames {segments} (counted from 1) of this recording to {part}")
    return notes
