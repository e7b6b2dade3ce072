"""Depth maps of analytic surfaces: points on them, their normals, their occlusion edges."""

import numpy as np
import pytest

from recon.geometry.cameras import project, ray_grid, resize
from recon.geometry.surface import backproject, edge_mask, normals_from_depth, with_lens
from recon.types import Camera

PINHOLE = Camera("PINHOLE", 80, 60, (60.0, 61.0, 39.0, 30.0))
FISHEYE = Camera("OPENCV_FISHEYE", 80, 60, (40.0, 40.0, 39.5, 29.5, -0.02, 0.0, 0.0, 0.0))
each_lens = pytest.mark.parametrize("camera", [PINHOLE, FISHEYE], ids=["pinhole", "fisheye"])


@each_lens
def test_backprojection_is_the_inverse_of_projection(camera):
    depth = np.random.default_rng(0).uniform(5.0, 50.0, (60, 80))
    points = backproject(camera, depth)
    np.testing.assert_allclose(points[..., 2], depth)
    pixels, valid = project(camera, points)
    assert valid.all()
    np.testing.assert_allclose(pixels[..., 0], np.broadcast_to(np.arange(80.0), (60, 80)), atol=1e-9)
    assert not backproject(camera, np.zeros((60, 80))).any()


@each_lens
def test_normals_of_a_plane_and_of_a_sphere_from_inside(camera):
    rays = ray_grid(camera)
    normal = np.array([0.3, -0.2, -1.0]) / np.linalg.norm([0.3, -0.2, -1.0])
    hit = rays @ normal < -0.05
    plane = np.where(hit, rays[..., 2] * -20.0 / np.where(hit, rays @ normal, 1.0), 0.0)
    normals = normals_from_depth(plane, rays)
    assert hit.mean() > 0.9 and not normals[~hit].any()
    np.testing.assert_allclose(normals[hit], np.broadcast_to(normal, (hit.sum(), 3)), atol=1e-6)
    # From the centre of a sphere the normal is the reversed ray.
    sphere = 10.0 * rays[..., 2]
    cosine = -np.sum(normals_from_depth(sphere, rays) * rays, axis=-1)
    assert cosine.min() > np.cos(np.deg2rad(3.0))


def test_unknown_depth_has_no_normal_and_spoils_no_neighbour():
    rays = ray_grid(PINHOLE)
    depth = np.full((60, 80), 10.0)
    depth[20:22, 30:32] = 0.0
    normals = normals_from_depth(depth, rays)
    assert not normals[20:22, 30:32].any()
    known = depth > 0.0
    np.testing.assert_allclose(normals[known], np.broadcast_to([0.0, 0.0, -1.0], (known.sum(), 3)), atol=1e-9)
    lonely = np.zeros((60, 80))
    lonely[5, 5] = 10.0
    assert not normals_from_depth(lonely, rays).any()


def test_edges_are_found_on_both_sides_and_in_diagonals():
    depth = np.full((20, 20), 10.0)
    depth[:, 10:] = 12.0
    valid = np.ones((20, 20), dtype=bool)
    smooth = edge_mask(depth, valid, 0.1)
    assert not smooth[:, 9:11].any()
    assert smooth[:, :9].all() and smooth[:, 11:].all()
    assert edge_mask(depth, valid, 0.25).all()
    corner = np.full((5, 5), 10.0)
    corner[2, 2] = 20.0
    assert edge_mask(corner, np.ones((5, 5), dtype=bool), 0.5).sum() == 25 - 9


def test_unknown_pixels_are_no_edge_but_are_not_kept():
    depth = np.full((20, 20), 10.0)
    depth[5] = 0.0
    valid = np.ones((20, 20), dtype=bool)
    valid[:, 3] = False
    np.testing.assert_array_equal(edge_mask(depth, valid, 0.05), valid & (depth > 0.0))


def test_a_refined_lens_keeps_the_distance_along_the_ray():
    old, new = (Camera("PINHOLE", 64, 48, (f, f, 31.5, 23.5)) for f in (40.0, 55.0))
    distance = np.full((24, 32), 50.0)
    depth_old, depth_new = (distance * ray_grid(resize(camera, 32, 24))[..., 2] for camera in (old, new))
    assert np.allclose(with_lens(depth_old, old, new), depth_new)
    assert with_lens(depth_old, old, old) is depth_old
