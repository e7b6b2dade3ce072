"""Truth that comes as bare files, without a recording: depth maps, a camera path, a surface."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from recon.io.meshes import read_mesh, states_no_unit
from recon.io.poses import read_poses
from recon.io.predicted_depth import DepthFolder
from recon.io.units import MM_PER_UNIT, LengthUnit
from recon.types import Camera, DepthMap, Frame, FrameError, FrameSequence, Mesh, Trajectory, Unit

BARE = "files"
"""Stands for the data set's name."""


def depth_truth(path: Path, unit: LengthUnit | None, factor: float = 1.0) -> FrameSequence:
    """Depth maps in natural order as the truth of frames named like them. Values are multiplied by `factor`, then brought to mm."""
    known, notes = _stated(path, unit)
    folder = DepthFolder(path, factor * MM_PER_UNIT.get(known, 1.0))
    names = [file.name for file in folder.files] if len(folder.files) == len(folder) else [f"{index:06d}" for index in range(len(folder))]
    frames = [Frame(index, name, float(index), partial(_no_image, path)) for index, name in enumerate(names)]
    return FrameSequence(path.name, BARE, frames, unit=_unit(known), depth_gt=partial(_depth, folder), notes=notes)


def trajectory_truth(path: Path, unit: LengthUnit | None, factor: float = 1.0, fmt: str | None = None) -> FrameSequence:
    """A camera path in any format that `read_poses` knows."""
    known, notes = _stated(path, unit)
    return FrameSequence(path.name, BARE, (), unit=_unit(known), trajectory_gt=_path(path, known, factor, fmt), notes=notes)


def surface_truth(
    path: Path, unit: LengthUnit | None, factor: float = 1.0, trajectory: Path | None = None, camera: Camera | None = None
) -> FrameSequence:
    """A mesh, with the camera path of the recording (in the mesh's unit and frame) and its lens where they are known."""
    mesh = read_mesh(path, unit)
    says = unit or ("mm" if mesh.unit == "mm" else "unitless" if states_no_unit(path) else None)
    known, notes = _stated(path, says)
    whole = replace(mesh, vertices=mesh.vertices * factor, unit=_unit(known))
    poses = None if trajectory is None else _path(trajectory, known, factor, None)
    return FrameSequence(
        path.name, BARE, (), camera=camera, unit=_unit(known), trajectory_gt=poses, mesh_gt=partial(_given, whole), notes=notes
    )


def _stated(path: Path, unit: LengthUnit | None) -> tuple[LengthUnit, tuple[str, ...]]:
    if unit is not None:
        return unit, ()
    return "mm", (f"{path.name}: the truth's unit was not declared and is taken to be millimetres; --gt-unit says otherwise",)


def _path(path: Path, unit: LengthUnit, factor: float, fmt: str | None) -> Trajectory:
    trajectory = read_poses(path, _unit(unit), fmt)
    T = trajectory.T_world_camera.copy()
    T[:, :3, 3] *= factor * MM_PER_UNIT.get(unit, 1.0)
    return replace(trajectory, T_world_camera=T)


def _given(mesh: Mesh) -> Mesh:
    return mesh


def _depth(folder: DepthFolder, index: int) -> DepthMap:
    depth = folder.read(index)
    known = (depth > 0) & (depth < np.inf)
    return DepthMap(np.where(known, depth, np.float32(0)), known, "metric")


def _unit(unit: LengthUnit) -> Unit:
    return "unitless" if unit == "unitless" else "mm"


def _no_image(path: Path):
    raise FrameError(f"{path} holds truth only, no images")
