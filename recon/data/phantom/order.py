"""A trial of what a depth network reads: a dark organ before a bright one, or the reverse, with the order known.

No training kind draws from here, so a network that does well has learned shape and falloff, not these scenes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool

from recon.data.phantom.geometry import organ, relief
from recon.data.phantom.noise import random_noise
from recon.data.phantom.render import Rendering, render
from recon.data.phantom.scene import Scene, look_at
from recon.data.phantom.shading import Imaging
from recon.data.phantom.variety import BRIGHT, DARK, random_tissue
from recon.types import Camera

MIN_SHARE = 0.04
"""Of the picture that each of the two organs fills at least."""
SEED_TAG = 0x0DE5


@dataclass(frozen=True)
class OrderCase:
    """One picture and where its two organs are."""

    rendering: Rendering
    camera: Camera
    near: Bool[np.ndarray, "h w"]
    far: Bool[np.ndarray, "h w"]
    """Every pixel of `far` lies farther along its ray than every pixel of `near`."""


def order_case(seed: int, dark_in_front: bool, width_px: int = 192, height_px: int = 160) -> OrderCase:
    """Two organs, the near one usually across the far one, before tissue or before nothing; decided by its arguments alone."""
    rng = np.random.default_rng([SEED_TAG, seed, int(dark_in_front)])
    while True:
        scene, camera, imaging = _draw(rng, dark_in_front, width_px, height_px)
        rendering = render(scene, camera, np.eye(4), imaging, rng)
        seen = np.where(rendering.faces >= 0, scene.object_of_face[np.maximum(rendering.faces, 0)], -1)
        near, far = seen == 0, seen == 1
        if min(near.mean(), far.mean()) > MIN_SHARE and rendering.distance_mm[near].max() < rendering.distance_mm[far].min():
            return OrderCase(rendering, camera, near, far)


def _draw(rng: np.random.Generator, dark_in_front: bool, width_px: int, height_px: int) -> tuple[Scene, Camera, Imaging]:
    """A scene in camera coordinates (object 0 near, object 1 far), a laparoscope's lens and light."""
    volume = random_noise(rng)
    distance = rng.uniform(30, 90)
    depth_ratio = rng.uniform(1.4, 2.2)
    side = rng.uniform(0, 2 * np.pi)
    aside = np.array([np.cos(side), np.sin(side), 0.0])
    sizes = distance * rng.uniform([0.2, 0.45], [0.32, 0.8])
    centres = [
        distance * (np.array([0, 0, 1.0]) + rng.uniform(0.05, 0.22) * aside),
        distance * depth_ratio * (np.array([0, 0, 1.0]) - rng.uniform(0.0, 0.15) * aside),
    ]
    squeeze = np.array([[0.9, 0.7, 0.5], [0.9, 0.7, 0.4]]) * rng.uniform(0.8, 1.1, (2, 3))
    surfaces = [organ(rng, c, s * q, volume, rng.uniform(0, 0.06), 64) for c, s, q in zip(centres, sizes, squeeze, strict=True)]
    tones = (DARK, BRIGHT) if dark_in_front else (BRIGHT, DARK)
    materials = [random_tissue(rng, tone) for tone in tones]
    if rng.random() < 0.6:
        bed = relief(rng, 6 * distance, 0.1 * distance, volume, rows=80)
        turned = look_at(np.zeros(3), np.array([*rng.normal(0, 0.25, 2), 1.0]), 0.0)[:3, :3]
        bed_centre = np.array([0, 0, distance * (depth_ratio + rng.uniform(0.4, 0.9))])
        surfaces.append(type(bed)(bed.vertices @ turned.T + bed_centre, bed.faces))
        materials.append(random_tissue(rng, None))
    focal = np.hypot(width_px, height_px) / 2 / np.tan(np.radians(rng.uniform(60, 90)) / 2)
    camera = Camera("PINHOLE", width_px, height_px, (focal, focal, (width_px - 1) / 2, (height_px - 1) / 2))
    imaging = Imaging(
        lamp_offset_mm=tuple((rng.normal(0, 2.0, 3) * [1, 1, 0.2]).tolist()),
        spot_exponent=float(rng.uniform(0, 2.5)),
        exposure_percentile=float(rng.uniform(80, 97)),
        gamma=float(rng.uniform(1.6, 2.4)),
        noise=float(rng.uniform(0, 0.02)),
    )
    return Scene(tuple(surfaces), tuple(materials), np.eye(4)[None], volume), camera, imaging
