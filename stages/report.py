"""Report: gather what every stage found into report.json, one HTML page and the files that a user takes away."""

from __future__ import annotations

import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from recon.io.atomic import atomic_path, read_json, write_json, write_text
from recon.io.meshes import read_mesh
from recon.io.trajectory import write_tum
from recon.pipeline import RUN, Stage, reached_from, read_manifest, unkeyed
from recon.report.page import render_page
from recon.report.pictures import PictureSources, page_pictures
from recon.report.summary import frame_list, frame_numbers, instrument_notes, partial_reasons
from recon.scoring.field_pictures import VIDEO
from recon.scoring.score import Inputs
from recon.types import Metric, Trajectory, bounded

TOLD = (
    *("frames", "camera", "masks", "structure", "depth", "trajectory", "scale", "stereo", "surface"),
    *("scene", "splats", "nerf", "mesh", "evaluation"),
)
"""Stages whose cost and config the report tells, those that this result hangs on."""
SCHEMA = 1
MIN_EXTENT = 0.02
"""Of the camera path in median depths: with less, nothing is seen from aside, and depth is the network's alone."""
SETTINGS = ("seed", "num_threads", "device", "fuse")
"""Of the whole run."""


@dataclass(frozen=True)
class Config:
    """How much the page shows."""

    num_frames_shown: int = bounded(8, 1)
    """Frames in the contact sheet and beside their depth."""
    preview_width_px: int = bounded(660, 32, 4096)
    """Width of the pictures of the mesh."""
    seed: int = unkeyed(0)
    """Told in report.json, as are the next three."""
    num_threads: int = unkeyed(0)
    """As given for the run."""
    device: str = unkeyed("auto")
    """As given for the run."""
    fuse: str = "tsdf"
    """As given for the run."""


def run(inputs: dict[str, Path], out: Path, config: Config) -> None:
    """Write report.json, report.html, frames.json, trajectory.txt, mesh.ply and mesh.glb."""
    start = time.perf_counter()
    source = read_json(inputs["frames"] / "frames.json")
    tracked = read_json(inputs["scale"] / "trajectory.json")
    poses = tracked["frames"]
    gate = read_json(inputs["masks"] / "gate.json")
    frames = frame_list(source["frames"], gate["frames"], poses)
    evaluation = read_json(inputs["evaluation"] / "metrics.json")
    unit = read_json(inputs["scale"] / "scale.json")["unit"]
    trajectory = _trajectory(frames, poses, unit)
    write_json(out / "frames.json", frames)
    write_tum(out / "trajectory.txt", trajectory)
    for number, piece in enumerate(tracked["pieces"], start=2):
        write_tum(out / f"trajectory_{number}.txt", _trajectory(frames, piece["frames"], "unitless"))
    for name in ("mesh.ply", "mesh.glb"):
        _copy(inputs["mesh"] / name, out / name)
    for file in _field_files(inputs, config.fuse):
        _copy(file, out / (f"meshes/{file.name}" if file.parent.name == "meshes" else file.name))
    sources = PictureSources(inputs, frames, trajectory, read_mesh(inputs["mesh"] / "mesh.ply"))
    report = _report(inputs, source, frames, evaluation, config)
    report["pieces"] = [_piece(number, piece["frames"]) for number, piece in enumerate(tracked["pieces"], start=2)]
    report["still"] = report["frames"]["posed"] > 1 and tracked["mapping"]["extent"] < MIN_EXTENT and not source["is_unrelated"]
    report["cuts"] = gate["cuts"]
    report["seconds"]["report"] = round(time.perf_counter() - start, 3)
    pictures = page_pictures(sources, config.num_frames_shown, config.preview_width_px, report["seconds"])
    notes = [*source["notes"], *instrument_notes(gate["instruments"]), *evaluation["notes"]]
    write_text(out / "report.html", render_page(source["name"], report, frames, notes, pictures))
    # Last, since `report.json` counts its own time.
    report["seconds"]["report"] = round(time.perf_counter() - start, 3)
    write_json(out / "report.json", report)


def _report(inputs: dict[str, Path], source: dict, frames: list[dict], evaluation: dict, config: Config) -> dict[str, Any]:
    """Return what report.json holds."""
    manifests = _manifests(inputs)
    scale = read_json(inputs["scale"] / "scale.json")
    seconds = {name: manifest["seconds"] for name, manifest in manifests.items()}
    speed = Metric("speed", "seconds_per_frame", sum(seconds.values()) / len(frames), "s")
    network = read_json(inputs["depth"] / "depth.json")
    return {
        "schema": SCHEMA,
        "source": {name: source[name] for name in ("name", "dataset")},
        "unit": scale["unit"],
        "scale": {name: scale[name] for name in ("source", "value", "sigma")},
        "frames": frame_numbers(frames),
        "metrics": [*evaluation["metrics"], asdict(speed)],
        "inputs_used": {
            **evaluation["truth_in"],
            "intrinsics": read_json(inputs["camera"] / "camera.json")["intrinsics"],
            "trained_on": network["trained_on"],
            "trained_on_this_data": Inputs(trained_on=tuple(network["trained_on"])).has_seen(source["dataset"], source["name"]),
            "adapted_on_this_recording": network["adapted"],
        },
        "evaluation_gt": evaluation["gt_used"],
        "stereo": _stereo(read_json(inputs["stereo"] / "stereo.json")) if config.fuse == "tsdf" else None,
        "coverage": read_json(inputs["mesh"] / "mesh.json")["coverage"],
        "rigidity": read_json(inputs["surface"] / "surface.json")["rigidity"] if config.fuse == "tsdf" else None,
        "field": None if config.fuse == "tsdf" else read_json(inputs[config.fuse] / f"{config.fuse}.json"),
        "alignments": evaluation["rungs"],
        "partial": partial_reasons(source, frames),
        "seconds": seconds,
        "resumed": [name for name, manifest in manifests.items() if manifest.get("resumed")],
        "peak_rss_mb": max(manifest["peak_rss_mb"] for manifest in manifests.values()),
        "versions": manifests["mesh"]["versions"],
        "settings": {name: getattr(config, name) for name in SETTINGS},
        "config": {name: manifest["config"] for name, manifest in manifests.items()} | {"report": asdict(config)},
    }


def _field_files(inputs: dict[str, Path], fuse: str) -> list[Path]:
    """What a run with a radiance field gives beside its mesh."""
    if fuse == "tsdf":
        return []
    field = inputs[fuse]
    single = [file for file in (field / "splats.ply", field / "animation.glb") if file.exists()]
    return [*single, inputs["evaluation"] / VIDEO, *sorted((field / "meshes").glob("*.ply"))]


def _piece(number: int, frames: list[dict]) -> dict[str, Any]:
    """A stretch of the recording that has poses of its own, in a world and unit of its own."""
    indices = [frame["index"] for frame in frames]
    return {"trajectory": f"trajectory_{number}.txt", "num_frames": len(indices), "first": min(indices), "last": max(indices)}


def _stereo(found: dict) -> dict[str, Any]:
    """How much of the keyframes' depth is matched between views."""
    shares = [keyframe["matched_share"] for keyframe in found["keyframes"]]
    return {"keyframes": len(shares), "matched_share": float(np.mean(shares)) if shares else 0.0}


def _manifests(inputs: dict[str, Path]) -> dict[str, dict[str, Any]]:
    """Of every stage that was needed, in the order of TOLD: which ones are, depends on the config."""
    folders = {folder.parent.name: folder for folder in reached_from(inputs[RUN], inputs["evaluation"])}
    return {name: read_manifest(folders[name]) for name in TOLD if name in folders}


def _trajectory(frames: list[dict], poses: list[dict], unit: str) -> Trajectory:
    posed = [frame for frame in poses if frame["T_world_camera"] is not None]
    time_of = {frame["index"]: frame["timestamp_s"] for frame in frames}
    return Trajectory(
        frame_indices=np.array([frame["index"] for frame in posed], dtype=np.int64),
        timestamps_s=np.array([time_of[frame["index"]] for frame in posed], dtype=np.float64),
        T_world_camera=np.array([frame["T_world_camera"] for frame in posed], dtype=np.float64).reshape(-1, 4, 4),
        unit=unit,
    )


def _copy(source: Path, target: Path) -> None:
    """A copy, not a link: who edits a result in place must not change what later runs reuse."""
    with atomic_path(target) as part:
        shutil.copyfile(source, part)


STAGE = Stage(
    config=Config,
    run=run,
    version=3,
    reads=(RUN, "frames", "camera", "masks", "depth", "trajectory", "scale", "mesh", "evaluation"),
    also_reads=lambda config: ("stereo", "surface") if config.fuse == "tsdf" else ("scene", config.fuse),
    writes=("report.json", "report.html", "frames.json", "trajectory.txt", "mesh.ply", "mesh.glb"),
    seconds_per_frame=0.05,
    bytes_per_frame=20_000,
)
