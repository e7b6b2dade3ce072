"""How a triangle mesh hangs together, in exact counts.

Vertices at the very same place are one (STL files repeat them), and faces that then use a vertex twice are left out.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from recon.types import Mesh


@dataclass(frozen=True)
class Topology:
    """Counts over the faces that are triangles."""

    components: int
    """Pieces that hang together by at least a vertex."""
    boundary_length: float
    """Of the edges that belong to one face only, in the mesh's unit."""
    boundary_loops: int
    """Closed chains that these edges form; 0 for a watertight surface."""
    non_manifold_edges: int
    """Edges of more than two faces."""
    non_manifold_vertices: int
    """Fans of faces beyond the first at a vertex."""
    euler: int
    """Vertices - edges + faces."""
    genus: int | None
    """Handles over all components; None unless the surface is manifold and wound one way, for then it is not defined by the counts."""


def topology(mesh: Mesh) -> Topology:
    """Return the counts; all are 0 and the genus None for a mesh without faces."""
    vertices, faces = _welded(mesh)
    if not len(faces):
        return Topology(0, 0.0, 0, 0, 0, 0, None)
    num = len(vertices)
    starts, ends = faces.ravel(), np.roll(faces, -1, axis=1).ravel()
    _, edge, count = np.unique(np.minimum(starts, ends) * num + np.maximum(starts, ends), return_inverse=True, return_counts=True)
    edge, on_border = edge.ravel(), count[edge.ravel()] == 1
    boundary = np.stack([starts[on_border], ends[on_border]], axis=1)
    components = _num_connected(starts, ends, num)
    on_border_idx, at = np.unique(boundary, return_inverse=True)
    loops = _num_connected(at.ravel()[::2], at.ravel()[1::2], len(on_border_idx))
    bad_edges, bad_vertices = int(np.sum(count > 2)), _extra_fans(faces, edge, count)
    euler = num - len(count) + len(faces)
    directed = np.unique(starts * num + ends)
    is_regular = bad_edges == 0 and bad_vertices == 0 and len(directed) == len(starts)
    length = float(np.sum(np.linalg.norm(vertices[boundary[:, 0]] - vertices[boundary[:, 1]], axis=1)))
    # Of a compact orientable surface: euler = 2 components - 2 genus - boundary loops.
    genus = (2 * components - loops - euler) // 2 if is_regular else None
    return Topology(components, length, loops, bad_edges, bad_vertices, euler, genus)


def _welded(mesh: Mesh) -> tuple[Float[np.ndarray, "v 3"], Int[np.ndarray, "f 3"]]:
    places, same = np.unique(np.asarray(mesh.vertices, np.float64) + 0.0, axis=0, return_inverse=True)  # + 0.0 makes -0.0 equal 0.0
    faces = same.ravel()[mesh.faces]
    a, b, c = faces.T
    faces = faces[(a != b) & (b != c) & (c != a)]
    used, compact = np.unique(faces, return_inverse=True)
    return places[used], compact.reshape(-1, 3)


def _extra_fans(faces: np.ndarray, edge: np.ndarray, count: np.ndarray) -> int:
    """At a regular vertex all faces hang together by edges; count the further groups of faces over all vertices.

    Corners (three a face) at the same vertex are linked when their faces share an edge there.
    """
    order = np.argsort(edge, kind="stable")
    first = np.flatnonzero(np.diff(edge[order], prepend=-1))
    # Each edge of several faces links its first face with each of the others.
    anchor = np.repeat(order[first], count)
    face, corner = order // 3, order % 3
    anchor_face, anchor_corner = anchor // 3, anchor % 3
    links_a, links_b = [], []
    for step in (0, 1):
        here, there = face * 3 + (corner + step) % 3, anchor_face * 3 + anchor_corner
        other = anchor_face * 3 + (anchor_corner + 1) % 3
        same = faces.ravel()[here] == faces.ravel()[there]
        links_a.append(here)
        links_b.append(np.where(same, there, other))
    groups = _num_connected(np.concatenate(links_a), np.concatenate(links_b), faces.size)
    return groups - (int(faces.max()) + 1)


def _num_connected(a: np.ndarray, b: np.ndarray, num: int) -> int:
    """Groups that the links a-b leave of `num` things."""
    if num == 0:
        return 0
    graph = coo_matrix((np.ones(len(a), bool), (a, b)), shape=(num, num))
    return int(connected_components(graph, directed=False, return_labels=False))
