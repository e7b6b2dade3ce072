"""Cuts, looks, the Sim(3) pose graph and loops: truths that hold without any recording."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pytest
from heightfield import CAMERA, render, sideways

from recon.geometry import se3
from recon.geometry.alignment import umeyama
from recon.image.cuts import CutFinder
from recon.tracking.chain import Chain
from recon.tracking.dense_frame import DenseFrame, Undistorter
from recon.tracking.loops import Finder, close_loops, find_again
from recon.tracking.pose_graph import Edge, optimise
from recon.tracking.retrieval import Gallery

MASK = np.ones((CAMERA.height_px, CAMERA.width_px), bool)


@lru_cache
def picture(pose: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Image and depth at a pose: casting them is most of the time that these tests take."""
    return render(np.frombuffer(pose).reshape(4, 4))


def dense(pose: np.ndarray, factor: float = 1.0, exposure: float = 1.0) -> DenseFrame:
    image, depth = picture(pose.tobytes())
    return Undistorter(CAMERA).frame(np.clip(image * exposure, 0, 255).astype(np.uint8), MASK, depth * factor)


def ring(num: int = 24) -> tuple[dict[int, np.ndarray], dict[int, float]]:
    """Poses on a ring that ends where it began, and factors."""
    angle = 2 * np.pi * np.arange(num) / num
    twists = np.stack([2 * np.cos(angle), 2 * np.sin(angle), 0.3 * np.sin(2 * angle), 0 * angle, 0 * angle, angle], axis=1)
    return dict(enumerate(se3.exp(twists))), {k: 1.0 for k in range(num)}


def edge_between(poses: dict[int, np.ndarray], factors: dict[int, float], key: int, frame: int) -> Edge:
    T = se3.inverse(poses[frame]) @ poses[key]
    T[:3, 3] /= factors[key]
    return Edge(key, frame, T, float(np.log(factors[frame] / factors[key])), 1.0)


def drifted(edges: list[Edge], num: int, T_start: np.ndarray) -> tuple[dict[int, np.ndarray], dict[int, float]]:
    """What a chain makes of edges: each frame hung on the one before."""
    poses, factors = {0: T_start}, {0: 1.0}
    for edge in edges:
        T = edge.T_frame_key.copy()
        T[:3, 3] *= factors[edge.key]
        poses[edge.frame] = poses[edge.key] @ se3.inverse(T)
        factors[edge.frame] = factors[edge.key] * np.exp(edge.log_scale)
    assert len(poses) == num
    return poses, factors


def centre_error(found: dict[int, np.ndarray], truth: dict[int, np.ndarray]) -> float:
    """Root mean square over frames, after a similarity."""
    a, b = (np.array([poses[k][:3, 3] for k in sorted(found)]) for poses in (found, truth))
    return float(np.sqrt((np.linalg.norm(umeyama(a, b).map(a) - b, axis=1) ** 2).mean()))


def test_exact_edges_bring_the_truth_back_from_a_wrong_start():
    poses, factors = ring()
    edges = [edge_between(poses, factors, k, (k + 1) % 24) for k in range(24)] + [edge_between(poses, factors, k, k + 5) for k in range(19)]
    rng = np.random.default_rng(0)
    start = {k: T @ se3.exp(rng.normal(0, 0.02, 6)) if k else T for k, T in poses.items()}
    wrong = {k: float(np.exp(rng.normal(0, 0.03))) if k else 1.0 for k in poses}
    found, scales = optimise(start, wrong, edges, [], fixed={0})
    assert max(np.abs(found[k] - poses[k]).max() for k in poses) < 2e-3
    assert max(abs(scales[k] - 1) for k in poses) < 2e-3


@pytest.mark.parametrize("wrong_loop", [False, True])
def test_a_loop_takes_drift_of_pose_and_scale_away(wrong_loop):
    poses, factors = ring()
    rng = np.random.default_rng(1)
    edges = []
    for k in range(23):
        exact = edge_between(poses, factors, k, k + 1)
        edges.append(Edge(k, k + 1, se3.exp(rng.normal(0, 0.001, 6)) @ exact.T_frame_key, 0.015 + exact.log_scale, 1.0))
    chain, scales = drifted(edges, 24, poses[0])
    loops = [edge_between(poses, factors, 0, k) for k in (22, 23)]
    if wrong_loop:
        loops.append(Edge(4, 15, np.eye(4), 0.0, 1.0))
    found, _ = optimise(chain, scales, edges, loops, fixed={0})
    assert np.array_equal(found[0], poses[0])
    assert centre_error(found, poses) < 0.5 * centre_error(chain, poses)


def test_the_same_place_is_found_in_another_exposure():
    poses = sideways(20, step=0.12)
    gallery = Gallery()
    for k, pose in enumerate(poses):
        gallery.add(k, dense(pose))
    for k in (3, 11, 17):
        assert gallery.nearest(dense(poses[k], exposure=0.6), 1, 0.5) == [k]
    blank = Undistorter(CAMERA).frame(np.full((180, 240, 3), 90, np.uint8), MASK, None)
    assert gallery.nearest(blank, 3, 0.1) == []


def there_and_back(num: int = 10) -> list[np.ndarray]:
    """Poses that go along the wall and come back beside where they went."""
    out = sideways(num, step=0.14)
    shift = np.eye(4)
    shift[:3, 3] = (0.0, 0.03, 0.0)
    return out + [shift @ pose for pose in reversed(out)]


def test_a_chain_that_comes_back_closes_its_loop():
    poses = there_and_back()
    rng = np.random.default_rng(3)
    factors = np.exp(rng.normal(0, 0.05, len(poses)))
    load = lru_cache(None)(lambda k: dense(poses[k], float(factors[k])))
    chain = Chain(range(len(poses)), load)
    chain.options = type(chain.options)(max_gap=3)
    chain.add(0, np.eye(4), 1.0)
    list(chain.grow())
    truth = dict(enumerate(poses))
    assert len(chain.poses) == len(poses)
    before = centre_error(chain.poses, truth)
    # Drift of a scale and a turn, as a long chain gathers it, put on every keyframe after the first.
    keyframes = chain.keyframes()
    bent = {k: chain.poses[k] @ se3.exp(np.array([0.1 * n, 0, 0, 0, 0.02 * n, 0])) for n, k in enumerate(keyframes)}
    chain.move_keyframes(bent, {k: chain.factors[k] * np.exp(0.04 * n) for n, k in enumerate(keyframes)})
    worse = centre_error(chain.poses, truth)
    assert close_loops(chain, fixed=()) > 0
    assert centre_error(chain.poses, truth) < max(1.5 * before, 0.3 * worse)
    assert worse > 3 * before


def test_a_lost_frame_is_found_where_two_keyframes_agree():
    poses = sideways(12, step=0.12)
    chain = Chain(range(40), lambda k: dense(poses[5 if k == 39 else min(k, 11)]))
    for k in range(12):
        chain.add(k, poses[k], 1.0)
    assert find_again(Finder.of(chain), 39)
    assert np.linalg.norm(chain.poses[39][:3, 3] - poses[5][:3, 3]) < 0.02
    assert chain.keyframe_of[39] == 39


def test_no_frame_is_aligned_across_a_cut():
    poses = sideways(8)
    chain = Chain(range(8), lambda k: dense(poses[k]), cuts=(4,))
    chain.add(0, poses[0], 1.0)
    list(chain.grow())
    assert sorted(chain.poses) == [0, 1, 2, 3]
    assert set(chain.reasons) == {4, 5, 6, 7}


def found_cuts(pictures: list[np.ndarray]) -> list[int]:
    finder = CutFinder()
    for k, picture in enumerate(pictures):
        finder.add(k, picture, np.ones(picture.shape[:2], bool))
    return finder.cuts()


@lru_cache
def wall(seed: int) -> np.ndarray:
    """A large picture of a wall."""
    return render(np.eye(4), CAMERA, seed)[0]


def shrunk(pose: np.ndarray, seed: int) -> np.ndarray:
    """The part of the wall that a camera at a pose would roughly see."""
    x, y = (40 * pose[:2, 3]).astype(int)
    return wall(seed)[20 + y : 140 + y, 20 + x : 180 + x]


def coloured(pose: np.ndarray, tint: tuple[float, float, float], seed: int) -> np.ndarray:
    return (shrunk(pose, seed) * np.array(tint)).astype(np.uint8)


def test_a_cut_is_a_jump_that_stays():
    poses = sideways(16)
    first = [coloured(pose, (0.9, 0.5, 0.4), 0) for pose in poses]
    second = [coloured(pose, (0.5, 0.6, 0.9), 5) for pose in poses]
    assert found_cuts(first + second) == [16]
    assert found_cuts(first) == []
    flash = list(first)
    flash[7] = np.full_like(first[7], 230)
    assert found_cuts(flash) == []
    dimmed = first[:8] + [(picture * 0.5).astype(np.uint8) for picture in first[8:]]
    assert found_cuts(dimmed) == []
