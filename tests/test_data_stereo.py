"""SCARED and StereoMIS: left views of stacked videos, with truth brought to this project's conventions."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from layouts import poses, save, write_c3vd, write_endonerf, write_folder, write_jhu, write_servct
from layouts_stereo import (
    DISTORTION,
    HEIGHT,
    K_RIGHT,
    R_RIGHT,
    T_RIGHT_MM,
    WIDTH,
    K,
    frame_data,
    frame_depth,
    grey,
    opencv_yaml,
    write_archive,
    write_keyframe,
    write_points,
    write_scared,
    write_stacked_video,
    write_stereomis,
)

from recon.data import c3vd, endonerf, jhu, scared, servct, stereomis, video
from recon.data.scared import open_scared
from recon.data.stereo import open_left_view, opencv_camera, read_opencv_matrices
from recon.data.stereomis import POSE_LAG_FRAMES, open_stereomis
from recon.geometry.cameras import project
from recon.types import Camera, FrameError, ReconError

pytestmark = pytest.mark.filterwarnings("error")
LENS = (60.0, 61.0, 30.5, 25.25)


def assert_left_views(frames, count):
    assert len(frames) == count
    assert [frame.index for frame in frames[1:3]] == [1, 2]
    for number in (count - 1, 0, 1):
        image = frames[number].image()
        assert image.shape == (HEIGHT, WIDTH, 3)
        assert abs(image[: HEIGHT - 4].mean() - grey(number)) < 3
    assert np.allclose([frame.timestamp_s for frame in frames], np.arange(count) / 25, atol=1e-4)


def test_layouts_are_not_taken_for_another(tmp_path):
    others = [write_folder(tmp_path / "a"), write_c3vd(tmp_path / "b"), write_servct(tmp_path / "Experiment_1"), tmp_path]
    others += [write_endonerf(tmp_path / "d"), write_jhu(tmp_path / "e"), Path(__file__), tmp_path / "missing"]
    assert not any(scared.matches(path) or stereomis.matches(path) for path in others)
    mine = write_scared(tmp_path / "f" / "dataset_1" / "keyframe_1")
    endoscope = write_stereomis(tmp_path / "P1")
    assert scared.matches(mine) and not stereomis.matches(mine)
    assert stereomis.matches(endoscope) and not scared.matches(endoscope)
    assert not any(other.matches(path) for other in (c3vd, endonerf, jhu, servct, video) for path in (mine, endoscope))


# --- SCARED


@pytest.mark.parametrize("packed", [True, False])
def test_scared_recording(tmp_path, packed):
    sequence = open_scared(write_scared(tmp_path / "dataset_1" / "keyframe_2", packed=packed))
    assert (sequence.name, sequence.unit, sequence.is_unrelated) == ("dataset_1_keyframe_2", "mm", False)
    assert_left_views(sequence.frames, 4)
    assert sequence.camera == Camera("OPENCV", WIDTH, HEIGHT, (*LENS, *DISTORTION))
    assert sequence.trajectory_gt.frame_indices.tolist() == [0, 1, 2, 3]
    assert np.allclose(sequence.trajectory_gt.T_world_camera, poses(4), atol=1e-9)
    assert sequence.noise_floor_mm is None
    assert len(sequence.notes) == 2 and "only the keyframe is measured" in sequence.notes[0] and "first view alone" in sequence.notes[1]


def test_scared_depth_is_the_upper_view_and_zero_or_nan_is_unknown(tmp_path):
    root = write_scared(tmp_path / "keyframe_1")
    (root / "data" / "scene_points" / "scene_points000001.tiff").unlink()
    depth_gt = open_scared(root).depth_gt
    assert np.array_equal(depth_gt(2).depth_mm, frame_depth(2).astype(np.float32))
    assert np.argwhere(~depth_gt(2).valid).tolist() == [[0, 0]]
    assert depth_gt(1) is None
    keyframe = scared.read_point_depth(root / "left_depth_map.tiff", WIDTH, HEIGHT)
    assert np.argwhere(~keyframe.valid).tolist() == [[0, 0]]
    assert keyframe.depth[0, 0] == 0


def test_scared_surface_of_the_keyframe_lies_on_its_pixels(tmp_path):
    root = write_scared(tmp_path / "keyframe_1")
    depth = frame_depth(0)
    depth[:, 40:] = 150  # a step that no face may bridge
    write_points(root / "left_depth_map.tiff", depth, np.nan, stacked=False)
    assert open_scared(root).mesh_gt is None
    (root / "data" / "rgb.mp4").unlink()
    sequence = open_scared(root)
    mesh = sequence.frame_mesh_gt(0, False)
    pixels, _ = project(sequence.camera, mesh.vertices)
    assert mesh.unit == "mm"
    assert np.allclose(pixels, np.round(pixels), atol=1e-6)
    at = np.round(pixels).astype(int)
    assert np.allclose(mesh.vertices[:, 2], depth[at[:, 1], at[:, 0]], atol=1e-4)
    assert np.ptp(mesh.vertices[mesh.faces][..., 2], axis=1).max() < 1e-3


def test_scared_poses_and_points_belong_to_frames_by_number(tmp_path):
    root = write_scared(tmp_path / "keyframe_1", packed=False)
    (root / "data" / "frame_data" / "frame_data000001.json").unlink()
    sequence = open_scared(root)
    assert sequence.trajectory_gt.frame_indices.tolist() == [0, 2, 3]
    assert np.allclose(sequence.trajectory_gt.T_world_camera, poses(4)[[0, 2, 3]], atol=1e-9)
    assert any("3 poses for 4 frames" in note for note in sequence.notes)


def test_scared_without_truth_still_opens(tmp_path):
    root = tmp_path / "dataset_8" / "keyframe_0"
    write_keyframe(root)
    (root / "left_depth_map.tiff").unlink()
    write_stacked_video(root / "rgb.mp4", 3)
    sequence = open_scared(root)
    assert (sequence.trajectory_gt, sequence.depth_gt, sequence.mesh_gt) == (None, None, None)
    assert sequence.notes == ("AF-SfMLearner's lists call keyframe 0 of dataset 8 keyframe 1",)


def test_scared_packed_points_are_said_to_need_unpacking(tmp_path):
    root = write_scared(tmp_path / "keyframe_1")
    for file in (root / "data" / "scene_points").iterdir():
        file.rename(root / "data" / file.name)
    assert open_scared(root).depth_gt is not None  # unpacked without a folder of their own
    for file in (root / "data").glob("*.tiff"):
        file.unlink()
    (root / "data" / "scene_points.tar.gz").write_bytes(b"")
    sequence = open_scared(root)
    assert sequence.depth_gt is None
    assert any("tar -xzf scene_points.tar.gz" in note for note in sequence.notes)


def test_scared_keyframes_are_unrelated_views(tmp_path):
    root = tmp_path / "dataset_5"
    for number in (1, 2, 10):
        write_keyframe(root / f"keyframe_{number}", calibrated=number != 2)
    write_points(root / "keyframe_10" / "left_depth_map.tiff", frame_depth(7), np.nan, stacked=False)
    assert scared.matches(root)
    sequence = open_scared(root)
    assert [frame.name for frame in sequence.frames] == ["keyframe_1", "keyframe_2", "keyframe_10"]
    assert sequence.is_unrelated and sequence.trajectory_gt is None
    assert sequence.frame_camera(1) is None
    assert sequence.frame_camera(2) == sequence.camera
    assert sequence.depth_gt(2).depth_mm.max() == 107
    assert np.allclose(sequence.frame_mesh_gt(2, False).vertices[:, 2], 107)
    assert sequence.frame_mesh_gt(1, False) is None
    assert "calibration of dataset 5 is known to be wrong" in sequence.notes[-1]
    with pytest.raises(ReconError, match="both views is not available"):
        sequence.frame_mesh_gt(0, True)


def test_scared_dataset_folder_with_videos_is_not_taken_for_one_recording(tmp_path):
    root = tmp_path / "dataset_1"
    write_scared(root / "keyframe_1")
    write_keyframe(root / "keyframe_5")
    assert not scared.matches(root)
    assert scared.matches(root / "keyframe_1") and scared.matches(root / "keyframe_5")
    assert len(open_scared(root).frames) == 2
    single = open_scared(root / "keyframe_5")
    assert (len(single.frames), single.is_unrelated, single.frames[0].image().shape) == (1, True, (HEIGHT, WIDTH, 3))
    with pytest.raises(ReconError, match="neither a SCARED keyframe"):
        open_scared(tmp_path)


def test_scared_keyframes_renamed_as_in_the_published_lists_are_noted(tmp_path):
    for number in range(1, 6):
        write_keyframe(tmp_path / "dataset_9" / f"keyframe_{number}")
    assert "numbered 1 to 5 as by AF-SfMLearner" in open_scared(tmp_path / "dataset_9").notes[-1]
    write_keyframe(tmp_path / "dataset_9" / "keyframe_0")
    assert "keyframe 2 of dataset 9 keyframe 3" in open_scared(tmp_path / "dataset_9" / "keyframe_2").notes[-1]


def test_scared_calibration_spellings(tmp_path):
    assert open_scared(write_scared(tmp_path / "a", K_name="K1")).camera.params[:4] == LENS
    assert open_scared(write_scared(tmp_path / "b", calibrated=False)).camera.params == (*LENS, *DISTORTION)
    matrices = {"M1": K, "D1": np.arange(14.0)[None]}
    (tmp_path / "wrapped.yaml").write_text(opencv_yaml(matrices))
    read = read_opencv_matrices(tmp_path / "wrapped.yaml")
    assert all(np.array_equal(read[name], matrix) for name, matrix in matrices.items())


# --- what can be wrong with SCARED


def test_scared_archive_is_read_member_by_member(tmp_path):
    root = write_scared(tmp_path / "keyframe_1")
    archive = root / "data" / "frame_data.tar.gz"
    contents = {f"../../escape/{name}": text for name, text in frame_data(4).items()}
    write_archive(archive, {"/etc/hosts": "x", "._frame_data000000.json": "x", "frame_data000009.json": None, **contents})
    before = sorted(tmp_path.rglob("*"))
    assert len(open_scared(root).trajectory_gt) == 4
    assert sorted(tmp_path.rglob("*")) == before
    archive.write_bytes(archive.read_bytes()[:-200])
    with pytest.raises(ReconError, match=r"frame_data\.tar\.gz cannot be unpacked"):
        open_scared(root)
    archive.write_bytes(b"not an archive")
    with pytest.raises(ReconError, match=r"frame_data\.tar\.gz cannot be unpacked"):
        open_scared(root)


def test_scared_archive_that_swells_is_refused(tmp_path, monkeypatch):
    root = write_scared(tmp_path / "keyframe_1")
    monkeypatch.setattr(scared, "MAX_FRAME_DATA_BYTES", 1 << 20)
    write_archive(root / "data" / "frame_data.tar.gz", {"frame_data000000.json": bytes(1 << 21)})
    with pytest.raises(ReconError, match="unpacks to more than 1 MB"):
        open_scared(root)


@pytest.mark.parametrize(
    ("content", "word"),
    [
        ("{", "not valid JSON"),
        ("[]", "one JSON object"),
        (json.dumps({"camera-pose": [[1]]}), "4x4 numbers"),
        (json.dumps({"camera-pose": (2 * np.eye(4)).tolist()}), "pose 1 is not a rigid motion"),
        (json.dumps({"camera-pose": np.full((4, 4), np.nan).tolist()}), "pose 1 is not a rigid motion"),
    ],
)
def test_scared_bad_frame_data_is_named(tmp_path, content, word):
    root = write_scared(tmp_path / "keyframe_1", packed=False)
    (root / "data" / "frame_data" / "frame_data000001.json").write_text(content)
    with pytest.raises(ReconError, match=f"frame_data.*{word}"):
        open_scared(root)


@pytest.mark.parametrize(
    ("text", "word"),
    [("%YAML:1.0\n", "no matrix"), (opencv_yaml({"M1": K}), "D1"), (opencv_yaml({"M1": -K, "D1": np.zeros((1, 5))}), "do not fit images")],
)
def test_scared_bad_calibration_is_named(tmp_path, text, word):
    root = write_scared(tmp_path / "keyframe_1")
    (root / "endoscope_calibration.yaml").write_text(text)
    with pytest.raises(ReconError, match=rf"endoscope_calibration\.yaml.*{word}"):
        open_scared(root)


def test_scared_bad_points_are_named(tmp_path):
    file = tmp_path / "scene_points000000.tiff"
    for shape, kind in (((HEIGHT, WIDTH), np.float32), ((HEIGHT + 1, WIDTH, 3), np.float32), ((HEIGHT, WIDTH, 3), np.uint8)):
        tifffile.imwrite(file, np.zeros(shape, kind), photometric="rgb" if len(shape) == 3 else "minisblack")
        with pytest.raises(ReconError, match=r"scene_points000000\.tiff holds .* expected x y z for 64x48"):
            scared.read_point_depth(file, WIDTH, HEIGHT)
    write_points(file, frame_depth(0), 0.0, stacked=True)
    file.write_bytes(file.read_bytes()[:3000])
    with pytest.raises(FrameError, match=r"scene_points000000\.tiff cannot be decoded"):
        scared.read_point_depth(file, WIDTH, HEIGHT)


# --- lenses with more terms


@pytest.mark.parametrize("terms", [(*DISTORTION, 0.02), (*DISTORTION, 0.01, 0.02, -0.01, 0.005), (*DISTORTION, *[0.004] * 10)])
def test_more_distortion_terms_are_matched_as_closely_as_is_said(tmp_path, terms):
    camera, notes = opencv_camera(tmp_path / "a.yaml", K, np.array(terms), WIDTH, HEIGHT)
    said_px = float(notes[0].split()[-2])
    rays = np.random.default_rng(0).uniform((-0.48, -0.4, 1), (0.5, 0.36, 1), (500, 3))
    expected = cv2.projectPoints(rays, np.zeros(3), np.zeros(3), K, np.array(terms))[0].reshape(-1, 2)
    error_px = np.linalg.norm(project(camera, rays)[0] - expected, axis=1).max()
    assert error_px < 1.05 * said_px
    assert said_px < 0.2


def test_a_video_whose_views_differ_in_height_is_refused(tmp_path, monkeypatch):
    write_stacked_video(tmp_path / "rgb.mp4", 3)
    recording = video.open_recording(tmp_path / "rgb.mp4")
    monkeypatch.setattr("recon.data.stereo.open_recording", lambda path: video.Recording(recording.frames, 64, 95, None, ()))
    with pytest.raises(ReconError, match="has 95 rows"):
        open_left_view(tmp_path / "rgb.mp4")


# --- StereoMIS


def test_stereomis(tmp_path):
    sequence = open_stereomis(write_stereomis(tmp_path / "P2_1"))
    assert (sequence.name, sequence.unit, sequence.depth_gt, sequence.instrument_mask) == ("P2_1", "mm", None, None)
    assert_left_views(sequence.frames, 6)
    assert sequence.camera == Camera("OPENCV", WIDTH, HEIGHT, (*LENS, *DISTORTION))
    assert "the authors use frames 2 to 5 (counted from 1) of this recording to test" in sequence.notes


def test_stereomis_poses_are_millimetres_and_late_as_the_authors_score_them(tmp_path):
    sequence = open_stereomis(write_stereomis(tmp_path / "P1"))
    truth = sequence.trajectory_gt
    assert truth.frame_indices.tolist() == [3, 4, 5]
    assert np.allclose(truth.T_world_camera, poses(6)[:-POSE_LAG_FRAMES], atol=1e-8)
    # the authors: frame number k, counted from 1, against the pose stamped k - 4
    assert [index + 1 - 4 for index in truth.frame_indices] == [0, 1, 2]


def test_stereomis_stamps_are_frame_numbers_unless_they_are_times(tmp_path):
    root = write_stereomis(tmp_path / "P1")
    lines = (root / "groundtruth.txt").read_text().splitlines()
    (root / "groundtruth.txt").write_text("# t x y z\n" + "\n".join(line.replace(" ", ",") for line in (lines[0], *lines[2:])) + "\n")
    assert open_stereomis(root).trajectory_gt.frame_indices.tolist() == [3, 5]
    timed = [" ".join([f"16{k}0000000", *line.split()[1:]]) for k, line in enumerate(lines)]
    (root / "groundtruth.txt").write_text("\n".join(timed) + "\n")
    assert open_stereomis(root).trajectory_gt.frame_indices.tolist() == [3, 4, 5]


def rectified(mask, width, height):
    """As the authors extract frames: left image scaled to `width` x `height`, then remapped with alpha = 0."""
    scale = np.array([[width / WIDTH], [height / HEIGHT], [1]])
    terms = np.array(DISTORTION)
    R1, _, P1, *_ = cv2.stereoRectify(K * scale, terms, K_RIGHT * scale, terms, (width, height), R_RIGHT, T_RIGHT_MM, alpha=0)
    maps = cv2.initUndistortRectifyMap(K * scale, terms, R1, P1, (width, height), cv2.CV_32FC1)
    small = cv2.resize(mask, (width, height), interpolation=cv2.INTER_NEAREST)
    return cv2.remap(small, *maps, cv2.INTER_NEAREST)


@pytest.mark.parametrize("size", [(WIDTH, HEIGHT), (WIDTH // 2, HEIGHT // 2)])
def test_stereomis_masks_return_from_the_rectified_image(tmp_path, size):
    recorded = np.zeros((HEIGHT, WIDTH), np.uint8)
    recorded[10:34, 16:44] = 7  # usable: anything but 0
    sequence = open_stereomis(write_stereomis(tmp_path / "P2_0", mask=rectified(recorded, *size)))
    found = sequence.instrument_mask(2)
    assert found.dtype == bool
    assert found.shape == recorded.shape
    overlap = (found & (recorded > 0)).sum() / (found | (recorded > 0)).sum()
    as_it_lies = cv2.resize(rectified(recorded, *size), (WIDTH, HEIGHT), interpolation=cv2.INTER_NEAREST) > 0
    assert overlap > 0.85
    assert overlap > (as_it_lies & (recorded > 0)).sum() / (as_it_lies | (recorded > 0)).sum() + 0.1


def test_stereomis_masks_are_numbered_from_one_unless_there_is_a_zero(tmp_path):
    root = write_stereomis(tmp_path / "P2_0", mask=np.full((HEIGHT, WIDTH), 255, np.uint8))
    masks = open_stereomis(root).instrument_mask
    assert [masks(k) is not None for k in range(6)] == [True, False, True, False, True, False]
    assert masks(0).all()
    save(root / "masks" / "000000l.png", np.zeros((HEIGHT, WIDTH), np.uint8))
    masks = open_stereomis(root).instrument_mask
    assert [masks(k) is not None for k in range(6)] == [True, True, False, True, False, True]
    assert not masks(0).any()


@pytest.mark.parametrize(
    ("file", "text", "word"),
    [
        ("StereoCalibration.ini", "", "StereoLeft"),
        ("StereoCalibration.ini", "res_x = 3\n", "StereoLeft"),
        ("StereoCalibration.ini", "[StereoLeft]\nfc_x=a\n[StereoRight]\n", "could not convert"),
        ("groundtruth.txt", "0 1 2 3\n", "line 1"),
        ("groundtruth.txt", "0 0 0 0 0 0 0 0\n", "length 1"),
        ("groundtruth.txt", "# nothing\n", "holds no pose"),
        ("test_split.csv", "start,end\na,b\n", "start,end"),
    ],
)
def test_stereomis_damaged_files_are_named(tmp_path, file, text, word):
    root = write_stereomis(tmp_path / "P1")
    (root / file).write_text(text)
    with pytest.raises(ReconError, match=f"{file}.*{word}"):
        open_stereomis(root)


def test_stereomis_calibration_must_fit(tmp_path):
    root = write_stereomis(tmp_path / "a", R=np.zeros((3, 3)))
    with pytest.raises(ReconError, match=r"StereoCalibration\.ini.*not a rigid motion"):
        open_stereomis(root)
    root = write_stereomis(tmp_path / "b")
    write_stacked_video(root / "IFBS_ENDOSCOPE.mp4", 3, width=128, height=96)
    with pytest.raises(ReconError, match=r"StereoCalibration\.ini is for images of 64x48, but .* has 128x96"):
        open_stereomis(root)
    write_stacked_video(root / "second.mp4", 3)
    with pytest.raises(ReconError, match="holds 2 videos"):
        open_stereomis(root)


# --- second views


def test_the_right_view_of_a_stereomis_frame_is_the_lower_half_behind_its_own_lens(tmp_path):
    view = open_stereomis(write_stereomis(tmp_path / "P1", K_right=K_RIGHT)).second_view(2)
    assert view.camera.params[:4] == (K_RIGHT[0, 0], K_RIGHT[1, 1], K_RIGHT[0, 2], K_RIGHT[1, 2])
    assert np.allclose(view.T_second_first_mm[:3, 3], T_RIGHT_MM) and np.allclose(view.T_second_first_mm[:3, :3], R_RIGHT)
    assert view.image().shape == (HEIGHT, WIDTH, 3) and view.image().max() < 40  # the left one is bright


def test_the_right_view_of_scared_needs_where_the_lens_is(tmp_path):
    assert scared.open_scared(write_scared(tmp_path / "a")).second_view is None
    root = write_scared(tmp_path / "b")
    matrices = {"M1": K, "D1": np.zeros((1, 5)), "M2": K_RIGHT, "D2": np.zeros((1, 5)), "R": R_RIGHT, "T": T_RIGHT_MM[:, None]}
    (root / "endoscope_calibration.yaml").write_text(opencv_yaml(matrices))
    view = scared.open_scared(root).second_view(1)
    assert view.camera.params[0] == K_RIGHT[0, 0] and np.allclose(view.T_second_first_mm[:3, 3], T_RIGHT_MM)
    assert view.image().max() < 40
    (root / "data" / "rgb.mp4").unlink()
    assert scared.open_scared(root).second_view(0).image().shape == (HEIGHT, WIDTH, 3)
    (root / "endoscope_calibration.yaml").write_text(opencv_yaml(matrices | {"R": 2 * np.eye(3)}))
    with pytest.raises(ReconError, match="not a rigid motion"):
        scared.open_scared(root).second_view(0)
