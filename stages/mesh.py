"""Mesh: clean the fused surface, write it for work (PLY) and for showing (GLB), and estimate what it misses."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from recon.io.atomic import read_json, write_json
from recon.io.meshes import read_mesh, write_glb, write_ply
from recon.mesh.clean import CleanSettings, clean
from recon.mesh.holes import coverage_summary, estimate_coverage
from recon.pipeline import Stage
from recon.types import bounded

FRAMES_FOR_FULL_SUPPORT = 10
"""Fewer frames cannot support a surface as well, and what they saw is still worth showing."""


@dataclass(frozen=True)
class Config:
    """What of the surface is kept."""

    min_confidence: float = bounded(0.15, 0.0, 1.0)
    """Surface of lower confidence (the probability that it is true to 1 % of the median depth) is cut away; in proportion less
    where fewer than 10 frames were fused."""
    max_removed_share: float = bounded(0.4, 0.0, 1.0)
    """But never more than this share of the faces."""
    min_component_share: float = bounded(0.005, 0.0, 1.0)
    """Pieces with fewer faces than this share of the largest one are dropped."""
    smoothing_steps: int = bounded(3, 0, 1000)
    """Pairs of Taubin smoothing steps."""
    fuse: str = "tsdf"
    """As given for the run."""


def run(inputs: dict[str, Path], out: Path, config: Config) -> None:
    """Write `mesh.ply`, `mesh.glb` and `mesh.json`. Raises ReconError (exit code 1) when no surface is left."""
    source = made_by(config.fuse)
    surface = read_mesh(inputs[source] / "surface.ply")
    num_frames = read_json(inputs[source] / f"{source}.json")["num_frames"]
    min_confidence = config.min_confidence * min(1.0, num_frames / FRAMES_FOR_FULL_SUPPORT)
    settings = CleanSettings(min_confidence, config.max_removed_share, config.min_component_share, config.smoothing_steps)
    mesh = clean(surface, settings)
    write_ply(out / "mesh.ply", mesh)
    write_glb(out / "mesh.glb", mesh)
    counts = {"num_vertices": len(mesh.vertices), "num_faces": len(mesh.faces)}
    kept = round(len(mesh.faces) / len(surface.faces), 4)
    posed = [f for f in read_json(inputs["scale"] / "trajectory.json")["frames"] if f["T_world_camera"] is not None]
    centers = np.array([f["T_world_camera"] for f in posed], dtype=np.float64)[:, :3, 3]
    coverage = coverage_summary(estimate_coverage(mesh), mesh.unit, [f["index"] for f in posed], centers)
    write_json(out / "mesh.json", {"unit": mesh.unit, **counts, "kept_share": kept, "coverage": coverage})


def made_by(fuse: str) -> str:
    """The stage that gives the surface."""
    return "surface" if fuse == "tsdf" else fuse


STAGE = Stage(
    config=Config,
    run=run,
    version=3,
    reads=("scale",),
    also_reads=lambda config: (made_by(config.fuse),),
    writes=("mesh.ply", "mesh.glb", "mesh.json"),
    seconds_per_frame=0.05,
    bytes_per_frame=200_000,
)
