"""Several sparse maps of one recording brought into one frame and unit.

Two maps that share frames hold the same features as points: the similarity between those pairs of points joins them
(Umeyama 1991 in RANSAC). Maps that share none are linked by dense alignment of a frame of one to a frame of the other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from recon.geometry.alignment import umeyama
from recon.geometry.similarity import Similarity
from recon.tracking.chain import Chain
from recon.tracking.mapping import SparseMap
from recon.types import Camera, ReconError

MIN_SHARED_POINTS = 12
MIN_INLIERS = 0.5
MAX_RELATIVE_ERROR = 0.05
"""Distance between joined points, as a share of their spread."""
NUM_TRIALS = 200
NUM_REFINEMENTS = 5
MAX_FOCAL_CHANGE = 0.15
"""Maps that refined the lens to focal lengths further apart than this are not of one kind."""


def transformed(sparse: SparseMap, similarity: Similarity) -> SparseMap:
    """The map in another frame and unit."""
    poses = {index: similarity.poses(T) for index, T in sparse.poses.items()}
    return replace(sparse, poses=poses, xyz=similarity.map(sparse.xyz))


def merged(first: SparseMap, second: SparseMap) -> SparseMap:
    """Both maps, already in one frame; frames in both keep the first one's pose and observations."""
    keep = ~np.isin(second.obs_frame, list(first.poses))
    num_seen = np.bincount(second.obs_point[keep], minlength=len(second.xyz))
    points = np.flatnonzero(num_seen >= 2)
    keep &= np.isin(second.obs_point, points)
    new_row = np.full(len(second.xyz), -1)
    new_row[points] = len(first.xyz) + np.arange(len(points))
    return replace(
        first,
        poses=dict(sorted({**second.poses, **first.poses}.items())),
        xyz=np.concatenate([first.xyz, second.xyz[points]]),
        error_px=np.concatenate([first.error_px, second.error_px[points]]),
        obs_point=np.concatenate([first.obs_point, new_row[second.obs_point[keep]]]),
        obs_frame=np.concatenate([first.obs_frame, second.obs_frame[keep]]),
        obs_px=np.concatenate([first.obs_px, second.obs_px[keep]]),
        obs_feature=np.concatenate([first.obs_feature, second.obs_feature[keep]]),
    )


def by_shared_points(first: SparseMap, second: SparseMap, seed: int) -> Similarity | None:
    """Similarity from the second map to the first from features that both triangulated; None when they do not agree."""
    rows = dict(zip(zip(first.obs_frame.tolist(), first.obs_feature.tolist(), strict=True), first.obs_point.tolist(), strict=True))
    seen = zip(second.obs_frame.tolist(), second.obs_feature.tolist(), second.obs_point.tolist(), strict=True)
    pairs = {(rows[frame, feature], point) for frame, feature, point in seen if (frame, feature) in rows}
    if len(pairs) < MIN_SHARED_POINTS:
        return None
    a, b = np.array(sorted(pairs)).T
    target, source = first.xyz[a], second.xyz[b]
    limit = MAX_RELATIVE_ERROR * float(np.median(np.linalg.norm(target - np.median(target, axis=0), axis=1)))
    rng = np.random.default_rng(seed)
    samples = [rng.choice(len(source), 4, replace=False) for _ in range(NUM_TRIALS)]
    trials = [inliers for sample in samples if (inliers := _inliers(source, target, sample, limit)) is not None]
    best = max(trials, key=np.count_nonzero, default=None)
    if best is None or np.count_nonzero(best) < max(MIN_SHARED_POINTS, MIN_INLIERS * len(source)):
        return None
    return _refined(source, target, best)


def _refined(source: np.ndarray, target: np.ndarray, inliers: np.ndarray) -> Similarity:
    """Refit with a limit that follows the residuals: four times their median, so that it tightens around good points."""
    for _ in range(NUM_REFINEMENTS):
        similarity = umeyama(source[inliers], target[inliers])
        distance = np.linalg.norm(similarity.map(source) - target, axis=1)
        inliers = distance <= 4.0 * np.median(distance[inliers])
    return similarity


def _inliers(source: np.ndarray, target: np.ndarray, sample: np.ndarray, limit: float) -> np.ndarray | None:
    try:
        similarity = umeyama(source[sample], target[sample])
    except ReconError:
        # Points on a line: this sample says nothing.
        return None
    return np.linalg.norm(similarity.map(source) - target, axis=1) < limit


def by_alignment(chain: Chain, second: SparseMap, factors: Mapping[int, float]) -> Similarity | None:
    """Similarity from a map to the chain's world by dense alignment across the gap between them.

    `factors` holds, per frame of the map, map units per unit of predicted depth.
    """
    position = {index: at for at, index in enumerate(chain.order)}
    gaps = sorted((abs(position[a] - position[b]), a, b) for a in chain.poses for b in factors if a in position and b not in chain.poses)
    for gap, key, frame in gaps[: chain.options.max_attempts]:
        if gap > chain.options.max_gap:
            return None
        if not chain.is_one_shot(key, frame):
            continue
        verdict = chain.link(key, frame, [np.eye(4)])
        if verdict.reason is None:
            factor = chain.factors[key] * float(np.exp(verdict.state.log_scale))
            T_world_frame = chain.poses[key] @ np.linalg.inv(verdict.state.T_frame_key)
            scale = factor / factors[frame]
            R = T_world_frame[:3, :3] @ second.poses[frame][:3, :3].T
            return Similarity(scale, R, T_world_frame[:3, 3] - scale * R @ second.poses[frame][:3, 3])
    return None


def same_lens(first: Camera, second: Camera) -> bool:
    """Whether two maps refined the lens to about the same focal length."""
    return bool(abs(np.log(first.params[0] / second.params[0])) < MAX_FOCAL_CHANGE)
