"""The camera and masks stages: the lens follows the images' size, masks and gate say what was decided, killed runs go on."""

import json
import logging

import cv2
import numpy as np
import pytest
from layouts import save

from recon.geometry.cameras import project
from recon.io.atomic import write_json
from recon.io.cameras import read_camera, write_camera
from recon.io.masks import read_mask
from recon.pipeline.config import build_config
from recon.types import Camera, ReconError
from stages import camera, frames, masks

pytestmark = pytest.mark.filterwarnings("error")

HEIGHT, WIDTH = 96, 128
V, U = np.mgrid[:HEIGHT, :WIDTH].astype(np.float64)
FIELD = np.hypot(U - 63.5, V - 47.5) < 44.0
SHAFT = (V > 60.0) & (np.abs(U - 64.0) < 8.0)


def picture(seed: int, instrument: bool = False) -> np.ndarray:
    rng = np.random.default_rng(seed)
    texture = sum(cv2.resize(rng.normal(size=(n, n)), (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC) for n in (4, 16, 48))
    image = np.clip((0.7 + 0.08 * texture)[..., None] * (220.0, 105.0, 90.0), 0, 255)
    if instrument:
        image[SHAFT] = 150.0
    return np.where(FIELD[..., None], image, 0.0).astype(np.uint8)


@pytest.fixture
def stage(tmp_path):
    """Make a recording of six frames, run the stages up to masks on it, and return the folders."""

    def run(camera_config=None, masks_config=None, frames_config=None, images=None, **spec):
        for k, image in enumerate(images or [picture(k) for k in range(6)]):
            save(tmp_path / "rec" / f"{k:04d}.png", image)
        source = {"path": str(tmp_path / "rec"), "dataset": None, "camera_file": None, "masks_dir": None}
        write_json(tmp_path / "source" / "source.json", source | {key: str(value) for key, value in spec.items()})
        folders = {name: tmp_path / name for name in ("source", "frames", "camera", "masks")}
        for name, module, config in (("frames", frames, frames_config), ("camera", camera, camera_config), ("masks", masks, masks_config)):
            folders[name].mkdir(exist_ok=True)
            module.run({key: folders[key] for key in module.STAGE.reads}, folders[name], config or module.Config())
        return folders

    return run


def gate_of(folders) -> dict:
    return json.loads((folders["masks"] / "gate.json").read_text())


def test_without_a_lens_a_stated_field_of_view_is_assumed(stage, caplog):
    with caplog.at_level(logging.WARNING):
        folders = stage(camera_config=camera.Config(default_fov_deg=90.0))
    text = json.loads((folders["camera"] / "camera.json").read_text())
    assert (text["intrinsics"], text["model"]) == ("estimated", "SIMPLE_RADIAL")
    assert text["fov_rad"] == pytest.approx(np.pi / 2)
    assert text["params"] == pytest.approx([64.0, 63.5, 47.5, 0.0])
    assert "no calibration" in caplog.text


def test_a_given_lens_is_scaled_to_the_working_size(stage, tmp_path):
    lens = Camera("OPENCV_FISHEYE", WIDTH, HEIGHT, (70.0, 71.0, 64.0, 47.0, 0.01, 0.0, 0.0, 0.0))
    write_camera(tmp_path / "lens.json", lens)
    folders = stage(camera_file=tmp_path / "lens.json", frames_config=frames.Config(max_side_px=64))
    found = read_camera(folders["camera"] / "camera.json")
    assert (found.width_px, found.height_px) == (64, 48)
    assert json.loads((folders["camera"] / "camera.json").read_text())["intrinsics"] == "given"
    point = np.array([[0.3, -0.2, 1.0]])
    np.testing.assert_allclose(project(found, point)[0], (project(lens, point)[0] + 0.5) * 0.5 - 0.5, atol=1e-9)
    assert read_mask(folders["masks"] / "scope.png").shape == (48, 64)


def test_a_lens_for_another_size_names_both_sizes(stage, tmp_path):
    write_camera(tmp_path / "lens.json", Camera("PINHOLE", 640, 480, (500.0, 500.0, 320.0, 240.0)))
    with pytest.raises(ReconError, match=rf"lens.json is for images of 640x480, but .* has {WIDTH}x{HEIGHT}") as caught:
        stage(camera_file=tmp_path / "lens.json")
    assert caught.value.exit_code == 2


def test_an_impossible_default_is_refused():
    with pytest.raises(ReconError, match="default_fov_deg must be between"):
        build_config(camera.Config, {"default_fov_deg": 180.0}, "[camera]")


def test_masks_hold_the_field_without_highlights(stage):
    images = [picture(k) for k in range(6)]
    images[2][40:43, 50:53] = 255
    folders = stage(images=images)
    scope = read_mask(folders["masks"] / "scope.png")
    assert not (scope & ~FIELD).any() and scope.sum() > 0.9 * FIELD.sum()
    valid = read_mask(folders["masks"] / "masks" / "000002.png")
    assert not valid[40:43, 50:53].any() and not (valid & ~scope).any()
    assert len(list((folders["masks"] / "masks").glob("*.png"))) == 6
    gate = gate_of(folders)
    assert [frame["status"] for frame in gate["frames"]] == ["ok"] * 6
    assert gate["instruments"] is None


def test_pixels_that_the_lens_does_not_reach_are_invalid(stage, tmp_path):
    write_camera(tmp_path / "lens.json", Camera("OPENCV_FISHEYE", WIDTH, HEIGHT, (30.0, 30.0, 63.5, 47.5, -0.2, 0.0, 0.0, 0.0)))
    scope = read_mask(stage(camera_file=tmp_path / "lens.json")["masks"] / "scope.png")
    assert scope[47, 63] and not scope[47, 63 - 32]
    write_camera(tmp_path / "lens.json", Camera("OPENCV_FISHEYE", WIDTH, HEIGHT, (30.0, 30.0, 250.0, 47.5, -0.2, 0.0, 0.0, 0.0)))
    with pytest.raises(ReconError, match="reaches no pixel"):
        stage(camera_file=tmp_path / "lens.json")


def test_bad_frames_are_rejected_with_figures(stage):
    images = [picture(k) for k in range(10)]
    images[3] = np.zeros_like(images[3])
    images[6] = cv2.GaussianBlur(images[6], (0, 0), 3.0)
    gate = gate_of(stage(images=images))
    rejected = {frame["index"]: frame["reason"] for frame in gate["frames"] if frame["status"] == "rejected"}
    assert set(rejected) == {3, 6}
    assert rejected[3].startswith("too dark: 100%") and rejected[6].startswith("blurred: blur score")


def test_undecodable_frames_keep_their_reason(stage, tmp_path):
    (tmp_path / "rec").mkdir()
    (tmp_path / "rec" / "9999.png").write_bytes(b"not a picture")
    gate = gate_of(stage())
    assert gate["frames"][6]["status"] == "rejected" and "cannot be decoded" in gate["frames"][6]["reason"]
    assert gate["frames"][6]["blur"] is None
    assert len(gate["frames"]) == 7


@pytest.mark.parametrize("level", [255, 1])
@pytest.mark.parametrize("white", ["instrument", "tissue"])
def test_polarity_of_supplied_masks_is_found(stage, tmp_path, white, level):
    for k in range(6):
        save(tmp_path / "tools" / f"{k:04d}.png", np.where(SHAFT if white == "instrument" else ~SHAFT, level, 0).astype(np.uint8))
    folders = stage(images=[picture(k, instrument=True) for k in range(6)], masks_dir=tmp_path / "tools")
    assert gate_of(folders)["instruments"]["white"] == white
    valid = read_mask(folders["masks"] / "masks" / "000001.png")
    assert not valid[SHAFT].any() and valid[20:50, 50:80].mean() > 0.95


def test_polarity_can_be_overruled(stage, tmp_path):
    for k in range(6):
        save(tmp_path / "tools" / f"{k:04d}.png", np.where(SHAFT, 255, 0).astype(np.uint8))
    folders = stage(masks_config=masks.Config(polarity="tissue"), masks_dir=tmp_path / "tools")
    valid = read_mask(folders["masks"] / "masks" / "000000.png")
    assert not valid[~SHAFT].any()
    assert gate_of(folders)["frames"][0]["reason"].startswith("covered")


def test_masks_that_cover_nothing_are_told(stage, tmp_path, caplog):
    for k in range(6):
        save(tmp_path / "tools" / f"{k:04d}.png", np.zeros((HEIGHT, WIDTH), np.uint8))
    stage(masks_dir=tmp_path / "tools")
    assert "cover 0% of every frame" in caplog.text


def test_a_mask_of_another_size_is_named(stage, tmp_path):
    for k in range(6):
        save(tmp_path / "tools" / f"{k:04d}.png", np.zeros((50, 60), np.uint8))
    with pytest.raises(ReconError, match=rf"mask of frame 000\d.png is 60x50.*are {WIDTH}x{HEIGHT}"):
        stage(masks_dir=tmp_path / "tools")


def test_a_killed_run_goes_on_and_ends_the_same(stage):
    folders = stage()
    expected = {file.name: file.read_bytes() for file in folders["masks"].rglob("*.*")}
    kept = folders["masks"] / "masks" / "000000.png"
    changed_before = kept.stat().st_mtime_ns
    for name in ("gate.json", "masks/000003.png", "masks/000004.png"):
        (folders["masks"] / name).unlink()
    stage()
    assert kept.stat().st_mtime_ns == changed_before
    assert {file.name: file.read_bytes() for file in folders["masks"].rglob("*.*")} == expected
