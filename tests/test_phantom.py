"""The phantom's truth is exact: analytic shapes, light that obeys its law, one seed one picture."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from recon.data.phantom import open_phantom
from recon.data.phantom.geometry import Surface, TubeShape, capsule, grid_faces, organ, tube
from recon.data.phantom.noise import noise_volume, sample_noise
from recon.data.phantom.randomize import random_imaging, random_lens, random_view
from recon.data.phantom.render import Imaging, render
from recon.data.phantom.scene import KINDS, Material, Scene, random_scene
from recon.geometry.cameras import project, ray_grid
from recon.types import Camera, ReconError

CAMERA = Camera("PINHOLE", 64, 48, (40.0, 40.0, 31.5, 23.5))
MATT = Material((0.5, 0.5, 0.5), variation=0.0, vessels=0.0, grain=0.0, bump=0.0, gloss=0.0)


def sphere_scene(radius_mm: float, material: Material = MATT) -> Scene:
    """A camera at the centre of a sphere."""
    surface = organ(np.random.default_rng(0), np.zeros(3), np.full(3, radius_mm), noise_volume(0), roughness=0.0, rows=200)
    return Scene((surface,), (material,), np.eye(4)[None], noise_volume(0))


def plane_scene(distance_mm: float) -> Scene:
    corners = np.array([[-500.0, -500, distance_mm], [500, -500, distance_mm], [500, 500, distance_mm], [-500, 500, distance_mm]])
    return Scene((Surface(corners, np.array([[0, 1, 2], [0, 2, 3]])),), (MATT,), np.eye(4)[None], noise_volume(0))


def test_distance_in_a_sphere_is_its_radius():
    rendering = render(sphere_scene(30.0), CAMERA, np.eye(4), Imaging(), np.random.default_rng(0))
    assert np.abs(rendering.distance_mm - 30.0).max() < 0.02


def test_depth_of_a_plane_is_constant_and_distance_is_not():
    rendering = render(plane_scene(40.0), CAMERA, np.eye(4), Imaging(), np.random.default_rng(0))
    assert np.allclose(rendering.distance_mm * ray_grid(CAMERA)[..., 2], 40.0, atol=1e-3)


def test_brightness_obeys_the_inverse_square_and_cosine_laws():
    imaging = Imaging(
        lamp_offset_mm=(0.0, 0.0, 0.0), spot_exponent=0.0, ambient=0.0, gamma=1.0, knee=0.99, vignetting=0.0, noise=0.0, exposure_target=0.8
    )
    image = render(plane_scene(40.0), CAMERA, np.eye(4), imaging, np.random.default_rng(0)).image.astype(float)
    cosine = ray_grid(CAMERA)[..., 2]
    expected = cosine**3  # cos of incidence, and 1 / distance^2 with distance = depth / cos
    ratio = image[..., 0] / expected
    assert np.abs(ratio / np.median(ratio) - 1).max() < 0.05


def test_exposure_makes_pictures_independent_of_distance():
    near, far = (
        render(plane_scene(d), CAMERA, np.eye(4), Imaging(lamp_offset_mm=(0.0, 0.0, 0.0), noise=0.0), np.random.default_rng(0)).image
        for d in (20.0, 80.0)
    )
    assert np.abs(near.astype(int) - far.astype(int)).max() <= 1


def test_a_highlight_sits_where_the_wall_faces_the_lamp():
    scene = plane_scene(40.0)
    glossy = Scene(
        scene.surfaces,
        (Material((0.2, 0.05, 0.05), 0.0, vessels=0.0, grain=0.0, bump=0.0, gloss=2.0, shininess=200.0),),
        scene.path,
        scene.volume,
    )
    image = render(glossy, CAMERA, np.eye(4), Imaging(lamp_offset_mm=(0.0, 0.0, 0.0), noise=0.0), np.random.default_rng(0)).image
    brightest = np.argwhere(image[..., 2] == image[..., 2].max()).mean(axis=0)
    assert np.hypot(brightest[0] - 23.5, brightest[1] - 31.5) < 2


def test_noise_has_unit_variance_and_repeats_with_its_period():
    volume = noise_volume(3)
    points = torch.rand(20_000, 3) * 100
    values = sample_noise(volume, points, 6.0)
    assert values.mean().abs() < 0.1
    # Trilinear interpolation between voxels loses part of the variance.
    assert 0.4 < values.var() < 1.1
    assert torch.allclose(values, sample_noise(volume, points + 64.0, 6.0), atol=1e-2)


def test_a_straight_smooth_tube_is_a_cylinder():
    shape = TubeShape(length_mm=100.0, radius_mm=10.0, bend=0.0, radius_variation=0.0, lobe_height=0.0, fold_height=0.0, bump_mm=0.0)
    surface, points, _ = tube(np.random.default_rng(0), shape, noise_volume(0))
    middle = np.abs(surface.vertices[:, 2] - 50) < 30
    assert np.allclose(np.hypot(*surface.vertices[middle, :2].T), 10.0)
    assert np.allclose(points[-1], [0, 0, 100])


def test_wrapped_grids_close():
    surface = capsule(np.zeros(3), np.array([0.0, 0.0, 1.0]), 2.0, 20.0)
    edges = np.sort(surface.faces[:, [[0, 1], [1, 2], [2, 0]]].reshape(-1, 2), axis=1)
    _, counts = np.unique(edges, axis=0, return_counts=True)
    assert (counts == 1).sum() == 2 * 40  # the two open rims alone
    assert len(grid_faces(3, 4, wrap=False)) == 12


@pytest.mark.parametrize("kind", KINDS)
def test_one_seed_one_picture(kind):
    def draw(seed: int):
        rng = np.random.default_rng(seed)
        return random_view(random_scene(kind, seed), rng, 64, 64)

    first, again, other = draw(2), draw(2), draw(3)
    assert first is not None and other is not None
    assert np.array_equal(first[0].image, again[0].image) and np.array_equal(first[0].distance_mm, again[0].distance_mm)
    assert not np.array_equal(first[0].image, other[0].image)


def test_random_lenses_see_forward_over_their_whole_picture():
    rng = np.random.default_rng(0)
    for _ in range(50):
        camera = random_lens(rng, 64, 48)
        rays = ray_grid(camera)
        assert rays[..., 2].min() > 0.1
        pixels, valid = project(camera, rays[::7, ::7])
        assert valid.all() and np.isfinite(pixels).all()
        assert 0 < random_imaging(rng).exposure_target < 1


def test_truth_of_a_recording_agrees_with_itself():
    sequence = open_phantom("phantom:tube?seed=1&frames=4&width=96&height=80&step_mm=2")
    assert len(sequence.frames) == 4 and sequence.unit == "mm"
    steps = np.linalg.norm(np.diff(sequence.trajectory_gt.T_world_camera[:, :3, 3], axis=0), axis=1)
    assert np.allclose(steps, 2.0, atol=0.15)
    rotations = sequence.trajectory_gt.T_world_camera[:, :3, :3]
    assert np.allclose(rotations @ rotations.transpose(0, 2, 1), np.eye(3), atol=1e-9)
    # Points of frame 1 lie on the mesh that the recording saw.
    import open3d as o3d

    depth = sequence.depth_gt(1)
    rays = ray_grid(sequence.camera)
    points = (rays / rays[..., 2:] * depth.depth_mm[..., None])[depth.valid]
    T_world_camera = sequence.trajectory_gt.T_world_camera[1]
    mesh = sequence.mesh_gt()
    caster = o3d.t.geometry.RaycastingScene()
    caster.add_triangles(o3d.core.Tensor(mesh.vertices.astype(np.float32)), o3d.core.Tensor(mesh.faces.astype(np.uint32)))
    away = caster.compute_distance(o3d.core.Tensor((points @ T_world_camera[:3, :3].T + T_world_camera[:3, 3]).astype(np.float32))).numpy()
    assert np.percentile(away, 99) < 0.05


def test_frames_are_the_same_each_time_they_are_read():
    sequence = open_phantom("phantom:tube?seed=1&frames=3&width=64&height=64")
    assert np.array_equal(sequence.frames[2].image(), sequence.frames[2].image())
    assert not np.array_equal(sequence.frames[0].image(), sequence.frames[2].image())


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("phantom:liver", "no kind 'liver'; it has: tube"),
        ("phantom:tube?sede=1", "no option 'sede'; it has: kind, seed"),
        ("phantom:tube?frames=many", "frames must be of type int, found 'many'"),
        ("phantom:tube?frames=1", "frames >= 2"),
        ("phantom:tube?lens=mirror", "'fisheye' or 'pinhole'"),
        ("phantom:tube?fov_deg=179", "fov_deg must be"),
    ],
)
def test_a_wrong_spec_says_what_is_known(spec, says):
    with pytest.raises(ReconError, match=says.replace("?", r"\?")):
        open_phantom(spec)
