"""Frames that structure from motion put in a wrong place: few points hold them, and their neighbours in time say otherwise.

A frame can enter a map by a handful of wrong matches (a fold that looks like another); bundle adjustment then explains these
few by a place far from where the camera was just before and just after. The test has no unit and leaves quick turns alone:
those lose the points between the neighbours too. The first and the last frame of a map have no neighbours on both sides and are
not judged.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from jaxtyping import Bool, Int

from recon.geometry import se3
from recon.tracking.mapping import SparseMap

MAX_RUN = 3
"""Frames in a row that can be strays together: more hold each other up, and are then a map of their own."""
MAX_SHARED = 0.25
"""Points that a stray shares with the neighbours around, at most this share of what these share with each other."""
MIN_AROUND = 20
"""Points that the neighbours share, without which they say nothing about what lies between them."""
MIN_DETOUR = 4.0
"""Way by the stray over the way between its neighbours (or the median step of the map, where that is longer)."""
MIN_TURN_RAD = 0.5
"""Or the turn away from between its neighbours."""


def without_strays(sparse: SparseMap) -> SparseMap:
    """The map without stray frames, their observations, and the points that then fewer than two frames see."""
    strays = find_strays(sparse)
    if not strays:
        return sparse
    kept_obs = ~np.isin(sparse.obs_frame, strays)
    num_seen = np.bincount(sparse.obs_point[kept_obs], minlength=len(sparse.xyz))
    return _restricted(replace(sparse, poses={i: pose for i, pose in sparse.poses.items() if i not in strays}), kept_obs, num_seen >= 2)


def find_strays(sparse: SparseMap) -> list[int]:
    """Indices of stray frames, in order of time."""
    order = sorted(sparse.poses)
    by_frame = np.argsort(sparse.obs_frame, kind="stable")
    parts = np.split(sparse.obs_point[by_frame], np.searchsorted(sparse.obs_frame[by_frame], order)[1:])
    points = {index: np.unique(part) for index, part in zip(order, parts, strict=True)}
    centres = np.array([sparse.poses[index][:3, 3] for index in order])
    typical = float(np.median(np.linalg.norm(np.diff(centres, axis=0), axis=1))) if len(order) > 1 else 0.0
    strays: list[int] = []
    for run in range(1, MAX_RUN + 1):
        position = 1
        while position + run < len(order):
            between = order[position : position + run]
            before, after = order[position - 1], order[position + run]
            if all(_is_stray(sparse, points, index, before, after, typical) for index in between):
                strays += between
                order = order[:position] + order[position + run :]
            else:
                position += 1
    return sorted(strays)


def _is_stray(sparse: SparseMap, points: dict[int, Int[np.ndarray, " p"]], index: int, before: int, after: int, typical: float) -> bool:
    around = len(np.intersect1d(points[before], points[after], assume_unique=True))
    shared = max(len(np.intersect1d(points[index], points[other], assume_unique=True)) for other in (before, after))
    if around < MIN_AROUND or shared > MAX_SHARED * around:
        return False
    middle = se3.interpolate(sparse.poses[before], sparse.poses[after], (index - before) / (after - before))
    first, second, centre = (sparse.poses[i][:3, 3] for i in (before, after, index))
    detour = np.linalg.norm(centre - first) + np.linalg.norm(second - centre)
    turn = np.linalg.norm(se3.log(se3.inverse(middle) @ sparse.poses[index])[3:])
    return bool(detour > MIN_DETOUR * max(np.linalg.norm(second - first), typical) or turn > MIN_TURN_RAD)


def _restricted(sparse: SparseMap, kept_obs: Bool[np.ndarray, " m"], kept_points: Bool[np.ndarray, " p"]) -> SparseMap:
    kept_obs = kept_obs & kept_points[sparse.obs_point]
    row = np.cumsum(kept_points) - 1
    observations = {name: getattr(sparse, name)[kept_obs] for name in ("obs_frame", "obs_px", "obs_feature")}
    return replace(
        sparse,
        xyz=sparse.xyz[kept_points],
        error_px=sparse.error_px[kept_points],
        obs_point=row[sparse.obs_point[kept_obs]],
        **observations,
    )
