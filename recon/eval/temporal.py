"""Whether depth maps of neighbouring frames agree: TAE and TAS, each map carried into the other's view by the true camera motion.

Temporal alignment error (Chen et al., "Video Depth Anything", 2025): the mean of |D - D'| / D over the pixels that have both
the frame's own depth D and the neighbour's carried depth D', both ways, in percent. Temporal alignment score (Zhou et al.,
EndoDAV, 2025): the share of those pixels whose ratio is below 1.25. A depth that is consistently wrong agrees with itself, so
these stand beside the errors, never for them. Depth must be in the unit of the camera path: align it first.

Own carrying: pixel centres at integers, nearest pixel by floor(u + 0.5), the nearest surface wins where several land. EndoDAV's
puts pixel centres at + 0.5 and rounds halves to even, so that even without motion neighbours fall on one pixel and others stay
empty, and the last to be written wins; it is kept under its own name to compare with published numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from recon.eval.bootstrap import block_length, interval
from recon.geometry.cameras import project, ray_grid, usable_mask
from recon.geometry.se3 import inverse
from recon.parallel import in_order
from recon.types import Alignment, Camera, Metric, ReconError

Carry = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""From depth (h, w) of view a, 0 unknown, and T_b_a (4, 4) to the depth that view b would see of it (h, w), 0 where nothing lands."""

CONSISTENT_RATIO = 1.25
ENDODAV_MIN_DEPTH = 1e-6
ENDODAV_FOCAL = (0.82, 1.02)
"""Times width and height: the one nominal lens of AF-SfMLearner's family, its centre in the middle of the image."""


@dataclass(frozen=True)
class TemporalScore:
    """How consistent the depth of one sequence is."""

    metrics: list[Metric]
    pairs: list[dict[str, float | int]]
    """`index` and `next_index` of the frames, `tae` (%), `tas`, and `overlap`: the share of known pixels that were compared."""
    notes: list[str]


def nearest_carry(camera: Camera) -> Carry:
    """Return the own way to carry depth between two views of one lens, of any model, at the depth maps' resolution."""
    rays = ray_grid(camera)
    usable = usable_mask(camera)
    directions = np.where(usable[..., None], rays / np.where(usable, rays[..., 2], 1)[..., None], 0)

    def carry(depth: Float[np.ndarray, "h w"], T_b_a: Float[np.ndarray, "4 4"]) -> Float[np.ndarray, "h w"]:
        if depth.shape != usable.shape:
            raise ReconError(
                f"depth is {depth.shape[1]}x{depth.shape[0]} and the camera {camera.width_px}x{camera.height_px}: resize the camera"
            )
        known = (depth > 0) & usable
        points = directions[known] * depth[known][:, None] @ T_b_a[:3, :3].T + T_b_a[:3, 3]
        points = points[points[:, 2] > 0]
        pixels, is_seen = project(camera, points)
        landed = np.floor(pixels + 0.5)
        inside = is_seen & np.all((landed >= 0) & (landed < [camera.width_px, camera.height_px]), axis=1)
        column, row = landed[inside].astype(np.int64).T
        nearest = np.full(depth.size, np.inf)
        np.minimum.at(nearest, row * camera.width_px + column, np.ascontiguousarray(points[inside, 2]))
        return np.where(np.isfinite(nearest), nearest, 0).reshape(depth.shape)

    return carry


def endodav_carry(depth: Float[np.ndarray, "h w"], T_b_a: Float[np.ndarray, "4 4"]) -> Float[np.ndarray, "h w"]:
    """Carry depth as Zanue/EndoDAV utils/eval_utils.py does, rounding and writing order included (see the module)."""
    height, width = depth.shape
    row, column = np.nonzero(depth > 0)
    z = depth[row, column].astype(np.float64)
    fx, fy, cx, cy = ENDODAV_FOCAL[0] * width, ENDODAV_FOCAL[1] * height, width / 2, height / 2
    points = np.stack([(column + 0.5 - cx) / fx * z, (row + 0.5 - cy) / fy * z, z], axis=1) @ T_b_a[:3, :3].T + T_b_a[:3, 3]
    points = points[points[:, 2] > ENDODAV_MIN_DEPTH]
    carried = np.ascontiguousarray(points[:, 2])
    u, v = np.rint(points[:, 0] / carried * fx + cx), np.rint(points[:, 1] / carried * fy + cy)
    inside = (u >= 0) & (u < width) & (v >= 0) & (v < height)
    out = np.zeros(depth.shape)
    out[v[inside].astype(np.int64), u[inside].astype(np.int64)] = carried[inside]
    return out


def pair_agreement(
    depth_a: Float[np.ndarray, "h w"], depth_b: Float[np.ndarray, "h w"], T_b_a: Float[np.ndarray, "4 4"], carry: Carry
) -> tuple[float, float, float] | None:
    """Return TAE (%), TAS and overlap of two frames, the mean of both directions; None when a direction has no pixel to compare."""
    directions = [_agreement(depth_b, carry(depth_a, T_b_a)), _agreement(depth_a, carry(depth_b, inverse(T_b_a)))]
    if None in directions:
        return None
    error, score, overlap = np.mean(directions, axis=0)
    return 100 * float(error), float(score), float(overlap)


def _agreement(own: np.ndarray, carried: np.ndarray) -> tuple[float, float, float] | None:
    both = (own > 0) & (carried > 0)
    if not both.any():
        return None
    reference, other = own[both].astype(np.float64), carried[both].astype(np.float64)
    ratio = np.maximum(reference / other, other / reference)
    overlap = len(reference) / np.count_nonzero(own > 0)
    return float(np.mean(np.abs(reference - other) / reference)), float(np.mean(ratio < CONSISTENT_RATIO)), overlap


def score_temporal(
    indices: Sequence[int],
    depth_of: Callable[[int], np.ndarray | None],
    T_world_camera: Mapping[int, np.ndarray],
    carry: Carry,
    *,
    alignment: Alignment = "none",
    protocol: str | None = None,
    num_workers: int = 2,
    seed: int = 0,
) -> TemporalScore:
    """Score neighbouring frames of a video; pairs without depth, poses or common pixels are left out and noted.

    Args:
        indices: of frames; each is compared with the recording's next one, chosen or not.
        depth_of: from frame index to aligned depth (h, w), 0 where it must not count, or None; also asked for the frames that
            follow. Called from several threads.
        T_world_camera: from frame index to its true pose (4, 4).
        carry: `nearest_carry(camera)` or `endodav_carry`.
        alignment: that `depth_of` has gone through.
        protocol: name for `Metric.protocol`.
        num_workers: threads, each with two maps.
        seed: of the bootstrap.
    """
    neighbours = [(index, index + 1) for index in indices if index in T_world_camera and index + 1 in T_world_camera]
    pairs = [pair for pair in _scored_pairs(neighbours, depth_of, T_world_camera, carry, num_workers) if pair is not None]
    if not pairs:
        return TemporalScore([], [], ["temporal: not computable, because no frame and its next one have poses and share known pixels"])
    # That the last of consecutive frames has none after it is not worth a word.
    is_whole = len(pairs) == len(indices) - 1 == max(indices) - min(indices)
    notes = [] if is_whole else [f"temporal: {len(pairs)} of {len(indices)} frames are compared with the next one"]
    if len(pairs) < len(neighbours):
        notes.append(f"temporal: {len(neighbours) - len(pairs)} of {len(neighbours)} pairs with poses lack depth or share no pixel")
    metrics = []
    for name, unit, is_error in (("tae", "%", True), ("tas", "1", False)):
        values = np.array([pair[name] for pair in pairs])
        bound = interval(values, block_length(len(values)), seed)
        metrics.append(Metric("depth", name, float(values.mean()), unit, alignment, is_error, protocol, bound))
    return TemporalScore(metrics, pairs, notes)


def _scored_pairs(
    neighbours: list[tuple[int, int]],
    depth_of: Callable[[int], np.ndarray | None],
    T_world_camera: Mapping[int, np.ndarray],
    carry: Carry,
    num_workers: int,
) -> Iterator[dict[str, float | int] | None]:
    def of_pair(pair: tuple[int, int]) -> dict[str, float | int] | None:
        a, b = pair
        depth_a, depth_b = depth_of(a), depth_of(b)
        if depth_a is None or depth_b is None:
            return None
        found = pair_agreement(depth_a, depth_b, inverse(T_world_camera[b]) @ T_world_camera[a], carry)
        return None if found is None else {"index": a, "next_index": b, "tae": found[0], "tas": found[1], "overlap": found[2]}

    return in_order(of_pair, neighbours, num_workers)
