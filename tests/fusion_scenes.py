"""Analytic scenes as posed depth views, for the tests of fusion and of what follows it."""

from __future__ import annotations

import numpy as np

from recon.fusion.tsdf import TsdfVolume, merge_blocks, touched_blocks
from recon.fusion.view import View, rays
from recon.fusion.weights import pixel_weights
from recon.geometry.surface import normals_from_depth
from recon.types import Camera, Mesh

CAMERA = Camera("PINHOLE", 128, 96, (100.0, 100.0, 63.5, 47.5))
ORIGIN = np.zeros(3)


def silent(items, total, description):
    return items


def look_at(eye, target) -> np.ndarray:
    z = (target - eye) / np.linalg.norm(target - eye)
    x = np.cross([0.0, 0.1, 1.0], z)
    x /= np.linalg.norm(x)
    T = np.eye(4)
    T[:3, :3] = np.stack([x, np.cross(z, x), z], axis=-1)
    T[:3, 3] = eye
    return T


def view_of(depth, T, index=0, sigma=0.05, color=128, usable=None) -> View:
    depth = depth.astype(np.float32)
    normals = normals_from_depth(depth, rays(CAMERA)).astype(np.float32)
    usable = depth > 0 if usable is None else usable
    median = float(np.median(depth[depth > 0])) if (depth > 0).any() else 1.0
    weight = pixel_weights(CAMERA, depth, normals, np.full(depth.shape, sigma, np.float32), usable, median, 0.05, 0.12)
    color = np.full((*depth.shape, 3), color, np.uint8) if np.ndim(color) == 0 else color
    return View(index, CAMERA, T, depth, normals, weight, color, depth > 0, np.full(depth.shape, sigma, np.float32))


def sphere_depth(T, radius=10.0, inside=False, center=ORIGIN) -> np.ndarray:
    """z-depth of a sphere, the near side or, from inside, the far side; 0 where the ray misses it."""
    eye = T[:3, 3] - center
    d = rays(CAMERA).astype(np.float64) @ T[:3, :3].T
    a, b, c = (d * d).sum(-1), (d * eye).sum(-1), eye @ eye - radius**2
    root = b * b - a * c
    z = (-b + np.sqrt(np.maximum(root, 0)) * (1 if inside else -1)) / a
    return np.where((root > 0) & (z > 0), z, 0)


def orbit(num=12):
    angles = np.linspace(0, 2 * np.pi, num, endpoint=False)
    return [look_at(40 * np.array([np.cos(a), np.sin(a), 0.3 * np.sin(3 * a)]), ORIGIN) for a in angles]


def tube_depth(T, radius=12.0) -> np.ndarray:
    """z-depth of a tube along z seen from inside, up to 80 from the camera."""
    d = rays(CAMERA).astype(np.float64) @ T[:3, :3].T
    a = d[..., 0] ** 2 + d[..., 1] ** 2
    b = d[..., 0] * T[0, 3] + d[..., 1] * T[1, 3]
    z = (-b + np.sqrt(b * b - a * (T[0, 3] ** 2 + T[1, 3] ** 2 - radius**2))) / np.maximum(a, 1e-9)
    return np.where(z < 80, z, 0)


def fused(views, voxel=0.5, truncation=2.0, typical_error=0.6, tolerance=0.3, correlation=0.0) -> Mesh:
    blocks = np.zeros((0, 3), np.int64)
    for view in views:
        blocks = merge_blocks(blocks, touched_blocks(view, voxel, truncation, ORIGIN))
    volume = TsdfVolume(blocks, voxel, truncation, ORIGIN, typical_error, tolerance, correlation)
    for view in views:
        volume.integrate(view)
    return volume.extract("mm")
