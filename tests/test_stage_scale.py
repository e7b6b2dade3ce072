"""The scale stage on a few posed frames of a rendered wall: sources that look at the recording give its unit, and say why not."""

from __future__ import annotations

import json
from pathlib import Path

import heightfield
import numpy as np
import pytest
from layouts import save
from shafts import WIDTH_MM, silhouette

from recon.data.second_view import CALIBRATION, KEY
from recon.geometry import se3
from recon.geometry.cameras import unproject
from recon.io.atomic import write_json
from recon.io.cameras import write_camera
from recon.io.depth import read_depth, write_depth
from recon.io.images import write_jpeg
from recon.io.masks import write_mask
from recon.io.meshes import write_ply
from recon.types import Mesh, ReconError
from stages import scale

CAMERA = heightfield.CAMERA
POSES = heightfield.sideways(6)
WALL = [heightfield.render(pose) for pose in POSES]
MM_PER_UNIT = 30.0
"""One unit of the wall; the run's world unit is the wall's."""
BASELINE_MM = 4.0


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> dict[str, Path]:
    """What the stage reads, by hand: true poses, depth of another unit, no sparse point."""
    root = tmp_path_factory.mktemp("inputs")
    frames, posed = [], []
    for index, (pose, (image, depth)) in enumerate(zip(POSES, WALL, strict=True)):
        name = f"{index:06d}"
        save(root / "recording" / f"{name}.png", image)
        write_jpeg(root / "frames" / "images" / f"{name}.jpg", image)
        write_mask(root / "masks" / "masks" / f"{name}.png", np.ones(depth.shape, bool))
        write_mask(root / "masks" / "tissue" / f"{name}.png", np.ones(depth.shape, bool))
        write_depth(root / "depth" / "depth" / f"{name}.tiff", depth * 0.5)
        write_depth(root / "depth" / "sigma" / f"{name}.tiff", np.full_like(depth, 0.1))
        frames.append({"index": index, "name": name, "timestamp_s": index / 10, "file": f"images/{name}.jpg", "reason": None})
        posed.append({"index": index, "status": "keyframe", "T_world_camera": pose.tolist(), "depth_factor": 2.0})
    size = {f"{of}{side}_px": getattr(CAMERA, f"{side}_px") for of in ("", "source_") for side in ("width", "height")}
    write_json(root / "frames" / "frames.json", {"is_unrelated": False, "frames": frames, **size})
    write_json(root / "masks" / "gate.json", {"instruments": None, "frames": []})
    write_json(root / "trajectory" / "trajectory.json", {"unit": "unitless", "frames": posed})
    write_json(root / "depth" / "depth.json", {"model": "student", "scale": "scale_invariant", "is_truth": False})
    empty = {"xyz": np.zeros((0, 3)), "error_px": np.zeros(0), "obs_px": np.zeros((0, 2))}
    np.savez(root / "trajectory" / "points.npz", **empty, obs_point=np.zeros(0, np.int64), obs_frame=np.zeros(0, np.int64))
    for stage in ("camera", "trajectory"):
        write_camera(root / stage / "camera.json", CAMERA)
    write_json(root / "source" / "source.json", {"path": str(root / "recording")})
    return {name: root / name for name in ("source", "frames", "camera", "masks", "depth", "trajectory")}


def result(inputs: dict[str, Path], out: Path, **config) -> dict:
    out.mkdir(exist_ok=True)
    scale.run(inputs, out, scale.Config(**config))
    return json.loads((out / "scale.json").read_text())


def check_millimetres(found: dict, out: Path, source: str) -> None:
    """The value within three of its sigmas, and depth in that unit."""
    assert (found["source"], found["unit"]) == (source, "mm") and found["along_path"]
    assert abs(found["value"] - MM_PER_UNIT) < 3 * found["sigma"] < MM_PER_UNIT
    assert np.allclose(read_depth(out / "depth" / "000001.tiff"), found["value"] * WALL[1][1], rtol=1e-3)


def test_right_pictures_in_a_folder_give_millimetres(inputs, tmp_path):
    beside = np.eye(4)
    beside[0, 3] = BASELINE_MM / MM_PER_UNIT
    for index, pose in enumerate(POSES):
        save(tmp_path / "right" / f"{index:06d}.png", heightfield.render(pose @ beside)[0])
    T_right_left_mm = se3.inverse(beside)
    T_right_left_mm[0, 3] = -BASELINE_MM
    write_camera(tmp_path / "right" / CALIBRATION, CAMERA, **{KEY: T_right_left_mm.tolist()})
    config = {"stereo": tmp_path / "right"}
    assert set(scale.STAGE.all_reads(scale.Config(**config))) >= {"source", "masks"}
    assert f"stereo/{CALIBRATION}" in scale.STAGE.checksums(scale.Config(**config))
    found = result(inputs, tmp_path / "out", **config)
    check_millimetres(found, tmp_path / "out", "stereo")
    assert found["value"] == pytest.approx(MM_PER_UNIT, rel=0.01) and found["num_pairs"] == 6


def test_a_recording_without_a_second_view_says_so(inputs, tmp_path):
    with pytest.raises(ReconError, match="data set 'folder' has no second view with its calibration"):
        result(inputs, tmp_path, stereo="dataset")


def with_instruments(inputs: dict[str, Path], folder: Path) -> dict[str, Path]:
    """The same with masks of an instrument whose tip touches the wall in the middle of every picture."""
    for index, (_, depth) in enumerate(WALL):
        tip = unproject(CAMERA, np.array([[120.0, 90.0]]))[0]
        white = silhouette(CAMERA, tip / tip[2] * depth[90, 120] * MM_PER_UNIT)
        save(folder / "white" / f"{index:06d}.png", np.where(white, 255, 0).astype(np.uint8))
        write_mask(folder / "masks" / "tissue" / f"{index:06d}.png", ~white)
    write_json(folder / "masks" / "gate.json", {"instruments": {"white": "instrument"}})
    spec = json.loads((inputs["source"] / "source.json").read_text())
    write_json(folder / "source" / "source.json", spec | {"masks_dir": str(folder / "white")})
    return inputs | {"masks": folder / "masks", "source": folder / "source"}


def test_an_instrument_of_known_width_gives_rough_millimetres(inputs, tmp_path):
    found = result(with_instruments(inputs, tmp_path), tmp_path / "out", instrument_width_mm=WIDTH_MM)
    check_millimetres(found, tmp_path / "out", "instrument")
    assert found["num_frames"] == 6 and found["sigma"] >= 0.1 * found["value"]


def test_an_instrument_without_masks_is_refused(inputs, tmp_path):
    with pytest.raises(ReconError, match="recording has no instrument masks; give a folder of them with --masks"):
        result(inputs, tmp_path, instrument_width_mm=WIDTH_MM)


def test_a_model_of_the_wall_alone_does_not_decide(inputs, tmp_path):
    """The bumps of a wall are too low to hold it."""
    x, y = (side.ravel() for side in np.meshgrid(np.linspace(-1.5, 1.5, 40), np.linspace(-1.2, 1.2, 40)))
    flat = np.stack([x, y, np.full_like(x, 2.0)], axis=1) * MM_PER_UNIT
    corner = (np.arange(39)[:, None] * 40 + np.arange(39)).ravel()
    faces = np.concatenate([np.stack([corner, corner + 1, corner + 40], 1), np.stack([corner + 1, corner + 41, corner + 40], 1)])
    write_ply(tmp_path / "flat.ply", Mesh(flat, faces, unit="mm"))
    assert scale.STAGE.all_reads(scale.Config(model_mm=tmp_path / "flat.ply"))[-1] == "masks"
    assert set(scale.STAGE.checksums(scale.Config(model_mm=tmp_path / "flat.ply"))) == {"model_mm"}
    with pytest.raises(ReconError, match=r"scale\.model_mm: "):
        result(inputs, tmp_path / "out", model_mm=tmp_path / "flat.ply")


def test_a_model_that_is_no_mesh_is_named_before_anything_runs(tmp_path):
    (tmp_path / "organ.stl").write_text("not a mesh")
    with pytest.raises(ReconError, match=r"organ\.stl"):
        scale.STAGE.checksums(scale.Config(model_mm=tmp_path / "organ.stl"))
