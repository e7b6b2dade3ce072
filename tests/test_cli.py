"""The command line from outside: what it takes, how failures read, and a small phantom through every verb."""

from __future__ import annotations

import json
import os
import tomllib
from pathlib import Path

import numpy as np
import pycolmap
import pytest
import trimesh
from PIL import Image

from recon import __version__, cli, training
from recon.cli import job, system_libraries, threads
from recon.io.depth import read_depth
from recon.io.images import read_image
from recon.io.nerfstudio import read_nerfstudio
from recon.io.splats import SplatCloud, read_splat_ply, write_splat_ply
from recon.pipeline import store
from recon.pipeline.config import Settings, settings_from, stage_config
from recon.training import trainings
from stages import PIPELINE, load

VERBS = ("run", "plan", "demo", "adapt", "export", "show", "clean", "train", "settings", "models", "doctor")
RIGID = [name for name in PIPELINE if name not in ("scene", "splats", "nerf")]
"""Stages of a run with fuse = "tsdf"."""
PHANTOM = "phantom:tube?seed=1&frames=8&width=240&height=200"
FALLOFF = ("--set", "depth.model=falloff")
"""The quickest network, and one that needs no weights."""


def call(capsys, *words):
    """Exit code, standard output and standard error of one command."""
    try:
        code = cli.main([str(word) for word in words])
    except SystemExit as end:
        code = end.code
    return code, *capsys.readouterr()


def one_line(text):
    assert text.count("\n") == 1 and "Traceback" not in text, text
    return text


@pytest.mark.parametrize("verb", VERBS)
def test_the_help_of_every_verb_shows_worked_examples(capsys, verb):
    code, out, _ = call(capsys, verb, "--help")
    assert code == 0 and f"recon {verb}" in out.split("examples:")[1]


@pytest.mark.parametrize("verb", VERBS)
def test_worked_examples_parse(capsys, verb):
    _, out, _ = call(capsys, verb, "--help")
    for line in out.split("examples:")[1].strip().splitlines():
        assert cli._parser().parse_args(cli.words_after_set(line.split(">")[0].split()[1:])).verb


def test_the_version_is_the_package_s(capsys):
    assert call(capsys, "--version")[:2] == (0, f"recon {__version__}\n")


@pytest.mark.parametrize("words", ["run", "fly", "", "run x --out y --speed 3", "export r --what film --to d"])
def test_wrong_usage_is_one_line_and_exit_code_2(capsys, words):
    code, _, err = call(capsys, *words.split())
    assert code == 2 and "--help" in one_line(err)


def test_set_takes_many_words_and_may_be_repeated():
    words = ["run", "a", "--out", "b", "--set", "depth.model=x", "seed=1", "--until", "mesh", "--set", "c.d=2"]
    assert cli._parser().parse_args(cli.words_after_set(words)).overrides == ["depth.model=x", "seed=1", "c.d=2"]


@pytest.mark.parametrize("source", ["/path", "phantom:tube?seed=1"])
def test_a_source_may_follow_the_words_of_set(source):
    words = cli.words_after_set(["run", "--set", "a.b=1", "c.d=2", source, "--out", "r"])
    arguments = cli._parser().parse_args(words)
    assert (arguments.source, arguments.overrides) == (source, ["a.b=1", "c.d=2"])


BAD_INPUTS = {
    "a missing file": ("DIR/nowhere.mp4", "nowhere.mp4"),
    "an empty folder": ("DIR/empty", "empty"),
    "a text as film": ("DIR/text.mp4", "text.mp4"),
    "a camera of another size": ("DIR/images --camera DIR/camera.json", "99x99"),
    "a missing camera": ("DIR/images --camera DIR/none.json", "none.json"),
    "a missing config": (f"{PHANTOM} --config DIR/none.toml", "none.toml"),
    "an unknown key": (f"{PHANTOM} --set depth.modle=x", "did you mean 'model'"),
    "an unknown section": (f"{PHANTOM} --set depht.model=x", "did you mean 'depth'"),
    "a wrong type": (f"{PHANTOM} --set seed=first", "seed must be a whole number"),
    "an unknown stage": (f"{PHANTOM} --until lunch", "stages: frames, camera"),
    "an unknown data set": (f"{PHANTOM} --dataset mine", "known:"),
    "an unknown device": (f"{PHANTOM} --set device=abacus", "abacus"),
    "an unknown way to fuse": (f"{PHANTOM} --set fuse=glue", "'tsdf'"),
    "an unknown phantom": ("phantom:banana", "banana"),
    "a negative seed": (f"{PHANTOM} --set seed=-1", "config seed must be between 0 and 2147483647, found -1"),
    "no frame to map": (f"{PHANTOM} --set structure.max_mapped_frames=0", "[structure] max_mapped_frames must be at least 2, found 0"),
    "no voxel": (f"{PHANTOM} --set surface.voxels_per_depth=0", "[surface] voxels_per_depth must be between"),
    "no memory": (f"{PHANTOM} --set surface.max_volume_mb=0", "[surface] max_volume_mb must be at least"),
    "no width": (f"{PHANTOM} --set surface.pinhole_width_px=0", "[surface] pinhole_width_px must be between"),
    "no window": (f"{PHANTOM} --set scale.window_frames=0", "[scale] window_frames must be at least"),
    "a rate that is no number": (f"{PHANTOM} --set frames.frame_rate_hz=nan", "frame_rate_hz must be a finite number, found nan"),
    "an endless start": (f"{PHANTOM} --set frames.start_s=inf", "start_s must be a finite number, found inf"),
    "an end before the start": (f"{PHANTOM} --set frames.start_s=2 frames.end_s=1", "[frames] end_s must be 0 or after start_s"),
    "a network that cannot be adapted": (f"{PHANTOM} --set depth.adapt=true depth.model=falloff", "knows the lens"),
    "an unknown network": (f"{PHANTOM} --set depth.model=oracle", "oracle"),
}


@pytest.fixture
def inputs(tmp_path):
    """A folder with one bad source of each kind."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.mp4").write_text("this is no film")
    (tmp_path / "camera.json").write_text('{"model": "PINHOLE", "width_px": 99, "height_px": 99, "params": [50, 50, 49, 49]}')
    (tmp_path / "images").mkdir()
    for name in ("0.png", "1.png"):
        Image.fromarray(np.zeros((40, 60, 3), np.uint8)).save(tmp_path / "images" / name)
    return tmp_path


@pytest.mark.parametrize("case", BAD_INPUTS)
def test_bad_input_is_one_line_that_names_it_and_leaves_nothing(capsys, inputs, case):
    words, expected = BAD_INPUTS[case]
    code, _, err = call(capsys, "run", *words.replace("DIR", str(inputs)).split(), "--out", inputs / "run")
    assert code == 2 and expected in one_line(err)
    assert not (inputs / "run").exists()


def test_a_folder_that_cannot_be_written_is_bad_input(capsys, tmp_path):
    (tmp_path / "file").write_text("")
    code, _, err = call(capsys, "run", PHANTOM, "--out", tmp_path / "file" / "run")
    assert code == 2 and "file/run" in one_line(err)


@pytest.mark.parametrize("words", [["show"], ["clean"], ["doctor"], ["export", "--what", "mesh", "--to", "x"]])
def test_a_folder_without_a_run_is_bad_input(capsys, tmp_path, words):
    code, _, err = call(capsys, words[0], tmp_path, *words[1:])
    assert code == 2 and "holds no" in one_line(err)


def test_an_unfinished_run_can_be_cleaned_and_checked(capsys, tmp_path):
    for name in ("depth/.000000000000", "masks/111111111111"):
        (tmp_path / name).mkdir(parents=True)
    code, out, _ = call(capsys, "doctor", tmp_path)
    assert code == 1 and "unfinished" in out and "was never finished" in out
    code, out, _ = call(capsys, "clean", tmp_path, "--yes")
    assert code == 0 and "no results yet" in out and "000000000000" in out and not (tmp_path / "depth" / ".000000000000").exists()


def test_what_nobody_foresaw_goes_to_a_log(capsys, tmp_path, monkeypatch):
    def breaks(arguments):
        raise ZeroDivisionError("two\nlines")

    monkeypatch.setattr(job, "run", breaks)
    code, _, err = call(capsys, "run", "phantom", "--out", tmp_path)
    assert code == 1 and str(tmp_path / "error.log") in one_line(err)
    assert "Traceback" in (tmp_path / "error.log").read_text()


def test_a_log_outside_a_run_folder_gets_a_name_of_its_own(capsys, tmp_path, monkeypatch):
    def breaks(arguments):
        raise ZeroDivisionError

    monkeypatch.setattr(job, "run", breaks)
    monkeypatch.setattr(cli.tempfile, "tempdir", str(tmp_path))
    for _ in range(2):
        assert str(tmp_path / "recon-error-") in call(capsys, "run", "phantom", "--out", tmp_path / "none")[2]
    assert len(list(tmp_path.glob("recon-error-*.log"))) == 2


def test_an_interrupt_is_one_line_and_exit_code_130(capsys, tmp_path, monkeypatch):
    def stops(arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(job, "run", stops)
    code, _, err = call(capsys, "run", "phantom", "--out", tmp_path)
    assert code == 130 and "continues" in one_line(err)


def test_a_plan_shows_every_stage_and_writes_nothing(capsys, tmp_path):
    code, out, err = call(capsys, "plan", PHANTOM, *FALLOFF, "--out", tmp_path / "run")
    assert code == 0, err
    assert all(f"/{stage}/" in out for stage in RIGID)
    assert "8 frames" in out and "reuse" not in out
    assert not (tmp_path / "run").exists()


def test_threads_are_limited_before_libraries_load(monkeypatch, tmp_path):
    file = tmp_path / "config.toml"
    file.write_text("num_threads = 3")
    for words, expected in ((["num_threads=2"], "2"), ([], "3"), (["num_threads=0"], "unset"), (["num_threads=many"], "unset")):
        for name in threads._VARIABLES:
            monkeypatch.setenv(name, "unset")
        threads.limit_threads(file, words)
        assert {os.environ[name] for name in threads._VARIABLES} == {expected}


def test_missing_system_libraries_are_named_with_one_command(monkeypatch, capsys):
    monkeypatch.setattr(system_libraries, "missing", lambda: ["libGL.so.1"])
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(system_libraries.shutil, "which", lambda name: f"/usr/bin/{name}")
    assert system_libraries.main() == 1
    assert "sudo sh -c 'apt-get update && apt-get install -y --no-install-recommends libgl1'" in one_line(capsys.readouterr().err)


def test_models_are_listed_for_scripts(capsys):
    code, out, _ = call(capsys, "models", "--json")
    models = {model["name"]: model for model in json.loads(out)}
    assert code == 0 and {"student", "falloff"} <= set(models)
    assert all(set(model) == {"name", "parameters", "trainable", "licence", "weights", "output", "trained_on"} for model in models.values())
    assert call(capsys, "models")[0] == 0


def test_the_printed_settings_are_the_defaults(capsys):
    code, out, _ = call(capsys, "settings")
    table = tomllib.loads(out)
    assert code == 0 and settings_from(table, PIPELINE) == Settings()
    for name in PIPELINE:
        config = load(name).config
        assert stage_config(config, name, table, Settings()) == stage_config(config, name, {}, Settings())


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A small phantom that went through every stage."""
    run = tmp_path_factory.mktemp("runs") / "phantom"
    assert cli.main(["run", PHANTOM, *FALLOFF, "--out", str(run)]) in (0, 3)
    return run


def test_a_run_leaves_what_is_promised(finished):
    results = finished / "results"
    assert {"report.json", "report.html", "frames.json", "trajectory.txt", "mesh.ply", "mesh.glb"} <= {p.name for p in results.iterdir()}
    report = json.loads((results / "report.json").read_text())
    promised = ["schema", "unit", "scale", "frames", "metrics", "inputs_used", "seconds", "peak_rss_mb", "versions", "config"]
    assert set(promised) <= set(report)
    assert report["source"]["dataset"] == "phantom" and report["resumed"] == []
    assert report["settings"] == {"seed": 0, "num_threads": 0, "device": "auto", "fuse": "tsdf"}
    [mesh] = finished.glob("mesh/*/mesh.ply")
    assert not mesh.samefile(results / "mesh.ply"), "who edits a result leaves what later runs reuse alone"
    frames = json.loads((results / "frames.json").read_text())
    assert [frame["index"] for frame in frames] == list(range(8))
    posed = sum(frame["status"] in ("keyframe", "posed") for frame in frames)
    assert report["frames"]["posed"] == posed and report["frames"]["total"] == 8
    assert sum(not line.startswith("#") for line in (results / "trajectory.txt").read_text().splitlines()) == posed


def test_the_second_run_reuses_everything_and_plans_say_so(capsys, finished):
    code, out, err = call(capsys, "run", PHANTOM, *FALLOFF, "--out", finished)
    assert code in (0, 3) and err.count(" reused\n") == len(RIGID)
    assert str(finished / "results" / "mesh.ply") in out and str(finished / "results" / "report.html") in out
    assert (code == 3) == ("partial:" in err)
    _, out, _ = call(capsys, "plan", PHANTOM, *FALLOFF, "--out", finished)
    assert out.count("reuse") == len(RIGID)


def test_show_prints_metrics_with_units(capsys, finished):
    code, out, _ = call(capsys, "show", finished)
    assert code == 0 and "accuracy_mean" in out and "abs_rel" in out and "peak memory" in out


def test_clean_deletes_only_what_results_do_not_use(capsys, finished):
    assert call(capsys, "clean", finished)[1] == "nothing is unused\n"
    leftover = finished / "depth" / ".000000000000"
    leftover.mkdir()
    assert str(leftover) in call(capsys, "clean", finished)[1] and leftover.exists()
    assert "deleted" in call(capsys, "clean", finished, "--yes")[1] and not leftover.exists()
    assert (finished / "results" / "report.json").exists()


def test_doctor_finds_a_damaged_file(capsys, finished):
    assert call(capsys, "doctor", finished)[0] == 0
    [trajectory] = finished.glob("trajectory/*/trajectory.json")
    text = trajectory.read_text()
    trajectory.write_text(text.replace("1", "2", 1))
    code, out, _ = call(capsys, "doctor", finished)
    trajectory.write_text(text)
    assert code == 1 and "trajectory.json" in out


def test_depth_is_exported_on_the_source_s_own_grid(capsys, finished, tmp_path):
    code, out, _ = call(capsys, "export", finished, "--what", "depth", "--to", tmp_path)
    files = sorted(tmp_path.glob("*.tiff"))
    assert code == 0 and out.startswith(f"{len(files)} depth maps") and files
    depth = read_depth(files[0])
    assert depth.shape[1] / depth.shape[0] == pytest.approx(240 / 200, rel=0.05)
    assert np.median(depth[depth > 0]) > 0


def test_trajectories_of_both_formats_agree(capsys, finished, tmp_path):
    assert call(capsys, "export", finished, "--what", "trajectory", "--to", tmp_path)[0] == 0
    tum = np.loadtxt(tmp_path / "trajectory_tum.txt", ndmin=2)
    kitti = np.loadtxt(tmp_path / "trajectory_kitti.txt", ndmin=2).reshape(-1, 3, 4)
    np.testing.assert_allclose(kitti[:, :, 3], tum[:, 1:4], atol=1e-5)
    assert len((tmp_path / "trajectory_kitti_frames.txt").read_text().split()) == len(tum)


def test_every_mesh_format_holds_the_same_surface(capsys, finished, tmp_path):
    assert call(capsys, "export", finished, "--what", "mesh", "--to", tmp_path)[0] == 0
    areas = {suffix: trimesh.load(tmp_path / f"mesh.{suffix}", process=False, force="mesh").area for suffix in ("ply", "obj", "stl")}
    assert areas["obj"] == pytest.approx(areas["ply"], rel=1e-3) and areas["stl"] == pytest.approx(areas["ply"], rel=1e-3)


def test_a_colmap_model_has_every_posed_frame(capsys, finished, tmp_path):
    assert call(capsys, "export", finished, "--what", "colmap", "--to", tmp_path)[0] == 0
    model = pycolmap.Reconstruction(tmp_path / "sparse" / "0")
    posed = json.loads((finished / "results" / "report.json").read_text())["frames"]["posed"]
    assert model.num_reg_images() == posed
    assert all((tmp_path / "images" / image.name).is_file() for image in model.images.values())


def test_a_nerfstudio_scene_shows_what_the_run_measured(capsys, finished, tmp_path):
    code, out, _ = call(capsys, "export", finished, "--what", "nerfstudio", "--to", tmp_path)
    scene = read_nerfstudio(tmp_path)
    posed = json.loads((finished / "results" / "report.json").read_text())["frames"]["posed"]
    assert code == 0 and len(scene.frames) == posed and f"--depth-unit-scale-factor {scene.depth_step:g}" in out
    tum = np.loadtxt(finished / "results" / "trajectory.txt", ndmin=2)
    np.testing.assert_allclose([frame.T_world_camera[:3, 3] for frame in scene.frames], tum[:, 1:4], atol=1e-5)
    np.testing.assert_allclose([frame.timestamp_s for frame in scene.frames], tum[:, 0], atol=1e-4)
    frame = scene.frames[0]
    assert read_image(frame.image).shape[:2] == frame.depth().shape == frame.mask().shape
    exported = call(capsys, "export", finished, "--what", "depth", "--to", tmp_path / "depth")[0]
    assert exported == 0
    depth = read_depth(tmp_path / "depth" / f"{frame.name}.tiff")
    assert np.median(frame.depth()) == pytest.approx(np.median(depth), rel=0.01) and frame.mask().mean() > 0.3


def test_splats_are_exported_where_the_run_made_some(capsys, finished, tmp_path):
    code, _, err = call(capsys, "export", finished, "--what", "splats", "--to", tmp_path)
    assert code == 1 and "run with --set fuse=splats" in one_line(err)
    run = tmp_path / "run"
    cloud = SplatCloud(np.zeros((2, 3)), np.zeros((2, 3)), np.ones((2, 4)), np.zeros(2), np.ones((2, 3)), unit="mm")
    for stage, reads, file in (("splats", {}, "splats.ply"), ("report", {"splats": "0" * 12}, "report.json")):
        folder = run / stage / ("0" * 12)
        work = store.working_folder(folder)
        write_splat_ply(work / file, cloud)
        store.finish(folder, {"stage": stage, "reads": reads}, (file,))
    store.point_results(run, folder)
    code, out, _ = call(capsys, "export", run, "--what", "splats", "--to", tmp_path / "out")
    assert code == 0 and out.startswith("2 Gaussians")
    assert len(read_splat_ply(tmp_path / "out" / "splats.ply")) == 2 and (tmp_path / "out" / "splats.splat").stat().st_size == 64


def test_stopping_early_says_where(capsys, tmp_path):
    code, out, err = call(capsys, "run", PHANTOM, *FALLOFF, "--out", tmp_path / "run", "--until", "camera")
    assert code == 0 and "stopped after camera" in out and err.count(" done in ") == 2
    assert not (tmp_path / "run" / "results").exists()


@pytest.mark.parametrize("file", sorted((Path(__file__).parents[1] / "configs").glob("*.toml")), ids=lambda file: file.name)
def test_every_config_file_is_accepted(capsys, tmp_path, file, monkeypatch):
    monkeypatch.setattr(cli, "limit_threads", lambda config, overrides: None)
    monkeypatch.setattr(job, "configure_libraries", lambda settings: None)
    assert call(capsys, "plan", PHANTOM, "--out", tmp_path / "run", "--config", file)[0] == 0


@pytest.mark.parametrize("file", sorted((Path(__file__).parents[1] / "configs" / "train").glob("*.toml")), ids=lambda file: file.name)
def test_training_takes_its_config_from_file_and_words(capsys, tmp_path, file, monkeypatch):
    seen = []
    dry = {
        name: method._replace(run=lambda config, out: seen.append((config, out)) or out / "weights") for name, method in trainings().items()
    }
    monkeypatch.setattr(training, "trainings", lambda: dry)
    assert call(capsys, "train", file, "--out", tmp_path, "--set", "seed=5")[0] == 0
    assert seen[0][0].seed == 5 and seen[0][1] == tmp_path
    code, _, err = call(capsys, "train", file, "--set", "sead=5")
    assert code == 2 and "did you mean 'seed'" in one_line(err)
