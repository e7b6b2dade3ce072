"""A volume larger than memory, region by region: its blocks are split until each part fits, and the parts' surfaces are joined.

Every region carries the blocks around it as well, integrated from the same views in the same order, so that its surface
runs on into them unchanged; of each region only the faces inside it are kept, and vertices on a border are equal to the bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float, Int

from recon.fusion.tsdf import BLOCK_RESOLUTION, canonical_order, pack_blocks
from recon.fusion.view import View, rays
from recon.types import Mesh

NEIGHBOURS = np.stack(np.meshgrid(*[[-1, 0, 1]] * 3, indexing="ij"), axis=-1).reshape(-1, 3)


@dataclass(frozen=True)
class Region:
    """A part of the volume."""

    core: Int[np.ndarray, "c 3"]
    """Blocks whose surface is this region's."""
    blocks: Int[np.ndarray, "b 3"]
    """The core and the blocks around it."""

    def owns(self, points: Float[np.ndarray, "n 3"], block_edge: float) -> Bool[np.ndarray, " n"]:
        """Which points, relative to the volume's origin, lie in core blocks of this edge length."""
        keys = pack_blocks(np.floor(points / block_edge).astype(np.int64))
        return np.isin(keys, pack_blocks(self.core))

    def is_within(
        self, centre: Float[np.ndarray, " 3"], distance: float, origin: Float[np.ndarray, " 3"], voxel: float, truncation: float
    ) -> bool:
        """Whether a view from `centre` that reaches so far can say anything of this region."""
        edge = BLOCK_RESOLUTION * voxel
        low, high = self.blocks.min(axis=0) * edge + origin, (self.blocks.max(axis=0) + 1) * edge + origin
        outside = np.maximum(np.maximum(low - centre, centre - high), 0)
        return bool(np.linalg.norm(outside) <= distance + truncation)


def reach(view: View) -> tuple[Float[np.ndarray, " 3"], float]:
    """Centre of a view, and the distance of the farthest that it sees."""
    farthest = np.linalg.norm(rays(view.camera), axis=-1) * view.depth
    return view.T_world_camera[:3, 3], float(farthest.max())


def split(blocks: Int[np.ndarray, "b 3"], max_blocks: int) -> list[Region]:
    """Halve the blocks across their longest extent until each part, with its surroundings, has at most `max_blocks`.

    One region when all fit. A single block is never split, whatever its surroundings need.
    """
    if len(blocks) <= max_blocks:
        return [Region(blocks, blocks)]
    keys = pack_blocks(blocks)
    parts, regions = [blocks], []
    while parts:
        core = parts.pop()
        region = Region(core, blocks[np.isin(keys, np.unique(pack_blocks((core[:, None] + NEIGHBOURS).reshape(-1, 3))))])
        if len(region.blocks) <= max_blocks or len(core) == 1:
            regions.append(region)
            continue
        order = np.argsort(core[:, np.argmax(np.ptp(core, axis=0))], kind="stable")
        parts += [core[np.sort(half)] for half in (order[len(order) // 2 :], order[: len(order) // 2])]
    return regions


def part_of(mesh: Mesh, region: Region, origin: Float[np.ndarray, " 3"], voxel: float) -> Mesh:
    """The faces of a region's surface that are its own. A face belongs to the block of the cube that it crosses."""
    centroids = mesh.vertices[mesh.faces].mean(axis=1) - origin
    faces = mesh.faces[region.owns(centroids, BLOCK_RESOLUTION * voxel)]
    used, faces = np.unique(faces, return_inverse=True)
    return replace(mesh, faces=faces.reshape(-1, 3), **{name: rows[used] for name, rows in _by_vertex(mesh).items()})


def joined(parts: Sequence[Mesh]) -> Mesh:
    """One mesh of the parts, with vertices on borders shared again, in canonical order; parts without a face are passed over."""
    parts = [part for part in parts if len(part.faces)] or list(parts[:1])
    starts = np.cumsum([0, *[len(part.vertices) for part in parts]])
    faces = np.concatenate([part.faces + start for part, start in zip(parts, starts, strict=False)])
    rows = {name: np.concatenate([_by_vertex(part)[name] for part in parts]) for name in _by_vertex(parts[0])}
    _, first, inverse = np.unique(rows["vertices"], axis=0, return_index=True, return_inverse=True)
    order, faces = canonical_order(rows["vertices"][first], inverse.reshape(-1)[faces])
    return replace(parts[0], faces=faces, **{name: values[first][order] for name, values in rows.items()})


def _by_vertex(mesh: Mesh) -> dict[str, np.ndarray]:
    """What a mesh holds of each vertex."""
    return {name: value for name, value in vars(mesh).items() if isinstance(value, np.ndarray) and name != "faces"}
