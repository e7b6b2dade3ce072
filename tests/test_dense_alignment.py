"""Dense alignment on a rendered wall: known motions come back, lighting and outliers do not matter, failure is said."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
from heightfield import CAMERA, render, sideways

from recon.geometry import se3
from recon.tracking.alignment import NUM_PARAMS, AlignmentOptions, State, align, residuals
from recon.tracking.chain import Chain, ChainOptions
from recon.tracking.dense_frame import DenseFrame, Level, Undistorter

OPTIONS = AlignmentOptions()
MASK = np.ones((CAMERA.height_px, CAMERA.width_px), bool)
UNDISTORTER = Undistorter(CAMERA, width_px=160)


def dense(image: np.ndarray, depth: np.ndarray | None, mask: np.ndarray = MASK) -> DenseFrame:
    return UNDISTORTER.frame(image, mask, depth)


def errors(T: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    """Degrees, and length in units of the wall's distance (2)."""
    twist = se3.log(se3.inverse(truth) @ T)
    return float(np.degrees(np.linalg.norm(twist[3:]))), float(np.linalg.norm(twist[:3])) / 2.0


@pytest.fixture(scope="module")
def pair() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Two views and T_b_a."""
    T_world_b = se3.exp(np.array([0.08, -0.05, 0.06, 0.02, -0.03, 0.04]))
    return *render(np.eye(4)), *render(T_world_b), se3.inverse(T_world_b)


def test_recovers_motion(pair):
    image_a, depth_a, image_b, depth_b, T_b_a = pair
    verdict = align(dense(image_a, depth_a), dense(image_b, depth_b), State(np.eye(4)), OPTIONS)
    rotation_deg, translation = errors(verdict.state.T_frame_key, T_b_a)
    assert verdict.reason is None
    assert rotation_deg < 0.05 and translation < 0.002
    assert abs(verdict.state.log_scale) < 0.005


def test_recovers_motion_without_depth_of_the_frame(pair):
    image_a, depth_a, image_b, _, T_b_a = pair
    verdict = align(dense(image_a, depth_a), dense(image_b, None), State(np.eye(4)), OPTIONS)
    rotation_deg, translation = errors(verdict.state.T_frame_key, T_b_a)
    assert verdict.reason is None and rotation_deg < 0.05 and translation < 0.002


def test_gain_bias_outliers_and_depth_scale(pair):
    """Darker image, a patch of something else over a tenth of it, depth in another unit."""
    image_a, depth_a, image_b, depth_b, T_b_a = pair
    image_b = np.clip(0.75 * image_b.astype(float) + 12.0, 0, 255).astype(np.uint8)
    image_b[20:80, 30:100] = render(np.eye(4), seed=5)[0][20:80, 30:100]
    depth_b = depth_b.copy()
    depth_b[20:80, 30:100] = 1.0
    verdict = align(dense(image_a, depth_a), dense(image_b, 1.15 * depth_b), State(np.eye(4)), OPTIONS)
    rotation_deg, translation = errors(verdict.state.T_frame_key, T_b_a)
    assert verdict.reason is None
    assert rotation_deg < 0.15 and translation < 0.006
    assert verdict.state.log_scale == pytest.approx(-np.log(1.15), abs=0.02)


def test_masked_pixels_do_not_matter(pair):
    image_a, depth_a, image_b, depth_b, _ = pair
    mask = MASK.copy()
    mask[60:120, 80:160] = False
    spoiled = image_b.copy()
    spoiled[60:120, 80:160] = np.random.default_rng(0).integers(0, 255, (60, 80, 3))
    one, other = (align(dense(image_a, depth_a), dense(image, depth_b, mask), State(np.eye(4)), OPTIONS) for image in (image_b, spoiled))
    assert np.array_equal(one.state.T_frame_key, other.state.T_frame_key)


def test_same_frame_is_identity(pair):
    frame = dense(pair[0], pair[1])
    verdict = align(frame, frame, State(np.eye(4)), OPTIONS)
    assert np.allclose(verdict.state.T_frame_key, np.eye(4), atol=1e-9)
    assert verdict.correlation == pytest.approx(1.0)


def elsewhere(frame: DenseFrame, offset_bytes: int) -> DenseFrame:
    """A copy whose arrays begin this far from a multiple of 64 bytes."""

    def copy(array: np.ndarray) -> np.ndarray:
        buffer = np.empty(array.nbytes + 128, np.uint8)
        start = -buffer.ctypes.data % 64 + offset_bytes
        place = buffer[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
        place[...] = array
        return place

    def level(level: Level) -> Level:
        arrays = {field.name: getattr(level, field.name) for field in fields(level) if field.name != "camera"}
        return replace(level, **{name: copy(array) for name, array in arrays.items()})

    return DenseFrame(tuple(map(level, frame.levels)), frame.median_depth)


def test_place_in_memory_does_not_matter(pair):
    """Bit for bit: inputs at shifted addresses, results wherever the blocks kept between the calls leave room."""
    image_a, depth_a, image_b, depth_b, _ = pair
    key, frame = dense(image_a, depth_a), dense(image_b, depth_b)
    rng = np.random.default_rng(0)
    kept, found = [], set()
    for attempt in range(24):
        kept.append(np.empty(rng.integers(1, 200_000), np.uint8))
        shifted = elsewhere(key, 8 * (attempt % 8)), elsewhere(frame, 8 * (attempt // 3))
        verdict = align(*shifted, State(np.eye(4)), OPTIONS)
        found.add((verdict.state.T_frame_key.tobytes(), *(getattr(verdict, name) for name in ("overlap", "inliers", "correlation"))))
    assert len(found) == 1


def test_analytic_jacobian_equals_numeric(pair):
    image_a, depth_a, image_b, depth_b, T_b_a = pair
    key, frame = dense(image_a, depth_a).levels[1], dense(image_b, depth_b).levels[1]
    state = State(T_b_a @ se3.exp(np.full(6, 0.003)), 1.1, 0.02, 0.05)
    analytic = residuals(key, frame, state)
    h = 1e-7
    for k in range(NUM_PARAMS):
        step = np.zeros(NUM_PARAMS)
        step[k] = h
        ahead, behind = residuals(key, frame, state.moved(step)), residuals(key, frame, state.moved(-step))
        use = analytic.seen & ahead.seen & behind.seen & analytic.has_depth
        photometric = (ahead.photometric - behind.photometric)[use] / (2 * h)
        geometric = (ahead.geometric - behind.geometric)[use] / (2 * h)
        # A few pixels cross into the next cell of the bilinear interpolant, where its derivative jumps.
        assert np.quantile(np.abs(photometric - analytic.J_photometric[use, k]), 0.99) < 1e-5
        assert np.quantile(np.abs(geometric - analytic.J_geometric[use, k]), 0.99) < 1e-5


def test_unrelated_images_are_refused(pair):
    image, depth = render(np.eye(4), seed=9)
    verdict = align(dense(pair[0], pair[1]), dense(image, depth), State(np.eye(4)), OPTIONS)
    assert verdict.reason is not None


def test_blank_and_unseen_images_are_refused(pair):
    key = dense(pair[0], pair[1])
    blank = dense(np.full_like(pair[0], 90), pair[1])
    away = State(se3.exp(np.array([0, 0, 0, 0, 2.5, 0.0])))
    assert align(key, blank, State(np.eye(4)), OPTIONS).reason is not None
    assert "in view" in align(key, key, away, OPTIONS).reason
    nowhere = dense(pair[0], pair[1], np.zeros_like(MASK))
    assert "in view" in align(key, nowhere, State(np.eye(4)), OPTIONS).reason


def test_chain_grows_in_both_directions_over_a_blank_frame():
    poses = sideways(9)
    frames = {index: dense(*render(pose)) for index, pose in enumerate(poses)}
    frames[6] = dense(np.full((CAMERA.height_px, CAMERA.width_px, 3), 90, np.uint8), render(poses[6])[1])
    chain = Chain(sorted(frames), frames.__getitem__, ChainOptions())
    chain.add(3, poses[3], 1.0)
    decided = list(chain.grow())
    assert sorted(decided) == [0, 1, 2, 4, 5, 6, 7, 8]
    assert 6 not in chain.poses and "failed" in chain.reasons[6]
    for index in chain.poses:
        rotation_deg, translation = errors(chain.poses[index], poses[index])
        assert rotation_deg < 0.2 and translation < 0.005, index
        assert chain.factors[index] == pytest.approx(1.0, abs=0.02)
    assert {chain.keyframe_of[index] for index in (1, 2, 4)} == {3}


def test_chain_gives_up_beyond_its_gap():
    pose = np.eye(4)
    good = dense(*render(pose))
    blank = dense(np.full((CAMERA.height_px, CAMERA.width_px, 3), 90, np.uint8), render(pose)[1])
    frames = [good, blank, blank, blank, good]
    chain = Chain(range(5), frames.__getitem__, ChainOptions(max_gap=2))
    chain.add(0, pose, 1.0)
    list(chain.grow())
    assert set(chain.poses) == {0}
    assert chain.reasons[4] == "no posed frame within 2 frames"
