"""Self-supervised training on phantom clips: what falls, what resumes to the same losses, what is refused."""

from __future__ import annotations

import csv
import dataclasses
import tomllib
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from recon.data import open_sequence
from recon.models.depth_anything import SIZES, DepthAnythingSize
from recon.models.vit import VitSize
from recon.pipeline.config import build_config
from recon.training import trainings
from recon.training.methods import METHODS
from recon.training.methods.method import depth_at
from recon.training.selfsup import TrainingState, open_clips, train_self_supervised
from recon.types import ReconError

TUBE = "phantom:tube?seed=3&frames=40&width=96&height=64&lens=pinhole&fov_deg=80&round_mask=false&noise=0"
SHORT = "phantom:tube?seed=3&frames=24&width=96&height=64"
# No ImageNet weights and only some dozen steps: pose has to keep up with depth (motion_factor), and the appearance flow, which
# could explain everything before the optical flow has learned to, is held nearly constant over the picture.
TINY = {
    "width_px": 96, "height_px": 64, "batch_size": 2, "learning_rate": 2e-4, "motion_factor": 0.03, "num_threads": 1,
}  # fmt: skip
FLOW = {"flow_learning_rate": 5e-4, "appearance_smoothness_weight": 1000.0}
VIT = {"size": "tiny", "grid_rows": 5, "grid_columns": 7}


@pytest.fixture(autouse=True)
def tiny_vit(monkeypatch):
    monkeypatch.setitem(SIZES, "tiny", DepthAnythingSize(VitSize(48, 4, 3, 70), 32, (16, 24, 32, 48), (0, 1, 2, 3)))


def config_of(name, sources=(TUBE,), **changes):
    return trainings()[name].config(sources=sources, **{**TINY, **changes})


def rows(folder, name):
    with (folder / f"{name}.csv").open() as file:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]


def abs_rel(method, source, clips):
    """Mean of |d - t| / t over the held-out targets, d scaled by the median ratio of each frame."""
    sequence = open_sequence(source)
    method.networks.eval()
    errors = []
    for place in range(len(clips)):
        clip = clips.clip(0, place)
        truth = sequence.depth_gt(int(clip.frame_indices[0, 0]))
        with torch.no_grad():
            depth = depth_at(method.disparities(clip.color[:, 0])[0], clip.color[:, 0])[0].numpy()
        found, true = depth[truth.valid], truth.depth[truth.valid]
        errors.append(np.mean(np.abs(found * np.median(true / found) - true) / true))
    return float(np.mean(errors))


def untrained(name, config):
    torch.manual_seed(config.seed)
    return METHODS[name](config)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("monodepth2", {"num_epochs": 4}),
        ("af_sfm", {"num_epochs": 4, **FLOW}),
        (
            "endodac",
            {"num_epochs": 4, "warmup_steps": 30, "learning_rate": 5e-4, "motion_factor": 0.012, "learn_intrinsics": False, **FLOW, **VIT},
        ),
    ],
)
def test_photometric_and_depth_errors_fall(tmp_path, name, changes):
    config = config_of(name, **changes)
    best = train_self_supervised(name, config, tmp_path)
    errors = [row["photometric"] for row in rows(tmp_path, "validation")]
    assert min(errors) < 0.97 * errors[0]
    clips = open_clips(config, tmp_path / "clips").validation
    method = untrained(name, config)
    at_start = abs_rel(method, TUBE, clips)
    method.networks["depth"].load_state_dict(safetensors.torch.load_file(best / "depth.safetensors"))
    assert abs_rel(method, TUBE, clips) < 0.99 * at_start
    assert len(list((tmp_path / "pictures").glob("*.png"))) == len(errors)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unbroken")
    train_self_supervised("monodepth2", config_of("monodepth2", (SHORT,), num_epochs=2, validate_every=2), folder)
    return folder


def test_a_resumed_run_has_the_losses_of_an_unbroken_one(tmp_path, unbroken):
    config = config_of("monodepth2", (SHORT,), num_epochs=2, validate_every=2)
    train_self_supervised("monodepth2", config, tmp_path, stop_after=4)
    (tmp_path / "losses.csv").open("a").write("5,1,1,1,1,1\n")  # logged after the last checkpoint
    train_self_supervised("monodepth2", config, tmp_path)
    for name in ("losses.csv", "validation.csv", "best/depth.safetensors", "best/pose.safetensors"):
        assert (tmp_path / name).read_bytes() == (unbroken / name).read_bytes()
    assert [row["step"] for row in rows(tmp_path, "losses")] == [1, 2, 3, 4, 5, 6]


def test_a_checkpoint_of_another_recipe_or_a_cut_one_is_refused(tmp_path, unbroken):
    (tmp_path / "checkpoint.pt").write_bytes((unbroken / "checkpoint.pt").read_bytes())
    with pytest.raises(ReconError, match="another num_epochs, seed"):
        train_self_supervised("monodepth2", config_of("monodepth2", (SHORT,), seed=1, validate_every=2), tmp_path)
    (tmp_path / "checkpoint.pt").write_bytes((unbroken / "checkpoint.pt").read_bytes()[:1000])
    with pytest.raises(ReconError, match="cannot be read as a checkpoint"):
        train_self_supervised("monodepth2", config_of("monodepth2", (SHORT,), num_epochs=2), tmp_path)


def test_training_stops_when_validation_no_longer_improves(tmp_path):
    config = config_of("monodepth2", (SHORT,), num_epochs=9, validate_every=1, patience=2, learning_rate=0.0)
    train_self_supervised("monodepth2", config, tmp_path)
    errors = [row["photometric"] for row in rows(tmp_path, "validation")]
    since_best = len(errors) - 1 - int(np.argmin(errors))
    assert since_best == 2


def test_phases_train_their_own_networks_only(tmp_path):
    config = config_of("endodac", (SHORT,), warmup_steps=1, **FLOW, **VIT)
    clips = open_clips(config, tmp_path)
    state = TrainingState(untrained("endodac", config))
    flow, depth = state.method.phases
    assert flow.trained == ("flow",) and depth.trained == ("depth", "pose", "appearance")
    for phase in (flow, depth):
        batch = clips.training.batch(0, 2)
        state.method.networks.zero_grad()
        phase.losses(batch)["total"].backward()
        assert {name for name, network in state.method.networks.items() if any(p.grad is not None for p in network.parameters())} == set(
            phase.trained
        )
    before = {name: p.detach().clone() for name, p in state.method.networks["depth"].named_parameters()}
    state.train_step(clips.training.batch(0, 2), epoch=0)
    assert moved(state, before) == {"lora_A", "lora_B", "residual_", "conv_depth"} - {"lora_A"}  # B is 0, so A has no gradient yet
    before = {name: p.detach().clone() for name, p in state.method.networks["depth"].named_parameters()}
    state.train_step(clips.training.batch(1, 2), epoch=0)
    assert moved(state, before) == {"lora_U", "lora_V", "residual_", "conv_depth"}


def moved(state, before):
    kinds = ("lora_A", "lora_B", "lora_U", "lora_V", "residual_", "conv_depth")
    changed = [name for name, p in state.method.networks["depth"].named_parameters() if not torch.equal(p, before[name])]
    return {next((kind for kind in kinds if kind in name), name) for name in changed}


def test_each_source_is_warped_through_the_lens_learned_from_it(tmp_path):
    config = config_of("endodac", (SHORT,), **FLOW, **VIT)
    batch = open_clips(config, tmp_path).training.batch(0, 2)
    method = untrained("endodac", config)
    torch.nn.init.normal_(method.networks["pose"].intrinsics_head.focal_length_conv.weight)
    method.depth_losses(batch)["photometric"].backward()
    first, second = (method.pose(batch, source)[1].rays for source in (1, 2))
    assert not torch.equal(first, second)
    assert method.networks["pose"].intrinsics_head.focal_length_conv.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("name", ["monodepth2", "af_sfm", "endodac"])
def test_the_shipped_configs_hold_the_defaults(name):
    table = tomllib.loads((Path(__file__).parents[1] / "configs" / "train" / f"{name}.toml").read_text())
    assert table.pop("method") == name
    assert build_config(trainings()[name].config, table, name) == trainings()[name].config()


def test_what_cannot_be_trained_is_refused(tmp_path):
    with pytest.raises(ReconError, match="no sources"):
        open_clips(config_of("af_sfm", ()), tmp_path)
    with pytest.raises(ReconError, match="size must be one of"):
        METHODS["endodac"](config_of("endodac", size="huge"))
    config = config_of("monodepth2", (SHORT,))
    clip = open_clips(config, tmp_path).training.clip(0, 0)
    with pytest.raises(ReconError, match="learn_intrinsics"):
        METHODS["monodepth2"](config).losses(dataclasses.replace(clip, cameras=(None,)))
