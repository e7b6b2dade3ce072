"""Errors of camera paths against hand-computed cases and evo."""

from __future__ import annotations

import numpy as np
import pytest
from evo.core import metrics as evo
from evo.core.trajectory import PosePath3D

from recon.eval.drift import drift, pairs_at, relative_errors, rotation_errors_rad, scale_drift_percent, travelled
from recon.eval.trajectory import (
    centre_errors,
    is_nearly_straight,
    is_roll_lost,
    match,
    roll_error_rad,
    score_trajectory,
    similarity,
)
from recon.geometry.alignment import umeyama
from recon.geometry.se3 import exp
from recon.geometry.similarity import Similarity
from recon.types import ReconError, Trajectory

TURN = exp(np.array([3.0, -1.0, 2.0, 0.4, -0.2, 1.1]))
EVO_STATISTICS = {
    "ate_rmse": evo.StatisticsType.rmse,
    "ate_mean": evo.StatisticsType.mean,
    "ate_median": evo.StatisticsType.median,
    "ate_max": evo.StatisticsType.max,
}


def value(score, name, alignment=None) -> float:
    found = [m.value for m in score.metrics if m.name == name and alignment in (None, m.alignment)]
    assert len(found) == 1, f"{name} {alignment}: {found}"
    return found[0]


def path(num=30, seed=0) -> np.ndarray:
    return exp(np.cumsum(np.random.default_rng(seed).normal(0, 0.1, (num, 6)), axis=0))


def long_path(num=400, seed=0) -> np.ndarray:
    """A smooth path of about 120 mm whose camera turns."""
    s = np.linspace(0, 1, num)
    rng = np.random.default_rng(seed)
    poses = exp(np.concatenate([np.zeros((num, 3)), np.outer(s, [0.5, 0.3, -0.7])], axis=1))
    poses[:, :3, 3] = np.stack([25 * np.sin(3 * s), 20 * np.cos(2 * s), 100 * s], axis=1) + 0.01 * rng.normal(size=(num, 3))
    return poses


def disturbed(gt: np.ndarray, sigma=0.05, seed=1) -> np.ndarray:
    return Similarity(1.7, TURN[:3, :3], TURN[:3, 3]).poses(gt) @ exp(np.random.default_rng(seed).normal(0, sigma, (len(gt), 6)))


def line(num=60, sideways=0.0, seed=0) -> np.ndarray:
    """A 60 mm insertion along z, with sideways motion of one period and its amplitude in mm."""
    poses = np.tile(np.eye(4), (num, 1, 1))
    s = np.linspace(0, 1, num)
    poses[:, :3, 3] = np.stack([sideways * np.sin(2 * np.pi * s), sideways * np.cos(2 * np.pi * s), 60 * s], axis=1)
    return poses


def trajectory(poses, unit="mm", indices=None) -> Trajectory:
    n = len(poses)
    return Trajectory(np.arange(n) if indices is None else np.array(indices), np.arange(n, dtype=np.float64), poses, unit)


def scored(pred, gt, unit="mm", indices=None):
    return score_trajectory(trajectory(pred, unit, indices), trajectory(gt, "mm", indices))


def evo_pair(gt, pred, alignment) -> tuple[PosePath3D, PosePath3D]:
    reference, estimate = PosePath3D(poses_se3=list(gt)), PosePath3D(poses_se3=list(pred))
    if alignment == "first_pose":
        estimate.align_origin(reference)
    elif alignment != "none":
        estimate.align(reference, correct_scale=alignment == "sim3_trajectory")
    return reference, estimate


def evo_rpe(pair, relation, **options) -> float:
    rpe = evo.RPE(relation, **options)
    rpe.process_data(pair)
    return rpe.get_statistic(evo.StatisticsType.rmse)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("gt", [path(), long_path(), line(sideways=1.0)], ids=["random", "smooth", "straight"])
@pytest.mark.parametrize("alignment", ["none", "first_pose", "se3_trajectory", "sim3_trajectory"])
def test_errors_agree_with_evo(gt, alignment):
    pred = disturbed(gt)
    ours, pair = scored(pred, gt), evo_pair(gt, pred, alignment)
    ape = evo.APE(evo.PoseRelation.translation_part)
    ape.process_data(pair)
    for name, statistic in EVO_STATISTICS.items():
        assert value(ours, name, alignment) == pytest.approx(ape.get_statistic(statistic), abs=1e-9)
    angles = evo.APE(evo.PoseRelation.rotation_angle_deg)
    angles.process_data(pair)
    assert value(ours, "rotation_mean", alignment) == pytest.approx(angles.get_statistic(evo.StatisticsType.mean), abs=1e-9)
    for name, relation in (("translation", evo.PoseRelation.translation_part), ("rotation", evo.PoseRelation.rotation_angle_deg)):
        frames = evo_rpe(pair, relation, delta=1, delta_unit=evo.Unit.frames)
        assert value(ours, f"rpe_{name}", alignment) == pytest.approx(frames, abs=1e-9)
        if travelled(gt)[-1] > 10:
            lengths = {"delta": 10, "delta_unit": evo.Unit.meters, "rel_delta_tol": 0.1, "all_pairs": True, "pairs_from_reference": True}
            assert value(ours, f"rpe_{name}_10mm", alignment) == pytest.approx(evo_rpe(pair, relation, **lengths), abs=1e-9)


def test_paths_equal_up_to_a_similarity_have_no_aligned_error():
    gt = long_path()
    score = scored(Similarity(0.2, TURN[:3, :3], np.array([5.0, -2.0, 3.0])).poses(gt), gt)
    assert not score.notes
    for name in ("ate_rmse", "ate_max", "rpe_translation", "rpe_rotation", "rpe_translation_10mm", "rotation_mean", "drift_percent"):
        assert value(score, name, "sim3_trajectory") == pytest.approx(0, abs=1e-5)
    assert value(score, "ate_rmse", "none") > 1 and value(score, "ate_rmse", "se3_trajectory") > 0.1
    assert value(score, "scale_error", "none") == pytest.approx(-80) and value(score, "scale_drift") == pytest.approx(0, abs=1e-9)
    found = score.alignments["sim3_trajectory"]
    assert (
        found.scale == pytest.approx(5) and np.allclose(found.R, TURN[:3, :3].T) and np.allclose(found.t, -5 * found.R @ [5.0, -2.0, 3.0])
    )


def test_the_scale_error_is_that_of_the_claim_with_its_sign():
    gt = long_path()
    for scale in (1.05, 0.95):
        score = scored(Similarity(scale, TURN[:3, :3], np.zeros(3)).poses(gt), gt)
        (error,) = [m for m in score.metrics if m.name == "scale_error"]
        assert error.value == pytest.approx(100 * (scale - 1)) and error.alignment == "none" and error.lower_is_better is None
        # What the claim was wrong by is gone after an alignment of the scale.
        assert score.alignments["sim3_trajectory"].scale * scale == pytest.approx(1)


def test_first_pose_alone_is_trusted_by_its_alignment():
    gt = long_path()
    score = scored(TURN @ gt, gt)
    assert value(score, "ate_max", "first_pose") == pytest.approx(0, abs=1e-9)
    bent = gt.copy()
    bent[0] = bent[0] @ exp(np.array([0, 0, 0, 0.1, 0, 0]))
    assert value(scored(bent, gt), "ate_max", "first_pose") > 1 > value(scored(bent, gt), "ate_max", "se3_trajectory")


def test_ate_and_rpe_by_hand():
    gt = line(3)
    gt[:, 2, 3] = [0, 1, 2]
    pred = gt.copy()
    pred[2, 1, 3] = 3
    assert centre_errors(pred, gt) == pytest.approx([0, 0, 3])
    steps = np.array([0, 1]), np.array([1, 2])
    assert relative_errors(pred, gt, steps)[0] == pytest.approx([0, 3])
    pred[1] = pred[1] @ exp(np.array([0, 0, 0, 0, 0, 0.2]))
    assert rotation_errors_rad(pred, gt) == pytest.approx([0, 0.2, 0])
    assert relative_errors(pred, gt, steps)[1] == pytest.approx([0.2, 0.2])
    score = scored(pred, gt)
    assert value(score, "ate_rmse", "none") == pytest.approx(np.sqrt(3)) and value(score, "ate_mean", "none") == pytest.approx(1)
    assert value(score, "ate_percent_of_path", "none") == pytest.approx(100 * np.sqrt(3) / 2)
    assert value(score, "rpe_rotation", "none") == pytest.approx(np.degrees(0.2))
    assert [row["none.ate"] for row in score.frames] == pytest.approx([0, 0, 3])
    assert [row["none.rotation_deg"] for row in score.frames] == pytest.approx([0, np.degrees(0.2), 0])


def test_a_step_over_a_missing_frame_is_no_step_of_one_frame():
    gt = path(6)
    pred = gt.copy()
    pred[3:, 0, 3] += 5
    assert value(scored(pred, gt, indices=[0, 1, 2, 8, 9, 10]), "rpe_translation", "none") == pytest.approx(0, abs=1e-9)
    assert any("1 of 5 steps" in note for note in scored(pred, gt, indices=[0, 1, 2, 8, 9, 10]).notes)
    sparse = scored(pred, gt, indices=[0, 2, 4, 6, 8, 10])
    assert not any(m.name == "rpe_translation" for m in sparse.metrics)
    assert any("rpe over one frame is not computable" in note for note in sparse.notes)


def test_pairs_at_a_length_of_path():
    assert [x.tolist() for x in pairs_at(np.array([0, 4.0, 9.5, 9.5, 14.5]), 10.0)] == [[0, 1], [2, 4]]
    assert len(pairs_at(np.arange(5.0), 10.0)[0]) == 0


def test_drift_by_hand_and_against_a_plain_loop():
    gt = line(101)
    gt[:, 2, 3] = np.arange(101)
    longer = gt.copy()
    longer[:, 2, 3] *= 1.03
    assert drift(longer, gt) == pytest.approx((3.0, 0.0))
    turning = gt @ exp(np.outer(np.arange(101), [0, 0, 0, 0, 0, 0.01]))
    assert drift(turning, gt)[1] == pytest.approx(np.degrees(0.01))
    gt, pred = long_path(200), disturbed(long_path(200))
    position = travelled(gt)
    errors = []
    for length in range(10, 90, 10):
        for i in range(200):
            ahead = [j for j in range(i, 200) if position[j] > position[i] + length]
            if ahead:
                error = np.linalg.inv(np.linalg.inv(gt[i]) @ gt[ahead[0]]) @ np.linalg.inv(pred[i]) @ pred[ahead[0]]
                errors.append(np.linalg.norm(error[:3, 3]) / (position[ahead[0]] - position[i]))
    assert drift(pred, gt)[0] == pytest.approx(100 * np.mean(errors), rel=1e-9)
    with pytest.raises(ReconError, match="at least 10 mm"):
        drift(pred[:5], gt[:5])


def test_scale_drift_is_the_growth_of_the_scale_from_end_to_end():
    gt = line(1001)
    s = gt[:, 2, 3] / 60
    for growth in (1.2, 1 / 1.2):
        pred = gt.copy()
        pred[:, 2, 3] = 60 * (growth**s - 1) / np.log(growth)
        assert scale_drift_percent(pred, gt) == pytest.approx(100 * abs(growth - 1), rel=2e-3)
        assert scale_drift_percent(3 * pred + 1, gt) == pytest.approx(scale_drift_percent(pred, gt))
    pred = gt.copy()
    pred[300:700] = pred[300]
    with pytest.raises(ReconError, match="stands still"):
        scale_drift_percent(pred, gt)


def test_only_common_frames_are_compared():
    gt = trajectory(path(10))
    pred = Trajectory(np.array([8, 2, 20]), np.arange(3.0), gt.T_world_camera[[8, 2, 0]], "mm")
    a, b = match(pred, gt)
    assert len(a) == 2 and np.array_equal(a, b)


def test_paths_that_determine_no_alignment_give_a_note_and_no_nan():
    short = scored(path(2), path(2))
    assert short.metrics == [] and "not computable" in short.notes[0]
    still = scored(np.tile(np.eye(4), (5, 1, 1)), line(5))
    assert {m.alignment for m in still.metrics if m.protocol is None} == {"none", "first_pose"}
    assert any("aligned errors are not computable" in note for note in still.notes)
    unscaled = scored(line(5), np.tile(np.eye(4), (5, 1, 1)), unit="unitless")
    assert {m.protocol for m in unscaled.metrics} == {"snippet-5"} and unscaled.notes
    crossing = line(5)
    crossing[:, 2, 3] = [1, -1, 0, -1, 1]
    crossing[:, 0, 3] = [0, 1, 0, 1, 0]
    for score in (still, unscaled, scored(crossing, line(5))):
        assert all(np.isfinite(m.value) for m in score.metrics)


def test_without_a_common_unit_only_scaled_alignments_are_left():
    score = scored(disturbed(long_path()), long_path(), unit="unitless")
    assert {m.alignment for m in score.metrics if m.protocol is None} == {"sim3_trajectory"}
    assert not any(m.name == "scale_error" for m in score.metrics)
    assert any("not both paths are in millimetres" in note for note in score.notes)


def test_similarity_maps_predicted_centres_to_true_ones():
    gt = path()
    pred = Similarity(2.0, TURN[:3, :3], np.ones(3)).poses(gt)
    assert similarity(pred, gt, with_scale=True).poses(pred) == pytest.approx(gt)


def test_a_straight_path_with_measurable_sideways_motion_is_aligned_by_its_centres():
    gt = line(sideways=1.0)
    pred = disturbed(gt, sigma=0.01) @ exp(np.array([0, 0, 0, 0, 0, 1.0]))  # orientations that say something else
    assert is_nearly_straight(gt) and not is_roll_lost(pred, gt)
    assert np.array_equal(similarity(pred, gt, True).matrix, umeyama(pred[:, :3, 3], gt[:, :3, 3], True).matrix)


@pytest.mark.parametrize("sideways", [0.0, 0.05])
def test_a_straight_path_takes_a_lost_roll_from_the_orientations(sideways):
    rng = np.random.default_rng(0)
    gt = line(sideways=sideways)
    pred = TURN @ gt
    pred[:, :3, 3] = 0.5 * pred[:, :3, 3] + 0.1 * rng.normal(size=(60, 3))
    pred[:, :3, :3] = pred[:, :3, :3] @ exp(np.concatenate([np.zeros((60, 3)), rng.normal(0, 0.02, (60, 3))], axis=1))[:, :3, :3]
    assert is_roll_lost(pred, gt)
    found = similarity(pred, gt, with_scale=True)
    assert found.scale == pytest.approx(2.0, rel=0.01)
    roll = (found.R @ TURN[:3, :3])[:2, :2]
    assert np.degrees(abs(np.arctan2(roll[1, 0], roll[0, 0]))) < 1
    assert centre_errors(found.poses(pred), gt).mean() < 0.6
    assert any("roll from the orientations" in note for note in scored(pred, gt).notes)


def test_a_roll_that_nothing_determines_is_said():
    gt = line()
    pred = gt.copy()
    pred[::2, :3, :3] = np.diag([-1.0, -1.0, 1.0])
    with pytest.raises(ReconError, match="disagree on the roll"):
        similarity(pred, gt, with_scale=True)
    assert any("not computable" in note for note in scored(pred, gt).notes)


def test_the_stated_error_of_the_roll_is_what_repetition_shows():
    gt = line(200, sideways=1.0)
    rng = np.random.default_rng(3)
    stated, rolls = [], []
    for _ in range(200):
        pred = gt.copy()
        pred[:, :3, 3] += 0.5 * rng.normal(size=(200, 3))
        stated.append(roll_error_rad(pred, gt))
        R = umeyama(pred[:, :3, 3], gt[:, :3, 3]).R
        rolls.append(np.arctan2(R[1, 0], R[0, 0]))
    assert np.sqrt(np.mean(np.square(stated))) == pytest.approx(np.std(rolls), rel=0.2)


def test_distances_carry_the_noise_floor_and_means_an_interval():
    gt = long_path()
    score = score_trajectory(trajectory(disturbed(gt)), trajectory(gt), noise_floor=0.321, seed=4)
    mean, rmse = (next(m for m in score.metrics if m.name == name and m.alignment == "se3_trajectory") for name in ("ate_mean", "ate_rmse"))
    assert mean.noise_floor == rmse.noise_floor == 0.321
    assert mean.interval[0] < mean.value < mean.interval[1] and rmse.interval[0] < rmse.value < rmse.interval[1]
    again = score_trajectory(trajectory(disturbed(gt)), trajectory(gt), noise_floor=0.321, seed=4)
    assert again.metrics == score.metrics
    assert not any("no interval" in note for note in score.notes)
    few = scored(disturbed(gt)[:30], gt[:30])
    assert all(m.interval is None for m in few.metrics) and sum("no interval" in note for note in few.notes) == 1


def test_the_figure_of_c3vd_tables_stands_only_where_it_is_asked_for():
    gt = long_path()
    plain, asked = (score_trajectory(trajectory(disturbed(gt)), trajectory(gt), with_c3vd_legacy=wanted) for wanted in (False, True))
    assert [m.protocol for m in asked.metrics[len(plain.metrics) :]] == ["c3vd-legacy"] and asked.metrics[
        : len(plain.metrics)
    ] == plain.metrics
