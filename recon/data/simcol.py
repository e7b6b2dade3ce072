"""SimCol3D: a colon rendered in Unity, with depth and poses; one `Frames_*` folder is a sequence.

Positions are centimetres and quaternions xyzw, camera-to-world in Unity's left-handed axes with y up: the challenge mirrors y
(P = M P M), which makes them OpenCV's. Depth is a 16-bit picture of 0 to 20 cm over 0 to 255 * 256. The files beside the folder
carry its name: `SavedPosition_S1.txt` is for `Frames_S1`. The truth is rendered, so its error is the step of the depth picture.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Float

from recon.data.depth_files import depth_files, depth_from_levels
from recon.data.folder import frame_number, image_files, still_sequence
from recon.data.pinhole_file import read_pinhole
from recon.data.position_quaternion import poses_from_quaternions
from recon.data.truth import frame_trajectory, read_number_rows
from recon.io.images import read_integers
from recon.types import Camera, DepthMap, FrameSequence, ReconError

MM_PER_LEVEL = 200.0 / (255 * 256)
HIGHEST_LEVEL = 255 * 256 - 1
"""The last level means 20 cm or more."""
MM_PER_CM = 10.0

STEP_MM = 200 / 255
_STEPS = f"depth is known in 255 levels over 200 mm, in steps of {STEP_MM:.2f} mm"
_FRAMES = r"FrameBuffer_\d+\.png"


def matches(path: Path) -> bool:
    return path.is_dir() and bool(image_files(path, _FRAMES))


def open_simcol(path: Path) -> FrameSequence:
    """Raises ReconError naming the file that is damaged; poses or calibration that are not there are left out with a note."""
    files = image_files(path, _FRAMES) if path.is_dir() else []
    if not files:
        raise ReconError(f"{path} holds no images of SimCol3D named FrameBuffer_NNNN.png")
    stills = still_sequence(path, files)
    size_px = (stills.width_px, stills.height_px)
    numbers = [frame_number(file.name) for file in files]
    camera, camera_notes = _camera(path, size_px)
    pose_of, pose_notes = _poses(path.resolve())
    depths = depth_files(path, numbers, r"Depth_\d+\.png")
    return FrameSequence(
        path.resolve().name,
        "simcol",
        stills.frames,
        camera=camera,
        unit="mm",
        noise_floor_mm=STEP_MM if depths else None,
        trajectory_gt=frame_trajectory(stills.frames, numbers, pose_of, "mm"),
        depth_gt=partial(_depth, depths, size_px) if depths else None,
        notes=(*stills.notes, *camera_notes, *pose_notes, *((_STEPS,) if depths else ())),
    )


def read_poses(position_file: Path, quaternion_file: Path) -> Float[np.ndarray, "n 4 4"]:
    """Camera-to-world, OpenCV axes, millimetres. Raises ReconError when the files differ in length or hold no unit quaternions."""
    positions, quats_xyzw = read_number_rows(position_file, 3), read_number_rows(quaternion_file, 4)
    if len(positions) != len(quats_xyzw):
        raise ReconError(f"{position_file} holds {len(positions)} positions but {quaternion_file.name} {len(quats_xyzw)} rotations")
    return poses_from_quaternions(quaternion_file, positions * MM_PER_CM, quats_xyzw, mirrored="y")


def _poses(path: Path) -> tuple[Mapping[int, Float[np.ndarray, "4 4"]], tuple[str, ...]]:
    tag = path.name.removeprefix("Frames_").removesuffix("_OP")
    files = [path.parent / f"{kind}_{tag}.txt" for kind in ("SavedPosition", "SavedRotationQuaternion")]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        return {}, (f"no true trajectory: {' and '.join(missing)} not found in {path.parent.name}",)
    return dict(enumerate(read_poses(*files))), ()


def _camera(path: Path, size_px: tuple[int, int]) -> tuple[Camera | None, tuple[str, ...]]:
    for file in (path / "cam.txt", path.resolve().parent / "cam.txt"):
        if file.is_file():
            camera, notes = read_pinhole(file, *size_px)
            fx, fy, cx, cy = camera.params
            if abs(fx / fy - 1) > 0.01 or abs(cx - cy) > 1:
                # The published file gives 227.60416 for fx and cx and 237.5 for fy and cy of square images.
                notes += (
                    f"cam.txt says fx {fx:g}, fy {fy:g}, cx {cx:g}, cy {cy:g} and is used as it stands; "
                    "some authors use 227.60416 for both focal lengths and the image centre instead",
                )
            return camera, notes
    return None, ("cam.txt is not there: no calibration is known",)


def _depth(file_of: Mapping[int, Path], size_px: tuple[int, int], index: int) -> DepthMap | None:
    if index not in file_of:
        return None
    return depth_from_levels(file_of[index], read_integers(file_of[index]), size_px, MM_PER_LEVEL, 1, HIGHEST_LEVEL)
