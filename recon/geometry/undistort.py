"""Images of one lens seen through another with the same centre and axes, in particular through a pinhole.

Both cameras share the optical centre and the axes, so a point has the same z-depth in both: depth maps are remapped
without changing their values.
"""

from __future__ import annotations

from typing import Literal

import cv2
import numpy as np
from jaxtyping import Bool, Float, Shaped

from recon.geometry.cameras import angle_limit, project, ray_grid, unproject
from recon.types import Camera, ReconError

MAX_PINHOLE_FOV_RAD = float(np.deg2rad(150.0))
"""A pinhole image stretches its rim by 1 / cos^2: fifteenfold here, and without bound at 180 degrees."""


def pinhole_for(camera: Camera, fov_rad: float, width_px: int) -> Camera:
    """PINHOLE with square pixels, centred axis and the lens' aspect; `fov_rad` is horizontal, capped at what the lens sees."""
    if not 0.0 < fov_rad < np.pi:
        raise ReconError(f"a pinhole's field of view must be between 0 and pi rad, found {fov_rad:.4f}")
    half = min(0.5 * fov_rad, 0.5 * MAX_PINHOLE_FOV_RAD, _half_field(camera))
    height_px = max(1, round(width_px * camera.height_px / camera.width_px))
    f = 0.5 * width_px / np.tan(half)
    return Camera("PINHOLE", width_px, height_px, (f, f, 0.5 * (width_px - 1), 0.5 * (height_px - 1)))


def remap_grid(source: Camera, target: Camera) -> tuple[Float[np.ndarray, "h w 2"], Bool[np.ndarray, "h w"]]:
    """Source pixel (float32) that each target pixel shows, and whether the source lens and image contain it."""
    pixels, seen = project(source, ray_grid(target))
    inside = (pixels >= -0.5) & (pixels <= (source.width_px - 0.5, source.height_px - 0.5))
    return pixels.astype(np.float32), seen & inside.all(axis=-1)


def remap(
    image: Shaped[np.ndarray, "hs ws *channels"],
    map_xy: Float[np.ndarray, "h w 2"],
    valid: Bool[np.ndarray, "h w"],
    interpolation: Literal["linear", "nearest"] = "linear",
) -> Shaped[np.ndarray, "h w *channels"]:
    """Sample an image at `map_xy`; zero (False) where not `valid`. Masks, and depth with unknown pixels, want "nearest"."""
    flag = {"linear": cv2.INTER_LINEAR, "nearest": cv2.INTER_NEAREST}[interpolation]
    pixels = image.astype(np.uint8) if image.dtype == np.bool_ else image
    # Half a pixel beyond the outer centres still belongs to the image, hence the replicated border.
    out = cv2.remap(pixels, map_xy.astype(np.float32), None, flag, borderMode=cv2.BORDER_REPLICATE)
    out[~valid] = 0
    return out.astype(image.dtype)


def _half_field(camera: Camera) -> float:
    """Angle from the axis at the nearer end of the image row through the middle, rad."""
    middle = 0.5 * (camera.height_px - 1)
    ends = unproject(camera, np.array([[-0.5, middle], [camera.width_px - 0.5, middle]]))
    return min(angle_limit(camera), float(np.arctan2(np.linalg.norm(ends[:, :2], axis=-1), ends[:, 2]).min()))
