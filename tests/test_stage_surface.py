"""The last five stages on a small phantom whose true depth and poses, in another unit, stand for the earlier stages."""

from __future__ import annotations

import importlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from recon.data import open_sequence
from recon.io.atomic import write_json
from recon.io.cameras import write_camera
from recon.io.depth import read_depth, write_depth
from recon.io.images import write_jpeg
from recon.io.masks import write_mask
from recon.io.meshes import read_mesh
from recon.io.trajectory import read_tum
from recon.pipeline import RUN
from recon.types import ReconError

SPEC = "phantom:tube?seed=3&frames=6&width=160&height=128&step_mm=2.0"
MM_PER_UNIT = 20.0
LOST = 4
STAGES = ("stereo", "surface", "mesh", "evaluation", "report")
KEY = "0123456789ab"
"""Of every artifact."""


def earlier_stages(run: Path, unit: str) -> dict[str, Path]:
    """Write what the stages before the surface leave: truth in a world of its own (and of its own unit, if unitless)."""
    names = ("source", "frames", "camera", "masks", "depth", "trajectory", "scale", *STAGES)
    inputs = {name: run / name / KEY for name in names}
    for folder in inputs.values():
        folder.mkdir(parents=True)
    sequence = open_sequence(SPEC)
    scale = 1.0 if unit == "mm" else 1 / MM_PER_UNIT
    first = np.linalg.inv(sequence.trajectory_gt.T_world_camera[0])
    frames, poses, gate = [], [], []
    for frame in sequence.frames:
        name = f"{frame.index:06d}"
        truth = sequence.depth_gt(frame.index)
        write_jpeg(inputs["frames"] / f"images/{name}.jpg", frame.image())
        for folder in ("masks", "tissue"):
            write_mask(inputs["masks"] / f"{folder}/{name}.png", truth.valid)
        write_depth(inputs["scale"] / f"depth/{name}.tiff", truth.depth * np.float32(scale))
        write_depth(inputs["scale"] / f"sigma/{name}.tiff", np.where(truth.valid, np.float32(0.05), np.float32(0)))
        T = first @ sequence.trajectory_gt.T_world_camera[frame.index]
        T[:3, 3] *= scale
        lost = frame.index == LOST
        status = "lost" if lost else "keyframe" if frame.index % 2 == 0 else "posed"
        reason = "too few matches" if lost else None
        poses.append({"index": frame.index, "status": status, "reason": reason, "T_world_camera": None if lost else T.tolist()})
        times = {"index": frame.index, "name": f"<i>{name}</i>", "timestamp_s": round(frame.timestamp_s, 4)}
        frames.append({**times, "file": f"images/{name}.jpg", "reason": None})
        gate.append({"index": frame.index, "status": "ok", "reason": None})
    camera = sequence.camera
    recording = {"name": sequence.name, "dataset": "phantom", "incomplete": None, "notes": ["a note"], "frames": frames}
    write_json(inputs["frames"] / "frames.json", recording)
    write_json(inputs["depth"] / "depth.json", {"model": "student", "trained_on": ["phantom"], "adapted": False, "is_truth": False})
    write_mask(inputs["masks"] / "scope.png", np.ones((sequence.camera.height_px, sequence.camera.width_px), bool))
    write_json(inputs["masks"] / "gate.json", {"cuts": [], "instruments": None, "frames": gate})
    write_json(inputs["trajectory"] / "trajectory.json", {"is_truth": False})
    write_json(inputs["scale"] / "trajectory.json", {"frames": poses, "mapping": {"extent": 1.0}, "pieces": []})
    write_json(inputs["scale"] / "scale.json", {"source": "given" if unit == "mm" else "none", "value": 1.0, "sigma": None, "unit": unit})
    write_json(inputs["source"] / "source.json", {"path": SPEC, "dataset": None, "camera_file": None, "masks_dir": None})
    write_camera(inputs["camera"] / "camera.json", camera, intrinsics="dataset")
    write_camera(inputs["trajectory"] / "camera.json", camera)
    for at, name in enumerate(names[1:]):
        manifest = {"stage": name, "config": {}, "seconds": 1.0, "peak_rss_mb": 100.0, "versions": {"python": "3.11"}}
        write_json(inputs[name] / "manifest.json", manifest | {"reads": dict.fromkeys(names[: at + 1], KEY)})
    return inputs | {RUN: run}


def run_stage(name: str, inputs: dict[str, Path], out: Path | None = None, **changes) -> Path:
    module = importlib.import_module(f"stages.{name}")
    out = out or inputs[name]
    out.mkdir(exist_ok=True)
    config = module.Config(**changes)
    module.run({read: inputs[read] for read in module.STAGE.all_reads(config)}, out, config)
    for pattern in module.STAGE.writes:
        assert list(out.glob(pattern)), pattern
    return out


SMALL = {
    "stereo": {"enabled": False},
    "surface": {"pinhole_width_px": 160, "voxels_per_depth": 48.0},
    "mesh": {"max_removed_share": 0.05},
    "evaluation": {"num_samples": 10_000, "num_error_maps": 1},
    "report": {"preview_width_px": 100, "num_frames_shown": 3},
}


@pytest.fixture(scope="module", params=["unitless", "mm"])
def finished(request, tmp_path_factory) -> dict[str, Path]:
    inputs = earlier_stages(tmp_path_factory.mktemp(request.param) / "run", request.param)
    for name in STAGES:
        run_stage(name, inputs, **SMALL[name])
    return inputs


def report_of(inputs) -> dict:
    return json.loads((inputs["report"] / "report.json").read_text())


def metric(report, name, alignment) -> float:
    (found,) = [m["value"] for m in report["metrics"] if (m["name"], m["alignment"]) == (name, alignment)]
    return found


def test_true_depth_and_poses_give_the_true_surface(finished):
    report = report_of(finished)
    assert metric(report, "accuracy_mean", "sim3_trajectory") < 0.3
    assert metric(report, "f_2mm", "sim3_trajectory") > 0.9
    assert metric(report, "abs_rel", "scale_frame") < 0.01
    assert metric(report, "ate_rmse", "sim3_trajectory") < 1e-3
    assert metric(report, "accuracy_mean_percent_of_depth", "sim3_trajectory") < 2


def test_the_report_keeps_its_contract(finished):
    report = report_of(finished)
    required = "schema unit scale frames metrics inputs_used seconds peak_rss_mb versions config partial evaluation_gt"
    assert set(required.split()) <= set(report)
    assert report["unit"] in ("mm", "unitless")
    assert set(report["scale"]) == {"source", "value", "sigma"}
    assert report["frames"] == {"total": 6, "used": 6, "posed": 5, "rejected": 0, "lost": 1, "keyframes": 2}
    used = report["inputs_used"]
    no_truth = {"gt_depth": False, "gt_pose": False, "gt_scale": False}
    assert used == no_truth | {
        "intrinsics": "dataset",
        "trained_on": ["phantom"],
        "trained_on_this_data": True,
        "adapted_on_this_recording": False,
    }
    coverage = report["coverage"]
    assert coverage["area_unit"] == ("mm^2" if report["unit"] == "mm" else "unitless")
    missed, seen = coverage["missed_area_estimate"], coverage["observed_area"]
    assert 0 <= missed < seen and coverage["coverage_estimate"] == pytest.approx(seen / (seen + missed), abs=1e-4)
    assert sum(hole["area"] for hole in coverage["largest_holes"]) <= missed * (1 + 1e-3)
    assert {hole["nearest_frame"] for hole in coverage["largest_holes"]} <= {0, 1, 2, 3, 5}
    assert 0 <= report["rigidity"]["non_rigid_share"] < 0.01 < report["rigidity"]["judged_share"]
    assert [frame["index"] for frame in report["rigidity"]["frames"]] == [0, 1, 2, 3, 5]
    assert report["evaluation_gt"] == {"depth": True, "trajectory": True, "mesh": True}
    for entry in report["metrics"]:
        promised = {"group", "name", "value", "unit", "alignment", "lower_is_better"}
        assert promised <= set(entry) <= promised | {"protocol", "interval", "noise_floor"}
        assert np.isfinite(entry["value"])
    keys = [(m["group"], m["name"], m["alignment"], m["protocol"]) for m in report["metrics"]]
    assert len(keys) == len(set(keys))
    assert set(report["seconds"]) == set(report["config"])
    assert len(report["partial"]) == 1 and "too few matches" in report["partial"][0]


def test_unaligned_errors_are_reported_only_in_mm(finished):
    report = report_of(finished)
    names = {m["name"] for m in report["metrics"] if m["alignment"] in ("none", "se3_trajectory") and m["group"] != "speed"}
    assert ({"abs_rel", "ate_rmse", "accuracy_mean"} <= names) == (report["unit"] == "mm")


def test_frames_trajectory_and_meshes_fit_together(finished):
    out = finished["report"]
    frames = json.loads((out / "frames.json").read_text())
    assert [set(frame) for frame in frames] == [{"index", "name", "timestamp_s", "status", "reason"}] * 6
    times = {round(f["timestamp_s"], 4) for f in frames if f["status"] in ("keyframe", "posed")}
    assert {round(t, 4) for t in read_tum(out / "trajectory.txt").timestamps_s} == times
    mesh = read_mesh(out / "mesh.ply")
    assert mesh.unit == report_of(finished)["unit"]
    assert mesh.confidence.min() >= 0 and mesh.confidence.max() <= 1
    assert mesh.observations.min() >= 1 and mesh.observations.max() <= 5
    posed = np.float32([f["timestamp_s"] for f in frames if f["status"] in ("keyframe", "posed")])
    assert set(np.float32(mesh.last_seen_s)) <= set(posed) and len(np.unique(mesh.last_seen_s)) > 1
    assert mesh.viewing_angle_rad.min() >= 0 and mesh.viewing_angle_rad.max() <= np.float32(np.pi / 2)
    assert (out / "mesh.ply").read_bytes() == (finished["mesh"] / "mesh.ply").read_bytes()
    assert (out / "mesh.glb").stat().st_size > 1000


def test_normals_face_the_cameras(finished):
    mesh = read_mesh(finished["mesh"] / "mesh.ply")
    poses = read_tum(finished["report"] / "trajectory.txt").T_world_camera
    nearest = poses[np.argmin(np.linalg.norm(mesh.vertices[:, None] - poses[:, :3, 3], axis=-1), axis=1), :3, 3]
    assert np.mean(np.sum(mesh.normals * (nearest - mesh.vertices), axis=1) > 0) > 0.9


def test_the_page_escapes_names_and_loads_nothing(finished):
    page = (finished["report"] / "report.html").read_text()
    assert "&lt;i&gt;000000" in page and "<i>000000" not in page
    assert 'src="http' not in page and "<script" not in page
    assert page.count("data:image/") >= 14


def test_the_same_input_gives_the_same_mesh(finished, tmp_path):
    again = run_stage("surface", finished, tmp_path / "again", **SMALL["surface"])
    assert (again / "surface.ply").read_bytes() == (finished["surface"] / "surface.ply").read_bytes()


def stereo_artifact(scale: Path, folder: Path, share: float, white: slice) -> Path:
    """What the stereo stage would leave: sharp depth of three frames, matched in some columns."""
    keyframes = [0, 2, 3]
    for index in keyframes:
        depth = read_depth(scale / f"depth/{index:06d}.tiff")
        mask = np.zeros(depth.shape, bool)
        mask[:, white] = True
        write_depth(folder / f"depth/{index:06d}.tiff", depth)
        write_depth(folder / f"sigma/{index:06d}.tiff", np.where(depth > 0, np.float32(0.01), np.float32(0)))
        write_mask(folder / f"matched/{index:06d}.png", mask)
    write_json(folder / "stereo.json", {"enabled": True, "keyframes": [{"index": i, "matched_share": share} for i in keyframes]})
    return folder


@pytest.mark.parametrize(("white", "low", "high"), [(slice(None), 0.999, 1.0), (slice(0, 80), 0.2, 0.8), (slice(0, 0), 0.0, 0.0)])
def test_the_surface_knows_what_was_matched(finished, tmp_path, white, low, high):
    matched = stereo_artifact(finished["scale"], tmp_path / "stereo", 0.5, white)
    out = run_stage("surface", finished | {"stereo": matched}, tmp_path / "out", **SMALL["surface"])
    assert json.loads((out / "surface.json").read_text())["num_frames"] == 3
    mesh = read_mesh(out / "surface.ply")
    assert low <= mesh.matched.mean() <= high
    # A vertex is of one kind or the other, but for the seam.
    assert ((mesh.matched > 0.05) & (mesh.matched < 0.95)).mean() < 0.3


def test_frames_count_as_fewer_where_a_network_speaks_alone(finished, tmp_path):
    """Not where depth of a data set does, though the same keyframes were matched and the surface is the same."""
    half = stereo_artifact(finished["scale"], tmp_path / "stereo", 0.5, slice(0, 80))
    given = tmp_path / "depth"
    write_json(given / "depth.json", json.loads((finished["depth"] / "depth.json").read_text()) | {"model": "dataset"})
    network, data_set = (
        read_mesh(run_stage("surface", finished | {"stereo": half, **other}, tmp_path / name, **SMALL["surface"]) / "surface.ply")
        for name, other in (("network", {}), ("data_set", {"depth": given}))
    )
    assert np.array_equal(network.vertices, data_set.vertices)
    alone = (network.matched < 0.05) & (network.observations > 1)
    assert (network.confidence[alone] < data_set.confidence[alone]).mean() > 0.9
    assert np.array_equal(network.confidence[network.matched == 1], data_set.confidence[data_set.matched == 1])


def test_where_hardly_anything_was_matched_every_frame_is_fused(finished, tmp_path):
    matched = stereo_artifact(finished["scale"], tmp_path / "stereo", 0.05, slice(0, 4))
    out = run_stage("surface", finished | {"stereo": matched}, tmp_path / "out", **SMALL["surface"])
    assert (out / "surface.ply").read_bytes() == (finished["surface"] / "surface.ply").read_bytes()


def test_one_posed_frame_still_gives_a_mesh_and_a_report(finished, tmp_path):
    trajectory = json.loads((finished["scale"] / "trajectory.json").read_text())
    for frame in trajectory["frames"][1:]:
        frame |= {"status": "lost", "reason": "nothing moved", "T_world_camera": None}
    run = tmp_path / "run"
    shutil.copytree(finished[RUN], run)
    inputs = {name: run / folder.relative_to(finished[RUN]) for name, folder in finished.items()}
    write_json(inputs["scale"] / "trajectory.json", trajectory)
    for name in STAGES:
        run_stage(name, inputs, **SMALL[name])
    assert report_of(inputs)["frames"]["posed"] == 1
    notes = json.loads((inputs["evaluation"] / "metrics.json").read_text())["notes"]
    assert any(note.startswith("trajectory: not computable") for note in notes)
    assert any(note.startswith("surface (sim3_trajectory): not computable") for note in notes)


def test_without_any_pose_the_error_says_where_to_look(finished, tmp_path):
    scale = tmp_path / "scale"
    scale.mkdir()
    write_json(scale / "trajectory.json", {"frames": [{"index": 0, "status": "lost", "reason": "dark", "T_world_camera": None}]})
    write_json(scale / "scale.json", {"unit": "unitless"})
    with pytest.raises(ReconError, match="no frame has both a pose and a depth map") as raised:
        run_stage("surface", finished | {"scale": scale}, tmp_path / "out")
    assert raised.value.exit_code == 1


def test_depth_without_a_known_pixel_is_named(finished, tmp_path):
    scale = tmp_path / "scale"
    for kind in ("depth", "sigma"):
        for file in (finished["scale"] / kind).glob("*.tiff"):
            write_depth(scale / kind / file.name, 0 * read_depth(file))
    for name in ("trajectory.json", "scale.json"):
        (scale / name).write_bytes((finished["scale"] / name).read_bytes())
    with pytest.raises(ReconError, match="known pixel"):
        run_stage("surface", finished | {"scale": scale}, tmp_path / "out")


def test_a_source_without_truth_has_an_empty_list(finished, tmp_path):
    folder = tmp_path / "images"
    for frame in open_sequence(SPEC).frames[:3]:
        write_jpeg(folder / f"{frame.index:03d}.jpg", frame.image())
    source = tmp_path / "source"
    source.mkdir()
    write_json(source / "source.json", {"path": str(folder), "dataset": None, "camera_file": None, "masks_dir": None})
    out = run_stage("evaluation", finished | {"source": source}, tmp_path / "out")
    result = json.loads((out / "metrics.json").read_text())
    assert result["metrics"] == [] and not any(result["gt_used"].values())
