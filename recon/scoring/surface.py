"""Surfaces against a recording's true one: a mesh of the whole recording, or, where the truth is one surface a frame, depth maps."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import cv2
import numpy as np

from recon.eval.bootstrap import macro_mean
from recon.eval.ladder import Rung
from recon.eval.surface import SurfaceOptions, SurfaceScore, score_surface
from recon.eval.surface_errors import Curve
from recon.eval.trajectory import match
from recon.eval.visibility import Views
from recon.geometry.cameras import resize
from recon.geometry.depth_surface import depth_surface
from recon.scoring.prediction import Prediction
from recon.scoring.score import Score
from recon.types import Camera, DepthMap, FrameSequence, Mesh, ReconError

MAX_FRAME_SAMPLES = 20_000
"""On the surface of one frame, which is a small part of what a recording covers."""
BEFORE_ALIGNMENT = {
    *("components", "boundary_loops", "boundary_length", "non_manifold_edges", "non_manifold_vertices", "euler", "genus"),
    *("observable_share", "culled_share", "scale_error"),
}
"""Figures of the surface alone, which no alignment changes."""


@dataclass(frozen=True)
class Comparison:
    """What is scored and how."""

    surface: SurfaceOptions = field(default_factory=SurfaceOptions)
    median_depth: float | None = None
    """Of the true depth, for errors in percent of it."""
    truth_is_whole: bool = False
    """True when the truth holds surface that no camera saw, to be left out by the true camera path and lens."""
    both_views: bool = False
    """Merge what the second view of a stereo pair adds to the truth of a frame."""
    indices: tuple[int, ...] | None = None
    """Frames to score where the truth is one surface a frame; None for all."""


def compare_surface(sequence: FrameSequence, prediction: Prediction, how: Comparison) -> tuple[Score, list[Rung]]:
    """Score a mesh, or the depth maps of single frames. Returns the alignments too, for pictures.

    Raises ReconError for a recording without a true surface and for a prediction that has none to compare with it.
    """
    if prediction.mesh is not None and sequence.mesh_gt is not None:
        return _compare_mesh(sequence, prediction, prediction.mesh, sequence.mesh_gt(), how)
    if prediction.depth is not None and sequence.frame_mesh_gt is not None:
        return _compare_frames(sequence, prediction, how), []
    if sequence.mesh_gt is None and sequence.frame_mesh_gt is None:
        raise ReconError(f"{sequence.name} has no true surface to score against")
    wanted = "a mesh" if sequence.mesh_gt is not None else "depth maps, as the truth is one surface a frame"
    raise ReconError(f"{prediction.name} holds no surface to compare with {sequence.name}; expected {wanted}")


def _compare_mesh(sequence: FrameSequence, prediction: Prediction, mesh: Mesh, gt: Mesh, how: Comparison) -> tuple[Score, list[Rung]]:
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
        pred_views=_views(sequence.camera, None if path is None else path.T_world_camera),
        gt_views=_views(sequence.camera, sequence.trajectory_gt and sequence.trajectory_gt.T_world_camera) if how.truth_is_whole else None,
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


def _compare_frames(sequence: FrameSequence, prediction: Prediction, how: Comparison) -> Score:
    """Lift every frame's depth to a surface and score it in the frame's own camera axes; the mean over frames is reported."""
    indices = range(len(sequence.frames)) if how.indices is None else how.indices
    rows, found, notes = [], [], list(prediction.notes)
    for index in indices:
        scored = _score_frame(sequence, prediction, index, how)
        if scored is None:
            continue
        found.append(scored.metrics)
        notes += scored.notes
        values = {f"{m.alignment}.{m.name}": m.value for m in scored.metrics}
        rows.append({"index": index, "name": sequence.frames[index].name, **values})
    metrics, remarks = (
        macro_mean(found, of="frames") if found else ([], [f"surface: not computable, no frame of {sequence.name} has a true surface"])
    )
    return Score(
        prediction.name,
        sequence.name,
        sequence.dataset,
        metrics,
        prediction.inputs,
        {"depth": True, "trajectory": False, "mesh": True},
        frames=rows,
        notes=list(dict.fromkeys([*notes, *remarks])),
    )


def _score_frame(sequence: FrameSequence, prediction: Prediction, index: int, how: Comparison) -> SurfaceScore | None:
    truth = sequence.frame_mesh_gt(index, how.both_views) if sequence.frame_mesh_gt is not None else None
    if truth is None or prediction.depth is None:
        return None
    camera = sequence.frame_camera(index) if sequence.frame_camera is not None else sequence.camera
    if camera is None:
        raise ReconError(f"{sequence.name}: frame {index} has no calibration, and depth becomes a surface only with one")
    depth = prediction.depth(index)
    truth_map = sequence.depth_gt(index) if sequence.depth_gt is not None else None
    pred = _lifted(camera, np.zeros((2, 2), np.float32) if depth is None else depth, truth_map, prediction.is_disparity)
    icp = replace(how.surface.icp, num_samples=min(how.surface.icp.num_samples, MAX_FRAME_SAMPLES // 10))
    options = replace(how.surface, num_samples=min(how.surface.num_samples, MAX_FRAME_SAMPLES), icp=icp)
    floor = sequence.noise_floor_mm
    scored = SurfaceScore([], [], {}, [])
    if prediction.unit == sequence.unit == "mm" or not len(pred.faces):
        as_it_is = replace(options, alignments=("none", "se3_icp"))
        scored = score_surface(pred, truth, poses=None, is_metric=True, noise_floor=floor, options=as_it_is)
    factor = None if truth_map is None else _median_ratio(truth_map, depth, prediction.is_disparity)
    if factor is None:
        return scored
    # The fit with scale starts from the frame's own scale, which its pixels give, and not from a guess.
    at_scale = replace(pred, vertices=pred.vertices * factor)
    from_scale = replace(options, alignments=("none", "sim3_icp"))
    scaled = score_surface(at_scale, truth, poses=None, is_metric=True, noise_floor=floor, options=from_scale)
    have = {m.name for m in scored.metrics}
    more = [
        replace(m, alignment="scale_frame") if m.alignment == "none" and m.name not in BEFORE_ALIGNMENT else m
        for m in scaled.metrics
        if m.name != "scale_error" and (m.name not in BEFORE_ALIGNMENT or m.name not in have)
    ]
    return SurfaceScore([*scored.metrics, *more], scored.rungs, scored.curves, [*scored.notes, *scaled.notes])


def _lifted(camera: Camera, depth: np.ndarray, truth: DepthMap | None, is_disparity: bool) -> Mesh:
    """The surface of a predicted map on its own grid, where the truth is known: elsewhere nothing says that it is wrong.

    Both maps lie on the whole image of one lens.
    """
    z = np.divide(1.0, depth, out=np.zeros(depth.shape), where=depth > 0) if is_disparity else depth.astype(np.float64)
    known = z > 0
    if truth is not None:
        known &= cv2.resize(truth.valid.astype(np.uint8), z.shape[::-1], interpolation=cv2.INTER_NEAREST) > 0
    return depth_surface(resize(camera, z.shape[1], z.shape[0]), z, known)


def _median_ratio(truth: DepthMap, depth: np.ndarray | None, is_disparity: bool) -> float | None:
    """Median of true over predicted depth, None when no pixel has both."""
    if depth is None:
        return None
    pred = cv2.resize(depth, truth.depth.shape[::-1], interpolation=cv2.INTER_NEAREST).astype(np.float64)
    known = truth.valid & (pred > 0) & (truth.depth > 0)
    if not known.any():
        return None
    ratio = truth.depth[known] * pred[known] if is_disparity else truth.depth[known] / pred[known]
    return float(np.median(ratio))


def _views(camera: Camera | None, T_world_camera: np.ndarray | None) -> Views | None:
    return None if camera is None or T_world_camera is None or not len(T_world_camera) else Views(camera, T_world_camera)


def _rung_row(rung: Rung) -> dict[str, Any]:
    """The transform of a rung for a file: prediction to truth."""
    return {
        "alignment": rung.alignment,
        "scale": rung.scale,
        "rotation_deg": rung.rotation_deg,
        "translation": rung.shift_of_centroid,
        "unit": rung.unit,
        "condition": rung.condition,
        "T_truth_prediction": np.block([[rung.scale * rung.R, rung.t[:, None]], [np.zeros((1, 3)), np.ones((1, 1))]]).tolist(),
    }


def _curve_row(curve: Curve) -> dict[str, list[float]]:
    return {name: getattr(curve, name).tolist() for name in ("thresholds", "precision", "recall", "f")}
