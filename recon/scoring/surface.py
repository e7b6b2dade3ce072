"""A reconstructed surface against a recording's true one."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from recon.eval.ladder import Rung
from recon.eval.surface import SurfaceOptions, score_surface
from recon.eval.surface_errors import Curve
from recon.eval.trajectory import match
from recon.eval.visibility import Views
from recon.geometry.cameras import resize
from recon.scoring.prediction import Prediction, chosen_frames
from recon.scoring.score import Score
from recon.types import Camera, FrameSequence, ReconError

DEPTH_STEP = 7
"""Pixels between those whose true depth enters the scene's median depth."""


@dataclass(frozen=True)
class Comparison:
    """What is scored and how."""

    surface: SurfaceOptions = field(default_factory=SurfaceOptions)
    median_depth: float | None = None
    """Of the true depth, for errors in percent of it."""
    truth_is_whole: bool = False
    """True when the truth holds surface that no camera saw, to be left out by the true camera path and lens."""


def compare_surface(sequence: FrameSequence, prediction: Prediction, how: Comparison) -> tuple[Score, list[Rung]]:
    """Score a mesh under every rung of the ladder. Returns the rungs too, for pictures.

    Raises ReconError for a recording without a true surface and for a prediction without a mesh.
    """
    if sequence.mesh_gt is None:
        raise ReconError(f"{sequence.name} has no true surface to score against")
    if prediction.mesh is None:
        raise ReconError(f"{prediction.name} holds no mesh to compare with the surface of {sequence.name}")
    mesh, gt = prediction.mesh, sequence.mesh_gt()
    path, notes = prediction.trajectory, list(prediction.notes)
    poses = None if path is None or sequence.trajectory_gt is None else match(path, sequence.trajectory_gt)
    if poses is None:
        notes.append("surface: without the camera paths of both, nothing but the surface itself can align them")
    elif not len(poses[0]):
        poses = None
        notes.append("surface: the camera paths have no frame in common, so they align nothing")
    scored = score_surface(
        mesh,
        gt,
        poses=poses,
        is_metric=prediction.unit == sequence.unit == "mm",
        whole_gt=None if sequence.whole_mesh_gt is None else sequence.whole_mesh_gt(),
        pred_views=_views(sequence.camera, None if path is None else path.T_world_camera, prediction.scope),
        gt_views=_views(sequence.camera, sequence.trajectory_gt and sequence.trajectory_gt.T_world_camera) if how.truth_is_whole else None,
        gt_path=None if sequence.trajectory_gt is None else sequence.trajectory_gt.T_world_camera,
        median_depth=how.median_depth,
        noise_floor=sequence.noise_floor_mm,
        options=how.surface,
    )
    used = {"depth": False, "trajectory": poses is not None, "mesh": True}
    score = Score(
        prediction.name,
        sequence.name,
        sequence.dataset,
        scored.metrics,
        prediction.inputs,
        used,
        rungs=[_rung_row(rung) for rung in scored.rungs],
        curves={name: _curve_row(curve) for name, curve in scored.curves.items()},
        notes=notes + scored.notes,
    )
    return score, scored.rungs


def _views(camera: Camera | None, T_world_camera: np.ndarray | None, scope: np.ndarray | None = None) -> Views | None:
    if camera is None or T_world_camera is None or not len(T_world_camera):
        return None
    return Views(camera if scope is None else resize(camera, scope.shape[1], scope.shape[0]), T_world_camera, scope)


def _rung_row(rung: Rung) -> dict[str, Any]:
    """The transform of a rung for a file: prediction to truth."""
    return {
        "alignment": rung.alignment,
        "scale": rung.similarity.scale,
        "rotation_deg": rung.similarity.rotation_deg,
        "translation": rung.shift_of_centroid,
        "unit": rung.unit,
        "condition": rung.condition,
        "T_truth_prediction": rung.similarity.matrix.tolist(),
    }


def _curve_row(curve: Curve) -> dict[str, list[float]]:
    return {name: getattr(curve, name).tolist() for name in ("thresholds", "precision", "recall", "f")}


def median_true_depth(sequence: FrameSequence, max_frames: int) -> float | None:
    """Of a whole scene: the median of the medians of frames spread over the recording; None without true depth."""
    medians = []
    for index in chosen_frames(sequence, None, max_frames) if sequence.depth_gt is not None else ():
        truth = sequence.depth_gt(index) if sequence.depth_gt is not None else None
        if truth is not None and truth.valid.any():
            medians.append(np.median(truth.depth[truth.valid][::DEPTH_STEP]))
    return float(np.median(medians)) if medians else None
