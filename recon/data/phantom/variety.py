"""Scenes to train on: more kinds, and colours that say nothing about distance; a recording never opens these."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from jaxtyping import Float
from torch import Tensor

from recon.data.phantom.geometry import Surface, TubeShape, loop, organ, relief, rod
from recon.data.phantom.noise import random_noise
from recon.data.phantom.scene import (
    MUCOSA,
    ORGANS,
    Material,
    Scene,
    cavity_scene,
    orbit,
    random_material,
    random_passage,
    random_tube,
    relief_scene,
    tube_scene,
)

TRAINING_KINDS = ("tube", "nasal", "cavity", "relief", "void", "smooth", "turbinate")
DARK, BRIGHT = (0.015, 0.10), (0.5, 0.95)
"""Linear albedo of the strongest channel of dark (liver-like) and bright (bowel- or fat-like) tissue."""


def training_scene(kind: str, seed: int) -> Scene:
    """A scene of one of `TRAINING_KINDS`, decided by its seed alone."""
    rng = np.random.default_rng([TRAINING_KINDS.index(kind), seed])
    volume = random_noise(rng)
    if kind == "void":
        scene = void_scene(rng, volume)
    elif kind == "smooth":
        scene = smooth_scene(rng, volume)
    elif kind == "cavity":
        scene = cavity_scene(rng, volume)
    elif kind == "relief":
        scene = relief_scene(rng, volume)
    else:
        shape = random_tube(rng) if kind == "tube" else random_passage(rng)
        if kind == "turbinate" and rng.random() < 0.8:
            shape = smoothed(rng, shape)
        scene = tube_scene(rng, shape, random_material(rng, MUCOSA), volume)
        if kind == "turbinate":
            scene = replace(scene, surfaces=(*scene.surfaces, *turbinates(rng, scene.path, shape.radius_mm)))
    return paint(rng, scene)


def paint(rng: np.random.Generator, scene: Scene) -> Scene:
    """Give every object of a scene a new material."""
    return replace(scene, materials=tuple(random_tissues(rng, len(scene.surfaces))))


def random_tissues(rng: np.random.Generator, count: int, contrast_share: float = 0.3) -> list[Material]:
    """Materials of the objects of one scene: natural tissue, or strong contrast dealt out by chance, or one colour for all."""
    rest = 1 - contrast_share
    scheme = rng.choice(["natural", "contrast", "one colour"], p=[0.65 * rest, contrast_share, 0.35 * rest])
    if scheme == "one colour":
        return [random_tissue(rng, None)] * count
    tones = [(DARK if rng.random() < 0.5 else BRIGHT) if scheme == "contrast" else None for _ in range(count)]
    return [random_tissue(rng, tone) for tone in tones]


def random_tissue(rng: np.random.Generator, tone: tuple[float, float] | None) -> Material:
    """A tissue of any hue; `tone` bounds the strongest channel of its albedo. Some have no vessels, some no texture at all."""
    material = random_material(rng, MUCOSA if rng.random() < 0.5 else ORGANS)
    if tone is not None:
        colour = np.array(material.albedo) / max(material.albedo)
        low, high = np.log(tone)
        colour = colour ** rng.uniform(0.4, 1.6) * np.exp(rng.uniform(low, high))
        material = replace(material, albedo=tuple(np.clip(colour, 0.006, 0.98).tolist()))
    if rng.random() < 0.2:
        return replace(material, variation=0.0, vessels=0.0, grain=0.0, bump=0.0)
    wet = rng.random() < 0.25
    return replace(
        material,
        vessels=0.0 if rng.random() < 0.4 else material.vessels,
        grain=0.0 if rng.random() < 0.3 else material.grain,
        bump=0.0 if wet or rng.random() < 0.4 else 0.5 * material.bump,
        pale=float(rng.uniform(0.2, 0.9)) if rng.random() < 0.25 else 0.0,
        speckle=float(rng.uniform(0.2, 1.5)) if rng.random() < 0.15 else 0.0,
        gloss=float(rng.uniform(1.5, 6.0)) if wet else material.gloss,
        shininess=float(np.exp(rng.uniform(np.log(6), np.log(80)))) if wet else material.shininess,
    )


def void_scene(rng: np.random.Generator, volume: Tensor) -> Scene:
    """Organs, loops of bowel, strands and a scrap of tissue that hang before nothing: behind them no light returns."""
    distance = rng.uniform(30, 120)
    direction = np.array([*rng.normal(0, 0.35, 2), -1.0])
    direction /= np.linalg.norm(direction)
    surfaces = []
    if rng.random() < 0.4:
        size = distance * rng.uniform(0.6, 1.8)
        surfaces.append(relief(rng, size, size * rng.uniform(0.01, 0.06), volume, rows=80))
    for _ in range(rng.integers(2, 11)):
        depth = rng.uniform(-0.3, 1.0) if rng.random() < 0.8 else rng.uniform(-0.65, -0.3)
        centre = distance * np.array([*rng.uniform(-0.6, 0.6, 2), depth])
        # Nothing fills the view: what hangs close to the lens is smaller.
        size = distance * rng.uniform(0.1, 0.42) * min(1.0, 1.3 + depth)
        kind = rng.choice(["organ", "bowel", "tube", "strand"], p=[0.45, 0.2, 0.2, 0.15])
        if kind == "organ":
            surfaces.append(organ(rng, centre, size * rng.uniform(0.4, 1.2, 3), volume, rng.uniform(0.0, 0.1), rows=56))
        elif kind == "bowel":
            bowel = loop(rng, np.zeros(3), volume)
            reach = np.linalg.norm(bowel.vertices, axis=1).max()
            surfaces.append(Surface(bowel.vertices * (min(1.0, 0.55 * distance / reach)) + centre, bowel.faces))
        else:
            surfaces.append(strand(rng, centre, distance, size * (0.5 if kind == "tube" else 0.1)))
    blank = random_tissue(rng, None)
    return Scene(tuple(surfaces), (blank,) * len(surfaces), orbit(rng, np.zeros(3), distance, direction), volume)


def smoothed(rng: np.random.Generator, shape: TubeShape) -> TubeShape:
    """A passage whose walls are smooth and wide apart on one axis, as a septum and what faces it; turbinates give it its relief."""
    return replace(
        shape,
        fold_height=0.0,
        num_ridges=int(rng.integers(0, 2)),
        squeeze=float(np.exp(rng.choice([-1, 1]) * rng.uniform(0.0, 0.5))),
        bump_mm=shape.radius_mm * float(np.exp(rng.uniform(np.log(0.001), np.log(0.012)))),
    )


def turbinates(rng: np.random.Generator, path: Float[np.ndarray, "n 4 4"], radius_mm: float) -> list[Surface]:
    """One to three rounded bodies along the walls of a passage of about that radius, to be painted apart from it."""
    surfaces = []
    for _ in range(rng.integers(1, 4)):
        first, last = np.sort(rng.uniform(0, 1, 2))
        middle, half = (first + last) / 2, max((last - first) / 2, 0.12)
        share = np.linspace(-1, 1, 48)
        at = np.clip(middle + half * share, 0, 1) * (len(path) - 1)
        # The slight slope keeps points apart that were clipped to an end of the path.
        line = np.stack([np.interp(at, np.arange(len(path)), path[:, axis, 3]) for axis in range(3)], -1) + share[:, None] * 1e-3
        across = np.linalg.qr(np.column_stack([line[-1] - line[0], rng.normal(size=(3, 2))]))[0][:, 1:]
        angle = rng.uniform(0, 2 * np.pi) + rng.normal(0, 0.4) * share
        offset = radius_mm * (rng.uniform(0.6, 1.1) + rng.uniform(0, 0.1) * np.sin(rng.uniform(2, 8) * share))
        ends = (1 - np.abs(share) ** rng.uniform(2, 6)).clip(1e-4) ** 0.5
        line = line + offset[:, None] * (np.cos(angle)[:, None] * across[:, 0] + np.sin(angle)[:, None] * across[:, 1])
        surfaces.append(rod(line, radius_mm * rng.uniform(0.2, 0.75) * ends, sides=40))
    return surfaces


def strand(rng: np.random.Generator, centre: np.ndarray, distance_mm: float, radius_mm: float) -> Surface:
    """A bent cord or tube across the view, thicker and thinner along its way."""
    direction = rng.normal(size=3) * [1, 1, 0.3]
    direction /= np.linalg.norm(direction)
    bend = np.cross(direction, rng.normal(size=3)) * rng.uniform(0, 0.3)
    share = np.linspace(-1, 1, 48)
    line = centre + distance_mm * rng.uniform(0.3, 1.2) * (share[:, None] * direction + (share**2)[:, None] * bend)
    waves = 1 + rng.uniform(0, 0.3) * np.sin(share * rng.uniform(2, 14) + rng.uniform(0, 2 * np.pi))
    ends = np.sqrt(np.clip(1 - share**12, 1e-4, 1))
    return rod(line, radius_mm * waves * ends, sides=40)


def smooth_scene(rng: np.random.Generator, volume: Tensor) -> Scene:
    """Smooth mucosa: a tube with hardly a fold, or a sheet that is nearly flat with a few soft mounds."""
    if rng.random() < 0.4:
        soft = {"fold_height": rng.uniform(0, 0.12), "fold_width_mm": rng.uniform(4, 9), "lobe_height": rng.uniform(0, 0.08)}
        shape = replace(random_tube(rng), bump_mm=0.0, **soft)
        return tube_scene(rng, shape, random_tissue(rng, None), volume)
    distance = rng.uniform(15, 100)
    direction = np.array([*rng.normal(0, 0.6, 2), -1.0])
    direction /= np.linalg.norm(direction)
    surfaces = [
        relief(rng, 5.0 * distance, distance * np.exp(rng.uniform(np.log(0.005), np.log(0.08))), volume, rows=120),
        organ(rng, np.zeros(3), np.full(3, 6 * distance), volume, 0.0, rows=56),
    ]
    for _ in range(rng.integers(0, 4)):
        centre = np.append(rng.normal(size=2) * distance * 0.4, 0.0)
        surfaces.append(organ(rng, centre, distance * np.array([*rng.uniform(0.1, 0.5, 2), 0.08]), volume, 0.0, rows=56))
    blank = random_tissue(rng, None)
    return Scene(tuple(surfaces), (blank,) * len(surfaces), orbit(rng, np.zeros(3), distance, direction), volume)
