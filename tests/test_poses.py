"""Anyone's camera poses: formats read against the programs that write them, frames found again, damage named."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pycolmap
import pytest
from evo.tools import file_interface

from recon.eval.association import by_order, by_timestamp, on_frames_of
from recon.geometry.se3 import exp
from recon.io.colmap import write_colmap
from recon.io.colmap_poses import read_colmap_poses
from recon.io.kitti import read_kitti, write_kitti
from recon.io.poses import read_poses
from recon.io.trajectory import write_tum
from recon.types import Camera, ReconError, Trajectory

CAMERA = Camera("PINHOLE", 640, 480, (500.0, 500.0, 320.0, 240.0))
NUM_MUTATIONS = 200


def poses(num=6, seed=0) -> np.ndarray:
    return exp(np.random.default_rng(seed).normal(0, 1, (num, 6)))


def trajectory(num=6, rate=25.0, indices=None) -> Trajectory:
    idx = np.arange(num) if indices is None else np.array(indices)
    return Trajectory(idx, idx / rate, poses(num), "mm")


def write_model(folder: Path, T: np.ndarray, names: list[str]) -> None:
    write_colmap(folder, CAMERA, dict(enumerate(names)), dict(enumerate(T)))


# --- formats


def test_every_format_gives_the_same_poses(tmp_path):
    T = poses()
    write_tum(tmp_path / "a.tum", trajectory())
    write_kitti(tmp_path / "b.txt", T)
    write_model(tmp_path / "binary", T, [f"{k:06d}.jpg" for k in range(6)])
    (tmp_path / "text").mkdir()
    pycolmap.Reconstruction(tmp_path / "binary").write_text(tmp_path / "text")
    for name in ("a.tum", "b.txt", "binary", "text", "text/images.txt"):
        read = read_poses(tmp_path / name, "mm")
        assert np.allclose(read.T_world_camera, T, atol=1e-7) and read.unit == "mm"
        assert read.frame_indices.tolist() == list(range(6))
        assert np.isnan(read.timestamps_s).all() == (name != "a.tum")


def test_kitti_agrees_with_evo(tmp_path):
    write_kitti(tmp_path / "a.txt", poses())
    other = file_interface.read_kitti_poses_file(str(tmp_path / "a.txt"))
    assert np.array_equal(read_kitti(tmp_path / "a.txt").T_world_camera, np.stack(other.poses_se3))


def test_kitti_lines_find_their_frames_in_the_file_beside(tmp_path):
    write_kitti(tmp_path / "a.txt", poses(3))
    (tmp_path / "a_frames.txt").write_text("4\n7\n9\n")
    assert read_poses(tmp_path / "a.txt").frame_indices.tolist() == [4, 7, 9]
    for text, word in (("4\n7\n", "should name 3"), ("4\n7\n7\n", "different"), ("4\n-7\n9\n", "line 2"), ("4\n7\n1e9\n", "line 3")):
        (tmp_path / "a_frames.txt").write_text(text)
        with pytest.raises(ReconError, match=rf"a_frames\.txt.*{word}"):
            read_poses(tmp_path / "a.txt")


def test_a_colmap_model_is_found_in_its_workspace_and_inverted(tmp_path):
    T = poses(3)
    write_model(tmp_path / "work" / "sparse" / "0", T, ["shot_12.png", "shot_3.png", "cam1/shot_7.png"])
    read = read_poses(tmp_path / "work")
    assert read.frame_indices.tolist() == [3, 7, 12]
    assert np.allclose(read.T_world_camera, T[[1, 2, 0]], atol=1e-9)
    model = pycolmap.Reconstruction(tmp_path / "work" / "sparse" / "0")
    for image in model.images.values():
        index = int(image.name.removesuffix(".png").split("_")[-1])
        assert np.allclose(image.projection_center(), read.T_world_camera[read.frame_indices == index][0, :3, 3])


def test_frame_names_of_the_recording_go_before_numbers(tmp_path):
    write_model(tmp_path, poses(2), ["b_01.jpg", "b_02.jpg"])
    assert read_poses(tmp_path).frame_indices.tolist() == [1, 2]
    assert read_poses(tmp_path, frame_names=("b_01.png", "b_02.png", "b_03.png")).frame_indices.tolist() == [0, 1]
    assert read_poses(tmp_path, frame_names=("b_02.png", "c.png")).frame_indices.tolist() == [1, 2]


def test_points_of_text_models_are_passed_over_even_when_empty(tmp_path):
    (tmp_path / "images.txt").write_text(
        "# comment\n1 1 0 0 0 1 2 3 1 f 5.png\n10 20 -1 30 40 7\n\n2 1 0 0 0 4 5 6 1 f 6.png\n\n3 1 0 0 0 7 8 9 1 f 7.png"
    )
    read = read_poses(tmp_path)
    assert read.frame_indices.tolist() == [5, 6, 7] and read.T_world_camera[:, 0, 3].tolist() == [-1, -4, -7]


# --- bad input


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "0 words"),
        ("1 2 3\n", "3 words"),
        ("1 0 0 0 0 1 0 0 0 0 1\n", "11 words"),
        ("1 0 0 0 0 1 0 0 0 0 1 0\n1 0 0 0 0 1 0 0 0 0 x 0\n", "line 2"),
        ("1 0 0 0 0 1 0 0 0 0 1 nan\n", "line 1"),
        ("# c\n2 0 0 0 0 2 0 0 0 0 2 0\n", "line 2.*no rotation"),
        ("1 0 0 0 0 1 0 0 0 0 -1 0\n", "no rotation"),
        ("1e11 0 0 0 0 1e11 0 0 0 0 1 0\n", "no rotation"),
        ("0 0 0 0 0 0 0 3\n", "quaternion"),
    ],
)
def test_bad_text_files_name_the_line(tmp_path, text, word):
    (tmp_path / "t.txt").write_text(text)
    with pytest.raises(ReconError, match=rf"t\.txt.*{word}"):
        read_poses(tmp_path / "t.txt")


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("# nothing\n", "no posed image"),
        ("1 1 0 0 0 0 0 0 1 a.png\n\n", "no number"),
        ("1 1 0 0 0 0 0 0 1\n\n", "line 1"),
        ("1 1 0 0 0 0 0 inf 1 a1.png\n\n", "no finite"),
        ("1 0 0 0 0 0 0 0 1 a1.png\n\n", "rotation"),
        ("1 1 0 0 0 0 0 0 1 left/1.png\n\n2 1 0 0 0 0 0 0 2 right/1.png\n\n", "left/1.png.*right/1.png"),
    ],
)
def test_bad_colmap_models_are_named(tmp_path, text, word):
    (tmp_path / "images.txt").write_text(text)
    with pytest.raises(ReconError, match=rf"images\.txt.*{word}"):
        read_poses(tmp_path)


def test_what_holds_no_poses_is_named(tmp_path):
    (tmp_path / "video.mp4").write_bytes(bytes(range(256)))
    for path, word in ((tmp_path / "absent", "does not exist"), (tmp_path, "no COLMAP model"), (tmp_path / "video.mp4", "cannot be read")):
        with pytest.raises(ReconError, match=word):
            read_poses(path)
    with pytest.raises(ReconError, match="no COLMAP model"):
        read_poses(tmp_path, fmt="colmap")


@pytest.mark.parametrize("name", ["images.bin", "images.txt", "a.txt"])
def test_damaged_files_give_poses_or_one_line(tmp_path, name):
    write_model(tmp_path / "good", poses(5), [f"{k:03d}.png" for k in range(5)])
    pycolmap.Reconstruction(tmp_path / "good").write_text(tmp_path / "good")
    write_kitti(tmp_path / "good" / "a.txt", poses(5))
    content, rng, refused = (tmp_path / "good" / name).read_bytes(), np.random.default_rng(7), 0
    for k in range(NUM_MUTATIONS):
        data = bytearray(content)
        if k % 4 == 0:
            del data[rng.integers(len(data)) :]
        elif k % 4 == 1:
            start = rng.integers(len(data))
            data[start:start] = rng.bytes(3)
        else:
            for position in rng.integers(len(data), size=k % 4):
                data[position] = rng.integers(256)
        (tmp_path / name).write_bytes(bytes(data))
        try:
            read = read_poses(tmp_path / name)
        except ReconError as error:
            assert name in str(error) and "\n" not in str(error) and len(str(error)) < 500
            refused += 1
        else:
            assert len(read) and np.isfinite(read.T_world_camera).all()
    assert refused > NUM_MUTATIONS // 10


def test_a_binary_model_that_claims_more_than_it_holds_is_refused_at_once(tmp_path):
    write_model(tmp_path, poses(2), ["1.png", "2.png"])
    content = (tmp_path / "images.bin").read_bytes()
    for damaged in (b"\xff" * 8 + content[8:], content[:-8] + b"\xff" * 7 + b"\x7f", content[:90], b""):
        (tmp_path / "images.bin").write_bytes(damaged)
        with pytest.raises(ReconError, match=r"images\.bin is .*damaged"):
            read_colmap_poses(tmp_path)


# --- frames


def test_times_find_the_nearest_frame_once():
    gt = trajectory(6)
    pred = Trajectory(np.arange(5), np.array([0.161, 0.001, 0.0415, 0.038, 0.3]), poses(5, seed=2), "mm")
    found = by_timestamp(pred, gt, 0.01)
    assert found.frame_indices.tolist() == [0, 1, 4]
    assert np.array_equal(found.T_world_camera, pred.T_world_camera[[1, 2, 0]])
    assert len(by_timestamp(pred, gt, 1e-4)) == 0


def test_by_timestamp_agrees_with_evo():
    from evo.core.sync import associate_trajectories
    from evo.core.trajectory import PoseTrajectory3D

    rng = np.random.default_rng(0)
    gt = trajectory(200)
    kept = np.sort(rng.choice(200, 120, replace=False))
    pred = Trajectory(np.arange(120), kept / 25 + rng.uniform(-0.015, 0.015, 120), poses(120, 3), "mm")
    ours = by_timestamp(pred, gt, 0.01)
    as_evo = [PoseTrajectory3D(poses_se3=list(t.T_world_camera), timestamps=t.timestamps_s) for t in (gt, pred)]
    reference, estimate = associate_trajectories(*as_evo, max_diff=0.01)
    assert np.array_equal(ours.timestamps_s, estimate.timestamps)
    assert np.allclose(ours.frame_indices / 25, reference.timestamps)


def test_poses_come_to_frames_by_what_they_know():
    gt = trajectory(10)
    by_time, notes = on_frames_of(replace(gt, frame_indices=np.arange(100, 110)), gt)
    assert by_time.frame_indices.tolist() == list(range(10)) and not notes

    numbered, notes = on_frames_of(Trajectory(np.arange(3), np.array([2.0, 5.0, 7.0]), poses(3), "mm"), gt)
    assert numbered.frame_indices.tolist() == [2, 5, 7] and "whole numbers" in notes[0]

    timeless = Trajectory(np.arange(10), np.full(10, np.nan), poses(10), "mm")
    same, notes = on_frames_of(timeless, gt)
    assert same.frame_indices.tolist() == list(range(10)) and "frame number" in notes[0]

    from_one, notes = on_frames_of(replace(timeless, frame_indices=np.arange(1, 11)), gt)
    assert from_one.frame_indices.tolist() == list(range(10)) and "by order" in notes[0]

    other_rate, notes = on_frames_of(replace(gt, timestamps_s=np.arange(10) / 31), gt)
    assert other_rate.frame_indices.tolist() == list(range(10)) and "by order" in notes[0]

    part, notes = on_frames_of(replace(gt, timestamps_s=gt.timestamps_s + 0.16), trajectory(12))
    assert part.frame_indices.tolist() == list(range(4, 12)) and "8 of 10" in notes[0]


def test_poses_that_belong_nowhere_are_refused():
    gt = trajectory(10)
    with pytest.raises(ReconError, match="same clock"):
        on_frames_of(Trajectory(np.arange(4), 100.5 + np.arange(4) / 25, poses(4), "mm"), gt)
    with pytest.raises(ReconError, match="none of their 3 frame numbers"):
        on_frames_of(Trajectory(np.array([50, 51, 52]), np.full(3, np.nan), poses(3), "mm"), gt)
    with pytest.raises(ReconError, match="by order"):
        by_order(trajectory(3), gt)
