"""View synthesis: lenses equal to numpy's, planes that warp where geometry says, gradients that are derivatives."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from torch.autograd import gradcheck

from recon.geometry import cameras, se3
from recon.geometry.surface import backproject
from recon.geometry.torch_cameras import LearnedPinhole, TorchLens
from recon.geometry.torch_se3 import motion, rotation
from recon.geometry.warp import back_project, correspond, displaced, inside, register, sample, synthesise, transform
from recon.types import Camera, ReconError

SCARAMUZZA = (67.85, 54.30, 76.92, 0.0, -0.0081277, 6.25674e-05, -1.19662e-06, 0.99998, 0.00288, -0.00296)
LENSES = {
    "simple_pinhole": Camera("SIMPLE_PINHOLE", 128, 96, (90.0, 64.2, 47.1)),
    "pinhole": Camera("PINHOLE", 128, 96, (90.0, 92.0, 64.2, 47.1)),
    "simple_radial": Camera("SIMPLE_RADIAL", 128, 96, (90.0, 64.2, 47.1, -0.2)),
    "radial": Camera("RADIAL", 128, 96, (90.0, 64.2, 47.1, -0.3, 0.05)),
    "opencv": Camera("OPENCV", 128, 96, (90.0, 92.0, 64.2, 47.1, -0.3, 0.08, 0.02, -0.01)),
    "fisheye": Camera("OPENCV_FISHEYE", 128, 96, (72.0, 73.0, 64.2, 47.1, -0.19, -0.004, 0.03, -0.013)),
    "scaramuzza": Camera("SCARAMUZZA", 128, 96, SCARAMUZZA),
}
each_lens = pytest.mark.parametrize("camera", LENSES.values(), ids=LENSES.keys())


def random_points(num: int, seed: int = 0) -> torch.Tensor:
    """Points all around the camera, one on the axis, one nearly there, one behind, one at the centre, none quite sideways."""
    rng = np.random.default_rng(seed)
    points = rng.normal(size=(num, 3)) * np.exp(rng.normal(size=(num, 1)) * 2.0)
    points[:, 2] += np.copysign(0.01, points[:, 2]) * np.linalg.norm(points, axis=-1)
    points[:4] = (0, 0, 5), (1e-9, -1e-9, 3), (0, 0, -2), (0, 0, 0)
    return torch.from_numpy(points)[None, None]


def to_image(values: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(values))[None]


@each_lens
def test_projection_is_that_of_the_numpy_lens(camera):
    points = random_points(4000)
    pixels, valid = TorchLens([camera], dtype=torch.float64).project(points)
    expected, expected_valid = cameras.project(camera, points.numpy())
    assert (valid.numpy() == expected_valid).all() and expected_valid.mean() > 0.1
    assert np.abs(pixels.numpy() - expected)[expected_valid].max() < 1e-4
    assert torch.isfinite(pixels).all()


def test_the_table_of_a_full_size_lens_is_far_under_a_pixel():
    lens = Camera(
        "SCARAMUZZA", 1350, 1080, (678.5448, 542.9759, 769.2436, 0.0, -0.00081277, 6.2567e-07, -1.1966e-09, 0.99999, 0.0028827, -0.0029632)
    )
    points = random_points(20000)
    for dtype, limit_px in ((torch.float64, 1e-3), (torch.float32, 1e-2)):
        pixels, valid = TorchLens([lens], dtype=dtype).project(points.to(dtype))
        expected, expected_valid = cameras.project(lens, points.numpy())
        both = valid.numpy() & expected_valid
        assert both.sum() >= expected_valid.sum() - 2
        assert np.abs(pixels.numpy() - expected)[both].max() < limit_px


@each_lens
def test_rays_and_points_are_those_of_the_numpy_lens(camera):
    lens = TorchLens([camera], dtype=torch.float64)
    assert (lens.rays[0].numpy() == cameras.ray_grid(camera)).all()
    assert (lens.usable[0].numpy() == cameras.usable_mask(camera)).all()
    depth = np.random.default_rng(1).uniform(10.0, 90.0, (camera.height_px, camera.width_px))
    points = back_project(to_image(depth), lens.rays)
    np.testing.assert_allclose(points[lens.usable].numpy(), backproject(camera, depth)[cameras.usable_mask(camera)], rtol=1e-12)
    assert torch.isfinite(points).all()


def test_lenses_mix_in_a_batch():
    chosen = [LENSES[name] for name in ("fisheye", "opencv", "scaramuzza", "fisheye", "pinhole")]
    mixed = TorchLens(chosen, dtype=torch.float64)
    points = random_points(500).expand(5, -1, -1, -1)
    pixels, valid = mixed.project(points)
    for i, camera in enumerate(chosen):
        single = TorchLens([camera], dtype=torch.float64)
        expected, expected_valid = single.project(points[:1])
        assert torch.equal(pixels[i], expected[0]) and torch.equal(valid[i], expected_valid[0])
        assert torch.equal(mixed.rays[i], single.rays[0])


@pytest.mark.parametrize("chosen", [[], [LENSES["pinhole"], cameras.resize(LENSES["pinhole"], 64, 48)]], ids=["none", "two_sizes"])
def test_a_batch_has_one_size(chosen):
    with pytest.raises(ReconError, match="one image size"):
        TorchLens(chosen)


@each_lens
def test_projection_has_the_right_gradient(camera):
    lens = TorchLens([camera], dtype=torch.float64)
    points = torch.tensor([[[[0.0, 0.0, 4.0], [0.3, -0.2, 2.0], [1e-7, 0.0, 3.0], [-1.0, 0.8, 2.5]]]], dtype=torch.float64)
    assert gradcheck(lambda p: lens.project(p)[0], (points.requires_grad_(),))


@each_lens
def test_nothing_behind_or_beside_the_camera_spoils_a_gradient(camera):
    points = random_points(4000).float().requires_grad_()
    pixels, _ = TorchLens([camera]).project(points)
    sample(torch.rand(1, 3, 96, 128), pixels).sum().backward()
    assert torch.isfinite(points.grad).all()


def test_motion_is_the_rotation_and_translation_it_says():
    rng = np.random.default_rng(2)
    axis_angle = rng.normal(size=(50, 3)) * np.logspace(-9, 0.3, 50)[:, None]
    t = rng.normal(size=(50, 3))
    T = motion(torch.from_numpy(axis_angle), torch.from_numpy(t)).numpy()
    np.testing.assert_allclose(T[:, :3, :3], Rotation.from_rotvec(axis_angle).as_matrix(), atol=1e-14)
    np.testing.assert_array_equal(T[:, :3, 3], t)
    np.testing.assert_array_equal(T[:, 3], np.tile([0.0, 0.0, 0.0, 1.0], (50, 1)))
    inverse = motion(torch.from_numpy(axis_angle), torch.from_numpy(t), invert=True).numpy()
    np.testing.assert_allclose(inverse, se3.inverse(T), atol=1e-14)


@pytest.mark.parametrize("size", [0.0, 1e-6, 0.0099, 0.0101, 1.0])
def test_motion_has_the_right_gradient_everywhere(size):
    axis_angle = torch.tensor([[0.6, -0.48, 0.64]], dtype=torch.float64) * size
    t = torch.tensor([[1.0, 2.0, 3.0]], dtype=torch.float64)
    for invert in (False, True):
        assert gradcheck(lambda w, t, invert=invert: motion(w, t, invert), (axis_angle.requires_grad_(), t.requires_grad_()))
    zero = torch.zeros(1, 3, requires_grad=True)
    rotation(zero)[0, 0, 1].backward()
    assert zero.grad.tolist() == [[0.0, 0.0, -1.0]]


@each_lens
def test_without_motion_the_view_is_the_source(camera):
    lens = TorchLens([camera, camera])
    source, depth = torch.rand(2, 3, 96, 128), torch.rand(2, 96, 128) * 50 + 20
    image, valid = synthesise(source, depth, torch.eye(4).expand(2, 4, 4), lens)
    assert torch.equal(valid, lens.usable) and valid.float().mean() > 0.9
    assert (image - source).abs()[valid[:, None].expand_as(image)].max() < 1e-4


def plane_seen(rays: np.ndarray, T_world_camera: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Colours (3, h, w) in 0..1 and z-depth of a slanted plane along unit rays of a camera, by meeting the rays with it.

    Its colour at a place is a soft wave of the place's direction from the origin, so no pixel of a wide lens holds many waves.
    """
    normal, offset = np.array([0.25, -0.15, 1.0]), 60.0
    directions, origin = rays @ T_world_camera[:3, :3].T, T_world_camera[:3, 3]
    distance = (offset - origin @ normal) / (directions @ normal)
    points = origin + distance[..., None] * directions
    unit = points / np.linalg.norm(points, axis=-1, keepdims=True)
    waves = [np.sin(unit @ wave) for wave in ([5.0, 2.0, 0.0], [-2.0, 5.0, 0.0], [4.0, -4.0, 1.0])]
    return 0.5 + 0.4 * np.stack(waves), distance * rays[..., 2]


@each_lens
def test_a_plane_is_seen_from_the_side_as_geometry_says(camera):
    rays, T_world_source = cameras.ray_grid(camera), se3.exp(np.array([3.0, -2.0, 4.0, 0.03, 0.05, -0.08]))
    (target, depth), (source, _) = plane_seen(rays, np.eye(4)), plane_seen(rays, T_world_source)
    # Corners of a very wide lens look past the plane.
    hit = torch.from_numpy((depth > 0.0) & (depth < 500.0))[None]
    lens, T_source_target = TorchLens([camera], dtype=torch.float64), to_image(se3.inverse(T_world_source))
    where = correspond(to_image(depth), T_source_target, lens)
    rays_there = cameras.unproject(camera, where.pixels[0].numpy())
    target_there, depth_there = plane_seen(rays_there, T_world_source)
    seen = hit & where.valid
    assert ((where.depth - to_image(depth_there)).abs() / where.depth)[seen].max() < 1e-5
    assert (to_image(target_there) - to_image(target)).abs().amax(dim=1)[seen].max() < 1e-5

    # Towards the end of a lens' field one pixel spans up to twenty times the angle, and values between pixels are no straight line.
    is_gentle = rays_there[..., 2] > np.cos(min(0.85 * cameras.angle_limit(camera), np.deg2rad(65.0)))
    well_inside = seen & to_image(is_gentle) & inside(where.pixels - 2.0, 92, 124)
    image, valid = synthesise(to_image(source), to_image(depth), T_source_target, lens)
    assert well_inside.float().mean() > 0.5 and torch.equal(valid, where.valid)
    assert (image - to_image(target)).abs().amax(dim=1)[well_inside].max() < 0.5 / 255
    assert (to_image(source) - to_image(target)).abs().max() > 20 / 255


def test_a_sideways_step_shifts_by_whole_pixels():
    camera = Camera("PINHOLE", 10, 6, (20.0, 20.0, 3.7, 2.2))
    source = torch.arange(60.0).reshape(1, 1, 6, 10)
    T_source_target = torch.eye(4)[None].clone()
    T_source_target[0, 0, 3] = 3.0 * 40.0 / 20.0
    image, valid = synthesise(source, torch.full((1, 6, 10), 40.0), T_source_target, TorchLens([camera]))
    assert torch.allclose(image[..., :7], source[..., 3:], atol=1e-4) and torch.allclose(image[..., 7:], source[..., 9:], atol=1e-4)
    assert valid[0, 0].tolist() == [True] * 7 + [False] * 3


def test_pixel_centres_are_at_integers():
    image = torch.arange(20.0).reshape(1, 1, 4, 5)
    pixels = torch.tensor([[[[0.0, 0.0], [4.0, 3.0], [2.5, 1.0], [2.0, 1.5], [-3.0, 0.0], [-0.5, 0.0]]]])
    assert torch.allclose(sample(image, pixels)[0, 0, 0], torch.tensor([0.0, 19.0, 7.5, 9.5, 0.0, 0.0]), atol=1e-5)
    assert sample(image + 1.0, pixels, "zeros")[0, 0, 0, 4] == 0.0
    assert inside(pixels, 4, 5)[0, 0].tolist() == [True, True, True, True, False, True]


def test_registration_pulls_by_a_flow_in_y_x_order():
    source = torch.rand(1, 3, 6, 8)
    flow = torch.zeros(1, 2, 6, 8)
    flow[:, 0], flow[:, 1] = 1.0, 2.0
    assert torch.allclose(register(source, flow)[..., :5, :6], source[..., 1:, 2:], atol=1e-5)
    assert displaced(flow)[0, 3, 4].tolist() == [6.0, 4.0]


@each_lens
def test_a_flipped_recording_has_a_flipped_lens(camera):
    flipped = cameras.mirror(camera)
    assert cameras.mirror(flipped) == camera
    np.testing.assert_allclose(cameras.ray_grid(flipped)[:, ::-1] * (-1.0, 1.0, 1.0), cameras.ray_grid(camera), atol=1e-12)
    x = np.diag([-1.0, 1.0, 1.0, 1.0])
    T = motion(torch.tensor([[0.02, -0.05, 0.03]]).double(), torch.tensor([[3.0, 1.0, -2.0]]).double())
    source, depth = torch.rand(1, 3, 96, 128).double(), torch.rand(1, 96, 128).double() * 20 + 40
    image, valid = synthesise(source, depth, T, TorchLens([camera], dtype=torch.float64))
    T_flipped = torch.from_numpy(x @ T[0].numpy() @ x)[None]
    again, valid_again = synthesise(source.flip(-1), depth.flip(-1), T_flipped, TorchLens([flipped], dtype=torch.float64))
    assert torch.equal(valid_again.flip(-1), valid)
    assert torch.allclose(again.flip(-1), image, atol=1e-5)
    wrong, _ = synthesise(source.flip(-1), depth.flip(-1), T_flipped, TorchLens([camera], dtype=torch.float64))
    assert (wrong.flip(-1) - image).abs().max() > 0.01


@pytest.mark.parametrize("name", ["pinhole", "opencv", "fisheye", "scaramuzza"])
def test_synthesis_has_the_right_gradient(name):
    lens = TorchLens([cameras.resize(LENSES[name], 6, 5)], dtype=torch.float64)
    generator = torch.Generator().manual_seed(3)
    source, depth, w, t = (torch.rand(*shape, generator=generator).double() for shape in ((1, 2, 5, 6), (1, 5, 6), (1, 3), (1, 3)))

    def view(source, depth, w, t):
        return synthesise(source, 10.0 + depth, motion(0.1 * w, t), lens)[0]

    assert gradcheck(view, [x.requires_grad_() for x in (source, depth, w, t)])


def test_a_learned_pinhole_is_the_pinhole_and_learns():
    focal, centre = torch.tensor([[90.0, 92.0]]).double(), torch.tensor([[64.2, 47.1]]).double()
    learned, given = LearnedPinhole(focal, centre, 96, 128), TorchLens([LENSES["pinhole"]], dtype=torch.float64)
    depth, T = torch.rand(1, 96, 128).double() + 5, motion(torch.full((1, 3), 0.1).double(), torch.ones(1, 3).double())
    for ours, expected in zip(correspond(depth, T, learned), correspond(depth, T, given), strict=True):
        assert torch.allclose(ours.double(), expected.double(), atol=1e-9)

    def pixels(focal, centre):
        return correspond(depth[:, :4, :5], T, LearnedPinhole(focal, centre, 4, 5)).pixels

    assert gradcheck(pixels, (focal.requires_grad_(), centre.requires_grad_()))


@each_lens
def test_mixed_precision_does_not_reach_the_geometry(camera):
    lens, depth = TorchLens([camera]), torch.rand(1, 96, 128) * 50 + 20

    def pixels():
        return correspond(depth, motion(torch.full((1, 3), 0.03), torch.ones(1, 3), invert=True), lens).pixels

    with torch.autocast("cpu", torch.bfloat16):
        mixed = pixels()
    assert torch.equal(mixed, pixels())


def test_transform_is_the_matrix_product():
    T = motion(torch.randn(2, 3), torch.randn(2, 3))
    points = torch.randn(2, 3, 4, 3)
    homogeneous = torch.cat([points, torch.ones(2, 3, 4, 1)], dim=-1)
    assert torch.allclose(transform(T, points), (homogeneous.flatten(1, 2) @ T.mT).reshape(2, 3, 4, 4)[..., :3], atol=1e-5)
