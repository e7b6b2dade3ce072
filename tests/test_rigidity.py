"""How much of a view did not obey rigidity: a ball before a wall, still and moving."""

from __future__ import annotations

import numpy as np
import pytest
from fusion_scenes import look_at, silent, sphere_depth, view_of

from recon.fusion.consistency import moved
from recon.fusion.fuse import FusionSettings, fuse
from recon.fusion.selection import select_neighbours

WALL_Z, BALL_Z, RADIUS = 60.0, 40.0, 6.0
NUM = 16
SIGMA = 0.02


def recording(speed: float, noise: float, seed: int = 0):
    """Views of a camera that moves sideways, each depth with a factor and a smooth error of its own; and where the ball is."""
    rng = np.random.default_rng(seed)
    views, balls = [], []
    for k in range(NUM):
        eye = np.array([1.2 * (k - NUM / 2), 2.0 * np.sin(k), 0.0])
        T = look_at(eye, eye + np.array([0.0, 0.0, 1.0]))
        center = np.array([0.0, speed * (k - NUM / 2), BALL_Z])
        ball = sphere_depth(T, RADIUS, center=center)
        wall = np.full((96, 128), WALL_Z)
        v, u = np.mgrid[:96, :128]
        error = noise * (0.5 * rng.normal() + np.sin(u / 25 + rng.uniform(0, 6)) * np.cos(v / 20 + rng.uniform(0, 6)))
        views.append(view_of(np.where(ball > 0, ball, wall) * np.exp(error), T, k, sigma=SIGMA))
        balls.append(ball > 0)
    return views, np.array(balls)


def fused_recording(views):
    T = np.array([view.T_world_camera for view in views])
    neighbours = [select_neighbours(T, i, WALL_Z, 6) for i in range(len(views))]
    return fuse(views.__getitem__, neighbours, WALL_Z, SIGMA, "mm", FusionSettings(voxels_per_depth=60.0), silent)


@pytest.mark.parametrize("noise", [0.0, 0.01])
def test_a_still_scene_obeys_rigidity(noise):
    _, stats = fused_recording(recording(0.0, noise)[0])
    assert stats.rigidity.non_rigid_share < 0.002
    assert stats.rigidity.judged_share > 0.9


@pytest.mark.parametrize("noise", [0.0, 0.01])
def test_the_share_of_what_moves_is_right(noise):
    views, balls = recording(3.0, noise)
    mesh, stats = fused_recording(views)
    valid = np.array([view.valid for view in views])
    truth = (balls & valid).sum() / valid.sum()
    assert 0.02 < truth < 0.2
    assert stats.rigidity.non_rigid_share == pytest.approx(truth, rel=0.2)
    said = np.array([frame["non_rigid_share"] for frame in stats.rigidity.frames])
    by_frame = (balls & valid).sum(axis=(1, 2)) / valid.sum(axis=(1, 2))
    assert np.abs(said - by_frame).max() < 0.02
    # What moved is no surface, and the wall that it hid for a while is.
    assert np.mean(mesh.vertices[:, 2] < BALL_Z + 5) < 0.01


def test_nothing_is_said_where_nothing_can_be_judged():
    views = [view_of(np.full((96, 128), WALL_Z), np.eye(4), i) for i in range(3)]
    _, stats = fused_recording(views)
    assert stats.rigidity.non_rigid_share is None and stats.rigidity.judged_share == 0
    assert [frame["non_rigid_share"] for frame in stats.rigidity.frames] == [None] * 3


def test_a_large_sigma_explains_a_large_residual():
    residuals = np.full((4, 2, 3), -0.1, np.float32)
    assert moved(residuals, np.full((2, 3), 0.02), 0.0)[0].all()
    assert not moved(residuals, np.full((2, 3), 0.05), 0.0)[0].any()
    assert not moved(residuals, np.full((2, 3), 0.02), 0.03)[0].any()


def test_a_minority_and_a_single_vote_condemn_nothing():
    residuals = np.zeros((5, 1, 1), np.float32)
    residuals[:2] = -0.5
    assert not moved(residuals, np.full((1, 1), 0.02), 0.0)[0].any()
    residuals[1:] = np.nan
    has_moved, judged = moved(residuals, np.full((1, 1), 0.02), 0.0)
    assert not has_moved.any() and not judged.any()


def test_who_sees_something_else_in_front_has_no_vote():
    residuals = np.full((5, 1, 1), 0.5, np.float32)
    assert not moved(residuals, np.full((1, 1), 0.02), 0.0)[1].any()
    residuals[:2] = 0.0
    has_moved, judged = moved(residuals, np.full((1, 1), 0.02), 0.0)
    assert judged.all() and not has_moved.any()
