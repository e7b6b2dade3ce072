"""Splats: deformable Gaussians fitted to a scene, and what they give back: renders, depth, and a surface over time."""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from recon.fields.rendered_surface import meshed_positions
from recon.fields.scene import Scene, read_scene
from recon.fields.splats.initialise import DeformationName, make_model, start_from_scene, start_from_surface
from recon.fields.splats.model import SplatModel
from recon.fields.splats.surface import carry, draw, reference_surface
from recon.fields.splats.tracks import reference_frame
from recon.fields.splats.training import CHECKPOINT, Recipe, Trainer
from recon.fields.splats.views import TrainingViews, filled_depth
from recon.io.animation import TimedMesh, write_animated_glb
from recon.io.atomic import write_json
from recon.io.depth import write_depth
from recon.io.images import write_png
from recon.io.meshes import read_mesh, vertex_normals, write_ply
from recon.io.splats import SplatCloud, write_splat_ply
from recon.models import torch_device
from recon.pipeline import Stage, track, unkeyed
from recon.types import MAX_SEED, MAX_THREADS, Mesh, ReconError, bounded

GAUSSIANS_PER_PIXEL = 1.2
FILLED = "filled.npy"
"""Of use while the stage works; gone when it is done."""


@dataclass(frozen=True)
class Config:
    """How Gaussians begin, move and are fitted."""

    deformation: DeformationName = "time_basis"
    """"time_basis": every Gaussian its own sum of bumps in time (Deform3DGS); "hexplane": a small network over planes of features
    (4D Gaussians), smoother and slower; "static": none."""
    kind: Literal["gaussians", "surfels"] = "gaussians"
    """"surfels" are flat and face along the surface."""
    start: Literal["depth", "surface"] = "depth"
    """"depth": from the depth of the frames, with motion by optical flow where the camera stands still; "surface": from the
    vertices and normals of the fused surface, for a camera that moves around tissue that hardly does."""
    max_gaussians: int = bounded(50_000, 100, 5_000_000)
    """No more than this many, and at most 1.2 a pixel of the pictures."""
    num_steps: int = bounded(1800, 1, 1_000_000)
    """Frames that are drawn and compared: on two cores about 40 ms each at 160x128, 120 ms at 320x256."""
    refine_poses: bool = False
    """Let the poses of a moving camera follow, but the first; they are written to `splats.json`, and the trajectory stays as it was."""
    fill_unseen: bool = False
    """Close the holes of a still camera's surface where no frame ever saw anything; they are marked by no observation and a
    confidence of 0."""
    max_meshes: int = bounded(40, 1, 10_000)
    """Times at which the surface is written, spread over the recording; held-out frames, which are scored, come on top."""
    backend: Literal["auto", "cpu", "cuda"] = unkeyed("auto")
    """What draws: gsplat on CUDA (extra `cuda`), or the processor."""
    device: str = unkeyed("auto")
    """"auto" takes a CUDA device when there is one and gsplat is installed."""
    seed: int = bounded(0, 0, MAX_SEED)
    """Of the order of frames and every random start."""
    num_threads: int = bounded(0, 0, MAX_THREADS, keyed=False)
    """Of the fusion of a moving camera's surface; 0 means as many as there are processors."""


def run(inputs: dict[str, Path], out: Path, config: Config) -> None:
    """Write `splats.ply`, `checkpoint.pt`, `renders/`, `depth/`, `meshes/`, `surface.ply`, `animation.glb` and `splats.json`."""
    scene = read_scene(inputs["scene"])
    if not scene.kept:
        raise ReconError("the scene keeps no frame to learn from: set scene.held_out=none")
    torch.manual_seed(config.seed)
    trainer = _trainer(inputs, scene, out, config)
    model = trainer.run(track)
    scene = trainer.refined_scene()
    reference = reference_frame(scene)
    for position in track(range(len(scene.frames)), len(scene.frames), "drawing frames"):
        frame = scene.frames[position]
        drawn = draw(model, scene, frame.T_world_camera, frame.time, scene.camera, config.backend)
        write_png(out / "renders" / f"{frame.index:06d}.png", np.rint(255 * drawn.color).astype(np.uint8))
        write_depth(out / "depth" / f"{frame.index:06d}.tiff", drawn.depth)
    mesh = reference_surface(model, scene, reference, config.fill_unseen, config.backend, config.num_threads)
    if len(mesh.faces) == 0:
        raise ReconError("the Gaussians show no surface that any frame saw: look at renders/ and at the masks", exit_code=1)
    write_ply(out / "surface.ply", mesh)
    _write_meshes(out, model, scene, reference, mesh, config)
    write_splat_ply(out / "splats.ply", cloud(model, scene, scene.frames[reference].time))
    facts = {"kind": config.kind, "deformation": config.deformation, "num_gaussians": len(model), "num_steps": trainer.step}
    times = {"reference_index": scene.frames[reference].index, "reference_time_s": scene.frames[reference].timestamp_s}
    training = {"losses": trainer.last_terms, "depth": scene.depth_kind, "unit": scene.unit}
    counts = {"num_frames": len(scene.kept), "num_held_out": len(scene.held_out), "unseen_share": float((~model.is_seen).float().mean())}
    poses = {"poses": {f.index: f.T_world_camera.tolist() for f in scene.frames}} if config.refine_poses and not scene.is_still else {}
    write_json(out / "splats.json", facts | times | training | counts | poses)
    (out / FILLED).unlink()


def _trainer(inputs: dict[str, Path], scene: Scene, out: Path, config: Config) -> Trainer:
    most = min(config.max_gaussians, round(GAUSSIANS_PER_PIXEL * scene.camera.width_px * scene.camera.height_px))
    recipe = Recipe(
        num_steps=config.num_steps,
        max_gaussians=most,
        refine_poses=config.refine_poses and not scene.is_still,
        backend=config.backend,
        seed=config.seed,
    )
    filled = filled_depth(scene, out / FILLED)

    def begin() -> SplatModel:
        if config.start == "surface":
            start = start_from_surface(read_mesh(inputs["surface"] / "surface.ply"), scene, most)
        else:
            start = start_from_scene(scene, filled, most)
        return make_model(start, scene, config.deformation, config.kind == "surfels")

    return Trainer(begin, TrainingViews(scene, filled, device_for(config)), recipe, out)


def device_for(config: Config) -> str:
    """Where Gaussians lie. Raises ReconError for a device or a backend that is not there."""
    has_gsplat = find_spec("gsplat") is not None
    if config.device == "auto" and (config.backend == "cpu" or not has_gsplat) and config.backend != "cuda":
        return "cpu"
    device = torch_device(config.device)
    if config.backend == "cuda" and not device.startswith("cuda"):
        raise ReconError('splats.backend = "cuda" needs a CUDA device, and there is none here: use backend "cpu"')
    if device.startswith("cuda") and config.backend != "cpu" and not has_gsplat:
        raise ReconError("drawing splats on CUDA needs gsplat: pip install 'endorecon[cuda]', or set splats.backend=cpu")
    return device


def _checksums(config: Config) -> dict[str, str]:
    """Raises ReconError, before the first stage starts, for a device or a backend that is not there."""
    device_for(config)
    return {}


def _write_meshes(out: Path, model: SplatModel, scene: Scene, reference: int, mesh: Mesh, config: Config) -> None:
    """The surface at several times: the same vertices, carried along."""
    chosen = [scene.frames[i] for i in meshed_positions(scene, config.max_meshes)]
    moved = carry(mesh.vertices, model, scene, scene.frames[reference].time, [frame.time for frame in chosen])
    timed = []
    for frame, vertices in zip(chosen, moved, strict=True):
        at_time = replace(mesh, vertices=vertices, normals=vertex_normals(vertices, mesh.faces))
        write_ply(out / "meshes" / f"{frame.index:06d}.ply", at_time)
        timed.append(TimedMesh(frame.timestamp_s, at_time))
    write_animated_glb(out / "animation.glb", timed)


def cloud(model: SplatModel, scene: Scene, time: float) -> SplatCloud:
    """The Gaussians at a time, in the scene's unit."""
    with torch.no_grad():
        splats = model.at(time)
        return SplatCloud(
            means=splats.means.cpu().numpy() * scene.median_depth,
            log_scales=np.log(splats.scales.cpu().numpy() * scene.median_depth),
            quaternions_wxyz=torch.nn.functional.normalize(splats.quaternions, dim=1).cpu().numpy(),
            opacity_logits=model.opacity_logits.cpu().numpy(),
            colors=splats.features[:, :3].clamp(0, 1).cpu().numpy(),
            normals=model.normals().cpu().numpy(),
            unit=scene.unit,
        )


STAGE = Stage(
    config=Config,
    run=run,
    version=3,
    checksums=_checksums,
    reads=("scene",),
    also_reads=lambda config: ("surface",) if config.start == "surface" else (),
    writes=("splats.ply", CHECKPOINT, "renders/*.png", "depth/*.tiff", "meshes/*.ply", "surface.ply", "animation.glb", "splats.json"),
    seconds_once=lambda config: (0.2 if config.deformation == "hexplane" else 0.12) * config.num_steps,
    seconds_per_frame=0.5,
    bytes_per_frame=1_000_000,
)
