"""Cameras made up where none is given, and a fisheye that stands in for lenses that other programs do not know."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from scipy.optimize import least_squares

from recon.geometry.cameras import pixel_grid, unproject, usable_mask
from recon.types import Camera, ReconError

MAX_SAMPLES = 4000
LAWSON_ROUNDS = 6


def default_camera(width_px: int, height_px: int, fov_rad: float) -> Camera:
    """SIMPLE_RADIAL without distortion, centred, with a horizontal field of view from the left to the right border."""
    if not 0.0 < fov_rad < np.pi:
        raise ReconError(f"the horizontal field of view must be between 0 and pi rad, found {fov_rad:.4f}")
    f = 0.5 * width_px / float(np.tan(0.5 * fov_rad))
    return Camera("SIMPLE_RADIAL", width_px, height_px, (f, 0.5 * (width_px - 1), 0.5 * (height_px - 1), 0.0))


def fit_fisheye(camera: Camera) -> tuple[Camera, Float[np.ndarray, "3 3"], float]:
    """Kannala-Brandt lens nearest to any lens over its usable image.

    Least squares on pixels, reweighted by the residuals (Lawson 1961) towards the smallest largest error: plain least
    squares leaves four times the error at the rim. Returns the OPENCV_FISHEYE camera, `R_camera_fisheye` (a rotation
    about the optical axis, so z-depth is the same in both) and the largest residual in pixels.
    Raises ReconError when no pixel of the image is usable.
    """
    pixels, theta, phi = _samples(camera)
    p, weights = _start(pixels, theta), np.ones(len(pixels))
    for _ in range(LAWSON_ROUNDS):
        root = np.sqrt(weights)[:, None]
        p = least_squares(lambda q, root=root: ((_model(q, theta, phi) - pixels) * root).ravel(), p, x_scale=_typical(p), method="lm").x
        distance = np.linalg.norm(_model(p, theta, phi) - pixels, axis=-1)
        weights = weights * (distance + 1e-3 * distance.max() + 1e-12)
        weights = weights / weights.mean()
    fisheye = Camera("OPENCV_FISHEYE", camera.width_px, camera.height_px, tuple(float(value) for value in p[:8]))
    cos, sin = np.cos(p[8]), np.sin(p[8])
    R_camera_fisheye = np.array([[cos, -sin, 0.0], [sin, cos, 0.0], [0.0, 0.0, 1.0]])
    return fisheye, R_camera_fisheye, float(distance.max())


def _samples(camera: Camera) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Evenly spread usable pixels with their rays' angle from the axis and azimuth."""
    stride = max(1, int(np.sqrt(camera.width_px * camera.height_px / MAX_SAMPLES)))
    usable = usable_mask(camera)[::stride, ::stride]
    if not usable.any():
        raise ReconError(f"the {camera.model} lens reaches no pixel of its {camera.width_px}x{camera.height_px} image: {camera.params}")
    pixels = pixel_grid(camera)[::stride, ::stride][usable]
    # Contiguous components: numpy's code for a strided input, and so the last digit, depends on where the result lies in memory.
    x, y, z = np.ascontiguousarray(unproject(camera, pixels).T)
    return pixels, np.arctan2(np.hypot(x, y), z), np.arctan2(y, x)


def _start(pixels: np.ndarray, theta: np.ndarray) -> np.ndarray:
    centre = pixels[np.argmin(theta)]
    focal = np.median(np.linalg.norm(pixels - centre, axis=-1)) / max(float(np.median(theta)), 1e-6)
    return np.array([focal, focal, *centre, 0.0, 0.0, 0.0, 0.0, 0.0])


def _model(p: np.ndarray, theta: np.ndarray, phi: np.ndarray) -> np.ndarray:
    """Pixels of rays; `p` is (fx, fy, cx, cy, k1..k4, angle of the fisheye's x axis in the camera's frame)."""
    s = theta * theta
    theta_d = theta * (1.0 + s * (p[4] + s * (p[5] + s * (p[6] + s * p[7]))))
    return np.stack([p[0] * theta_d * np.cos(phi - p[8]) + p[2], p[1] * theta_d * np.sin(phi - p[8]) + p[3]], axis=-1)


def _typical(p: np.ndarray) -> np.ndarray:
    """Sizes of the parameters, pixels and dimensionless ones apart."""
    return np.array([p[0], p[0], p[0], p[0], 0.1, 0.1, 0.1, 0.1, 0.1])
