"""Lenses: exact both ways, equal to OpenCV's and COLMAP's, carried through resize and crop, honest about where they end."""

import cv2
import numpy as np
import pycolmap
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recon.geometry import cameras
from recon.geometry.fit import fit_fisheye
from recon.types import Camera, ReconError

C3VD_SCARAMUZZA = Camera(
    "SCARAMUZZA",
    1350,
    1080,
    (
        678.544839263292,
        542.975887548343,
        769.243600037458,
        0.0,
        -0.000812770624150226,
        6.25674244578925e-07,
        -1.19662182144280e-09,
        0.999986882249990,
        0.00288273829525059,
        -0.00296316513429569,
    ),
)
C3VD_KB4 = Camera(
    "OPENCV_FISHEYE",
    1350,
    1080,
    (767.3861511, 767.5058656, 679.0542660, 543.6468917, -0.18867185, -0.00392734, 0.03052481, -0.01275693),
)
LENSES = {
    "simple_pinhole": Camera("SIMPLE_PINHOLE", 640, 480, (500.0, 321.0, 238.0)),
    "pinhole": Camera("PINHOLE", 640, 480, (500.0, 510.0, 321.0, 238.0)),
    "simple_radial_barrel": Camera("SIMPLE_RADIAL", 640, 480, (500.0, 321.0, 238.0, -0.2)),
    "radial": Camera("RADIAL", 640, 480, (500.0, 321.0, 238.0, -0.3, 0.05)),
    "opencv_barrel": Camera("OPENCV", 640, 480, (500.0, 510.0, 321.0, 238.0, -0.42, 0.106, 0.002, -0.001)),
    "opencv_folding": Camera("OPENCV", 640, 480, (300.0, 310.0, 321.0, 238.0, -0.35, 0.01, 0.003, -0.002)),
    "opencv_pincushion": Camera("OPENCV", 640, 480, (500.0, 510.0, 321.0, 238.0, 0.3, 0.1, 0.002, -0.001)),
    "fisheye": C3VD_KB4,
    "fisheye_equidistant": Camera("OPENCV_FISHEYE", 640, 480, (200.0, 205.0, 321.0, 238.0, 0.0, 0.0, 0.0, 0.0)),
    "scaramuzza": C3VD_SCARAMUZZA,
}
each_lens = pytest.mark.parametrize("camera", LENSES.values(), ids=LENSES.keys())


def rays_inside(camera: Camera, num: int = 4000, seed: int = 0) -> np.ndarray:
    """Unit rays spread over the lens' whole field, the axis among them."""
    rng = np.random.default_rng(seed)
    limit = min(cameras.angle_limit(camera) * (1.0 - 1e-9), np.deg2rad(89.0 if camera.model != "SCARAMUZZA" else 170.0))
    theta, phi = np.sqrt(rng.random(num)) * limit, rng.random(num) * 2.0 * np.pi
    theta[:3] = 0.0, 1e-12, 1e-7
    return np.stack([np.sin(theta) * np.cos(phi), np.sin(theta) * np.sin(phi), np.cos(theta)], axis=-1)


@each_lens
def test_unproject_inverts_project(camera):
    rays = rays_inside(camera)
    pixels, valid = cameras.project(camera, rays * np.linspace(0.1, 200.0, len(rays))[:, None])
    assert valid.all()
    np.testing.assert_allclose(cameras.unproject(camera, pixels), rays, atol=1e-9)
    assert cameras.covers(camera, pixels).all()


@each_lens
def test_project_inverts_unproject_on_the_image(camera):
    grid = cameras.pixel_grid(camera)[::7, ::7]
    rays = cameras.unproject(camera, grid)
    assert np.isfinite(rays).all()
    np.testing.assert_allclose(np.linalg.norm(rays, axis=-1), 1.0, atol=1e-12)
    covered = cameras.covers(camera, grid)
    back, _ = cameras.project(camera, rays)
    np.testing.assert_allclose(back[covered], grid[covered], atol=1e-6)
    assert covered[len(covered) // 2, covered.shape[1] // 2]


@each_lens
def test_image_radius_grows_with_the_angle_up_to_the_limit(camera):
    limit = min(cameras.angle_limit(camera), np.deg2rad(89.5 if camera.model != "SCARAMUZZA" else 175.0))
    theta = np.linspace(0.0, limit * (1.0 - 1e-9), 500)
    for phi in np.linspace(0.0, 2.0 * np.pi, 13):
        rays = np.stack([np.sin(theta) * np.cos(phi), np.sin(theta) * np.sin(phi), np.cos(theta)], axis=-1)
        pixels, valid = cameras.project(camera, rays)
        assert valid.all()
        assert (np.diff(np.linalg.norm(pixels - pixels[0], axis=-1)) > 0.0).all()


def test_beyond_the_fold_is_invalid_and_finite():
    camera = LENSES["opencv_folding"]
    limit = cameras.angle_limit(camera)
    assert 0.5 < limit < 1.0  # 1 + 3 k1 r^2 + 5 k2 r^4 vanishes near r = 1
    angles = np.array([limit - 1e-3, limit + 1e-3, 1.5, 1.58, 3.0])
    points = np.stack([np.sin(angles), 0.0 * angles, np.cos(angles)], axis=-1)
    pixels, valid = cameras.project(camera, points)
    assert valid.tolist() == [True, False, False, False, False]
    assert np.isfinite(pixels).all()
    far = np.array([[1e5, 238.0], [-1e5, -1e5]])
    assert not cameras.covers(camera, far).any()
    assert np.isfinite(cameras.unproject(camera, far)).all()


def test_fisheye_and_scaramuzza_limits():
    folding = Camera("OPENCV_FISHEYE", 640, 480, (300.0, 300.0, 319.5, 239.5, -0.2, 0.0, 0.0, 0.0))
    # 1 - 0.6 theta^2 falls to MIN_SLOPE.
    assert cameras.angle_limit(folding) == pytest.approx(np.sqrt(0.95 / 0.6))
    assert cameras.angle_limit(LENSES["fisheye_equidistant"]) == pytest.approx(np.pi)
    assert np.pi / 2 < cameras.angle_limit(C3VD_SCARAMUZZA) < np.pi
    assert cameras.angle_limit(LENSES["pinhole"]) == pytest.approx(np.pi / 2)


@each_lens
def test_points_behind_and_at_the_centre_are_invalid(camera):
    pixels, valid = cameras.project(camera, np.array([[0.0, 0.0, 0.0], [0.0, 0.0, -1.0], [0.1, 0.0, -1e-9]]))
    assert np.isfinite(pixels).all()
    wide = cameras.angle_limit(camera) > 0.5 * np.pi + 1e-6
    assert not valid[0]
    assert valid[2] == wide


def test_perspective_agrees_with_opencv():
    camera = LENSES["opencv_barrel"]
    fx, fy, cx, cy, k1, k2, p1, p2 = camera.params
    points = rays_inside(camera, seed=1) * 30.0
    points = points[points[:, 2] > 10.0]
    expected, _ = cv2.projectPoints(
        points, np.zeros(3), np.zeros(3), np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]]), np.array([k1, k2, p1, p2])
    )
    np.testing.assert_allclose(cameras.project(camera, points)[0], expected[:, 0], rtol=1e-9, atol=1e-8)


def test_fisheye_agrees_with_opencv():
    fx, fy, cx, cy, *k = C3VD_KB4.params
    points = rays_inside(C3VD_KB4, seed=2) * 30.0
    expected, _ = cv2.fisheye.projectPoints(
        points[:, None], np.zeros(3), np.zeros(3), np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]]), np.array(k)
    )
    np.testing.assert_allclose(cameras.project(C3VD_KB4, points)[0], expected[:, 0], rtol=1e-9, atol=1e-6)


@pytest.mark.parametrize("name", [name for name in LENSES if name != "scaramuzza"])
def test_agrees_with_colmap_whose_pixel_centres_are_at_halves(name):
    camera = LENSES[name]
    params = list(camera.params)
    centre = 1 if camera.model in ("SIMPLE_PINHOLE", "SIMPLE_RADIAL", "RADIAL") else 2
    params[centre] += 0.5
    params[centre + 1] += 0.5
    colmap = pycolmap.Camera(model=camera.model, width=camera.width_px, height=camera.height_px, params=params)
    rays = rays_inside(camera, seed=3)
    points = rays[rays[:, 2] > 0.1]
    expected = np.asarray(colmap.img_from_cam(points)) - 0.5
    np.testing.assert_allclose(cameras.project(camera, points)[0], expected, rtol=1e-9, atol=1e-6)


@each_lens
@settings(max_examples=15, deadline=None)
@given(width=st.integers(50, 2000), height=st.integers(50, 2000))
def test_resize_moves_pixels_by_the_resize_map(camera, width, height):
    points = rays_inside(camera, num=200, seed=4)
    resized = cameras.resize(camera, width, height)
    assert (resized.width_px, resized.height_px) == (width, height)
    factor = np.array([width / camera.width_px, height / camera.height_px])
    expected = (cameras.project(camera, points)[0] + 0.5) * factor - 0.5
    np.testing.assert_allclose(cameras.project(resized, points)[0], expected, rtol=1e-9, atol=1e-6)


@each_lens
def test_crop_moves_pixels_by_its_corner(camera):
    points = rays_inside(camera, num=200, seed=5)
    cropped = cameras.crop(camera, 31, -12, 200, 100)
    assert (cropped.model, cropped.width_px, cropped.height_px) == (camera.model, 200, 100)
    np.testing.assert_allclose(cameras.project(cropped, points)[0], cameras.project(camera, points)[0] - (31, -12), atol=1e-6, rtol=1e-9)


def test_equal_factors_keep_a_single_focal_model():
    assert cameras.resize(LENSES["simple_radial_barrel"], 320, 240).model == "SIMPLE_RADIAL"
    assert cameras.resize(LENSES["simple_radial_barrel"], 320, 200).model == "OPENCV"


def test_c3vd_lens_agrees_with_its_published_fisheye():
    pixels = cameras.pixel_grid(C3VD_SCARAMUZZA)[::20, ::20]
    central = np.linalg.norm(pixels - (678.5, 543.0), axis=-1) < 500.0
    rays = cameras.unproject(C3VD_SCARAMUZZA, pixels[central])
    other, valid = cameras.project(C3VD_KB4, rays)
    distance = np.linalg.norm(other - pixels[central], axis=-1)
    assert valid.all()
    assert distance.mean() < 1.5
    assert distance.max() < 2.5


def test_c3vd_lens_sees_sideways_only_in_its_corners():
    usable = cameras.usable_mask(C3VD_SCARAMUZZA)
    assert 0.98 < usable.mean() < 1.0
    assert not usable[0, 0]
    assert usable[540].all()


@pytest.mark.parametrize("size", [(1350, 1080), (960, 768), (675, 540)])
def test_fisheye_fit_stands_in_for_the_c3vd_lens(size):
    camera = cameras.resize(C3VD_SCARAMUZZA, *size)
    fisheye, R_camera_fisheye, residual_px = fit_fisheye(camera)
    assert residual_px < 0.3 * size[0] / 1350
    usable = cameras.usable_mask(camera)[::9, ::9]
    pixels = cameras.pixel_grid(camera)[::9, ::9][usable]
    rays = cameras.unproject(camera, pixels)
    found, valid = cameras.project(fisheye, rays @ R_camera_fisheye)
    assert valid.all()
    assert np.linalg.norm(found - pixels, axis=-1).max() < 1.1 * residual_px + 1e-3
    np.testing.assert_allclose(R_camera_fisheye[2], [0.0, 0.0, 1.0])


def test_fisheye_fit_of_a_fisheye_is_itself():
    fisheye, R_camera_fisheye, residual_px = fit_fisheye(C3VD_KB4)
    assert residual_px < 1e-5
    np.testing.assert_allclose(fisheye.params, C3VD_KB4.params, rtol=1e-4)
    np.testing.assert_allclose(R_camera_fisheye, np.eye(3), atol=1e-7)


def test_impossible_lenses_are_refused():
    with pytest.raises(ReconError, match="positive focal"):
        cameras.angle_limit(Camera("PINHOLE", 10, 10, (0.0, 5.0, 5.0, 5.0)))
    with pytest.raises(ReconError, match="at least one pixel"):
        cameras.crop(LENSES["pinhole"], 0, 0, 0, 5)
