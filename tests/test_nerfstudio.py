"""Scenes for nerfstudio: round trips, its conventions by known points and pixels, and files that are not what they claim."""

import json
from dataclasses import replace

import numpy as np
import pytest

from recon.geometry import se3
from recon.geometry.cameras import project
from recon.io.colmap_camera import colmap_lens
from recon.io.images import write_jpeg
from recon.io.nerfstudio import PosedFrame, depth_step, read_nerfstudio, write_nerfstudio
from recon.types import Camera, ReconError

LENSES = {
    "PINHOLE": (50.0, 51.0, 31.0, 23.5),
    "SIMPLE_RADIAL": (50.0, 31.0, 23.5, 0.1),
    "OPENCV": (50.0, 51.0, 31.0, 23.5, 0.1, -0.02, 0.001, 0.002),
    "OPENCV_FISHEYE": (50.0, 51.0, 31.0, 23.5, 0.1, -0.02, 0.003, -0.001),
}


def lens(model):
    return Camera(model, 64, 48, LENSES[model])


@pytest.fixture
def frames(tmp_path):
    rng = np.random.default_rng(2)
    result = []
    for k in range(3):
        write_jpeg(tmp_path / "source" / f"{k}.jpg", np.full((48, 64, 3), 40 * k, np.uint8))
        depth, mask = rng.uniform(60, 90, (48, 64)), rng.random((48, 64)) > 0.3
        depth[:5] = 0
        pose = se3.exp(rng.normal(size=6))
        result.append(PosedFrame(f"{k:06d}", 2.0 + 0.5 * k, pose, tmp_path / "source" / f"{k}.jpg", lambda d=depth: d, lambda m=mask: m))
    return result


@pytest.mark.parametrize("model", LENSES)
def test_a_scene_comes_back(tmp_path, frames, model):
    step = write_nerfstudio(tmp_path / "out", lens(model), frames, "mm")
    scene = read_nerfstudio(tmp_path / "out")
    assert scene.unit == "mm" and scene.depth_step == step == 0.002
    points = np.random.default_rng(0).uniform((-20, -20, 40), (20, 20, 90), (50, 3))
    np.testing.assert_allclose(project(scene.camera, points)[0], project(lens(model), points)[0], atol=1e-9)
    for back, frame in zip(scene.frames, frames, strict=True):
        np.testing.assert_allclose(back.T_world_camera, frame.T_world_camera, atol=1e-12)
        assert np.abs(back.depth() - frame.depth()).max() <= step / 2 + 1e-9
        np.testing.assert_array_equal(back.depth() > 0, frame.depth() > 0)
        np.testing.assert_array_equal(back.mask(), frame.mask())
        assert back.timestamp_s == frame.timestamp_s and back.name == frame.name
        assert back.image.read_bytes() == frame.image.read_bytes()
    times = [entry["time"] for entry in json.loads((tmp_path / "out" / "transforms.json").read_text())["frames"]]
    assert times == [0.0, 0.5, 1.0]


def test_a_point_meets_the_pixel_that_nerfstudio_computes(tmp_path, frames):
    """Its arithmetic: rays through (u + 0.5, v + 0.5) for pixel (u, v), y up, looking along -z."""
    camera = lens("PINHOLE")
    write_nerfstudio(tmp_path, camera, frames, "mm")
    tree = json.loads((tmp_path / "transforms.json").read_text())
    c2w = np.array(tree["frames"][1]["transform_matrix"])
    u, v, depth = 12, 40, 70.0
    x, y = (u + 0.5 - tree["cx"]) / tree["fl_x"], (v + 0.5 - tree["cy"]) / tree["fl_y"]
    point_world = c2w[:3, :3] @ (depth * np.array([x, -y, -1.0])) + c2w[:3, 3]
    T_camera_world = se3.inverse(frames[1].T_world_camera)
    point_camera = T_camera_world[:3, :3] @ point_world + T_camera_world[:3, 3]
    np.testing.assert_allclose(project(camera, point_camera[None])[0], [(u, v)], atol=1e-9)
    assert point_camera[2] == pytest.approx(depth)


@pytest.mark.parametrize(
    ("farthest", "step"), [(65.535, 0.001), (65.6, 0.002), (131.07, 0.002), (140.0, 0.005), (0.09, 2e-6), (0.0, 0.001)]
)
def test_depth_steps_are_the_finest_that_fit(farthest, step):
    assert depth_step(farthest) == step


def test_frames_without_depth_and_masks_are_written_without(tmp_path, frames):
    bare = [replace(frame, depth=None, mask=None) for frame in frames]
    assert write_nerfstudio(tmp_path / "out", lens("PINHOLE"), bare, "unitless") is None
    scene = read_nerfstudio(tmp_path / "out")
    assert scene.depth_step is None and all(frame.depth is None and frame.mask is None for frame in scene.frames)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["images", "transforms.json"]


def test_a_lens_that_nerfstudio_does_not_know_is_refused_and_its_stand_in_taken(tmp_path, frames):
    camera = Camera("SCARAMUZZA", 64, 48, (31.5, 23.5, 30.0, 0.0, -0.005, 0.0, 0.0, 1.0, 0.0, 0.0))
    with pytest.raises(ReconError, match="no lens of model SCARAMUZZA"):
        write_nerfstudio(tmp_path / "out", camera, frames, "mm")
    write_nerfstudio(tmp_path / "out", colmap_lens(camera).camera, frames, "mm")
    assert read_nerfstudio(tmp_path / "out").camera.model == "OPENCV_FISHEYE"


def test_scenes_that_nerfstudio_would_refuse_are_not_written(tmp_path, frames):
    with pytest.raises(ReconError, match="a mask for every frame or for none, found 2 for 3"):
        write_nerfstudio(tmp_path, lens("PINHOLE"), [replace(frames[0], mask=None), *frames[1:]], "mm")
    with pytest.raises(ReconError, match="no frame is posed"):
        write_nerfstudio(tmp_path, lens("PINHOLE"), [], "mm")
    with pytest.raises(ReconError, match="one name"):
        write_nerfstudio(tmp_path, lens("PINHOLE"), [frames[0], frames[0]], "mm")
    with pytest.raises(ReconError, match="depth of frame 000000 is 64x48, but the camera is 32x24"):
        write_nerfstudio(tmp_path, Camera("PINHOLE", 32, 24, LENSES["PINHOLE"]), frames, "mm")
    assert not (tmp_path / "transforms.json").exists()


DAMAGE = {
    "no frames": (lambda tree: tree.update(frames=[]), "a list of frames"),
    "a frame that is none": (lambda tree: tree.update(frames=[3]), "frame 0 is damaged"),
    "no pose": (lambda tree: tree["frames"][1].pop("transform_matrix"), "frame 1 is damaged"),
    "half a pose": (lambda tree: tree["frames"][1].update(transform_matrix=[[1, 2]]), "4x4 finite numbers"),
    "no focal length": (lambda tree: tree.pop("fl_x"), "lacks fl_x"),
    "a word": (lambda tree: tree.update(w="wide"), "lacks w"),
    "an unknown lens": (lambda tree: tree.update(camera_model="EQUIRECTANGULAR"), "EQUIRECTANGULAR"),
    "a term that is not read": (lambda tree: tree.update(k3=0.1), "k3 of a lens PINHOLE is not read"),
    "a way out": (lambda tree: tree["frames"][0].update(file_path="../../etc/passwd"), "outside the scene's folder"),
    "a negative step": (lambda tree: tree.update(depth_unit_scale_factor=-1), "positive number"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damaged_scenes_are_refused_with_the_reason(tmp_path, frames, case):
    change, expected = DAMAGE[case]
    write_nerfstudio(tmp_path, lens("PINHOLE"), frames, "mm")
    tree = json.loads((tmp_path / "transforms.json").read_text())
    change(tree)
    (tmp_path / "transforms.json").write_text(json.dumps(tree))
    with pytest.raises(ReconError, match=expected):
        read_nerfstudio(tmp_path)
