"""A textured sheet that heaves and slides in front of a still camera, an instrument over a part of it: known at every time."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from recon.fields.scene import Scene, SceneFrame, View, write_scene
from recon.types import Camera

WIDTH, HEIGHT, FOCAL = 56, 44, 60.0
NUM_FRAMES = 12
CAMERA = Camera("PINHOLE", WIDTH, HEIGHT, (FOCAL, FOCAL, (WIDTH - 1) / 2, (HEIGHT - 1) / 2))
MEAN_DEPTH = 60.0


def offset(time: float) -> np.ndarray:
    """How far the sheet has moved at a time of 0..1, mm."""
    return np.array([3.0 * np.sin(2 * np.pi * time), 1.5 * (1 - np.cos(2 * np.pi * time)), 4.0 * np.sin(np.pi * time)])


def texture(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """RGB 0..1 of the sheet at its own coordinates, mm."""
    waves = [np.sin(0.35 * x + 0.2 * y), np.sin(0.27 * y - 0.15 * x + 1.0), np.sin(0.5 * x) * np.sin(0.45 * y)]
    return np.stack([0.6 + 0.25 * waves[0], 0.4 + 0.2 * waves[1], 0.4 + 0.2 * waves[2]], axis=-1)


def picture(time: float) -> tuple[np.ndarray, np.ndarray]:
    """Picture 0..1 and z-depth (mm) at a time, without instrument."""
    moved = offset(time)
    depth = np.full((HEIGHT, WIDTH), MEAN_DEPTH + moved[2])
    x, y = np.meshgrid(np.arange(WIDTH), np.arange(HEIGHT))
    fx, fy, cx, cy = CAMERA.params
    return texture((x - cx) / fx * depth - moved[0], (y - cy) / fy * depth - moved[1]), depth


def instrument(time: float) -> np.ndarray:
    """True where the instrument is."""
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    tip = (round(30 + 6 * np.sin(2 * np.pi * time)), 24)
    cv2.line(mask, (WIDTH + 5, HEIGHT), tip, 1, 7)
    return mask > 0


def write_sheet(folder: Path, units_per_mm: float = 1.0, depth_kind: str = "trusted", num_frames: int = NUM_FRAMES) -> Scene:
    """The sheet as a scene; every fourth frame is held out."""
    times = np.linspace(0, 1, num_frames)
    frames = [SceneFrame(i, i / 25, float(t), np.eye(4), i % 4 == 1) for i, t in enumerate(times)]

    def load(position: int) -> View:
        image, depth = picture(times[position])
        covered = instrument(times[position])
        image = np.where(covered[..., None], 0.7, image)
        shown = np.rint(255 * image.clip(0, 1)).astype(np.uint8)
        return View(shown, ~covered, np.where(covered, 0, depth * units_per_mm).astype(np.float32))

    return write_scene(folder, CAMERA, "mm" if units_per_mm == 1 else "unitless", frames, depth_kind, load)
