"""Local features in COLMAP's conventions: where they lie, how they turn, and what the mask keeps out."""

from __future__ import annotations

import numpy as np
import pycolmap
from heightfield import CAMERA, render

from recon.io.colmap_camera import PIXEL_CENTRE_SHIFT, colmap_params
from recon.io.images import write_png
from recon.tracking.sift import FeatureDatabase, detect

PICTURE = render(np.eye(4))[0]


def blob(x: float, y: float) -> np.ndarray:
    """A Gaussian spot of sigma 4 at a place between pixels, centres at integers."""
    v, u = np.mgrid[0:120, 0:160]
    spot = np.exp(-((u - x) ** 2 + (v - y) ** 2) / (2 * 4.0**2))
    return np.repeat(np.rint(40 + 180 * spot).astype(np.uint8)[..., None], 3, axis=-1)


def test_a_spot_is_found_where_it_is_and_as_large_as_it_is():
    for x, y in ((60.0, 50.0), (71.3, 44.6), (80.75, 60.25)):
        found = detect(blob(x, y), None, 100, 0.0015).keypoints
        nearest = found[np.argmin(np.hypot(found[:, 0] - PIXEL_CENTRE_SHIFT - x, found[:, 1] - PIXEL_CENTRE_SHIFT - y))]
        assert np.allclose(nearest[:2] - PIXEL_CENTRE_SHIFT, (x, y), atol=0.1)
        assert 3.0 < nearest[2] < 6.0


def test_features_are_those_of_colmap(tmp_path):
    """COLMAP's own detector on the same picture: most places are the same, and what is at the same place is described alike."""
    ours = detect(PICTURE, None, 1000, 0.0015)
    write_png(tmp_path / "images" / "a.png", PICTURE)
    options = pycolmap.FeatureExtractionOptions()
    options.sift.peak_threshold = 0.0015
    pycolmap.extract_features(tmp_path / "database.db", tmp_path / "images", extraction_options=options, device=pycolmap.Device.cpu)
    with pycolmap.Database.open(tmp_path / "database.db") as database:
        (image,) = database.read_all_images()
        places = database.read_keypoints(image.image_id)[:, :2]
        descriptors = database.read_descriptors(image.image_id).data.astype(float)
    nearest = np.linalg.norm(ours.keypoints[:, None, :2] - places[None], axis=-1)
    at_same = nearest.min(axis=1) < 0.3
    assert at_same.mean() > 0.7
    unit = descriptors / np.linalg.norm(descriptors, axis=1, keepdims=True)
    likeness = (ours.descriptors[at_same] / np.linalg.norm(ours.descriptors[at_same].astype(float), axis=1, keepdims=True)) @ unit.T
    # A place can carry several scales and orientations: of those at the same place the most alike counts.
    best = np.where(nearest[at_same] < 0.3, likeness, -1).max(axis=1)
    assert np.median(best) > 0.95


def test_nothing_is_found_under_the_mask_or_without_texture():
    mask = np.ones(PICTURE.shape[:2], bool)
    mask[:, :120] = False
    found = detect(PICTURE, mask, 500, 0.0015).keypoints
    assert len(found) > 20 and (found[:, 0] > 119).all()
    assert len(detect(np.full_like(PICTURE, 90), None, 500, 0.0015).keypoints) == 0


def test_the_database_holds_what_was_written(tmp_path):
    features = detect(PICTURE, None, 300, 0.0015)
    with FeatureDatabase(tmp_path / "database.db", CAMERA) as database:
        for name in ("a.jpg", "b.jpg"):
            database.add(name, features)
    with pycolmap.Database.open(tmp_path / "database.db") as read:
        (camera,) = read.read_all_cameras()
        assert camera.model.name == "PINHOLE" and np.allclose(camera.params, colmap_params(CAMERA))
        images = read.read_all_images()
        assert [image.name for image in images] == ["a.jpg", "b.jpg"]
        assert np.allclose(read.read_keypoints(images[0].image_id)[:, :2], features.keypoints[:, :2])
        assert np.array_equal(read.read_descriptors(images[1].image_id).data, features.descriptors)
