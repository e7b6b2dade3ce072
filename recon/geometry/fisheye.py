"""Kannala and Brandt's fisheye lens (COLMAP's and OpenCV's OPENCV_FISHEYE).

Kannala & Brandt, "A generic camera model and calibration method for conventional, wide-angle, and fish-eye lenses"
(2006): theta_d = theta (1 + k1 theta^2 + k2 theta^4 + k3 theta^6 + k4 theta^8), u = fx theta_d cos(phi) + cx.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from recon.geometry.radial import MIN_SLOPE, first_crossing, inverse_table
from recon.types import Camera

NEWTON_STEPS = 20


def project(camera: Camera, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pixels of camera points (..., 3), and whether the point's angle is inside the lens' monotone field."""
    fx, fy, cx, cy, *k = camera.params
    radius = np.linalg.norm(points[..., :2], axis=-1)
    # A copy of the column: numpy's code for a strided input, and so the last digit, depends on where the result lies in memory.
    theta = np.arctan2(radius, points[..., 2].copy())
    limit = angle_limit(camera)
    valid = (theta <= limit) & (np.linalg.norm(points, axis=-1) > 0.0)
    theta_d = _distorted_angle(tuple(k), np.minimum(theta, limit))
    direction = points[..., :2] / np.maximum(radius, 1e-300)[..., None]
    return theta_d[..., None] * direction * (fx, fy) + (cx, cy), valid


def unproject(camera: Camera, pixels: np.ndarray) -> np.ndarray:
    """Unit rays through pixels (..., 2); Newton from a table of the curve."""
    fx, fy, cx, cy, *k = camera.params
    xy = (pixels - (cx, cy)) / (fx, fy)
    theta_d = np.linalg.norm(xy, axis=-1)
    theta = _angle(tuple(k), theta_d)
    # sin(theta) / theta_d tends to 1 on the axis.
    scale = np.where(theta_d > 0.0, np.sin(theta) / np.maximum(theta_d, 1e-300), 1.0)
    return np.concatenate([xy * scale[..., None], np.cos(theta)[..., None]], axis=-1)


def angle_limit(camera: Camera) -> float:
    """Largest usable angle from the axis, rad; pi when the curve never flattens."""
    return _limit(camera.params[4:])


def _angle(k: tuple[float, ...], theta_d: np.ndarray) -> np.ndarray:
    limit = _limit(k)
    angles, values = _table(k)
    theta_d = np.minimum(theta_d, values[-1])
    theta = np.interp(theta_d, values, angles)
    for _ in range(NEWTON_STEPS):
        step = (_distorted_angle(k, theta) - theta_d) / np.maximum(_slope(k, theta), MIN_SLOPE)
        theta = np.clip(theta - step, 0.0, limit)
        if np.max(np.abs(step), initial=0.0) < 1e-15:
            break
    return theta


@lru_cache(maxsize=256)
def _limit(k: tuple[float, ...]) -> float:
    k1, k2, k3, k4 = k
    return min(np.pi, first_crossing(np.array([1.0 - MIN_SLOPE, 0, 3 * k1, 0, 5 * k2, 0, 7 * k3, 0, 9 * k4])))


@lru_cache(maxsize=256)
def _table(k: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray]:
    return inverse_table(lambda theta: _distorted_angle(k, theta), _limit(k))


def _distorted_angle(k: tuple[float, ...], theta: np.ndarray) -> np.ndarray:
    k1, k2, k3, k4 = k
    s = theta * theta
    return theta * (1.0 + s * (k1 + s * (k2 + s * (k3 + s * k4))))


def _slope(k: tuple[float, ...], theta: np.ndarray) -> np.ndarray:
    k1, k2, k3, k4 = k
    s = theta * theta
    return 1.0 + s * (3 * k1 + s * (5 * k2 + s * (7 * k3 + s * 9 * k4)))
