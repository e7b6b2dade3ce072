"""Hamlyn, EndoSLAM, EndoSynth and SimCol3D: each quirk of the layout, axes by hand-computed turns, and damage that is named."""

import zipfile
from pathlib import Path

import numpy as np
import pytest
from layouts import HEIGHT, WIDTH, picture, poses, save, write_c3vd, write_endonerf, write_folder, write_jhu, write_servct
from layouts_depth import (
    MATRIX,
    quaternion_rows,
    write_endoslam_robot,
    write_endoslam_unity,
    write_endosynth,
    write_hamlyn,
    write_hamlyn_tracking,
    write_matrix,
    write_simcol,
)

from recon.data import c3vd, endonerf, endoslam, endosynth, hamlyn, jhu, scared, servct, simcol, stereomis
from recon.data.pinhole_file import read_pinhole
from recon.types import Camera, FrameError, ReconError

pytestmark = pytest.mark.filterwarnings("error")
CAMERA = Camera("PINHOLE", WIDTH, HEIGHT, (30.0, 31.0, 19.0, 15.0))
READERS = {
    reader.__name__.rpartition(".")[2]: reader.matches
    for reader in (hamlyn, endoslam, endosynth, simcol, c3vd, servct, endonerf, jhu, scared, stereomis)
}


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


# --- recognition


@pytest.mark.parametrize(
    ("owner", "write"),
    [
        ("hamlyn", write_hamlyn),
        ("hamlyn", lambda root: write_hamlyn(root, nested=True)),
        ("hamlyn", write_hamlyn_tracking),
        ("endoslam", write_endoslam_unity),
        ("endoslam", write_endoslam_robot),
        ("endosynth", write_endosynth),
        ("endosynth", lambda root: write_endosynth(root, folder=".")),
        ("simcol", write_simcol),
        ("c3vd", write_c3vd),
        ("c3vd", lambda root: write_c3vd(root, version=2)),
        ("servct", lambda root: write_servct(root / "Experiment_1")),
        ("endonerf", write_endonerf),
        ("jhu", write_jhu),
        (None, write_folder),
        (None, lambda root: write_simcol(root).parent),
        (None, lambda root: write_endoslam_unity(root / "Colon").parent),
        (None, lambda root: write_hamlyn(root / "rectified01").parent),
    ],
)
def test_every_layout_is_claimed_by_its_own_reader_only(tmp_path, owner, write):
    root = write(tmp_path / "a")
    assert [name for name, matches in READERS.items() if matches(root)] == ([owner] if owner else [])


def test_a_file_and_a_folder_of_other_arrays_are_claimed_by_nobody(tmp_path):
    (tmp_path / "a").mkdir()
    np.savez(tmp_path / "a" / "000000.npz", depth=np.ones((3, 3)))
    (tmp_path / "a" / "000001.npz").write_bytes(b"PK nothing")
    for path in (tmp_path / "a", tmp_path / "a" / "000000.npz", tmp_path / "absent"):
        assert not any(READERS[name](path) for name in ("hamlyn", "endoslam", "endosynth", "simcol"))


@pytest.mark.parametrize("open_it", [hamlyn.open_hamlyn, endoslam.open_endoslam, endosynth.open_endosynth, simcol.open_simcol])
def test_another_layout_is_refused_by_name(tmp_path, open_it):
    for root in (write_folder(tmp_path / "a"), tmp_path / "absent"):
        with pytest.raises(ReconError, match=rf"{root.name}\b") as caught:
            open_it(root)
        assert caught.value.exit_code == 2


# --- Hamlyn


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("columns", [3, 4])
def test_hamlyn(tmp_path, nested, columns):
    sequence = hamlyn.open_hamlyn(write_hamlyn(tmp_path / "rectified08", nested=nested, columns=columns))
    assert (sequence.name, sequence.dataset, sequence.unit, sequence.camera) == ("rectified08", "hamlyn", "mm", CAMERA)
    assert [frame.name for frame in sequence.frames][:2] == ["0000000008.jpg", "0000000009.jpg"]
    assert sequence.frames[3].image().shape == (HEIGHT, WIDTH, 3)
    depth = sequence.depth_gt(2)
    assert (depth.scale, depth.depth.dtype, depth.depth_mm[5, 5]) == ("metric", np.float32, 52)
    assert depth.depth_mm[0, :4].tolist() == [0, 300, 0, 52]  # a hole, the last that the authors score, one too far
    assert np.argwhere(~depth.valid).tolist() == [[0, 0], [0, 2]]
    assert sequence.trajectory_gt is None and sequence.noise_floor_mm == 1
    assert sequence.notes == (
        "the depth that comes with the data is a stereo matcher's (Libelas), whole millimetres with holes, not a measurement",
    )


def test_hamlyn_tracking_pack_saturates_and_is_a_network(tmp_path):
    sequence = hamlyn.open_hamlyn(write_hamlyn_tracking(tmp_path / "test1", count=11))
    assert [frame.name for frame in sequence.frames][8:] == ["8.jpg", "9.jpg", "10.jpg"]
    assert sequence.camera == CAMERA
    assert sequence.depth_gt(10).depth_mm[0, :4].tolist() == [0, 299, 0, 60]
    assert "network's estimate" in sequence.notes[-1]


def test_hamlyn_frames_without_depth_have_none(tmp_path):
    root = write_hamlyn(tmp_path / "rectified01")
    (root / "depth01" / "0000000009.png").unlink()
    truth = hamlyn.open_hamlyn(root).depth_gt
    assert truth(1) is None
    assert truth(2).depth_mm[5, 5] == 52
    for file in (root / "depth01").iterdir():
        file.unlink()
    assert hamlyn.open_hamlyn(root).depth_gt is None


def test_hamlyn_calibration_of_the_pack_and_the_published_crop(tmp_path):
    root = write_hamlyn(tmp_path / "hamlyn" / "rectified14")
    (root / "intrinsics.txt").unlink()
    sequence = hamlyn.open_hamlyn(root)
    assert sequence.camera is None
    assert "columns 180 to 589" in sequence.notes[-1]
    write_matrix(tmp_path / "hamlyn" / "calibration" / "14" / "intrinsics.txt", MATRIX)
    assert hamlyn.open_hamlyn(root).camera == CAMERA


def test_hamlyn_depth_of_another_size_or_kind_is_a_frame_error(tmp_path):
    root = write_hamlyn(tmp_path / "rectified01")
    truth = hamlyn.open_hamlyn(root).depth_gt
    save(root / "depth01" / "0000000008.png", np.ones((HEIGHT, 10), np.uint16))
    save(root / "depth01" / "0000000009.png", picture(0))
    cut(root / "depth01" / "0000000010.png")
    for index, word in enumerate(["is 10x32 but its frame is 40x32", "one channel", "cannot be decoded"]):
        with pytest.raises(FrameError, match=rf"{index + 8}\.png.*{word}"):
            truth(index)


# --- calibration files


@pytest.mark.parametrize(
    "text",
    [
        "30 0 19\n0 31 15\n0 0 1\n",
        "30,0,19,0,31,15,0,0,1",
        "3.0e1 0 19 0\n0 31 15 0\n0 0 1 0",
        "30 0 0\n0 31 0\n19 15 1",
        "fx: 30\nfy: 31\ncx: 19\ncy: 15\n",
    ],
)
def test_a_pinhole_matrix_is_read_in_all_its_forms(tmp_path, text):
    (tmp_path / "cam.txt").write_text(text)
    assert read_pinhole(tmp_path / "cam.txt", WIDTH, HEIGHT) == (CAMERA, ())


def test_odd_pinholes_are_remarked_upon(tmp_path):
    write_matrix(tmp_path / "cam.txt", [[30, 5.6, 9], [0, 31, 15], [0, 0, 1]])
    camera, notes = read_pinhole(tmp_path / "cam.txt", WIDTH, HEIGHT)
    assert camera.params == (30, 31, 9, 15)
    assert ["skew of 5.6 px" in notes[0], "principal point at (9, 15)" in notes[1], len(notes)] == [True, True, 2]


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "9 or 12 numbers"),
        ("1 2 3", "9 or 12 numbers"),
        ("a b c d e f g h i", "9 or 12 numbers"),
        ("30 0 19 0 31 15 0 0 2", "expected a camera matrix"),
        ("30 0 190 0 31 15 0 0 1", "do not fit images of 40x32"),
        ("-30 0 19 0 31 15 0 0 1", "do not fit"),
        ("nan 0 19 0 31 15 0 0 1", "do not fit"),
    ],
)
def test_a_file_that_is_no_pinhole_is_named(tmp_path, text, word):
    (tmp_path / "cam.txt").write_text(text)
    with pytest.raises(ReconError, match=rf"cam\.txt.*{word}"):
        read_pinhole(tmp_path / "cam.txt", WIDTH, HEIGHT)


# --- EndoSLAM


def test_endoslam_unity(tmp_path):
    sequence = endoslam.open_endoslam(write_endoslam_unity(tmp_path / "UnityCam" / "Colon"))
    assert (sequence.name, sequence.unit, sequence.camera) == ("Colon", "unitless", CAMERA)
    depth = sequence.depth_gt(3)
    assert (depth.scale, depth.depth[5, 5]) == ("scale_invariant", 23)
    assert np.argwhere(~depth.valid).tolist() == [[0, 0], [0, 1]]
    with pytest.raises(ReconError, match="not metric"):
        depth.depth_mm  # noqa: B018
    notes = "\n".join(sequence.notes)
    for remark in ("capsule's body", "last line of colon_position_rotation.csv is cut short", "unstated unit"):
        assert remark in notes


def test_endoslam_relative_motion_is_that_of_the_flipped_z(tmp_path):
    """The published loader multiplies a reflection to each pose; what it scores are motions from pose to pose."""
    truth = endoslam.open_endoslam(write_endoslam_unity(tmp_path / "U" / "Colon")).trajectory_gt
    assert (truth.frame_indices.tolist(), truth.unit) == ([0, 1, 2], "unitless")
    flipped = poses(3) @ np.diag([1.0, 1, -1, 1])
    for k in (1, 2):
        motion = np.linalg.inv(truth.T_world_camera[0]) @ truth.T_world_camera[k]
        assert np.allclose(motion, np.linalg.inv(flipped[0]) @ flipped[k], atol=1e-5)
    assert np.allclose(np.linalg.det(truth.T_world_camera[:, :3, :3]), 1)


def test_endoslam_poses_of_unity_belong_to_frame_numbers(tmp_path):
    root = write_endoslam_unity(tmp_path / "U" / "Colon")
    (root / "Frames" / "image_0001.png").unlink()
    sequence = endoslam.open_endoslam(root)
    assert sequence.trajectory_gt.frame_indices.tolist() == [0, 1]
    assert np.allclose(sequence.trajectory_gt.T_world_camera[1, :2, 3], poses(3)[2, :2, 3], atol=1e-6)
    assert sequence.depth_gt(1).depth[5, 5] == 22


def test_endoslam_robot_poses_are_metres_and_join_on_the_frame_number(tmp_path):
    root = write_endoslam_robot(tmp_path / "Cameras" / "HighCam" / "Colon-IV" / "TumorfreeTrajectory_1")
    table = next((root / "Poses").iterdir())
    table.write_text("\ufeff" + table.read_text().replace("ImageFrame", '"ImageFrame"') + "\n", encoding="utf-8")  # as spreadsheets save it
    write_matrix(tmp_path / "Cameras" / "HighCam" / "Calibration" / "cam.txt.txt", np.transpose(MATRIX).tolist())
    sequence = endoslam.open_endoslam(root)
    assert (sequence.unit, sequence.depth_gt, sequence.camera) == ("mm", None, CAMERA)
    assert sequence.trajectory_gt.frame_indices.tolist() == [0, 2, 3]
    expected = poses(4)[[0, 2, 3]]
    expected[:, :3, 3] *= 1000
    assert np.allclose(sequence.trajectory_gt.T_world_camera, expected, atol=1e-6)
    assert "hand-eye" in sequence.notes[-1]


def test_endoslam_without_a_readable_table_or_calibration_says_so(tmp_path):
    root = write_endoslam_robot(tmp_path / "Cameras" / "LowCam" / "Colon-I" / "T")
    table = next((root / "Poses").iterdir())
    table.rename(table.with_suffix(".xlsx"))
    write_matrix(root.parent.parent / "Calibration" / "cam.txt", [[1, 2, 3]])
    sequence = endoslam.open_endoslam(root)
    assert (sequence.trajectory_gt, sequence.camera) == (None, None)
    assert "cam.txt is not understood" in sequence.notes[0] and "as CSV" in sequence.notes[1]
    table.with_suffix(".xlsx").unlink()
    assert "no CSV" in endoslam.open_endoslam(root).notes[1]


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "expected the columns"),
        ("a,b,c\n1,2,3\n", "expected the columns .* found 'a,b,c'"),
        ("tX,tY,tZ,rX,rY,rZ,rW,time(s)\n", "no poses"),
        ("tX,tY,tZ,rX,rY,rZ,rW,time(s)\n0,0,0", "line 2"),
        ("tX,tY,tZ,rX,rY,rZ,rW,time(s)\n0,0,0\n0,0,0,0,0,0,1,0\n", "line 2: expected 8"),
        ("tX,tY,tZ,rX,rY,rZ,rW,time(s)\n0,0,0,0,0,0,1,0\n0,0,nan,0,0,0,1,0\n0,0,0,0,0,0,1,0\n", "line 3"),
        ("tX,tY,tZ,rX,rY,rZ,rW,time(s)\n0,0,0,0,0,0,1,0\n0,0,0,0,0,0,0,1\n", "pose 1 should have length 1"),
        ("tX,tY,tZ,rX,rY,rZ,rW,time(s)\n1e12,0,0,0,0,0,1,0\n", "not a rigid motion"),
    ],
)
def test_endoslam_damaged_tables_are_named(tmp_path, text, word):
    root = write_endoslam_unity(tmp_path / "U" / "Colon")
    (root / "Poses" / "colon_position_rotation.csv").write_text(text)
    with pytest.raises(ReconError, match=rf"colon_position_rotation\.csv.*{word}"):
        endoslam.open_endoslam(root)


def test_endoslam_two_tables_are_one_too_many(tmp_path):
    root = write_endoslam_unity(tmp_path / "U" / "Colon")
    (root / "Poses" / "b.csv").write_text("")
    with pytest.raises(ReconError, match=r"2 pose tables \(b\.csv, colon_position_rotation\.csv\)"):
        endoslam.open_endoslam(root)


# --- EndoSynth


def test_endosynth(tmp_path):
    sequence = endosynth.open_endosynth(write_endosynth(tmp_path / "EndoSynth", first=9))
    assert (sequence.unit, sequence.is_unrelated, sequence.camera, sequence.trajectory_gt) == ("mm", True, None, None)
    assert [frame.name for frame in sequence.frames][:2] == ["000009.npz", "000010.npz"]
    assert np.array_equal(sequence.frames[2].image(), picture(2))
    depth = sequence.depth_gt(1)
    assert (depth.depth.dtype, depth.scale) == (np.float32, "metric")
    assert depth.depth_mm[5, 5] == np.float32(np.float16(0.2)) * 1000  # scaled in float16 it would be 200.0
    assert depth.depth_mm[0, :3].tolist() == [0, 65000, 0]  # in float16 65 m in millimetres would be close to infinite
    assert np.argwhere(~depth.valid).tolist() == [[0, 0], [0, 2]]
    assert np.argwhere(~sequence.instrument_mask(3))[:, 0].tolist() == [HEIGHT - 1] * WIDTH


def test_endosynth_opens_from_its_samples_too(tmp_path):
    root = write_endosynth(tmp_path / "EndoSynth")
    assert len(endosynth.open_endosynth(root / "samples").frames) == 4


def test_endosynth_damage_is_a_frame_error(tmp_path):
    root = write_endosynth(tmp_path / "a", count=5) / "samples"
    cut(root / "000000.npz")
    np.savez(root / "000002.npz", rgb=picture(0)[:9], depth=np.ones((HEIGHT, WIDTH), int), seg=np.zeros(3, np.uint8))
    np.savez(root / "000003.npz", rgb=picture(0), seg=np.array([{}], dtype=object))
    sequence = endosynth.open_endosynth(root.parent)
    assert np.array_equal(sequence.frames[1].image(), picture(1))
    for index in (0, 2):
        with pytest.raises(FrameError, match=rf"00000{index}\.npz"):
            sequence.frames[index].image()
    with pytest.raises(FrameError, match=r"000002\.npz: depth should be floating of shape \(32, 40\), found int64"):
        sequence.depth_gt(2)
    with pytest.raises(FrameError, match=r"000003\.npz has no array 'depth'"):
        sequence.depth_gt(3)
    with pytest.raises(FrameError, match=r"000003\.npz: seg should be uint8"):
        sequence.instrument_mask(3)
    np.savez(root / "000004.npz", rgb=picture(0), depth=np.ones((HEIGHT, WIDTH)))
    with pytest.raises(FrameError, match=r"000004\.npz has no array 'seg'"):
        sequence.instrument_mask(4)
    (root / "000004.npz").unlink()
    with pytest.raises(FrameError, match="does not exist"):
        sequence.frames[4].image()


def test_endosynth_a_claim_of_a_huge_array_is_refused_before_memory_is_taken(tmp_path):
    root = write_endosynth(tmp_path / "a") / "samples"
    header = str({"descr": "|u1", "fortran_order": False, "shape": (10**6, 10**6, 3)}).encode().ljust(117) + b"\n"
    for k in range(4):
        with zipfile.ZipFile(root / f"00000{k}.npz", "w") as archive:
            archive.writestr("rgb.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
            archive.writestr("depth.npy", b"")
    with pytest.raises(ReconError, match="none of its 4 samples holds a readable picture"):
        endosynth.open_endosynth(root)


# --- SimCol3D


def test_simcol(tmp_path):
    sequence = simcol.open_simcol(write_simcol(tmp_path / "SyntheticColon_I"))
    assert (sequence.name, sequence.unit, sequence.camera) == ("Frames_S1", "mm", CAMERA)
    assert np.array_equal(sequence.frames[1].image(), picture(1))  # 16 bit and alpha are gone
    depth = sequence.depth_gt(2)
    assert np.isclose(depth.depth_mm[5, 5], 60 * 256 / (255 * 256) * 20 * 10)
    assert np.argwhere(~depth.valid).tolist() == [[0, 0], [0, 1]]
    assert "steps of 0.78 mm" in sequence.notes[-1]
    assert any("some authors use 227.60416" in note for note in sequence.notes)


def test_simcol_turns_of_the_left_handed_camera_mean_what_unity_shows(tmp_path):
    """In Unity, x right, y up, z forward: yaw +90 looks right and pitch +90 looks down. Rows: at rest, yawed, pitched, 3 cm up."""
    half = np.sqrt(0.5)
    frames = write_simcol(tmp_path / "I")
    np.savetxt(tmp_path / "I" / "SavedRotationQuaternion_S1.txt", [[0, 0, 0, 1], [0, half, 0, half], [half, 0, 0, half], [0, 0, 0, 1]])
    np.savetxt(tmp_path / "I" / "SavedPosition_S1.txt", [[0, 0, 0], [0, 0, 0], [0, 0, 0], [1, 3, 2]])
    truth = simcol.open_simcol(frames).trajectory_gt
    T = truth.T_world_camera
    assert truth.unit == "mm"
    assert np.allclose(T[:3, :3, 2], [(0, 0, 1), (1, 0, 0), (0, 1, 0)], atol=1e-9)  # the view in OpenCV axes: ahead, right, down
    assert np.allclose(T[3], [[1, 0, 0, 10], [0, 1, 0, -30], [0, 0, 1, 20], [0, 0, 0, 1]])


def test_simcol_poses_are_those_of_the_challenge(tmp_path):
    frames = write_simcol(tmp_path / "III", tag="O2")
    mirror = np.diag([1.0, -1, 1, 1])
    expected = mirror @ poses(4) @ mirror
    expected[:, :3, 3] *= 10
    (frames / "FrameBuffer_0001.png").unlink()
    truth = simcol.open_simcol(frames).trajectory_gt
    assert truth.frame_indices.tolist() == [0, 1, 2]
    assert np.allclose(truth.T_world_camera, expected[[0, 2, 3]])


def test_simcol_what_is_missing_is_noted(tmp_path):
    frames = write_simcol(tmp_path / "I")
    (tmp_path / "I" / "SavedPosition_S1.txt").unlink()
    (tmp_path / "I" / "cam.txt").unlink()
    sequence = simcol.open_simcol(frames)
    assert (sequence.trajectory_gt, sequence.camera) == (None, None)
    assert sequence.notes[-3:-1] == (
        "cam.txt is not there: no calibration is known",
        "no true trajectory: SavedPosition_S1.txt not found in I",
    )


def test_simcol_damaged_poses_are_named(tmp_path):
    frames = write_simcol(tmp_path / "I")
    rows = quaternion_rows(poses(4))
    np.savetxt(tmp_path / "I" / "SavedPosition_S1.txt", rows[:3, :3])
    with pytest.raises(ReconError, match=r"SavedPosition_S1\.txt holds 3 positions but SavedRotationQuaternion_S1\.txt 4 rotations"):
        simcol.open_simcol(frames)
    np.savetxt(tmp_path / "I" / "SavedPosition_S1.txt", rows[:, :2])
    with pytest.raises(ReconError, match=r"SavedPosition_S1\.txt line 1: expected 3 finite numbers"):
        simcol.open_simcol(frames)
