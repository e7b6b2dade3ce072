"""One lens seen through another: exact maps, values that survive, borders that are marked."""

import numpy as np
import pytest

from recon.geometry import cameras
from recon.geometry.fit import default_camera
from recon.geometry.surface import backproject
from recon.geometry.undistort import MAX_PINHOLE_FOV_RAD, pinhole_for, remap, remap_grid
from recon.types import Camera, ReconError

FISHEYE = Camera("OPENCV_FISHEYE", 160, 120, (70.0, 71.0, 80.0, 59.0, -0.02, 0.003, 0.0, 0.0))


def test_pinhole_has_the_field_of_view_and_aspect_asked_for():
    pinhole = pinhole_for(FISHEYE, np.deg2rad(80.0), 200)
    assert (pinhole.model, pinhole.width_px, pinhole.height_px) == ("PINHOLE", 200, 150)
    edges = cameras.unproject(pinhole, np.array([[-0.5, 74.5], [199.5, 74.5]]))
    assert np.arccos(edges[0] @ edges[1]) == pytest.approx(np.deg2rad(80.0))
    assert pinhole.params[0] == pinhole.params[1]


def test_field_of_view_is_capped_by_the_lens_and_by_sanity():
    narrow = default_camera(160, 120, np.deg2rad(40.0))
    assert pinhole_for(narrow, np.deg2rad(120.0), 160).params[0] == pytest.approx(narrow.params[0])
    wide = Camera("OPENCV_FISHEYE", 160, 120, (40.0, 40.0, 79.5, 59.5, 0.0, 0.0, 0.0, 0.0))
    f = pinhole_for(wide, np.deg2rad(179.0), 160).params[0]
    assert 2.0 * np.arctan(80.0 / f) == pytest.approx(MAX_PINHOLE_FOV_RAD)
    with pytest.raises(ReconError, match="field of view"):
        pinhole_for(wide, 0.0, 160)


def test_identity_map_changes_nothing():
    image = np.random.default_rng(0).integers(0, 255, (120, 160, 3), dtype=np.uint8)
    map_xy, valid = remap_grid(FISHEYE, FISHEYE)
    assert valid.all()
    np.testing.assert_allclose(map_xy, cameras.pixel_grid(FISHEYE), atol=1e-4)
    np.testing.assert_array_equal(remap(image, np.round(map_xy), valid), image)


def test_a_plane_keeps_its_z_depth():
    """A tilted plane rendered through both lenses: remapping the one gives the other."""
    normal = np.array([0.2, -0.1, 1.0])

    def plane_depth(camera: Camera) -> np.ndarray:
        rays = cameras.ray_grid(camera)
        return rays[..., 2] * 50.0 / (rays @ normal)

    pinhole = pinhole_for(FISHEYE, np.deg2rad(70.0), 160)
    map_xy, valid = remap_grid(FISHEYE, pinhole)
    assert valid.all()
    remapped = remap(plane_depth(FISHEYE).astype(np.float32), map_xy, valid)
    np.testing.assert_allclose(remapped, plane_depth(pinhole), rtol=2e-3)
    points = backproject(pinhole, plane_depth(pinhole))
    np.testing.assert_allclose(points @ normal, 50.0, rtol=1e-9)


def test_outside_the_source_is_invalid_and_zero():
    narrow = default_camera(160, 120, np.deg2rad(40.0))
    wide = default_camera(160, 120, np.deg2rad(80.0))
    map_xy, valid = remap_grid(narrow, wide)
    assert valid[60, 80] and not valid[0, 0]
    mask = remap(np.ones((120, 160), dtype=bool), map_xy, valid, "nearest")
    assert mask.dtype == np.bool_
    np.testing.assert_array_equal(mask, valid)
    share = np.tan(np.deg2rad(20.0)) / np.tan(np.deg2rad(40.0))
    assert valid.mean() == pytest.approx(share**2, rel=0.05)
