"""Where the errors are: depth error maps, the surface in the colours of its distance to the truth, curves over the threshold."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import UInt8

from recon.eval.distances import Surface
from recon.eval.ladder import Rung
from recon.io.atomic import write_bytes
from recon.io.meshes import vertex_normals, write_ply
from recon.report.figures import ERROR_COLORS, colorize, curves_figure, panels_figure
from recon.report.preview import MeshRenderer, viewpoints
from recon.sampling import spread
from recon.scoring.prediction import Prediction
from recon.scoring.score import Score
from recon.types import Alignment, FrameError, FrameSequence, Mesh

MAX_RELATIVE_ERROR = 0.3
"""At the bright end of the depth error maps."""
PICTURED: tuple[Alignment, ...] = ("sim3_trajectory", "se3_trajectory", "sim3_icp", "none")
"""The first of these that exists is the alignment of the pictures: no surface fit where the camera path gives one."""


def depth_pictures(folder: Path, sequence: FrameSequence, prediction: Prediction, score: Score, num: int = 3) -> None:
    """Write `depth_error_NNNNNN.png` for a few scored frames, one scale a frame."""
    scored = [int(row["index"]) for row in score.frames if row.get("scale")]
    for index in spread(scored, num):
        picture = depth_error_map(sequence, prediction, index)
        if picture is not None:
            write_bytes(folder / f"depth_error_{index:06d}.png", picture)


def depth_error_map(
    sequence: FrameSequence, prediction: Prediction, index: int, image: Callable[[], UInt8[np.ndarray, "h w 3"]] | None = None
) -> bytes | None:
    """A PNG of the frame, both depths and the relative error; None where nothing can be compared.

    Args:
        image: instead of the recording's own.
    """
    truth = sequence.depth_gt(index) if sequence.depth_gt is not None else None
    pred = prediction.z_depth(index)
    if truth is None or pred is None:
        return None
    gt = np.where(truth.valid, truth.depth, 0)
    pred = cv2.resize(pred, gt.shape[::-1], interpolation=cv2.INTER_NEAREST_EXACT).astype(np.float64)
    known = (pred > 0) & (gt > 0)
    if not known.any():
        return None
    scale = float(np.median(gt[known] / pred[known]))
    error = np.where(known, np.abs(scale * pred - gt) / np.where(known, gt, 1), np.nan)
    low, high = np.percentile(gt[known], [1, 99])
    drawn = [colorize(depth, low, high, "magma_r", depth > 0) for depth in (scale * pred, gt)]
    panels: list[tuple[str, np.ndarray]] = [("depth, one scale a frame", drawn[0]), ("true depth", drawn[1]), ("relative error", error)]
    with suppress(FrameError):  # truth without images has no picture to show
        panels.insert(0, (f"frame {index}", (image or sequence.frames[index].image)()))
    return panels_figure(panels, ERROR_COLORS, 0.0, MAX_RELATIVE_ERROR, "relative error")


def surface_pictures(folder: Path, sequence: FrameSequence, prediction: Prediction, score: Score, rungs: Sequence[Rung]) -> None:
    """Write `surface_error.png`, `surface_error.ply` (distance in colour and as `quality`, in the truth's world) and `curves.png`."""
    if score.curves:
        write_bytes(folder / "curves.png", curves_figure(score.curves, sequence.unit))
    rung = next((rung for name in PICTURED for rung in rungs if rung.alignment == name), None)
    if rung is None or prediction.mesh is None or sequence.mesh_gt is None:
        return
    mesh = rung.apply(prediction.mesh)
    error = Surface(sequence.mesh_gt()).distances(mesh.vertices)
    high = max(float(np.percentile(error, 95)), 1e-9)
    colors = colorize(error, 0.0, high, ERROR_COLORS)
    painted = Mesh(mesh.vertices, mesh.faces, colors, vertex_normals(mesh.vertices, mesh.faces), unit=mesh.unit)
    write_ply(folder / "surface_error.ply", painted, quality=error)
    path = None if prediction.trajectory is None else prediction.trajectory.T_world_camera
    poses = np.eye(4)[None] if path is None else rung.similarity.poses(path)
    renderer = MeshRenderer(painted, painted.normals)
    views = viewpoints(painted, poses)[0 if path is not None else 1 :][:3]
    panels = [(f"{view.name}, {rung.alignment}", renderer.render(colors, view, 420, 360)) for view in views]
    label = f"distance to truth ({sequence.unit})"
    write_bytes(folder / "surface_error.png", panels_figure(panels, ERROR_COLORS, 0.0, high, label))


def network_pictures(sequence: FrameSequence, predictions: Sequence[Prediction], index: int) -> list[tuple[str, bytes]]:
    """Depth and relative error of one frame by every prediction beside each other, one scale each: captions and PNG bytes.

    Empty where the frame has no truth.
    """
    truth = sequence.depth_gt(index) if sequence.depth_gt is not None else None
    gt = None if truth is None else np.where(truth.valid, truth.depth, 0).astype(np.float64)
    if gt is None or not (gt > 0).any():
        return []
    depths: list[tuple[str, np.ndarray]] = [("true depth", np.where(gt > 0, gt, np.nan))]
    errors: list[tuple[str, np.ndarray]] = []
    with suppress(FrameError):
        errors.append((f"frame {index}", sequence.frames[index].image()))
    for prediction in predictions:
        pred = prediction.z_depth(index)
        pred = np.zeros_like(gt) if pred is None else cv2.resize(pred, gt.shape[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
        known = (pred > 0) & (gt > 0)
        scale = float(np.median(gt[known] / pred[known])) if known.any() else 1.0
        depths.append((prediction.name, np.where(pred > 0, scale * pred, np.nan)))
        errors.append((prediction.name, np.where(known, np.abs(scale * pred - gt) / np.where(known, gt, 1), np.nan)))
    low, high = np.percentile(gt[gt > 0], [1, 99])
    return [
        (f"{sequence.name}, frame {index}: depth", panels_figure(depths, "magma_r", low, high, f"depth ({sequence.unit})")),
        (f"{sequence.name}, frame {index}: error", panels_figure(errors, ERROR_COLORS, 0.0, MAX_RELATIVE_ERROR, "relative error")),
    ]
