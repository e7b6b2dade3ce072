"""What cameras see of a surface, against geometry worked out by hand and against trimesh's ray casting."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import trimesh
from bodies import joined, mesh_of, moved, sphere, square, tube

from recon.data.c3vd import open_c3vd
from recon.eval.distances import Surface, double_areas, sample_surface
from recon.eval.surface import SurfaceOptions, score_surface
from recon.eval.visibility import Views, observed_part, seen_points
from recon.geometry.se3 import exp
from recon.io.obj import read_obj
from recon.types import Camera, Mesh, ReconError

PINHOLE = Camera("PINHOLE", 101, 101, (100.0, 100.0, 50.0, 50.0))
FISHEYE = Camera("OPENCV_FISHEYE", 201, 201, (60.0, 60.0, 100.0, 100.0, 0.0, 0.0, 0.0, 0.0))
SHARED = Path(__file__).parents[2] / "shared" / "data"


def at(*centres) -> np.ndarray:
    """Cameras looking along +z."""
    poses = np.tile(np.eye(4), (len(centres), 1, 1))
    poses[:, :3, 3] = centres
    return poses


def grid(z: float, half: float, step: float = 0.5) -> np.ndarray:
    x, y = np.meshgrid(np.arange(-half, half + step / 2, step), np.arange(-half, half + step / 2, step))
    return np.stack([x.ravel(), y.ravel(), np.full(x.size, z)], axis=1)


def area(mesh: Mesh) -> float:
    return float(double_areas(mesh).sum() / 2)


FAR = Surface(square(size=1.0, z=1000.0))
"""Hides nothing here."""


def test_the_image_ends_half_a_pixel_beyond_its_outer_pixel_centres():
    points = grid(10.0, 8.0, 0.25)
    seen = seen_points(points, FAR, Views(PINHOLE, at((0, 0, 0))))
    u, v = 10 * points[:, 0] + 50, 10 * points[:, 1] + 50
    assert np.array_equal(seen, (u >= -0.5) & (u < 100.5) & (v >= -0.5) & (v < 100.5))


def test_points_behind_and_masked_points_are_not_seen():
    mask = np.ones((101, 101), bool)
    mask[:, :50] = False
    points = np.array([[0, 0, 10.0], [0, 0, -10.0], [-1, 0, 10.0]])
    views = Views(PINHOLE, at((0, 0, 0)), mask=mask)
    assert seen_points(points, FAR, views).tolist() == [True, False, False]
    assert not seen_points(points, FAR, Views(PINHOLE, at((0, 0, 0))[:0])).any()
    with pytest.raises(ReconError, match="mask"):
        Views(PINHOLE, at((0, 0, 0)), mask=mask[:50])


def test_a_screen_throws_the_shadow_that_the_intercept_theorem_says():
    screen = square(size=2.0, z=5.0)
    points = grid(10.0, 4.0, 0.3)
    seen = seen_points(points, Surface(screen), Views(PINHOLE, at((0, 0, 0))))
    shadow = (points[:, 0] > 0) & (points[:, 0] < 4) & (points[:, 1] > 0) & (points[:, 1] < 4)
    assert np.array_equal(seen, ~shadow)
    both = seen_points(points, Surface(screen), Views(PINHOLE, at((0, 0, 0), (3, 3, 0))))
    assert both.sum() > seen.sum()


def test_points_on_the_surface_itself_are_seen_from_both_sides_and_at_a_grazing_angle():
    mesh = square(size=20.0, z=0.0)
    samples = sample_surface(mesh, 500, 0).points
    wide = Camera("PINHOLE", 1001, 1001, (50.0, 50.0, 500.0, 500.0))
    up = exp(np.array([10.0, 10.0, -0.5, 0, 0, 0]))
    down = np.diag([1.0, -1.0, -1.0, 1.0])
    down[:3, 3] = [10, 10, 0.5]
    for pose in (up, down):
        near = np.hypot(*(samples[:, :2] - 10).T) < 4.9
        assert seen_points(samples, Surface(mesh), Views(wide, pose[None]))[near].all()


@pytest.mark.parametrize("camera", [PINHOLE, FISHEYE], ids=["pinhole", "fisheye"])
def test_visibility_agrees_with_trimesh_rays(camera):
    body = trimesh.util.concatenate([trimesh.creation.icosphere(2, 3.0).apply_translation([0, 1, 12]), trimesh.creation.box((30, 30, 0.5))])
    body.vertices[len(body.vertices) - 8 :, 2] += 20
    poses = at((0, 0, 0), (2, -1, 1))
    points = sample_surface(mesh_of(body), 400, 0).points
    found = seen_points(points, Surface(mesh_of(body)), Views(camera, poses))
    expected = np.zeros(len(points), bool)
    for T in poses:
        rays = points - T[:3, 3]
        x, y, z = rays.T
        if camera is PINHOLE:
            u, v = 100 * x / z + 50, 100 * y / z + 50
        else:
            angle, across = np.arctan2(np.hypot(x, y), z), np.hypot(x, y)
            u, v = 60 * angle * x / across + 100, 60 * angle * y / across + 100
        inside = (u > -0.5) & (v > -0.5) & (u < camera.width_px - 0.5) & (v < camera.height_px - 0.5) & (z > 0)
        hits, idx, _ = trimesh.ray.ray_triangle.RayMeshIntersector(body).intersects_location(np.tile(T[:3, 3], (len(points), 1)), rays)
        first = np.full(len(points), np.inf)
        np.minimum.at(first, idx, np.linalg.norm(hits - T[:3, 3], axis=1))
        expected |= inside & (first > 0.999 * np.linalg.norm(rays, axis=1))
    assert 50 < expected.sum() < 350 and np.array_equal(found, expected)


def test_a_camera_in_a_sphere_sees_all_around_only_as_far_as_its_lens_reaches():
    mesh = sphere(10.0, 4)
    seen = observed_part(mesh, Views(FISHEYE, at((0, 0, 0))))
    half_angle = 100.5 / 60  # equidistant: the inscribed circle of the image
    assert area(seen) >= area(mesh) * (1 - np.cos(half_angle)) / 2
    outside = observed_part(mesh, Views(PINHOLE, at((0, 0, -40.0))))
    cap = area(mesh) * (1 - 10 / 40) / 2  # up to the tangent; faces on its rim count whole
    assert cap <= area(outside) < 1.1 * cap
    assert len(observed_part(mesh, Views(PINHOLE, at((0, 0, 40.0)))).faces) == 0


def test_unseen_truth_does_not_count_as_missing_and_unseen_prediction_is_counted():
    whole = joined(square(), moved(square(), 1.0, at((100.0, 0, 0))[0]))
    views = Views(PINHOLE, at((5, 5, -15.0)))
    options = SurfaceOptions(num_samples=2000, alignments=("none",))
    found = score_surface(square(), whole, poses=None, is_metric=True, gt_views=views, pred_views=views, options=options).metrics
    figures = {m.name: m.value for m in found}
    assert figures["completeness_max"] < 1e-5 and figures["observable_share"] == pytest.approx(0.5)
    assert figures["culled_share"] == 0 and figures["accuracy_mean_visible"] < 1e-5
    found = score_surface(whole, square(), poses=None, is_metric=True, whole_gt=whole, pred_views=views, options=options).metrics
    figures = {m.name: m.value for m in found}
    assert figures["accuracy_mean"] == pytest.approx(0.5 * 95, rel=0.05) and figures["accuracy_mean_visible"] < 1e-5
    assert figures["culled_share"] == pytest.approx(0.5, abs=0.03) and figures["observable_share"] == pytest.approx(0.5)
    nothing = Views(PINHOLE, at((5, 5, 50.0)))
    assert "no area" in score_surface(whole, whole, poses=None, is_metric=True, gt_views=nothing, options=options).notes[0]
    blind = score_surface(whole, whole, poses=None, is_metric=True, pred_views=nothing, options=options)
    assert any("not computable" in note and "visible" in note for note in blind.notes)


def test_points_seen_do_not_depend_on_the_order_of_the_views():
    mesh, rng = tube(folds=3.0), np.random.default_rng(0)
    poses = exp(np.concatenate([rng.normal(0, 3, (9, 3)), rng.normal(0, 0.3, (9, 3))], axis=1))
    points = sample_surface(mesh, 2000, 0).points
    found = seen_points(points, Surface(mesh), Views(PINHOLE, poses))
    one_by_one = np.any([seen_points(points, Surface(mesh), Views(PINHOLE, pose[None])) for pose in poses], axis=0)
    assert np.array_equal(found, one_by_one) and 0 < found.sum() < 2000


@pytest.mark.skipif(not (SHARED / "c3vd_like").is_dir(), reason="the data is not here")
def test_the_part_seen_is_the_part_that_the_data_set_marks():
    folder = SHARED / "c3vd_like" / "colon_a"
    sequence = open_c3vd(folder)
    vertices, faces, texture_idx = read_obj(folder / "coverage_mesh.obj")
    mesh, marked = Mesh(vertices, faces, unit="mm"), (texture_idx == 0).all(axis=1)
    centres = vertices[faces].mean(axis=1)
    seen = seen_points(centres, Surface(mesh), Views(sequence.camera, sequence.trajectory_gt.T_world_camera))
    assert np.sum(seen & marked) / np.sum(seen | marked) > 0.9
