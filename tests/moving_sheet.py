"""A textured sheet that heaves and slides in front of a still camera, an instrument over a part of it: known at every time."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from recon.fields.scene import Scene, SceneFrame, View, write_scene
from recon.types import Camera

WIDTH, HEIGHT, FOCAL = 56, 44, 60.0
NUM_FRAMES = 12
FACTOR = 4
"""How much larger the pictures of the data set are than the scene's."""
CAMERA = Camera("PINHOLE", WIDTH, HEIGHT, (FOCAL, FOCAL, (WIDTH - 1) / 2, (HEIGHT - 1) / 2))
MEAN_DEPTH = 60.0


def offset(time: float) -> np.ndarray:
    """How far the sheet has moved at a time of 0..1, mm."""
    return np.array([3.0 * np.sin(2 * np.pi * time), 1.5 * (1 - np.cos(2 * np.pi * time)), 4.0 * np.sin(np.pi * time)])


def texture(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """RGB 0..1 of the sheet at its own coordinates, mm."""
    waves = [np.sin(0.35 * x + 0.2 * y), np.sin(0.27 * y - 0.15 * x + 1.0), np.sin(0.5 * x) * np.sin(0.45 * y)]
    return np.stack([0.6 + 0.25 * waves[0], 0.4 + 0.2 * waves[1], 0.4 + 0.2 * waves[2]], axis=-1)


def picture(time: float, factor: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Picture 0..1 and z-depth (mm) at a time, without instrument; `factor` times as large, with finer detail than the small one has."""
    moved = offset(time)
    depth = np.full((factor * HEIGHT, factor * WIDTH), MEAN_DEPTH + moved[2])
    x, y = np.meshgrid((np.arange(factor * WIDTH) + 0.5) / factor - 0.5, (np.arange(factor * HEIGHT) + 0.5) / factor - 0.5)
    fx, fy, cx, cy = CAMERA.params
    x, y = (x - cx) / fx * depth - moved[0], (y - cy) / fy * depth - moved[1]
    colors = texture(x, y)
    return colors if factor == 1 else colors * (1 + 0.15 * np.sign(np.sin(2.1 * x) * np.sin(1.9 * y)))[..., None], depth


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


def write_endonerf(folder: Path, num_frames: int = NUM_FRAMES, with_depth: bool = True, all_covered: bool = False) -> Path:
    """The sheet in EndoNeRF's layout, with the truth folders of rendered scenes."""
    for kind in ("images", "masks", "depth", "truth_depth", "truth_mesh"):
        if kind != "depth" or with_depth:
            (folder / kind).mkdir(parents=True, exist_ok=True)
    times = np.linspace(0, 1, num_frames)
    grid = np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH)
    a, b, c, d = (part.ravel() for part in (grid[:-1, :-1], grid[:-1, 1:], grid[1:, :-1], grid[1:, 1:]))
    faces = np.concatenate([np.stack([a, c, b], 1), np.stack([b, c, d], 1)])
    fx, fy, cx, cy = CAMERA.params
    x, y = np.meshgrid((np.arange(WIDTH) - cx) / fx * MEAN_DEPTH, (np.arange(HEIGHT) - cy) / fy * MEAN_DEPTH)
    sheet = np.stack([x, y, np.full_like(x, MEAN_DEPTH)], axis=-1).reshape(-1, 3)
    for i, time in enumerate(times):
        image, depth = picture(time, FACTOR)
        covered = cv2.resize(instrument(time).astype(np.uint8), depth.shape[::-1], interpolation=cv2.INTER_NEAREST) > 0
        covered |= all_covered
        shown = np.rint(255 * np.where(covered[..., None], 0.7, image).clip(0, 1)).astype(np.uint8)
        cv2.imwrite(str(folder / "images" / f"{i:06d}.png"), shown[..., ::-1])
        cv2.imwrite(str(folder / "masks" / f"{i:06d}.png"), covered.astype(np.uint8) * 255)
        if with_depth:
            cv2.imwrite(str(folder / "depth" / f"{i:06d}.png"), np.rint(depth).astype(np.uint8))
        np.savez(folder / "truth_depth" / f"{i:06d}.npz", depth=depth.astype(np.float32))
        np.savez(folder / "truth_mesh" / f"{i:06d}.npz", vertices=(sheet + offset(time)).astype(np.float32), faces=faces.astype(np.int32))
    poses = np.concatenate([np.eye(3, 4), [[FACTOR * HEIGHT], [FACTOR * WIDTH], [FACTOR * FOCAL]]], axis=1).ravel()
    # The published loaders put the principal point half a pixel off the middle; a shift of the picture, the same at all times.
    np.save(folder / "poses_bounds.npy", np.tile(np.concatenate([poses, [50.0, 70.0]]), (num_frames, 1)))
    return folder
