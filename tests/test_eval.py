"""Metrics against hand-computed cases and independent oracles (evo for paths, trimesh for distances)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import trimesh

from recon.eval.depth import depth_errors, depth_metrics, pair
from recon.eval.surface import distances, f_score, sample_surface, surface_metrics
from recon.eval.trajectory import (
    ate_rmse,
    is_nearly_straight,
    match,
    relative_errors,
    rotation_errors_rad,
    similarity,
    trajectory_metrics,
    transformed,
)
from recon.geometry.se3 import exp
from recon.types import Mesh, Trajectory


def value(metrics, name, alignment=None) -> float:
    found = [m.value for m in metrics if m.name == name and alignment in (None, m.alignment)]
    assert len(found) == 1, f"{name} {alignment}: {found}"
    return found[0]


def path(num=30, seed=0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return exp(np.cumsum(rng.normal(0, 0.1, (num, 6)), axis=0))


def trajectory(poses, unit="mm") -> Trajectory:
    n = len(poses)
    return Trajectory(np.arange(n), np.arange(n, dtype=np.float64), poses, unit)


def square(size=10.0, z=0.0, unit="mm") -> Mesh:
    corners = np.array([[0, 0, z], [size, 0, z], [size, size, z], [0, size, z]])
    return Mesh(corners, np.array([[0, 1, 2], [0, 2, 3]]), unit=unit)


def test_depth_errors_by_hand():
    errors = depth_errors(np.array([1.0, 3.0]), np.array([2.0, 3.0]))
    assert errors["abs_rel"] == pytest.approx(0.25)
    assert errors["sq_rel"] == pytest.approx(0.25)
    assert errors["rmse"] == pytest.approx(np.sqrt(0.5))
    assert errors["mae"] == pytest.approx(0.5)
    assert errors["rmse_log"] == pytest.approx(np.log(2) / np.sqrt(2))
    assert errors["delta_1.25"] == pytest.approx(0.5)


def test_depth_alignments_remove_exactly_their_own_factor():
    gt = np.random.default_rng(0).uniform(10, 40, (3, 8, 9))
    factors = np.array([2.0, 2.0, 4.0])

    pairs = [pair(i, (gt[i] / factors[i]).astype(np.float32), gt[i].astype(np.float32)) for i in range(3)]
    metrics, notes = depth_metrics(pairs, "mm", is_metric=True)
    assert not notes
    assert value(metrics, "abs_rel", "scale_frame") == pytest.approx(0, abs=1e-6)
    assert value(metrics, "abs_rel", "scale_sequence") == pytest.approx(0.5 / 3, abs=1e-6)
    assert value(metrics, "abs_rel", "none") == pytest.approx((0.5 + 0.5 + 0.75) / 3, abs=1e-6)
    assert value(metrics, "scale_drift") == pytest.approx(np.std(factors) / np.mean(factors), abs=1e-6)
    assert {m.unit for m in metrics if m.name == "rmse"} == {"mm"}
    assert not any(m.lower_is_better for m in metrics if m.name == "delta_1.25")


def test_depth_without_a_unit_has_no_unaligned_error():
    metrics, _ = depth_metrics([pair(0, np.ones((4, 4), np.float32), np.full((4, 4), 2, np.float32))], "mm", is_metric=False)
    assert {m.alignment for m in metrics if m.name == "abs_rel"} == {"scale_sequence", "scale_frame"}


def test_unknown_pixels_do_not_count_and_almost_empty_predictions_are_left_out():
    gt = np.full((10, 10), 5.0, np.float32)
    pred = np.zeros_like(gt)
    pred[0, :2] = 1
    assert pair(0, pred, gt) is None
    pred[:5] = 1
    assert len(pair(0, pred, gt).gt) == 50
    assert pair(0, pred, np.zeros_like(gt)) is None
    large = np.random.default_rng(0).uniform(1, 2, (400, 500)).astype(np.float32)
    few = pair(0, large, large + 1)
    assert 20_000 < len(few.gt) <= 40_000 and np.mean(few.pred) == pytest.approx(large.mean(), rel=0.01)
    metrics, notes = depth_metrics([], "mm", is_metric=True)
    assert metrics == [] and "not computable" in notes[0]


def test_paths_equal_up_to_a_similarity_have_no_aligned_error():
    gt = path()
    pred = transformed(gt, 0.2, exp(np.array([0, 0, 0, 0.3, -0.5, 1.0]))[:3, :3], np.array([5.0, -2.0, 3.0]))
    metrics, notes = trajectory_metrics(trajectory(pred), trajectory(gt))
    assert not notes
    for name in ("ate_rmse", "rpe_translation", "rpe_rotation", "rotation_mean"):
        assert value(metrics, name, "sim3_trajectory") == pytest.approx(0, abs=1e-6)
    assert value(metrics, "ate_rmse", "none") > 1
    assert value(metrics, "ate_rmse", "se3_trajectory") > 0.1
    assert value(metrics, "scale_error") == pytest.approx(80)


def test_ate_and_rpe_by_hand():
    gt = np.tile(np.eye(4), (3, 1, 1))
    gt[:, 0, 3] = [0, 1, 2]
    pred = gt.copy()
    pred[2, 1, 3] = 3
    assert ate_rmse(pred, gt) == pytest.approx(np.sqrt(3))
    assert relative_errors(pred, gt)[0] == pytest.approx(3 / np.sqrt(2))
    pred[1] = pred[1] @ exp(np.array([0, 0, 0, 0, 0, 0.2]))
    assert rotation_errors_rad(pred, gt) == pytest.approx([0, 0.2, 0])
    assert relative_errors(pred, gt)[1] == pytest.approx(0.2)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_ate_and_rpe_agree_with_evo():
    from evo.core import metrics as evo_metrics
    from evo.core.trajectory import PosePath3D

    gt, pred = path(), transformed(path(), 1.7, np.eye(3), np.ones(3)) @ exp(np.random.default_rng(1).normal(0, 0.05, (30, 6)))
    ours, _ = trajectory_metrics(trajectory(pred), trajectory(gt))
    for alignment, with_scale in (("se3_trajectory", False), ("sim3_trajectory", True)):
        reference, estimate = PosePath3D(poses_se3=list(gt)), PosePath3D(poses_se3=list(pred))
        estimate.align(reference, correct_scale=with_scale)
        ape = evo_metrics.APE(evo_metrics.PoseRelation.translation_part)
        ape.process_data((reference, estimate))
        assert value(ours, "ate_rmse", alignment) == pytest.approx(ape.get_statistic(evo_metrics.StatisticsType.rmse))
        for name, relation in (
            ("rpe_translation", evo_metrics.PoseRelation.translation_part),
            ("rpe_rotation", evo_metrics.PoseRelation.rotation_angle_deg),
        ):
            rpe = evo_metrics.RPE(relation, delta=1, delta_unit=evo_metrics.Unit.frames)
            rpe.process_data((reference, estimate))
            assert value(ours, name, alignment) == pytest.approx(rpe.get_statistic(evo_metrics.StatisticsType.rmse), rel=1e-6)


def test_only_common_frames_are_compared():
    gt = trajectory(path(10))
    pred = Trajectory(np.array([8, 2, 20]), np.arange(3.0), gt.T_world_camera[[8, 2, 0]], "mm")
    a, b = match(pred, gt)
    assert len(a) == 2 and np.array_equal(a, b)


def test_paths_that_determine_no_alignment_give_a_note_and_no_nan():
    short, notes = trajectory_metrics(trajectory(path(2)), trajectory(path(2)))
    assert short == [] and "not computable" in notes[0]
    line = np.tile(np.eye(4), (5, 1, 1))
    line[:, 0, 3] = np.arange(5)
    metrics, notes = trajectory_metrics(trajectory(line), trajectory(line))
    assert {m.alignment for m in metrics} == {"none", "se3_trajectory", "sim3_trajectory"} and "orientations" in notes[0]
    assert max(m.value for m in metrics if m.name == "ate_rmse") < 1e-9
    still, notes = trajectory_metrics(trajectory(line * 1.0, "unitless"), trajectory(np.tile(np.eye(4), (5, 1, 1))))
    assert still == [] and notes


def test_samples_are_uniform_over_area_and_seeded():
    mesh = square()
    points = sample_surface(mesh, 20_000, 3)
    assert np.array_equal(points, sample_surface(mesh, 20_000, 3))
    assert np.histogram2d(points[:, 0], points[:, 1], bins=4)[0].min() > 0.9 * 20_000 / 16
    small = replace(mesh, faces=np.concatenate([mesh.faces, [[0, 1, 1]]]))
    assert np.isfinite(sample_surface(small, 1000, 0)).all()


def test_distances_agree_with_trimesh():
    body = trimesh.creation.icosphere(2, 10.0)
    offset = np.array([300.0, -200.0, 500.0])
    mesh = Mesh(np.array(body.vertices) + offset, np.array(body.faces, np.int64))
    points = np.random.default_rng(0).normal(0, 12, (200, 3))
    _, oracle, _ = trimesh.proximity.closest_point(body, points)
    assert distances(points + offset, mesh) == pytest.approx(oracle, abs=1e-3)


def test_surface_metrics_of_two_parallel_squares_by_hand():
    metrics, _ = surface_metrics(square(z=1.5), square(), "none", median_depth=30.0)
    for name in ("accuracy_mean", "accuracy_median", "accuracy_p95", "completeness_mean", "chamfer_l1", "hd95"):
        assert value(metrics, name) == pytest.approx(1.5, abs=1e-5)
    assert value(metrics, "f_1mm") == 0 and value(metrics, "f_2mm") == 1 and value(metrics, "coverage") == 1
    assert value(metrics, "accuracy_mean_percent_of_depth") == pytest.approx(5, abs=1e-4)


def test_a_half_covered_truth_costs_completeness_and_not_accuracy():
    half = square()
    half.vertices[:, 0] *= 0.5
    metrics, _ = surface_metrics(half, square(), "none")
    assert value(metrics, "accuracy_mean") == pytest.approx(0, abs=1e-5)
    assert value(metrics, "completeness_mean") == pytest.approx(1.25, rel=0.02)
    assert value(metrics, "recall_2mm") == pytest.approx(0.7, abs=0.01)
    assert value(metrics, "f_2mm") == pytest.approx(2 * 0.7 / 1.7, abs=0.01)


def test_thresholds_in_mm_exist_only_in_mm():
    metrics, _ = surface_metrics(square(unit="unitless"), square(unit="unitless"), "none")
    assert not any("mm" in m.name or m.unit == "mm" for m in metrics)


def test_empty_surfaces_give_a_note():
    empty = Mesh(np.zeros((0, 3)), np.zeros((0, 3), np.int64))
    flat = Mesh(np.zeros((3, 3)), np.array([[0, 1, 2]]))
    for mesh in (empty, flat):
        metrics, notes = surface_metrics(mesh, square(), "none")
        assert metrics == [] and "not computable" in notes[0]
    assert f_score(0.0, 0.0) == 0


def test_similarity_maps_predicted_centres_to_true_ones():
    gt = path()
    R = exp(np.array([0, 0, 0, 0.1, 0.2, 0.3]))[:3, :3]
    pred = transformed(gt, 2.0, R, np.ones(3))
    scale, R_back, t = similarity(pred, gt, with_scale=True)
    assert transformed(pred, scale, R_back, t) == pytest.approx(gt)


def test_a_straight_path_takes_its_roll_from_the_orientations():
    rng = np.random.default_rng(0)
    gt = np.tile(np.eye(4), (12, 1, 1))
    gt[:, 2, 3] = np.arange(12.0)
    gt[:, :3, 3] += 1e-3 * rng.normal(size=(12, 3))
    T = exp(np.array([3.0, -1.0, 2.0, 0.4, -0.2, 1.1]))
    pred = T @ gt
    pred[:, :3, 3] = 0.5 * pred[:, :3, 3] + 1e-3 * rng.normal(size=(12, 3))
    assert is_nearly_straight(gt)
    scale, R, t = similarity(pred, gt, with_scale=True)
    assert np.isclose(scale, 2.0, atol=1e-3)
    assert np.degrees(rotation_errors_rad(transformed(pred, scale, R, t), gt)).max() < 1e-4
