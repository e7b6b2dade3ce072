"""When and how well each vertex was seen, against a sphere whose answers are known."""

from __future__ import annotations

import numpy as np
import pytest
import trimesh
from fusion_scenes import fused, look_at, orbit, silent, sphere_depth, view_of

from recon.fusion.review import review
from recon.fusion.sightings import nearest_of, sight, timestamps_of
from recon.types import Mesh

RIM_COSINE = 0.25
"""Flatter than this the sphere is at its silhouette, where depth pixels are cut."""


@pytest.fixture(scope="module")
def cameras():
    return orbit()


@pytest.fixture(scope="module")
def reviewed(cameras) -> Mesh:
    views = [view_of(sphere_depth(T), T, i) for i, T in enumerate(cameras)]
    times = [100.0 + 0.5 * i for i in range(len(views))]
    return review(fused(views), views.__getitem__, times, 30.0, 2.0, silent)[0]


def true_cosines(vertices, cameras) -> np.ndarray:
    """Cosine of each (vertex, camera) on the sphere itself; it is convex, so what faces a camera is seen by it."""
    normals = vertices / np.linalg.norm(vertices, axis=1, keepdims=True)
    to_camera = np.array([T[:3, 3] for T in cameras]) - vertices[:, None]
    return np.sum(normals[:, None] * to_camera, axis=-1) / np.linalg.norm(to_camera, axis=-1)


def test_the_viewing_angle_is_the_smallest_over_the_cameras(reviewed, cameras):
    best = true_cosines(reviewed.vertices, cameras).max(axis=1)
    error = np.abs(reviewed.viewing_angle_rad - np.arccos(best))[best > RIM_COSINE]
    assert np.rad2deg(np.median(error)) < 1
    assert np.rad2deg(np.quantile(error, 0.99)) < 5
    assert reviewed.viewing_angle_rad.min() >= 0 and reviewed.viewing_angle_rad.max() <= np.float32(np.pi / 2)


def test_the_last_sighting_is_the_last_camera_that_faces_the_vertex(reviewed, cameras):
    cosines = true_cosines(reviewed.vertices, cameras)
    surely = np.max(np.where(cosines > RIM_COSINE, np.arange(len(cameras)), -1), axis=1)
    perhaps = np.max(np.where(cosines > 0, np.arange(len(cameras)), -1), axis=1)
    said = (reviewed.last_seen_s - 100.0) / 0.5
    has = surely >= 0
    assert np.mean((said >= surely)[has]) > 0.995
    assert np.mean((said <= perhaps)[has]) > 0.995


def test_what_stands_before_a_vertex_in_one_frame_hides_it():
    plane = trimesh.creation.box((40, 40, 0.01)).subdivide().subdivide().subdivide()
    front = np.array(plane.vertices)[:, 2] < 0
    vertices = np.array(plane.vertices)[front]
    normals = np.tile([0.0, 0.0, -1.0], (len(vertices), 1))
    T = look_at(np.array([0.0, 0.0, -30.0]), np.zeros(3))
    ball = sphere_depth(T, radius=4.0, center=np.array([0.0, 0.0, -15.0]))
    wall = np.full(ball.shape, 30.0)
    clear, hidden = (sight(vertices, normals, view_of(d, T), 1.0) for d in (wall, np.where(ball > 0, ball, wall)))
    behind = np.linalg.norm(vertices[:, :2], axis=1) < 6
    assert set(np.flatnonzero(behind)) <= set(clear.vertex)
    assert not set(np.flatnonzero(behind)) & set(hidden.vertex)
    assert np.allclose(clear.distance, np.linalg.norm(vertices[clear.vertex] - T[:3, 3], axis=1), rtol=1e-5)
    assert np.allclose(clear.cosine, clear.axis_cosine, atol=1e-5)  # a frontal plane: its normal is the optical axis


def test_a_vertex_that_no_frame_sees_is_said_to_be_seen_at_a_right_angle():
    back = np.array([[0.0, 0.0, 31.0], [1.0, 0.0, 31.0], [0.0, 1.0, 31.0], [0.0, 0.0, 90.0]])
    mesh = Mesh(back, np.array([[0, 1, 2], [0, 2, 3]]))
    seen, _ = review(mesh, lambda i: view_of(np.full((96, 128), 31.0), np.eye(4)), [2.5], 31.0, 0.5, silent)
    assert seen.viewing_angle_rad[3] == pytest.approx(np.pi / 2)
    assert seen.last_seen_s is None or np.all(seen.last_seen_s == 2.5)


def test_the_nearest_of_the_chosen_is_itself_where_chosen():
    vertices = np.array([[0.0, 0, 0], [1.0, 0, 0], [5.0, 0, 0]])
    assert nearest_of(vertices, [True, False, True]).tolist() == [0, 0, 2]


def test_times_go_by_frame_index():
    frames = [{"index": i, "timestamp_s": i / 25} for i in range(4)]
    assert timestamps_of(frames, [3, 1]) == [0.12, 0.04]
