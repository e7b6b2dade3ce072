"""The structure, trajectory and scale stages on tiny artifacts: every frame gets an answer, resumed runs give the same bytes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from heightfield import CAMERA, render, sideways

from recon.geometry import se3
from recon.geometry.alignment import umeyama
from recon.io.atomic import write_json
from recon.io.cameras import read_camera, write_camera
from recon.io.depth import read_depth, write_depth
from recon.io.images import write_jpeg
from recon.io.masks import write_mask
from recon.io.trajectory import read_tum
from recon.pipeline.config import build_config
from recon.tracking.map_files import read_maps, write_maps
from recon.tracking.mapping import SparseMap
from recon.types import ReconError
from stages import scale, structure, trajectory

NUM_FRAMES = 8
REJECTED, BLANK = 2, 7
UNIT = 0.4
"""Predicted depth is in another unit than the wall."""


def tilt(shape: tuple[int, int]) -> np.ndarray:
    """What the predicted depth gets wrong: a factor that changes across the image."""
    return np.exp(np.broadcast_to(np.linspace(-0.2, 0.2, shape[1]), shape))


def write_inputs(root: Path, poses: list[np.ndarray], blank: int | None = BLANK, rejected: int | None = REJECTED) -> dict[str, Path]:
    frames, gate = [], []
    for index, pose in enumerate(poses):
        image, depth = render(pose)
        if index == blank:
            image[:] = 90
        name = f"{index:06d}"
        write_jpeg(root / "frames" / "images" / f"{name}.jpg", image)
        write_mask(root / "masks" / "masks" / f"{name}.png", np.ones(depth.shape, bool))
        small = depth[1::3, 1::3] * UNIT
        write_depth(root / "depth" / "depth" / f"{name}.tiff", (small * tilt(small.shape)).astype(np.float32))
        write_depth(root / "depth" / "sigma" / f"{name}.tiff", np.full(small.shape, 0.1, np.float32))
        frames.append({"index": index, "name": name, "timestamp_s": index / 10, "file": f"images/{name}.jpg", "reason": None})
        is_rejected = index == rejected
        gate.append({"index": index, "status": "rejected" if is_rejected else "ok", "reason": "too blurred" if is_rejected else None})
    write_json(root / "frames" / "frames.json", {"is_unrelated": False, "frames": frames})
    write_json(root / "masks" / "gate.json", {"cuts": [], "frames": gate})
    write_camera(root / "camera" / "camera.json", CAMERA, intrinsics="given")
    write_json(root / "depth" / "depth.json", {"model": "student", "scale": "scale_invariant", "is_truth": False})
    return {name: root / name for name in ("frames", "camera", "masks", "depth")}


def map_sparsely(inputs: dict[str, Path], out: Path, **config) -> dict[str, Path]:
    """The inputs with the maps of the structure stage, made in `out`."""
    out.mkdir(parents=True, exist_ok=True)
    structure.run(inputs, out, structure.Config(**{"max_num_features": 1000, "overlap": 4, "num_threads": 1} | config))
    return inputs | {"structure": out}


def run(inputs: dict[str, Path], out: Path, **config) -> dict:
    out.mkdir(parents=True, exist_ok=True)
    trajectory.run(inputs, out, trajectory.Config(**config))
    return json.loads((out / "trajectory.json").read_text())


@pytest.fixture(scope="module")
def poses() -> list[np.ndarray]:
    return sideways(NUM_FRAMES)


@pytest.fixture(scope="module")
def inputs(poses, tmp_path_factory) -> dict[str, Path]:
    made = write_inputs(tmp_path_factory.mktemp("inputs"), poses)
    return map_sparsely(made, tmp_path_factory.mktemp("structure"))


@pytest.fixture(scope="module")
def hybrid(inputs, tmp_path_factory) -> tuple[Path, dict]:
    out = tmp_path_factory.mktemp("trajectory")
    return out, run(inputs, out)


@pytest.fixture(scope="module")
def scaled(inputs, hybrid, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("scale")
    scale.run(inputs | {"trajectory": hybrid[0]}, out, scale.Config())
    return out


def found_poses(description: dict) -> dict[int, np.ndarray]:
    return {f["index"]: np.array(f["T_world_camera"]) for f in description["frames"] if f["T_world_camera"] is not None}


def check_centres(found: dict[int, np.ndarray], poses: list[np.ndarray], tolerance: float) -> float:
    """Largest error of camera centres in units of the path; returns the scale to truth."""
    a, b = (np.array([p[i][:3, 3] for i in sorted(found)]) for p in (found, poses))
    similarity = umeyama(a, b)
    error = np.linalg.norm(similarity.map(a) - b, axis=1).max() / np.linalg.norm(np.diff(b, axis=0), axis=1).sum()
    assert error < tolerance
    return similarity.scale


def test_every_frame_has_an_answer(hybrid, poses):
    out, description = hybrid
    frames = description["frames"]
    assert [f["index"] for f in frames] == list(range(NUM_FRAMES))
    assert (frames[REJECTED]["status"], frames[REJECTED]["reason"]) == ("rejected", "too blurred")
    assert frames[BLANK]["status"] == "lost" and frames[BLANK]["reason"]
    posed = [f for f in frames if f["index"] not in (REJECTED, BLANK)]
    assert all(f["status"] in ("keyframe", "posed") and f["reason"] is None and f["depth_factor"] > 0 for f in posed)
    check_centres(found_poses(description), poses, 0.01)
    assert np.allclose(frames[0]["T_world_camera"], np.eye(4), atol=1e-12)
    assert sorted(p.name for p in out.iterdir()) == ["camera.json", "points.npz", "trajectory.json"]


def test_unit_is_the_median_depth_of_the_points(hybrid):
    out, description = hybrid
    with np.load(out / "points.npz") as points:
        medians = []
        for index, T in found_poses(description).items():
            seen = points["xyz"][points["obs_point"][points["obs_frame"] == index]]
            medians.append(np.median(seen @ T[:3, 2] - T[:3, 2] @ T[:3, 3]))
    assert np.median(medians) == pytest.approx(1.0)


def test_resumed_runs_give_the_same_bytes(hybrid, inputs, tmp_path):
    work = tmp_path / "structure" / structure.WORK
    work.mkdir(parents=True)
    (work / "database.db").write_bytes(b"left by a killed run")
    again = map_sparsely(inputs, tmp_path / "structure")
    assert not work.exists()
    for name in ("structure.json", "maps/0/camera.json", "maps/0/map.npz"):
        assert (again["structure"] / name).read_bytes() == (inputs["structure"] / name).read_bytes()
    run(again, tmp_path / "trajectory")
    for name in ("camera.json", "trajectory.json", "points.npz"):
        assert (tmp_path / "trajectory" / name).read_bytes() == (hybrid[0] / name).read_bytes()


def test_structure_lists_its_maps(inputs):
    listed = json.loads((inputs["structure"] / "structure.json").read_text())
    [sparse] = read_maps(inputs["structure"])
    assert listed["num_frames"] == NUM_FRAMES - 1, "the rejected frame is not offered"
    [entry] = listed["maps"]
    assert (entry["num_frames"], entry["num_points"]) == (len(sparse.poses), len(sparse.xyz))
    assert entry["mean_error_px"] == pytest.approx(sparse.error_px.mean())
    assert sorted(sparse.poses) == [i for i in range(NUM_FRAMES) if i not in (REJECTED, BLANK)]


def test_maps_come_back_from_disk_bit_for_bit(tmp_path):
    rng = np.random.default_rng(0)
    poses = {7: se3.exp(rng.normal(size=6)), 3: se3.exp(rng.normal(size=6)), 5: se3.exp(rng.normal(size=6))}
    observations = (np.array([0, 1, 1]), np.array([7, 7, 3]), rng.normal(size=(3, 2)), np.array([4, 9, 2]))
    sparse = SparseMap(CAMERA, poses, rng.normal(size=(2, 3)), rng.random(2), *observations)
    write_maps(tmp_path, [sparse, replace(sparse, camera=replace(CAMERA, params=(0.1 + 0.2, *CAMERA.params[1:])))], 9)
    back = read_maps(tmp_path)
    assert [m.camera.params[0] for m in back] == [CAMERA.params[0], 0.1 + 0.2]
    assert list(back[0].poses) == [7, 3, 5], "in the order given"
    assert all(np.array_equal(back[1].poses[i], poses[i]) for i in poses)
    for name in ("xyz", "error_px", "obs_point", "obs_frame", "obs_px", "obs_feature"):
        assert np.array_equal(getattr(back[0], name), getattr(sparse, name))
    write_maps(tmp_path / "none", [], 0)
    assert read_maps(tmp_path / "none") == []


def test_alignment_alone_poses_the_recording(inputs, poses, tmp_path):
    without_maps = {name: folder for name, folder in inputs.items() if name != "structure"}
    description = run(without_maps, tmp_path, method="alignment")
    found = found_poses(description)
    assert sorted(found) == [i for i in range(NUM_FRAMES) if i not in (REJECTED, BLANK)]
    check_centres(found, poses, 0.05)
    assert description["mapping"]["num_points"] == 0
    with np.load(tmp_path / "points.npz") as points:
        assert points["xyz"].shape == (0, 3)
    out = tmp_path / "scale"
    scale.run(inputs | {"trajectory": tmp_path}, out, scale.Config())
    assert np.median(read_depth(out / "depth" / "000000.tiff")) == pytest.approx(1.0, abs=0.05)


def test_a_long_recording_is_mapped_in_part_and_aligned_in_between(inputs, poses, tmp_path):
    description = run(map_sparsely(inputs, tmp_path / "structure", max_mapped_frames=4), tmp_path / "trajectory")
    methods = [f["method"] for f in description["frames"] if f["T_world_camera"] is not None]
    assert methods.count("sfm") in (3, 4) and methods.count("alignment") >= 2
    # Alignment takes the tilt of the predicted depth for truth, hence the tolerance.
    check_centres(found_poses(description), poses, 0.05)


def test_a_camera_that_stands_still_stays_still(tmp_path):
    inputs = map_sparsely(write_inputs(tmp_path, [np.eye(4)] * 4, blank=None, rejected=None), tmp_path / "structure")
    found = found_poses(run(inputs, tmp_path / "out"))
    assert all(np.allclose(T, np.eye(4), atol=1e-6) for T in found.values()) and len(found) == 4


def test_nothing_to_see_still_ends(tmp_path):
    inputs = write_inputs(tmp_path, [np.eye(4)] * 3, blank=None, rejected=None)
    for path in inputs["frames"].glob("images/*.jpg"):
        write_jpeg(path, np.full((180, 240, 3), 90, np.uint8))
    inputs = map_sparsely(inputs, tmp_path / "structure")
    with pytest.raises(ReconError, match="registered no frame"):
        run(inputs, tmp_path / "sfm", method="sfm")
    statuses = [f["status"] for f in run(inputs, tmp_path / "out")["frames"]]
    assert statuses == ["keyframe", "lost", "lost"]


def test_scaled_depth_is_in_the_unit_of_the_trajectory(scaled, hybrid, poses):
    """The tilt of the predicted depth is gone and its unit is the trajectory's."""
    factor = check_centres(found_poses(hybrid[1]), poses, 0.01)
    for index in (0, 4, 6):
        truth = render(poses[index])[1][1::3, 1::3]
        depth = read_depth(scaled / "depth" / f"{index:06d}.tiff") * factor
        assert np.abs(depth / truth - 1).mean() < 0.02
        sigma = read_depth(scaled / "sigma" / f"{index:06d}.tiff")
        assert 0 < np.median(sigma) < 0.1


def test_scale_files_agree(scaled, hybrid):
    description = json.loads((scaled / "scale.json").read_text())
    assert (description["source"], description["value"], description["sigma"], description["unit"]) == ("none", 1.0, None, "unitless")
    assert [f["index"] for f in description["frames"]] == sorted(found_poses(hybrid[1]))
    assert all(f["num_points"] > 20 and f["residual"] < 0.05 for f in description["frames"])
    track = read_tum(scaled / "trajectory.txt")
    found = found_poses(json.loads((scaled / "trajectory.json").read_text()))
    assert np.allclose(track.timestamps_s, [i / 10 for i in sorted(found)])
    assert np.allclose(track.T_world_camera, [found[i] for i in sorted(found)], atol=1e-6)


def test_given_scale_makes_millimetres(inputs, hybrid, scaled, tmp_path):
    scale.run(inputs | {"trajectory": hybrid[0]}, tmp_path, scale.Config(factor_mm=50.0, factor_sigma_mm=2.0))
    description = json.loads((tmp_path / "scale.json").read_text())
    assert (description["source"], description["value"], description["sigma"], description["unit"]) == ("given", 50.0, 2.0, "mm")
    plain, given = (read_depth(folder / "depth" / "000003.tiff") for folder in (scaled, tmp_path))
    assert np.allclose(given, 50.0 * plain, rtol=1e-5)
    ours, theirs = (found_poses(json.loads((folder / "trajectory.json").read_text()))[6] for folder in (scaled, tmp_path))
    assert np.allclose(theirs[:3, 3], 50.0 * ours[:3, 3]) and np.allclose(theirs[:3, :3], ours[:3, :3])


def test_only_a_network_that_claims_metres_gives_them(inputs, hybrid, scaled, tmp_path):
    config = scale.Config(metric_network=True)
    with_metres, without = dict(inputs), dict(inputs)
    for name, chosen in (("depth_anything_v2_metric_s", with_metres), ("student", without)):
        chosen["depth"] = tmp_path / name
        chosen["depth"].mkdir()
        for kind in ("depth", "sigma"):
            (chosen["depth"] / kind).symlink_to(inputs["depth"] / kind)
        write_json(chosen["depth"] / "depth.json", {"model": name})
    with pytest.raises(ReconError, match=r"depth.model 'student' gives distance up to a factor; choose one that"):
        scale.run(without | {"trajectory": hybrid[0]}, tmp_path, config)
    scale.run(with_metres | {"trajectory": hybrid[0]}, tmp_path, config)
    description, plain = (json.loads((folder / "scale.json").read_text()) for folder in (tmp_path, scaled))
    typical = np.median([1 / frame["factor"] for frame in plain["frames"]])
    assert (description["source"], description["unit"]) == ("metric_network", "mm")
    assert description["value"] == pytest.approx(1000 * typical, rel=0.02)
    assert description["sigma"] == pytest.approx(0.1 * description["value"], rel=0.1)
    assert {window["index"] for window in description["along_path"]} <= set(range(NUM_FRAMES))


def test_bad_settings_are_refused():
    with pytest.raises(ReconError, match="'hybrid', 'sfm', 'alignment'"):
        build_config(trajectory.Config, {"method": "orb"}, "[trajectory]")
    with pytest.raises(ReconError, match="factor_mm must be at least 0"):
        build_config(scale.Config, {"factor_mm": -1.0}, "[scale]")


def test_camera_passes_through(hybrid):
    assert read_camera(hybrid[0] / "camera.json") == CAMERA
    assert json.loads((hybrid[0] / "camera.json").read_text())["intrinsics"] == "given"


def test_no_usable_frame_is_said(tmp_path):
    inputs = map_sparsely(write_inputs(tmp_path, [np.eye(4)], blank=None, rejected=0), tmp_path / "structure")
    with pytest.raises(ReconError, match="every frame was rejected"):
        run(inputs, tmp_path / "out")


def test_poses_are_rigid(hybrid):
    assert all(np.allclose(se3.inverse(T) @ T, np.eye(4), atol=1e-9) for T in found_poses(hybrid[1]).values())


def test_unrelated_views_keep_their_depth_without_a_place_in_a_world(poses, tmp_path):
    inputs = write_inputs(tmp_path, poses[:4], blank=None, rejected=None)
    listed = json.loads((inputs["frames"] / "frames.json").read_text())
    write_json(inputs["frames"] / "frames.json", listed | {"is_unrelated": True})
    inputs = map_sparsely(inputs, tmp_path / "structure")
    assert read_maps(inputs["structure"]) == [], "views that do not follow one another are not matched"
    found = run(inputs, tmp_path / "trajectory")
    assert [frame["status"] for frame in found["frames"]] == ["keyframe", "lost", "lost", "lost"]
    assert "unrelated" in found["frames"][1]["reason"]
    out = tmp_path / "scale"
    out.mkdir()
    scale.run(inputs | {"trajectory": tmp_path / "trajectory"}, out, scale.Config())
    assert sorted(file.stem for file in (out / "depth").iterdir()) == [f"{index:06d}" for index in range(4)]
    assert np.median(read_depth(out / "depth" / "000000.tiff")) == pytest.approx(1, rel=1e-5)


def test_alignment_alone_does_not_ask_for_structure():
    assert "structure" in trajectory.STAGE.all_reads(trajectory.Config())
    assert "structure" not in trajectory.STAGE.all_reads(trajectory.Config(method="alignment"))


def test_two_scenes_of_one_recording_are_two_pieces(tmp_path):
    num, cut = 12, 7
    poses = sideways(num)
    inputs = write_inputs(tmp_path, poses, blank=None, rejected=None)
    for index in range(cut, num):
        write_jpeg(inputs["frames"] / "images" / f"{index:06d}.jpg", render(poses[index], seed=5)[0])
    gate = json.loads((inputs["masks"] / "gate.json").read_text())
    write_json(inputs["masks"] / "gate.json", gate | {"cuts": [cut]})
    description = run(inputs, tmp_path / "out", method="alignment")
    assert sorted(found_poses(description)) == list(range(cut))
    (piece,) = description["pieces"]
    assert [frame["index"] for frame in piece["frames"]] == list(range(cut, num))
    assert np.allclose(piece["frames"][0]["T_world_camera"], np.eye(4), atol=1e-12)
    check_centres({f["index"]: np.array(f["T_world_camera"]) for f in piece["frames"]}, poses, 0.02)
    assert all("piece 2 (5 frames, 7 to 11)" in description["frames"][index]["reason"] for index in range(cut, num))


@pytest.mark.slow
def test_what_lies_on_both_sides_of_a_piece_is_found_too(tmp_path):
    poses = sideways(18)
    inputs = write_inputs(tmp_path, poses, blank=None, rejected=None)
    for index, pose in enumerate(poses):
        write_jpeg(inputs["frames"] / "images" / f"{index:06d}.jpg", render(pose, seed=index // 6)[0])
    description = run(inputs, tmp_path / "out", method="alignment")
    apart = [{frame["index"] for frame in piece["frames"]} for piece in description["pieces"]]
    assert sorted(map(sorted, [*apart, found_poses(description)])) == [list(range(k, k + 6)) for k in (0, 6, 12)]
