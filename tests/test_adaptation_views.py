"""What adaptation learns from and judges by: partners that see from elsewhere, and stretches apart from all that is learnt."""

from __future__ import annotations

import numpy as np
import pytest

from recon.geometry import se3
from recon.tracking.mapping import SparseMap
from recon.training.adaptation_views import MARGIN, MIN_GROUPS, find_groups, hold_out
from recon.types import Camera

CAMERA = Camera("PINHOLE", 64, 48, (50.0, 50.0, 31.5, 23.5))


def test_a_frame_of_two_maps_counts_in_the_larger():
    maps = [make_map(range(0, 20)), make_map(range(15, 28))]
    for group in find_groups(maps):
        assert len({index >= 20 for index in group.frames}) == 1, "partners are of one map"


def make_map(frames: range, step: float = 0.05) -> SparseMap:
    """A camera moving sideways over a wall of points that all frames see."""
    rng = np.random.default_rng(frames.start)
    xyz = np.column_stack([rng.uniform(-1, 1, (50, 2)), np.full(50, 2.0)])
    poses = {i: se3.exp(np.array([step * i, 0, 0, 0, 0, 0])) for i in frames}
    seen = (np.tile(np.arange(50), len(frames)), np.repeat(list(frames), 50))
    return SparseMap(CAMERA, poses, xyz, np.zeros(50), *seen, np.zeros((50 * len(frames), 2)), np.zeros(50 * len(frames), int))


@pytest.mark.parametrize("frames", [range(26), range(3, 120), range(0, 240, 2)])
def test_held_out_frames_lie_apart_from_all_that_is_learnt(frames):
    sparse = make_map(frames)
    held_out, kept_back = hold_out([sparse], 15)
    learnt = find_groups([sparse], kept_back)
    at = {index: position for position, index in enumerate(frames)}
    seen = np.array(sorted({at[index] for group in learnt for index in group.frames}))
    judged = np.array([at[group.target] for group in held_out])
    assert np.abs(judged[:, None] - seen).min() == MARGIN + 1, "the gap to what is learnt, in posed frames"
    assert 3 <= len(judged) <= 15 and len(seen) >= len(frames) // 3
    assert len(judged) == 15 or (np.diff(judged) == 1).sum() >= len(judged) - 3, "stretches, no single frames"
    assert all(kept_back.issuperset(group.frames) for group in held_out), "nor are their partners learnt from"


def test_partners_outside_the_stretch_are_taken_where_it_has_none():
    """Frames so close together that only distant ones see anything from another side."""
    dense = make_map(range(50), step=0.002)
    held_out, kept_back = hold_out([dense], 15)
    assert held_out and all(group.target in kept_back for group in held_out)
    assert not any(kept_back.issuperset(group.frames) for group in held_out)


def test_a_recording_too_short_for_margins_has_nothing_held_out():
    assert hold_out([make_map(range(MIN_GROUPS - 1))], 15) == ([], set())
