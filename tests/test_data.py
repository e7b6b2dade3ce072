"""Data sets: recognised by layout, and camera, poses, depth and surface in this project's conventions."""

from pathlib import Path

import numpy as np
import pytest
from layouts import HEIGHT, WIDTH, picture, poses, save, write_c3vd, write_endonerf, write_folder, write_jhu, write_servct
from PIL import Image

from recon.data import DATASETS, c3vd, detect, endonerf, jhu, open_sequence, open_source
from recon.geometry.cameras import project, resize, unproject
from recon.io.atomic import write_json
from recon.io.cameras import write_camera
from recon.types import Camera, FrameError, ReconError

pytestmark = pytest.mark.filterwarnings("error")
SHARED = Path(__file__).parents[2] / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/data is absent")


# --- detection


def test_layouts_are_recognised(tmp_path):
    assert detect(write_folder(tmp_path / "a")) == "folder"
    assert detect(write_c3vd(tmp_path / "b")) == "c3vd"
    assert detect(write_c3vd(tmp_path / "c", version=2)) == "c3vd"
    assert detect(write_servct(tmp_path / "d" / "Experiment_1")) == "servct"
    assert detect(tmp_path / "d") == "servct"
    assert detect(write_endonerf(tmp_path / "e")) == "endonerf"
    assert detect(write_jhu(tmp_path / "f")) == "jhu"
    assert detect(Path(__file__)) == "video"
    assert detect("phantom") == detect("phantom:tube?seed=3") == "phantom"


@pytest.mark.parametrize(("reader", "own"), [(c3vd, write_c3vd), (endonerf, write_endonerf), (jhu, write_jhu)])
def test_no_reader_claims_another_layout(tmp_path, reader, own):
    for write in (write_folder, write_c3vd, write_servct, write_endonerf, write_jhu):
        assert reader.matches(write(tmp_path / write.__name__)) == (write is own)
    assert not reader.matches(tmp_path)
    assert not reader.matches(Path(__file__))


def test_a_dataset_name_overrides_detection(tmp_path):
    root = write_c3vd(tmp_path / "a")
    assert open_sequence(root, dataset="c3vd").camera is not None
    for k in range(4):
        (root / f"{k:04d}_depth.tiff").unlink()  # as plain images they would count as frames
    assert open_sequence(root, dataset="folder").camera is None
    with pytest.raises(ReconError, match=f"'colon' is not known; known: {', '.join(DATASETS)}"):
        open_sequence(root, dataset="colon")


def test_opening_as_another_layout_says_what_is_missing(tmp_path):
    root = write_folder(tmp_path / "a")
    for name in ("c3vd", "servct", "endonerf", "jhu", "video"):
        with pytest.raises(ReconError, match=r"/a\b") as caught:
            open_sequence(root, dataset=name)
        assert caught.value.exit_code == 2


def test_source_json(tmp_path):
    root = write_folder(tmp_path / "a")
    write_json(tmp_path / "s" / "source.json", {"path": str(root), "dataset": None, "camera_file": None, "masks_dir": None})
    assert len(open_source(tmp_path / "s").frames) == 4


# --- plain folder


def test_a_folder_is_in_natural_order_with_stated_times(tmp_path):
    sequence = open_sequence(write_folder(tmp_path / "a", 4))
    assert [f.name for f in sequence.frames] == ["8.png", "9.png", "10.png", "11.png"]
    assert [f.timestamp_s for f in sequence.frames] == [0, 0.04, 0.08, 0.12]
    assert np.array_equal(sequence.frames[2].image(), picture(2))
    assert (sequence.camera, sequence.trajectory_gt, sequence.depth_gt, sequence.notes) == (None, None, None, ())


def test_conversions_are_noted_once_each(tmp_path):
    root = write_folder(tmp_path / "a")
    Image.fromarray(picture(0)[:, :, 0]).save(root / "8.png")
    Image.fromarray(picture(0)[:, :, 0]).save(root / "9.png")
    Image.fromarray(np.dstack([picture(1), picture(2)[:, :, :1]])).save(root / "10.png")
    assert open_sequence(root).notes == (
        "grey expanded to RGB in 2 of 4 images, the first is 8.png",
        "transparency dropped in 1 of 4 images, the first is 10.png",
    )


def test_all_formats_open(tmp_path):
    for k, suffix in enumerate(("png", "jpg", "JPEG", "tif", "tiff", "bmp", "webp")):
        save(tmp_path / f"{k}.{suffix}", picture(k))
    (tmp_path / "notes.txt").write_text("")
    (tmp_path / ".hidden.png").write_text("")
    assert [f.image().shape for f in open_sequence(tmp_path).frames] == [(HEIGHT, WIDTH, 3)] * 7


def test_a_given_camera_must_fit_the_images(tmp_path):
    root = write_folder(tmp_path / "a")
    camera = Camera("PINHOLE", WIDTH, HEIGHT, (30.0, 30.0, 20.0, 16.0))
    write_camera(tmp_path / "good.json", camera)
    write_camera(tmp_path / "bad.json", resize(camera, WIDTH * 2, HEIGHT * 2))
    assert open_sequence(root, camera_file=tmp_path / "good.json").camera == camera
    with pytest.raises(ReconError, match=r"bad\.json is for images of 80x64, but .*/a has 40x32"):
        open_sequence(root, camera_file=tmp_path / "bad.json")


def test_instrument_masks_of_the_user(tmp_path):
    root = write_folder(tmp_path / "a")
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[:, :9] = 255
    save(tmp_path / "by_name" / "9.png", mask)
    save(tmp_path / "by_index" / "000001.png", mask)
    for k in range(4):
        save(tmp_path / "by_order" / f"m{k}.png", mask if k == 1 else 0 * mask)
    for folder in ("by_name", "by_index", "by_order"):
        masks = open_sequence(root, masks_dir=tmp_path / folder).instrument_mask
        assert np.array_equal(masks(1), mask == 0)
        assert masks(0) is None or masks(0).all()
    save(tmp_path / "none" / "x.png", mask)
    with pytest.raises(ReconError, match="none of its 1 images is named like a frame"):
        open_sequence(root, masks_dir=tmp_path / "none")


# --- C3VD


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("transposed", [True, False])
def test_c3vd(tmp_path, version, transposed):
    sequence = open_sequence(write_c3vd(tmp_path / "a", version=version, transposed=transposed))
    assert sequence.unit == "mm"
    assert np.allclose(sequence.trajectory_gt.T_world_camera, poses(4), atol=1e-7)
    depth = sequence.depth_gt(2)
    assert np.isclose(depth.depth_mm[5, 5], 30, atol=1e-3)
    assert np.argwhere(~depth.valid).tolist() == [[0, 0], [0, 1]]
    mesh = sequence.mesh_gt()
    assert mesh.vertices.tolist() == [[0, 0, 0], [1, 0, 0], [0, 1, 0]]
    assert mesh.faces.tolist() == [[0, 1, 2]]
    assert mesh.unit == "mm"
    assert len(sequence.whole_mesh_gt().faces) == 2
    assert sequence.noise_floor_mm == 0.321
    assert (sequence.camera.model, sequence.camera.width_px, sequence.camera.height_px) == ("SCARAMUZZA", WIDTH, HEIGHT)


def test_c3vd_names_without_zeros_find_their_depth(tmp_path):
    sequence = open_sequence(write_c3vd(tmp_path / "a", count=12, padded=False))
    assert [f.name for f in sequence.frames][:3] == ["0_color.png", "1_color.png", "2_color.png"]
    assert sequence.frames[10].name == "10_color.png"
    assert np.isclose(np.median(sequence.depth_gt(8).depth), 90, atol=1e-3)


def test_c3vd_depth_in_8_bits_and_of_another_size(tmp_path):
    root = write_c3vd(tmp_path / "a")
    reduced = np.full((HEIGHT, WIDTH), 51, np.uint8)
    reduced[0, :2] = 0, 255
    save(root / "0001_depth.tiff", reduced)
    save(root / "0002_depth.tiff", np.ones((HEIGHT * 2, WIDTH), np.uint16))
    sequence = open_sequence(root)
    assert np.isclose(sequence.depth_gt(1).depth_mm[5, 5], 20, atol=1e-4)
    assert np.argwhere(~sequence.depth_gt(1).valid).tolist() == [[0, 0], [0, 1]]
    with pytest.raises(ReconError, match=r"0002_depth\.tiff is 40x64 but its frame is 40x32"):
        sequence.depth_gt(2)


def test_c3vd_screening_videos_have_poses_only(tmp_path):
    root = write_c3vd(tmp_path / "a", version=2)
    for file in [*(root / "depth").iterdir(), root / "coverage_mesh.obj"]:
        file.unlink()
    sequence = open_sequence(root)
    assert (sequence.depth_gt, sequence.mesh_gt, sequence.whole_mesh_gt) == (None, None, None)
    assert len(sequence.trajectory_gt) == 4


def test_c3vd_with_frames_taken_out_keeps_the_right_poses(tmp_path):
    root = write_c3vd(tmp_path / "a")
    (root / "0001_color.png").unlink()
    truth = open_sequence(root).trajectory_gt
    assert truth.frame_indices.tolist() == [0, 1, 2]
    assert np.allclose(truth.T_world_camera, poses(4)[[0, 2, 3]], atol=1e-7)


def test_c3vd_published_lens_looks_straight_ahead_at_its_centre():
    camera = resize(c3vd.CAMERA, 675, 540)
    assert np.allclose(unproject(camera, np.array([camera.params[0], camera.params[1]])), (0, 0, 1), atol=1e-9)
    assert np.allclose(camera.params[:2], [(678.544839263292 + 0.5) / 2 - 0.5, (542.975887548343 + 0.5) / 2 - 0.5])


def test_c3vd_intrinsics_of_its_own_are_used_when_they_can_be_read(tmp_path):
    root = write_c3vd(tmp_path / "a", version=2)
    own = "width = 1350\nheight = 1080\ncx = 700\ncy: 540\na0, 800\na1 0\na2 -8e-4\na3 6e-7\na4 -1.2e-9\nc 1\nd 0\ne 0\n"
    (root / "camera_intrinsics.txt").write_text(own)
    assert np.isclose(open_sequence(root).camera.params[0], (700.5) * WIDTH / 1350 - 0.5)
    (root / "camera_intrinsics.txt").write_text("a table in another form")
    sequence = open_sequence(root)
    assert "not understood" in sequence.notes[0]
    assert sequence.camera == resize(c3vd.CAMERA, WIDTH, HEIGHT)


@pytest.mark.parametrize(
    ("text", "word"), [("1,0,0\n", "line 1"), (",".join("0" * 16), "rigid"), (",".join("1" * 16), "last row"), ("", "no numbers")]
)
def test_c3vd_bad_poses_are_named(tmp_path, text, word):
    root = write_c3vd(tmp_path / "a")
    (root / "pose.txt").write_text(text)
    with pytest.raises(ReconError, match=rf"pose\.txt.*{word}"):
        open_sequence(root)


# --- EndoNeRF


def test_endonerf(tmp_path):
    sequence = open_sequence(write_endonerf(tmp_path / "a"))
    assert sequence.camera == Camera("PINHOLE", WIDTH, HEIGHT, (35.5, 35.5, WIDTH / 2, HEIGHT / 2))
    assert not sequence.instrument_mask(2)[:, :7].any()
    assert sequence.instrument_mask(2)[:, 7:].all()
    depth = sequence.depth_gt(3)
    assert (depth.depth_mm.max(), depth.valid.sum()) == (53, WIDTH * HEIGHT - 1)
    assert sequence.trajectory_gt is None
    assert "stands still" in sequence.notes[0]
    assert "not a measurement" in sequence.notes[1]


def test_endonerf_truth_is_what_the_file_says(tmp_path):
    """The published loaders clip depth to percentiles and score images with other masks; here both are only remarked."""
    root = write_endonerf(tmp_path / "a")
    depth = np.full((HEIGHT, WIDTH), 50, np.uint16)
    depth[0, :3] = 0, 1, 900
    save(root / "depth" / "frame-000001.depth.png", depth)
    (root / "gt_masks").mkdir()
    sequence = open_sequence(root)
    assert sequence.depth_gt(1).depth_mm[0, :4].tolist() == [0, 1, 900, 50]
    assert "gt_masks" in sequence.notes[-1]
    save(root / "depth" / "frame-000002.depth.png", depth[:, :-1])
    with pytest.raises(ReconError, match=r"000002\.depth\.png is 39x32 but its frame is 40x32"):
        sequence.depth_gt(2)


def test_endonerf_with_a_moving_camera_has_a_trajectory(tmp_path):
    sequence = open_sequence(write_endonerf(tmp_path / "a", still=False))
    assert np.allclose(sequence.trajectory_gt.T_world_camera, poses(4))
    assert "OpenCV axes" in sequence.notes[0]


def test_endonerf_files_must_agree(tmp_path):
    root = write_endonerf(tmp_path / "a")
    (root / "masks" / "frame-000002.mask.png").unlink()
    with pytest.raises(ReconError, match="masks holds 3 files for 4 images"):
        open_sequence(root)
    np.save(root / "poses_bounds.npy", np.array([{"a": 1}]), allow_pickle=True)
    with pytest.raises(ReconError, match=r"poses_bounds\.npy"):
        open_sequence(root)


# --- JHU


@pytest.mark.parametrize("per_view", [False, True])
def test_jhu(tmp_path, per_view):
    sequence = open_sequence(write_jhu(tmp_path / "a", per_view=per_view, num_views=6))
    assert sequence.camera.params == (28.5, 28.5 if per_view else 29.5, 19.25, 15.75)
    assert sequence.unit == sequence.trajectory_gt.unit == "unitless"
    assert "not a measurement" in sequence.notes[-1]
    assert sequence.trajectory_gt.frame_indices.tolist() == [0, 1, 2, 3]
    assert np.allclose(sequence.trajectory_gt.T_world_camera, poses(6)[:4], atol=1e-7)


@pytest.mark.parametrize(
    ("name", "text", "word"),
    [
        ("camera_intrinsics_per_view", "1 2 3 4 5", "5 numbers"),
        ("camera_intrinsics_per_view", "1 2 x 4", "line 1"),
        ("camera_intrinsics_per_view", "28 28 1900 15", "do not fit images of 40x32"),
        ("motion.yaml", "poses[]:\n", "no pose"),
        ("motion.yaml", "poses[]:\n poses[0]:\n  position:\n   x: 1\n", "lacks position.y"),
        ("visible_view_indexes", "120\n", "4 poses but .* 1 views"),
        ("visible_view_indexes", "a b", "whole number"),
    ],
)
def test_jhu_damage_is_named(tmp_path, name, text, word):
    root = write_jhu(tmp_path / "a")
    (root / name).write_text(text)
    with pytest.raises(ReconError, match=word):
        open_sequence(root)


# --- against the recordings beside the repository


@needs_shared
@pytest.mark.parametrize(
    ("path", "dataset", "count"),
    [
        ("nasal/seq_a", "jhu", 35),
        ("nasal/seq_b", "jhu", 200),
        ("video/laparoscopy.mp4", "video", 250),
        ("c3vd_like/colon_a", "c3vd", 80),
        ("servct_like", "servct", 6),
        ("endonerf_like/pull_a", "endonerf", 40),
    ],
)
def test_shared_recordings_open(path, dataset, count):
    sequence = open_sequence(SHARED / path)
    assert (sequence.dataset, len(sequence.frames), sequence.incomplete) == (dataset, count, None)
    image = sequence.frames[count // 2].image()
    if sequence.camera:
        assert image.shape == (sequence.camera.height_px, sequence.camera.width_px, 3)


@needs_shared
def test_depth_poses_lens_and_surface_of_shared_c3vd_agree():
    """Depth through the lens and the pose must land on the surface: one wrong convention would miss by millimetres."""
    o3d = pytest.importorskip("open3d")
    sequence = open_sequence(SHARED / "c3vd_like/colon_a")
    mesh = sequence.mesh_gt()
    scene = o3d.t.geometry.RaycastingScene()
    scene.add_triangles(o3d.core.Tensor(mesh.vertices.astype(np.float32)), o3d.core.Tensor(mesh.faces.astype(np.uint32)))
    for index in (0, 40, 79):
        depth = sequence.depth_gt(index)
        v, u = np.nonzero(depth.valid)
        rays = unproject(sequence.camera, np.stack([u, v], axis=1)[::97].astype(float))
        T = sequence.trajectory_gt.T_world_camera[index]
        points = rays / rays[:, 2:] * depth.depth[v, u][::97, None] @ T[:3, :3].T + T[:3, 3]
        distance = scene.compute_distance(o3d.core.Tensor(points.astype(np.float32))).numpy()
        assert np.percentile(distance, 95) < 0.02


@needs_shared
def test_shared_nasal_poses_are_camera_to_world():
    """Every point that a view saw must project into that view; read the other way round, two thirds would miss."""
    sequence = open_sequence(SHARED / "nasal/seq_b")
    lines = (SHARED / "nasal/seq_b/structure.ply").read_text().splitlines()
    start = lines.index("end_header") + 1
    xyz = np.array([line.split()[:3] for line in lines[start : start + 26230]], dtype=float)
    ids = np.array((SHARED / "nasal/seq_b/view_indexes_per_point").read_text().split(), dtype=int)
    point_of = np.cumsum(ids < 0)
    inside = []
    for index, T in zip(sequence.trajectory_gt.frame_indices, sequence.trajectory_gt.T_world_camera, strict=True):
        seen = point_of[ids == int(sequence.frames[index].name[:8])]
        pixels, valid = project(sequence.camera, (xyz[seen] - T[:3, 3]) @ T[:3, :3])
        inside.append(valid & np.all((pixels > -1) & (pixels < (960, 540)), axis=1))
    assert np.concatenate(inside).mean() > 0.99


def test_a_frame_that_vanishes_is_a_frame_error(tmp_path):
    root = write_folder(tmp_path / "a")
    frames = open_sequence(root).frames
    (root / "9.png").unlink()
    with pytest.raises(FrameError, match=r"9\.png does not exist"):
        frames[1].image()
