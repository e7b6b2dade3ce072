"""Bad input gets one line that names the file and the reason, never a crash, a hang or a silent empty result."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import trimesh
from layouts import HEIGHT, WIDTH, picture, save, write_c3vd, write_endonerf, write_folder, write_jhu, write_servct
from video_files import write_video

from recon.data import open_sequence
from recon.data.c3vd import read_poses
from recon.io import cameras, depth, images, masks, meshes, obj, trajectory
from recon.io.atomic import write_text
from recon.types import Camera, FrameError, Mesh, ReconError, Trajectory

pytestmark = pytest.mark.filterwarnings("error")
ROOT = Path(__file__).parents[1]
NUM_MUTATIONS = 40


def one_line(error: ReconError, name: str) -> bool:
    return "\n" not in str(error) and name in str(error) and len(str(error)) < 600


# --- sources


def test_a_missing_source_is_named(tmp_path):
    with pytest.raises(ReconError, match=r"nothing\.mp4 does not exist") as caught:
        open_sequence(tmp_path / "nothing.mp4")
    assert caught.value.exit_code == 2


def test_an_empty_folder_is_named(tmp_path):
    with pytest.raises(ReconError, match=r"holds no image \(png, jpg"):
        open_sequence(tmp_path)


def test_one_image_is_not_enough(tmp_path):
    with pytest.raises(ReconError, match="1 image; a reconstruction needs at least 2 frames"):
        open_sequence(write_folder(tmp_path / "a", 1))


def test_mixed_sizes_name_the_first_odd_file_and_both_sizes(tmp_path):
    root = write_folder(tmp_path / "a", 4)
    save(root / "10.png", picture(0, 50, 20))
    with pytest.raises(ReconError, match=r"10\.png is 50x20 but 8\.png is 40x32"):
        open_sequence(root)


def test_a_folder_of_text_files_named_png(tmp_path):
    for k in range(3):
        (tmp_path / f"{k}.png").write_text("text")
    with pytest.raises(ReconError, match=r"none of its 3 images can be decoded; the first is 0\.png"):
        open_sequence(tmp_path)


def test_a_device_is_neither_file_nor_folder():
    with pytest.raises(ReconError, match="neither a file nor a folder"):
        open_sequence("/dev/null")


def test_a_name_that_no_file_system_takes(tmp_path):
    with pytest.raises(ReconError, match="cannot be read"):
        open_sequence("a" * 5000)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_file_is_named(tmp_path):
    write_video(tmp_path / "a.mp4", 3)
    (tmp_path / "a.mp4").chmod(0)
    with pytest.raises(ReconError, match=r"a\.mp4 .*[Pp]ermission"):
        open_sequence(tmp_path / "a.mp4")


# --- the same from the command line


def recon(*words):
    command = [sys.executable, "-c", "import sys; from recon.cli import main; sys.exit(main())", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)


def bad_sources(root: Path) -> dict[str, tuple[Path, str]]:
    """Kinds of bad source: the path, and what the line must say beside the name."""
    write_folder(root / "mixed")
    save(root / "mixed" / "10.png", picture(0, 50, 20))
    (root / "empty").mkdir()
    (root / "text.mp4").write_text("this is no video")
    return {
        "missing": (root / "missing.mp4", "does not exist"),
        "empty": (root / "empty", "no image"),
        "text": (root / "text.mp4", "cannot be read as a video"),
        "one": (write_folder(root / "one", 1), "at least 2 frames"),
        "mixed": (root / "mixed", "50x20"),
    }


@pytest.mark.parametrize("kind", ["missing", "empty", "text", "one", "mixed"])
def test_a_bad_source_is_one_line_and_exit_code_2(tmp_path, kind):
    source, word = bad_sources(tmp_path)[kind]
    done = recon("run", source, "--out", tmp_path / "run", "--until", "frames")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert source.name in done.stderr
    assert word in done.stderr
    assert not (tmp_path / "run" / "results").exists()


def test_a_camera_for_another_image_size_is_one_line_and_exit_code_2(tmp_path):
    cameras.write_camera(tmp_path / "camera.json", Camera("PINHOLE", 640, 480, (500.0, 500.0, 320.0, 240.0)))
    done = recon("run", write_folder(tmp_path / "a"), "--out", tmp_path / "run", "--camera", tmp_path / "camera.json")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "camera.json is for images of 640x480" in done.stderr
    assert not list((tmp_path / "run").rglob("*.jpg"))


# --- mutated files: 40 for every reader


def mutations(content: bytes):
    """Cuts, flipped bytes, a flipped header, a block of zeros, a block of noise: always the same 40."""
    rng = np.random.default_rng(7)
    for k in range(NUM_MUTATIONS):
        data = bytearray(content)
        kind = k % 5
        if kind == 0:
            data = data[: int(rng.integers(0, len(data)))]
        else:
            reach = min(len(data), 200) if kind == 2 else len(data)
            start = int(rng.integers(0, reach))
            size = 1 + int(rng.integers(0, 8)) if kind < 3 else min(len(data) - start, 64)
            for i in range(start, min(len(data), start + size)):
                data[i] = 0 if kind == 3 else int(rng.integers(0, 256))
        yield bytes(data)


def check_reader(tmp_path: Path, name: str, content: bytes, read) -> None:
    """`read` gives something that is not empty, or raises one line with the file's name; nothing else."""
    refused = 0
    for data in mutations(content):
        (tmp_path / name).write_bytes(data)
        try:
            size = read(tmp_path / name)
        except ReconError as error:
            assert one_line(error, name), str(error)
            refused += 1
        else:
            assert size > 0
    assert refused > 0


def image_bytes(tmp_path, suffix):
    save(tmp_path / f"good.{suffix}", picture(0))
    return (tmp_path / f"good.{suffix}").read_bytes()


@pytest.mark.parametrize("suffix", ["png", "jpg", "tiff", "bmp", "webp"])
def test_mutated_images(tmp_path, suffix):
    content = image_bytes(tmp_path, suffix)
    if suffix == "bmp":
        content = content[:400]  # damage to bare pixels is invisible; the header is what can be checked
    check_reader(tmp_path, f"a.{suffix}", content, lambda path: images.read_image(path).size)
    check_reader(tmp_path, f"b.{suffix}", content[:60], lambda path: images.read_info(path).width_px)


def test_mutated_masks_and_integer_images(tmp_path):
    masks.write_mask(tmp_path / "good.png", picture(0)[:, :, 0] > 99)
    check_reader(tmp_path, "m.png", (tmp_path / "good.png").read_bytes(), lambda path: masks.read_mask(path).size)
    root = write_c3vd(tmp_path / "c")
    check_reader(tmp_path, "d.tiff", (root / "0000_depth.tiff").read_bytes()[:400], lambda path: images.read_integers(path).size)


def test_mutated_depth(tmp_path):
    depth.write_depth(tmp_path / "good.tiff", np.linspace(1, 90, WIDTH * HEIGHT, dtype=np.float32).reshape(HEIGHT, WIDTH))
    check_reader(tmp_path, "a.tiff", (tmp_path / "good.tiff").read_bytes(), lambda path: depth.read_depth(path).size)


def test_mutated_trajectories(tmp_path):
    T = np.tile(np.eye(4), (9, 1, 1))
    trajectory.write_tum(tmp_path / "good.txt", Trajectory(np.arange(9), np.arange(9) / 25, T))
    check_reader(tmp_path, "a.txt", (tmp_path / "good.txt").read_bytes(), lambda path: len(trajectory.read_tum(path)))


def test_mutated_cameras(tmp_path):
    cameras.write_camera(tmp_path / "good.json", Camera("PINHOLE", 640, 480, (500.0, 500.0, 320.0, 240.0)))
    check_reader(tmp_path, "a.json", (tmp_path / "good.json").read_bytes(), lambda path: cameras.read_camera(path).width_px)


@pytest.mark.parametrize("suffix", ["ply", "glb", "obj", "stl", "off"])
def test_mutated_meshes(tmp_path, suffix):
    sphere = trimesh.creation.icosphere(subdivisions=1)
    mesh = Mesh(np.array(sphere.vertices), np.array(sphere.faces), np.zeros((len(sphere.vertices), 3), np.uint8))
    if suffix == "ply":
        meshes.write_ply(tmp_path / "good.ply", mesh)
    elif suffix == "glb":
        meshes.write_glb(tmp_path / "good.glb", mesh)
    else:
        sphere.export(tmp_path / f"good.{suffix}")
    check_reader(tmp_path, f"a.{suffix}", (tmp_path / f"good.{suffix}").read_bytes(), lambda path: len(meshes.read_mesh(path).faces))


def test_mutated_coverage_meshes_and_poses(tmp_path):
    root = write_c3vd(tmp_path / "c")
    check_reader(tmp_path, "a.obj", (root / "coverage_mesh.obj").read_bytes(), lambda path: len(obj.read_obj(path)[1]))
    check_reader(tmp_path, "pose.txt", (root / "pose.txt").read_bytes(), lambda path: len(read_poses(path)))


@pytest.mark.parametrize(("name", "codec"), [("a.mp4", "libx264"), ("a.mkv", "libx264"), ("a.ts", "libx264"), ("a.avi", "mjpeg")])
def test_mutated_videos(tmp_path, name, codec):
    """A damaged video opens with fewer frames or not at all; each frame decodes or is one FrameError."""
    write_video(tmp_path / f"good_{name}", 12, codec=codec)
    content = (tmp_path / f"good_{name}").read_bytes()
    for data in mutations(content):
        (tmp_path / name).write_bytes(data)
        try:
            sequence = open_sequence(tmp_path / name)
        except ReconError as error:
            assert one_line(error, name)
            continue
        assert len(sequence.frames) >= 2
        for frame in sequence.frames:
            try:
                assert frame.image().ndim == 3
            except FrameError as error:
                assert one_line(error, name)


@pytest.mark.parametrize(
    ("write", "names"),
    [
        (write_c3vd, ["pose.txt", "0001_depth.tiff", "coverage_mesh.obj"]),
        (write_servct, ["Rectified_calibration/001.json", "Ground_truth_CT/DepthL/001.png", "Ground_truth_CT/OcclusionL/001.png"]),
        (write_endonerf, ["poses_bounds.npy", "depth/frame-000001.depth.png", "masks/frame-000001.mask.png"]),
        (write_jhu, ["motion.yaml", "camera_intrinsics_per_view", "visible_view_indexes"]),
    ],
)
def test_mutated_datasets(tmp_path, write, names):
    root = write(tmp_path / "Experiment_1")
    for name in names:
        content = (root / name).read_bytes()
        for data in mutations(content):
            (root / name).write_bytes(data)
            try:
                sequence = open_sequence(root)
                if sequence.depth_gt:
                    assert sequence.depth_gt(1).depth.size > 0
                if sequence.mesh_gt:
                    assert len(sequence.mesh_gt().faces) > 0
                if sequence.instrument_mask:
                    assert sequence.instrument_mask(1).size > 0
            except ReconError as error:
                assert one_line(error, Path(name).name.split(".")[0]) or one_line(error, root.name), str(error)
        (root / name).write_bytes(content)


# --- output


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="no folder that refuses even root")
def test_an_output_folder_that_refuses_files_is_named():
    with pytest.raises(ReconError, match=r"/proc/self/recon/a\.txt cannot be written"):
        write_text(Path("/proc/self/recon/a.txt"), "x")


def test_a_full_disk_leaves_the_old_file_and_no_half_one(tmp_path):
    """A limit on file size stands in for a full disk: the writer fails in the middle of a file."""
    code = (
        "import resource, signal, sys\n"
        "from recon.io.atomic import write_bytes\n"
        "from recon.types import ReconError\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "write_bytes(sys.argv[1], b'old')\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try:\n"
        "    write_bytes(sys.argv[1], bytes(5000))\n"
        "except ReconError as error:\n"
        "    print(error.exit_code, error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "a.bin")], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.startswith(f"1 {tmp_path / 'a.bin'} cannot be written: ")
    assert (tmp_path / "a.bin").read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.bin"]
