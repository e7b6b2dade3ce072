"""One more pass over the fused frames, with the finished surface at hand: what each frame saw of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from recon.fusion.sightings import SeenFrom, sight
from recon.fusion.view import View
from recon.io.meshes import vertex_normals
from recon.mesh.clean import smooth
from recon.types import Mesh

NORMAL_SMOOTHING_STEPS = 3
"""Marching cubes' steps would show in the angles between normals and rays."""


def review(
    mesh: Mesh,
    load: Callable[[int], View],
    timestamps_s: Sequence[float],
    reach: float,
    watch: Callable[[Iterable[int], int, str], Iterable[int]],
) -> Mesh:
    """Return the mesh with `last_seen_s` and `viewing_angle_rad`. One view is in memory at a time.

    Args:
        load: from a position (0 to n - 1) to the view that was fused.
        timestamps_s: of each position.
        reach: farthest that the surface may lie from a frame's depth to be what it saw, world units: the truncation.
        watch: wraps a loop for progress: (items, total, description).
    """
    num = len(timestamps_s)
    normals = vertex_normals(smooth(mesh, NORMAL_SMOOTHING_STEPS).vertices, mesh.faces)
    seen = SeenFrom(len(mesh.vertices))
    for i in watch(range(num), num, "looking back"):
        seen.add(sight(mesh.vertices, normals, load(i), reach), timestamps_s[i])
    return replace(mesh, last_seen_s=seen.last_seen_s(mesh.vertices), viewing_angle_rad=seen.viewing_angle_rad())
