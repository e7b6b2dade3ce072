"""Structure from motion on a rendered wall: poses up to a similarity, masks respected, twice the same, maps joined."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from heightfield import CAMERA, render, sideways

from recon.geometry import se3
from recon.geometry.alignment import umeyama
from recon.geometry.cameras import project
from recon.geometry.similarity import Similarity
from recon.io.colmap_camera import colmap_lens, colmap_params
from recon.io.images import write_jpeg, write_png
from recon.tracking.features import FeatureOptions
from recon.tracking.joining import by_shared_points, merged, transformed
from recon.tracking.mapping import SparseMap, map_frames
from recon.tracking.stillness import is_still
from recon.types import Camera

NUM_FRAMES = 8
OPTIONS = FeatureOptions(max_num_features=1000, overlap=4)
HIDDEN = (slice(0, 60), slice(0, 80))
SIMILARITY = Similarity(2.5, se3.exp(np.array([0, 0, 0, 0.3, -0.2, 0.5]))[:3, :3], np.array([1.0, -2.0, 3.0]))


@pytest.fixture(scope="module")
def recording(tmp_path_factory) -> tuple[Path, list[np.ndarray]]:
    """Images, and masks that hide a corner."""
    folder = tmp_path_factory.mktemp("wall")
    poses = sideways(NUM_FRAMES)
    mask = np.full((CAMERA.height_px, CAMERA.width_px), 255, np.uint8)
    mask[HIDDEN] = 0
    for index, pose in enumerate(poses):
        write_jpeg(folder / "images" / f"{index:06d}.jpg", render(pose)[0])
        write_png(folder / "masks" / f"{index:06d}.jpg.png", mask)
    return folder, poses


def mapped(folder: Path, work: Path, camera: Camera = CAMERA, refine: bool = False) -> list[SparseMap]:
    names = {index: f"{index:06d}.jpg" for index in range(NUM_FRAMES)}
    return map_frames(folder / "images", folder / "masks", names, camera, refine, work, OPTIONS)


@pytest.fixture(scope="module")
def sparse(recording, tmp_path_factory) -> SparseMap:
    return mapped(recording[0], tmp_path_factory.mktemp("work"))[0]


def same(a: SparseMap, b: SparseMap) -> bool:
    arrays = ("xyz", "error_px", "obs_point", "obs_frame", "obs_px", "obs_feature")
    poses = a.poses.keys() == b.poses.keys() and all(np.array_equal(a.poses[i], b.poses[i]) for i in a.poses)
    return poses and all(np.array_equal(getattr(a, name), getattr(b, name)) for name in arrays)


def centres_error(sparse: SparseMap, poses: list[np.ndarray]) -> float:
    """Largest distance of camera centres after the best similarity, in units of the path."""
    indices = sorted(sparse.poses)
    found, truth = (np.array([p[i][:3, 3] for i in indices]) for p in (sparse.poses, poses))
    aligned = umeyama(found, truth).map(found)
    return float(np.linalg.norm(aligned - truth, axis=1).max() / np.linalg.norm(np.diff(truth, axis=0), axis=1).sum())


def test_recovers_the_trajectory(sparse, recording):
    assert sorted(sparse.poses) == list(range(NUM_FRAMES))
    assert centres_error(sparse, recording[1]) < 0.01
    for a, b in ((0, 4), (2, 7)):
        relative = se3.inverse(sparse.poses[a]) @ sparse.poses[b]
        truth = se3.inverse(recording[1][a]) @ recording[1][b]
        assert np.degrees(np.linalg.norm(se3.log(se3.inverse(truth) @ relative)[3:])) < 0.2


def test_observations_are_in_our_pixels(sparse):
    """Points reproject onto their observations with our own cameras, without COLMAP's half pixel."""
    T = np.array([se3.inverse(sparse.poses[i]) for i in sparse.obs_frame])
    points = (T[:, :3, :3] @ sparse.xyz[sparse.obs_point][..., None])[..., 0] + T[:, :3, 3]
    offset = project(CAMERA, points)[0] - sparse.obs_px
    assert np.abs(np.median(offset, axis=0)).max() < 0.05
    assert np.median(np.linalg.norm(offset, axis=1)) < 0.5


def test_masked_pixels_are_not_observed(sparse):
    hidden = (sparse.obs_px[:, 0] < HIDDEN[1].stop - 1) & (sparse.obs_px[:, 1] < HIDDEN[0].stop - 1)
    assert len(sparse.obs_px) > 500 and not hidden.any()


def test_twice_the_same_and_an_interrupted_database_is_thrown_away(sparse, recording, tmp_path):
    (tmp_path / "database.db").write_bytes(b"half of a database")
    again = mapped(recording[0], tmp_path)[0]
    assert same(sparse, again)
    continued = mapped(recording[0], tmp_path)[0]
    assert same(sparse, continued)


def test_estimated_focal_length_is_refined(recording, tmp_path):
    guess = Camera("SIMPLE_RADIAL", CAMERA.width_px, CAMERA.height_px, (230.0, 119.5, 89.5, 0.0))
    result = mapped(recording[0], tmp_path, guess, refine=True)[0]
    # Eight frames along a short arc determine it weakly: nearer to the truth is all that can be asked.
    assert abs(result.camera.params[0] - 200.0) < 0.7 * abs(230.0 - 200.0)
    assert result.camera.params[1:3] == pytest.approx((119.5, 89.5))


def test_images_without_texture_give_no_map(tmp_path):
    for index in range(NUM_FRAMES):
        write_jpeg(tmp_path / "images" / f"{index:06d}.jpg", np.full((180, 240, 3), 100, np.uint8))
        write_png(tmp_path / "masks" / f"{index:06d}.jpg.png", np.full((180, 240), 255, np.uint8))
    assert mapped(tmp_path, tmp_path / "work") == []


def test_scaramuzza_stands_in_as_a_fisheye():
    a = (380.0, 0.0, -1.6e-3, 2.5e-6, -9.5e-9)
    camera = Camera("SCARAMUZZA", 320, 240, (160.0, 120.0, *a, 1.0, 0.003, -0.003))
    lens = colmap_lens(camera)
    rays = np.array([[0.0, 0.0, 1.0], [0.2, -0.1, 1.0], [-0.3, 0.2, 1.0]])
    ours, _ = project(camera, rays)
    theirs, _ = project(lens.camera, rays @ lens.R_camera_lens)
    assert lens.camera.model == "OPENCV_FISHEYE"
    assert np.abs(ours - theirs).max() <= lens.residual_px + 1e-6 < 0.5
    assert colmap_params(lens.camera)[2] == pytest.approx(lens.camera.params[2] + 0.5)


def part(sparse: SparseMap, frames: range) -> SparseMap:
    """What the map would hold had it seen these frames alone."""
    keep = np.isin(sparse.obs_frame, list(frames))
    poses = {i: T for i, T in sparse.poses.items() if i in frames}
    names = ("obs_point", "obs_frame", "obs_px", "obs_feature")
    return replace(sparse, poses=poses, **{name: getattr(sparse, name)[keep] for name in names})


def test_maps_that_share_frames_are_joined(sparse):
    first, second = part(sparse, range(0, 5)), transformed(part(sparse, range(3, NUM_FRAMES)), SIMILARITY)
    rng = np.random.default_rng(0)
    wrong = rng.choice(len(second.xyz), len(second.xyz) // 4, replace=False)
    second.xyz[wrong] += rng.normal(0, 5.0, (len(wrong), 3))
    whole = merged(first, transformed(second, by_shared_points(first, second, seed=0)))
    assert sorted(whole.poses) == list(range(NUM_FRAMES))
    assert all(np.allclose(whole.poses[i], sparse.poses[i], atol=1e-6) for i in sparse.poses)
    assert whole.obs_point.max() < len(whole.xyz) == len(whole.error_px)
    assert not set(whole.obs_frame[whole.obs_point >= len(first.xyz)]) & set(first.poses)


def test_maps_without_common_points_are_not_joined(sparse):
    assert by_shared_points(part(sparse, range(0, 3)), part(sparse, range(4, 8)), seed=0) is None


def test_similarity_keeps_axes_of_unit_length(sparse):
    moved = transformed(sparse, SIMILARITY)
    assert all(np.allclose(T[:3, :3] @ T[:3, :3].T, np.eye(3)) for T in moved.poses.values())
    z = [(se3.inverse(m.poses[2]) @ np.append(m.xyz[0], 1.0))[2] for m in (sparse, moved)]
    assert z[1] == pytest.approx(SIMILARITY.scale * z[0])


def test_stillness_tells_a_moving_camera_from_breathing_tissue(sparse):
    mean = np.stack([np.bincount(sparse.obs_point, x) / np.bincount(sparse.obs_point) for x in sparse.obs_px.T], axis=-1)
    breathing = 2.0 * np.sin(np.array([[1.9], [1.3]]) * sparse.obs_frame).T
    assert is_still(replace(sparse, obs_px=mean[sparse.obs_point]))
    assert is_still(replace(sparse, obs_px=mean[sparse.obs_point] + breathing))
    assert not is_still(sparse)
    slow = replace(sparse, obs_px=mean[sparse.obs_point] + 0.05 * (sparse.obs_px - mean[sparse.obs_point]))
    assert not is_still(slow)
