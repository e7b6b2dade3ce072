"""One more pass over the fused frames, with the finished surface at hand: what each frame saw of it, and its colours."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import numpy as np

from recon.fusion.coloring import BestViews
from recon.fusion.exposure import Exposure
from recon.fusion.sightings import SeenFrom, Sighting, sight
from recon.fusion.view import View
from recon.io.meshes import vertex_normals
from recon.mesh.clean import smooth
from recon.parallel import in_order
from recon.types import Mesh

NORMAL_SMOOTHING_STEPS = 3
"""Marching cubes' steps would show in the angles between normals and rays."""


def review(
    mesh: Mesh,
    load: Callable[[int], View],
    timestamps_s: Sequence[float],
    median_depth: float,
    reach: float,
    watch: Callable[[Iterable, int, str], Iterable],
    num_threads: int = 0,
) -> tuple[Mesh, Exposure]:
    """Return the mesh with colours, `last_seen_s` and `viewing_angle_rad`, and the exposure that the colours were freed of.

    One view per thread is in memory at a time, and one more.

    Args:
        load: from a position (0 to n - 1) to the view that was fused.
        timestamps_s: of each position.
        median_depth: world units.
        reach: farthest that the surface may lie from a frame's depth to be what it saw, world units: the truncation.
        watch: wraps a loop for progress: (items, total, description).
        num_threads: of the processor; 0 means all.
    """
    num = len(timestamps_s)
    normals = vertex_normals(smooth(mesh, NORMAL_SMOOTHING_STEPS).vertices, mesh.faces)
    seen, best = SeenFrom(len(mesh.vertices)), BestViews(len(mesh.vertices), median_depth)

    def look(view: View) -> tuple[View, Sighting]:
        return view, sight(mesh.vertices, normals, view, reach)

    looks = in_order(look, map(load, range(num)), num_threads)
    for time_s, (view, sighting) in zip(timestamps_s, watch(looks, num, "looking back"), strict=True):
        seen.add(sighting, time_s)
        best.add(view, sighting)
    exposure = best.exposure()
    before = mesh.colors if mesh.colors is not None else np.zeros((len(mesh.vertices), 3), np.uint8)
    colors = best.colors(mesh.vertices, exposure, before)
    times, angles = seen.last_seen_s(mesh.vertices), seen.viewing_angle_rad()
    return replace(mesh, colors=colors, last_seen_s=times, viewing_angle_rad=angles), exposure
