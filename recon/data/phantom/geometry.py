"""Surfaces of procedural anatomy: tubes with folds, closed organs, loops of bowel, flat relief; all in millimetres."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from recon.data.phantom.noise import sample_noise


@dataclass(frozen=True)
class Surface:
    """A triangle surface of one object."""

    vertices: Float[np.ndarray, "v 3"]
    faces: Int[np.ndarray, "f 3"]


@dataclass(frozen=True)
class TubeShape:
    """What decides a tube: a colon by default; slits and ridges make it a nasal passage."""

    length_mm: float = 200.0
    radius_mm: float = 20.0
    bend: float = 0.25
    """Largest curvature times radius; below 1 the tube does not meet itself locally."""
    radius_variation: float = 0.2
    num_lobes: int = 3
    lobe_height: float = 0.1
    fold_spacing_mm: float = 22.0
    fold_height: float = 0.35
    """Of the radius."""
    fold_width_mm: float = 2.5
    num_ridges: int = 0
    ridge_height: float = 0.0
    squeeze: float = 1.0
    """Ratio of the axes of the cross-section."""
    bump_mm: float = 0.5


def grid_faces(rows: int, columns: int, wrap: bool) -> Int[np.ndarray, "f 3"]:
    """Triangulate a grid of vertices stored row by row; with `wrap` the last column meets the first."""
    row, column = np.meshgrid(np.arange(rows - 1), np.arange(columns if wrap else columns - 1), indexing="ij")
    following = (column + 1) % columns
    a, b, c, d = row * columns + column, row * columns + following, (row + 1) * columns + following, (row + 1) * columns + column
    return np.concatenate([np.stack([a, b, c], -1).reshape(-1, 3), np.stack([a, c, d], -1).reshape(-1, 3)])


def smooth_series(rng: np.random.Generator, position: np.ndarray, wavelength: float) -> np.ndarray:
    """A random smooth function of a position along a line, of about unit variance."""
    waves = np.sin(np.outer(position / wavelength, rng.uniform(2.0, 7.0, 6)) + rng.uniform(0, 2 * np.pi, 6))
    return waves @ rng.normal(size=6) / np.sqrt(3.0)


def centre_line(rng: np.random.Generator, shape: TubeShape, num: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Arc length (n,), points (n, 3) and parallel-transported frames (n, 3, 3), columns x, y and tangent."""
    arc = np.linspace(0, shape.length_mm, num)
    step = arc[1]
    curvature = [shape.bend / shape.radius_mm * np.tanh(smooth_series(rng, arc, 5 * shape.radius_mm)) for _ in range(2)]
    points, frames = np.zeros((num, 3)), np.empty((num, 3, 3))
    frames[0] = np.eye(3)
    for i in range(1, num):
        x, y, tangent = frames[i - 1].T
        points[i] = points[i - 1] + step * tangent
        tangent = tangent + step * (curvature[0][i] * x + curvature[1][i] * y)
        tangent /= np.linalg.norm(tangent)
        x = x - tangent * (x @ tangent)
        x /= np.linalg.norm(x)
        frames[i] = np.stack([x, np.cross(tangent, x), tangent], axis=1)
    return arc, points, frames


def fold_profile(rng: np.random.Generator, shape: TubeShape, arc: np.ndarray, angle: np.ndarray) -> np.ndarray:
    """Depth of the haustral folds in units of the radius, (n, m): crescents that close part of the lumen."""
    height = np.zeros((len(arc), len(angle)))
    position = rng.uniform(0, shape.fold_spacing_mm)
    while position < shape.length_mm:
        centre, reach = rng.uniform(0, 2 * np.pi), rng.uniform(0.8, 2.2)
        crescent = np.exp(-((np.angle(np.exp(1j * (angle - centre))) / reach) ** 2))
        tilt = rng.normal(0, 0.12) * shape.radius_mm * np.cos(angle - rng.uniform(0, 2 * np.pi))
        offset = (arc[:, None] - position - tilt[None]) / (shape.fold_width_mm * rng.uniform(0.6, 1.8))
        height = np.maximum(height, shape.fold_height * rng.uniform(0.4, 1.2) * crescent[None] / (1 + offset**4))
        position += shape.fold_spacing_mm * rng.uniform(0.6, 1.4)
    return height


def displace(vertices: np.ndarray, normals: np.ndarray, volume: Tensor, wavelength: float, amplitude: float) -> np.ndarray:
    """Move vertices along their normals by noise."""
    noise = sample_noise(volume, torch.from_numpy(vertices.astype(np.float32)), wavelength)[:, 0].numpy()
    return vertices + amplitude * noise[:, None] * normals


def tube(
    rng: np.random.Generator, shape: TubeShape, volume: Tensor, rows: int = 420, columns: int = 180
) -> tuple[Surface, np.ndarray, np.ndarray]:
    """A closed tube, its centre line (n, 3) and that line's frames (n, 3, 3)."""
    arc, points, frames = centre_line(rng, shape, rows)
    angle = np.linspace(0, 2 * np.pi, columns, endpoint=False)
    relative = 1 + shape.radius_variation * np.tanh(smooth_series(rng, arc, 4 * shape.radius_mm))[:, None] * np.ones(columns)
    relative *= 1 + shape.lobe_height * np.cos(shape.num_lobes * angle[None] + smooth_series(rng, arc, 8 * shape.radius_mm)[:, None])
    relative -= fold_profile(rng, shape, arc, angle)
    for _ in range(shape.num_ridges):
        centre = rng.uniform(0, 2 * np.pi) + 0.5 * smooth_series(rng, arc, 6 * shape.radius_mm)[:, None]
        ridge = np.exp(-((np.angle(np.exp(1j * (angle[None] - centre))) / rng.uniform(0.25, 0.6)) ** 2))
        relative -= (
            shape.ridge_height * rng.uniform(0.4, 1.0) * (0.75 + 0.25 * smooth_series(rng, arc, 3 * shape.radius_mm)[:, None]) * ridge
        )
    from_end = np.minimum(arc, shape.length_mm - arc) / (1.2 * shape.radius_mm)
    closing = np.sqrt(np.clip(1 - (1 - np.clip(from_end, 0, 1)) ** 2, 1e-4, 1))
    radius = shape.radius_mm * np.clip(relative, 0.18, None) * closing[:, None]
    across = np.stack([np.cos(angle) * shape.squeeze, np.sin(angle) / shape.squeeze], -1)
    inward = -(frames[:, None, :, 0] * across[None, :, :1] + frames[:, None, :, 1] * across[None, :, 1:])
    vertices = (points[:, None] - radius[..., None] * inward).reshape(-1, 3)
    inward = inward.reshape(-1, 3)
    for wavelength, amplitude in ((0.7 * shape.radius_mm, 2.0 * shape.bump_mm), (0.2 * shape.radius_mm, 0.6 * shape.bump_mm)):
        vertices = displace(vertices, inward, volume, wavelength, amplitude)
    return Surface(vertices, grid_faces(rows, columns, wrap=True)), points, frames


def organ(rng: np.random.Generator, centre: np.ndarray, radii: np.ndarray, volume: Tensor, roughness: float, rows: int = 110) -> Surface:
    """A bumpy ellipsoid, turned at random; `roughness` is the height of its bumps over its smallest radius."""
    polar, azimuth = np.meshgrid(np.linspace(1e-3, np.pi - 1e-3, rows), np.linspace(0, 2 * np.pi, 2 * rows, endpoint=False), indexing="ij")
    normals = np.stack([np.sin(polar) * np.cos(azimuth), np.sin(polar) * np.sin(azimuth), np.cos(polar)], -1).reshape(-1, 3)
    rotation, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    vertices = (normals * radii) @ rotation.T + centre
    smallest = float(radii.min())
    for wavelength, amplitude in ((1.6 * smallest, roughness), (0.5 * smallest, 0.25 * roughness)):
        vertices = displace(vertices, normals @ rotation.T, volume, wavelength, amplitude * smallest)
    return Surface(vertices, grid_faces(rows, 2 * rows, wrap=True))


def loop(rng: np.random.Generator, start: np.ndarray, volume: Tensor) -> Surface:
    """A loop of bowel seen from outside: a strongly bent thin tube."""
    shape = TubeShape(
        length_mm=rng.uniform(60, 200),
        radius_mm=rng.uniform(6, 15),
        bend=0.5,
        fold_height=rng.uniform(0, 0.12),
        bump_mm=rng.uniform(0.1, 0.6),
    )
    surface, points, _ = tube(rng, shape, volume, rows=160, columns=64)
    rotation, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    return Surface((surface.vertices - points.mean(0)) @ rotation.T + start, surface.faces)


def relief(rng: np.random.Generator, size_mm: float, height_mm: float, volume: Tensor, rows: int = 200) -> Surface:
    """A sheet of tissue about the plane z = 0, seen from negative z."""
    x, y = np.meshgrid(*[np.linspace(-size_mm / 2, size_mm / 2, rows)] * 2, indexing="xy")
    vertices = np.stack([x, y, np.full_like(x, rng.uniform(0, 1000))], -1).reshape(-1, 3)
    level = vertices[0, 2]
    up = np.array([0.0, 0.0, -1.0])
    for wavelength, share in ((size_mm * 0.45, 1.0), (size_mm * 0.18, 0.35), (size_mm * 0.06, 0.06)):
        vertices = displace(vertices, np.broadcast_to(up, vertices.shape), volume, wavelength, share * height_mm)
    return Surface(vertices - [0, 0, level], grid_faces(rows, rows, wrap=False))


def rod(points: Float[np.ndarray, "n 3"], radii: Float[np.ndarray, " n"], sides: int = 24) -> Surface:
    """A bar swept along a line of points with a radius at each (mm): shafts, jaws, hooks, rings, strands."""
    tangents = np.gradient(points, axis=0)
    tangents /= np.linalg.norm(tangents, axis=1, keepdims=True)
    side = np.cross(tangents[0], np.eye(3)[np.argmin(np.abs(tangents[0]))])
    angle = np.linspace(0, 2 * np.pi, sides, endpoint=False)
    rings = []
    for point, tangent, radius in zip(points, tangents, radii, strict=True):
        side = side - tangent * (side @ tangent)
        side = side / np.linalg.norm(side)
        rings.append(point + radius * (np.cos(angle)[:, None] * side + np.sin(angle)[:, None] * np.cross(tangent, side)))
    return Surface(np.concatenate(rings), grid_faces(len(points), sides, wrap=True))
