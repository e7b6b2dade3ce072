"""Evaluation: compare depth, camera path and surface with the source's truth, where it has any.

The only stage that opens the truth. Without truth it writes an empty list. The numbers are those of `recon eval`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from recon.data import open_source
from recon.eval.surface import SurfaceOptions
from recon.fields.scene import Scene, read_scene
from recon.io.atomic import read_json, write_bytes, write_json, write_text
from recon.io.cameras import read_camera
from recon.io.images import read_image
from recon.pipeline import Stage, file_checksum, unkeyed
from recon.report.figures import trajectory_figure
from recon.report.tables import as_csv
from recon.sampling import spread
from recon.scoring.depth import DepthOptions, compare_depth
from recon.scoring.field import FieldFiles, FieldOptions, score_field
from recon.scoring.field_pictures import write_field_pictures
from recon.scoring.frame_surface import FrameComparison, compare_frame_surfaces
from recon.scoring.pictures import depth_error_map, surface_pictures
from recon.scoring.prediction import Prediction, prediction_of_run
from recon.scoring.score import Inputs, Score
from recon.scoring.surface import Comparison, compare_surface, median_true_depth
from recon.scoring.trajectory import compare_trajectory
from recon.types import MAX_SEED, FrameSequence, ReconError, Trajectory, bounded


@dataclass(frozen=True)
class Config:
    """How much is compared and drawn."""

    num_error_maps: int = bounded(3, 0)
    """Frames whose depth error is drawn."""
    max_depth_frames: int = bounded(0, 0)
    """Depth is compared on at most this many frames, spread over the recording; 0 means all."""
    max_median_frames: int = bounded(50, 1)
    """Frames, spread over the recording, whose true depth says how far away the tissue is."""
    max_surface_frames: int = bounded(20, 1)
    """Where the truth is one surface a frame, at most this many frames are compared as surfaces."""
    num_samples: int = bounded(100_000, 100)
    """Points on each surface."""
    cap_mm: float = bounded(10.0, 0.1, 1000.0)
    """What missing surface costs in the penalised score."""
    lpips_alexnet: Path | None = unkeyed(None)  # noqa: RUF009
    """AlexNet's weights in torchvision's layout; with `lpips_linear`, pictures of a radiance field are scored by LPIPS too."""
    lpips_linear: Path | None = unkeyed(None)  # noqa: RUF009
    """LPIPS' own linear weights for AlexNet."""
    fuse: str = "tsdf"
    """As given for the run."""
    seed: int = bounded(0, 0, MAX_SEED)
    """Of the points sampled on the surfaces and of the bootstrap."""


def run(inputs: dict[str, Path], out: Path, config: Config) -> None:
    """Write `metrics.json`, `frames.csv` and `figures/*`."""
    sequence = open_source(inputs["source"])
    used = truth_in(inputs)
    pred = prediction_of_run("this run", Inputs(**used), inputs["scale"], inputs["mesh"] / "mesh.ply", inputs["masks"] / "scope.png")
    scores: list[Score] = []
    median_depth = None
    if sequence.depth_gt is not None:
        scores.append(_depth(sequence, pred, inputs, out, config))
        median_depth = median_true_depth(sequence, config.max_median_frames)
    if sequence.trajectory_gt is not None and pred.trajectory is not None:
        scores.append(_trajectory(sequence, sequence.trajectory_gt, pred, pred.trajectory, out, config))
    if sequence.mesh_gt is not None:
        scores.append(_surface(sequence, pred, median_depth, out, config))
    elif sequence.frame_mesh_gt is not None:
        scores.append(compare_frame_surfaces(sequence, pred, FrameComparison(_options(config), max_frames=config.max_surface_frames)))
    if config.fuse != "tsdf":
        scores.append(_field(sequence, inputs, out, config, Inputs(**used)))
    _write(out, scores, used)


def _field(sequence: FrameSequence, inputs: dict[str, Path], out: Path, config: Config, used: Inputs) -> Score:
    """Pictures, depth, surfaces and tracks of a radiance field, and a film of them."""
    lens = read_camera(inputs["trajectory"] / "camera.json")
    files = FieldFiles(inputs[config.fuse], _fitted(read_scene(inputs["scene"]), inputs[config.fuse] / f"{config.fuse}.json"), used, lens)
    lpips = None
    if config.lpips_alexnet is not None and config.lpips_linear is not None:
        from recon.models.lpips import load_lpips, perceptual_distance

        lpips = partial(perceptual_distance, load_lpips(config.lpips_alexnet, config.lpips_linear))
    write_field_pictures(out, files)
    return score_field(sequence, files, FieldOptions(seed=config.seed, lpips=lpips))


def _fitted(scene: Scene, field_file: Path) -> Scene:
    """The scene with the poses that the field refined, where it did."""
    poses = read_json(field_file).get("poses", {})
    frames = (replace(f, T_world_camera=np.array(poses[str(f.index)])) if str(f.index) in poses else f for f in scene.frames)
    return replace(scene, frames=tuple(frames))


def truth_in(inputs: dict[str, Path]) -> dict[str, bool]:
    """Which truth entered the run: depth or poses of the data set, and the unit that they carry."""
    depth, poses = (read_json(inputs[name] / f"{name}.json")["is_truth"] for name in ("depth", "trajectory"))
    scale = read_json(inputs["scale"] / "scale.json")["source"] == "dataset"
    return {"gt_depth": depth, "gt_pose": poses, "gt_scale": scale and (depth or poses)}


def _depth(sequence: FrameSequence, pred: Prediction, inputs: dict[str, Path], out: Path, config: Config) -> Score:
    options = DepthOptions(max_frames=config.max_depth_frames or None, seed=config.seed)
    score = compare_depth(sequence, pred, options)
    scored = [int(row["index"]) for row in score.frames if row.get("scale")]
    for index in spread(scored, config.num_error_maps):
        picture = depth_error_map(sequence, pred, index, partial(read_image, inputs["frames"] / "images" / f"{index:06d}.jpg"))
        if picture is not None:
            write_bytes(out / "figures" / f"depth_error_{index:06d}.png", picture)
    return score


def _trajectory(sequence: FrameSequence, gt: Trajectory, pred: Prediction, path: Trajectory, out: Path, config: Config) -> Score:
    score, alignments = compare_trajectory(sequence, pred, config.seed)
    if "sim3_trajectory" in alignments:
        aligned, truth = alignments["sim3_trajectory"].map(path.T_world_camera[:, :3, 3]), gt.T_world_camera[:, :3, 3]
        write_bytes(out / "figures" / "trajectory.png", trajectory_figure(aligned, np.zeros(len(aligned), bool), gt.unit, truth))
    return score


def _surface(sequence: FrameSequence, pred: Prediction, median_depth: float | None, out: Path, config: Config) -> Score:
    score, rungs = compare_surface(sequence, pred, Comparison(_options(config), median_depth))
    surface_pictures(out / "figures", sequence, pred, score, rungs)
    return score


def _options(config: Config) -> SurfaceOptions:
    return SurfaceOptions(num_samples=config.num_samples, seed=config.seed, cap_mm=config.cap_mm)


def _write(out: Path, scores: list[Score], used: dict[str, bool]) -> None:
    frames: dict[int, dict[str, Any]] = {}
    for score in scores:
        for row in score.frames:
            frames.setdefault(row["index"], {}).update(row)
    write_text(out / "frames.csv", as_csv(frames[index] for index in sorted(frames)))
    result = {
        "metrics": [asdict(metric) for score in scores for metric in score.metrics],
        "truth_in": used,
        "gt_used": {kind: any(score.truth_used[kind] for score in scores) for kind in ("depth", "trajectory", "mesh")},
        "rungs": [row for score in scores for row in score.rungs],
        "curves": {name: curve for score in scores for name, curve in score.curves.items()},
        "notes": list(dict.fromkeys(note for score in scores for note in score.notes)),
    }
    write_json(out / "metrics.json", result)


def _checksums(config: Config) -> dict[str, str]:
    """Raises ReconError for weights of LPIPS that are not there, or of which only one file is given."""
    given = {name: path for name, path in (("alexnet", config.lpips_alexnet), ("linear", config.lpips_linear)) if path is not None}
    if len(given) == 1:
        raise ReconError("evaluation.lpips_alexnet and evaluation.lpips_linear belong together: give both or neither")
    return {f"lpips_{name}": file_checksum(path) for name, path in given.items()}


STAGE = Stage(
    config=Config,
    run=run,
    version=4,
    reads=("source", "frames", "masks", "depth", "trajectory", "scale", "mesh"),
    also_reads=lambda config: () if config.fuse == "tsdf" else ("scene", config.fuse),
    checksums=_checksums,
    writes=("metrics.json", "frames.csv"),
    seconds_per_frame=0.2,
    bytes_per_frame=8_000,
)
