"""Structure from motion: the sparse maps that features alone give, before any depth is known."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from recon.io.atomic import read_json
from recon.io.cameras import read_camera
from recon.pipeline import Stage
from recon.tracking.features import FeatureOptions, feature_masks
from recon.tracking.map_files import write_maps
from recon.tracking.mapping import MIN_MAP_FRAMES, SparseMap, map_frames
from recon.tracking.strays import without_strays
from recon.types import MAX_SEED, MAX_THREADS, bounded

WORK = "work"
"""Folder for what a killed run can use again; gone when the stage is done."""


@dataclass(frozen=True)
class Config:
    """What is detected, matched and mapped."""

    max_num_features: int = bounded(3072, 16, 100_000)
    """SIFT features per frame."""
    overlap: int = bounded(10, 1, 1000)
    """How many successors each frame is matched with; further ones are matched at doubling distances."""
    max_mapped_frames: int = bounded(400, 2)
    """Of a longer recording, structure from motion gets every n-th frame: its time grows with the square of their number."""
    seed: int = bounded(0, 0, MAX_SEED)
    """Of every random choice."""
    num_threads: int = bounded(0, 0, MAX_THREADS, keyed=False)
    """0 means all; 1 gives the same bytes on every run."""


def run(inputs: dict[str, Path], out: Path, config: Config) -> None:
    """Write `structure.json` and a folder per map; none where nothing registers or frames do not follow one another."""
    usable = [entry["index"] for entry in read_json(inputs["masks"] / "gate.json")["frames"] if entry["status"] == "ok"]
    is_unrelated = read_json(inputs["frames"] / "frames.json")["is_unrelated"]
    frames = [] if is_unrelated else usable[:: max(1, -(-len(usable) // config.max_mapped_frames))]
    write_maps(out, _maps(inputs, out / WORK, frames, config) if frames else [], len(frames))
    shutil.rmtree(out / WORK, ignore_errors=True)


def _maps(inputs: dict[str, Path], work: Path, frames: list[int], config: Config) -> list[SparseMap]:
    maps = map_frames(
        inputs["frames"] / "images",
        feature_masks(inputs["masks"] / "masks", frames, work / "masks"),
        {index: f"{index:06d}.jpg" for index in frames},
        read_camera(inputs["camera"] / "camera.json"),
        read_json(inputs["camera"] / "camera.json")["intrinsics"] == "estimated",
        work,
        FeatureOptions(config.max_num_features, overlap=config.overlap, seed=config.seed, num_threads=config.num_threads),
    )
    cleaned = [without_strays(sparse) for sparse in maps]
    return sorted((sparse for sparse in cleaned if len(sparse.poses) >= MIN_MAP_FRAMES), key=lambda sparse: -len(sparse.poses))


STAGE = Stage(
    config=Config,
    run=run,
    version=4,
    reads=("frames", "camera", "masks"),
    writes=("structure.json",),
    seconds_per_frame=1.0,
    bytes_per_frame=60_000,
)
