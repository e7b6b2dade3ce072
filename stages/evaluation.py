"""Evaluation: compare depth, camera path and surface with the source's truth, where it has any.

The only stage that opens the truth. Without truth it writes an empty list.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path

import cv2
import numpy as np

from recon.data import open_source
from recon.eval.depth import depth_metrics, pair
from recon.eval.surface import distances, surface_metrics
from recon.eval.trajectory import match, similarity, trajectory_metrics, transformed
from recon.io.atomic import read_json, write_bytes, write_json
from recon.io.depth import read_depth
from recon.io.images import read_image
from recon.io.meshes import read_mesh, vertex_normals
from recon.pipeline import Stage, track
from recon.report.figures import ERROR_COLORS, colorize, panels_figure, trajectory_figure
from recon.report.pictures import spread
from recon.report.preview import MeshRenderer, viewpoints
from recon.types import MAX_SEED, Alignment, FrameSequence, Mesh, Metric, ReconError, Trajectory, Unit, bounded

MAX_RELATIVE_ERROR = 0.3
"""At the bright end of the depth error maps."""


@dataclass(frozen=True)
class Config:
    """How much is compared and drawn."""

    num_error_maps: int = bounded(3, 0)
    """Frames whose depth error is drawn."""
    max_depth_frames: int = bounded(400, 1)
    """Depth is compared on at most this many frames, spread over the recording."""
    num_samples: int = bounded(100_000, 100)
    """Points on each surface."""
    seed: int = bounded(0, 0, MAX_SEED)
    """Of the points sampled on the surfaces."""


@dataclass(frozen=True)
class _Result:
    """Metrics and notes gathered so far, and which truth they needed."""

    metrics: list[Metric]
    notes: list[str]
    gt_used: dict[str, bool]


def run(inputs: dict[str, Path], out: Path, config: Config) -> None:
    """Write `metrics.json` and `figures/*.png`."""
    sequence = open_source(inputs["source"])
    pred = _predicted_trajectory(inputs["scale"])
    result = _Result([], [], {"depth": False, "trajectory": False, "mesh": False})
    median_depth = None
    if sequence.depth_gt is not None:
        median_depth = _evaluate_depth(sequence, inputs, out, config, result)
    if sequence.trajectory_gt is not None:
        _evaluate_trajectory(sequence.trajectory_gt, pred, out, result)
    if sequence.mesh_gt is not None:
        _evaluate_surface(sequence, pred, read_mesh(inputs["mesh"] / "mesh.ply"), median_depth, out, config, result)
    finite = [metric for metric in result.metrics if np.isfinite(metric.value)]
    notes = result.notes + [f"{m.group}: {m.name} ({m.alignment}) is not finite" for m in result.metrics if not np.isfinite(m.value)]
    write_json(out / "metrics.json", {"metrics": [asdict(metric) for metric in finite], "gt_used": result.gt_used, "notes": notes})


def _predicted_trajectory(scale: Path) -> Trajectory:
    posed = [frame for frame in read_json(scale / "trajectory.json")["frames"] if frame["T_world_camera"] is not None]
    indices = np.array([frame["index"] for frame in posed], dtype=np.int64)
    poses = np.array([frame["T_world_camera"] for frame in posed], dtype=np.float64).reshape(-1, 4, 4)
    # Frames are matched by index, so times play no part here.
    return Trajectory(indices, indices.astype(np.float64), poses, read_json(scale / "scale.json")["unit"])


def _evaluate_depth(sequence: FrameSequence, inputs: dict[str, Path], out: Path, config: Config, result: _Result) -> float | None:
    """Add depth metrics and error maps; return the median true depth."""
    files = {int(file.stem): file for file in sorted((inputs["scale"] / "depth").glob("*.tiff"))}
    chosen = spread(sorted(files), config.max_depth_frames)
    maps = ((index, _depth_maps(sequence, index, files[index])) for index in track(chosen, len(chosen), "comparing depth"))
    pairs = [found for index, both in maps if both is not None and (found := pair(index, *both)) is not None]
    metrics, notes = depth_metrics(pairs, sequence.unit, _is_metric(inputs["scale"], sequence.unit))
    result.metrics.extend(metrics)
    result.notes.extend(notes)
    if not pairs:
        return None
    result.gt_used["depth"] = True
    for index in spread([found.index for found in pairs], config.num_error_maps):
        picture = read_image(inputs["frames"] / "images" / f"{index:06d}.jpg")
        write_bytes(out / "figures" / f"depth_error_{index:06d}.png", _depth_error_map(sequence, index, files[index], picture))
    return float(np.median([np.median(found.gt) for found in pairs]))


def _depth_maps(sequence: FrameSequence, index: int, file: Path) -> tuple[np.ndarray, np.ndarray] | None:
    """Return predicted and true depth (0 unknown) on the truth's grid: both lie on the whole image of one lens."""
    truth = sequence.depth_gt(index) if sequence.depth_gt is not None else None
    if truth is None:
        return None
    gt = np.where(truth.valid, truth.depth, 0).astype(np.float32)
    return cv2.resize(read_depth(file), gt.shape[::-1], interpolation=cv2.INTER_NEAREST), gt


def _depth_error_map(sequence: FrameSequence, index: int, file: Path, picture: np.ndarray) -> bytes:
    pred, gt = _depth_maps(sequence, index, file) or (None, None)
    known = (pred > 0) & (gt > 0)
    scale = float(np.median(gt[known] / pred[known]))
    error = np.where(known, np.abs(scale * pred - gt) / np.where(known, gt, 1), np.nan)
    low, high = np.percentile(gt[known], [1, 99])
    drawn = [colorize(depth, low, high, "magma_r", depth > 0) for depth in (scale * pred, gt)]
    panels = [(f"frame {index}", picture), ("depth, one scale a frame", drawn[0]), ("true depth", drawn[1]), ("relative error", error)]
    return panels_figure(panels, ERROR_COLORS, 0.0, MAX_RELATIVE_ERROR, "relative error")


def _evaluate_trajectory(gt: Trajectory, pred: Trajectory, out: Path, result: _Result) -> None:
    metrics, notes = trajectory_metrics(pred, gt)
    result.metrics.extend(metrics)
    result.notes.extend(notes)
    if not metrics:
        return
    result.gt_used["trajectory"] = True
    try:
        scale, R, t = similarity(*match(pred, gt), with_scale=True)
    except ReconError:  # trajectory_metrics has said so in its notes
        return
    aligned = scale * pred.T_world_camera[:, :3, 3] @ R.T + t
    truth = gt.T_world_camera[:, :3, 3]
    write_bytes(out / "figures" / "trajectory.png", trajectory_figure(aligned, np.zeros(len(aligned), bool), gt.unit, truth))


def _evaluate_surface(
    sequence: FrameSequence, pred: Trajectory, mesh: Mesh, median_depth: float | None, out: Path, config: Config, result: _Result
) -> None:
    """Score the mesh under every alignment that the camera paths allow: the surface itself is never fitted."""
    if sequence.mesh_gt is None:
        return
    if sequence.trajectory_gt is None:
        result.notes.append("surface: not computable, the truth has no camera path to align by")
        return
    gt = sequence.mesh_gt()
    poses = match(pred, sequence.trajectory_gt)
    ladder: list[Alignment] = ["sim3_trajectory"]
    if mesh.unit == gt.unit == "mm":
        ladder.insert(0, "se3_trajectory")
    for alignment in ladder:
        try:
            scale, R, t = similarity(*poses, with_scale=alignment == "sim3_trajectory")
        except ReconError as error:
            result.notes.append(f"surface: not computable with {alignment}, {error}")
            continue
        aligned = replace(mesh, vertices=scale * mesh.vertices @ R.T + t, normals=None, unit=gt.unit)
        metrics, notes = surface_metrics(aligned, gt, alignment, median_depth, config.num_samples, config.seed)
        result.metrics.extend(metrics)
        result.notes.extend(notes)
        result.gt_used["mesh"] = result.gt_used["mesh"] or bool(metrics)
        if alignment == "sim3_trajectory" and metrics:
            write_bytes(out / "figures" / "surface_error.png", _surface_error_map(aligned, gt, transformed(poses[0], scale, R, t)))


def _surface_error_map(mesh: Mesh, gt: Mesh, T_world_camera: np.ndarray) -> bytes:
    error = distances(mesh.vertices, gt)
    high = float(np.percentile(error, 95))
    renderer = MeshRenderer(mesh, vertex_normals(mesh.vertices, mesh.faces))
    colors = colorize(error, 0.0, high, ERROR_COLORS)
    panels = [(view.name, renderer.render(colors, view, 420, 360)) for view in viewpoints(mesh, T_world_camera)[:3]]
    return panels_figure(panels, ERROR_COLORS, 0.0, high, f"distance to the true surface ({gt.unit})")


def _is_metric(scale: Path, truth_unit: Unit) -> bool:
    return read_json(scale / "scale.json")["unit"] == truth_unit == "mm"


STAGE = Stage(
    config=Config,
    run=run,
    reads=("source", "frames", "scale", "mesh"),
    writes=("metrics.json",),
    seconds_per_frame=0.1,
    bytes_per_frame=5_000,
)
