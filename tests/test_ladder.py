"""Alignments of surfaces: exact recovery, what a shape does not fix, partial overlap, and what the rungs may see."""

from __future__ import annotations

import numpy as np
import pytest
from bodies import box, ellipsoid, joined, moved, sphere, square, tube

from recon.eval import icp as icp_module
from recon.eval.distances import Surface, part, sample_surface
from recon.eval.icp import IcpSettings, icp
from recon.eval.ladder import Checkerboard, trajectory_rungs
from recon.eval.surface import SurfaceOptions, score_surface
from recon.geometry.alignment import umeyama
from recon.geometry.se3 import exp
from recon.geometry.similarity import Similarity
from recon.types import Mesh, ReconError

OPTIONS = SurfaceOptions(num_samples=6000)
SMALL_MOTION = exp(np.array([1.0, -1.0, 0.5, 0.05, -0.08, 0.1]))
IDENTITY = Similarity(1.0, np.eye(3), np.zeros(3))


def camera_path(num: int = 12) -> np.ndarray:
    return exp(np.cumsum(np.random.default_rng(3).normal(0, 0.4, (num, 6)), axis=0))


def scaled_path(poses: np.ndarray, scale: float, T: np.ndarray) -> np.ndarray:
    out = T @ poses
    out[:, :3, 3] *= scale
    return out


def value(score, name: str, alignment: str) -> float:
    return next(m.value for m in score.metrics if m.name == name and m.alignment == alignment)


def rung(score, alignment: str):
    return next(rung for rung in score.rungs if rung.alignment == alignment)


def test_the_truth_scaled_by_five_percent_is_five_percent_off_before_alignment_and_right_after():
    gt, poses = ellipsoid(), camera_path()
    pred = moved(gt, 1.05, np.eye(4))
    for paths in (None, (scaled_path(poses, 1.05, np.eye(4)), poses)):
        found = score_surface(pred, gt, poses=paths, is_metric=True, options=OPTIONS)
        after = "sim3_icp" if paths is None else "sim3_trajectory"
        assert value(found, "scale_error", "none") == pytest.approx(5, abs=1e-3)
        assert value(found, "scale_error", after) == pytest.approx(0, abs=1e-3) and value(found, "accuracy_mean", after) < 1e-3
        assert value(found, "accuracy_mean", "none") > 0.5
        assert value(found, "scale_error", "se3_icp") == pytest.approx(5, abs=1e-3)
    small = score_surface(moved(gt, 0.95, np.eye(4)), gt, poses=None, is_metric=True, options=OPTIONS)
    assert value(small, "scale_error", "none") == pytest.approx(-5, abs=1e-3)
    assert {m.lower_is_better for m in small.metrics if m.name == "scale_error"} == {None}


def test_every_rung_undoes_what_it_may_undo_and_tells_its_transform():
    gt, poses = box(), camera_path()
    pred = moved(gt, 0.8, SMALL_MOTION)
    found = score_surface(pred, gt, poses=(scaled_path(poses, 0.8, SMALL_MOTION), poses), is_metric=True, options=OPTIONS)
    assert [r.alignment for r in found.rungs] == ["none", "first_pose", "se3_trajectory", "sim3_trajectory", "se3_icp", "sim3_icp"]
    for name in ("sim3_trajectory", "sim3_icp"):
        best = rung(found, name)
        assert best.similarity.scale == pytest.approx(1.25, abs=1e-4)
        assert best.apply(pred).vertices == pytest.approx(gt.vertices, abs=1e-2) and best.apply(pred).unit == "mm"
        angle = np.degrees(np.arccos((np.trace(SMALL_MOTION[:3, :3]) - 1) / 2))
        assert best.similarity.rotation_deg == pytest.approx(angle, abs=0.02)
    for name in ("none", "first_pose", "se3_trajectory", "se3_icp"):
        assert rung(found, name).similarity.scale == 1.0
    exact = rung(found, "sim3_trajectory")
    t = -SMALL_MOTION[:3, :3].T @ SMALL_MOTION[:3, 3]
    assert exact.similarity.t == pytest.approx(t, abs=1e-9)
    assert exact.shift_of_centroid == pytest.approx(np.linalg.norm(0.8 * SMALL_MOTION[:3, 3]), abs=0.3)  # the box is centred at 0
    first = rung(found, "first_pose")
    assert first.similarity.map(0.8 * (SMALL_MOTION @ poses[0])[None, :3, 3]) == pytest.approx(poses[0][None, :3, 3], abs=1e-9)
    assert {m.alignment for m in found.metrics if m.name == "icp_condition"} == {"se3_icp", "sim3_icp"}


def test_trajectory_rungs_equal_umeyama_and_never_see_the_surface():
    poses = camera_path()
    noisy = scaled_path(poses, 0.5, SMALL_MOTION)
    noisy[:, :3, 3] += 0.01 * np.random.default_rng(0).normal(size=(len(poses), 3))
    rungs, notes = trajectory_rungs((noisy, poses), False, np.zeros(3), "mm")
    plain = umeyama(noisy[:, :3, 3], poses[:, :3, 3])
    assert [r.alignment for r in rungs] == ["sim3_trajectory"] and notes == []
    assert rungs[0].similarity.matrix == pytest.approx(plain.matrix, abs=1e-12)


def test_without_a_unit_no_rung_believes_the_scale():
    gt, poses = ellipsoid(), camera_path()
    pred = moved(gt, 0.03, SMALL_MOTION)
    found = score_surface(pred, gt, poses=(scaled_path(poses, 0.03, SMALL_MOTION), poses), is_metric=False, options=OPTIONS)
    assert [r.alignment for r in found.rungs] == ["sim3_trajectory", "sim3_icp"]
    assert not any(m.name == "scale_error" for m in found.metrics)
    alone = score_surface(pred, gt, poses=None, is_metric=False, options=OPTIONS)
    assert rung(alone, "sim3_icp").similarity.scale == pytest.approx(1 / 0.03, rel=1e-3) and "centroids" in alone.notes[0]


def test_paths_that_fix_no_alignment_are_refused_with_a_note():
    poses = np.tile(np.eye(4), (5, 1, 1))
    found = score_surface(box(), box(), poses=(poses, poses), is_metric=True, options=OPTIONS)
    assert {r.alignment for r in found.rungs} == {"none", "first_pose", "se3_icp", "sim3_icp"}
    assert sum("not computable, because" in note and "trajectory" in note for note in found.notes) == 2
    none_shared = score_surface(box(), box(), poses=(poses[:0], poses[:0]), is_metric=True, options=OPTIONS)
    assert {r.alignment for r in none_shared.rungs} == {"none", "se3_icp", "sim3_icp"}


def fit(pred: Mesh, gt: Mesh, with_scale: bool, start: Similarity = IDENTITY, settings: IcpSettings | None = None):
    samples = [sample_surface(mesh, 3000, 0) for mesh in (pred, gt)]
    return icp(Surface(pred), samples[0], Surface(gt), samples[1], start, with_scale, settings or IcpSettings())


def test_a_tube_slides_and_the_fit_says_so():
    gt = tube()
    found = fit(moved(gt, 1.0, exp(np.array([1.0, 0.5, 7.0, 0, 0, 0]))), gt, with_scale=False)
    assert (
        found.condition > 1e4
        and "translation along (0.00, 0.00, 1.00)" in found.notes[0]
        and "rotation about (0.00, 0.00, 1.00)" in found.notes[0]
    )
    assert found.similarity.t == pytest.approx([-1, -0.5, 0], abs=1e-3)
    folded = fit(moved(tube(folds=2.0), 1.0, exp(np.array([0.5, 0.5, 1.0, 0, 0, 0]))), tube(folds=2.0), with_scale=True)
    assert folded.similarity.t == pytest.approx([-0.5, -0.5, -1.0], abs=1e-2) and folded.similarity.scale == pytest.approx(1, abs=1e-3)
    assert "translation" not in folded.notes[0] and "rotation about (0.00, 0.00, 1.00)" in folded.notes[0]


def test_a_scaled_tube_does_not_shrink_onto_one_wall():
    found = fit(moved(tube(), 1.05, exp(np.array([1.0, 0.0, 0, 0, 0, 0]))), tube(), with_scale=True)
    assert 1.05 * found.similarity.scale == pytest.approx(1, abs=1e-3)


def test_a_sphere_fixes_no_rotation_and_a_plane_no_shift_within_itself():
    ball = fit(moved(sphere(), 1.1, np.eye(4)), sphere(), with_scale=True)
    assert ball.notes[0].count("rotation about") == 3 and "translation" not in ball.notes[0]
    assert 1.1 * ball.similarity.scale == pytest.approx(1, abs=1e-3)
    plane = fit(square(z=0.5), square(), with_scale=True)
    assert plane.condition > 1e10 and plane.similarity.t == pytest.approx([0, 0, -0.5], abs=1e-4) and plane.similarity.scale == 1.0
    solid = fit(box(), box(), with_scale=True)
    assert solid.condition < 20 and solid.notes == () and solid.overlap == pytest.approx(1)


def test_the_condition_is_that_of_the_normal_matrix():
    gt = ellipsoid()
    samples = sample_surface(gt, 3000, 0)
    found = icp(Surface(gt), samples, Surface(gt), samples, IDENTITY, False, IcpSettings())
    points = samples.points - samples.points.mean(axis=0)
    points /= np.sqrt(np.mean(np.sum(points**2, axis=1)))
    H = sum(np.outer(row, row) for row in np.concatenate([np.cross(points, samples.normals), samples.normals], axis=1))
    assert found.condition == pytest.approx(np.linalg.cond(H), rel=1e-3)


@pytest.mark.parametrize("share", [-0.3, 0.0])
@pytest.mark.parametrize("with_stray", [False, True], ids=["alone", "with a stray ball"])
def test_part_of_a_body_with_noise_and_a_stray_piece_finds_its_place(share, with_stray):
    gt = ellipsoid()
    x = gt.vertices[gt.faces].mean(axis=1)[:, 0]
    pred = part(gt, x > share * x.max())
    pred = Mesh(pred.vertices + 0.05 * np.random.default_rng(0).normal(size=pred.vertices.shape), pred.faces, unit="mm")
    if with_stray:
        pred = joined(pred, moved(sphere(8.0, 2), 1.0, exp(np.array([0, 80.0, 0, 0, 0, 0]))))
    found = fit(moved(pred, 1.05, SMALL_MOTION), gt, with_scale=True).similarity
    back = found.map(moved(gt, 1.05, SMALL_MOTION).vertices)
    assert 1.05 * found.scale == pytest.approx(1, abs=5e-3)
    assert np.sqrt(np.mean(np.sum((back - gt.vertices) ** 2, axis=1))) < 0.15


@pytest.mark.parametrize("gt", [box(), ellipsoid()], ids=["box", "ellipsoid"])
@pytest.mark.parametrize("degrees", [5.0, 30.0])
def test_a_body_finds_its_place_and_size_from_afar(gt, degrees):
    rng = np.random.default_rng(0)
    for _ in range(5):
        turn, shift = rng.normal(size=(2, 3))
        T = exp(np.concatenate([3 * shift / np.linalg.norm(shift), np.radians(degrees) * turn / np.linalg.norm(turn)]))
        found = fit(moved(gt, 1.05, T), gt, with_scale=True).similarity
        assert found.map(moved(gt, 1.05, T).vertices) == pytest.approx(gt.vertices, abs=0.01)


def test_half_a_surface_keeps_its_accuracy_under_every_rung():
    gt, poses = ellipsoid(), camera_path()
    half = part(gt, gt.vertices[gt.faces].mean(axis=1)[:, 0] > 0)
    found = score_surface(half, gt, poses=(poses, poses), is_metric=True, options=OPTIONS)
    for r in found.rungs:
        assert value(found, "accuracy_mean", r.alignment) < 1e-3 and value(found, "completeness_mean", r.alignment) > 2
    small = moved(half, 0.5, SMALL_MOTION)
    again = score_surface(small, gt, poses=(scaled_path(poses, 0.5, SMALL_MOTION), poses), is_metric=False, options=OPTIONS)
    for name in ("completeness_mean", "completeness_max", "normal_consistency_signed", "hd95", "recall_2mm"):
        assert value(again, name, "sim3_trajectory") == pytest.approx(value(found, name, "sim3_trajectory"), rel=1e-3)


def test_the_scale_stays_within_its_bounds_and_another_size_is_refused():
    gt = ellipsoid()
    with pytest.raises(ReconError, match="bounds"):
        fit(moved(gt, 4.0, np.eye(4)), gt, with_scale=True)
    found = score_surface(moved(gt, 4.0, np.eye(4)), gt, poses=None, is_metric=True, options=OPTIONS)
    assert "sim3_icp" not in {r.alignment for r in found.rungs} and any("sim3_icp" in note and "bounds" in note for note in found.notes)
    poses = camera_path()
    paths = (scaled_path(poses, 4.0, np.eye(4)), poses)
    found = score_surface(moved(gt, 4.0, np.eye(4)), gt, poses=paths, is_metric=True, options=OPTIONS)
    assert any("se3_icp" in note and "factor of 4" in note for note in found.notes)
    assert rung(found, "sim3_icp").similarity.scale == pytest.approx(0.25, rel=1e-3)


def test_a_checkerboard_has_two_halves_of_whole_cells():
    plane = sample_surface(square(30.0), 4000, 0).points
    rounded = plane + 1e-9 * np.random.default_rng(0).normal(size=(4000, 3))
    for points in (sample_surface(box(), 4000, 0).points, rounded):
        for_fit = Checkerboard.on(points).is_for_fit(points)
        assert 0.4 < for_fit.mean() < 0.6
        # Cells, not single samples: neighbours are on the same side, so a fit cannot score by what lies next to it.
        near = np.linalg.norm(points[:200, None] - points[None], axis=2) < 0.5
        assert (for_fit[:200, None] == for_fit[None])[near].mean() > 0.8


@pytest.mark.parametrize("seed", range(3))
def test_no_true_cell_that_took_part_in_a_fit_is_scored(monkeypatch, seed):
    gt, rng = ellipsoid(), np.random.default_rng(seed)
    pred = moved(gt, 1.04, exp(np.concatenate([rng.normal(0, 2, 3), rng.normal(0, 0.2, 3)])))
    pred = Mesh(pred.vertices + 0.1 * rng.normal(size=pred.vertices.shape), pred.faces, unit="mm")
    board = Checkerboard.on(sample_surface(gt, OPTIONS.num_samples, OPTIONS.seed).points)
    taken: set[tuple[int, ...]] = set()
    found_matches = icp_module._Pair.matches

    def watched(self, *args):
        found = found_matches(self, *args)
        taken.update(map(tuple, board.cells(found[1]).tolist()))
        return found

    monkeypatch.setattr(icp_module._Pair, "matches", watched)
    found = score_surface(pred, gt, poses=None, is_metric=True, options=OPTIONS)
    of_gt, of_pred = (sample_surface(mesh, OPTIONS.num_samples, OPTIONS.seed).points for mesh in (gt, pred))
    assert len(taken) > 20
    for name in ("se3_icp", "sim3_icp"):
        fitted = rung(found, name)
        nearest = Surface(gt).closest(fitted.similarity.map(of_pred))
        unseen_pred, unseen_gt = fitted.unseen
        scored = np.concatenate([board.cells(nearest.points)[unseen_pred], board.cells(of_gt)[unseen_gt]])
        assert np.mean([tuple(cell) in taken for cell in scored.tolist()]) == 0
        assert 0.4 < unseen_pred.mean() < 0.6 and 0.4 < unseen_gt.mean() < 0.6
        assert value(found, "accuracy_mean", name) == pytest.approx(nearest.distances[unseen_pred].mean(), rel=1e-4)


def test_a_surface_with_hardly_anything_to_fit_is_refused():
    samples = sample_surface(box(), 100, 0)
    with pytest.raises(ReconError, match="hardly any part"):
        icp(Surface(box()), samples, Surface(box()), samples, IDENTITY, True, IcpSettings(), lambda points: np.zeros(len(points), bool))


def test_chosen_alignments_only_and_the_same_result_twice():
    gt = ellipsoid()
    pred, poses = moved(gt, 1.02, SMALL_MOTION), camera_path()
    options = SurfaceOptions(num_samples=3000, alignments=("sim3_icp",))
    paths = (scaled_path(poses, 1.02, SMALL_MOTION), poses)
    once, twice = (score_surface(pred, gt, poses=paths, is_metric=True, options=options) for _ in range(2))
    assert [r.alignment for r in once.rungs] == ["sim3_icp"] and once.metrics == twice.metrics
    assert all(np.isfinite(m.value) for m in once.metrics)
