"""Holes in a surface, and how much area they miss: a coverage estimate without any truth.

The border of an open surface falls into loops, which are of three kinds. Going round with the surface on the left, let A be
the loop's area vector (half the sum of p x dp) and n the normal of the surface beside it:

- a hole: the surface surrounds it, so the way round is clockwise and A points against n: A . n / |A| near -1;
- the rim of a sheet: A points along n, near +1;
- an open end of a tube: A lies along the tube and n across it all the way round, near 0.

So rims and ends, where the recording began, ended or looked no farther, are not taken for something missed, whatever their
size. What this cannot see is a wall beside which nothing was seen, such as the side of a tube from its one end to the other.
In a mesh from voxels a hole is about a voxel wider on each side than what was not seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from recon.types import Mesh, Unit

SURROUNDED = -0.5
"""A . n / |A| below which a loop is a hole: as for a round opening in a sphere that misses less than 60 degrees from its middle."""
NUM_LISTED = 10
"""Holes that are told one by one."""
MIN_POINTS_OF_A_BULGE = 8
"""A border of fewer points is filled flat."""
MAX_STEEPNESS = 1.5
"""Of the patch, rise over run: beyond, a ragged border and not the wall decides."""
RADIAL_STEPS = 6
"""Of the integral from the middle of a patch to its border."""


@dataclass(frozen=True)
class Hole:
    """One hole that the surface surrounds."""

    area: float
    """Of a quadratic patch through its border, square world units."""
    center: Float[np.ndarray, " 3"]
    """Mean of the loop, weighted by length, world units."""
    perimeter: float


@dataclass(frozen=True)
class Coverage:
    """How much of the wall around the observed surface is missing from it."""

    observed_area: float
    """Square world units."""
    holes: tuple[Hole, ...]
    """The largest first."""

    @property
    def missed_area_estimate(self) -> float:
        """Area of all holes, square world units."""
        return float(sum(hole.area for hole in self.holes))

    @property
    def coverage_estimate(self) -> float:
        """Observed over observed and missed, 0 to 1; what no surface surrounds is not counted, so walls may be missing besides."""
        return self.observed_area / (self.observed_area + self.missed_area_estimate)


def estimate_coverage(mesh: Mesh) -> Coverage:
    """Measure a surface with normals and its holes. The mesh must have faces."""
    corners = np.asarray(mesh.vertices, np.float64)[mesh.faces]
    crosses = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    observed = 0.5 * float(np.linalg.norm(crosses, axis=1).sum())
    holes = [_hole(np.asarray(mesh.vertices, np.float64)[loop]) for loop in border_loops(mesh.faces) if _is_hole(mesh, loop)]
    return Coverage(observed, tuple(sorted(holes, key=lambda hole: -hole.area)))


def coverage_summary(coverage: Coverage, unit: Unit, frame_indices: Sequence[int], centers: Float[np.ndarray, "n 3"]) -> dict[str, Any]:
    """Return what the report says of coverage, its largest holes with the frame whose camera was nearest.

    Args:
        frame_indices, centers: of the posed frames; their camera centres in the mesh's world.
    """
    return {
        "area_unit": "mm^2" if unit == "mm" else "unitless",
        "observed_area": _rounded(coverage.observed_area),
        "missed_area_estimate": _rounded(coverage.missed_area_estimate),
        "coverage_estimate": round(coverage.coverage_estimate, 5),
        "num_holes": len(coverage.holes),
        "largest_holes": [
            {
                "area": _rounded(hole.area),
                "center": [_rounded(x) for x in hole.center],
                "nearest_frame": int(frame_indices[int(np.argmin(np.linalg.norm(centers - hole.center, axis=1)))]),
            }
            for hole in coverage.holes[:NUM_LISTED]
        ],
    }


def _rounded(value: float) -> float:
    return float(f"{value:.5g}")


def border_loops(faces: Int[np.ndarray, "f 3"]) -> list[Int[np.ndarray, " k"]]:
    """Return the closed loops of edges that only one face has, as vertex numbers, each with its face on the left.

    Where several loops touch in one vertex they are parted there, so that none meets itself.
    """
    edges = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]]).astype(np.int64)
    size = int(edges.max()) + 1
    # Only one face on an edge, not merely none that runs the other way: three faces on one edge make no border.
    undirected = edges.min(axis=1) * size + edges.max(axis=1)
    _, which, count = np.unique(undirected, return_inverse=True, return_counts=True)
    border = edges[count[which] == 1]
    border = border[np.lexsort(border.T[::-1])]
    onward: dict[int, list[int]] = {}
    for start, end in border[::-1].tolist():
        onward.setdefault(start, []).append(end)
    loops = []
    for start in sorted(onward):
        while onward[start]:
            loops += _walk(onward, start)
    return [np.array(loop, np.int64) for loop in loops]


def _walk(onward: dict[int, list[int]], start: int) -> list[list[int]]:
    """Follow unused edges until they end, cutting off a loop whenever a vertex comes up again."""
    loops, path, place = [], [start], {start: 0}
    while onward.get(path[-1]):
        vertex = onward[path[-1]].pop()
        if vertex in place:
            first = place[vertex]
            loops.append(path[first:])
            for left in path[first + 1 :]:
                del place[left]
            path = path[: first + 1]
        else:
            place[vertex] = len(path)
            path.append(vertex)
    return loops


def _is_hole(mesh: Mesh, loop: np.ndarray) -> bool:
    points = np.asarray(mesh.vertices, np.float64)[loop]
    length = np.linalg.norm(np.roll(points, -1, axis=0) - points, axis=1)
    normals = np.asarray(mesh.normals, np.float64)[loop]
    beside = np.sum((normals + np.roll(normals, -1, axis=0)) * (0.5 * length / max(length.sum(), 1e-300))[:, None], axis=0)
    area_vector = _area_vector(points)
    return float(area_vector @ beside) < SURROUNDED * float(np.linalg.norm(area_vector))


def _area_vector(points: np.ndarray) -> np.ndarray:
    points = points - points.mean(axis=0)
    return 0.5 * np.cross(points, np.roll(points, -1, axis=0)).sum(axis=0)


def _hole(points: np.ndarray) -> Hole:
    following = np.roll(points, -1, axis=0)
    length = np.linalg.norm(following - points, axis=1)
    center = np.sum(0.5 * (points + following) * length[:, None], axis=0) / length.sum()
    return Hole(_patch_area(points - center), center, float(length.sum()))


def _patch_area(points: np.ndarray) -> float:
    """Area of a quadratic patch through the loop: its extent across the area vector, enlarged where the patch is steep.

    Signed parts make it indifferent to a ragged border, which a sum of triangles is not.
    """
    area_vector = _area_vector(points)
    flat_area = float(np.linalg.norm(area_vector))
    if flat_area == 0.0 or len(points) < MIN_POINTS_OF_A_BULGE:
        return flat_area
    _, _, axes = np.linalg.svd(area_vector[None])
    x, y, height = points @ axes[1], points @ axes[2], points @ axes[0]
    size = np.sqrt(flat_area)
    x, y, height = x / size, y / size, height / size
    terms = np.stack([np.ones_like(x), x, y, x * x, x * y, y * y], axis=-1)
    _, slope_x, slope_y, xx, xy, yy = np.linalg.lstsq(terms, height, rcond=1e-6)[0]
    part = x * np.roll(y, -1) - np.roll(x, -1) * y
    middle_x, middle_y = 0.5 * (x + np.roll(x, -1)), 0.5 * (y + np.roll(y, -1))
    enlarged = 0.0
    for outer in (np.arange(RADIAL_STEPS) + 0.5) / RADIAL_STEPS:
        u, v = outer * middle_x, outer * middle_y
        steepness = np.hypot(slope_x + 2 * xx * u + xy * v, slope_y + xy * u + 2 * yy * v)
        enlarged += 2 * outer / RADIAL_STEPS * np.sum(part * np.sqrt(1 + np.minimum(steepness, MAX_STEEPNESS) ** 2))
    return flat_area * max(1.0, float(enlarged / part.sum()))
