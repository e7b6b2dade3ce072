"""Small scenes that move, with everything about them known: a slanted wall that breathes before a still or a moving camera."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from recon.fields.scene import DepthKind, Scene, SceneFrame, View, write_scene
from recon.types import Camera

CAMERA = Camera("PINHOLE", 24, 18, (25.0, 24.0, 11.0, 9.5))
DEPTH_MM = 60.0
BREATH_MM = 4.0
SLOPE = 0.2
"""Of the wall: z grows by this much per unit of x."""


def wall_depth(camera: Camera, T_world_camera: np.ndarray, time: float, unit_mm: float = 1.0) -> np.ndarray:
    """z-depth of the wall z = depth + breath + slope x, for a camera that looks along z from anywhere."""
    fx, _, cx, _ = camera.params
    ray_x = (np.arange(camera.width_px) - cx)[None, :] / fx + 0 * np.arange(camera.height_px)[:, None]
    x, _, z = T_world_camera[:3, 3]
    height = (DEPTH_MM + BREATH_MM * np.sin(np.pi * time)) / unit_mm
    return (height + SLOPE * x - z) / (1 - SLOPE * ray_x)


def wall_image(camera: Camera, T_world_camera: np.ndarray, time: float, unit_mm: float = 1.0) -> np.ndarray:
    """Colours painted on the wall by its x and y."""
    fx, fy, cx, cy = camera.params
    depth = wall_depth(camera, T_world_camera, time, unit_mm)
    v, u = np.mgrid[: camera.height_px, : camera.width_px]
    x = ((u - cx) / fx * depth + T_world_camera[0, 3]) * unit_mm
    y = ((v - cy) / fy * depth + T_world_camera[1, 3]) * unit_mm
    channels = (150 + 60 * np.sin(x / 5), 90 + 50 * np.sin(y / 4), 90 + 40 * np.cos((x + y) / 6))
    return np.clip(np.stack(channels, axis=-1), 0, 255).astype(np.uint8)


def wall_scene(
    folder: Path,
    num_frames: int = 6,
    step_mm: float = 0.0,
    unit_mm: float = 1.0,
    held_out: tuple[int, ...] = (),
    depth_kind: DepthKind = "trusted",
    camera: Camera = CAMERA,
    covered: bool = False,
) -> Scene:
    """An instrument covers a square that moves to the right, and a corner that is never free; `covered` covers everything."""
    frames = []
    for i in range(num_frames):
        T = np.eye(4)
        T[0, 3] = step_mm * i / unit_mm
        frames.append(SceneFrame(10 * i, i / 25, i / (num_frames - 1) if num_frames > 1 else 0.0, T, i in held_out))

    def load(i: int) -> View:
        T, time = frames[i].T_world_camera, frames[i].time
        tissue = np.full((camera.height_px, camera.width_px), not covered)
        tissue[4:9, 2 * i : 2 * i + 5] = False
        tissue[:3, :3] = False
        depth = wall_depth(camera, T, time, unit_mm) if depth_kind != "none" else np.zeros(tissue.shape)
        return View(wall_image(camera, T, time, unit_mm), tissue, np.where(tissue, depth, 0).astype(np.float32))

    return write_scene(folder, camera, "mm", frames, depth_kind, load)
