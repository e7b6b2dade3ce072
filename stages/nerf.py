"""NeRF: train a field of density, colour and displacement on the scene, then render every frame and the surface at every time.

Nerfstudio does the training, in a process of its own, from which a killed stage goes on. Nothing is scored here.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from recon.fields.nerf.settings import NerfSettings
from recon.fields.nerf.training import Render, check_installed, train_and_render, trainable_scene
from recon.fields.rendered_surface import Rendering, fused_surface, meshed_positions, poses_for_time, squared_error, still_surface
from recon.fields.scene import Scene
from recon.fields.splats.tracks import reference_frame
from recon.io.animation import TimedMesh, write_animated_glb
from recon.io.atomic import write_json
from recon.io.depth import read_depth
from recon.io.images import read_image
from recon.io.meshes import read_mesh, write_ply
from recon.models import torch_device
from recon.pipeline import Stage, track, unkeyed
from recon.types import MAX_SEED, Mesh, bounded


@dataclass(frozen=True)
class Config:
    """How long and how finely to train, and at how many times the surface is wanted. Lengths are in median depths of the scene."""

    num_steps: int = bounded(2000, 1, 1_000_000)
    """Of training; a few hundred give a recognisable scene, twenty thousand a sharp one."""
    rays_per_step: int = bounded(512, 16, 65_536)
    """Pixels of tissue that a step looks at."""
    learning_rate: float = bounded(0.01, 1e-6, 1.0)
    """At the start; it decays to a tenth."""
    depth_sigma: float = bounded(0.01, 1e-4, 1.0)
    """Standard deviation of the scene's depth."""
    deformation_width: int = bounded(64, 1, 1024)
    """Of the hidden layers of the perceptron that moves the scene."""
    deformation_layers: int = bounded(4, 0, 16)
    """Hidden layers of it; 0 gives a scene that stands still."""
    max_resolution: int = bounded(256, 16, 8192)
    """Cells of the finest grid of features along the scene."""
    log2_hashmap_size: int = bounded(15, 10, 24)
    """Entries of the table of features at one resolution, as a power of two."""
    steps_per_save: int = bounded(200, 1, keyed=False)
    """A killed training goes on from the last of these."""
    max_meshes: int = bounded(40, 1, 10_000)
    """At so many times, spread over the recording, the surface is written; held-out frames, which are scored, come on top."""
    views_per_mesh: int = bounded(8, 1, 1000)
    """Poses from which it is rendered and fused; a camera that stands still needs one."""
    seed: int = bounded(0, 0, MAX_SEED)
    """Of the fields, and of the choice of pixels."""
    num_threads: int = unkeyed(0)
    """Of the training process and of the fusion of a moving camera's surfaces; 0 means all."""
    device: str = unkeyed("auto")
    """"auto", "cpu", "cuda" or "cuda:1"."""


def run(inputs: dict[str, Path], out: Path, config: Config) -> None:
    """Write `renders/`, `depth/` (the scene's unit), `meshes/`, `surface.ply`, `animation.glb`, `training/` and `nerf.json`.

    Raises ReconError when nerfstudio is absent, for a scene that no NeRF can be made of, and (exit code 1) when the training fails.
    """
    check_installed()
    scene = trainable_scene(inputs["scene"])
    meshed, reference = meshed_positions(scene, config.max_meshes), reference_frame(scene)
    poses = {time: poses_for_time(scene, time, config.views_per_mesh) for time in {*meshed, reference}}
    renders = {(i, i): _render(scene, out, i, i) for i in range(len(scene.frames))}
    renders |= {(pose, time): _render(scene, out, pose, time) for time in poses for pose in poses[time] if not scene.is_still}
    checks = train_and_render(
        inputs["scene"],
        out / "training",
        _settings(config),
        list(renders.values()),
        torch_device(config.device),
        config.num_threads,
        track,
    )
    surfaces = _Surfaces(scene, out, poses, config.num_threads)
    for time in track(meshed, len(meshed), "extracting surfaces"):
        path = _mesh_file(scene, out, time)
        if not path.exists():
            write_ply(path, surfaces.at(time))
    write_ply(out / "surface.ply", surfaces.at(reference))
    timed = [TimedMesh(scene.frames[time].timestamp_s, read_mesh(_mesh_file(scene, out, time))) for time in meshed]
    write_animated_glb(out / "animation.glb", timed)
    facts = {"kind": "of density and colour", "deformation": "network" if config.deformation_layers else "static"}
    times = {"reference_index": scene.frames[reference].index, "reference_time_s": scene.frames[reference].timestamp_s}
    counts = {"num_frames": len(scene.kept), "num_held_out": len(scene.held_out)}
    found = {"unit": scene.unit, "median_depth": scene.median_depth, "depth": scene.depth_kind, "num_steps": config.num_steps}
    write_json(out / "nerf.json", {**facts, **found, **times, **counts, "checks": [asdict(check) for check in checks]})


def _settings(config: Config) -> NerfSettings:
    return NerfSettings(
        num_steps=config.num_steps,
        rays_per_step=config.rays_per_step,
        learning_rate=config.learning_rate,
        depth_sigma=config.depth_sigma,
        deformation_width=config.deformation_width,
        deformation_layers=config.deformation_layers,
        max_resolution=config.max_resolution,
        log2_hashmap_size=config.log2_hashmap_size,
        steps_per_save=config.steps_per_save,
        seed=config.seed,
    )


def _render(scene: Scene, out: Path, pose_of: int, time_of: int) -> Render:
    """What frames show lies by their index; from other poses, beside it. All poses of a still camera are its own."""
    name = f"{scene.frames[time_of].index:06d}"
    if scene.is_still or pose_of == time_of:
        return Render(time_of, time_of, out / f"renders/{name}.png", out / f"depth/{name}.tiff")
    name += f"_from_{scene.frames[pose_of].index:06d}"
    return Render(pose_of, time_of, out / f"views/{name}.png", out / f"views/{name}.tiff")


def _mesh_file(scene: Scene, out: Path, time_of: int) -> Path:
    return out / f"meshes/{scene.frames[time_of].index:06d}.ply"


class _Surfaces:
    """The surface at the times that were rendered. `poses` are those from which, by time."""

    def __init__(self, scene: Scene, out: Path, poses: dict[int, list[int]], num_threads: int) -> None:
        self.scene, self.out, self.poses, self.num_threads = scene, out, poses, num_threads
        self.squared = squared_error(scene, lambda i: read_depth(_render(scene, out, i, i).depth)) if scene.is_still else None

    def at(self, time_of: int) -> Mesh:
        """Raises ReconError (exit code 1) when there is none."""
        poses = self.poses[time_of]
        if self.squared is not None:
            return still_surface(self.scene, self._load(poses[0], time_of), time_of, self.squared)
        return fused_surface(
            self.scene, lambda i: self._load(poses[i], time_of), len(poses), lambda items, *_: items, num_threads=self.num_threads
        )

    def _load(self, pose_of: int, time_of: int) -> Rendering:
        files = _render(self.scene, self.out, pose_of, time_of)
        return Rendering(pose_of, read_image(files.color), read_depth(files.depth))


STAGE = Stage(
    config=Config,
    run=run,
    version=1,
    reads=("scene",),
    writes=("renders/*.png", "depth/*.tiff", "meshes/*.ply", "surface.ply", "animation.glb", "nerf.json"),
    seconds_per_frame=3.0,
    seconds_once=lambda config: 0.3 * config.num_steps,
    bytes_per_frame=1_000_000,
)
