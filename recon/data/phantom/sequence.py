"""A phantom as a recording: `phantom:tube?seed=3&frames=40` opens like any data set, with exact truth."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from functools import lru_cache, partial
from typing import Any
from urllib.parse import parse_qsl

import numpy as np
from jaxtyping import Float, UInt8

from recon.data.phantom.geometry import TubeShape
from recon.data.phantom.noise import noise_volume
from recon.data.phantom.render import render
from recon.data.phantom.scene import KINDS, Material, Scene, random_scene, tube_scene
from recon.data.phantom.shading import Imaging, scope_mask
from recon.geometry.cameras import ray_grid, resize
from recon.types import Camera, DepthMap, Frame, FrameSequence, Mesh, ReconError, Trajectory

GENERATOR_VERSION = 2
"""Raised whenever the same spec would give other pictures."""
DEMO_SPEC = "phantom:tube?seed=4&frames=48"
FRAME_RATE_HZ = 25.0
SURVEY_WIDTH_PX = 320
"""Rays across the picture when asking which part of the surface a recording saw."""


@dataclass(frozen=True)
class PhantomSpec:
    """What the words after `phantom:` can say."""

    kind: str = "tube"
    seed: int = 0
    frames: int = 48
    width: int = 480
    height: int = 400
    lens: str = "fisheye"
    """"fisheye" (Kannala-Brandt) or "pinhole"."""
    fov_deg: float = 115.0
    """Across the picture's width."""
    round_mask: bool = True
    step_mm: float = 1.2
    """Travel between frames."""
    noise: float = 0.012

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ReconError(f"phantom has no kind {self.kind!r}; it has: {', '.join(KINDS)}")
        if self.lens not in ("fisheye", "pinhole"):
            raise ReconError(f"phantom lens is 'fisheye' or 'pinhole', found {self.lens!r}")
        if self.frames < 2 or min(self.width, self.height) < 32 or not 0 < self.step_mm < math.inf:
            raise ReconError("phantom needs frames >= 2, width and height >= 32 and step_mm > 0")
        if self.seed < 0 or not 0 <= self.noise < math.inf:
            raise ReconError(f"phantom needs seed >= 0 and noise >= 0, found {self.seed} and {self.noise:g}")
        if not 20 <= self.fov_deg <= (120 if self.lens == "pinhole" else 160):
            raise ReconError(f"phantom fov_deg must be 20 to 120 for a pinhole and 20 to 160 for a fisheye, found {self.fov_deg}")


def parse_spec(text: str) -> PhantomSpec:
    """Read `phantom`, `phantom:KIND` or `phantom:KIND?key=value&...`."""
    if text == "phantom":
        return PhantomSpec()
    kind, _, query = text.removeprefix("phantom:").partition("?")
    types = {f.name: type(f.default) for f in fields(PhantomSpec)}
    values: dict[str, Any] = {"kind": kind}
    for name, word in parse_qsl(query, keep_blank_values=True):
        if name not in types:
            raise ReconError(f"{text}: phantom has no option {name!r}; it has: {', '.join(types)}")
        try:
            values[name] = {"true": True, "false": False}[word] if types[name] is bool else types[name](word)
        except (ValueError, KeyError):
            raise ReconError(f"{text}: {name} must be of type {types[name].__name__}, found {word!r}") from None
    return PhantomSpec(**values)


def open_phantom(text: str) -> FrameSequence:
    """Open a phantom recording. Frames are rendered when they are read; nothing is kept."""
    spec = parse_spec(text)
    camera, poses = phantom_camera(spec), phantom_path(spec)
    timestamps = np.arange(spec.frames) / FRAME_RATE_HZ
    return FrameSequence(
        name=f"phantom_{spec.kind}_{spec.seed}",
        dataset="phantom",
        frames=tuple(Frame(i, f"{i:06d}", float(timestamps[i]), partial(_image, spec, i)) for i in range(spec.frames)),
        camera=camera,
        unit="mm",
        trajectory_gt=Trajectory(np.arange(spec.frames), timestamps, poses, "mm"),
        depth_gt=partial(_depth, spec),
        mesh_gt=partial(_seen_mesh, spec),
    )


def phantom_camera(spec: PhantomSpec) -> Camera:
    """The lens that a spec asks for."""
    half_angle, half_width = np.radians(spec.fov_deg) / 2, spec.width / 2
    centre = ((spec.width - 1) / 2, (spec.height - 1) / 2)
    if spec.lens == "pinhole":
        focal = half_width / np.tan(half_angle)
        return Camera("PINHOLE", spec.width, spec.height, (focal, focal, *centre))
    k1 = -0.03
    focal = half_width / (half_angle * (1 + k1 * half_angle**2))
    return Camera("OPENCV_FISHEYE", spec.width, spec.height, (focal, focal, *centre, k1, 0.0, 0.0, 0.0))


@lru_cache(maxsize=2)
def phantom_scene(spec: PhantomSpec) -> Scene:
    """The scene of a spec; a tube is a colon with folds and vessels, the other kinds are drawn at random."""
    if spec.kind != "tube":
        return random_scene(spec.kind, spec.seed)
    rng = np.random.default_rng(spec.seed)
    material = Material((0.80, 0.42, 0.34), variation=0.2, vessels=0.6, grain=0.12, grain_mm=1.0, bump=0.06, gloss=0.4)
    length = 90.0 + 1.7 * spec.frames * spec.step_mm
    return tube_scene(rng, TubeShape(length_mm=length), material, noise_volume(int(rng.integers(2**31))))


def phantom_path(spec: PhantomSpec) -> Float[np.ndarray, "n 4 4"]:
    """Poses `step_mm` of travel apart along the scene's path, there and back again when the path is short."""
    path = phantom_scene(spec).path
    travelled = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(path[:, :3, 3], axis=0), axis=1))])
    wanted = spec.step_mm * np.arange(spec.frames)
    wanted = travelled[-1] - np.abs(travelled[-1] - np.mod(wanted, 2 * travelled[-1]))
    return _between(path, np.interp(wanted, travelled, np.arange(len(path))))


def _between(path: Float[np.ndarray, "m 4 4"], position: Float[np.ndarray, " n"]) -> Float[np.ndarray, "n 4 4"]:
    """Poses at fractional places of a path: centres linearly, directions by renormalised mixing of near neighbours."""
    low = np.minimum(position.astype(int), len(path) - 2)
    share = (position - low)[:, None, None]
    mixed = (1 - share) * path[low] + share * path[low + 1]
    U, _, Vt = np.linalg.svd(mixed[:, :3, :3])
    mixed[:, :3, :3] = U @ Vt
    return mixed


def _imaging(spec: PhantomSpec) -> Imaging:
    return Imaging(noise=spec.noise, scope_radius=1.0 if spec.round_mask else 0.0)


def _image(spec: PhantomSpec, index: int) -> UInt8[np.ndarray, "h w 3"]:
    rng = np.random.default_rng([spec.seed, index])
    return render(phantom_scene(spec), phantom_camera(spec), phantom_path(spec)[index], _imaging(spec), rng).image


def _distance(spec: PhantomSpec, camera: Camera, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Distance (h, w) along the rays, the rays (h, w, 3) and the faces seen (h, w), -1 outside the mask."""
    pose, rays = phantom_path(spec)[index], ray_grid(camera)
    hits = phantom_scene(spec).cast(pose[:3, 3], rays.reshape(-1, 3) @ pose[:3, :3].T)
    seen = (np.isfinite(hits["distance"]).reshape(rays.shape[:2])) & scope_mask(rays.shape[:2], _imaging(spec))
    return np.where(seen, hits["distance"].reshape(seen.shape), 0), rays, np.where(seen, hits["face"].reshape(seen.shape), -1)


def _depth(spec: PhantomSpec, index: int) -> DepthMap:
    distance, rays, _ = _distance(spec, phantom_camera(spec), index)
    return DepthMap((distance * rays[..., 2]).astype(np.float32), distance > 0, "metric")


def _seen_mesh(spec: PhantomSpec) -> Mesh:
    """Faces that rays of some frame meet, and those between them: rays may be coarser than far faces."""
    camera = phantom_camera(spec)
    dense = resize(camera, SURVEY_WIDTH_PX, round(SURVEY_WIDTH_PX * camera.height_px / camera.width_px))
    met = np.unique(np.concatenate([np.unique(_distance(spec, dense, index)[2]) for index in range(spec.frames)]))
    scene = phantom_scene(spec)
    known = np.zeros(len(scene.vertices), bool)
    known[scene.faces[met[met >= 0]]] = True
    return scene.mesh(np.flatnonzero(known[scene.faces].all(axis=1)))
