"""PRED of `recon eval`: a finished run, or anyone's files with a declared unit."""

from __future__ import annotations

import argparse
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from recon.cli.results import artifact, newest_report
from recon.eval.association import on_frames_of
from recon.io.atomic import read_json
from recon.io.meshes import MESH_SUFFIXES, read_mesh, states_no_unit
from recon.io.poses import read_poses
from recon.io.predicted_depth import DepthFolder
from recon.io.units import MM_PER_UNIT
from recon.scoring.prediction import Prediction, prediction_of_run
from recon.scoring.score import Inputs
from recon.types import FrameSequence, ReconError, Trajectory, Unit

KINDS_OF_TRUTH = ("depth", "pose", "scale")


def open_prediction(path: Path, kind: str, arguments: argparse.Namespace, truth: FrameSequence) -> Prediction:
    """Open what is needed to score `kind`. Raises ReconError when there is nothing of that kind."""
    name = path.name or str(path)
    if (path / "results" / "report.json").is_file():
        return _from_run(path, name, kind, truth)
    if not path.exists():
        raise ReconError(f"{path} does not exist; expected a run folder or a prediction for {truth.name}")
    inputs = declared_inputs(arguments)
    if kind == "depth":
        return _depth(path, name, arguments, truth, inputs)
    if kind == "trajectory":
        trajectory, notes = _trajectory(path, arguments, truth)
        return Prediction(name, inputs, trajectory.unit, trajectory=trajectory, notes=notes)
    return _surface(path, name, arguments, truth, inputs)


def declared_inputs(arguments: argparse.Namespace) -> Inputs:
    """What the user says of a foreign prediction; what nobody said stays open."""
    trained_on = None if arguments.trained_on is None else tuple(Path(name).stem for name in arguments.trained_on)
    if arguments.gt_used is None:
        return Inputs(trained_on=trained_on)
    if "none" in arguments.gt_used and len(arguments.gt_used) > 1:
        raise ReconError("--gt-used none contradicts the other --gt-used")
    return Inputs(*(kind in arguments.gt_used for kind in KINDS_OF_TRUTH), trained_on=trained_on)


def _from_run(run: Path, name: str, kind: str, truth: FrameSequence) -> Prediction:
    report = read_json(newest_report(run) / "report.json")
    used = report["inputs_used"]
    trained_on = tuple(used["trained_on"]) if "trained_on" in used else None
    inputs = Inputs(used["gt_depth"], used["gt_pose"], used["gt_scale"], used["intrinsics"], trained_on)
    mesh_file = run / "results" / "mesh.ply" if kind == "surface" and truth.mesh_gt is not None else None
    return prediction_of_run(name, inputs, artifact(run, "scale"), mesh_file)


def _depth(path: Path, name: str, arguments: argparse.Namespace, truth: FrameSequence, inputs: Inputs) -> Prediction:
    is_disparity = getattr(arguments, "disparity", False)
    unit, notes = ("unitless", ()) if is_disparity else _unit(arguments.unit, truth.unit, path)
    factor = arguments.scale * MM_PER_UNIT.get(arguments.unit, 1.0)
    folder = DepthFolder(path, factor)
    matched = folder.matched([frame.name for frame in truth.frames])
    return Prediction(
        name,
        inputs,
        unit,
        depth=partial(_matched_depth, folder, matched.position_of),
        is_disparity=is_disparity,
        notes=notes + matched.notes,
        late_notes=folder.wrong_values_notes,
    )


def _matched_depth(folder: DepthFolder, position_of: dict[int, int], index: int) -> np.ndarray | None:
    return folder.read(position_of[index]) if index in position_of else None


def _trajectory(path: Path, arguments: argparse.Namespace, truth: FrameSequence) -> tuple[Trajectory, tuple[str, ...]]:
    unit, notes = _unit(arguments.unit, truth.unit, path)
    trajectory = read_poses(path, unit, getattr(arguments, "format", None), [frame.name for frame in truth.frames])
    if truth.trajectory_gt is not None:
        trajectory, more = on_frames_of(trajectory, truth.trajectory_gt)
        notes += tuple(more)
    factor = arguments.scale * MM_PER_UNIT.get(arguments.unit, 1.0)
    T = trajectory.T_world_camera.copy()
    T[:, :3, 3] *= factor
    return replace(trajectory, T_world_camera=T), notes


def _surface(path: Path, name: str, arguments: argparse.Namespace, truth: FrameSequence, inputs: Inputs) -> Prediction:
    if path.is_dir() or path.suffix.lower() not in MESH_SUFFIXES:
        if truth.frame_mesh_gt is None and truth.depth_gt is None:
            raise ReconError(f"{path} is no mesh, and depth maps are scored as surfaces only where the truth has depth too")
        return _depth(path, name, arguments, truth, inputs)
    mesh = read_mesh(path, arguments.unit)
    is_known = mesh.unit == "mm" or states_no_unit(path)
    unit, notes = _unit(arguments.unit or (mesh.unit if is_known else None), truth.unit, path)
    mesh = replace(mesh, vertices=mesh.vertices * arguments.scale, unit=unit)
    trajectory = None
    if arguments.trajectory is not None:
        trajectory, more = _trajectory(arguments.trajectory, arguments, truth)
        notes += more
    return Prediction(name, inputs, unit, trajectory=trajectory, mesh=mesh, notes=notes)


def _unit(declared: str | None, of_truth: Unit, path: Path) -> tuple[Unit, tuple[str, ...]]:
    if declared is None:
        return of_truth, (f"{path.name}: its unit was not declared and is taken to be the truth's ({of_truth}); --unit says otherwise",)
    return ("unitless" if declared == "unitless" else "mm"), ()
