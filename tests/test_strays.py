"""Strays go, everything else stays: a wrong frame that few points hold, not a quick move and not a turn."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from recon.geometry import se3
from recon.tracking.mapping import SparseMap
from recon.tracking.strays import find_strays, without_strays
from recon.types import Camera

CAMERA = Camera("PINHOLE", 320, 240, (160.0, 160.0, 159.5, 119.5))
NUM = 20


def made_map(positions: np.ndarray, few: dict[int, int] | None = None, reach: float = 6.0) -> SparseMap:
    """Cameras in a row that look aside at a wall of points; a frame sees the points within `reach`, or `few` of them."""
    rng = np.random.default_rng(0)
    xyz = np.column_stack([rng.uniform(-10, NUM + 10, 3000), rng.uniform(-2, 2, 3000), np.full(3000, 5.0)])
    points, frames = [], []
    for index, position in enumerate(positions):
        seen = np.flatnonzero(np.abs(xyz[:, 0] - position[0]) < reach)
        seen = seen[: (few or {}).get(index, len(seen))]
        points.append(seen)
        frames.append(np.full(len(seen), index))
    poses = {}
    for index, position in enumerate(positions):
        poses[index] = np.eye(4)
        poses[index][:3, 3] = position
    obs_point, obs_frame = np.concatenate(points), np.concatenate(frames)
    num = len(obs_point)
    return SparseMap(CAMERA, poses, xyz, np.zeros(len(xyz)), obs_point, obs_frame, np.zeros((num, 2)), np.arange(num))


def row() -> np.ndarray:
    return np.column_stack([np.arange(NUM, dtype=float), np.zeros(NUM), np.zeros(NUM)])


@pytest.mark.parametrize("strays", [[7], [7, 8], [4, 11, 12, 13]])
def test_frames_far_off_that_few_points_hold_are_strays(strays):
    sparse = made_map(row(), few=dict.fromkeys(strays, 30))
    for index in strays:
        sparse.poses[index][:3, 3] += [0, 40, 0]
    assert find_strays(sparse) == strays
    cleaned = without_strays(sparse)
    assert list(cleaned.poses) == [index for index in range(NUM) if index not in strays]
    assert not np.isin(cleaned.obs_frame, strays).any()
    # Every observation still means the same point.
    before = {(f, k): tuple(sparse.xyz[p]) for f, k, p in zip(sparse.obs_frame, sparse.obs_feature, sparse.obs_point, strict=True)}
    after = zip(cleaned.obs_frame, cleaned.obs_feature, cleaned.obs_point, strict=True)
    assert all(before[f, k] == tuple(cleaned.xyz[p]) for f, k, p in after)
    assert np.bincount(cleaned.obs_point, minlength=len(cleaned.xyz)).min() >= 2


def test_the_unit_of_a_map_does_not_matter():
    sparse = made_map(row(), few={7: 30})
    sparse.poses[7][:3, 3] += [0, 40, 0]
    for scale in (1e-3, 1e3):
        poses = {}
        for index, pose in sparse.poses.items():
            poses[index] = pose.copy()
            poses[index][:3, 3] *= scale
        assert find_strays(replace(sparse, poses=poses, xyz=scale * sparse.xyz)) == [7]


def test_a_frame_turned_the_wrong_way_is_a_stray():
    sparse = made_map(row(), few={7: 30})
    sparse.poses[7] = sparse.poses[7] @ se3.exp(np.array([0, 0, 0, 0, 1.5, 0]))
    assert find_strays(sparse) == [7]


def test_what_is_right_stays():
    assert without_strays(sound := made_map(row())) is sound
    # A frame in its place that hardly any points hold: blur.
    assert find_strays(made_map(row(), few={7: 30})) == []
    # A quick move away and on: what was seen before is not seen after.
    quick = row()
    quick[10:, 0] += 15
    assert find_strays(made_map(quick)) == []
    # A detour that many points confirm.
    detour = row()
    detour[7] += [0, 40, 0]
    assert find_strays(made_map(detour)) == []
    assert find_strays(made_map(row()[:2])) == []
    # Neighbours that share nothing say nothing about a frame between them.
    apart = made_map(8 * row(), few={7: 5})
    apart.poses[7][:3, 3] += [0, 400, 0]
    assert find_strays(apart) == []
