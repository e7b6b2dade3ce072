"""A scene that moves through the whole pipeline, from EndoNeRF's layout to results, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import moving_sheet
import numpy as np
import pytest
import trimesh

from recon import cli
from recon.fields.scene import read_scene
from recon.io.meshes import read_mesh
from recon.io.splats import read_splat_ply

CONFIG = Path(__file__).parents[1] / "configs" / "moving.toml"
QUICK = ("scene.width_px=56", "splats.num_steps=60", "splats.max_gaussians=1500", "masks.highlights=false")


def call(capsys, *words) -> tuple[int, str, str]:
    code = cli.main([str(word) for word in words])
    captured = capsys.readouterr()
    return code, captured.out, " ".join(captured.err.split())


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return moving_sheet.write_endonerf(tmp_path_factory.mktemp("data") / "sheet")


@pytest.fixture(scope="module")
def finished(source, tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "sheet"
    assert cli.main(["run", str(source), "--out", str(run), "--config", str(CONFIG), "--set", *QUICK]) == 0
    return run


def test_results_hold_surfaces_over_time_a_film_and_scores(finished):
    results = finished / "results"
    report = json.loads((results / "report.json").read_text())
    assert report["unit"] == "mm" and report["scale"]["source"] == "dataset"
    assert not any(report["inputs_used"][name] for name in ("gt_depth", "gt_pose", "gt_scale"))
    metrics = {(m["name"], m["protocol"]): m["value"] for m in report["metrics"]}
    assert metrics["psnr_visible", None] > 25 and metrics["field_depth_error_visible", None] < 1.0
    assert metrics["field_depth_coverage_visible", None] > 0.95 and metrics["timed_completeness_mean", None] < 1.0
    assert metrics["timed_accuracy_mean", None] < 1.0 and metrics["track_error_mean", None] < 2.0
    assert ("psnr_visible_neighbour_average", None) in metrics
    assert ("psnr", "endonerf") not in metrics, "that protocol learns from every frame"
    times = sorted((results / "meshes").glob("*.ply"))
    assert len(times) == moving_sheet.NUM_FRAMES
    first, later = (read_mesh(times[k]) for k in (0, 6))
    assert np.array_equal(first.faces, later.faces) and np.abs(first.vertices - later.vertices).max() > 1
    page = (results / "report.html").read_text()
    assert "data:video/mp4;base64," in page and "held out" in page and "the network" not in page.split("<h2>Surface</h2>")[0]
    assert (results / "comparison.mp4").stat().st_size > 1000


def test_the_animation_opens_elsewhere(finished):
    scene = trimesh.load(finished / "results" / "animation.glb")
    assert len(scene.geometry) == 1
    [body] = scene.geometry.values()
    assert np.ptp(body.vertices, axis=0).max() == pytest.approx(0.056, rel=0.3), "metres"


def test_a_second_run_reuses_and_the_model_is_exported(finished, source, capsys, tmp_path):
    code, _, err = call(capsys, "run", source, "--out", finished, "--config", CONFIG, "--set", *QUICK)
    assert code == 0 and " done in " not in err
    code, _, err = call(capsys, "export", finished, "--what", "splats", "--to", tmp_path)
    assert code == 0, err
    cloud = read_splat_ply(tmp_path / "splats.ply")
    assert cloud.unit == "mm" and np.median(cloud.means[:, 2]) == pytest.approx(moving_sheet.MEAN_DEPTH, rel=0.1)
    assert (tmp_path / "splats.splat").stat().st_size == 32 * len(cloud.means)


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("splats.backend=cuda",), 2, 'splats.backend = "cuda" needs a CUDA device'),
        (("trajectory.method=dataset", "depth.model=student"), 2, "set depth.model=dataset too"),
        (("scale.factor_mm=2",), 2, "the unit is known from the data set's own depth"),
        (("evaluation.lpips_linear=x.pth",), 2, "belong together"),
        (("fuse=mesh",), 2, "fuse"),
    ],
)
def test_what_cannot_be_is_told_with_the_next_step(source, capsys, tmp_path, words, code, message):
    found, _, err = call(capsys, "run", source, "--out", tmp_path / "run", "--config", CONFIG, "--set", *QUICK, *words)
    assert found == code and message in err and "Traceback" not in err


def test_a_recording_without_depth_or_tissue_is_told(capsys, tmp_path):
    bare = moving_sheet.write_endonerf(tmp_path / "bare", 4, with_depth=False)
    for folder in ("truth_depth", "truth_mesh"):
        for file in (bare / folder).iterdir():
            file.unlink()
        (bare / folder).rmdir()
    code, _, err = call(capsys, "run", bare, "--out", tmp_path / "run", "--config", CONFIG)
    assert code == 2 and "brings no depth; choose a network" in err
    covered = moving_sheet.write_endonerf(tmp_path / "covered", 4, all_covered=True)
    code, _, err = call(capsys, "run", covered, "--out", tmp_path / "run2", "--config", CONFIG)
    assert code in (1, 2) and "mask" in err and "Traceback" not in err


def test_truth_that_enters_is_told(source, capsys, tmp_path):
    copy = moving_sheet.write_endonerf(tmp_path / "only", 5, with_depth=False)
    words = ("--config", CONFIG, "--set", *QUICK, "splats.num_steps=2", "--until", "evaluation")
    code, _, err = call(capsys, "run", copy, "--out", tmp_path / "run", *words)
    assert code == 0, err
    [file] = (tmp_path / "run" / "evaluation").glob("[!.]*/metrics.json")
    assert json.loads(file.read_text())["truth_in"] == {"gt_depth": True, "gt_pose": False, "gt_scale": True}


@pytest.mark.parametrize("words", [(), ("splats.start=surface", "splats.refine_poses=true", "splats.kind=surfels")])
def test_a_camera_that_moves_gives_a_field_too(capsys, tmp_path, words):
    quick = ("fuse=splats", "depth.model=falloff", "scene.width_px=64", "splats.num_steps=12", *words)
    code, _, err = call(capsys, "run", "phantom:tube?seed=1&frames=8&width=240&height=200", "--out", tmp_path, "--set", *quick)
    assert code in (0, 3), err
    report = json.loads((tmp_path / "results" / "report.json").read_text())
    assert report["field"]["num_steps"] == 12 and ("poses" in report["field"]) == bool(words)
    assert len(read_mesh(tmp_path / "results" / "mesh.ply").faces) > 100
    if words:
        [file] = (tmp_path / "scene").glob("[!.]*/scene.json")
        kept = [frame for frame in read_scene(file.parent).frames if not frame.is_held_out]
        moved = [np.abs(report["field"]["poses"][str(frame.index)] - frame.T_world_camera).max() for frame in kept]
        assert moved[0] < 0.1 * max(moved), "the first pose holds the world still"
    assert {metric["name"] for metric in report["metrics"]} >= {"psnr_visible", "accuracy_mean"}
