"""Meshes whose surface is known in closed form."""

from __future__ import annotations

import numpy as np
import trimesh

from recon.types import Mesh


def mesh_of(body: trimesh.Trimesh, unit: str = "mm") -> Mesh:
    return Mesh(np.array(body.vertices, np.float64), np.array(body.faces, np.int64), unit=unit)


def square(size: float = 10.0, z: float = 0.0, unit: str = "mm") -> Mesh:
    """Two triangles, normals along +z."""
    corners = np.array([[0, 0, z], [size, 0, z], [size, size, z], [0, size, z]])
    return Mesh(corners, np.array([[0, 1, 2], [0, 2, 3]]), unit=unit)


def sphere(radius: float = 10.0, subdivisions: int = 4) -> Mesh:
    return mesh_of(trimesh.creation.icosphere(subdivisions, radius))


def ellipsoid(a: float = 30.0, b: float = 20.0, c: float = 12.0, subdivisions: int = 3) -> Mesh:
    body = trimesh.creation.icosphere(subdivisions, 1.0)
    body.vertices *= [a, b, c]
    return mesh_of(body)


def box(x: float = 30.0, y: float = 20.0, z: float = 12.0, subdivisions: int = 3) -> Mesh:
    body = trimesh.creation.box((x, y, z))
    for _ in range(subdivisions):
        body = body.subdivide()
    return mesh_of(body)


def tube(radius: float = 10.0, length: float = 100.0, sections: int = 128, folds: float = 0.0) -> Mesh:
    """Open at both ends, along z; `folds` is the height of rings on it."""
    z, angle = np.meshgrid(np.linspace(-length / 2, length / 2, 81), np.linspace(0, 2 * np.pi, sections, endpoint=False), indexing="ij")
    r = radius + folds * np.sin(z / 4)
    vertices = np.stack([r * np.cos(angle), r * np.sin(angle), z], axis=-1).reshape(-1, 3)
    i, j = (idx.ravel() for idx in np.meshgrid(np.arange(80), np.arange(sections), indexing="ij"))
    here, right, down, across = (a * sections + b % sections for a, b in ((i, j), (i, j + 1), (i + 1, j), (i + 1, j + 1)))
    faces = np.concatenate([np.stack([here, right, down], 1), np.stack([right, across, down], 1)])
    return Mesh(vertices, faces, unit="mm")


def moved(mesh: Mesh, scale: float, T: np.ndarray) -> Mesh:
    """`scale` times the mesh after the rigid motion T."""
    return Mesh(scale * (mesh.vertices @ T[:3, :3].T + T[:3, 3]), mesh.faces, unit=mesh.unit)


def joined(*meshes: Mesh) -> Mesh:
    starts = np.cumsum([0, *(len(mesh.vertices) for mesh in meshes)])
    faces = [mesh.faces + start for mesh, start in zip(meshes, starts, strict=False)]
    return Mesh(np.concatenate([mesh.vertices for mesh in meshes]), np.concatenate(faces), unit=meshes[0].unit)
