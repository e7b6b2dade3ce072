"""`recon eval` from outside: known answers for surfaces, depth against plain numpy, collections, splits, and bad input."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
import trimesh
from layouts import HEIGHT, WIDTH, poses, write_c3vd, write_servct
from PIL import Image

from recon.cli import main
from recon.io.meshes import write_ply
from recon.io.trajectory import write_tum
from recon.types import Mesh, Trajectory

SHARED = Path(__file__).parents[2] / "shared" / "data"
SPLITS = Path(__file__).parents[1] / "configs" / "splits"


def call(capsys, *words) -> tuple[int, str, str]:
    capsys.readouterr()
    try:
        code = main([str(word) for word in words])
    except SystemExit as error:
        code = int(error.code or 0)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def scored(capsys, *words) -> dict:
    """The first score of `recon eval ... --json`."""
    code, out, err = call(capsys, "eval", *words, "--json")
    assert code == 0, err
    return json.loads(out)["scores"][0]


def value(score: dict, name: str, alignment: str, protocol: str | None = None) -> float:
    (found,) = [m["value"] for m in score["metrics"] if (m["name"], m["alignment"], m["protocol"]) == (name, alignment, protocol)]
    return found


def organ() -> Mesh:
    """A closed lump without symmetry, in mm."""
    body = trimesh.creation.icosphere(4, 30.0)
    x, y, z = np.array(body.vertices).T
    points = np.stack([1.4 * x + 0.01 * y * z, y + 0.008 * x**2, 0.8 * z + 0.004 * x * y], axis=1)
    return Mesh(points + np.array([10.0, -20.0, 60.0]), np.array(body.faces, np.int64), unit="mm")


def foreign(path: Path, mesh: Mesh) -> Path:
    """As another program writes it: no word on the unit."""
    trimesh.Trimesh(mesh.vertices, mesh.faces, process=False).export(path)
    return path


# --- surfaces


def test_the_true_surface_against_itself_is_zero(capsys, tmp_path):
    truth = foreign(tmp_path / "truth.ply", organ())
    score = scored(capsys, "surface", truth, truth, "--unit", "mm", "--samples", 20_000)
    for alignment in ("none", "se3_icp", "sim3_icp"):
        for name in ("accuracy_mean", "completeness_mean", "chamfer_l1", "hd95"):
            assert value(score, name, alignment) < 1e-4
        assert value(score, "f_0.5mm", alignment) == 1
    assert value(score, "scale_error", "none") == pytest.approx(0, abs=1e-4)


def test_five_percent_too_large_shows_before_alignment_and_not_after(capsys, tmp_path):
    truth = foreign(tmp_path / "truth.ply", organ())
    large = foreign(tmp_path / "large.ply", replace(organ(), vertices=1.05 * organ().vertices))
    score = scored(capsys, "surface", large, truth, "--unit", "mm", "--samples", 20_000)
    assert value(score, "scale_error", "none") == pytest.approx(5, abs=0.1)
    assert value(score, "scale_error", "sim3_icp") == pytest.approx(0, abs=0.1)
    assert value(score, "accuracy_mean", "none") > 1
    assert value(score, "accuracy_mean", "sim3_icp") < 0.02
    (rung,) = [rung for rung in score["rungs"] if rung["alignment"] == "sim3_icp"]
    assert rung["scale"] == pytest.approx(1 / 1.05, rel=1e-3)


def test_camera_paths_give_the_scale_without_touching_the_surface(capsys, tmp_path):
    path = poses(12)
    path[:, :3, 3] *= 20
    truth = foreign(tmp_path / "truth.ply", organ())
    large = foreign(tmp_path / "large.ply", replace(organ(), vertices=1.05 * organ().vertices))
    of_pred = path.copy()
    of_pred[:, :3, 3] *= 1.05
    for name, T in (("truth.tum", path), ("pred.tum", of_pred)):
        write_tum(tmp_path / name, Trajectory(np.arange(12), np.arange(12) / 25, T, "mm"))
    words = ("--unit", "mm", "--samples", 20_000, "--trajectory", tmp_path / "pred.tum", "--gt-trajectory", tmp_path / "truth.tum")
    score = scored(capsys, "surface", large, truth, *words)
    assert value(score, "scale_error", "none") == pytest.approx(5, abs=1e-3)
    assert value(score, "scale_error", "sim3_trajectory") == pytest.approx(0, abs=1e-6)
    assert value(score, "accuracy_mean", "sim3_trajectory") < 1e-4
    assert score["truth_used"] == {"depth": False, "trajectory": True, "mesh": True}


def test_half_a_surface_is_accurate_and_incomplete(capsys, tmp_path):
    whole = organ()
    half = replace(whole, faces=whole.faces[whole.vertices[whole.faces].mean(axis=1)[:, 0] < 10])
    truth, pred = foreign(tmp_path / "truth.ply", whole), foreign(tmp_path / "half.ply", half)
    score = scored(capsys, "surface", pred, truth, "--unit", "mm", "--samples", 20_000)
    assert value(score, "accuracy_mean", "none") < 1e-4
    assert value(score, "precision_1mm", "none") == 1
    assert 0.3 < value(score, "recall_1mm", "none") < 0.7
    assert value(score, "completeness_mean", "none") > 3
    assert value(score, "chamfer_penalised", "none") < 10


def test_files_that_say_their_unit_are_believed(capsys, tmp_path):
    truth = foreign(tmp_path / "truth.ply", organ())
    write_ply(tmp_path / "unitless.ply", replace(organ(), unit="unitless"))
    score = scored(capsys, "surface", tmp_path / "unitless.ply", truth, "--samples", 2000)
    assert {rung["alignment"] for rung in score["rungs"]} == {"sim3_icp"}
    in_metres = foreign(tmp_path / "metres.stl", replace(organ(), vertices=organ().vertices / 1000))
    score = scored(capsys, "surface", in_metres, truth, "--unit", "m", "--samples", 2000)
    assert value(score, "accuracy_mean", "none") < 1e-3
    score = scored(capsys, "surface", truth, truth, "--samples", 2000)
    assert any("unit was not declared" in note for note in score["notes"])


def test_surface_files_are_written(capsys, tmp_path):
    truth = foreign(tmp_path / "truth.ply", organ())
    code, out, _ = call(capsys, "eval", "surface", truth, truth, "--unit", "mm", "--samples", 2000, "--out", tmp_path / "out")
    assert code == 0 and "sim3_icp" in out and "not stated whether true depth" in out
    folder = tmp_path / "out" / "truth.ply" / "truth.ply"
    assert {file.name for file in folder.iterdir()} == {"curves.png", "surface_error.png", "surface_error.ply"}
    assert b"property float quality" in (folder / "surface_error.ply").read_bytes()[:600]
    rows = list(csv.DictReader((tmp_path / "out" / "scores.csv").open()))
    assert {"accuracy_mean", "chamfer_penalised", "components"} <= {row["name"] for row in rows}
    assert "% surface, alignment none" in (tmp_path / "out" / "scores.tex").read_text()


# --- depth


def write_depth_folder(folder: Path, names: list[str], depths: list[np.ndarray]) -> Path:
    folder.mkdir(parents=True)
    for name, depth in zip(names, depths, strict=True):
        tifffile.imwrite(folder / f"{name}.tiff", depth.astype(np.float32))
    return folder


def test_depth_of_a_data_set_by_hand(capsys, tmp_path):
    truth = write_servct(tmp_path / "Experiment_1")  # 64 mm everywhere
    pred = write_depth_folder(tmp_path / "pred", ["001", "002"], [np.full((HEIGHT, WIDTH), 80.0), np.full((HEIGHT, WIDTH), 48.0)])
    score = scored(capsys, "depth", pred, truth, "--unit", "mm")
    assert value(score, "abs_rel", "none") == pytest.approx(0.25)
    assert value(score, "rmse", "none") == pytest.approx(16)
    assert value(score, "abs_rel", "scale_frame") == pytest.approx(0, abs=1e-6)
    assert value(score, "mae", "none", "servct-official") == pytest.approx(16)
    assert value(score, "mae_noc", "none", "servct-official") == pytest.approx(16)
    assert value(score, "coverage", "none") == 1


@pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/data is absent")
def test_depth_of_rendered_stereo_pairs_agrees_with_plain_numpy(capsys, tmp_path):
    root = SHARED / "servct_like"
    rng = np.random.default_rng(0)
    pairs = []
    for file in sorted(root.glob("Experiment_*/*_CT/DepthL/*.png")):
        gt = np.array(Image.open(file)).astype(np.float64) / 256
        blue = np.all(np.array(Image.open(file.parents[1] / "OcclusionL" / file.name).convert("RGB")) == (0, 0, 255), axis=2)
        gt[blue] = 0
        pred = (gt * rng.uniform(0.8, 1.3) * np.exp(rng.normal(0, 0.05, gt.shape)) + (gt == 0) * 50).astype(np.float32)
        pred[:40] = 0
        pairs.append((file, pred, gt))
    names = [f"{file.parents[2].name}_{file.stem}" for file, _, _ in pairs]
    pred = write_depth_folder(tmp_path / "pred", names, [pred for _, pred, _ in pairs])
    score = scored(capsys, "depth", pred, root, "--unit", "mm")
    plain = {name: [] for name in ("none", "scale_frame", "coverage", "rmse", "delta")}
    for _, p, g in pairs:
        known = (g > 0) & (p > 0)
        p, g, share = p[known].astype(np.float64), g[known], known.sum() / (g > 0).sum()
        scale = np.median(g / p)
        plain["none"].append(np.mean(np.abs(p - g) / g))
        plain["scale_frame"].append(np.mean(np.abs(scale * p - g) / g))
        plain["rmse"].append(np.sqrt(np.mean((p - g) ** 2)))
        plain["delta"].append(np.mean(np.maximum(scale * p / g, g / (scale * p)) < 1.25))
        plain["coverage"].append(share)
    assert value(score, "abs_rel", "none") == pytest.approx(np.mean(plain["none"]), rel=1e-4)
    assert value(score, "abs_rel", "scale_frame") == pytest.approx(np.mean(plain["scale_frame"]), rel=1e-4)
    assert value(score, "rmse", "none") == pytest.approx(np.mean(plain["rmse"]), rel=1e-4)
    assert value(score, "delta_1.25", "scale_frame") == pytest.approx(np.mean(plain["delta"]), rel=1e-4)
    assert value(score, "coverage", "none") == pytest.approx(np.mean(plain["coverage"]), rel=1e-6)


def test_how_maps_belong_to_frames_can_be_said(capsys, tmp_path):
    truth = write_servct(tmp_path / "Experiment_1")  # frames 001 and 002, 64 mm everywhere
    pred = write_depth_folder(tmp_path / "pred", ["000000", "000001"], [np.full((HEIGHT, WIDTH), d) for d in (64.0, 128.0)])
    rows = scored(capsys, "depth", pred, truth, "--unit", "mm", "--match", "index")["frames"]
    assert [row["none.abs_rel"] for row in rows] == pytest.approx([0, 1])
    rows = scored(capsys, "depth", pred, truth, "--unit", "mm", "--match", "number")["frames"]
    assert [row["coverage"] for row in rows] == [1, 0] and rows[0]["none.abs_rel"] == pytest.approx(1)


def test_depth_as_a_surface(capsys, tmp_path):
    truth = write_servct(tmp_path / "Experiment_1")
    pred = write_depth_folder(tmp_path / "pred", ["001", "002"], [np.full((HEIGHT, WIDTH), 65.0)] * 2)
    score = scored(capsys, "surface", pred, truth, "--unit", "mm", "--samples", 2000)
    assert value(score, "accuracy_median", "none") == pytest.approx(1, abs=0.01)
    assert value(score, "accuracy_mean", "scale_frame") < 0.2
    assert len(score["frames"]) == 2 and score["truth_used"]["mesh"]


def test_a_collection_of_sequences_and_several_methods(capsys, tmp_path):
    for name in ("cecum_t1_a", "trans_t2_b", "sigmoid_t1_a"):
        write_c3vd(tmp_path / "c3vd" / name)
        for method, factor in (("good", 1.1), ("bad", 1.5)):
            depths = [np.full((HEIGHT, WIDTH), 10.0 * (k + 1) * factor) for k in range(4)]
            write_depth_folder(tmp_path / method / name, [f"{k:04d}" for k in range(4)], depths)
    words = ("eval", "depth", tmp_path / "good", tmp_path / "bad", tmp_path / "c3vd", "--unit", "mm", "--out", tmp_path / "out")
    code, out, err = call(capsys, *words)
    assert code == 0, err
    assert "mean of 3 sequences" in out and " *" in out
    stored = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert len(stored["scores"]) == 6 and len(stored["means"]) == 2
    means = {mean["method"]: value(mean, "abs_rel", "none") for mean in stored["means"]}
    assert means == {"good": pytest.approx(0.1, abs=1e-3), "bad": pytest.approx(0.5, abs=1e-3)}
    frames = list(csv.DictReader((tmp_path / "out" / "frames.csv").open()))
    assert len(frames) == 24 and {row["method"] for row in frames} == {"good", "bad"}


# --- trajectories


def test_a_path_against_itself_in_another_unit(capsys, tmp_path):
    truth = write_c3vd(tmp_path / "c3vd", count=8)
    path = poses(8)
    path[:, :3, 3] /= 1000
    write_tum(tmp_path / "pred.tum", Trajectory(np.arange(8), np.arange(8) / 25, path, "unitless"))
    score = scored(capsys, "trajectory", tmp_path / "pred.tum", truth, "--unit", "m")
    assert value(score, "ate_rmse", "none") < 1e-4 and value(score, "ate_rmse", "sim3_trajectory") < 1e-4


def test_a_path_of_few_frames_says_so_and_wins_nothing(capsys, tmp_path):
    truth = write_c3vd(tmp_path / "c3vd", count=8)
    rng = np.random.default_rng(0)
    for name, count, noise in (("few", 4, 0.0), ("all", 8, 0.05)):
        path = poses(8)[:count]
        path[:, :3, 3] += rng.normal(0, noise, (count, 3))
        write_tum(tmp_path / f"{name}.tum", Trajectory(np.arange(count), np.arange(count) / 25, path, "mm"))
    score = scored(capsys, "trajectory", tmp_path / "few.tum", truth, "--unit", "mm")
    assert value(score, "posed", "none") == 0.5 and any("4 of 8 frames" in note for note in score["notes"])
    code, out, _ = call(capsys, "eval", "trajectory", tmp_path / "few.tum", tmp_path / "all.tum", truth, "--unit", "mm")
    assert code == 0
    starred = {line.split("│")[1].strip(): line for line in out.splitlines() if " *" in line and "│" in line}
    assert "posed, none" in starred
    assert not any("*" in line.split("│")[2] for line in starred.values()), "the path of few frames is nowhere the best"


# --- splits and what was seen


def test_a_method_is_not_scored_on_what_trained_it(capsys, tmp_path):
    (tmp_path / "dataset_8" / "keyframe_0").mkdir(parents=True)
    words = ("--split", SPLITS / "scared-video.toml", "--trained-on", SPLITS / "scared-af.toml")
    code, _, err = call(capsys, "eval", "depth", tmp_path, tmp_path, *words)
    assert code == 2 and "must not be scored" in err and "dataset_8" in err


def test_frames_that_trained_a_method_are_refused_without_a_split_too(capsys, tmp_path):
    truth = write_c3vd(tmp_path / "c3vd" / "cecum_t1_a")
    (tmp_path / "own.toml").write_text(
        'title = "t"\nsource = "s"\ndataset = "c3vd"\nleakage = []\n[group]\npattern = "[a-z]+"\nmeans = "organ"\n'
        '[parts.train]\ncecum_t1_a = "0-1"\n[parts.test]\ncecum_t1_a = "2-3"\n'
    )
    pred = write_depth_folder(tmp_path / "pred", [f"{k:04d}" for k in range(4)], [np.full((HEIGHT, WIDTH), 10.0)] * 4)
    words = ("eval", "depth", pred, truth, "--unit", "mm", "--trained-on", tmp_path / "own.toml")
    code, _, err = call(capsys, *words)
    assert code == 2 and "has seen 2 of the 4 frames" in err
    code, out, err = call(capsys, *words, "--split", tmp_path / "own.toml")
    assert code == 0 and "no zero-shot numbers" in out, err


def test_a_method_that_left_a_sequence_out_is_empty_there(capsys, tmp_path):
    for name in ("cecum_t1_a", "trans_t2_b"):
        write_c3vd(tmp_path / "c3vd" / name)
    names = [f"{k:04d}" for k in range(4)]
    write_depth_folder(tmp_path / "half" / "cecum_t1_a", names, [np.full((HEIGHT, WIDTH), 10.0 * (k + 1)) for k in range(4)])
    code, out, err = call(capsys, "eval", "depth", tmp_path / "half", tmp_path / "c3vd", "--unit", "mm", "--json")
    assert code == 0, err
    (mean,) = json.loads(out)["summaries"]
    assert value(mean, "coverage", "none") == pytest.approx(0.5, abs=0.01)
    assert value(mean, "abs_rel_penalised", "none") == pytest.approx(0.5, abs=0.01)


def test_a_finished_run_is_scored_by_what_it_says_itself(capsys, tmp_path):
    spec = "phantom:tube?seed=1&frames=6&width=96&height=80&step_mm=2.0"
    assert call(capsys, "run", spec, "--out", tmp_path / "run", "--set", "structure.max_num_features=500")[0] in (0, 3)
    report = json.loads((tmp_path / "run" / "results" / "report.json").read_text())
    again = scored(capsys, "depth", tmp_path / "run", spec, "--unit", "m", "--gt-used", "depth")
    assert value(again, "abs_rel", "scale_frame") == pytest.approx(value(report, "abs_rel", "scale_frame"), rel=1e-9)
    assert again["inputs"]["gt_depth"] is False and again["inputs"]["trained_on"] == ["phantom"]
    assert again["inputs"]["adapted_on_this_recording"] is False
    assert any("--unit, --gt-used is not applied" in note for note in again["notes"])
    surface = scored(capsys, "surface", tmp_path / "run", spec)
    assert value(surface, "f_2mm", "sim3_trajectory") == pytest.approx(value(report, "f_2mm", "sim3_trajectory"), rel=1e-9)
    path = scored(capsys, "trajectory", tmp_path / "run", spec)
    assert value(path, "ate_rmse", "sim3_trajectory") == pytest.approx(value(report, "ate_rmse", "sim3_trajectory"), rel=1e-9)


# --- bad input


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("depth", "nothing", "{servct}"), "nothing does not exist"),
        (("depth", "{pred}", "nothing"), "does not exist"),
        (("depth", "{pred}", "{servct}", "--protocol", "kitti"), "protocol 'kitti' is not known"),
        (("surface", "{text}", "{mesh}"), "text.txt"),
        (("surface", "{mesh}", "{text}"), "text.txt"),
        (("surface", "{outside}", "{mesh}"), "outside.obj"),
        (("surface", "{empty}", "{mesh}"), "empty.ply"),
        (("trajectory", "{text}", "{c3vd}"), "text.txt"),
        (("surface", "{mesh}", "{mesh}", "--cap", "0"), "--cap"),
        (("surface", "{mesh}", "{mesh}", "--scale", "-1"), "--scale"),
        (("surface", "{mesh}", "{mesh}", "--scale", "nan"), "--scale"),
        (("surface", "{mesh}", "{mesh}", "--samples", "1000000000000"), "--samples"),
        (("surface", "{mesh}", "{mesh}", "--both-views"), "--both-views"),
        (("surface", "{mesh}", "{mesh}", "{mesh}"), "is given twice"),
        (("depth", "{pred}", "{servct}", "--seed", "-1"), "--seed"),
        (("depth", "{pred}", "{servct}", "--max-frames", "0"), "--max-frames"),
        (("depth", "{c3vd}", "{servct}"), "is a recording of c3vd"),
    ],
)
def test_mistakes_are_named_in_one_line(capsys, tmp_path, words, reason):
    places = {
        "servct": write_servct(tmp_path / "Experiment_1"),
        "c3vd": write_c3vd(tmp_path / "c3vd"),
        "pred": write_depth_folder(tmp_path / "pred", ["001"], [np.ones((HEIGHT, WIDTH))]),
        "mesh": foreign(tmp_path / "mesh.ply", organ()),
        "text": tmp_path / "text.txt",
        "outside": tmp_path / "outside.obj",
        "empty": tmp_path / "empty.ply",
    }
    places["text"].write_text("no numbers here\n")
    places["outside"].write_text("v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 9\n")
    places["empty"].write_text(
        "ply\nformat ascii 1.0\nelement vertex 0\nproperty float x\nproperty float y\nproperty float z\nend_header\n"
    )
    code, _, err = call(capsys, "eval", *(word.format(**places) for word in words))
    assert code == 2 and reason in err and len(err.strip().splitlines()) == 1, err


def test_metres_taken_for_millimetres_are_noticed(capsys, tmp_path):
    truth = write_servct(tmp_path / "Experiment_1")
    pred = write_depth_folder(tmp_path / "pred", ["001", "002"], [np.full((HEIGHT, WIDTH), 0.064)] * 2)
    score = scored(capsys, "depth", pred, truth, "--unit", "mm")
    assert any("looks like metres against millimetres" in note for note in score["notes"])


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -5.0, 0.0])
def test_values_that_are_no_depth_make_no_nan(capsys, tmp_path, wrong):
    truth = write_servct(tmp_path / "Experiment_1")
    pred = write_depth_folder(tmp_path / "pred", ["001", "002"], [np.full((HEIGHT, WIDTH), wrong)] * 2)
    score = scored(capsys, "depth", pred, truth, "--unit", "mm")
    assert value(score, "coverage", "none") == 0
    assert "abs_rel" not in {m["name"] for m in score["metrics"]}
    assert value(score, "abs_rel_penalised", "none") == 1
    assert any("not computable" in note for note in score["notes"])
    assert all(np.isfinite(m["value"]) for m in score["metrics"])


def test_marks_of_a_renderer_are_no_depth(capsys, tmp_path):
    truth = write_servct(tmp_path / "Experiment_1")
    depth = np.full((HEIGHT, WIDTH), 64.0, np.float32)
    depth[5, :4] = 3.4e38, 1e30, 1e-38, 1e18
    pred = write_depth_folder(tmp_path / "pred", ["001", "002"], [depth] * 2)
    score = scored(capsys, "depth", pred, truth, "--unit", "mm")
    assert value(score, "abs_rel", "none") == pytest.approx(0, abs=1e-6)
    assert score["frames"][0]["unreadable"] == 4 and value(score, "coverage", "none") < 1


def test_one_true_pixel_is_no_score(capsys, tmp_path):
    gt, pred = np.zeros((1, 8, 8), np.float32), np.full((1, 8, 8), 3.0, np.float32)
    gt[0, 2, 2] = 50
    np.save(tmp_path / "gt.npy", gt)
    np.save(tmp_path / "pred.npy", pred)
    score = scored(capsys, "depth", tmp_path / "pred.npy", tmp_path / "gt.npy", "--unit", "mm", "--gt-unit", "mm")
    assert "abs_rel" not in {m["name"] for m in score["metrics"]} and any("not computable" in note for note in score["notes"])


def test_a_surface_in_metres_is_noticed(capsys, tmp_path):
    truth = foreign(tmp_path / "truth.ply", organ())
    small = foreign(tmp_path / "small.ply", replace(organ(), vertices=organ().vertices / 1000))
    score = scored(capsys, "surface", small, truth, "--unit", "mm", "--samples", 2000)
    assert any("looks like metres against millimetres" in note for note in score["notes"])
    assert all(abs(m["value"]) > 99 for m in score["metrics"] if (m["name"], m["alignment"]) == ("scale_error", "none"))
