"""What a round instrument looks like through any lens, ray by ray."""

from __future__ import annotations

import numpy as np

from recon.geometry.cameras import ray_grid
from recon.types import Camera

WIDTH_MM = 8.0
SLANT = np.array([-0.6, -0.3, 0.5])
"""Direction of a shaft in the camera's axes, towards its tip."""


def silhouette(camera: Camera, tip_mm: np.ndarray, direction: np.ndarray = SLANT, jaws: bool = False) -> np.ndarray:
    """True where rays meet a round shaft that ends flat at the tip and comes from behind the camera's side; jaws are wider than it."""
    a, c = direction / np.linalg.norm(direction), np.asarray(tip_mm)
    rays = ray_grid(camera)

    def hit(radius: float, start: float, end: float) -> np.ndarray:
        across, across_c = rays - (rays @ a)[..., None] * a, c - (c @ a) * a
        A, B, C = np.sum(across**2, axis=-1), across @ across_c, across_c @ across_c - radius**2
        inside = B**2 - A * C
        distance = (B - np.sqrt(np.maximum(inside, 0))) / A
        t = distance * (rays @ a) - c @ a
        return (inside > 0) & (distance > 0) & (t >= start) & (t <= end)

    shaft = hit(WIDTH_MM / 2, -500.0, 0.0)
    return shaft | hit(WIDTH_MM * 0.8, -6.0, 0.0) if jaws else shaft
