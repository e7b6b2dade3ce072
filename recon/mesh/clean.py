"""What of an extracted surface is kept: well supported, connected, without degenerate faces; then lightly smoothed.

Holes stay holes: closing them would invent tissue.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Int
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from recon.io.meshes import vertex_normals
from recon.types import Mesh, ReconError


@dataclass(frozen=True)
class CleanSettings:
    """What is thrown away."""

    min_confidence: float = 0.15
    max_removed_share: float = 0.4
    """The limit on confidence is lowered until no more than this share of the faces goes."""
    min_component_share: float = 0.005
    """Of the largest component's faces; smaller pieces float."""
    smoothing_steps: int = 3


def clean(mesh: Mesh, settings: CleanSettings) -> Mesh:
    """Return the cleaned mesh with normals; every per-vertex attribute follows its vertex.

    Raises ReconError (exit code 1) when nothing is left.
    """
    mesh = keep_faces(mesh, ~degenerate_faces(mesh))
    mesh = keep_faces(mesh, confident_faces(mesh, settings.min_confidence, settings.max_removed_share))
    mesh = keep_faces(mesh, large_components(mesh, settings.min_component_share))
    if len(mesh.faces) == 0:
        raise ReconError("cleaning left no face of the surface: the depth of this recording supports none", exit_code=1)
    mesh = smooth(mesh, settings.smoothing_steps)
    return replace(mesh, normals=vertex_normals(mesh.vertices, mesh.faces))


def keep_faces(mesh: Mesh, keep: Bool[np.ndarray, " f"]) -> Mesh:
    """Return the chosen faces and the vertices they use, attributes aligned."""
    faces = mesh.faces[keep]
    used = np.unique(faces)
    new_idx = np.full(len(mesh.vertices), -1, np.int64)
    new_idx[used] = np.arange(len(used))
    rows = {name: value[used] for name, value in vars(mesh).items() if isinstance(value, np.ndarray) and name != "faces"}
    return replace(mesh, faces=new_idx[faces], **rows)


def degenerate_faces(mesh: Mesh) -> Bool[np.ndarray, " f"]:
    """True for faces that use a vertex twice, have no area, or repeat an earlier face."""
    a, b, c = (mesh.vertices[mesh.faces[:, i]] for i in range(3))
    flat = np.linalg.norm(np.cross(b - a, c - a), axis=1) <= 0
    corners = np.sort(mesh.faces, axis=1)
    order = np.lexsort(corners.T)
    repeated = np.zeros(len(mesh.faces), bool)
    repeated[order[1:]] = np.all(corners[order[1:]] == corners[order[:-1]], axis=1)
    return flat | repeated


def confident_faces(mesh: Mesh, min_confidence: float, max_removed_share: float) -> Bool[np.ndarray, " f"]:
    """True for faces whose least confident vertex reaches `min_confidence`, or the limit that `max_removed_share` allows."""
    if mesh.confidence is None or len(mesh.faces) == 0:
        return np.ones(len(mesh.faces), bool)
    of_face = mesh.confidence[mesh.faces].min(axis=1)
    return of_face >= min(min_confidence, float(np.quantile(of_face, max_removed_share)))


def large_components(mesh: Mesh, min_share: float) -> Bool[np.ndarray, " f"]:
    """True for faces of components with at least `min_share` of the largest one's faces."""
    if len(mesh.faces) == 0:
        return np.zeros(0, bool)
    edges = np.concatenate([mesh.faces[:, [0, 1]], mesh.faces[:, [1, 2]]])
    num = len(mesh.vertices)
    graph = coo_matrix((np.ones(len(edges), bool), (edges[:, 0], edges[:, 1])), shape=(num, num))
    _, label = connected_components(graph, directed=False)
    size = np.bincount(label[mesh.faces[:, 0]])
    return size[label[mesh.faces[:, 0]]] >= min_share * size.max()


def smooth(mesh: Mesh, steps: int, shrink: float = 0.5, inflate: float = -0.53) -> Mesh:
    """Smooth without shrinking: alternating Laplacian steps (Taubin, "A signal processing approach to fair surface design", 1995)."""
    edges, count = _counted_edges(mesh.faces, len(mesh.vertices))
    degree = np.bincount(edges.ravel(), minlength=len(mesh.vertices))[:, None]
    is_border = np.isin(np.arange(len(mesh.vertices)), edges[count == 1])
    vertices = mesh.vertices.astype(np.float64)
    for factor in (shrink, inflate) * steps:
        total = np.zeros_like(vertices)
        for axis in range(3):
            total[:, axis] = np.bincount(edges[:, 0], vertices[edges[:, 1], axis], minlength=len(vertices))
            total[:, axis] += np.bincount(edges[:, 1], vertices[edges[:, 0], axis], minlength=len(vertices))
        moved = vertices + factor * (total / np.maximum(degree, 1) - vertices)
        # The border of an open surface has neighbours on one side only and would creep inwards.
        vertices = np.where(is_border[:, None], vertices, moved)
    return replace(mesh, vertices=vertices)


def _counted_edges(faces: Int[np.ndarray, "f 3"], num_vertices: int) -> tuple[np.ndarray, np.ndarray]:
    """Return each edge once as (e, 2), and in how many faces it is."""
    pairs = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]]).astype(np.int64)
    keys, count = np.unique(pairs.min(axis=1) * num_vertices + pairs.max(axis=1), return_counts=True)
    return np.stack(np.divmod(keys, num_vertices), axis=-1), count
