"""Bootstrap intervals against a plain resampling, the theory of means, and the mean over sequences."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from recon.eval.bootstrap import MIN_BLOCKS, NUM_RESAMPLES, block_length, interval, intervals, macro_mean
from recon.types import Metric, ReconError


def test_independent_values_give_the_normal_interval_of_their_mean():
    values = np.random.default_rng(0).normal(5, 2, 400)
    low, high = interval(values, 1, seed=1)
    half = 1.96 * values.std() / np.sqrt(400)
    assert low == pytest.approx(values.mean() - half, abs=0.02) and high == pytest.approx(values.mean() + half, abs=0.02)
    assert interval(values, 1, seed=1) == (low, high) != interval(values, 1, seed=2)


def test_blocks_are_drawn_round_the_end_and_agree_with_a_plain_resampling():
    values, block, num = np.random.default_rng(3).random(26), 4, 26
    starts = np.random.default_rng(7).integers(num, size=(NUM_RESAMPLES, 7))
    means = [np.mean([values[(start + k) % num] for start in row for k in range(block)][:num]) for row in starts]
    assert interval(values, block, seed=7) == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])))


def test_neighbours_that_are_alike_widen_the_interval():
    rng = np.random.default_rng(0)
    smooth = np.repeat(rng.normal(size=20), 20)
    narrow, wide = interval(smooth, 1, seed=0), interval(smooth, block_length(400), seed=0)
    assert wide[1] - wide[0] > 3 * (narrow[1] - narrow[0])
    assert block_length(400) == 20 and block_length(401) == 21 and block_length(400, is_unrelated=True) == 1 and block_length(1) == 1


def test_equal_values_are_certain_and_few_values_have_no_interval():
    assert interval(np.full(18, 2.5), 3, seed=0) == (2.5, 2.5)
    assert interval(np.ones(MIN_BLOCKS - 1), 1, seed=0) is None is interval(np.ones(15), 3, seed=0)
    with pytest.raises(ReconError, match="does not fit"):
        intervals(np.ones((4, 1)), 5, 0)
    with pytest.raises(ReconError, match="not finite"):
        intervals(np.array([[1.0], [np.nan]]), 1, 0)


def test_columns_are_resampled_together_and_long_recordings_in_rounds():
    values = np.random.default_rng(0).random((5000, 2))
    values[:, 1] = 3 - values[:, 0]
    bounds = intervals(values, 71, 0)
    assert bounds[1] == pytest.approx(3 - bounds[0, ::-1]) and bounds[0, 0] < values[:, 0].mean() < bounds[0, 1]


def metric(value, **options) -> Metric:
    return replace(Metric("depth", "abs_rel", value, "1", "scale_frame"), **options)


def test_every_sequence_counts_the_same_unless_weighted():
    sequences = [[metric(0.1)], [metric(0.2)], [metric(0.6)]]
    (few,), notes = macro_mean(sequences)
    assert few.value == pytest.approx(0.3) and few.interval is None
    assert len(notes) == 1 and "sequences have no interval, for 3 make" in notes[0]
    (mean,), notes = macro_mean(2 * sequences)
    assert mean.value == pytest.approx(0.3) and not notes
    assert mean.interval[0] >= 0.1 and mean.interval[1] <= 0.6 and mean.interval[0] < 0.3 < mean.interval[1]
    (weighted,), _ = macro_mean(sequences, weights=[8, 1, 1])
    assert weighted.value == pytest.approx((0.8 + 0.2 + 0.6) / 10)
    assert macro_mean(2 * sequences, block=2)[0][0].interval is None


def test_frames_that_lack_a_measure_are_no_part_of_its_mean():
    frames = [[metric(float(k)), metric(1.0, name="accuracy_mean")] if k % 3 else [metric(float(k))] for k in range(12)]
    (error, lacking), notes = macro_mean(frames, of="frames", block=2)
    assert error.value == pytest.approx(5.5) and error.interval is not None
    assert lacking.value == 1 and lacking.interval is None  # 8 values are 4 blocks
    assert "accuracy_mean in 8 of 12 frames only" in notes[0] and len(notes) == 1


def test_metrics_of_another_alignment_or_protocol_stay_apart_and_lacking_ones_are_named():
    sequences = [[metric(1.0), metric(5.0, alignment="none", noise_floor=0.2)], [metric(3.0), metric(7.0, protocol="scared-af")]]
    means, notes = macro_mean(sequences)
    assert [(m.value, m.alignment, m.protocol) for m in means] == [
        (2.0, "scale_frame", None),
        (5.0, "none", None),
        (7.0, "scale_frame", "scared-af"),
    ]
    assert means[1].noise_floor == 0.2 and all(m.interval is None for m in means)
    assert "under none, abs_rel in 1 of 2" in notes[0]
    assert macro_mean([]) == ([], []) and macro_mean([[metric(1.0)]], weights=[0]) == ([], [])
