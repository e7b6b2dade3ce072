"""Camera poses of the recording, the final lens and sparse points: sparse maps joined, and dense alignment for the rest."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from recon.data import open_source
from recon.io.atomic import atomic_path, read_json, write_json
from recon.io.cameras import read_camera, write_camera
from recon.io.depth import read_depth
from recon.pipeline import Stage, track
from recon.tracking.map_files import read_maps
from recon.tracking.mapping import SparseMap
from recon.tracking.tracker import Method, Recording, Track, Tracker
from recon.types import MAX_SEED, Camera, ReconError, bounded

UNIT_SOURCES = {True: "the median depth of the sparse points is 1", False: "the median predicted depth of the first posed frame is 1"}


@dataclass(frozen=True)
class Config:
    """How frames are posed."""

    method: Method | Literal["still", "dataset"] = "hybrid"
    """"sfm": structure from motion alone; "alignment": dense alignment on predicted depth alone; "hybrid": alignment for
    the frames that structure from motion leaves out; "still": the camera is known to stand still; "dataset": the data set's own
    poses, which the report tells, together with its own depth (depth.model=dataset)."""
    seed: int = bounded(0, 0, MAX_SEED)
    """Of every random choice."""


def run(inputs: dict[str, Path], out: Path, config: Config) -> None:
    """Write `camera.json`, `trajectory.json` and `points.npz`. Frames that cannot be posed are "lost" with a reason."""
    gate_file = read_json(inputs["masks"] / "gate.json")
    gate = gate_file["frames"]
    camera_file = read_json(inputs["camera"] / "camera.json")
    order = [entry["index"] for entry in gate if entry["status"] == "ok"]
    if not order:
        raise ReconError("no frame is usable: every frame was rejected; look at the reasons in frames.json of the masks stage", 1)
    camera = read_camera(inputs["camera"] / "camera.json")
    if read_json(inputs["frames"] / "frames.json")["is_unrelated"]:
        _write(out, gate, _alone(order, camera, inputs["depth"]), config, camera_file["intrinsics"])
        return
    if config.method in ("still", "dataset"):
        known = _known(inputs, order, camera, config.method)
        depth = read_depth(inputs["depth"] / "depth" / f"{next(iter(known.poses)):06d}.tiff")
        median_depth = float(np.median(depth[depth > 0])) if known.unit == "mm" and (depth > 0).any() else 1.0
        _write(out, gate, known, config, camera_file["intrinsics"], median_depth)
        return
    recording = Recording(
        order=order,
        images=inputs["frames"] / "images",
        masks=inputs["masks"] / "masks",
        depth=inputs["depth"] / "depth",
        camera=camera,
        cuts=gate_file["cuts"],
    )
    maps = [] if config.method == "alignment" else read_maps(inputs["structure"])
    result = Tracker(recording, maps, config.method, config.seed, progress=track).run()
    if is_metric(inputs["depth"]) and "still" in result.method_of.values():
        result = replace(result, factors=dict.fromkeys(result.poses, 1.0), unit="mm")
    if not result.poses:
        raise ReconError('structure from motion registered no frame; trajectory.method = "hybrid" also aligns on predicted depth', 1)
    _write(out, gate, result, config, camera_file["intrinsics"])


def is_metric(depth: Path) -> bool:
    """Whether the depth stage's maps are in millimetres: those that came with a data set that says so."""
    return read_json(depth / "depth.json")["scale"] == "metric"


def _known(inputs: dict[str, Path], order: list[int], camera: Camera, method: str) -> Track:
    """Poses that need no estimation. Raises ReconError where depth is not in the same unit, or the data set has no poses."""
    metric = is_metric(inputs["depth"])
    poses = dict.fromkeys(order, np.eye(4))
    if method == "dataset":
        sequence = open_source(inputs["source"])
        if not metric:
            raise ReconError("trajectory.method=dataset needs depth in the data set's millimetres: set depth.model=dataset too")
        if sequence.trajectory_gt is None and not sequence.is_still:
            raise ReconError(f"trajectory.method=dataset: {sequence.name} ({sequence.dataset}) has no poses; leave it at hybrid")
        if sequence.trajectory_gt is not None:
            gt = sequence.trajectory_gt
            poses = {int(i): T for i, T in zip(gt.frame_indices, gt.T_world_camera, strict=True) if i in set(order)}
    if not poses:
        raise ReconError("trajectory.method=dataset: none of the usable frames has a pose in the data set", 1)
    first = next(iter(poses))
    factors = dict.fromkeys(poses, 1.0)
    if not metric:
        depth = read_depth(inputs["depth"] / "depth" / f"{first:06d}.tiff")
        factors = dict.fromkeys(poses, 1 / float(np.median(depth[depth > 0])) if (depth > 0).any() else 1.0)
    reasons = {index: "the data set has no pose for it" for index in order if index not in poses}
    kind = "still" if method == "still" or len(np.unique([T[:3] for T in poses.values()], axis=0)) == 1 else "dataset"
    unit = "mm" if metric else "unitless"
    return Track(camera, poses, factors, dict.fromkeys(poses, first), dict.fromkeys(poses, kind), reasons, None, unit=unit)


def _alone(order: list[int], camera: Camera, depth: Path) -> Track:
    """Views that do not follow one another share no world: the first stands for itself, and no other can be posed beside it."""
    first = order[0]
    predicted = read_depth(depth / "depth" / f"{first:06d}.tiff")
    factor = 1 / float(np.median(predicted[predicted > 0])) if (predicted > 0).any() else 1.0
    reasons = {index: "a single view, unrelated to the others: it has depth but no place in a common world" for index in order[1:]}
    return Track(camera, {first: np.eye(4)}, {first: factor}, {first: first}, {first: "still"}, reasons, None)


def _write(out: Path, gate: list[dict], result: Track, config: Config, intrinsics: str, median_depth: float = 1.0) -> None:
    write_camera(out / "camera.json", result.camera, intrinsics=intrinsics)
    write_points(out / "points.npz", result.sparse)
    write_json(out / "trajectory.json", description(gate, result, config.method, median_depth))


def description(gate: list[dict], result: Track, method: str, median_depth: float = 1.0) -> dict:
    """Content of trajectory.json: one entry per source frame, figures of the map, and the pieces that stand apart."""
    num_points = 0 if result.sparse is None else len(result.sparse.xyz)
    return {
        "method": method,
        "is_truth": method == "dataset",
        "unit": result.unit,
        "unit_source": "the data set's own depth" if result.unit == "mm" else UNIT_SOURCES[result.sparse is not None],
        "frames": [_frame(entry, result) for entry in gate],
        "mapping": {
            "num_maps": result.num_maps,
            "num_joined": result.num_joined,
            "num_loops": result.num_loops,
            "num_frames": list(result.method_of.values()).count("sfm"),
            "num_aligned": list(result.method_of.values()).count("alignment"),
            "still": "still" in result.method_of.values(),
            "extent": _extent(result) / median_depth,
            "num_points": num_points,
            "mean_error_px": None if num_points == 0 else float(result.sparse.error_px.mean()),
        },
        "pieces": [
            {"frames": [{"index": index, "T_world_camera": T.tolist()} for index, T in piece.poses.items()]} for piece in result.others
        ],
    }


def _frame(entry: dict, result: Track) -> dict:
    index = entry["index"]
    frame = {"index": index, "status": "rejected", "reason": entry["reason"], "method": None, "T_world_camera": None, "depth_factor": None}
    if entry["status"] != "ok":
        return frame
    if index not in result.poses:
        return frame | {"status": "lost", "reason": _apart(index, result) or result.reasons[index]}
    return frame | {
        "status": "keyframe" if result.keyframe_of[index] == index else "posed",
        "reason": None,
        "method": result.method_of[index],
        "T_world_camera": result.poses[index].tolist(),
        "depth_factor": result.factors[index],
    }


def _extent(result: Track) -> float:
    """Largest distance of a camera centre from the first one, in world units: median depths, but where metric depth gave them."""
    centres = np.array([T[:3, 3] for T in result.poses.values()])
    return float(np.linalg.norm(centres - centres[0], axis=1).max())


def _apart(index: int, result: Track) -> str | None:
    """Which piece holds a frame that the main one does not, and what to do with it; None when none does."""
    for number, piece in enumerate(result.others, start=2):
        if index in piece.poses:
            reach = f"piece {number} ({len(piece.poses)} frames, {min(piece.poses)} to {max(piece.poses)})"
            return f"it belongs to {reach}, which nothing joins to the main one; frames.start_s and frames.end_s reconstruct it alone"
    return None


def write_points(path: Path, sparse: SparseMap | None) -> None:
    """Arrays of the sparse map, empty without one: `xyz`, `error_px` by point; `obs_point`, `obs_frame`, `obs_px` by observation."""
    arrays = {"xyz": np.zeros((0, 3)), "error_px": np.zeros(0), "obs_px": np.zeros((0, 2))}
    arrays |= {"obs_point": np.zeros(0, np.int64), "obs_frame": np.zeros(0, np.int64)}
    if sparse is not None:
        arrays = {name: getattr(sparse, name) for name in arrays}
    with atomic_path(path) as part, open(part, "wb") as file:
        np.savez(file, **arrays)


def _also_reads(config: Config) -> tuple[str, ...]:
    """What looks at no map needs none made for it."""
    return {"alignment": (), "still": (), "dataset": ("source",)}.get(config.method, ("structure",))


STAGE = Stage(
    config=Config,
    run=run,
    version=6,
    reads=("frames", "camera", "masks", "depth"),
    also_reads=_also_reads,
    writes=("camera.json", "trajectory.json", "points.npz"),
    seconds_per_frame=0.3,
    bytes_per_frame=20_000,
)
