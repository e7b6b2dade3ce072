"""The arithmetic of published path protocols, by hand: 5-frame snippets, and EndoGSLAM's figure on C3VD."""

from __future__ import annotations

import numpy as np
import pytest

from recon.eval.c3vd_legacy import c3vd_legacy_metrics, legacy_ate
from recon.eval.snippets import snippet_errors, snippet_metrics
from recon.geometry.se3 import exp, inverse

RNG = np.random.default_rng(0)


def forward(num=6, step=1.0) -> np.ndarray:
    poses = np.tile(np.eye(4), (num, 1, 1))
    poses[:, 2, 3] = step * np.arange(num)
    return poses


def yawed(poses, degrees) -> np.ndarray:
    twists = np.zeros((len(poses), 6))
    twists[:, 4] = np.radians(degrees)
    return poses @ exp(twists)


def test_a_snippet_by_hand():
    gt = np.tile(np.eye(4), (4, 1, 1))
    gt[:, 2, 3] = 1
    pred = gt.copy()
    pred[1, 2, 3] = 3  # chained: 0 1 4 5 6 against 0 1 2 3 4
    ate, rotation = snippet_errors(pred, gt)
    scale = (1 + 8 + 15 + 24) / (1 + 16 + 25 + 36)
    expected = np.sqrt(np.sum((scale * np.array([0, 1, 4, 5, 6]) - np.arange(5)) ** 2)) / 5
    assert ate[0] == pytest.approx(expected) and rotation == pytest.approx(np.zeros(3))


def test_windows_at_the_end_are_shorter_as_in_the_script():
    gt = np.tile(np.eye(4), (4, 1, 1))
    gt[:, 2, 3] = 1
    pred = gt.copy()
    pred[3, 2, 3] = 2
    ate, _ = snippet_errors(pred, gt)
    assert len(ate) == 3
    scale = (1 + 6) / (1 + 9)  # the last window: positions 0 1 3 against 0 1 2
    assert ate[2] == pytest.approx(np.sqrt((scale - 1) ** 2 + (3 * scale - 2) ** 2) / 3)


def test_rotation_of_a_snippet_counts_the_first_frame_too():
    gt = np.tile(np.eye(4), (4, 1, 1))
    pred = np.tile(exp(np.array([0, 0, 0, 0, 0.1, 0])), (4, 1, 1))
    assert snippet_errors(pred, gt)[1][0] == pytest.approx((0 + 0.1 + 0.2 + 0.3 + 0.4) / 5)


def test_snippets_agree_with_a_plain_loop_over_random_poses():
    gt, pred = (exp(np.cumsum(RNG.normal(0, 0.1, (12, 6)), axis=0)) for _ in range(2))
    metrics, _ = snippet_metrics(pred, gt, np.arange(12), "mm")
    ates = []
    for start in range(10):
        chains = []
        for poses in (pred, gt):
            position, chain = np.eye(4), [np.zeros(3)]
            for i in range(start, min(start + 4, 11)):
                position = position @ np.linalg.inv(poses[i + 1]) @ poses[i]
                chain.append(position[:3, 3])
            chains.append(np.array(chain))
        scale = (chains[0] * chains[1]).sum() / (chains[0] ** 2).sum()
        ates.append(np.linalg.norm(scale * chains[0] - chains[1]) / len(chains[0]))
    values = {m.name: m.value for m in metrics}
    assert values["snippet_5_ate_mean"] == pytest.approx(np.mean(ates), abs=1e-12)
    assert values["snippet_5_ate_std"] == pytest.approx(np.std(ates), abs=1e-12)
    assert {m.protocol for m in metrics} == {"snippet-5"}


def test_no_window_reaches_over_a_missing_frame():
    gt = forward(6)
    pred = gt.copy()
    pred[3:, 0, 3] += 50
    metrics, _ = snippet_metrics(pred, gt, np.array([0, 1, 2, 7, 8, 9]), "mm")
    assert metrics[0].value == pytest.approx(0, abs=1e-12)
    metrics, notes = snippet_metrics(pred, gt, np.array([0, 1, 4, 5, 8, 9]), "mm")
    assert not metrics and "not computable" in notes[0]


def test_a_prediction_that_stands_still_has_the_whole_path_as_its_error():
    still = np.tile(np.eye(4), (6, 1, 1))
    metrics, _ = snippet_metrics(still, forward(6), np.arange(6), "mm")
    full, short = np.sqrt(1 + 4 + 9 + 16) / 5, [np.sqrt(1 + 4 + 9) / 4, np.sqrt(1 + 4) / 3]
    assert metrics[0].value == pytest.approx(np.mean([full, full, *short]))


def test_right_centres_are_wrong_by_the_legacy_figure_when_the_camera_turns():
    gt = forward(61)
    pred = yawed(gt, np.linspace(0, 4, 61))
    # Columns are -R^T c: the truth's lie on a line, the prediction's bend away by up to 60 sin(4 deg) mm.
    columns = -np.stack([inverse(inverse(pred[0]) @ T)[:3, 3] for T in pred])
    angles = np.radians(np.linspace(0, 4, 61))
    assert columns == pytest.approx(np.stack([-np.sin(angles), 0 * angles, np.cos(angles)], axis=1) * np.arange(61)[:, None])
    best = min(_mean_after_turn(columns, a) for a in np.radians(np.linspace(-6, 6, 2401)))
    assert legacy_ate(pred, gt) == pytest.approx(best, abs=0.02)
    # Sideways it is 60 * 4 deg * u^2, of which a line leaves a mean of 1 / (9 sqrt 3).
    assert legacy_ate(pred, gt) == pytest.approx(60 * np.radians(4) / (9 * np.sqrt(3)), rel=0.05)
    assert legacy_ate(gt, gt) == pytest.approx(0, abs=1e-12)


def _mean_after_turn(columns, angle) -> float:
    turned = columns @ np.array([[np.cos(angle), 0, -np.sin(angle)], [0, 1, 0], [np.sin(angle), 0, np.cos(angle)]])
    line = np.stack([0 * np.arange(61), 0 * np.arange(61), np.arange(61.0)], axis=1)
    return float(np.mean(np.linalg.norm(turned - turned.mean(axis=0) - line + line.mean(axis=0), axis=1)))


def test_wrong_centres_can_be_right_by_the_legacy_figure():
    gt = forward(61)
    w2c = inverse(yawed(gt, np.linspace(0, 4, 61)))
    w2c[:, :3, 3] = inverse(gt)[:, :3, 3]
    pred = inverse(w2c)
    assert np.linalg.norm(pred[:, :3, 3] - gt[:, :3, 3], axis=1).mean() > 0.3
    assert legacy_ate(pred, gt) == pytest.approx(0, abs=1e-9)


def test_the_legacy_figure_is_a_mean_after_a_rigid_alignment_without_scale():
    gt = np.tile(np.eye(4), (4, 1, 1))
    gt[:, :2, 3] = [[0, 0], [2, 0], [2, 2], [0, 2]]
    pred = gt.copy()
    pred[:, :2, 3] *= 1.5
    assert legacy_ate(pred, gt) == pytest.approx(0.5 * np.sqrt(2))
    turned = exp(np.array([4.0, 5, 6, 0.3, 0.2, 0.1])) @ gt
    assert legacy_ate(turned, gt) == pytest.approx(0, abs=1e-12)
    gt[:, :3, 3] = [[0, 0, 0], [1, 0, 0], [0, 2, 0], [0, 0, 3]]
    mirrored = gt.copy()
    mirrored[:, 0, 3] *= -1
    assert legacy_ate(mirrored, gt) > 0.1


def test_frames_that_the_legacy_protocol_holds_out_do_not_count():
    gt = forward(20)
    pred = gt.copy()
    pred[[7, 15], 0, 3] = 99
    metrics, _ = c3vd_legacy_metrics(pred, gt, np.arange(20), True)
    assert [(m.value, m.protocol) for m in metrics] == [(pytest.approx(0, abs=1e-12), "c3vd-legacy")]
    for args in ((np.arange(20), False), (np.arange(20) * 8 + 7, True)):
        metrics, notes = c3vd_legacy_metrics(pred, gt, *args)
        assert not metrics and "not computable" in notes[0]
