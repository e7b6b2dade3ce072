"""A weighted truncated signed distance volume (Curless and Levoy 1996) on Open3D's hashed voxel blocks.

Open3D's own integration knows no weight per pixel, so this writes the block grid's attributes through shared memory
(its documented customised integration); hashing and marching cubes stay Open3D's. The distance is to the pixel's tangent
plane rather than along the ray, which keeps oblique walls of a tube as sharp as frontal ones.
"""

from __future__ import annotations

import numpy as np
import open3d as o3d
import open3d.core as o3c
from jaxtyping import Float, Int
from scipy.special import erf

from recon.fusion.view import View, lookup, rays
from recon.parallel import in_order
from recon.types import Mesh, ReconError, Unit

BLOCK_RESOLUTION = 8
ATTRIBUTES = {"tsdf": 1, "weight": 1, "color": 3, "surface_weight": 1, "square": 1, "observations": 1, "matched": 1}
"""Per voxel, float32: mean distance over the truncation, its weight, mean colour; and of the frames that saw a surface
within the truncation: their weight, the mean square of their distances, their number, and the share that matching gave."""
BYTES_PER_BLOCK = 4 * sum(ATTRIBUTES.values()) * BLOCK_RESOLUTION**3
CHUNK_BLOCKS = 128
FREE_SPACE_WEIGHT = 0.5
"""Of a pixel that looks through a voxel, against 1 for one that sees a surface: depth that is biased far must not erase
what others saw, while a lone flying surface has to go."""
MAX_OFFSET = 1.0
"""Of a voxel's depth from its pixel's, in truncations: farther along a grazing ray the tangent plane has left the tissue."""
TINY_WEIGHT = 1e-6
SHARED_ERROR = 0.25
"""Share of the variance between frames that more frames do not average away: they make the same mistakes."""


class TsdfVolume:
    """A volume over a fixed set of blocks; frames are integrated one at a time.

    Args:
        blocks: integer block coordinates, from `touched_blocks`.
        voxel: edge length in world units.
        truncation: in world units.
        origin: world point that lies at the volume's origin, so that float32 is enough anywhere.
        typical_error: standard deviation of the distance that a pixel of weight 1 measures, world units.
        tolerance: error that `confidence` asks about, world units.
        unmatched_correlation: of the errors of two frames where matching gave no depth.
    """

    def __init__(
        self,
        blocks: Int[np.ndarray, "b 3"],
        voxel: float,
        truncation: float,
        origin: Float[np.ndarray, " 3"],
        typical_error: float,
        tolerance: float,
        unmatched_correlation: float = 0.0,
    ) -> None:
        if len(blocks) == 0:
            raise ReconError("the volume has no block: no depth pixel has a weight above 0", exit_code=1)
        self.voxel, self.truncation, self.origin = voxel, truncation, origin
        self.typical_error, self.tolerance, self.unmatched_correlation = typical_error, tolerance, unmatched_correlation
        self.grid = o3d.t.geometry.VoxelBlockGrid(
            list(ATTRIBUTES),
            [o3c.float32] * len(ATTRIBUTES),
            [o3c.SizeVector([channels]) for channels in ATTRIBUTES.values()],
            voxel,
            BLOCK_RESOLUTION,
            len(blocks),
            o3c.Device("CPU:0"),
        )
        buffer, _ = self.grid.hashmap().activate(o3c.Tensor(np.ascontiguousarray(blocks, dtype=np.int32)))
        self.buffer_idx = buffer.numpy().astype(np.int32)
        self.centers = ((blocks + 0.5) * BLOCK_RESOLUTION * voxel).astype(np.float32)
        self.attributes = {name: self.grid.attribute(name).numpy().reshape(-1, c) for name, c in ATTRIBUTES.items()}
        for values in self.attributes.values():
            values[:] = 0

    def integrate(self, view: View, num_threads: int = 0) -> None:
        """Add one frame to every block that its pixels see or see through. Threads (0: all processors) share no voxel."""
        R, t = self._volume_to_camera(view)
        table = _pixel_table(view)
        in_sight = self.buffer_idx[self._blocks_in_sight(view, R, t)]

        def update(start: int) -> None:
            coordinates, flat = self.grid.voxel_coordinates_and_flattened_indices(o3c.Tensor(in_sight[start : start + CHUNK_BLOCKS]))
            self._update(view, table, coordinates.numpy() @ R.T + t, flat.numpy().reshape(-1))

        for _ in in_order(update, range(0, len(in_sight), CHUNK_BLOCKS), num_threads):
            pass

    def extract(self, unit: Unit) -> Mesh:
        """Return the zero surface with colours, observations and confidence (may be empty).

        Confidence is the probability that the surface is true to within the tolerance: of a normal error whose variance is that
        of the inverse-variance weighted mean and a share of what the frames differ by, times the share of the weight that saw a
        surface here instead of through it. Frames in which it was not matched count as fewer, by the design effect of correlated
        samples (Kish 1965).
        """
        # The threshold is explicit because Open3D's default of 3.0 empties every volume of fewer than 3 frames.
        raw = self.grid.extract_triangle_mesh(weight_threshold=TINY_WEIGHT)
        if raw.is_empty() or "indices" not in raw.triangle:
            return Mesh(np.zeros((0, 3)), np.zeros((0, 3), np.int64), unit=unit)
        vertices = raw.vertex.positions.numpy()
        at = self._at_vertices(vertices)
        surface_weight, weight = at["surface_weight"][:, 0], at["weight"][:, 0]
        scatter = np.maximum(at["square"] - at["tsdf"] ** 2, 0)[:, 0] * self.truncation**2
        matched, observations = np.clip(at["matched"][:, 0], 0, 1), at["observations"][:, 0]
        unmatched = 1 - matched
        alike = 1 + self.unmatched_correlation * np.maximum(unmatched * observations - 1, 0)
        independent_weight = np.maximum(surface_weight * (matched + unmatched / alike), TINY_WEIGHT)
        variance = self.typical_error**2 / independent_weight + SHARED_ERROR * scatter
        within = erf(self.tolerance / np.sqrt(2 * variance))
        presence = surface_weight / np.maximum(weight, TINY_WEIGHT)
        order, faces = canonical_order(vertices, raw.triangle.indices.numpy())
        return Mesh(
            vertices=vertices[order].astype(np.float64) + self.origin,
            faces=faces,
            colors=np.clip(np.rint(at["color"][order]), 0, 255).astype(np.uint8),
            confidence=np.clip(within * presence, 0, 1).astype(np.float32)[order],
            observations=observations[order],
            matched=matched[order],
            unit=unit,
        )

    def _volume_to_camera(self, view: View) -> tuple[np.ndarray, np.ndarray]:
        R = view.T_world_camera[:3, :3].T
        return R.astype(np.float32), (R @ (self.origin - view.T_world_camera[:3, 3])).astype(np.float32)

    def _blocks_in_sight(self, view: View, R: np.ndarray, t: np.ndarray) -> np.ndarray:
        """Keep blocks whose bounding sphere meets the frustum and does not lie wholly behind everything seen."""
        centers = self.centers @ R.T + t
        radius = 0.5 * np.sqrt(3) * BLOCK_RESOLUTION * self.voxel
        fx, fy, cx, cy = view.focal_center
        h, w = view.depth.shape
        z = centers[:, 2]
        keep = (z > -radius) & (z < view.depth.max() + self.truncation + radius)
        for axis, focal, low, high in ((0, fx, -0.5 - cx, w - 0.5 - cx), (1, fy, -0.5 - cy, h - 0.5 - cy)):
            for bound, sign in ((low / focal, 1.0), (high / focal, -1.0)):
                keep &= sign * (centers[:, axis] - bound * z) > -radius * np.sqrt(1 + bound**2)
        return np.flatnonzero(keep)

    def _update(self, view: View, table: np.ndarray, points: np.ndarray, flat: np.ndarray) -> None:
        """Fold the distances of `points` (camera frame) to the view's surface into the voxels `flat`."""
        pixel, inside = lookup(view, points)
        seen = np.flatnonzero(inside)
        row = table[pixel[seen]]
        # Nothing is known of what lies behind a surface, and far along a grazing ray its tangent plane has left the tissue.
        offset = (row[:, 5] - points[seen, 2]) / self.truncation
        use = np.flatnonzero((row[:, 4] > 0) & (offset > -MAX_OFFSET))
        row, seen, offset = row[use], seen[use], offset[use]
        distance = (np.einsum("ij,ij->i", row[:, :3], points[seen]) - row[:, 3]) / self.truncation
        use = np.flatnonzero((distance > 1) | ((distance > -1) & (offset < MAX_OFFSET)))
        distance, flat, pixel, w = distance[use], flat[seen[use]], pixel[seen[use]], row[use, 4]
        near = distance < 1
        w = np.where(near, w, w * np.float32(FREE_SPACE_WEIGHT))
        _running_mean(self.attributes["tsdf"], self.attributes["weight"], flat, np.minimum(distance, 1)[:, None], w)
        pixel, flat, w, distance = pixel[near], flat[near], w[near], distance[near]
        share = _add_weight(self.attributes["surface_weight"], flat, w)
        matched = view.matched.reshape(-1, 1)[pixel]
        for name, value in (("square", distance[:, None] ** 2), ("color", view.color.reshape(-1, 3)[pixel]), ("matched", matched)):
            mean = self.attributes[name][flat]
            self.attributes[name][flat] = mean + share * (value - mean)
        self.attributes["observations"][flat] += 1

    def _at_vertices(self, vertices: np.ndarray) -> dict[str, np.ndarray]:
        """Return each vertex's attributes: the mean over the two voxels whose edge it lies on, but the more observations."""
        grid = vertices / self.voxel
        ends = (np.floor(grid + 0.01).astype(np.int64), np.ceil(grid - 0.01).astype(np.int64))
        total = {name: np.zeros((len(vertices), channels), np.float32) for name, channels in ATTRIBUTES.items()}
        num_found, observations = np.zeros((len(vertices), 1), np.float32), np.zeros((len(vertices), 1), np.float32)
        for voxel in ends:
            block = np.floor_divide(voxel, BLOCK_RESOLUTION)
            local = voxel - block * BLOCK_RESOLUTION
            buffer, found = self.grid.hashmap().find(o3c.Tensor(block.astype(np.int32)))
            found = found.numpy()
            flat = buffer.numpy()[found].astype(np.int64) * BLOCK_RESOLUTION**3
            flat += local[found] @ np.array([1, BLOCK_RESOLUTION, BLOCK_RESOLUTION**2])
            num_found[found] += 1
            for name, values in total.items():
                values[found] += self.attributes[name][flat]
            observations[found] = np.maximum(observations[found], self.attributes["observations"][flat])
        return {name: values / np.maximum(num_found, 1) for name, values in total.items()} | {"observations": observations}


def touched_blocks(
    view: View, voxel: float, truncation: float, origin: Float[np.ndarray, " 3"], stride_px: int = 2
) -> Int[np.ndarray, "b 3"]:
    """Return the sorted coordinates of the blocks within the truncation of the view's surface."""
    edge = BLOCK_RESOLUTION * voxel
    depth = view.depth[::stride_px, ::stride_px]
    v, u = np.nonzero(view.valid[::stride_px, ::stride_px])
    fx, fy, cx, cy = view.focal_center
    z = depth[v, u]
    points = np.stack([(u * stride_px - cx) / fx * z, (v * stride_px - cy) / fy * z, z], axis=-1)
    surface = points @ view.T_world_camera[:3, :3].T + view.T_world_camera[:3, 3] - origin
    offsets = np.arange(-truncation, truncation + 0.5 * edge, 0.5 * edge)
    normals = view.normals[::stride_px, ::stride_px][v, u] @ view.T_world_camera[:3, :3].T
    keys = [pack_blocks(np.floor((surface + offset * normals) / edge).astype(np.int64)) for offset in offsets]
    return _unpack(np.unique(np.concatenate(keys)))


def merge_blocks(first: Int[np.ndarray, "a 3"], second: Int[np.ndarray, "b 3"]) -> Int[np.ndarray, "c 3"]:
    """Return the sorted union of two sets of block coordinates."""
    return _unpack(np.union1d(pack_blocks(first), pack_blocks(second)))


def pack_blocks(blocks: Int[np.ndarray, "*n 3"]) -> Int[np.ndarray, " *n"]:
    """One integer per block coordinate, in the order of the coordinates."""
    shifted = blocks + (1 << 20)
    return (shifted[..., 0] << 42) | (shifted[..., 1] << 21) | shifted[..., 2]


def _unpack(keys: np.ndarray) -> np.ndarray:
    low = (1 << 21) - 1
    return np.stack([keys >> 42, (keys >> 21) & low, keys & low], axis=-1) - (1 << 20)


def _pixel_table(view: View) -> np.ndarray:
    """Return per pixel (n, 6) its tangent plane (normal towards the camera, distance to the origin), weight and depth.

    One table because a gather of rows costs as little as one of numbers.
    """
    points = rays(view.camera) * view.depth[..., None]
    plane = np.sum(points * view.normals, axis=-1)
    table = np.concatenate([view.normals, plane[..., None], view.weight[..., None], view.depth[..., None]], axis=-1)
    return table.reshape(-1, 6).astype(np.float32)


def _add_weight(weights: np.ndarray, flat: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Add `w` and return the share (n, 1) that the new sample has in a running mean."""
    total = weights[flat, 0] + w
    weights[flat, 0] = total
    return (w / total)[:, None]


def _running_mean(means: np.ndarray, weights: np.ndarray, flat: np.ndarray, values: np.ndarray, w: np.ndarray) -> None:
    share = _add_weight(weights, flat, w)
    old = means[flat]
    means[flat] = old + share * (values - old)


def canonical_order(vertices: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the vertex order by position and the faces in it, sorted: marching cubes runs in hash and thread order."""
    order = np.lexsort(vertices.T[::-1])
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    faces = rank[faces]
    first = np.argmin(faces, axis=1)
    faces = np.stack([faces[np.arange(len(faces)), (first + k) % 3] for k in range(3)], axis=-1)
    return order, faces[np.lexsort(faces.T[::-1])]
