"""EndoSLAM: capsule and conventional endoscopes in porcine organs (robot poses), and a capsule rendered in Unity (depth as well).

A sequence is the folder with `Frames` and `Poses`, which for Unity also holds `Pixelwise Depths`. The header of the pose table
tells the two kinds apart. Unity's (`tX,tY,tZ,rX,rY,rZ,rW,time(s)`) has one row a frame, counted from frame 0, a few rows less
than frames and a last one that is cut short; its world is left-handed, and as in EndoGSLAM's loader the camera's z points
backwards in it. Neither its length nor its depth unit is stated (asked, the authors of the renderer say "relative distances";
public loaders read the same grey level as millimetres, centimetres or 1/255 of 15 cm), so nothing of it is called millimetres.
The robot's table (`ImageFrame, trans_x .. trans_z, quot_x .. quot_w`) names the frame of each row and is in metres.
The authors state no error of either truth.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Float

from recon.data.depth_files import depth_files, depth_from_levels
from recon.data.folder import frame_number, image_files, still_sequence
from recon.data.pinhole_file import read_pinhole
from recon.data.position_quaternion import poses_from_quaternions
from recon.data.truth import frame_trajectory, read_lines
from recon.io.images import read_image
from recon.types import Camera, DepthMap, FrameSequence, ReconError, Unit

MM_PER_METRE = 1000.0

_UNITY_COLUMNS = ("tx", "ty", "tz", "rx", "ry", "rz", "rw")
_ROBOT_COLUMNS = ("trans_x", "trans_y", "trans_z", "quot_x", "quot_y", "quot_z", "quot_w")
_DEPTH_NOTE = (
    "the depth is the grey level of a render in an unstated unit, and users report that it is not aligned with the picture "
    "to the pixel: only scaled errors mean anything"
)
_UNITY_POSE_NOTE = (
    "the recorder wrote the pose of the capsule's body in an unstated unit: the camera's is off by a fixed turn and offset "
    "where the camera does not sit in the body's origin and axes"
)
_ROBOT_POSE_NOTE = "poses are those of the robot arm; whether the hand-eye calibration is in them is not stated"


@dataclass(frozen=True)
class PoseTable:
    """Camera-to-world poses by frame number."""

    pose_of: Mapping[int, Float[np.ndarray, "4 4"]]
    unit: Unit
    notes: tuple[str, ...]


def matches(path: Path) -> bool:
    return (path / "Frames").is_dir() and any((path / name).is_dir() for name in ("Poses", "Pixelwise Depths"))


def open_endoslam(path: Path) -> FrameSequence:
    """Raises ReconError naming what is missing or damaged."""
    if not (path / "Frames").is_dir():
        raise ReconError(f"{path} has no folder `Frames`; expected the EndoSLAM layout (Frames, Poses, Pixelwise Depths)")
    files = image_files(path / "Frames", r".*\d.*")
    stills = still_sequence(path / "Frames", files)
    size_px = (stills.width_px, stills.height_px)
    numbers = [frame_number(file.name) for file in files]
    camera, camera_notes = _camera(path, size_px)
    table = _poses(path / "Poses")
    depths = depth_files(path / "Pixelwise Depths", numbers)
    return FrameSequence(
        path.resolve().name,
        "endoslam",
        stills.frames,
        camera=camera,
        unit=table.unit,
        trajectory_gt=frame_trajectory(stills.frames, numbers, table.pose_of, table.unit),
        depth_gt=partial(_depth, depths, size_px) if depths else None,
        notes=(*stills.notes, *camera_notes, *table.notes, *((_DEPTH_NOTE,) if depths else ())),
    )


def read_pose_table(path: Path) -> PoseTable:
    """A CSV of either kind. Raises ReconError naming the line that is no pose (the last one may be cut short)."""
    rows = [line.split(",") for line in read_lines(path)]
    header = [name.strip('\ufeff" ').lower() for name in rows[0]] if rows else []  # spreadsheets write a mark before the first name
    if set(_UNITY_COLUMNS) <= set(header):
        values, notes = _numbers(path, rows, header, _UNITY_COLUMNS)
        poses = poses_from_quaternions(path, values[:, :3], values[:, 3:], mirrored="z")
        return PoseTable(dict(enumerate(poses)), "unitless", (_UNITY_POSE_NOTE, *notes))
    if {*_ROBOT_COLUMNS, "imageframe"} <= set(header):
        values, notes = _numbers(path, rows, header, (*_ROBOT_COLUMNS, "imageframe"))
        poses = poses_from_quaternions(path, values[:, :3] * MM_PER_METRE, values[:, 3:7])
        return PoseTable(dict(zip(values[:, 7].astype(int).tolist(), poses, strict=True)), "mm", (_ROBOT_POSE_NOTE, *notes))
    raise ReconError(
        f"{path}: expected the columns tX,tY,tZ,rX,rY,rZ,rW,time(s) or ImageFrame,trans_x,..,quot_w, found {','.join(header)[:80]!r}"
    )


def _numbers(
    path: Path, rows: Sequence[Sequence[str]], header: Sequence[str], names: Sequence[str]
) -> tuple[Float[np.ndarray, "n columns"], tuple[str, ...]]:
    """The named columns, and a remark when the last line had to be left out."""
    columns = [header.index(name) for name in names]
    values = []
    for number, row in enumerate(rows[1:], 2):
        if not any(row):
            continue
        try:
            numbers = [float(row[column]) for column in columns] if len(row) == len(header) else []
        except ValueError:
            numbers = []
        if numbers and np.all(np.isfinite(numbers)):
            values.append(numbers)
        elif number == len(rows) and values:
            return np.array(values), (f"the last line of {path.name} is cut short and left out",)
        else:
            raise ReconError(f"{path} line {number}: expected {len(header)} finite numbers, found {','.join(row)[:60]!r}")
    if not values:
        raise ReconError(f"{path} holds no poses")
    return np.array(values), ()


def _poses(folder: Path) -> PoseTable:
    tables = sorted(folder.glob("*.csv")) if folder.is_dir() else []
    if len(tables) > 1:
        raise ReconError(f"{folder} holds {len(tables)} pose tables ({', '.join(file.name for file in tables)}); keep one")
    if tables:
        return read_pose_table(tables[0])
    sheets = sorted(folder.glob("*.xlsx")) if folder.is_dir() else []
    if sheets:
        return PoseTable({}, "unitless", (f"no true trajectory: save {sheets[0].name} as CSV beside it, spreadsheets are not read",))
    return PoseTable({}, "unitless", ("no true trajectory: Poses holds no CSV file",))


def _camera(path: Path, size_px: tuple[int, int]) -> tuple[Camera | None, tuple[str, ...]]:
    """The calibration of the nearest folder above that has one: UnityCam/Calibration, Cameras/HighCam/Calibration."""
    place = path.resolve()
    for folder in (place, place.parent, place.parent.parent):
        for file in (folder / "Calibration" / "cam.txt", folder / "Calibration" / "cam.txt.txt"):
            if not file.is_file():
                continue
            try:
                return read_pinhole(file, *size_px)
            except ReconError:  # The form of these files is documented nowhere, so none is called damaged.
                return None, (f"Calibration/{file.name} is not understood: no calibration is known",)
    return None, ("no Calibration/cam.txt here or two folders up: no calibration is known",)


def _depth(file_of: Mapping[int, Path], size_px: tuple[int, int], index: int) -> DepthMap | None:
    """Grey levels of an RGBA picture whose channels are all the same; 255 is the end of the range."""
    if index not in file_of:
        return None
    return depth_from_levels(file_of[index], read_image(file_of[index])[:, :, 0], size_px, 1.0, 1, 254, "scale_invariant")
