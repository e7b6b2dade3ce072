"""PRED of `recon eval`: a finished run, or anyone's files with a declared unit."""

from __future__ import annotations

import argparse
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from recon.cli.results import artifact, newest_report
from recon.data import known_layout
from recon.data.splits import read_split
from recon.eval.association import on_frames_of
from recon.io.atomic import read_json
from recon.io.meshes import MESH_SUFFIXES, read_mesh, states_no_unit
from recon.io.poses import read_poses
from recon.io.predicted_depth import DepthFolder
from recon.io.units import MM_PER_UNIT
from recon.scoring.prediction import Prediction, prediction_of_run
from recon.scoring.score import Inputs
from recon.types import FrameSequence, Mesh, ReconError, Trajectory, Unit

KINDS_OF_TRUTH = ("depth", "pose", "scale")


def open_prediction(path: Path, kind: str, arguments: argparse.Namespace, truth: FrameSequence) -> Prediction:
    """Open what is needed to score `kind`. Raises ReconError when there is nothing of that kind."""
    name = path.name or str(path)
    if (path / "results" / "report.json").is_file():
        return replace(_from_run(path, name, kind, truth), notes=_ignored_by_runs(path, arguments))
    if not path.exists():
        raise ReconError(f"{path} does not exist; expected a run folder or a prediction for {truth.name}")
    looks_like = known_layout(path)
    if looks_like is not None:
        raise ReconError(f"{path} is a recording of {looks_like} with its truth, not a prediction; PRED comes first and GT last")
    inputs = declared_inputs(arguments)
    if kind == "depth":
        return _depth(path, name, arguments, truth, inputs)
    if kind == "trajectory":
        trajectory, notes = _trajectory(path, arguments, truth)
        return Prediction(name, inputs, trajectory.unit, trajectory=trajectory, notes=notes)
    return _surface(path, name, arguments, truth, inputs)


def missing_prediction(name: str, kind: str, sequence: str, arguments: argparse.Namespace) -> Prediction:
    """Stands for a sequence that a method left out: everything in it is missing."""
    empty = Mesh(np.zeros((0, 3)), np.zeros((0, 3), np.int64), unit="mm") if kind == "surface" else None
    nowhere = Trajectory(np.zeros(0, np.int64), np.zeros(0), np.zeros((0, 4, 4)), "mm") if kind == "trajectory" else None
    note = f"{name} holds nothing for {sequence}, which counts as empty"
    return Prediction(name, declared_inputs(arguments), "mm", depth=lambda index: None, trajectory=nowhere, mesh=empty, notes=(note,))


def _ignored_by_runs(run: Path, arguments: argparse.Namespace) -> tuple[str, ...]:
    given = {
        "--unit": arguments.unit,
        "--scale": arguments.scale != 1,
        "--trained-on": arguments.trained_on,
        "--gt-used": arguments.gt_used,
        "--disparity": getattr(arguments, "disparity", False),
    }
    ignored = [option for option, value in given.items() if value]
    return (f"{run.name} is a finished run and says these itself: {', '.join(ignored)} is not applied to it",) if ignored else ()


def declared_inputs(arguments: argparse.Namespace) -> Inputs:
    """What the user says of a foreign prediction; what nobody said stays open."""
    trained_on = None if arguments.trained_on is None else tuple(_training_data(name) for name in arguments.trained_on)
    if arguments.gt_used is None:
        return Inputs(trained_on=trained_on)
    if "none" in arguments.gt_used and len(arguments.gt_used) > 1:
        raise ReconError("--gt-used none contradicts the other --gt-used")
    return Inputs(*(kind in arguments.gt_used for kind in KINDS_OF_TRUTH), trained_on=trained_on)


def _training_data(name: str) -> str:
    """A data set's key as it is; a split file as `dataset/split`."""
    if not name.endswith(".toml"):
        return name
    split = read_split(Path(name))
    return f"{split.dataset}/{split.name}"


def _from_run(run: Path, name: str, kind: str, truth: FrameSequence) -> Prediction:
    report = read_json(newest_report(run) / "report.json")
    used = report["inputs_used"]
    trained_on = tuple(used["trained_on"]) if "trained_on" in used else None
    inputs = Inputs(
        used["gt_depth"], used["gt_pose"], used["gt_scale"], used["intrinsics"], trained_on, used.get("adapted_on_this_recording")
    )
    mesh_file = run / "results" / "mesh.ply" if kind == "surface" and truth.mesh_gt is not None else None
    return prediction_of_run(name, inputs, artifact(run, "scale"), mesh_file, artifact(run, "masks") / "scope.png")


def _depth(path: Path, name: str, arguments: argparse.Namespace, truth: FrameSequence, inputs: Inputs) -> Prediction:
    is_disparity = getattr(arguments, "disparity", False)
    unit, notes = ("unitless", ()) if is_disparity else _unit(arguments.unit, truth.unit, path)
    factor = arguments.scale * MM_PER_UNIT.get(arguments.unit, 1.0)
    folder = DepthFolder(path, factor)
    matched = folder.matched([frame.name for frame in truth.frames], arguments.match)
    return Prediction(
        name,
        inputs,
        unit,
        depth=partial(_matched_depth, folder, matched.position_of),
        is_disparity=is_disparity,
        notes=notes + matched.notes,
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
