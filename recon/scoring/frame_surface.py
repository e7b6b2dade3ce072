"""Depth maps scored as surfaces: each is lifted in its own camera's axes and measured against the true surface of that view.

The truth is the data set's own surface of the frame, or else the true depth, lifted in the same way. Only where the truth is
known is a prediction judged; what it leaves out there is missing.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import cv2
import numpy as np

from recon.eval.bootstrap import block_length, macro_mean
from recon.eval.surface import SurfaceOptions, SurfaceScore, score_surface
from recon.geometry.cameras import resize
from recon.geometry.depth_surface import depth_surface
from recon.scoring.prediction import Prediction, chosen_frames
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
class FrameComparison:
    """What is scored and how."""

    surface: SurfaceOptions = field(default_factory=SurfaceOptions)
    both_views: bool = False
    """Merge what the second view of a stereo pair adds to the truth of a frame."""
    indices: tuple[int, ...] | None = None
    """Frames to score; None for all."""
    max_frames: int | None = None
    """Of these, at most so many, evenly spread."""


def compare_frame_surfaces(sequence: FrameSequence, prediction: Prediction, how: FrameComparison) -> Score:
    """Score every frame that has a true surface and report the mean over frames.

    Raises ReconError for a recording without true depth and for a prediction without depth.
    """
    if prediction.depth is None:
        raise ReconError(f"{prediction.name} holds no depth to compare with the views of {sequence.name}")
    if sequence.frame_mesh_gt is None and sequence.depth_gt is None:
        raise ReconError(f"{sequence.name} has no true surface of its frames to score against")
    indices = chosen_frames(sequence, how.indices, how.max_frames)
    rows, found, notes = [], [], list(prediction.notes)
    for index in indices:
        scored = _score_frame(sequence, prediction, index, how)
        if scored is None:
            continue
        found.append(scored.metrics)
        notes += scored.notes
        values = {f"{m.alignment}.{m.name}": m.value for m in scored.metrics}
        rows.append({"index": index, "name": sequence.frames[index].name, **values})
    if found:
        metrics, remarks = macro_mean(found, of="frames", block=block_length(len(found), sequence.is_unrelated))
    else:
        metrics, remarks = [], [f"surface: not computable, no frame of {sequence.name} has a true surface"]
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
    camera = sequence.frame_camera(index) if sequence.frame_camera is not None else sequence.camera
    if camera is None:
        raise ReconError(f"{sequence.name}: frame {index} has no calibration, and depth becomes a surface only with one")
    truth_map = sequence.depth_gt(index) if sequence.depth_gt is not None else None
    truth = _true_surface(sequence, index, truth_map, camera, how.both_views)
    if truth is None or prediction.depth is None:
        return None
    depth = prediction.depth(index)
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


def _true_surface(sequence: FrameSequence, index: int, truth: DepthMap | None, camera: Camera, both_views: bool) -> Mesh | None:
    if sequence.frame_mesh_gt is not None:
        return sequence.frame_mesh_gt(index, both_views)
    if both_views:
        raise ReconError(f"{sequence.name} has no second view whose truth could be merged")
    return None if truth is None else depth_surface(camera, truth.depth.astype(np.float64), truth.valid)


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
