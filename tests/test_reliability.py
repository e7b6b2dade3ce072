"""The table that judges a confidence: an honest one passes, one that claims too much or the wrong way round is caught."""

from __future__ import annotations

import numpy as np
import pytest
from acceptance.reliability import NUM_PARTS, TOLERANCE, figures, reliability


def drawn(claimed: np.ndarray, true_probability: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Confidence, and errors that keep the tolerance as often as `true_probability` says."""
    kept = np.random.default_rng(0).random(len(claimed)) < true_probability
    return claimed, np.where(kept, 0.5, 2.0) * TOLERANCE


PROBABILITY = np.random.default_rng(1).random(200_000)


def test_an_honest_confidence_is_monotone_and_calibrated():
    found = figures(reliability(*drawn(PROBABILITY, PROBABILITY)))
    assert found["decile_violations"] == found["decile_error_violations"] == 0
    assert found["calibration_error"] < 0.005


def test_what_is_claimed_too_much_is_the_calibration_error():
    found = figures(reliability(*drawn(0.3 + 0.7 * PROBABILITY, PROBABILITY)))
    assert found["decile_violations"] == 0
    assert found["calibration_error"] == pytest.approx(0.15, abs=0.005)


def test_a_confidence_that_falls_with_the_truth_is_caught():
    found = figures(reliability(*drawn(1 - PROBABILITY, PROBABILITY)))
    assert found["decile_violations"] == found["decile_error_violations"] == NUM_PARTS - 1


def test_parts_are_of_equal_size_whatever_the_values():
    parts = reliability(np.full(1000, 0.5), np.zeros(1000), np.ones(1000))
    assert len(parts) == NUM_PARTS and {part.lowest for part in parts} == {0.5}
    assert {part.true_share for part in parts} == {1.0} and {part.matched for part in parts} == {1.0}
