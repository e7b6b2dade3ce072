"""Perspective lenses with Brown's radial and tangential distortion: the pinhole and OpenCV families.

Brown, "Decentering distortion of lenses" (1966), in OpenCV's parameters: with x = X/Z, y = Y/Z, r^2 = x^2 + y^2,
    x_d = x (1 + k1 r^2 + k2 r^4) + 2 p1 x y + p2 (r^2 + 2 x^2),   u = fx x_d + cx, and likewise for y.
The polynomial folds back beyond some radius; the lens ends where its local magnification falls under `MIN_SLOPE`.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from recon.geometry.radial import MIN_SLOPE, first_crossing, inverse_table
from recon.types import Camera

NEWTON_STEPS = 30


class _Brown(NamedTuple):
    fx: float
    fy: float
    cx: float
    cy: float
    k1: float = 0.0
    k2: float = 0.0
    p1: float = 0.0
    p2: float = 0.0


def project(camera: Camera, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pixels of camera points (..., 3), and whether the point is in front and inside the lens' monotone field."""
    lens = _parameters(camera)
    z = points[..., 2]
    distance = np.linalg.norm(points, axis=-1)
    # Points behind get a far pixel of the right side instead of a division by zero; `valid` says so.
    xy = points[..., :2] / np.maximum(z, 1e-9 * distance + 1e-300)[..., None]
    radius = np.linalg.norm(xy, axis=-1)
    limit = radius_limit(lens)
    valid = (z > 0.0) & (radius <= limit)
    xy = xy * np.minimum(1.0, limit / np.maximum(radius, 1e-300))[..., None]
    return _distort(lens, xy) * (lens.fx, lens.fy) + (lens.cx, lens.cy), valid


def unproject(camera: Camera, pixels: np.ndarray) -> np.ndarray:
    """Rays (not normalised) through pixels (..., 2): the radial part from a table, then Newton on both axes."""
    lens = _parameters(camera)
    target = (pixels - (lens.cx, lens.cy)) / (lens.fx, lens.fy)
    limit = radius_limit(lens)
    xy = _undistorted_start(lens, target)
    if lens[4:] != (0.0, 0.0, 0.0, 0.0):
        for _ in range(NEWTON_STEPS):
            step = _newton_step(lens, xy, target)
            xy = xy - step
            radius = np.linalg.norm(xy, axis=-1, keepdims=True)
            xy = xy * np.minimum(1.0, limit / np.maximum(radius, 1e-300))
            if np.max(np.abs(step), initial=0.0) < 1e-15:
                break
    return np.concatenate([xy, np.ones((*xy.shape[:-1], 1))], axis=-1)


def angle_limit(camera: Camera) -> float:
    """Largest usable angle from the axis, rad."""
    return float(np.arctan(radius_limit(_parameters(camera))))


@lru_cache(maxsize=256)
def radius_limit(lens: _Brown) -> float:
    """Largest undistorted radius at which the map is still one to one, in every direction."""
    radial = first_crossing(np.array([1.0, 0.0, 3.0 * lens.k1, 0.0, 5.0 * lens.k2]) - [MIN_SLOPE, 0, 0, 0, 0])
    if lens.p1 == 0.0 and lens.p2 == 0.0:
        return radial
    azimuth = np.linspace(0.0, 2.0 * np.pi, 73)
    radii = np.linspace(0.0, min(radial, 20.0), 2001)
    xy = radii[:, None, None] * np.stack([np.cos(azimuth), np.sin(azimuth)], axis=-1)
    J = _jacobian(lens, xy)
    tangential_ok = (np.linalg.det(J) > MIN_SLOPE**2).all(axis=1) & (np.trace(J, axis1=-2, axis2=-1) > 0).all(axis=1)
    return radial if tangential_ok.all() else float(radii[np.argmin(tangential_ok) - 1])


def _parameters(camera: Camera) -> _Brown:
    p = camera.params
    if camera.model in ("SIMPLE_PINHOLE", "SIMPLE_RADIAL", "RADIAL"):
        return _Brown(p[0], p[0], p[1], p[2], *p[3:])
    return _Brown(*p)


def _distort(lens: _Brown, xy: np.ndarray) -> np.ndarray:
    x, y = xy[..., 0], xy[..., 1]
    rr = x * x + y * y
    radial = 1.0 + rr * (lens.k1 + rr * lens.k2)
    x_d = x * radial + 2.0 * lens.p1 * x * y + lens.p2 * (rr + 2.0 * x * x)
    y_d = y * radial + 2.0 * lens.p2 * x * y + lens.p1 * (rr + 2.0 * y * y)
    return np.stack([x_d, y_d], axis=-1)


def _jacobian(lens: _Brown, xy: np.ndarray) -> np.ndarray:
    x, y = xy[..., 0], xy[..., 1]
    rr = x * x + y * y
    radial = 1.0 + rr * (lens.k1 + rr * lens.k2)
    slope = 2.0 * (lens.k1 + 2.0 * lens.k2 * rr)
    xx = radial + slope * x * x + 2.0 * lens.p1 * y + 6.0 * lens.p2 * x
    yy = radial + slope * y * y + 2.0 * lens.p2 * x + 6.0 * lens.p1 * y
    xy_mixed = slope * x * y + 2.0 * lens.p1 * x + 2.0 * lens.p2 * y
    return np.stack([np.stack([xx, xy_mixed], axis=-1), np.stack([xy_mixed, yy], axis=-1)], axis=-2)


def _newton_step(lens: _Brown, xy: np.ndarray, target: np.ndarray) -> np.ndarray:
    residual = _distort(lens, xy) - target
    J = _jacobian(lens, xy)
    det = J[..., 0, 0] * J[..., 1, 1] - J[..., 0, 1] ** 2
    # Inside the usable field det >= MIN_SLOPE^2; the floor only tames pixels that no ray of the lens reaches.
    det = np.maximum(det, 0.1 * MIN_SLOPE**2)
    dx = (J[..., 1, 1] * residual[..., 0] - J[..., 0, 1] * residual[..., 1]) / det
    dy = (J[..., 0, 0] * residual[..., 1] - J[..., 0, 1] * residual[..., 0]) / det
    return np.stack([dx, dy], axis=-1)


def _undistorted_start(lens: _Brown, target: np.ndarray) -> np.ndarray:
    if lens.k1 == 0.0 and lens.k2 == 0.0:
        return target
    radii, distorted = _radial_table(lens)
    target_radius = np.linalg.norm(target, axis=-1)
    start = np.interp(target_radius, distorted, radii)
    return target * (start / np.maximum(target_radius, 1e-300))[..., None]


@lru_cache(maxsize=256)
def _radial_table(lens: _Brown) -> tuple[np.ndarray, np.ndarray]:
    return inverse_table(lambda r: r * (1.0 + r * r * (lens.k1 + r * r * lens.k2)), min(radius_limit(lens), 20.0))
