"""Depth errors against hand-computed cases and plain numpy, the own protocol's four alignments, and damaged or missing input."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from recon.eval.depth import DepthPair, aligned_depth, score_depth
from recon.eval.depth_errors import depth_errors, penalised_errors
from recon.eval.depth_fit import Fit, least_squares
from recon.eval.depth_frames import Pixels
from recon.eval.medians import MIN_SAMPLED, StreamedMedian, median
from recon.eval.protocols import IN_MM, OWN, PROTOCOLS
from recon.types import ReconError

ALIGNMENTS = ("none", "scale_sequence", "scale_frame", "scale_shift")


def score(pred, gt, *, protocol=OWN, is_disparity=False, **options):
    options = {"unit": "mm", "is_metric": True, **options}
    return score_depth(range(len(gt)), lambda i: DepthPair(pred[i], gt[i], is_disparity), PROTOCOLS[protocol], **options)


def value(found, name, alignment=None) -> float:
    values = [m.value for m in found.metrics if m.name == name and alignment in (None, m.alignment)]
    assert len(values) == 1, f"{name} {alignment}: {values}"
    return values[0]


def maps(num=5, shape=(12, 15), seed=0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(10, 90, (num, *shape)).astype(np.float32)


def test_errors_by_hand():
    errors = depth_errors(np.array([1.0, 3.0, 30.0]), np.array([2.0, 3.0, 24.0]))
    assert errors["abs_rel"] == pytest.approx((0.5 + 0 + 0.25) / 3)
    assert errors["sq_rel"] == pytest.approx((0.5 + 0 + 1.5) / 3)
    assert errors["rmse"] == pytest.approx(np.sqrt(37 / 3))
    assert errors["rmse_log"] == pytest.approx(np.sqrt((np.log(2) ** 2 + np.log(1.25) ** 2) / 3))
    assert errors["mae"] == pytest.approx(7 / 3) and errors["median_ae"] == 1
    assert errors["delta_1.25"] == pytest.approx(1 / 3), "a ratio of exactly 1.25 does not count"
    assert errors["delta_1.25^2"] == pytest.approx(2 / 3) and errors["delta_1.25^3"] == pytest.approx(2 / 3)
    assert errors["bad_1mm"] == pytest.approx(1 / 3), "an error of exactly 1 is not bad"
    assert errors["bad_2mm"] == errors["bad_5mm"] == pytest.approx(1 / 3) and errors["acc_2cm"] == 1
    assert depth_errors(np.array([50.0, 69.9]), np.array([70.0, 50.0]))["acc_2cm"] == 0.5


def test_errors_of_many_pixels_agree_with_plain_numpy():
    rng = np.random.default_rng(0)
    gt = rng.uniform(1, 100, 300_000).astype(np.float32)
    pred = gt * rng.uniform(0.5, 2, gt.shape).astype(np.float32)
    p, g = pred.astype(np.float64), gt.astype(np.float64)
    ratio = np.maximum(p / g, g / p)
    expected = {
        "abs_rel": np.mean(np.abs(p - g) / g),
        "sq_rel": np.mean((p - g) ** 2 / g),
        "rmse": np.sqrt(np.mean((p - g) ** 2)),
        "rmse_log": np.sqrt(np.mean(np.log(p / g) ** 2)),
        "mae": np.mean(np.abs(p - g)),
        "median_ae": np.median(np.abs(p - g)),
        **{name: np.mean(ratio < 1.25**k) for k, name in enumerate(("delta_1.25", "delta_1.25^2", "delta_1.25^3"), 1)},
        **{f"bad_{k}mm": np.mean(np.abs(p - g) > k) for k in (1, 2, 5)},
        "acc_2cm": np.mean(np.abs(p - g) < 20),
    }
    assert depth_errors(pred, gt) == pytest.approx(expected, rel=1e-5)
    assert depth_errors(p, g) == pytest.approx(expected, rel=1e-12)
    with pytest.raises(ReconError, match="no pixel"):
        depth_errors(p[:0], g[:0])


def test_leaving_pixels_out_never_pays():
    gt = np.array([10.0, 20.0, 40.0])
    whole = penalised_errors(np.array([11.0, 100.0, 30.0]), gt, np.zeros(0))
    assert whole == pytest.approx({"abs_rel_penalised": (0.1 + 1 + 0.25) / 3, "mae_penalised": (1 + 20 + 10) / 3})
    without = penalised_errors(np.array([11.0, 30.0]), gt[[0, 2]], gt[[1]])
    assert without == pytest.approx(whole)
    assert penalised_errors(gt[:0], gt[:0], gt) == pytest.approx({"abs_rel_penalised": 1, "mae_penalised": 70 / 3})


def test_alignments_remove_exactly_their_own_factor():
    gt = maps(4)
    factors = np.array([2.0, 2.0, 4.0, 2.0], np.float32)[:, None, None]
    found = score(gt / factors, gt)
    assert value(found, "abs_rel", "scale_frame") == pytest.approx(0, abs=1e-6)
    assert value(found, "abs_rel", "scale_shift") == pytest.approx(0, abs=1e-5)
    assert value(found, "abs_rel", "scale_sequence") == pytest.approx(0.5 / 4, abs=1e-6)
    assert value(found, "abs_rel", "none") == pytest.approx((0.5 * 3 + 0.75) / 4, abs=1e-6)
    assert value(found, "scale_spread") == pytest.approx(np.std(factors) / np.mean(factors), abs=1e-6)
    assert found.fits["scale_sequence"] == pytest.approx(2)
    assert [row["scale"] for row in found.frames] == pytest.approx(factors.ravel())
    assert {m.unit for m in found.metrics if m.name == "rmse"} == {"mm"}
    assert {m.name for m in found.metrics if not m.lower_is_better} >= {"delta_1.25", "delta_1.25^2", "delta_1.25^3", "acc_2cm", "coverage"}
    assert {m.alignment for m in found.metrics if m.name == "mae"} == set(ALIGNMENTS) and found.num_frames == 4
    assert all(m.protocol is None for m in found.metrics) and len(found.notes) == 1 and "no interval" in found.notes[0]


def test_scale_and_shift_are_the_least_squares_solution_in_depth_and_in_disparity():
    rng = np.random.default_rng(4)
    gt = maps(1)
    pred = (0.3 * gt + 4 + rng.normal(0, 2, gt.shape)).astype(np.float32)
    g, p = gt.ravel().astype(np.float64), pred.ravel().astype(np.float64)
    scale, shift = np.linalg.lstsq(np.stack([p, np.ones_like(p)], 1), g, rcond=None)[0]
    expected = np.mean(np.abs(np.maximum(scale * p + shift, 1e-3 * g.mean()) - g) / g)
    assert value(score(pred, gt), "abs_rel", "scale_shift") == pytest.approx(expected, rel=1e-4)
    disparity = (40 / gt + 0.7 + rng.normal(0, 0.02, gt.shape)).astype(np.float32)
    d = disparity.ravel().astype(np.float64)
    scale, shift = np.linalg.lstsq(np.stack([d, np.ones_like(d)], 1), 1 / g, rcond=None)[0]
    aligned = np.clip(1 / np.maximum(scale * d + shift, 1e-9), 1e-3 * g.mean(), 10 * g.mean())
    found = score(disparity, gt, is_disparity=True)
    assert value(found, "abs_rel", "scale_shift") == pytest.approx(np.mean(np.abs(aligned - g) / g), rel=1e-3)
    assert value(found, "abs_rel", "scale_frame") > 3 * value(found, "abs_rel", "scale_shift")


def test_a_fitted_shift_is_kept_off_zero_and_infinity():
    limits = (0.05, 500.0)
    assert Fit(2.0, -10.0, limits=limits)(np.array([1.0, 50.0])) == pytest.approx([0.05, 90])
    assert Fit(1.0, -0.5, True, limits)(np.array([1.0, 4.0])) == pytest.approx([2, 500])
    gt = np.array([30.0, 50.0])
    assert least_squares(Pixels(gt, gt, gt[:0], 2, False, 0)).limits == pytest.approx((0.04, 400))


def test_spread_and_drift_of_the_scale():
    gt = maps(11)
    factors = np.exp(0.03 * np.arange(11)).astype(np.float32)[:, None, None]
    found = score(gt / factors, gt)
    assert value(found, "scale_drift") == pytest.approx(0.3, abs=1e-5) and found.fits["log_scale_drift"] == pytest.approx(0.3, abs=1e-5)
    assert score(gt * factors, gt).fits["log_scale_drift"] == pytest.approx(-0.3, abs=1e-5)
    unrelated = score(gt / factors, gt, is_unrelated=True)
    assert not any(m.name == "scale_drift" for m in unrelated.metrics) and value(unrelated, "scale_spread") > 0


def test_without_a_unit_nothing_is_compared_unscaled_or_in_millimetres():
    gt = maps(3)
    found = score(gt / 2, gt, is_metric=False)
    assert {m.alignment for m in found.metrics if m.name == "abs_rel"} == set(ALIGNMENTS[1:])
    unitless = score(gt / 2, gt, unit="unitless", is_metric=False)
    assert not any(m.name in IN_MM or m.unit == "mm" for m in unitless.metrics)
    assert {m.unit for m in unitless.metrics if m.name == "rmse"} == {"unitless"}


def test_unknown_pixels_do_not_count_and_almost_empty_frames_only_in_coverage():
    gt = np.full((3, 10, 10), 50.0, np.float32)
    pred = gt.copy()
    pred[0, :, 2:] = [[0, -3, np.nan, np.inf, 0, 0, 0, 0]]
    pred[1] = 0
    pred[1, 0, :4] = 7
    found = score(pred, gt)
    assert value(found, "abs_rel", "none") == 0
    assert value(found, "coverage") == pytest.approx((0.2 + 0.04 + 1) / 3)
    assert value(found, "abs_rel_penalised", "scale_frame") == pytest.approx((0.8 + 1 + 0) / 3)
    assert value(found, "mae_penalised", "none") == pytest.approx(50 * 1.8 / 3)
    assert found.num_frames == 2 and "scale" not in found.frames[1]
    assert any("1 of 3 frames" in note for note in found.notes) and any("30 predicted pixels in 1 frames" in note for note in found.notes)


def test_frames_without_truth_and_wholly_empty_predictions():
    gt = maps(3)
    truthless = score(gt, np.zeros_like(gt))
    assert truthless.metrics == [] and truthless.frames == [] and "not computable" in truthless.notes[0]
    empty = score(np.zeros_like(gt), gt)
    assert {m.name for m in empty.metrics} == {"coverage", "abs_rel_penalised", "mae_penalised"}
    assert value(empty, "coverage") == 0 and value(empty, "abs_rel_penalised", "none") == 1
    assert any("not computable" in note for note in empty.notes)
    one = np.zeros_like(gt)
    one[:, 3, 3] = 1
    assert any("not computable" in note for note in score(one, gt).notes)
    assert score_depth([0, 1], lambda _: None, PROTOCOLS[OWN], unit="mm", is_metric=True).metrics == []
    strange = gt.copy()
    strange[0, 0, :3] = [np.nan, -1, np.inf]
    assert value(score(gt, strange), "abs_rel", "none") == 0
    assert all(np.isfinite(m.value) for m in [*empty.metrics, *score(one, gt).metrics])


def test_constant_predictions_stay_finite():
    gt = maps(3)
    for protocol in PROTOCOLS.values():
        if protocol.crop is not None or protocol.resize == "square":
            continue
        found = score(np.full_like(gt, 30.0), gt, protocol=protocol.name)
        assert all(np.isfinite(m.value) for m in found.metrics)


@pytest.mark.parametrize(
    ("factor", "words"), [(1e-3, "metres against millimetres"), (1e3, "millimetres against metres"), (0.1, "centimetres")]
)
def test_another_unit_is_noticed(factor, words):
    gt = maps(3)
    pred = (gt * factor * 1.1).astype(np.float32)
    assert words in score(pred, gt).notes[0]
    assert not any("looks like" in note for note in score(pred, gt, is_metric=False).notes)
    assert not any("looks like" in note for note in score((gt * 0.4).astype(np.float32), gt).notes)


def test_a_disparity_that_is_given_as_depth_is_noticed():
    gt = maps(3)
    assert "depth or disparity" in score((1 / gt).astype(np.float32), gt, is_metric=False).notes[0]
    declared = score((1 / gt).astype(np.float32), gt, is_metric=False, is_disparity=True)
    assert not any("depth or disparity" in note for note in declared.notes)


def test_other_sizes_are_brought_to_the_truth_and_other_aspects_refused():
    small = maps(2, (6, 8))
    gt = np.repeat(np.repeat(small, 3, axis=1), 3, axis=2)
    assert value(score(small, gt), "abs_rel", "none") == 0
    assert value(score(np.repeat(np.repeat(gt, 3, axis=1), 3, axis=2), gt), "abs_rel", "none") == 0
    with pytest.raises(ReconError, match="frame 0: predicted depth is 7x6"):
        score(np.ascontiguousarray(small[:, :, :7]), gt)


def test_unknown_pixels_do_not_bleed_into_resized_disparity():
    gt = np.full((1, 8, 8), 50.0, np.float32)
    pred = np.full((1, 4, 4), 25.0, np.float32)
    pred[0, 1, 1] = 0
    found = score(pred, gt, protocol="scared-af")
    assert value(found, "abs_rel") == pytest.approx(0, abs=1e-6) and 0.6 < value(found, "coverage") < 0.95


def test_every_pixel_counts_and_intervals_and_floors_are_given():
    gt = maps(40, (40, 50))
    pred = gt * np.random.default_rng(2).uniform(0.9, 1.2, gt.shape).astype(np.float32)
    found = score(pred, gt, noise_floor=0.3)
    frames = np.array([np.mean(np.abs(p - g) / g) for p, g in zip(pred.astype(float), gt.astype(float), strict=True)])
    metric = next(m for m in found.metrics if m.name == "abs_rel" and m.alignment == "none")
    assert metric.value == pytest.approx(frames.mean(), rel=1e-6)
    assert metric.interval[0] < metric.value < metric.interval[1] and frames.min() < metric.interval[0]
    assert [row["none.abs_rel"] for row in found.frames] == pytest.approx(frames, rel=1e-5)
    assert {m.name for m in found.metrics if m.noise_floor == 0.3} == {"rmse", "mae", "median_ae", "mae_penalised", "sq_rel"}
    assert not any("no interval" in note for note in found.notes)
    assert score(pred, gt, noise_floor=0.3, num_workers=1) == found
    assert score(pred[:2], gt[:2]).metrics[1].interval is None


def test_streamed_medians_are_exact():
    rng = np.random.default_rng(0)
    for num in (1, 2, 3, 1000, 1001):
        values = np.round(rng.lognormal(2, 2, num), int(rng.integers(1, 6))).astype(np.float32) + np.float32(1e-3)
        streamed = StreamedMedian()
        for part in np.array_split(values, 7):
            streamed.count(part)
        for part in np.array_split(values, 3):
            streamed.refine(part)
        exact = values.astype(np.float64)
        assert streamed.result() == pytest.approx((np.median(exact), np.mean(np.abs(exact - np.median(exact)))), rel=1e-9)
    assert StreamedMedian().result() is None


def test_bracketed_medians_are_exact():
    rng = np.random.default_rng(0)
    for values in (rng.random(MIN_SAMPLED + 1), rng.lognormal(0, 3, 100_000), np.sort(rng.random(70_001)), np.ones(50_000), rng.random(9)):
        for values_of in (values, values.astype(np.float32), np.round(values, 1)):
            assert median(values_of) == pytest.approx(float(np.median(values_of)), rel=1e-7)
    hidden = np.ones(80_000)
    hidden[:: len(hidden) // 4096] = 5.0  # the sample sees nothing but these
    assert median(hidden) == 1


def test_aligned_depth_is_what_was_compared():
    gt = maps(3)
    gt[:, :2] = 0
    pred = gt[:, ::-1].copy() / 3
    found = score(pred, gt)
    for alignment in ALIGNMENTS:
        shown = aligned_depth(DepthPair(pred[1], gt[1]), PROTOCOLS[OWN], alignment, found.fits)
        both = (gt[1] > 0) & (pred[1] > 0)
        assert np.array_equal(shown > 0, both)
        errors = depth_errors(shown[both], gt[1][both])
        assert errors["abs_rel"] == pytest.approx(found.frames[1][f"{alignment}.abs_rel"], rel=1e-6)
    assert not aligned_depth(DepthPair(0 * gt[0], gt[0]), PROTOCOLS[OWN], "scale_frame", found.fits).any()
    for protocol, alignment in ((OWN, "sim3_icp"), ("c3vd-ppsnet", "scale_frame")):
        with pytest.raises(ReconError, match="on the image's grid"):
            aligned_depth(DepthPair(pred[1], gt[1]), PROTOCOLS[protocol], alignment, found.fits)
    with pytest.raises(ReconError, match="score the sequence first"):
        aligned_depth(DepthPair(pred[1], gt[1]), PROTOCOLS[OWN], "scale_sequence", {})


def test_a_protocol_is_data():
    gt = maps(2)
    capped = replace(PROTOCOLS[OWN], name="capped", max_truth=50.0)
    found = score_depth([0, 1], lambda i: DepthPair(gt[i], gt[i]), capped, unit="mm", is_metric=True)
    assert {m.protocol for m in found.metrics if m.name == "mae"} == {"capped"}
