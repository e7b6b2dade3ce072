"""Scaramuzza's omnidirectional lens: the ray's z is a polynomial of the image radius.

Scaramuzza, Martinelli & Siegwart, "A flexible technique for accurate omnidirectional camera calibration and structure
from motion" (2006), in the form C3VD publishes: (u - cx, v - cy) = [[c, d], [e, 1]] (x, y), rho = |(x, y)|,
ray = (x, y, f(rho)) with f(rho) = a0 + a1 rho + a2 rho^2 + a3 rho^3 + a4 rho^4.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from recon.geometry.radial import MIN_SLOPE, TABLE_SIZE, first_crossing
from recon.types import Camera

NEWTON_STEPS = 20
MAX_RADIUS_SHARE = 10.0
"""A polynomial without a fold is used up to this many focal lengths (a0) from the centre."""


def project(camera: Camera, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pixels of camera points (..., 3), and whether the point's angle is inside the lens' monotone field."""
    lateral = np.linalg.norm(points[..., :2], axis=-1)
    # A copy of the column: numpy's code for a strided input, and so the last digit, depends on where the result lies in memory.
    theta = np.arctan2(lateral, points[..., 2].copy())
    limit = angle_limit(camera)
    valid = (theta <= limit) & (np.linalg.norm(points, axis=-1) > 0.0)
    rho = _image_radius(camera, np.minimum(theta, limit))
    xy = rho[..., None] * points[..., :2] / np.maximum(lateral, 1e-300)[..., None]
    return xy @ _affine(camera).T + camera.params[:2], valid


def unproject(camera: Camera, pixels: np.ndarray) -> np.ndarray:
    """Rays (not normalised) through pixels (..., 2), in closed form."""
    xy = (pixels - camera.params[:2]) @ np.linalg.inv(_affine(camera)).T
    rho = np.linalg.norm(xy, axis=-1)
    inside = np.minimum(1.0, _radius_limit(camera) / np.maximum(rho, 1e-300))
    xy, rho = xy * inside[..., None], rho * inside
    return np.concatenate([xy, np.polynomial.polynomial.polyval(rho, _polynomial(camera))[..., None]], axis=-1)


def angle_limit(camera: Camera) -> float:
    """Largest usable angle from the axis, rad."""
    return float(_table(camera)[0][-1])


def _image_radius(camera: Camera, theta: np.ndarray) -> np.ndarray:
    """Root of g(rho) = rho cos(theta) - f(rho) sin(theta), by Newton from a table."""
    f = _polynomial(camera)
    df = np.polynomial.polynomial.polyder(f)
    angles, radii = _table(camera)
    rho = np.interp(theta, angles, radii)
    cos, sin = np.cos(theta), np.sin(theta)
    for _ in range(NEWTON_STEPS):
        value = rho * cos - np.polynomial.polynomial.polyval(rho, f) * sin
        step = value / (cos - np.polynomial.polynomial.polyval(rho, df) * sin)
        rho = np.clip(rho - step, 0.0, radii[-1])
        if np.max(np.abs(step), initial=0.0) < 1e-13 * radii[-1]:
            break
    return rho


@lru_cache(maxsize=256)
def _radius_limit(camera: Camera) -> float:
    """Smallest radius at which d theta / d rho leaves [MIN_SLOPE, 1 / MIN_SLOPE] times its value on the axis.

    With theta = atan2(rho, f), that derivative is (f - rho f') / (rho^2 + f^2), and 1 / a0 on the axis.
    """
    f = np.polynomial.Polynomial(_polynomial(camera))
    rho = np.polynomial.Polynomial([0.0, 1.0])
    numerator = f - rho * f.deriv()
    a0 = camera.params[2]
    square = rho * rho + f * f
    crossings = [first_crossing((a0 * numerator - slope * square).coef) for slope in (MIN_SLOPE, 1.0 / MIN_SLOPE)]
    return min(*crossings, MAX_RADIUS_SHARE * a0)


@lru_cache(maxsize=256)
def _table(camera: Camera) -> tuple[np.ndarray, np.ndarray]:
    radii = np.linspace(0.0, _radius_limit(camera), TABLE_SIZE)
    return np.arctan2(radii, np.polynomial.polynomial.polyval(radii, _polynomial(camera))), radii


def _polynomial(camera: Camera) -> np.ndarray:
    return np.array(camera.params[2:7])


def _affine(camera: Camera) -> np.ndarray:
    c, d, e = camera.params[7:]
    return np.array([[c, d], [e, 1.0]])
