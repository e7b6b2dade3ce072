"""Scale fields: what is known comes back, outliers do not matter, and nothing runs wild where there are no points."""

from __future__ import annotations

import numpy as np
import pytest

from recon.tracking.scale_field import FrameRatios, fit_field, fit_scale_model, sample_nearest, sample_ratios, smooth_factors

ASPECT = 0.75


def positions(num: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform((0, 0), (1, ASPECT), (num, 2))


def bowl(at: np.ndarray) -> np.ndarray:
    """A smooth log field with median near 0."""
    return 0.5 * ((at[:, 0] - 0.5) ** 2 + (at[:, 1] - 0.375) ** 2) / 0.25 - 0.2 + 0.15 * at[:, 0]


def test_recovers_a_smooth_field():
    at = positions(600)
    field = fit_field(at, bowl(at) + np.random.default_rng(1).normal(0, 0.02, 600))
    inside = positions(400, seed=2) * 0.9 + 0.05 * np.array([1, ASPECT])
    mean, sigma = field(inside)
    assert np.abs(mean - bowl(inside)).mean() < 0.015
    assert np.median(sigma) < 0.03
    assert field.noise < 0.05


def test_recovers_it_with_30_percent_outliers():
    rng = np.random.default_rng(3)
    at = positions(600)
    values = bowl(at) + rng.normal(0, 0.02, 600)
    wrong = rng.random(600) < 0.3
    values[wrong] += rng.choice([-1, 1], wrong.sum()) * rng.uniform(0.5, 2.0, wrong.sum())
    inside = positions(400, seed=4) * 0.9 + 0.05 * np.array([1, ASPECT])
    assert np.abs(fit_field(at, values)(inside)[0] - bowl(inside)).mean() < 0.04


@pytest.mark.parametrize("num", [0, 1, 2, 7])
def test_few_points_give_no_field(num):
    at = positions(num)
    field = fit_field(at, bowl(at))
    assert field.length_scales == ()
    assert np.array_equal(field(positions(10))[0], np.zeros(10))


def test_noise_alone_gives_hardly_any_field():
    at = positions(400)
    mean, _ = fit_field(at, np.random.default_rng(5).normal(0, 0.1, 400))(positions(200, seed=6))
    assert np.abs(mean).mean() < 0.03


def test_no_wild_extrapolation():
    """A steep slope seen in the left third: elsewhere the field stays in the range of the data and fades, and says so."""
    at = positions(300) * np.array([0.33, 1.0])
    values = 3.0 * (at[:, 0] - 0.16)
    field = fit_field(at, values)
    far = np.stack([np.linspace(0.4, 3.0, 50), np.full(50, 0.4)], axis=-1)
    mean, sigma = field(far)
    assert mean.max() <= values.max() and mean.min() >= values.min()
    assert abs(mean[-1]) < 1e-3
    assert sigma[-1] > 5 * np.median(field(at)[1])


def test_frames_without_points_take_their_neighbours_level():
    indices = list(range(11))
    ratios = {i: FrameRatios(positions(50), np.full(50, 0.3)) for i in indices if i != 5}
    levels = smooth_factors(indices, ratios, {i: 0.0 for i in indices}, window=3.0)
    assert levels[5] == pytest.approx(0.3, abs=0.05)
    assert levels[0] == pytest.approx(0.3, abs=0.02)


def test_levels_follow_frames_with_many_points():
    indices = list(range(10))
    truth = {i: 0.2 * (-1) ** i for i in indices}
    ratios = {i: FrameRatios(positions(200), np.full(200, truth[i])) for i in indices}
    levels = smooth_factors(indices, ratios, truth, window=3.0)
    assert all(abs(levels[i] - truth[i]) < 0.02 for i in indices)


def test_shared_field_serves_frames_without_points():
    indices = list(range(6))
    ratios = {i: FrameRatios(at := positions(150, seed=i), bowl(at) + 0.1 * i) for i in indices[:-1]}
    model = fit_scale_model(indices, ratios, {i: 0.1 * i for i in indices})
    log_field, _ = model.log_field(5, 48, 64)
    u, v = (np.arange(64) + 0.5) / 64, (np.arange(48) + 0.5) / 64
    at = np.stack(np.meshgrid(u, v), axis=-1).reshape(-1, 2)
    shape = log_field.reshape(-1) - np.median(log_field)
    truth = bowl(at) - np.median(bowl(at))
    assert np.abs(shape - truth).mean() < 0.04
    assert set(model.own) == set(indices[:-1])


def test_without_any_point_the_guesses_remain():
    model = fit_scale_model([3, 4], {}, {3: 0.5, 4: 0.5})
    log_field, sigma = model.log_field(3, 6, 8)
    assert np.allclose(log_field, 0.5) and np.allclose(sigma, 0.0)


def test_fields_can_be_turned_off():
    at = positions(300)
    model = fit_scale_model([0], {0: FrameRatios(at, bowl(at))}, {0: 0.0}, use_fields=False)
    assert np.ptp(model.log_field(0, 6, 8)[0]) == 0.0


def test_ratios_meet_their_pixels():
    """A depth map at a third of the image's resolution; points outside, behind or on unknown depth are left out."""
    depth = np.arange(1.0, 13.0).reshape(3, 4).astype(np.float32)
    depth[2, 3] = 0.0
    pixels = np.array([[1.0, 1.0], [4.0, 1.0], [10.0, 7.0], [-3.0, 1.0], [1.0, 4.0], [4.0, 4.0]])
    z = np.array([2.0, 6.0, 1.0, 1.0, -1.0, 12.0])
    ratios = sample_ratios(depth, pixels, (12, 9), z)
    assert np.allclose(ratios.log_ratio, np.log([2.0 / 1.0, 6.0 / 2.0, 12.0 / 6.0]))
    assert np.array_equal(sample_nearest(depth, ratios.positions), [1.0, 2.0, 6.0])


def test_factors_far_in_time_do_not_matter_and_long_recordings_fit():
    indices = list(range(20_000))
    guesses = {i: 0.0 if i < 10_000 else 1.0 for i in indices}
    factors = smooth_factors(indices, {}, guesses, window=5.0)
    assert factors[100] == 0.0 and abs(factors[19_000] - 1.0) < 1e-12
    assert 0.2 < factors[10_000] < 1.0
