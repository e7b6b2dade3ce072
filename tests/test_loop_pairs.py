"""Pairs of frames that show the same place again, found by their features alone."""

from __future__ import annotations

import numpy as np
import pycolmap
from heightfield import CAMERA, render, sideways

from recon.io.images import write_jpeg
from recon.tracking.features import FeatureOptions, match_frames
from recon.tracking.loop_pairs import alike, loop_pairs, vlad


def test_summary_of_a_frame_has_norm_one_and_forgets_the_order():
    rng = np.random.default_rng(0)
    words, features = rng.random((4, 8)).astype(np.float32), rng.random((30, 8)).astype(np.float32)
    summary = vlad(features, words)
    assert np.isclose(np.linalg.norm(summary), 1.0)
    assert np.allclose(vlad(features[::-1], words), summary, atol=1e-6)
    assert not vlad(features[:0], words).any()


def test_pairs_are_far_apart_alike_and_unique():
    likeness = np.full((8, 8), 0.1)
    likeness[0, 7] = likeness[7, 0] = 0.9
    likeness[0, 1] = likeness[1, 0] = 0.95
    assert alike(likeness, overlap=2, threshold=0.5) == [(0, 7)]
    assert alike(likeness, overlap=2, threshold=0.95) == []


def test_a_camera_that_comes_back_is_matched_with_where_it_was(tmp_path):
    there = sideways(9, step=0.35)
    poses = [*there, *reversed(there[:-1])]
    names = [f"{k:06d}.jpg" for k in range(len(poses))]
    for name, pose in zip(names, poses, strict=True):
        write_jpeg(tmp_path / "images" / name, render(pose)[0])
    pycolmap.logging.minloglevel = pycolmap.logging.FATAL.value
    options = FeatureOptions(max_num_features=600, overlap=2)
    match_frames(tmp_path / "database.db", tmp_path / "images", None, names, CAMERA, options)
    pairs = {(int(a[:6]), int(b[:6])) for a, b in loop_pairs(tmp_path / "database.db", names, 2, seed=0)}
    assert {(k, 16 - k) for k in range(6)} <= pairs
    with pycolmap.Database.open(tmp_path / "database.db") as database:
        ids = {image.name: image.image_id for image in database.read_all_images()}
        # 12 frames apart: neither a near successor nor at a doubling distance.
        assert len(database.read_two_view_geometry(ids[names[2]], ids[names[14]]).inlier_matches) > 50
