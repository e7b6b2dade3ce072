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
from recon.types import Alignment, Camera, DepthMap, FrameSequence, Mesh, Metric, ReconError

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
    scored = {index: frame for index in indices if (frame := _score_frame(sequence, prediction, index, how)) is not None}
    # A frame without a prediction is as empty under one alignment as under another.
    alignments = dict.fromkeys(m.alignment for frame in scored.values() for m in frame.metrics if m.name not in BEFORE_ALIGNMENT)
    found = {index: frame.under(tuple(alignments) or ("none",)) for index, frame in scored.items()}
    notes = [note for frame in scored.values() for note in frame.notes]
    if found:
        metrics, remarks = macro_mean(list(found.values()), of="frames", block=block_length(len(found), sequence.is_unrelated))
    else:
        metrics, remarks = [], [f"surface: not computable, no frame of {sequence.name} has a true surface"]
    rows = [
        {"index": index, "name": sequence.frames[index].name, **{f"{m.alignment}.{m.name}": m.value for m in metrics_of_frame}}
        for index, metrics_of_frame in found.items()
    ]
    return Score(
        prediction.name,
        sequence.name,
        sequence.dataset,
        metrics,
        prediction.inputs,
        {"depth": True, "trajectory": False, "mesh": True},
        frames=rows,
        notes=list(dict.fromkeys([*prediction.notes, *notes, *remarks])),
    )


@dataclass(frozen=True)
class _Frame:
    """What one view gave; without a prediction only what missing costs, under no alignment yet."""

    metrics: list[Metric]
    missing: list[Metric]
    notes: list[str]

    def under(self, alignments: tuple[Alignment, ...]) -> list[Metric]:
        return self.metrics or [replace(metric, alignment=alignment) for alignment in alignments for metric in self.missing]


def _score_frame(sequence: FrameSequence, prediction: Prediction, index: int, how: FrameComparison) -> _Frame | None:
    camera = sequence.frame_camera(index) if sequence.frame_camera is not None else sequence.camera
    if camera is None:
        raise ReconError(f"{sequence.name}: frame {index} has no calibration, and depth becomes a surface only with one")
    truth_map = sequence.depth_gt(index) if sequence.depth_gt is not None else None
    truth = _true_surface(sequence, index, truth_map, camera, how.both_views)
    if truth is None:
        return None
    depth = prediction.z_depth(index)
    pred = _lifted(camera, np.zeros((2, 2)) if depth is None else depth, truth_map)
    floor = sequence.noise_floor_mm

    def scored(mesh: Mesh, *alignments: Alignment) -> SurfaceScore:
        icp = replace(how.surface.icp, num_samples=min(how.surface.icp.num_samples, MAX_FRAME_SAMPLES // 5))
        num_samples = min(how.surface.num_samples, MAX_FRAME_SAMPLES)
        options = replace(how.surface, num_samples=num_samples, icp=icp, alignments=alignments)
        return score_surface(mesh, truth, poses=None, is_metric=True, gt_path=np.eye(4)[None], noise_floor=floor, options=options)

    if not len(pred.faces):
        empty = scored(pred, "none")
        return _Frame([], [metric for metric in empty.metrics if metric.name not in BEFORE_ALIGNMENT], empty.notes)
    is_metric = prediction.unit == sequence.unit == "mm"
    as_it_is = scored(pred, "none", "se3_icp") if is_metric else SurfaceScore([], [], {}, [])
    factor = _median_ratio(truth_map, depth)
    if factor is None:
        return _Frame(as_it_is.metrics, [], as_it_is.notes)
    # The fit with scale starts from the frame's own scale, which its pixels give, and not from a guess.
    at_scale = scored(replace(pred, vertices=pred.vertices * factor), "none", "sim3_icp")
    aligned = [
        replace(m, alignment="scale_frame") if m.alignment == "none" else m for m in at_scale.metrics if m.name not in BEFORE_ALIGNMENT
    ]
    alone = [m for m in (as_it_is if is_metric else at_scale).metrics if m.name in BEFORE_ALIGNMENT and m.name != "scale_error"]
    claimed = [m for m in as_it_is.metrics if m.name not in BEFORE_ALIGNMENT]
    scale = [Metric("surface", "scale_error", 100 * (1 / factor - 1), "%", "none", None)] if is_metric else []
    return _Frame([*alone, *scale, *claimed, *aligned], [], [*as_it_is.notes, *at_scale.notes])


def _true_surface(sequence: FrameSequence, index: int, truth: DepthMap | None, camera: Camera, both_views: bool) -> Mesh | None:
    if sequence.frame_mesh_gt is not None:
        return sequence.frame_mesh_gt(index, both_views)
    if both_views:
        raise ReconError(f"{sequence.name} has no second view whose truth could be merged")
    return None if truth is None else depth_surface(camera, truth.depth.astype(np.float64), truth.valid)


def _lifted(camera: Camera, depth: np.ndarray, truth: DepthMap | None) -> Mesh:
    """The surface of a predicted map on its own grid, where the truth is known: elsewhere nothing says that it is wrong.

    Both maps lie on the whole image of one lens.
    """
    known = depth > 0
    if truth is not None:
        known &= cv2.resize(truth.valid.astype(np.uint8), depth.shape[::-1], interpolation=cv2.INTER_NEAREST_EXACT) > 0
    return depth_surface(resize(camera, depth.shape[1], depth.shape[0]), depth.astype(np.float64), known)


def _median_ratio(truth: DepthMap | None, depth: np.ndarray | None) -> float | None:
    """Median of true over predicted depth, None when no pixel has both."""
    if depth is None or truth is None:
        return None
    pred = cv2.resize(depth, truth.depth.shape[::-1], interpolation=cv2.INTER_NEAREST_EXACT).astype(np.float64)
    known = truth.valid & (pred > 0) & (truth.depth > 0)
    return float(np.median(truth.depth[known] / pred[known])) if known.any() else None
