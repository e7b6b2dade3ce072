"""A bumpy textured wall in front of a moving camera, cast ray by ray in numpy: images and depths with known poses."""

from __future__ import annotations

import cv2
import numpy as np

from recon.geometry import se3
from recon.geometry.cameras import ray_grid
from recon.types import Camera

CAMERA = Camera("PINHOLE", 240, 180, (200.0, 200.0, 119.5, 89.5))
WALL_Z = 2.0
TEXELS_PER_UNIT = 160.0
TEXTURE_SIZE = 1024


def texture(seed: int = 0) -> np.ndarray:
    """Grey texture (0..1) with detail at several sizes."""
    rng = np.random.default_rng(seed)
    layers = [cv2.GaussianBlur(rng.normal(size=(TEXTURE_SIZE, TEXTURE_SIZE)), (0, 0), sigma) * sigma for sigma in (1.5, 4.0, 12.0)]
    total = sum(layers)
    return np.clip(0.5 + 0.16 * total / total.std(), 0.05, 0.95)


def height(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """z of the wall: bumps of a tenth of its distance."""
    return WALL_Z + 0.2 * np.sin(1.7 * x + 0.5) * np.cos(1.3 * y) + 0.06 * np.sin(4.0 * x) * np.sin(3.0 * y + 1.0)


def render(T_world_camera: np.ndarray, camera: Camera = CAMERA, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """RGB image and z-depth (float32)."""
    rays = ray_grid(camera) @ T_world_camera[:3, :3].T
    origin = T_world_camera[:3, 3]
    distance = (WALL_Z - origin[2]) / rays[..., 2]
    for _ in range(40):
        points = origin + rays * distance[..., None]
        distance = (height(points[..., 0], points[..., 1]) - origin[2]) / rays[..., 2]
    points = origin + rays * distance[..., None]
    at = (points[..., :2] * TEXELS_PER_UNIT + TEXTURE_SIZE / 2).astype(np.float32)
    grey = cv2.remap(texture(seed).astype(np.float32), at[..., 0], at[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
    depth = distance * (ray_grid(camera)[..., 2])
    image = np.repeat(np.rint(grey * 255).astype(np.uint8)[..., None], 3, axis=-1)
    return image, depth.astype(np.float32)


def sideways(num: int, step: float = 0.05) -> list[np.ndarray]:
    """T_world_camera of a camera that moves along an arc and keeps looking at the wall; the first is the identity."""
    poses = []
    for k in range(num):
        s = k * step
        poses.append(se3.exp(np.array([s, 0.4 * s * np.cos(2.0 * s) + 0.3 * s, 0.3 * s, 0.06 * s, -0.35 * s, 0.1 * s])))
    return poses
