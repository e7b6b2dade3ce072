"""Round trips of every own format, and what readers say about files that are not what they claim."""

import errno
import json
import struct
from pathlib import Path

import numpy as np
import pytest
import tifffile
import trimesh
from PIL import Image

from recon.geometry import se3
from recon.io import atomic, cameras, colmap, depth, images, masks, meshes, obj, trajectory
from recon.types import Camera, FrameError, Mesh, ReconError, Trajectory

pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def some_poses(rng, count=5):
    return se3.exp(rng.normal(size=(count, 6)))


# --- atomic


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    target = tmp_path / "a.txt"
    atomic.write_text(target, "old")
    with pytest.raises(ZeroDivisionError), atomic.atomic_path(target) as part:
        part.write_text("half")
        raise ZeroDivisionError
    assert target.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.parametrize(("code", "exit_code"), [(errno.ENOSPC, 1), (errno.EROFS, 2), (errno.EACCES, 2)])
def test_a_disk_that_refuses_is_one_line_with_the_file(tmp_path, code, exit_code):
    with pytest.raises(ReconError, match=r"a\.txt cannot be written") as caught, atomic.atomic_path(tmp_path / "a.txt") as part:
        part.write_text("half")
        raise OSError(code, "the disk says no", str(part))
    assert caught.value.exit_code == exit_code
    assert list(tmp_path.iterdir()) == []


def test_writing_below_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ReconError, match="cannot be written"):
        atomic.write_text(tmp_path / "file" / "a.txt", "x")


def test_an_error_of_another_file_is_not_blamed_on_the_disk(tmp_path):
    with pytest.raises(FileNotFoundError), atomic.atomic_path(tmp_path / "a.txt"):
        (tmp_path / "elsewhere" / "b.txt").read_text()


def test_json_round_trip_and_no_nan(tmp_path):
    atomic.write_json(tmp_path / "a.json", {"b": [1, None, 2.5], "a": "ä"})
    assert atomic.read_json(tmp_path / "a.json") == {"b": [1, None, 2.5], "a": "ä"}
    with pytest.raises(ValueError, match="JSON compliant"):
        atomic.write_json(tmp_path / "b.json", float("nan"))


# --- images


def test_png_round_trip_is_exact_and_jpeg_keeps_colour(tmp_path, rng):
    image = np.zeros((16, 24, 3), np.uint8)
    image[:, 12:, 0] = 200
    images.write_png(tmp_path / "a.png", image)
    images.write_jpeg(tmp_path / "a.jpg", image)
    assert np.array_equal(images.read_image(tmp_path / "a.png"), image)
    assert np.abs(images.read_image(tmp_path / "a.jpg").astype(int) - image).max() < 12  # 4:2:0 would bleed by 100
    assert images.read_info(tmp_path / "a.jpg") == images.ImageInfo(24, 16, None)


@pytest.mark.parametrize(
    ("mode", "value", "expected", "word"),
    [
        ("L", 90, (90, 90, 90), "grey"),
        ("1", 1, (255, 255, 255), "black and white"),
        ("LA", (90, 10), (90, 90, 90), "transparency"),
        ("RGBA", (10, 20, 30, 0), (10, 20, 30), "transparency"),
        ("P", None, (10, 20, 30), "palette"),
        ("I;16", 257 * 77, (77, 77, 77), "16-bit"),
    ],
)
def test_other_kinds_of_pixels_become_rgb_and_are_named(tmp_path, mode, value, expected, word):
    path = tmp_path / "a.png"
    if mode == "P":
        Image.new("RGB", (9, 7), expected).quantize(4).save(path)
    elif mode == "I;16":
        Image.fromarray(np.full((7, 9), value, np.uint16)).save(path)
    else:
        Image.new(mode, (9, 7), value).save(path)
    image = images.read_image(path)
    assert image.shape == (7, 9, 3)
    assert tuple(image[3, 4]) == expected
    assert word in images.read_info(path).conversion


def test_exif_orientation_turns_image_and_size(tmp_path):
    picture = Image.new("RGB", (20, 10))
    picture.paste((255, 255, 255), (0, 0, 10, 10))
    exif = Image.Exif()
    exif[0x0112] = 6  # shown after a quarter turn clockwise
    picture.save(tmp_path / "a.jpg", exif=exif)
    image = images.read_image(tmp_path / "a.jpg")
    assert image.shape == (20, 10, 3)
    assert image[2].min() > 200 > 50 > image[-3].max()
    assert images.read_info(tmp_path / "a.jpg").width_px == 10


def test_sixteen_bit_integers_survive(tmp_path):
    values = np.arange(12, dtype=np.uint16).reshape(3, 4) * 5000
    for name in ("a.png", "a.tiff"):
        Image.fromarray(values).save(tmp_path / name)
        assert np.array_equal(images.read_integers(tmp_path / name), values)
    Image.new("RGB", (4, 4)).save(tmp_path / "b.png")
    with pytest.raises(FrameError, match="one channel"):
        images.read_integers(tmp_path / "b.png")


def test_bombs_are_refused_before_they_are_decoded(tmp_path):
    Image.new("1", (30000, 30000)).save(tmp_path / "bomb.png")
    for read in (images.read_image, images.read_info):
        with pytest.raises(ReconError, match=r"bomb\.png claims .*refused"):
            read(tmp_path / "bomb.png")


def test_a_missing_image_and_a_text_file_are_named(tmp_path):
    (tmp_path / "a.png").write_text("hello")
    with pytest.raises(FrameError, match=r"a\.png cannot be decoded: not an image"):
        images.read_image(tmp_path / "a.png")
    with pytest.raises(FrameError, match=r"b\.png does not exist"):
        images.read_image(tmp_path / "b.png")


def test_mask_round_trip_is_one_bit(tmp_path, rng):
    mask = rng.random((13, 17)) > 0.5
    masks.write_mask(tmp_path / "m.png", mask)
    assert np.array_equal(masks.read_mask(tmp_path / "m.png"), mask)
    with Image.open(tmp_path / "m.png") as stored:
        assert stored.mode == "1"


# --- depth


def test_depth_round_trip_is_exact_and_read_by_others(tmp_path, rng):
    values = (rng.random((31, 17)) * 80).astype(np.float32)
    values[:3] = 0
    depth.write_depth(tmp_path / "d.tiff", values)
    assert np.array_equal(depth.read_depth(tmp_path / "d.tiff"), values)
    with Image.open(tmp_path / "d.tiff") as other_reader:
        assert np.array_equal(np.array(other_reader), values)
    first = (tmp_path / "d.tiff").read_bytes()
    depth.write_depth(tmp_path / "d.tiff", values)
    assert (tmp_path / "d.tiff").read_bytes() == first


@pytest.mark.parametrize("bad", [np.nan, np.inf, -1.0])
def test_values_that_are_no_depth_are_neither_written_nor_read(tmp_path, bad):
    values = np.ones((4, 4), np.float32)
    values[1, 1] = bad
    with pytest.raises(ReconError, match="finite and not negative"):
        depth.write_depth(tmp_path / "d.tiff", values)
    tifffile.imwrite(tmp_path / "e.tiff", values)
    with pytest.raises(ReconError, match=r"e\.tiff"):
        depth.read_depth(tmp_path / "e.tiff")


def test_a_depth_file_of_another_kind_is_named(tmp_path):
    tifffile.imwrite(tmp_path / "a.tiff", np.ones((4, 4), np.uint16))
    with pytest.raises(ReconError, match="uint16"):
        depth.read_depth(tmp_path / "a.tiff")


# --- trajectory


def test_tum_round_trip_and_evo_agrees(tmp_path, rng):
    file_interface = pytest.importorskip("evo.tools.file_interface")
    T = some_poses(rng)
    times = np.array([0.0, 0.04, 0.08, 0.1201, 7.5])
    trajectory.write_tum(tmp_path / "t.txt", Trajectory(np.arange(5), times, T, "mm"))
    read = trajectory.read_tum(tmp_path / "t.txt", "mm")
    assert np.array_equal(read.timestamps_s, times)
    assert np.allclose(read.T_world_camera, T, atol=1e-7)
    other = file_interface.read_tum_trajectory_file(str(tmp_path / "t.txt"))
    assert np.allclose(np.stack(other.poses_se3), T, atol=1e-7)


def test_tum_is_sorted_by_time_and_normalised(tmp_path):
    (tmp_path / "t.txt").write_text("# c\n2 0 0 2 0 0 0 1.01\n\n1 0 0 1 0 0 0 0.99\n")
    read = trajectory.read_tum(tmp_path / "t.txt")
    assert read.T_world_camera[:, 2, 3].tolist() == [1, 2]
    assert np.allclose(read.T_world_camera[:, :3, :3], np.eye(3))


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "no pose"),
        ("0 0 0 0 0 0 1\n", "line 1"),
        ("0 0 0 0 0 0 0 1\n1 0 0 x 0 0 0 1\n", "line 2"),
        ("0 0 0 nan 0 0 0 1\n", "line 1"),
        ("0 0 0 0 0 0 0 0\n", "quaternion"),
        ("1 0 0 0 0 0 0 1\n1 0 0 0 0 0 0 1\n", "twice"),
    ],
)
def test_bad_tum_files_name_the_line(tmp_path, text, word):
    (tmp_path / "t.txt").write_text(text)
    with pytest.raises(ReconError, match=rf"t\.txt.*{word}"):
        trajectory.read_tum(tmp_path / "t.txt")


# --- cameras


def test_camera_round_trip_with_extra_keys(tmp_path):
    camera = Camera("OPENCV_FISHEYE", 640, 480, (300.0, 301.0, 320.5, 240.0, 0.1, -0.02, 0.0, 1e-4))
    cameras.write_camera(tmp_path / "camera.json", camera, intrinsics="given")
    assert cameras.read_camera(tmp_path / "camera.json") == camera
    assert json.loads((tmp_path / "camera.json").read_text())["intrinsics"] == "given"


GOOD_CAMERA = {"model": "PINHOLE", "width_px": 64, "height_px": 48, "params": [50, 50, 32, 24]}


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"model": "FANCY"}, "FANCY.*known: SIMPLE_PINHOLE"),
        ({"model": ["PINHOLE"]}, "not known"),
        ({"width_px": 64.5}, "width_px"),
        ({"height_px": -3}, "height_px"),
        ({"params": [50, 50, 32]}, "takes 4 parameters"),
        ({"params": [50, "50", 32, 24]}, "list of finite numbers"),
        ({"params": [50, float("nan"), 32, 24]}, "list of finite numbers"),
        ({"params": [-50, 50, 32, 24]}, "fx of PINHOLE should be positive"),
        ({"params": [50, 50, 3200, 24]}, "far outside"),
    ],
)
def test_bad_cameras_say_what_is_wrong(tmp_path, change, word):
    (tmp_path / "camera.json").write_text(json.dumps(GOOD_CAMERA | change))
    with pytest.raises(ReconError, match=rf"camera\.json.*{word}"):
        cameras.read_camera(tmp_path / "camera.json")


@pytest.mark.parametrize("text", ["", "[]", "{", "{}", "[" * 100_000])
def test_files_that_hold_no_camera(tmp_path, text):
    (tmp_path / "camera.json").write_text(text)
    with pytest.raises(ReconError, match=r"camera\.json"):
        cameras.read_camera(tmp_path / "camera.json")


# --- meshes


def some_mesh(rng, unit="mm"):
    sphere = trimesh.creation.icosphere(subdivisions=1, radius=5)
    n = len(sphere.vertices)
    colors = rng.integers(0, 255, (n, 3)).astype(np.uint8)
    return Mesh(
        sphere.vertices + np.array([1, 2, 30]),
        np.array(sphere.faces),
        colors,
        confidence=rng.random(n),
        observations=np.floor(9 * rng.random(n)),
        unit=unit,
        **{name: rng.random(n) for name in ("matched", "last_seen_s", "viewing_angle_rad")},
    )


@pytest.mark.parametrize("unit", ["mm", "unitless"])
def test_ply_round_trip(tmp_path, rng, unit):
    mesh = some_mesh(rng, unit)
    meshes.write_ply(tmp_path / "m.ply", mesh)
    read = meshes.read_mesh(tmp_path / "m.ply")
    assert read.unit == unit
    assert np.array_equal(read.faces, mesh.faces)
    assert np.array_equal(read.colors, mesh.colors)
    assert np.allclose(read.vertices, mesh.vertices, atol=1e-5)
    for name in meshes.VERTEX_PROPERTIES:
        assert np.allclose(getattr(read, name), getattr(mesh, name), rtol=1e-6, atol=1e-6)
    outward = (mesh.vertices - (1, 2, 30)) / 5
    assert np.sum(read.normals * outward, axis=1).min() > 0.97


def test_ply_bytes_are_the_same_every_time_and_open3d_reads_them(tmp_path, rng):
    o3d = pytest.importorskip("open3d")
    mesh = some_mesh(rng)
    meshes.write_ply(tmp_path / "a.ply", mesh)
    meshes.write_ply(tmp_path / "b.ply", mesh)
    assert (tmp_path / "a.ply").read_bytes() == (tmp_path / "b.ply").read_bytes()
    other = o3d.io.read_triangle_mesh(str(tmp_path / "a.ply"))
    assert len(other.triangles) == len(mesh.faces)
    assert np.allclose(np.asarray(other.vertex_colors) * 255, mesh.colors)


def test_glb_is_in_metres_with_y_up(tmp_path, rng):
    mesh = some_mesh(rng)
    meshes.write_glb(tmp_path / "m.glb", mesh)
    content = (tmp_path / "m.glb").read_bytes()
    head = json.loads(content[20 : 20 + struct.unpack("<I", content[12:16])[0]])
    assert head["scenes"][0]["extras"]["source_unit"] == "mm"
    raw = trimesh.load(tmp_path / "m.glb", force="mesh", process=False)
    assert np.allclose(raw.vertices, mesh.vertices * (1e-3, -1e-3, -1e-3), atol=1e-7)
    assert raw.volume > 0  # the half turn keeps the orientation of faces
    read = meshes.read_mesh(tmp_path / "m.glb")
    assert read.unit == "mm"
    assert np.allclose(read.vertices, mesh.vertices, atol=1e-4)


def test_a_unitless_glb_is_one_metre_and_says_so(tmp_path, rng):
    mesh = some_mesh(rng, "unitless")
    meshes.write_glb(tmp_path / "a.glb", mesh)
    meshes.write_glb(tmp_path / "b.glb", mesh)
    assert (tmp_path / "a.glb").read_bytes() == (tmp_path / "b.glb").read_bytes()
    raw = trimesh.load(tmp_path / "a.glb", process=False)
    assert raw.metadata["source_unit"] == "unitless"
    assert raw.metadata["metric"] is False
    assert np.isclose(raw.extents.max(), 1, atol=1e-6)
    assert np.allclose(meshes.read_mesh(tmp_path / "a.glb").vertices, mesh.vertices, atol=1e-4)


@pytest.mark.parametrize("suffix", ["obj", "stl", "off"])
def test_foreign_meshes_are_read(tmp_path, suffix):
    trimesh.creation.box().export(tmp_path / f"m.{suffix}")
    read = meshes.read_mesh(tmp_path / f"m.{suffix}")
    assert len(read.faces) == 12
    assert read.unit == "unitless"


def test_a_header_that_claims_a_billion_vertices_is_refused(tmp_path):
    (tmp_path / "m.ply").write_bytes(b"ply\nformat binary_little_endian 1.0\nelement vertex 1000000000\nproperty float x\nend_header\n")
    with pytest.raises(ReconError, match="cut short"):
        meshes.read_mesh(tmp_path / "m.ply")


def test_normals_of_a_loose_vertex_are_finite():
    vertices = np.array([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [9, 9, 9]])
    assert meshes.vertex_normals(vertices, np.array([[0, 1, 2]])).tolist() == [[0, 0, 1]] * 4


@pytest.mark.parametrize("corner", ["{v}", "{v}/{t}", "{v}//1", "{v}/{t}/1"])
def test_obj_corners_in_all_spellings(tmp_path, corner):
    face = " ".join(corner.format(v=v, t=2) for v in (1, 2, 3))
    (tmp_path / "m.obj").write_text(f"# c\nv 0 0 0\nv 1 0 0\nv 0 1 0\nvt 0 0\nvt 1 1\nvn 0 0 1\nf {face}\n")
    vertices, faces, texture_idx = obj.read_obj(tmp_path / "m.obj")
    assert vertices.shape == (3, 3)
    assert faces.tolist() == [[0, 1, 2]]
    assert (None if texture_idx is None else texture_idx.tolist()) == ([[1, 1, 1]] if "{t}" in corner else None)


# --- COLMAP


@pytest.mark.parametrize("model", ["PINHOLE", "SIMPLE_RADIAL", "SCARAMUZZA"])
def test_colmap_reads_back_the_same_projections(tmp_path, rng, model):
    pycolmap = pytest.importorskip("pycolmap")
    from recon.data.c3vd import CAMERA
    from recon.geometry.cameras import project, resize

    camera = {
        "PINHOLE": Camera("PINHOLE", 640, 480, (500.0, 510.0, 318.0, 242.0)),
        "SIMPLE_RADIAL": Camera("SIMPLE_RADIAL", 640, 480, (500.0, 318.0, 242.0, -0.05)),
        "SCARAMUZZA": resize(CAMERA, 675, 540),
    }[model]
    xyz = rng.uniform((-2, -2, 6), (2, 2, 9), (20, 3))
    T = some_poses(rng, 3) * 1.0
    T[:] = se3.exp(rng.normal(size=(3, 6)) * 0.05)
    seen = [project(camera, (xyz - T[k, :3, 3]) @ T[k, :3, :3])[0] for k in range(3)]
    points = colmap.SparsePoints(xyz, np.tile(np.arange(20), 3), np.repeat([4, 7, 9], 20), np.concatenate(seen), np.full(20, 0.3))
    poses = dict(zip([4, 7, 9], T, strict=True))
    misfit_px = colmap.write_colmap(tmp_path / "sparse", camera, {k: f"{k:06d}.jpg" for k in poses}, poses, points)
    assert misfit_px < 0.5
    model_read = pycolmap.Reconstruction(tmp_path / "sparse")
    assert model_read.num_reg_images() == 3
    assert model_read.num_points3D() == 20
    assert np.isclose(model_read.compute_mean_reprojection_error(), 0.3)
    image = model_read.images[8]
    assert image.name == "000007.jpg"
    assert np.allclose(image.projection_center(), T[1, :3, 3])
    for point2d in image.points2D:
        assert np.linalg.norm(image.project_point(model_read.points3D[point2d.point3D_id].xyz) - point2d.xy) < misfit_px + 1e-3


def test_colmap_without_poses_is_a_failed_job(tmp_path):
    with pytest.raises(ReconError, match="no frame is posed") as caught:
        colmap.write_colmap(Path(tmp_path), Camera("PINHOLE", 4, 4, (4.0, 4.0, 2.0, 2.0)), {}, {})
    assert caught.value.exit_code == 1
