"""Weights in the folders that their authors publish, through `recon run`; written here with random numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from recon import cli
from recon.io.atomic import read_json
from recon.io.depth import read_depth
from recon.models.depth_anything import SIZES, DepthAnythingSize
from recon.models.endodac import EndoDAC
from recon.models.endodav import EndoDAV
from recon.models.litemono import LiteMono
from recon.models.monodepth2 import Monodepth2
from recon.models.posenet import PoseNet
from recon.models.vit import VitSize

PHANTOM = "phantom:tube?seed=1&frames=2&width=240&height=200"
TINY = DepthAnythingSize(VitSize(32, 4, 2, trained_px=42), 8, (8, 12, 16, 20), (0, 1, 2, 3))
TINY_VIDEO = DepthAnythingSize(VitSize(48, 4, 3, trained_px=42), 32, (16, 24, 32, 64), (0, 1, 2, 3))


@pytest.fixture(autouse=True)
def seeded(monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setitem(SIZES, "base", TINY)  # the published EndoDAC is of this size
    monkeypatch.setitem(SIZES, "small", TINY_VIDEO)  # and the published EndoDAV of this one


def write_folder(folder: Path, name: str) -> Path:
    """The files that the authors' archives hold, each with what else the authors keep in it."""
    folder.mkdir()
    size = {"height": 64, "width": 96, "use_stereo": False}
    pose = PoseNet()
    torch.save({**pose.pose_encoder.state_dict(), "encoder.fc.weight": torch.zeros(1000, 512)}, folder / "pose_encoder.pth")
    torch.save(pose.pose.state_dict(), folder / "pose.pth")
    if name == "endodac":
        torch.save({**EndoDAC(TINY).state_dict(), "height": 256, "width": 320, "use_stereo": False}, folder / "depth_model.pth")
        return folder
    if name == "endodav":
        torch.save({**EndoDAV(TINY_VIDEO).state_dict(), "height": 256, "width": 320, "use_stereo": False}, folder / "depth_model.pth")
        return folder
    network = LiteMono() if name in ("litemono", "litenet") else Monodepth2(centred=name == "monodepth2")
    classifier = (
        {} if name in ("litemono", "litenet") else {"encoder.fc.weight": torch.zeros(1000, 512), "encoder.fc.bias": torch.zeros(1000)}
    )
    torch.save({**network.encoder.state_dict(), **classifier, **size}, folder / "encoder.pth")
    torch.save(network.depth.state_dict(), folder / "depth.pth")
    return folder


def run(capsys, out, model, weights):
    settings = ("--set", f"depth.model={model}", f"depth.weights={weights}")
    code = cli.main([str(word) for word in ("run", PHANTOM, "--out", out, "--until", "depth", *settings)])
    return code, capsys.readouterr().err


@pytest.mark.parametrize("model", ["monodepth2", "af_sfm", "litemono", "endodac", "litenet", "endodav"])
def test_the_authors_folder_is_what_a_run_takes(capsys, tmp_path, model):
    weights = write_folder(tmp_path / "weights", model)
    code, err = run(capsys, tmp_path / "run", model, weights)
    assert code == 0, err
    (folder,) = {path.parent for path in (tmp_path / "run").rglob("depth.json")}
    depth = read_depth(folder / "depth" / "000001.tiff")
    assert depth.shape == {"endodac": (267, 320), "endodav": (233, 280)}.get(model, (80, 96))
    assert np.isfinite(depth).all() and (depth > 0).mean() > 0.5
    seen = {
        "monodepth2": ["kitti"],
        "endodac": ["scared/scared-af", "natural pictures"],
        "endodav": ["scared/scared-video", "natural pictures"],
    }
    assert read_json(folder / "depth.json")["trained_on"] == seen.get(model, ["scared/scared-af"])


def without(name):
    return lambda folder: (folder / name).unlink()


def moved(name, to):
    return lambda folder: (folder / name).replace(folder / to)


def cut(name):
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:500])


@pytest.mark.parametrize(
    ("written", "model", "change", "says"),
    [
        ("monodepth2", "monodepth2", without("encoder.pth"), "encoder.pth are missing"),
        ("monodepth2", "monodepth2", without("depth.pth"), "depth.pth are missing"),
        (
            "monodepth2",
            "monodepth2",
            moved("pose_encoder.pth", "encoder.pth"),
            "encoder.conv1.weight is (64, 6, 7, 7), expected (64, 3, 7, 7)",
        ),
        ("monodepth2", "monodepth2", moved("pose.pth", "depth.pth"), "depth.pth: weights do not fit the network: missing decoder.0"),
        ("af_sfm", "af_sfm", cut("depth.pth"), "depth.pth cannot be read: it is damaged"),
        ("af_sfm", "litemono", None, "encoder.pth: weights do not fit the network: missing downsample_layers"),
        ("litemono", "monodepth2", None, "encoder.pth: weights do not fit the network: missing encoder.conv1.weight"),
        ("monodepth2", "endodac", None, "depth_model.pth cannot be read: [Errno 2] No such file"),
        ("monodepth2", "student", None, "are a folder, expected one file"),
        ("endodac", "af_sfm", None, "encoder.pth are missing"),
        ("litenet", "mdass", None, "encoder.pth: weights do not fit the network: missing encoder.conv1.weight"),
        ("endodac", "endodav", None, "depth_model.pth: weights do not fit the network: missing pretrained.cls_token"),
        ("endodav", "litenet", None, "encoder.pth are missing"),
        ("endodav", "endodav", cut("depth_model.pth"), "depth_model.pth cannot be read: it is damaged"),
    ],
)
def test_wrong_files_are_named_with_what_is_wrong(capsys, tmp_path, written, model, change, says):
    weights = write_folder(tmp_path / "weights", written)
    if change is not None:
        change(weights)
    code, err = run(capsys, tmp_path / "run", model, weights)
    assert code == 2 and says in err and str(weights) in err and "Traceback" not in err
