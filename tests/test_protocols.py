"""Every published depth protocol against a plain re-calculation of its arithmetic, and against itself with one rule left out."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import scipy.optimize
import torch
import torch.nn.functional as F

from recon.eval.depth import DepthPair, aligned_depth, score_depth
from recon.eval.protocols import EIGEN, OWN, PROTOCOLS, Crop, sequence_number
from recon.types import ReconError

MEDIAN_SCALED = ("scared-af", "hamlyn", "servct-mono", "c3vd-endodac", "endosynth-relative")


def scene(num=3, shape=(288, 720), seed=0, low=2.0, high=260.0) -> tuple[np.ndarray, np.ndarray]:
    """True depth with unknown pixels and values beyond every cap, and a prediction that is wrong, in other units and unclamped."""
    rng = np.random.default_rng(seed)
    gt = rng.uniform(low, high, (num, *shape))
    pred = gt * rng.uniform(0.4, 2.5, gt.shape) * rng.uniform(0.01, 0.1, (num, 1, 1))
    gt[rng.random(gt.shape) < 0.1] = 0
    return pred.astype(np.float32), gt.astype(np.float32)


def metrics_of(pred, gt, protocol, **options) -> dict[str, float]:
    options = {"unit": "mm", "is_metric": True, **options}
    score = score_depth(
        range(len(gt)),
        lambda i: DepthPair(pred[i], gt[i], options.get("is_disparity", False)),
        protocol,
        **{name: value for name, value in options.items() if name != "is_disparity"},
    )
    assert all(metric.protocol == protocol.metric_name for metric in score.metrics)
    return {metric.name: metric.value for metric in score.metrics}


def eigen(pred, gt) -> dict[str, float]:
    """The seven figures, in float64 and in the plainest words."""
    pred, gt = pred.astype(np.float64), gt.astype(np.float64)
    ratio = np.maximum(gt / pred, pred / gt)
    return dict(
        zip(
            EIGEN,
            (
                np.mean(np.abs(gt - pred) / gt),
                np.mean((gt - pred) ** 2 / gt),
                np.sqrt(np.mean((gt - pred) ** 2)),
                np.sqrt(np.mean((np.log(gt) - np.log(pred)) ** 2)),
                *(np.mean(ratio < 1.25**k) for k in (1, 2, 3)),
            ),
            strict=True,
        )
    )


def mean_of(frames: list[dict[str, float]]) -> dict[str, float]:
    return {name: float(np.mean([frame[name] for frame in frames])) for name in frames[0]}


def median_scaled(pred, gt, cap, columns=slice(None), rows=slice(None), clamps=True) -> dict[str, float]:
    """monodepth2's evaluation, as AF-SfMLearner, EndoDAC and Endo-GeDE kept it."""
    frames = []
    for p, g in zip(pred[:, rows, columns].astype(np.float64), gt[:, rows, columns].astype(np.float64), strict=True):
        mask = (g > 1e-3) & (g < cap)
        p, g = p[mask], g[mask]
        p = p * (np.median(g) / np.median(p))
        if clamps:
            p[p < 1e-3] = 1e-3
            p[p > cap] = cap
        frames.append(eigen(p, g))
    return mean_of(frames)


def same(found: dict[str, float], expected: dict[str, float], rel=2e-5) -> bool:
    return all(found[name] == pytest.approx(value, rel=rel) for name, value in expected.items())


@pytest.mark.parametrize(("name", "cap"), [("scared-af", 150.0), ("servct-mono", 200.0)])
def test_median_scaling_cap_and_clamp(name, cap):
    pred, gt = scene()
    found = metrics_of(pred, gt, PROTOCOLS[name])
    assert set(found) == {*EIGEN, "coverage"}
    assert same(found, median_scaled(pred, gt, cap))
    for wrong in (median_scaled(pred, gt, cap + 20), median_scaled(pred, gt, cap, clamps=False)):
        assert not same(found, wrong, rel=1e-3)
    assert not same(found, metrics_of(pred, gt, replace(PROTOCOLS[name], fits=(("scale_frame", "median_of_ratios"),))), rel=1e-3)


def test_scared_af_by_hand():
    gt = np.array([[10.0, 20.0, 40.0, 149.0, 150.0, 0.0]], np.float32)
    pred = np.array([[1.0, 3.0, 3.0, 60.0, 7.0, 7.0]], np.float32)
    # Four pixels count; medians 30 and 3 give a scale of 10: 10, 30, 30, and 600 clamped to 150.
    found = metrics_of(pred[None], gt[None], PROTOCOLS["scared-af"])
    assert found["abs_rel"] == pytest.approx((0 + 10 / 20 + 10 / 40 + 1 / 149) / 4)
    assert found["sq_rel"] == pytest.approx((100 / 20 + 100 / 40 + 1 / 149) / 4)
    assert found["rmse"] == pytest.approx(np.sqrt((100 + 100 + 1) / 4))
    assert found["delta_1.25"] == 0.5 and found["delta_1.25^2"] == 1 and found["coverage"] == 1


def test_scared_af_resizes_disparity_bilinearly():
    rng = np.random.default_rng(1)
    gt = rng.uniform(20, 90, (1, 8, 12)).astype(np.float32)
    disparity = rng.uniform(1, 4, (1, 4, 6)).astype(np.float32)
    weights = np.zeros((12, 6))
    for x in range(12):  # pixel centres at x + 0.5: the old position, its two neighbours, the border repeated
        old = np.clip((x + 0.5) / 2 - 0.5, 0, 5)
        weights[x, int(old)] += 1 - old % 1
        weights[x, min(int(old) + 1, 5)] += old % 1
    rows = weights[:8, :4].copy()
    rows[7] = [0, 0, 0, 1]
    large = rows @ disparity[0] @ weights.T
    expected = median_scaled(1 / large[None], gt, 150.0)
    assert same(metrics_of(disparity, gt, PROTOCOLS["scared-af"], is_disparity=True), expected)
    assert same(metrics_of(1 / disparity, gt, PROTOCOLS["scared-af"]), expected)
    assert not same(metrics_of(1 / disparity, gt, replace(PROTOCOLS["scared-af"], resize="nearest")), expected, rel=1e-3)


@pytest.mark.parametrize("name", ["scared-af", "scared-video", "hamlyn", "servct-mono", "c3vd-endodac"])
def test_small_disparities_are_enlarged_before_they_are_inverted(name):
    shape = (1080, 1350) if name == "c3vd-endodac" else (60, 75)
    _, gt = scene(2, shape)
    small = np.random.default_rng(5).uniform(1, 4, (2, 24, 30)).astype(np.float32)
    large = F.interpolate(torch.from_numpy(small)[None], shape, mode="bilinear", align_corners=False)[0].numpy()
    found = metrics_of(small, gt, PROTOCOLS[name], sequence="rectified01", is_disparity=True)
    assert same(found, metrics_of(1 / large, gt, PROTOCOLS[name], sequence="rectified01"), rel=1e-4)


@pytest.mark.parametrize(
    ("sequence", "columns"), [("rectified14", slice(180, 590)), ("rectified13", slice(None)), ("rectified01", slice(None))]
)
def test_hamlyn_cuts_later_sequences(sequence, columns):
    pred, gt = scene()
    found = metrics_of(pred, gt, PROTOCOLS["hamlyn"], sequence=sequence)
    assert same(found, median_scaled(pred, gt, 150.0, columns))
    other = slice(None) if columns != slice(None) else slice(180, 590)
    assert not same(found, median_scaled(pred, gt, 150.0, other), rel=1e-4)
    assert not same(found, median_scaled(pred, gt, 300.0, columns), rel=1e-3)


def test_hamlyn_takes_a_prediction_of_the_crop_and_says_when_it_cannot_know():
    pred, gt = scene()
    of_crop = np.ascontiguousarray(pred[:, :, 180:590])
    assert same(metrics_of(of_crop, gt, PROTOCOLS["hamlyn"], sequence="rectified20"), median_scaled(pred, gt, 150.0, slice(180, 590)))
    score = score_depth([0], lambda i: DepthPair(pred[i], gt[i]), PROTOCOLS["hamlyn"], unit="mm", is_metric=False, sequence="tissue")
    assert "holds none" in score.notes[0] and score.metrics
    assert sequence_number("hamlyn/rectified14/color") == 14 and sequence_number("tissue") is None


def test_c3vd_endodac_cuts_the_middle_and_caps_at_a_hundred():
    pred, gt = scene(1, (1080, 1350), low=1.0, high=120.0)
    found = metrics_of(pred, gt, PROTOCOLS["c3vd-endodac"])
    middle = {"rows": slice(180, 900), "columns": slice(200, 1150)}
    assert same(found, median_scaled(pred, gt, 100.0, **middle))
    assert not same(found, median_scaled(pred, gt, 100.0), rel=1e-4)
    assert not same(found, median_scaled(pred, gt, 150.0, **middle), rel=1e-3)
    of_crop = np.ascontiguousarray(pred[:, 180:900, 200:1150])
    assert same(metrics_of(of_crop, gt, PROTOCOLS["c3vd-endodac"]), found)
    with pytest.raises(ReconError, match="own resolution"):
        metrics_of(pred[:, ::5, ::5], gt[:, ::5, ::5], PROTOCOLS["c3vd-endodac"])


def deviation_aligned(pred, gt) -> tuple[np.ndarray, np.ndarray]:
    """EndoDAV's alignment of a whole sequence held in memory."""
    mask = (gt > 1e-3) & (gt < 150)
    g, p = gt[mask].astype(np.float64), pred[mask].astype(np.float64)
    t_gt, t_pred = np.median(g), np.median(p)
    s_gt, s_pred = np.mean(np.abs(g - t_gt)), np.mean(np.abs(p - t_pred))
    return np.clip((pred - t_pred) * (s_gt / s_pred) + t_gt, 1e-3, 150), mask


def test_scared_video_fits_one_scale_and_shift_to_the_sequence():
    pred, gt = scene(4, (31, 43))
    aligned, mask = deviation_aligned(pred, gt)
    found = metrics_of(pred, gt, PROTOCOLS["scared-video"])
    assert same(found, mean_of([eigen(a[m], g[m]) for a, g, m in zip(aligned, gt, mask, strict=True)]))
    of_each = [deviation_aligned(p, g) for p, g in zip(pred, gt, strict=True)]
    assert not same(found, mean_of([eigen(a[m], g[m]) for (a, m), g in zip(of_each, gt, strict=True)]), rel=1e-2)
    score = score_depth(range(4), lambda i: DepthPair(pred[i], gt[i]), PROTOCOLS["scared-video"], unit="mm", is_metric=False)
    shown = aligned_depth(DepthPair(pred[2], gt[2]), PROTOCOLS["scared-video"], "scale_shift", score.fits)
    assert shown == pytest.approx(np.where(mask[2], aligned[2], 0), rel=1e-4, abs=2e-3)


def test_scared_video_by_hand():
    gt = np.array([[[10.0, 20.0]], [[30.0, 60.0]]], np.float32)
    pred = np.array([[[1.0, 2.0]], [[3.0, 10.0]]], np.float32)
    # Medians 25 and 2.5, mean deviations 15 and 2.5: a scale of 6 and a shift of 10 give 16, 22, 28, 70.
    score = score_depth([0, 1], lambda i: DepthPair(pred[i], gt[i]), PROTOCOLS["scared-video"], unit="mm", is_metric=False)
    assert score.fits["sequence_scale"] == pytest.approx(6) and score.fits["sequence_shift"] == pytest.approx(10)
    assert score.metrics[1].name == "abs_rel" and score.metrics[1].value == pytest.approx(((0.6 + 0.1) / 2 + (2 / 30 + 1 / 6) / 2) / 2)


def test_servct_official_scales_nothing_and_shows_its_coverage():
    gt = np.array([[[50.0, 60.0, 70.0, 80.0, 0.0]]], np.float32)
    pred = np.array([[[51.0, 57.0, 0.0, 80.0, 9.0]]], np.float32)
    found = metrics_of(pred, gt, PROTOCOLS["servct-official"])
    assert found == pytest.approx({"coverage": 0.75, "rmse": np.sqrt(10 / 3), "mae": 4 / 3, "median_ae": 1.0})
    assert same(metrics_of(pred + 200 * (pred > 0), gt, PROTOCOLS["servct-official"]), {"mae": (201 + 197 + 200) / 3})
    score = score_depth([0], lambda i: DepthPair(pred[i], gt[i]), PROTOCOLS["servct-official"], unit="mm", is_metric=False)
    assert score.metrics == [] and "not computable" in score.notes[0]


def test_endosynth_counts_two_centimetres_unscaled_and_relative_errors_scaled():
    gt = np.array([[[100.0, 200.0, 250.0, 400.0]]], np.float32)
    pred = np.array([[[119.0, 220.0, 180.0, 390.0]]], np.float32)
    found = metrics_of(pred, gt, PROTOCOLS["endosynth-metric"])
    assert found == pytest.approx({"coverage": 1, "mae": (19 + 20 + 70 + 10) / 4, "acc_2cm": 0.5})
    assert metrics_of(7 * gt, gt, PROTOCOLS["endosynth-relative"]) == pytest.approx(
        {"coverage": 1, "abs_rel": 0, "delta_1.25": 1}, abs=1e-6
    )
    scaled = pred[0, 0] * (225 / 200)
    assert metrics_of(pred, gt, PROTOCOLS["endosynth-relative"])["abs_rel"] == pytest.approx(np.mean(np.abs(scaled - gt) / gt))


def ppsnet(pred, gt_mm) -> dict[str, float]:
    """PPSNet's test script in torch, from the network's 518-pixel depth (past its clamp) and C3VD's map in mm."""
    height, width = gt_mm.shape
    gt = torch.from_numpy(gt_mm / 100).float()[None, None]
    gt = F.interpolate(gt, (518, int(518 * width / height)), mode="bilinear", align_corners=False)
    left = round((gt.shape[-1] - 518) / 2)
    gt = F.interpolate(gt[..., left : left + 518].clamp(0, 1), (384, 384), mode="bicubic").clamp(0, 1)
    out = torch.from_numpy(pred).float()[None, None]
    out = F.interpolate(out / out.max(), (384, 384), mode="bicubic").clamp(0, 1)
    gt, out = (gt * 65535.0 * 0.000001525).numpy().ravel(), (out * 65535.0 * 0.000001525).numpy().ravel()
    out = out * scipy.optimize.leastsq(lambda s: np.median((gt - s * out) ** 2), 1.0)[0][0]
    relative = np.abs(gt - out) / (gt + 1e-6)
    return {
        "abs_rel": relative.mean(),
        "sq_rel": 1000 * np.mean((gt - out) ** 2 / (gt + 1e-6)),
        "rmse": 1000 * np.sqrt(np.mean((gt - out) ** 2)),
        "rmse_log": np.sqrt(np.mean((np.log(gt + 1e-6) - np.log(out + 1e-6)) ** 2)),
        "acc_rel_0.1": np.mean(relative < 0.1),
    }


def test_c3vd_ppsnet_agrees_with_its_script_in_torch():
    y, x = np.mgrid[:1080, :1350] / 1000
    gt = (50 + 30 * np.sin(5 * x) + 25 * np.cos(7 * y)).astype(np.float32)
    gt[:40] = 0  # unknown truth counts as depth 0, and float rounding beside it is divided by a millionth
    square = F.interpolate(torch.from_numpy(gt)[None, None, :, 135:1215], (518, 518), mode="bilinear")[0, 0].numpy()
    pred = (0.004 * square * (1 + 0.2 * np.sin(40 * square / 50)) + 0.02).astype(np.float32)
    expected = ppsnet(pred, gt)
    found = metrics_of(pred[None], gt[None], PROTOCOLS["c3vd-ppsnet"])
    assert found.pop("coverage") == 1
    assert set(found) == set(expected) and same(found, expected, rel=4e-3)
    as_disparity = metrics_of((1 / pred)[None], gt[None], PROTOCOLS["c3vd-ppsnet"], is_disparity=True)
    assert same(as_disparity, expected, rel=4e-3)
    clamped = metrics_of((0.15 / pred)[None], gt[None], PROTOCOLS["c3vd-ppsnet"], is_disparity=True)
    assert pred.max() > 0.15 and same(clamped, ppsnet(np.minimum(pred / 0.15, 1), gt), rel=4e-3)
    assert not same(clamped, expected, rel=1e-2)


def test_c3vd_ppsnet_by_hand():
    gt = np.full((1, 518, 518), 50.0, np.float32)
    pred = gt.copy()
    pred[:, :100] = 25.0
    found = metrics_of(pred, gt, PROTOCOLS["c3vd-ppsnet"])
    # The median pixel fits exactly; about 100 / 518 of the rows are half as deep as they should be.
    assert found["abs_rel"] == pytest.approx(0.5 * 100 / 518, rel=0.05) and found["acc_rel_0.1"] == pytest.approx(418 / 518, abs=0.01)
    assert found["rmse"] == pytest.approx(25 * 0.9994 * np.sqrt(100 / 518), rel=0.05)


def test_named_protocols_need_millimetres_where_they_count_them():
    pred, gt = scene(1, (20, 50))
    for name, protocol in PROTOCOLS.items():
        if name in (OWN, "servct-official", "endosynth-relative", "c3vd-endodac"):
            continue
        score = score_depth([0], lambda i: DepthPair(pred[i], gt[i]), protocol, unit="unitless", is_metric=True)
        assert score.metrics == [] and "not computable" in score.notes[0], name


def test_protocols_are_named_by_their_keys_and_say_their_source():
    assert set(PROTOCOLS) == {OWN, "scared-video", "servct-official", "c3vd-ppsnet", "endosynth-metric", *MEDIAN_SCALED}
    for name, protocol in PROTOCOLS.items():
        assert protocol.name == name and protocol.source and protocol.title
        assert not protocol.clamps or protocol.max_truth is not None
    assert PROTOCOLS[OWN].metric_name is None
    assert Crop(None, None, 0, 1).applies_to("anything")
