"""What distance to a surface means: from seeded, area-uniform samples to exact triangles, never to vertices.

Open3D's ray casting scene finds the nearest triangles. It computes in float32, so everything is centred first and a distance is
exact to about 1e-7 of the surface's extent. Its signed distances are not used: they mean nothing on open surfaces.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import open3d as o3d
import open3d.core as o3c
from jaxtyping import Bool, Float, Int

from recon.types import Mesh, ReconError

_SIGNS = np.array([(x, y, z) for x in (-1, 0, 1) for y in (-1, 0, 1) for z in (-1, 0, 1) if (x, y, z) != (0, 0, 0)], np.float64)
_DIRECTIONS = _SIGNS / np.linalg.norm(_SIGNS, axis=1, keepdims=True)


@dataclass(frozen=True)
class Samples:
    """Points on a surface, with the unit normals of the faces they lie on."""

    points: Float[np.ndarray, "n 3"]
    normals: Float[np.ndarray, "n 3"]

    def chosen(self, which: Bool[np.ndarray, " n"]) -> Samples:
        return Samples(self.points[which], self.normals[which])


@dataclass(frozen=True)
class Closest:
    """The nearest point of a surface for each of n queries."""

    points: Float[np.ndarray, "n 3"]
    normals: Float[np.ndarray, "n 3"]
    """Unit normals of the faces they lie on."""
    face_idx: Int[np.ndarray, " n"]
    distances: Float[np.ndarray, " n"]


class Surface:
    """A mesh to ask for nearest points and for lines of sight. Faces without area are left out.

    Raises ReconError for a mesh with nothing to measure: no area, vertices that are not finite, faces that name no vertex.
    """

    def __init__(self, mesh: Mesh) -> None:
        if len(mesh.faces) and (mesh.faces.min() < 0 or mesh.faces.max() >= len(mesh.vertices)):
            raise ReconError(f"surface: a face names vertex {mesh.faces.max()} of {len(mesh.vertices)}")
        self.mesh = mesh
        doubled = double_areas(mesh)
        self._kept = np.flatnonzero(doubled > 0)
        if not len(self._kept):
            raise ReconError(f"surface: {len(mesh.faces)} faces without any area, expected a surface")
        self.area = float(doubled.sum() / 2)
        faces = mesh.faces[self._kept]
        # The median, for one stray vertex far away must not cost the others their float32 digits.
        self._centre = np.median(mesh.vertices[faces[:, 0]], axis=0)
        vertices = (mesh.vertices - self._centre).astype(np.float32)
        if not np.isfinite(vertices[faces]).all():
            raise ReconError("surface: some vertices are not finite numbers")
        self._scene = o3d.t.geometry.RaycastingScene()
        self._scene.add_triangles(o3c.Tensor(vertices), o3c.Tensor(faces.astype(np.uint32)))

    def distances(self, points: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, " n"]:
        """Unsigned distance to the nearest point of any triangle."""
        return self._scene.compute_distance(self._local(points)).numpy().astype(np.float64)

    def closest(self, points: Float[np.ndarray, "n 3"]) -> Closest:
        """The nearest point of any triangle."""
        found = self._scene.compute_closest_points(self._local(points))
        nearest = found["points"].numpy().astype(np.float64) + self._centre
        normals = found["primitive_normals"].numpy().astype(np.float64)
        face_idx = self._kept[found["primitive_ids"].numpy().astype(np.int64)]
        return Closest(nearest, normals, face_idx, np.linalg.norm(points - nearest, axis=1))

    def hides(self, viewpoint: Float[np.ndarray, " 3"], points: Float[np.ndarray, "n 3"], tolerance: float) -> Bool[np.ndarray, " n"]:
        """Whether the line from the viewpoint meets the surface before the last `tolerance` (a share of its length) to the point."""
        rays = np.empty((len(points), 6), np.float32)
        rays[:, :3] = viewpoint - self._centre
        rays[:, 3:] = points - viewpoint
        return self._scene.test_occlusions(o3c.Tensor(rays), 0.0, 1.0 - tolerance).numpy().astype(bool)

    def _local(self, points: np.ndarray) -> o3c.Tensor:
        return o3c.Tensor((points - self._centre).astype(np.float32))


class FacingSurface:
    """Nearest points among the faces that look the same way as the query, so that a thin fold's far side is no match.

    The same way: less than 90 degrees from the query's normal, rounded to the nearest of 26 directions (at most 32 degrees off).
    """

    def __init__(self, surface: Surface) -> None:
        self._surface = surface
        self._normals = face_normals(surface.mesh)
        self._parts: dict[int, Surface | None] = {}

    def distances(self, points: Float[np.ndarray, "n 3"], normals: Float[np.ndarray, "n 3"], nearest: Closest) -> Float[np.ndarray, " n"]:
        """Distances to compatible faces; infinite where the surface has none. `nearest` is what `Surface.closest(points)` gave."""
        result = nearest.distances.copy()
        wrong = np.flatnonzero(np.sum(normals * nearest.normals, axis=1) < 0)
        direction = np.argmax(normals[wrong] @ _DIRECTIONS.T, axis=1)
        for idx in np.unique(direction):
            queries, part = wrong[direction == idx], self._part(int(idx))
            result[queries] = np.inf if part is None else part.distances(points[queries])
        return result

    def _part(self, idx: int) -> Surface | None:
        if idx not in self._parts:
            mesh = self._surface.mesh
            faces = mesh.faces[self._normals @ _DIRECTIONS[idx] > 0]
            self._parts[idx] = Surface(Mesh(mesh.vertices, faces)) if len(faces) else None
        return self._parts[idx]


def sample_surface(mesh: Mesh, num: int, seed: int) -> Samples:
    """Spread `num` points uniformly over the area; the order is random, so any part of them is a sample as well."""
    a, b, c = (mesh.vertices[mesh.faces[:, i]] for i in range(3))
    cumulative = np.cumsum(double_areas(mesh))
    rng = np.random.default_rng(seed)
    face = np.minimum(np.searchsorted(cumulative, rng.random(num) * cumulative[-1], side="right"), len(cumulative) - 1)
    # Osada et al., "Shape distributions" (2002), eq. 1: the square root makes the density uniform in the triangle.
    u, v = np.sqrt(rng.random((num, 1))), rng.random((num, 1))
    return Samples((1 - u) * a[face] + u * (1 - v) * b[face] + u * v * c[face], face_normals(mesh)[face])


def double_areas(mesh: Mesh) -> Float[np.ndarray, " f"]:
    """Twice the area of each face."""
    return np.linalg.norm(_crosses(mesh), axis=1)


def face_normals(mesh: Mesh) -> Float[np.ndarray, "f 3"]:
    """Unit normals, to the side from which the corners run counter-clockwise; 0 for faces without area."""
    crosses = _crosses(mesh)
    length = np.linalg.norm(crosses, axis=1, keepdims=True)
    return np.where(length > 0, crosses / np.where(length > 0, length, 1.0), 0.0)


def part(mesh: Mesh, keep: Bool[np.ndarray, " f"]) -> Mesh:
    """The chosen faces and the vertices they use, as bare geometry."""
    used, compact = np.unique(mesh.faces[keep], return_inverse=True)
    return Mesh(mesh.vertices[used], compact.reshape(-1, 3), unit=mesh.unit)


def _crosses(mesh: Mesh) -> np.ndarray:
    vertices = np.asarray(mesh.vertices, np.float64)
    a, b, c = (vertices[mesh.faces[:, i]] for i in range(3))
    return np.cross(b - a, c - a)
