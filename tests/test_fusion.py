"""The fused surface against analytic spheres and tubes; weights, edges, outlier frames and empty volumes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from fusion_scenes import CAMERA, fused, look_at, orbit, silent, sphere_depth, tube_depth, view_of
from scipy.special import erfinv

from recon.fusion import fuse as fusion
from recon.fusion.consistency import agreement, log_residual
from recon.fusion.fuse import FusionSettings, fuse
from recon.fusion.regions import joined, split
from recon.fusion.selection import select_frames, select_neighbours
from recon.fusion.tsdf import BYTES_PER_BLOCK
from recon.fusion.view import rays
from recon.fusion.weights import pixel_weights
from recon.geometry.surface import edge_mask, normals_from_depth
from recon.types import Mesh, ReconError


def sphere_error(mesh) -> np.ndarray:
    return np.abs(np.linalg.norm(mesh.vertices, axis=1) - 10)


@pytest.fixture(scope="module")
def sphere_views():
    return [view_of(sphere_depth(T), T, i) for i, T in enumerate(orbit())]


def test_a_sphere_is_found_within_a_fraction_of_the_voxel(sphere_views):
    mesh = fused(sphere_views)
    assert sphere_error(mesh).mean() < 0.05 * 0.5
    assert sphere_error(mesh).max() < 0.5 * 0.5
    assert len(mesh.confidence) == len(mesh.observations) == len(mesh.colors) == len(mesh.vertices)
    assert mesh.observations.min() >= 1 and mesh.observations.max() <= len(sphere_views)
    assert mesh.confidence.min() >= 0 and mesh.confidence.max() <= 1
    assert np.all(mesh.colors == 128)


def test_confidence_errs_on_the_safe_side_of_the_share_that_is_true():
    """Each view is off by a factor of its own, of known spread. An error along the ray moves an oblique wall less than a frontal one,
    which the weights do not count in its favour."""
    said, true = [], []
    for seed in range(6):
        rng = np.random.default_rng(seed)
        views = [view_of(sphere_depth(T) * np.exp(0.02 * rng.normal()), T, i) for i, T in enumerate(orbit())]
        mesh = fused(views, typical_error=0.02 * 30, tolerance=0.3)
        said.append(mesh.confidence.mean())
        true.append((sphere_error(mesh) < 0.3).mean())
    assert np.mean(true) - 0.35 < np.mean(said) < np.mean(true)


def test_unmatched_views_are_counted_as_fewer_for_they_err_alike(sphere_views):
    """The variance of a mean of n samples of equal correlation r is 1 + r (n - 1) times that of n independent ones."""

    def confidence(views, is_matched, correlation=0.3):
        views = [replace(view, matched=np.full_like(view.matched, value)) for view, value in zip(views, is_matched, strict=True)]
        mesh = fused(views, typical_error=0.6, tolerance=0.3, correlation=correlation)
        return mesh.confidence, mesh.observations

    num = len(sphere_views)
    matched, seen = confidence(sphere_views, [True] * num)
    alike, _ = confidence(sphere_views, [False] * num)
    ratio = (erfinv(matched) / erfinv(alike)) ** 2
    for n in (2, 4, 6):
        assert np.median(ratio[seen == n]) == pytest.approx(1 + 0.3 * (n - 1), rel=0.1)
    mixed, _ = confidence(sphere_views, [True, False] * (num // 2))
    assert (alike <= mixed).all() and (mixed <= matched).all() and alike.mean() + 0.05 < mixed.mean() < matched.mean() - 0.02
    for views, correlation in ((sphere_views[:1], 0.3), (sphere_views, 0.0)):
        given = (confidence(views, [value] * len(views), correlation)[0] for value in (True, False))
        assert np.array_equal(*given), "one view is one, and without correlation nothing is counted as fewer"


def test_faces_turn_towards_the_cameras(sphere_views):
    mesh = fused(sphere_views)
    a, b, c = (mesh.vertices[mesh.faces[:, i]] for i in range(3))
    outwards = np.sum(np.cross(b - a, c - a) * (a + b + c), axis=1)
    assert np.mean(outwards > 0) > 0.999


def test_a_tube_seen_from_inside_along_its_axis():
    poses = [np.eye(4) for _ in range(6)]
    for k, T in enumerate(poses):
        T[:3, 3] = [2 * np.sin(k), 2 * np.cos(k), 4 * k]
    mesh = fused([view_of(tube_depth(T), T, i) for i, T in enumerate(poses)])
    error = np.abs(np.linalg.norm(mesh.vertices[:, :2], axis=1) - 12)
    assert error.mean() < 0.15 * 0.5
    assert mesh.vertices[:, 2].max() > 40


def test_one_frame_alone_gives_a_surface(sphere_views):
    mesh = fused(sphere_views[:1])
    assert len(mesh.faces) > 500
    assert set(mesh.observations) == {1.0}


def test_the_same_views_give_the_same_bytes(sphere_views):
    first, second = fused(sphere_views), fused(sphere_views)
    assert first.vertices.tobytes() == second.vertices.tobytes()
    assert first.faces.tobytes() == second.faces.tobytes()
    assert first.confidence.tobytes() == second.confidence.tobytes()


def test_a_bad_frame_of_low_weight_changes_little(sphere_views):
    wrong = [
        view_of(sphere_depth(v.T_world_camera) * 1.03, v.T_world_camera, v.index, sigma=s) for v in sphere_views[:1] for s in (0.05, 0.5)
    ]
    certain, uncertain = (fused([*sphere_views, bad]) for bad in wrong)
    assert sphere_error(uncertain).mean() < 0.4 * sphere_error(certain).mean()
    assert sphere_error(uncertain).mean() < 0.05


def test_unknown_pixels_are_neither_surface_nor_free_space(sphere_views):
    """A frame whose middle is unknown must not carve away, nor add, what others see there."""
    hole = np.zeros((96, 128), bool)
    hole[:, 40:90] = True
    T = sphere_views[0].T_world_camera
    far = np.where(hole, 70.0, sphere_depth(T))
    masked = view_of(far, T, usable=~hole & (far > 0))
    mesh = fused([*sphere_views, masked])
    assert sphere_error(mesh).max() < 0.3
    assert np.abs(np.linalg.norm(mesh.vertices, axis=1)).max() < 11


def test_steps_of_depth_are_unknown_rather_than_a_wall_between_near_and_far():
    depth = np.full((96, 128), 20.0, np.float32)
    depth[:, 64:] = 40.0
    usable = edge_mask(depth, depth > 0, 0.1)
    assert not usable[:, 63:65].any() and usable[:, :62].all()
    mesh = fused([view_of(depth, np.eye(4), usable=usable)], voxel=0.5)
    z = mesh.vertices[:, 2]
    assert np.all((np.abs(z - 20) < 0.5) | (np.abs(z - 40) < 0.5))


def test_a_step_left_in_is_cut_by_the_viewing_angle():
    depth = np.full((96, 128), 20.0, np.float32)
    depth[:, 64:] = 40.0
    weight = view_of(depth, np.eye(4)).weight
    assert not weight[:, 63:65].any()


def test_a_flying_surface_is_carved_by_frames_that_look_through_it(sphere_views):
    T = sphere_views[0].T_world_camera
    blob = sphere_depth(T)
    blob[40:56, 56:72] = 22.0
    mesh = fused(
        [
            *sphere_views,
            *[replace(v, index=20) for v in sphere_views[:2]],
            view_of(blob, T, usable=edge_mask(blob, blob > 0, 0.1) & (blob > 0)),
        ]
    )
    floating = np.linalg.norm(mesh.vertices, axis=1) > 12
    assert floating.mean() < 0.1
    # Few frames look through it, so much of its probability is left; what is sure about the sphere is not sure about it.
    assert floating.any() and np.median(mesh.confidence[floating]) < 0.4 * np.median(mesh.confidence[~floating])


def test_far_from_the_origin_precision_stays(sphere_views):
    offset = np.array([5000.0, -3000.0, 8000.0])
    views = []
    for view in sphere_views:
        T = view.T_world_camera.copy()
        T[:3, 3] += offset
        views.append(replace(view, T_world_camera=T))
    neighbours = [np.zeros(0, np.int64)] * len(views)
    mesh, _ = fuse(views.__getitem__, neighbours, 30.0, 0.02, "mm", FusionSettings(voxels_per_depth=60.0), silent)
    assert np.abs(np.linalg.norm(mesh.vertices - offset, axis=1) - 10).mean() < 0.05


def test_consistent_views_agree_and_an_outlier_does_not():
    poses = orbit(40)[:5]
    views = [view_of(sphere_depth(T), T, i) for i, T in enumerate(poses)]
    outlier = view_of(sphere_depth(poses[2]) * 1.2, poses[2])
    residuals = [np.stack([log_residual(v, views[k], 0.05) for k in (0, 1, 3, 4)]) for v in (views[2], outlier)]
    good, bad = (agreement(r, 0.05) for r in residuals)
    assert np.median(good[views[2].valid]) > 0.95
    assert np.median(bad[outlier.valid]) < 0.1


def test_pixels_without_votes_keep_their_weight():
    assert np.all(agreement(np.full((3, 4, 5), np.nan, np.float32), 0.05) == 1)


def test_a_true_occluder_does_not_vote_but_a_false_one_does():
    """A ball in front of a wall hides different parts of the wall from two places; that is no disagreement."""
    poses = [look_at(np.array([x, 0.0, -30.0]), np.array([x, 0.0, 0.0])) for x in (-4.0, 4.0)]
    depths = []
    for T in poses:
        ball = sphere_depth(T, radius=4.0)
        depths.append(np.where(ball > 0, ball, 60.0))
    first, second = (view_of(d, T) for d, T in zip(depths, poses, strict=True))
    residual = log_residual(first, second, 0.05)
    assert np.nanmean(np.abs(residual) > 0.05) < 0.02
    without_ball = view_of(np.full((96, 128), 60.0), poses[0])
    assert np.nanmax(log_residual(without_ball, second, 0.05)) > 0.3


def test_fuse_drops_an_outlier_frame_and_reports_the_noise():
    poses = orbit(40)
    views = [view_of(sphere_depth(T) * (1.15 if i == 6 else 1.0), T, i) for i, T in enumerate(poses)]
    T = np.array(poses)
    judged = [select_neighbours(T, i, 30.0, 4) for i in range(len(views))]
    settings = FusionSettings(voxels_per_depth=60.0)
    mesh, stats = fuse(views.__getitem__, judged, 30.0, 0.02, "mm", settings, silent)
    blind, _ = fuse(views.__getitem__, [np.zeros(0, np.int64)] * len(views), 30.0, 0.02, "mm", settings, silent)
    assert sphere_error(mesh).mean() < 0.25 * sphere_error(blind).mean()
    assert stats.noise < 0.01 and stats.num_frames == 40 and 0.9 < stats.kept_share < 1


def test_a_volume_larger_than_memory_gives_the_same_surface(sphere_views):
    neighbours = [np.zeros(0, np.int64)] * len(sphere_views)
    settings = FusionSettings(voxels_per_depth=60.0)
    whole, stats = fuse(sphere_views.__getitem__, neighbours, 30.0, 0.02, "mm", settings, silent)
    small = replace(settings, max_volume_bytes=stats.num_blocks * BYTES_PER_BLOCK // 4)
    parts, _ = fuse(sphere_views.__getitem__, neighbours, 30.0, 0.02, "mm", small, silent)
    for name in ("vertices", "faces", "colors", "confidence", "observations", "matched"):
        assert np.array_equal(getattr(parts, name), getattr(whole, name)), name


def test_threads_give_the_same_surface(sphere_views):
    neighbours = [np.array([j for j in (i - 1, i + 1) if 0 <= j < len(sphere_views)]) for i in range(len(sphere_views))]
    one, three = (
        fuse(sphere_views.__getitem__, neighbours, 30.0, 0.02, "mm", FusionSettings(voxels_per_depth=60.0, num_threads=n), silent)[0]
        for n in (1, 3)
    )
    for name in ("vertices", "faces", "colors", "confidence", "observations", "matched"):
        assert np.array_equal(getattr(one, name), getattr(three, name)), name


def test_a_region_without_surface_takes_nothing_from_the_others(sphere_views):
    whole = fused(sphere_views)
    empty = Mesh(np.zeros((0, 3)), np.zeros((0, 3), np.int64), unit=whole.unit)
    for parts in ([empty, whole], [whole, empty]):
        mesh = joined(parts)
        assert np.array_equal(mesh.vertices, whole.vertices) and np.array_equal(mesh.confidence, whole.confidence)
    assert len(joined([empty, empty]).faces) == 0


def test_regions_share_out_every_block_and_carry_their_surroundings():
    rng = np.random.default_rng(0)
    blocks = np.unique(rng.integers(-20, 20, (3000, 3)), axis=0)
    regions = split(blocks, 600)
    cores = np.concatenate([region.core for region in regions])
    assert len(cores) == len(blocks) and np.array_equal(np.unique(cores, axis=0), blocks)
    known = set(map(tuple, blocks.tolist()))
    for region in regions:
        carried = set(map(tuple, region.blocks.tolist()))
        assert len(carried) <= 600 and carried <= known
        for x, y, z in region.core.tolist():
            around = {(x + i, y + j, z + k) for i in (-1, 0, 1) for j in (-1, 0, 1) for k in (-1, 0, 1)}
            assert around & known <= carried


def test_the_volume_coarsens_when_no_number_of_regions_holds_it(sphere_views, monkeypatch):
    monkeypatch.setattr(fusion, "MAX_REGIONS", 1)
    neighbours = [np.zeros(0, np.int64)] * len(sphere_views)
    settings = FusionSettings(voxels_per_depth=200.0, max_volume_bytes=3_000_000)
    mesh, stats = fuse(sphere_views.__getitem__, neighbours, 30.0, 0.02, "mm", settings, silent)
    assert stats.voxel > 30 / 200
    assert sphere_error(mesh).mean() < 0.1


def test_an_empty_volume_says_which_numbers_to_look_at(sphere_views):
    blind = replace(sphere_views[0], weight=np.zeros_like(sphere_views[0].weight))
    with pytest.raises(ReconError, match=r"1 frames, 0 known depth pixels.*median depth 30.*voxel") as raised:
        fuse(lambda i: blind, [np.zeros(0, np.int64)], 30.0, 0.02, "mm", FusionSettings(), silent)
    assert raised.value.exit_code == 1


def test_depth_that_no_view_confirms_is_an_error_naming_the_cause():
    views = [view_of(np.full((96, 128), 20.0 * 1.2**i), np.eye(4), i) for i in range(6)]
    neighbours = [np.array([j for j in range(6) if j != i]) for i in range(6)]
    with pytest.raises(ReconError, match="not in one unit"):
        fuse(views.__getitem__, neighbours, 30.0, 0.02, "mm", FusionSettings(min_agreement=0.9), silent)


def test_weights_fall_with_sigma_angle_and_distance():
    flat = np.full((96, 128), 30.0, np.float32)
    normals = normals_from_depth(flat, rays(CAMERA)).astype(np.float32)
    known = np.ones(flat.shape, bool)

    def weight(depth, sigma):
        return pixel_weights(CAMERA, depth, normals, np.full(flat.shape, sigma, np.float32), known, 30.0, 0.05, 0.12)

    middle = (48, 64)
    assert weight(flat, 0.05)[middle] == pytest.approx(1, abs=0.01)
    assert weight(flat, 0.1)[middle] == pytest.approx(0.25, abs=0.01)
    assert weight(2 * flat, 0.05)[middle] == pytest.approx(0.25, abs=0.01)
    assert weight(flat, 0.05)[0, 0] < weight(flat, 0.05)[middle]
    assert weight(flat, 0.0).max() == 0


def test_frames_are_chosen_by_motion_and_thinned_evenly():
    T = np.tile(np.eye(4), (100, 1, 1))
    T[50:, 0, 3] = np.linspace(0, 30, 50)
    still = select_frames(T, np.zeros(100, bool), 30.0, 1000)
    assert still[0] == 0 and np.sum(still < 50) == 1 and np.sum(still >= 50) > 40
    few = select_frames(T, np.ones(100, bool), 30.0, 10)
    assert len(few) == 10 and few[0] == 0 and few[-1] == 99


def test_neighbours_see_the_place_from_elsewhere():
    T = np.tile(np.eye(4), (60, 1, 1))
    T[:, 0, 3] = np.linspace(0, 60, 60)
    T[59, :3, :3] = np.diag([-1.0, 1.0, -1.0])
    chosen = select_neighbours(T, 30, 30.0, 4)
    assert len(chosen) == 4 and 30 not in chosen and 59 not in chosen
    assert np.all(np.abs(chosen - 30) <= 8) and (chosen < 30).any() and (chosen > 30).any()
    assert len(select_neighbours(T[:1], 0, 30.0, 4)) == 0
