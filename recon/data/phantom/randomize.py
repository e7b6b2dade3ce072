"""Domain randomisation: lenses, lamps, exposure and viewpoints drawn at random, as a network should see them."""

from __future__ import annotations

import numpy as np
import open3d as o3d

from recon.data.phantom.render import Imaging, Rendering, render
from recon.data.phantom.scene import Scene
from recon.geometry import se3
from recon.types import Camera


def random_lens(rng: np.random.Generator, width_px: int, height_px: int) -> Camera:
    """A pinhole of 50 to 110 degrees across the diagonal, or a fisheye of up to 155, slightly off centre."""
    half_diagonal = np.hypot(width_px, height_px) / 2
    centre = (np.array([width_px, height_px]) - 1) / 2 + rng.normal(0, 0.02, 2) * width_px
    aspect = np.exp(rng.normal(0, 0.01))
    if rng.random() < 0.5:
        half_angle = np.radians(rng.uniform(50, 112) / 2)
        focal = half_diagonal / np.tan(half_angle)
        return Camera("PINHOLE", width_px, height_px, (focal * aspect, focal, *centre))
    half_angle = np.radians(rng.uniform(70, 155) / 2)
    k1, k2 = rng.uniform(-0.06, 0.03), rng.uniform(-0.004, 0.004)
    focal = half_diagonal / (half_angle * (1 + k1 * half_angle**2 + k2 * half_angle**4))
    return Camera("OPENCV_FISHEYE", width_px, height_px, (focal * aspect, focal, *centre, k1, k2, 0.0, 0.0))


def random_imaging(rng: np.random.Generator) -> Imaging:
    """A lamp, a video processor and a sensor."""
    return Imaging(
        lamp_offset_mm=tuple(rng.normal(0, 1.5, 3) * [1, 1, 0.3]),
        spot_exponent=rng.uniform(0, 3.5),
        ambient=np.exp(rng.uniform(np.log(0.003), np.log(0.15))),
        exposure_percentile=rng.uniform(60, 98),
        exposure_target=rng.uniform(0.5, 0.92),
        gamma=rng.uniform(1.3, 2.8),
        knee=rng.uniform(0.6, 0.9),
        white_balance=tuple(np.exp(rng.normal(0, 0.12, 3))),
        vignetting=rng.uniform(0, 0.6),
        noise=0.06 * rng.uniform() ** 2.5,
        scope_radius=rng.uniform(0.75, 1.3) if rng.random() < 0.5 else 0.0,
        highlight_gain=np.exp(rng.normal(0, 0.8)),
    )


def random_view(scene: Scene, rng: np.random.Generator, width_px: int, height_px: int, tries: int = 6) -> tuple[Rendering, Camera] | None:
    """A rendering from somewhere along the scene's path with a random lens; None when no free place was found."""
    for _ in range(tries):
        camera = random_lens(rng, width_px, height_px)
        T_world_camera = scene.path[rng.integers(len(scene.path))] @ random_turn(rng)
        if not is_free(scene, T_world_camera):
            continue
        rendering = render(scene, camera, T_world_camera, random_imaging(rng), rng, instrument=rng.random() < 0.2)
        if (rendering.distance_mm > 0).mean() > 0.25:
            return rendering, camera
    return None


def random_turn(rng: np.random.Generator, tilt_rad: float = 0.25) -> np.ndarray:
    """A turn of the camera about its own centre, (4, 4): any roll, and a glance aside."""
    turn = se3.exp(np.array([0, 0, 0, *rng.normal(0, tilt_rad, 2), 0.0]))
    return turn @ se3.exp(np.array([0, 0, 0, 0, 0, rng.uniform(-np.pi, np.pi)]))


def is_free(scene: Scene, T_world_camera: np.ndarray, clearance_mm: float = 2.0) -> bool:
    """Whether the camera has room: nothing within the clearance and the wall it sees is the outside of things."""
    position = T_world_camera[:3, 3].astype(np.float32)
    if float(scene.caster.compute_distance(o3d.core.Tensor(position[None])).numpy()[0]) < clearance_mm:
        return False
    directions = np.random.default_rng(0).normal(size=(64, 3)) * [0.5, 0.5, 0.2] + [0, 0, 1]
    directions = (directions / np.linalg.norm(directions, axis=1, keepdims=True)) @ T_world_camera[:3, :3].T
    hits = scene.cast(position, directions)
    hit = np.isfinite(hits["distance"])
    if hit.mean() < 0.9:
        return False
    near = np.median(hits["distance"][hit])
    return bool(near > 2 * clearance_mm)
