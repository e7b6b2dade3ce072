"""Factors of many parts made one: the right value, a sigma that covers the error, and what a metric network may claim."""

from __future__ import annotations

import numpy as np
import pytest

from recon.tracking.scale_sources import scale_from_metric_depth, scale_of_parts
from recon.types import ReconError
from stages import scale as stage

TRUE_MM = 12.5
FRAMES = np.arange(120)


def test_the_sigma_covers_errors_that_neighbours_share():
    off = []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        shared = np.convolve(rng.normal(0, 0.1, 123), np.full(4, 0.5), mode="valid")
        found = scale_of_parts("stereo", FRAMES, TRUE_MM * np.exp(shared + rng.normal(0, 0.02, 120)), 0.0)
        off.append((found.scale.value - TRUE_MM) / found.scale.sigma)
    assert 0.6 < np.std(off) < 1.7


def test_an_error_that_all_parts_share_is_not_averaged_away():
    found = scale_of_parts("stereo", FRAMES, np.full(120, TRUE_MM), 0.05)
    assert found.scale.value == pytest.approx(TRUE_MM) and found.scale.sigma == pytest.approx(0.05 * TRUE_MM)
    assert found.described()["num_parts"] == 120 and "residual_mm" not in found.described()


def test_a_drift_shows_along_the_path():
    found = scale_of_parts("stereo", FRAMES, TRUE_MM * np.linspace(0.8, 1.2, 120), 0.0)
    factors = [window["factor_mm"] for window in found.described()["along_path"]]
    assert len(factors) == 5 and all(np.diff(factors) > 0) and factors[-1] / factors[0] == pytest.approx(1.16 / 0.84, rel=0.02)


def test_a_wild_part_changes_little():
    factors = np.full(120, TRUE_MM)
    factors[40:50] *= 100
    assert scale_of_parts("stereo", FRAMES, factors, 0.0).scale.value == pytest.approx(TRUE_MM)


def test_one_part_has_the_error_that_is_stated_alone():
    found = scale_of_parts("metric_network", FRAMES[:1], np.array([TRUE_MM]), 0.2)
    assert found.scale.sigma == pytest.approx(0.2 * TRUE_MM) and len(found.windows) == 1


def test_a_network_in_metres_gives_millimetres():
    """Its log error has a part that all frames share, of the size that it states, and one of each frame."""
    off = []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        error = rng.normal(0, 0.2) + rng.normal(0, 0.1, 120)
        found = scale_from_metric_depth(FRAMES, np.log(1000 / TRUE_MM) - error, np.full(120, 0.2))
        assert found.scale.source == "metric_network" and found.scale.unit == "mm"
        off.append((found.scale.value - TRUE_MM) / found.scale.sigma)
    assert 0.6 < np.std(off) < 1.7


def test_a_network_that_meets_no_pose_is_refused():
    with pytest.raises(ReconError, match="no posed frame has depth"):
        scale_from_metric_depth(FRAMES[:3], np.full(3, np.nan), np.full(3, 0.2))


def test_two_sources_are_one_too_many(tmp_path):
    with pytest.raises(ValueError, match="factor_mm and metric_network both say what the unit is"):
        stage.Config(factor_mm=2.0, metric_network=True)
    with pytest.raises(ValueError, match="factor_mm and poses_mm and metric_network all say"):
        stage.Config(factor_mm=2.0, poses_mm=tmp_path, metric_network=True)
