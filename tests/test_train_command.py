"""`recon train` from outside: a network trained, gone on with after a kill, and used by `recon run`."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from recon import cli
from recon.data import open_sequence
from recon.io.atomic import read_json
from recon.io.depth import read_depth
from recon.models import model_info
from recon.models.depth_anything import SIZES, DepthAnythingSize
from recon.models.vit import VitSize
from recon.pipeline.lock import run_lock

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "configs" / "train"
SHORT = "phantom:tube?seed=3&frames=24&width=96&height=64"
RECORDING = "phantom:tube?seed=1&frames=4&width=240&height=200"
"""Large enough for the gate of a run."""
TINY = (
    "width_px=96", "height_px=64", "batch_size=2", "num_threads=1", "motion_factor=0.03",
)  # fmt: skip


TINY_OF = {
    "endodac": ("size=tiny", "grid_rows=5", "grid_columns=7"),
    "endodav": ("size=tiny_video", "grid_rows=5", "grid_columns=7", "num_frames=2", "learn_intrinsics=false"),
}
METHODS_AND_OTHERS = [
    ("monodepth2", "af_sfm"),
    ("af_sfm", "monodepth2"),
    ("endodac", "litemono"),
    ("litenet", "af_sfm"),
    ("mdass", "af_sfm"),
    ("endodav", "endodac"),
]


def call(capsys, *words):
    """Exit code, standard output and standard error of one command."""
    code = cli.main([str(word) for word in words])
    return code, *capsys.readouterr()


def words_of(name, out, *settings, source=SHORT):
    pairs = (f"sources={json.dumps([source])}", *TINY, *settings)
    return ["train", str(CONFIGS / f"{name}.toml"), "--out", str(out), *(word for pair in pairs for word in ("--set", pair))]


def steps(out, name="losses"):
    path = out / f"{name}.csv"
    return [int(row["step"]) for row in csv.DictReader(path.open())] if path.exists() else []


@pytest.mark.parametrize(("name", "other"), METHODS_AND_OTHERS)
def test_a_trained_network_is_used_by_a_run(capsys, tmp_path, monkeypatch, name, other):
    monkeypatch.setitem(SIZES, "tiny", DepthAnythingSize(VitSize(48, 4, 3, 70), 32, (16, 24, 32, 48), (0, 1, 2, 3)))
    monkeypatch.setitem(SIZES, "tiny_video", DepthAnythingSize(VitSize(56, 4, 2, 70), 32, (16, 24, 32, 64), (0, 1, 2, 3)))
    words = words_of(name, tmp_path / "net", "num_epochs=1", *TINY_OF.get(name, ()))
    code, printed, _ = call(capsys, *words)
    best = tmp_path / "net" / "best"
    assert code == 0 and printed.split() == ["weights", str(best)]
    done = steps(tmp_path / "net")
    assert done == ([1] if name == "endodav" else [1, 2, 3]) and steps(tmp_path / "net", "validation") == [0, done[-1]]
    weights = (best / "depth.safetensors").read_bytes()
    assert call(capsys, *words)[0] == 0  # nothing is left to do
    assert steps(tmp_path / "net") == done and (best / "depth.safetensors").read_bytes() == weights

    def run(model, weights):
        settings = ("--set", f"depth.model={model}", f"depth.weights={weights}")
        return call(capsys, "run", RECORDING, "--out", tmp_path / f"run-{model}", "--until", "depth", *settings)

    assert run(name, best)[0] == 0
    (depth_folder,) = {path.parent for path in (tmp_path / f"run-{name}").rglob("depth.json")}
    assert read_json(depth_folder / "depth.json")["trained_on"] == ["phantom"] == list(model_info(name).seen(best))
    depth = read_depth(depth_folder / "depth" / "000003.tiff")
    assert depth.shape == {"endodac": (93, 112), "endodav": (82, 98)}.get(name, (80, 96)) and (depth > 0).mean() > 0.5
    code, _, err = run(other, best)
    assert code == 2 and f"were trained as '{name}', not as '{other}'" in err
    code, _, err = run(name, tmp_path / "net")
    assert code == 2 and "holds no .pth or .safetensors file" in err


def test_a_killed_training_goes_on_as_if_nothing_had_happened(capsys, tmp_path):
    settings = ("num_epochs=5", "validate_every=3")
    assert call(capsys, *words_of("monodepth2", tmp_path / "unbroken", *settings))[0] == 0
    broken = tmp_path / "broken"
    script = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from recon.cli import main; sys.exit(main(sys.argv[1:]))"
    often = [*words_of("monodepth2", broken, *settings), "--set", "checkpoint_minutes=0.005"]
    process = subprocess.Popen([sys.executable, "-c", script, *often])
    while not (broken / "checkpoint.pt").exists() or len(steps(broken)) < 4:
        assert process.poll() is None, "the training ended before it could be killed"
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert 4 <= len(steps(broken)) < 15
    assert call(capsys, *words_of("monodepth2", broken, *settings))[0] == 0
    for name in ("losses.csv", "validation.csv", "best/depth.safetensors", "best/pose.safetensors"):
        assert (broken / name).read_bytes() == (tmp_path / "unbroken" / name).read_bytes()
    assert steps(broken) == list(range(1, 16)) and steps(broken, "validation") == [0, 3, 6, 9, 12, 15]


def test_damaged_files_are_counted_and_training_goes_on(capsys, caplog, tmp_path):
    frames = tmp_path / "frames"
    frames.mkdir()
    for frame in open_sequence(SHORT).frames:
        Image.fromarray(frame.image()).save(frames / f"{frame.index:06d}.png")
    half = frames / "000003.png"
    half.write_bytes(half.read_bytes()[:900])
    (frames / "000019.png").write_bytes(b"")
    (frames / "000020.png").write_text("no picture")
    words = words_of("monodepth2", tmp_path / "net", "num_epochs=1", "learn_intrinsics=true", source=str(frames))
    assert call(capsys, *words)[0] == 0
    assert "frames: 3 of 24 frames are skipped: 3 cannot be decoded (first: " in caplog.text and "000003.png" in caplog.text
    assert len(steps(tmp_path / "net")) >= 1


def test_mistakes_are_named(capsys, tmp_path):
    code, _, err = call(capsys, *words_of("af_sfm", tmp_path, "num_epoch=1"))
    assert code == 2 and "did you mean 'num_epochs'" in err
    code, _, err = call(capsys, *words_of("af_sfm", tmp_path, source=str(tmp_path / "nowhere")))
    assert code == 2 and "nowhere" in err and not (tmp_path / "best").exists()
    with run_lock(tmp_path / "busy"):
        code, _, err = call(capsys, *words_of("af_sfm", tmp_path / "busy"))
    assert code == 1 and f"busy is in use by process {os.getpid()}" in err
    recipe = tmp_path / "own.toml"
    recipe.write_text('method = ["student"]\n')
    code, _, err = call(capsys, "train", recipe)
    assert code == 2 and "no method ['student']" in err
    recipe.write_text('method = "midas"\n')
    code, _, err = call(capsys, "train", recipe)
    assert code == 2 and "no method 'midas'; it is one of: student, monodepth2, af_sfm, endodac" in err
