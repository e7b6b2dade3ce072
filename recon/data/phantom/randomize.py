"""Domain randomisation: lenses, lamps, exposure and viewpoints drawn at random, as a network should see them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float

from recon.data.phantom.instruments import random_tool
from recon.data.phantom.optics import random_artefacts, spoil
from recon.data.phantom.render import Rendering, Tool, render
from recon.data.phantom.scene import Scene
from recon.data.phantom.shading import Imaging
from recon.geometry import se3
from recon.types import Camera

MIN_TISSUE = 0.15
"""Share of the picture that must show tissue; the rest may be mask, instrument or nothing."""
TRIES = 6
"""Viewpoints drawn in a scene before it is given up."""


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


def random_lamp(rng: np.random.Generator) -> tuple[float, float, float]:
    """Where the lamp sits beside the lens, in millimetres."""
    return tuple((rng.normal(0, np.exp(rng.uniform(np.log(0.5), np.log(5))), 3) * [1, 1, 0.3]).tolist())


def random_imaging(rng: np.random.Generator) -> Imaging:
    """A lamp, a video processor, a sensor and the scope's mask; a fifth of the pictures are over-exposed nearby."""
    overexposed = rng.random() < 0.2
    mask = rng.choice(["none", "round", "oval", "cut"], p=[0.45, 0.3, 0.12, 0.13])
    return Imaging(
        lamp_offset_mm=random_lamp(rng),
        spot_exponent=rng.uniform(0, 3.5),
        ambient=np.exp(rng.uniform(np.log(0.003), np.log(0.15))),
        exposure_percentile=rng.uniform(30, 75) if overexposed else rng.uniform(75, 98),
        exposure_target=rng.uniform(0.7, 1.0) if overexposed else rng.uniform(0.4, 0.92),
        gamma=rng.uniform(1.3, 2.8),
        knee=rng.uniform(0.6, 0.97),
        white_balance=tuple(np.exp(rng.normal(0, 0.12, 3))),
        vignetting=rng.uniform(0, 0.8),
        noise=0.08 * rng.uniform() ** 2.5,
        scope_radius=0.0 if mask in ("none", "cut") else rng.uniform(0.75, 1.3),
        scope_stretch=rng.uniform(0.65, 1.2) if mask == "oval" else 1.0,
        scope_centre=(0.0, 0.0) if mask == "none" else tuple(rng.normal(0, 0.03, 2)),
        scope_cut=rng.uniform(1.2, 1.75) if mask == "cut" else 0.0,
        highlight_gain=np.exp(rng.normal(0, 1.0)),
        shadow=rng.uniform(0.6, 1.0) if rng.random() < 0.5 else 0.0,
        flattening=rng.uniform(0.1, 0.6) if rng.random() < 0.4 else 0.0,
    )


@dataclass(frozen=True)
class Viewpoint:
    """A lens at a free place of a scene, perhaps with an instrument before it."""

    camera: Camera
    T_world_camera: Float[np.ndarray, "4 4"]
    tool: Tool | None


def random_viewpoint(scene: Scene, rng: np.random.Generator, width_px: int, height_px: int) -> Viewpoint | None:
    """Somewhere along the scene's path with a random lens; None where the lens has no room."""
    camera = random_lens(rng, width_px, height_px)
    T_world_camera = scene.path[rng.integers(len(scene.path))] @ random_turn(rng)
    distance = free_distance(scene, T_world_camera)
    if distance is None:
        return None
    return Viewpoint(camera, T_world_camera, random_tool(rng, distance) if rng.random() < 0.3 else None)


def random_view(
    scene: Scene, rng: np.random.Generator, width_px: int, height_px: int, tries: int = TRIES
) -> tuple[Rendering, Camera] | None:
    """A rendering from a random viewpoint; None when no free place was found."""
    for _ in range(tries):
        view = random_viewpoint(scene, rng, width_px, height_px)
        if view is None:
            continue
        rendering = render(scene, view.camera, view.T_world_camera, random_imaging(rng), rng, view.tool)
        if (rendering.faces >= 0).mean() > MIN_TISSUE:
            image = spoil(rendering.image, random_artefacts(rng), rng)
            return replace(rendering, image=image), view.camera
    return None


def random_turn(rng: np.random.Generator, tilt_rad: float = 0.25) -> np.ndarray:
    """A turn of the camera about its own centre, (4, 4): any roll, and a glance aside."""
    turn = se3.exp(np.array([0, 0, 0, *rng.normal(0, tilt_rad, 2), 0.0]))
    return turn @ se3.exp(np.array([0, 0, 0, 0, 0, rng.uniform(-np.pi, np.pi)]))


def free_distance(scene: Scene, T_world_camera: np.ndarray, clearance_mm: float = 2.0) -> float | None:
    """Median distance of what the camera sees; None where it has no room (nothing may be within the clearance)."""
    directions = np.random.default_rng(0).normal(size=(256, 3))
    directions[:64] = directions[:64] * [0.5, 0.5, 0.2] + [0, 0, 1]
    directions = (directions / np.linalg.norm(directions, axis=1, keepdims=True)) @ T_world_camera[:3, :3].T
    distance = scene.cast(T_world_camera[:3, 3], directions)["distance"]
    ahead = distance[:64][np.isfinite(distance[:64])]
    if len(ahead) < 64 * MIN_TISSUE or distance.min() < clearance_mm:
        return None
    median = float(np.median(ahead))
    return median if median > 2 * clearance_mm else None
