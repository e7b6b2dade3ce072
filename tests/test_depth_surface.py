"""Surfaces of depth maps: hand-computed faces, occlusion edges cut, any lens, nothing that is not there."""

import numpy as np
import pytest
from heightfield import CAMERA as WALL_CAMERA
from heightfield import height, render

from recon.data.c3vd import CAMERA as COLONOSCOPE
from recon.geometry.cameras import resize, unproject
from recon.geometry.depth_surface import depth_surface
from recon.types import Camera, Mesh, ReconError

SMALL = Camera("PINHOLE", 3, 2, (10.0, 10.0, 1.0, 0.5))


def surface(depth: list, camera: Camera = SMALL, **options: float) -> Mesh:
    values = np.array(depth, dtype=np.float64)
    return depth_surface(camera, values, values > 0, **options)


def normals(mesh: Mesh) -> np.ndarray:
    p, q, r = (mesh.vertices[mesh.faces[:, k]] for k in range(3))
    return np.cross(q - p, r - p)


def test_a_flat_wall_by_hand():
    mesh = surface([[20, 20, 20], [20, 20, 20]])
    assert np.allclose(mesh.vertices, [[-2, -1, 20], [0, -1, 20], [2, -1, 20], [-2, 1, 20], [0, 1, 20], [2, 1, 20]])
    assert sorted(map(sorted, mesh.faces.tolist())) == [[0, 1, 3], [1, 2, 4], [1, 3, 4], [2, 4, 5]]
    assert np.allclose(normals(mesh), (0, 0, -4))  # towards the camera, twice the area of a 2 x 2 mm half square
    assert mesh.unit == "mm"


def test_one_unknown_corner_leaves_one_face_of_its_square():
    for v in range(2):
        for u in range(2):
            depth = np.full((2, 2), 20.0)
            depth[v, u] = 0
            mesh = surface(depth, Camera("PINHOLE", 2, 2, (10.0, 10.0, 0.5, 0.5)))
            assert (len(mesh.faces), len(mesh.vertices)) == (1, 3)
            assert normals(mesh)[0, 2] < 0


def test_a_step_is_cut_and_a_slope_is_not():
    """Pixels are 0.05 mm apart at 20 mm: a step of 1 mm across one is seen at 87 degrees, one of 0.25 mm at 79 degrees."""
    camera = Camera("PINHOLE", 3, 2, (400.0, 400.0, 1.0, 0.5))
    assert len(surface([[20, 20, 21], [20, 20, 21]], camera).faces) == 2
    assert len(surface([[20, 20, 21], [20, 20, 21]], camera, max_grazing_deg=88.0).faces) == 4
    assert len(surface([[20, 20, 20.25], [20, 20, 20.25]], camera).faces) == 4


def test_the_cut_follows_a_slanted_edge():
    """Both diagonals of the image: the lone far corner is cut off, the three near ones keep their face."""
    camera = Camera("PINHOLE", 2, 2, (10.0, 10.0, 0.5, 0.5))
    for far in range(4):
        depth = np.full(4, 20.0)
        depth[far] = 90.0
        mesh = surface(depth.reshape(2, 2), camera)
        assert len(mesh.faces) == 1
        assert np.allclose(mesh.vertices[:, 2], 20)


def test_grazing_angle_against_the_ray_not_against_the_axis():
    """Walls parallel to the axis of a wide lens are seen from the side and stay; the same step in the middle is cut."""
    camera = Camera("PINHOLE", 41, 3, (10.0, 10.0, 20.0, 1.0))
    across = np.abs(np.arange(41) - 20) / 10
    tunnel = np.where(across > 0.95, 20 / np.maximum(across, 0.1), 20.0)  # x = +-20 mm beyond 43 degrees from the axis
    mesh = depth_surface(camera, np.tile(tunnel, (3, 1)), np.ones((3, 41), bool))
    assert len(mesh.faces) == 2 * 40 * 2


def test_a_curved_wall_lies_on_its_formula():
    _, depth = render(np.eye(4))
    mesh = depth_surface(WALL_CAMERA, depth, depth > 0)
    assert len(mesh.faces) == 2 * 239 * 179
    centers = mesh.vertices[mesh.faces].mean(axis=1)
    assert np.abs(height(*centers.T[:2]) - centers[:, 2]).max() < 1e-4
    assert np.all(np.einsum("ij,ij->i", normals(mesh), centers) < 0)


def test_a_distorted_lens_gives_the_same_sphere():
    """A sphere of 40 mm around the camera: z-depth is 40 mm times the z of the ray, for every lens."""
    camera = resize(COLONOSCOPE, 135, 108)
    u, v = np.meshgrid(np.arange(135.0), np.arange(108.0))
    depth = 40 * unproject(camera, np.stack([u, v], axis=-1))[..., 2]
    mesh = depth_surface(camera, depth, np.ones_like(depth, dtype=bool))
    assert np.allclose(np.linalg.norm(mesh.vertices, axis=1), 40)
    assert len(mesh.vertices) > 0.97 * depth.size


def test_agrees_with_a_loop_over_random_depth():
    """An independent count: a face stays when the angle between normal and direction is below the limit."""
    rng = np.random.default_rng(4)
    camera = Camera("PINHOLE", 12, 9, (11.0, 13.0, 5.0, 4.5))
    depth = rng.uniform(20, 60, (9, 12)) * (rng.random((9, 12)) > 0.2)
    mesh = depth_surface(camera, depth, depth > 0)
    expected = 0
    point = {(v, u): np.array([(u - 5.0) / 11, (v - 4.5) / 13, 1]) * depth[v, u] for v in range(9) for u in range(12) if depth[v, u] > 0}
    for v in range(8):
        for u in range(11):
            a, b, c, d = (v, u), (v, u + 1), (v + 1, u), (v + 1, u + 1)
            whole = all(corner in point for corner in (a, b, c, d))
            if whole and abs(depth[a] - depth[d]) >= abs(depth[b] - depth[c]):
                triangles = [(a, b, c), (b, c, d)]
            elif whole:
                triangles = [(a, c, d), (a, d, b)]
            else:
                known = tuple(corner for corner in (a, b, c, d) if corner in point)
                triangles = [known] if len(known) == 3 else []
            for triangle in triangles:
                p, q, r = (point[corner] for corner in triangle)
                normal, center = np.cross(q - p, r - p), (p + q + r) / 3
                angle = np.degrees(np.arccos(abs(normal @ center) / np.linalg.norm(normal) / np.linalg.norm(center)))
                expected += angle < 85
    assert len(mesh.faces) == expected > 20


def test_unknown_depth_and_bad_sizes():
    assert surface([[0, 0, 0], [0, 0, 0]]).faces.shape == (0, 3)
    assert surface([[0, 20, 0], [0, 0, 0]]).vertices.shape == (0, 3)
    depth = np.array([[20, np.nan, 20], [np.inf, 20, -5]])
    assert len(depth_surface(SMALL, depth, np.ones((2, 3), bool)).faces) == 0
    with pytest.raises(ReconError, match="depth map of 2x3: the camera is for 3x2"):
        depth_surface(SMALL, np.ones((3, 2)), np.ones((3, 2), bool))
