"""TAE and TAS against hand-computed cases and plain loops, and the rounding that makes EndoDAV's differ."""

from __future__ import annotations

import numpy as np
import pytest

from recon.eval.depth import DepthScore
from recon.eval.temporal import endodav_carry, nearest_carry, pair_agreement, score_temporal
from recon.geometry.cameras import ray_grid
from recon.geometry.se3 import exp, inverse
from recon.scoring.prediction import Prediction
from recon.scoring.score import Inputs
from recon.scoring.temporal import temporal_agreement
from recon.types import Camera, DepthMap, FrameSequence, ReconError, Trajectory

CAMERA = Camera("PINHOLE", 24, 18, (20.0, 20.0, 11.5, 8.5))
FISHEYE = Camera("OPENCV_FISHEYE", 24, 18, (10.0, 10.0, 11.5, 8.5, 0.02, -0.01, 0.0, 0.0))


def moved(x=0.0, y=0.0, z=0.0) -> np.ndarray:
    T = np.eye(4)
    T[:3, 3] = x, y, z
    return T


def rough(seed=0, shape=(18, 24)) -> np.ndarray:
    depth = np.random.default_rng(seed).uniform(20, 60, shape)
    depth[np.random.default_rng(seed + 1).random(shape) < 0.1] = 0
    return depth


def loop_carry(camera, depth, T) -> np.ndarray:
    """The own way, a pixel at a time."""
    fx, fy, cx, cy = camera.params
    out = np.zeros(depth.shape)
    for v in range(depth.shape[0]):
        for u in range(depth.shape[1]):
            if depth[v, u] > 0:
                x, y, z = T[:3, :3] @ (np.array([(u - cx) / fx, (v - cy) / fy, 1]) * depth[v, u]) + T[:3, 3]
                c, r = int(np.floor(x / z * fx + cx + 0.5)), int(np.floor(y / z * fy + cy + 0.5))
                if z > 0 and 0 <= c < depth.shape[1] and 0 <= r < depth.shape[0] and (out[r, c] == 0 or z < out[r, c]):
                    out[r, c] = z
    return out


def endodav_agreement(depth_a, depth_b, pose_a, pose_b) -> tuple[float, float]:
    """EndoDAV's tae and tas, from camera-to-world poses, with its 4x4 pixel-to-world matrices."""
    h, w = depth_a.shape
    K = np.array([[0.82 * w, 0, 0.5 * w, 0], [0, 1.02 * h, 0.5 * h, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    to_world = [np.linalg.inv(K @ np.linalg.inv(pose)) for pose in (pose_a, pose_b)]
    errors, scores = [], []
    for source, target, into, out_of in ((depth_a, depth_b, *to_world), (depth_b, depth_a, *to_world[::-1])):
        carried = np.zeros((h, w))
        for v in range(h):
            for u in range(w):
                z = source[v, u]
                if z > 0:
                    x, y, depth = (np.linalg.inv(out_of) @ into @ [(u + 0.5) * z, (v + 0.5) * z, z, 1])[:3]
                    c, r = int(np.round(x / depth)), int(np.round(y / depth))
                    if depth > 1e-6 and 0 <= c < w and 0 <= r < h:
                        carried[r, c] = depth
        both = (carried > 1e-6) & (target > 0)
        errors.append(np.mean(np.abs(target[both] - carried[both]) / target[both]))
        scores.append(np.mean(np.maximum(target[both] / carried[both], carried[both] / target[both]) < 1.25))
    return 100 * np.mean(errors), np.mean(scores)


def test_a_camera_that_stands_still_carries_every_pixel_onto_itself():
    depth = rough()
    assert nearest_carry(CAMERA)(depth, np.eye(4)) == pytest.approx(depth)
    assert pair_agreement(depth, depth, np.eye(4), nearest_carry(CAMERA)) == pytest.approx((0, 1, 1))
    wide = nearest_carry(FISHEYE)(depth, np.eye(4))
    assert wide == pytest.approx(depth)


def test_the_own_way_agrees_with_a_plain_loop():
    T = exp(np.array([1.0, -2.0, 3.0, 0.05, -0.04, 0.1]))
    depth = rough(2)
    carried = nearest_carry(CAMERA)(depth, T)
    assert carried == pytest.approx(loop_carry(CAMERA, depth, T)) and 0 < np.count_nonzero(carried) < depth.size


def test_the_nearer_surface_hides_the_farther():
    depth = np.zeros((18, 24))
    depth[9, 12], depth[9, 13] = 40.0, 20.0
    # A step of 2 to the right moves pixels to the left by 20 * 2 / depth: one and two.
    carried = nearest_carry(CAMERA)(depth, moved(x=-2.0))
    assert carried[9, 11] == 20.0 and np.count_nonzero(carried) == 1


def test_a_wall_seen_from_two_distances_by_hand():
    near, far = np.full((18, 24), 40.0), np.full((18, 24), 50.0)
    carry = nearest_carry(CAMERA)
    assert pair_agreement(far, near, moved(z=-10.0), carry)[:2] == pytest.approx((0, 1))
    # 10 % too deep in one frame: carried to 45 against 40 one way, and to 50 against 55 the other.
    tae, tas, _ = pair_agreement(far * 1.1, near, moved(z=-10.0), carry)
    assert tae == pytest.approx(100 * (5 / 40 + 5 / 55) / 2) and tas == 1
    # Carried to 20 against 40, and to 50 against 30: neither is within a factor of 1.25.
    assert pair_agreement(far * 0.6, near, moved(z=-10.0), carry)[:2] == pytest.approx((100 * (20 / 40 + 20 / 30) / 2, 0))


def test_any_lens_carries_a_wall():
    directions = ray_grid(FISHEYE)
    wall = np.full(directions.shape[:2], 60.0)
    carried = nearest_carry(FISHEYE)(wall, moved(x=3.0, z=-12.0))
    assert carried[carried > 0] == pytest.approx(48.0)
    with pytest.raises(ReconError, match="resize the camera"):
        nearest_carry(FISHEYE)(wall[:9], np.eye(4))


@pytest.mark.parametrize("seed", range(3))
def test_endodav_agrees_with_its_arithmetic(seed):
    pose_a, pose_b = exp(np.array([5.0, 1, 2, 0.1, 0.2, 0.3])), exp(np.array([6.0, 0, 1, 0.13, 0.18, 0.33]))
    a, b = rough(seed), rough(seed + 10)
    tae, tas, _ = pair_agreement(a, b, inverse(pose_b) @ pose_a, endodav_carry)
    assert (tae, tas) == pytest.approx(endodav_agreement(a, b, pose_a, pose_b), rel=1e-9)
    assert (tae, tas) != pytest.approx(pair_agreement(a, b, inverse(pose_b) @ pose_a, nearest_carry(CAMERA))[:2], rel=1e-3)


def test_endodav_rounding_loses_pixels_of_a_camera_that_stands_still():
    depth = np.full((64, 64), 32.0)
    shifted = moved(x=1e-9, y=1e-9)
    assert np.count_nonzero(nearest_carry(Camera("PINHOLE", 64, 64, (50.0, 50.0, 31.5, 31.5)))(depth, shifted)) == 64 * 64
    assert np.count_nonzero(endodav_carry(depth, shifted)) < 64 * 64


def sequence(num=8, step=2.0) -> tuple[dict[int, np.ndarray], dict[int, np.ndarray]]:
    """A wall at z = 60, filmed on the way towards it."""
    poses = {i: moved(z=step * i) for i in range(num)}
    return {i: np.full((18, 24), 60.0 - step * i, np.float32) for i in range(num)}, poses


def test_a_consistent_sequence_and_a_flickering_one():
    depth, poses = sequence()
    still = score_temporal(range(8), depth.get, poses, nearest_carry(CAMERA), alignment="scale_sequence", protocol="p")
    assert [(m.name, m.unit, m.alignment, m.lower_is_better, m.protocol) for m in still.metrics] == [
        ("tae", "%", "scale_sequence", True, "p"),
        ("tas", "1", "scale_sequence", False, "p"),
    ]
    assert still.metrics[0].value == pytest.approx(0, abs=1e-5) and still.metrics[1].value == 1 and len(still.pairs) == 7
    assert still.notes == [] and still.metrics[0].interval is None
    depth, poses = sequence(50, 0.1)
    flicker = score_temporal(range(50), lambda i: depth[i] * (1 + 0.1 * (i % 2)), poses, nearest_carry(CAMERA))
    assert 8 < flicker.metrics[0].value < 12 and flicker.metrics[0].interval[0] < flicker.metrics[0].value < flicker.metrics[0].interval[1]
    assert flicker.metrics[0].value == pytest.approx(np.mean([pair["tae"] for pair in flicker.pairs]))


def test_pairs_that_cannot_be_compared_are_left_out_and_named():
    depth, poses = sequence()
    missing = score_temporal(range(8), lambda i: None if i == 3 else depth[i], poses, nearest_carry(CAMERA))
    assert [pair["index"] for pair in missing.pairs] == [0, 1, 4, 5, 6]
    assert "5 of 8 frames" in missing.notes[0] and "2 of 7 pairs with poses" in missing.notes[1]
    away = score_temporal([0, 1], depth.get, {0: np.eye(4), 1: moved(x=1e4)}, nearest_carry(CAMERA))
    assert away.metrics == [] and "not computable" in away.notes[0] and "share known pixels" in away.notes[0]
    alone = score_temporal([0, 1], depth.get, {0: np.eye(4)}, nearest_carry(CAMERA))
    assert alone.metrics == [] and "not computable" in alone.notes[0]


def test_frames_spread_over_a_recording_are_compared_with_their_true_neighbours():
    depth, poses = sequence(40, 0.5)
    chosen = np.linspace(0, 39, 12).round().astype(int).tolist()
    assert len(set(np.diff(chosen))) > 1  # not evenly spread: the steps differ
    found = score_temporal(chosen, depth.get, poses, nearest_carry(CAMERA))
    assert [(pair["index"], pair["next_index"]) for pair in found.pairs] == [(i, i + 1) for i in chosen[:-1]]
    assert found.notes == ["temporal: 11 of 12 frames are compared with the next one"]
    # Every pair is as far apart as in the whole recording, so the figure is the same.
    whole = score_temporal(range(40), depth.get, poses, nearest_carry(CAMERA))
    assert {(a["index"], a["tae"]) for a in found.pairs} <= {(a["index"], a["tae"]) for a in whole.pairs}


def test_only_pixels_with_a_known_true_depth_count():
    depth, poses = sequence(4)
    valid = np.zeros((18, 24), bool)
    valid[:, :12] = True
    path = Trajectory(np.arange(4), np.arange(4.0), np.stack(list(poses.values())), "mm")

    def recorded(known: np.ndarray) -> FrameSequence:
        truth = {index: DepthMap(depth[index], known, "metric") for index in depth}
        return FrameSequence("s", "files", (), camera=CAMERA, unit="mm", trajectory_gt=path, depth_gt=truth.get)

    def flickering(index: int) -> np.ndarray:
        small = depth[index][::2, ::2].copy()
        small[:, 6:] *= 1 + 0.5 * (index % 2)
        small[0, 0], small[1, 0], small[2, 0] = np.nan, np.inf, -5
        return small

    prediction = Prediction("p", Inputs(), "mm", depth=flickering)
    own = DepthScore([], [], [], {"scale_sequence": 1.0})
    inside, everywhere = (temporal_agreement(recorded(known), prediction, range(3), own, 1, 0) for known in (valid, np.ones_like(valid)))
    assert inside.metrics[0].value == pytest.approx(0, abs=1e-5) and inside.metrics[1].value == 1
    assert everywhere.metrics[0].value > 10
    assert [pair["next_index"] for pair in inside.pairs] == [1, 2, 3]
