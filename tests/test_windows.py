"""Windows of frames: who is in them, what is fitted and faded, and that flicker goes while depth stays."""

from __future__ import annotations

import numpy as np
import pytest

from recon.data.phantom import open_phantom
from recon.eval.depth import DepthPair, score_depth
from recon.eval.protocols import OWN, PROTOCOLS
from recon.eval.temporal import nearest_carry, score_temporal
from recon.io.atomic import write_json
from recon.io.cameras import write_camera
from recon.io.depth import read_depth
from recon.io.images import write_jpeg
from recon.io.masks import write_mask
from recon.models import DepthEstimate
from recon.models.windows import LENGTH, consistent_depth, consistent_disparity, faded, fit, steadied
from recon.types import Camera
from stages.depth import STAGE, Config

RAMP = np.linspace(1.0, 2.0, 12).reshape(3, 4)


def window_of(frames):
    """Each frame's disparity is its number plus a ramp: any map tells which frame it is of."""
    return np.stack([frame + RAMP for frame in frames])


def windows_seen(number):
    seen = []

    def estimate(frames):
        seen.append(list(frames))
        return window_of(frames)

    return seen, list(consistent_disparity(range(number), estimate, False))


@pytest.mark.parametrize("number", [1, 2, 31, 32, 33, 54, 55, 100])
def test_every_frame_comes_once_in_order_whatever_the_length(number):
    seen, given = windows_seen(number)
    assert len(given) == number
    np.testing.assert_allclose(np.stack(given), window_of(range(number)), rtol=1e-12)
    assert all(len(window) == LENGTH for window in seen)
    assert len(seen) == 1 + max(0, -(-(number - 32) // 22))


def test_windows_hold_the_frames_that_endodav_feeds():
    seen, _ = windows_seen(80)
    assert seen[0] == list(range(32))
    assert seen[1] == [6, 12, *range(24, 54)]
    # Position 6 and 12 of the window before: its last eight of old are 24 to 31 at 2 to 9, then 32 and on.
    assert seen[2] == [28, 34, *range(46, 76)]
    assert seen[3] == [50, 56, *range(68, 80), *[79] * 18]
    assert windows_seen(5)[0] == [[0, 1, 2, 3, 4, *[4] * 27]]


def test_nothing_in_nothing_out():
    assert list(consistent_disparity(iter(()), window_of, False)) == []


@pytest.mark.parametrize("has_shift", [False, True])
def test_every_window_is_brought_to_the_first_ones_scale(has_shift):
    factors = iter([1.0, 3.0, 0.2, 7.0])
    shifts = iter([0.0, 5.0, 1.0, 2.0])

    def estimate(frames):
        return next(factors) * window_of(frames) + has_shift * next(shifts)

    given = list(consistent_disparity(range(90), estimate, has_shift))
    np.testing.assert_allclose(np.stack(given), window_of(range(90)), rtol=1e-9)


def test_the_overlap_fades_evenly_from_the_window_before():
    """The second window sees another slope on the overlap that least squares cannot undo: weights show frame by frame."""
    count = iter(range(2))

    def estimate(frames):
        second = next(count)
        flat = np.full((LENGTH, 1, 2), 10.0)
        flat[:, 0, 1] += 1.0 if second else -1.0
        return flat

    given = np.stack(list(consistent_disparity(range(54), estimate, False)))[:, 0]
    factor = (10 * 10 + 11 * 9) / (10 * 10 + 11 * 11)
    old, new = np.array([10.0, 9.0]), factor * np.array([10.0, 11.0])
    np.testing.assert_allclose(given[:24], np.tile(old, (24, 1)))
    for place, weight in enumerate(np.arange(8) / 7):
        np.testing.assert_allclose(given[24 + place], (1 - weight) * old + weight * new)
    np.testing.assert_allclose(given[32:], np.tile(new, (22, 1)))


def test_it_streams():
    """No more is asked for than the window at hand, and no later window runs before its frames are wanted."""
    asked = []

    def frames():
        for frame in range(10**9):
            asked.append(frame)
            yield frame

    given = consistent_disparity(frames(), window_of, False)
    for _ in range(50):
        next(given)
    assert len(asked) <= 76


def test_the_fit_is_least_squares_over_what_both_know():
    rng = np.random.default_rng(0)
    said, wanted = rng.uniform(1, 2, (8, 5, 6)), rng.uniform(1, 2, (8, 5, 6))
    said[:, 0], wanted[:, :, 0] = 0, 0
    x, y = said[:, 1:, 1:].ravel(), wanted[:, 1:, 1:].ravel()
    wanted = np.where(said > 0, np.where(wanted > 0, 2 + 3 * said, 0), wanted)
    np.testing.assert_allclose(fit(said, wanted, True), (3, 2))
    wanted[:, 1:, 1:] = y.reshape(8, 4, 5)
    np.testing.assert_allclose(fit(said, wanted, False), (np.linalg.lstsq(x[:, None], y, rcond=None)[0][0], 0))
    assert fit(np.zeros((8, 2, 2)), np.ones((8, 2, 2)), True) == (1.0, 0.0)
    # A falling line would turn near into far: a factor alone then.
    falling = fit(np.array([[[1.0, 2.0]]]), np.array([[[2.0, 1.0]]]), True)
    np.testing.assert_allclose(falling, (4 / 5, 0))


def test_what_one_window_does_not_know_the_other_says():
    before, after = np.array([[[0.0, 4.0, 2.0]]] * 3), np.array([[[5.0, 0.0, 4.0]]] * 3)
    np.testing.assert_allclose(faded(before, after)[1], [[5.0, 4.0, 3.0]])


def test_a_jumping_scale_becomes_a_straight_line_and_a_steady_one_stays():
    time = np.arange(20)
    steady = np.exp(0.03 * time)[:, None, None] * RAMP
    np.testing.assert_allclose(steadied(steady), steady, rtol=1e-6)
    jumping = steady * np.exp(np.random.default_rng(1).normal(0, 0.1, 20))[:, None, None]
    logs = np.log(steadied(jumping)[:, 0, 0])
    np.testing.assert_allclose(np.diff(logs), np.diff(logs)[0], atol=1e-6)
    np.testing.assert_allclose(logs.mean(), np.log(jumping[:, 0, 0]).mean(), atol=1e-6)


def test_flicker_of_a_true_depth_goes_and_its_shape_stays():
    """TAE falls by half or more, Abs Rel with one scale a frame does not change, and every frame is estimated once."""
    sequence = open_phantom("phantom:tube?seed=4&frames=60&width=64&height=48&noise=0")
    truth = [sequence.depth_gt(index).depth for index in range(60)]
    flicker = np.exp(np.random.default_rng(0).normal(0, 0.05, 60))
    asked = []

    def estimate(index):
        asked.append(index)
        depth = (flicker[index] * truth[index]).astype(np.float32)
        return DepthEstimate(depth, np.where(depth > 0, np.float32(0.1 + index), np.float32(0)))

    given = dict(consistent_depth(range(60), estimate, False))
    assert asked == list(range(60)) == list(given)
    assert all(((of.sigma > 0) == (of.depth > 0)).all() and of.sigma.max() == np.float32(0.1 + i) for i, of in given.items())
    raw = {index: flicker[index] * truth[index] for index in range(60)}
    even = {index: of.depth for index, of in given.items()}
    assert temporal_error(sequence, even) < 0.5 * temporal_error(sequence, raw)
    assert abs_rel(even, truth) == pytest.approx(abs_rel(raw, truth), abs=1e-5)


def temporal_error(sequence, depth):
    poses = dict(enumerate(sequence.trajectory_gt.T_world_camera))
    return score_temporal(range(60), depth.get, poses, nearest_carry(sequence.camera), num_workers=1).metrics[0].value


def abs_rel(depth, truth):
    pair_of = lambda index: DepthPair(depth[index].astype(np.float32), truth[index])  # noqa: E731
    metrics = score_depth(range(60), pair_of, PROTOCOLS[OWN], unit="mm", is_metric=False, num_workers=1).metrics
    return next(m.value for m in metrics if (m.name, m.alignment) == ("abs_rel", "scale_frame"))


def test_frames_that_are_left_out_count_as_no_time():
    def estimate(index):
        depth = np.full((3, 4), 1.0 + 0.01 * index, np.float32)
        return DepthEstimate(depth, depth)

    indices = [*range(0, 40), *range(60, 70)]
    given = list(consistent_depth(indices, estimate, False))
    assert [index for index, _ in given] == indices
    assert all(np.isfinite(of.depth).all() and (of.depth > 0).all() for _, of in given)


@pytest.fixture
def inputs(tmp_path):
    """Forty pictures of one place under a lamp that flickers; two were rejected."""
    rng = np.random.default_rng(0)
    for index in range(40):
        brightness = rng.uniform(80, 160)
        image = np.repeat((brightness * (0.4 + 0.6 * np.linspace(0, 1, 48)) * np.ones((32, 1)))[..., None], 3, axis=2)
        write_jpeg(tmp_path / "frames" / "images" / f"{index:06d}.jpg", image.astype(np.uint8))
        write_mask(tmp_path / "masks" / "tissue" / f"{index:06d}.png", np.ones((32, 48), bool))
    frames = [{"index": index, "status": "rejected" if index in (10, 11) else "ok"} for index in range(40)]
    write_json(tmp_path / "masks" / "gate.json", {"frames": frames})
    write_camera(tmp_path / "camera" / "camera.json", Camera("PINHOLE", 48, 32, (40.0, 40.0, 23.5, 15.5)))
    return {name: tmp_path / name for name in ("frames", "camera", "masks")}


def test_the_stage_writes_every_usable_frame_steadier(inputs, tmp_path):
    spread = {}
    for consistent in (False, True):
        out = tmp_path / str(consistent)
        STAGE.run(inputs, out, Config(model="falloff", consistent=consistent))
        files = sorted((out / "depth").glob("*.tiff"))
        assert [int(file.stem) for file in files] == [index for index in range(40) if index not in (10, 11)]
        assert len(list((out / "sigma").glob("*.tiff"))) == 38
        steps = np.diff([np.log(np.median(read_depth(file))) for file in files])
        spread[consistent] = np.abs(steps).mean()
    assert spread[True] < 0.1 * spread[False]
