"""Instruments before the lens: shafts, graspers, hooks, rings and catheters of dark or bright metal and of plastic."""

from __future__ import annotations

import numpy as np

from recon.data.phantom.geometry import Surface, rod
from recon.data.phantom.noise import random_noise
from recon.data.phantom.render import Tool
from recon.data.phantom.scene import Material, Scene

SHAPES = ("probe", "grasper", "hook", "ring", "catheter")
MASKED_TOOL_SHARE = 0.35
"""How often an instrument is marked as no tissue."""
PLASTICS = np.array([[0.85, 0.85, 0.82], [0.08, 0.2, 0.55], [0.1, 0.4, 0.2], [0.8, 0.65, 0.1], [0.03, 0.03, 0.03]])


def random_tool(rng: np.random.Generator, distance_mm: float) -> Tool:
    """One or two instruments that come from beside the lens and reach towards tissue at about `distance_mm`."""
    surfaces: list[Surface] = []
    materials: list[Material] = []
    for _ in range(1 if rng.random() < 0.7 else 2):
        shaft, tip = shapes(rng, str(rng.choice(SHAPES)), distance_mm)
        surfaces += [shaft, *tip]
        materials += [coating(rng), *[metal(rng)] * len(tip)]
    return Tool(Scene(tuple(surfaces), tuple(materials), np.eye(4)[None], random_noise(rng)), masked=bool(rng.random() < MASKED_TOOL_SHARE))


def metal(rng: np.random.Generator) -> Material:
    """Steel, from black oxide to polished; a dark one still has its highlight."""
    tone = np.exp(rng.uniform(np.log(0.015), np.log(0.75))) * np.exp(rng.normal(0, 0.05, 3))
    gloss, shininess = rng.uniform(0.2, 12.0), np.exp(rng.uniform(np.log(6), np.log(300)))
    return _bare(tone, gloss, shininess, rng.uniform(0, 0.25))


def coating(rng: np.random.Generator) -> Material:
    """The shaft: black insulation, steel, or coloured plastic."""
    kind = rng.random()
    if kind < 0.4:
        return metal(rng)
    tone = rng.uniform(0.008, 0.06, 3) if kind < 0.7 else PLASTICS[rng.integers(len(PLASTICS))] * rng.uniform(0.5, 1.1)
    return _bare(tone, rng.uniform(0, 3.0), np.exp(rng.uniform(np.log(5), np.log(100))), rng.uniform(0, 0.1))


def _bare(tone: np.ndarray, gloss: float, shininess: float, variation: float) -> Material:
    return Material(
        tuple(np.clip(tone, 0.004, 0.95).tolist()), variation, 6.0, 0.0, grain=0.0, bump=0.0, gloss=float(gloss), shininess=float(shininess)
    )


def shapes(rng: np.random.Generator, shape: str, distance_mm: float) -> tuple[Surface, list[Surface]]:
    """The shaft and the parts of the tip, in camera coordinates; one of `SHAPES`."""
    angle, reach = rng.uniform(0, 2 * np.pi), distance_mm * rng.uniform(0.3, 0.85)
    tip = reach * np.array([*rng.uniform(-0.4, 0.4, 2), 1.0])
    root = distance_mm * np.array([0.9 * np.cos(angle), 0.9 * np.sin(angle), rng.uniform(0.0, 0.35)])
    radius = distance_mm * np.exp(rng.uniform(np.log(0.012), np.log(0.09)))
    along = (tip - root) / np.linalg.norm(tip - root)
    across = np.cross(along, rng.normal(size=3))
    across /= np.linalg.norm(across)
    bend = (0.25 * distance_mm * rng.normal() if shape == "catheter" else 0.0) * across
    share = np.linspace(0, 1, 16)[:, None]
    line = root + share * (tip - root) + 4 * share * (1 - share) * bend
    shaft = rod(*_capped(line, np.full(16, radius)))
    length = radius * rng.uniform(2, 7)
    step = np.linspace(0, 1, 12)[:, None]
    parts: list[Surface] = []
    if shape == "grasper":
        opening = rng.uniform(0.0, 0.7)
        for sign in (-1, 1):
            jaw = tip + length * (step * along + sign * across * (opening * step + 0.15 * np.sin(np.pi * step)))
            parts.append(rod(*_capped(jaw, radius * np.linspace(0.6, rng.uniform(0.15, 0.5), 12))))
    elif shape == "hook":
        turn = step * rng.uniform(1.0, 3.0)
        hook = tip + 0.5 * length * (np.sin(turn) * along + (1 - np.cos(turn)) * across)
        parts.append(rod(*_capped(hook, np.full(12, radius * rng.uniform(0.2, 0.6)))))
    elif shape == "ring":
        turn = np.linspace(0, 2 * np.pi, 32)[:, None]
        ring = tip + length * ((1 - np.cos(turn)) * along + rng.uniform(0.4, 1.0) * np.sin(turn) * across)
        parts.append(rod(ring, np.full(32, radius * rng.uniform(0.1, 0.35))))
    return shaft, parts


def _capped(line: np.ndarray, radii: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Round the far end of a bar."""
    ahead = (line[-1] - line[-2]) / np.linalg.norm(line[-1] - line[-2])
    turn = np.linspace(0.2, np.pi / 2, 6)
    cap = line[-1] + radii[-1] * np.sin(turn)[:, None] * ahead
    return np.concatenate([line, cap]), np.concatenate([radii, np.maximum(radii[-1] * np.cos(turn), 1e-3 * radii[-1])])
