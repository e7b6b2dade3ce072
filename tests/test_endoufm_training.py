"""EndoUFM's training: depth improves, every term and part does something, and only what should be is trained."""

from __future__ import annotations

import csv
import dataclasses
import json
import tomllib
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from tiny_training import abs_rel, untrained
from torch import nn

from recon import cli
from recon.io.atomic import read_json
from recon.io.depth import read_depth
from recon.io.images import write_png
from recon.models import sam
from recon.models.depth_anything import SIZES, DepthAnything, DepthAnythingSize
from recon.models.intrinsic import Intrinsics
from recon.models.posenet import Motion
from recon.models.vit import VitSize
from recon.pipeline.config import build_config
from recon.training import trainings
from recon.training.methods.endoufm import EndoUfmConfig
from recon.training.selfsup import TrainingState, open_clips, train_self_supervised
from recon.types import ReconError

CONFIG = Path(__file__).parents[1] / "configs" / "train" / "endoufm.toml"
TUBE = "phantom:tube?seed=3&frames=40&width=96&height=64&lens=pinhole&fov_deg=80&round_mask=false&noise=0"
SHORT = "phantom:tube?seed=3&frames=24&width=96&height=64"
TINY = {
    "width_px": 96, "height_px": 64, "batch_size": 2, "learning_rate": 1e-3, "motion_factor": 0.01, "num_threads": 1, "size": "tiny",
    "sam_size": "tiny", "grid_rows": 5, "grid_columns": 7,
}  # fmt: skip
"""From random weights: the pose has to keep up with depth, and what takes pictures apart with both."""
NETWORKS = ("depth", "pose", "decomposer", "light")


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setitem(SIZES, "tiny", DepthAnythingSize(VitSize(48, 4, 3, 70), 32, (16, 24, 32, 48), (0, 1, 2, 3)))
    monkeypatch.setitem(sam.SAM_SIZES, "tiny", sam.SamSize(32, 4, 2, 64, 2, (1, 3)))


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return tmp_path_factory.mktemp("clips")


def config_of(sources=(SHORT,), **changes):
    return EndoUfmConfig(sources=sources, **{**TINY, **changes})


def method_of(**changes):
    return untrained("endoufm", config_of(**changes))


@pytest.mark.slow
def test_photometric_and_depth_errors_fall(tmp_path):
    """0.85 of the depth error is left after 66 steps from random weights; a few minutes of a tiny transformer are a matter of chance."""
    config = config_of((TUBE,), num_epochs=6)
    best = train_self_supervised("endoufm", config, tmp_path)
    with (tmp_path / "validation.csv").open() as file:
        errors = [float(row["photometric"]) for row in csv.DictReader(file)]
    assert min(errors) < 0.9 * errors[0]
    clips = open_clips(config, tmp_path / "clips").validation
    method = method_of(sources=(TUBE,))
    at_start = abs_rel(method, TUBE, clips)
    method.networks["depth"].load_state_dict(safetensors.torch.load_file(best / "depth.safetensors"))
    assert abs_rel(method, TUBE, clips) < 0.93 * at_start


def test_the_total_is_the_published_sum(store):
    """Each weight is one term's alone, smoothness in segments counts at one of four scales, plain smoothness not at all."""
    batch = open_clips(config_of(), store).training.batch(0, 2)
    losses = method_of().losses(batch)
    expected = losses["photometric"] + 0.2 * losses["reflectance"] + 0.2 * losses["reconstruction"] + 0.003 * losses["segments"]
    torch.testing.assert_close(losses["total"], expected)
    assert all(losses[name] > 0 for name in ("photometric", "reflectance", "reconstruction", "segments", "smoothness"))
    finest = method_of()
    with torch.no_grad():
        whole = finest.segment_smoothness(batch, finest.disparities(batch.color_aug[:, 0])[0], torch.ones_like(batch.mask[:, 0]))
    assert float(losses["segments"].detach()) == pytest.approx(float(whole) / 4, rel=0.3)  # there without the scope's edge


TERMS = {
    "reflectance_weight": ("reflectance", ("depth", "pose", "decomposer")),
    "reconstruction_weight": ("reconstruction", ("decomposer",)),
    "segment_smoothness_weight": ("segments", ("depth",)),
}


@pytest.mark.parametrize("weight", TERMS)
def test_every_term_teaches_the_networks_that_it_should(store, weight):
    """Switching it off takes exactly its own part of the loss away, and of the gradient of those networks and no others."""
    name, taught = TERMS[weight]
    batch = open_clips(config_of(), store).training.batch(0, 2)
    totals, gradients = {}, {}
    for value in (getattr(config_of(), weight), 0.0):
        method = method_of(**{weight: value})
        losses = method.losses(batch)
        losses["total"].backward()
        totals[value > 0] = losses
        gradients[value > 0] = {
            network: torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None])
            for network, module in method.networks.items()
        }
    part = getattr(config_of(), weight) * totals[True][name]
    assert part > 0
    torch.testing.assert_close(totals[True]["total"] - totals[False]["total"], part, rtol=1e-3, atol=1e-6)
    for network in NETWORKS:
        change = (gradients[True][network] - gradients[False][network]).abs().max() / gradients[False][network].abs().max()
        assert (change > 1e-5) == (network in taught), network


def test_segments_change_what_smoothness_costs(store, tmp_path):
    batch = open_clips(config_of(), store).training.batch(0, 2)
    found = []
    for labels in (np.zeros((64, 96), np.uint8), (np.indices((64, 96))[1] >= 10).astype(np.uint8)):
        folder = tmp_path / str(labels.max())
        for frame in range(24):
            (folder / "phantom_tube_3").mkdir(parents=True, exist_ok=True)
            write_png(folder / "phantom_tube_3" / f"{frame:06d}.png", labels)
        found.append(float(method_of(labels=folder).losses(batch)["segments"].detach()))
    assert found[0] > 0 and abs(found[1] - found[0]) > 0.01 * found[0]


def test_light_that_moves_is_no_error_when_pictures_are_taken_apart(store):
    """The scene stands still and its lamp does not: compared as they are, frames differ; as albedo and adjusted light, they do not."""
    batch = open_clips(config_of(), store).training.batch(0, 2)
    albedo = batch.color[:, :1].expand(-1, 3, -1, -1, -1)
    lights = [0.5, 0.3, 0.8]
    pictures = torch.stack([albedo[:, 0] * light for light in lights], dim=1)
    batch = dataclasses.replace(batch, color=pictures, color_aug=pictures)
    still = Motion(torch.zeros(2, 3), torch.zeros(2, 3), None)
    parts = [Intrinsics(albedo[:, 0], torch.full_like(albedo[:, 0, :1], light)) for light in lights]
    found = {}
    for switches in ({}, {"light_adjustment": False}, {"decomposition": False}):
        method = method_of(**switches)
        method.networks["pose"].forward = lambda *images: still
        method.intrinsics = lambda clips, on=method.config.decomposition: parts if on else []
        if "light" in method.networks:
            changes = iter(4 * [lights[0] - lights[1], lights[0] - lights[2]])
            method.networks["light"].forward = lambda difference: torch.full_like(difference[:, :1], next(changes))  # noqa: B023
        losses = method.losses(batch)
        found[next(iter(switches), "all")] = float(losses["photometric"].detach())
        if "decomposition" not in switches:
            assert losses["reflectance"] < 1e-5 and losses["reconstruction"] < 1e-5
    assert found["all"] < 1e-4 and min(found["light_adjustment"], found["decomposition"]) > 0.03


def test_without_decomposition_there_is_no_second_foundation_model(store, monkeypatch):
    monkeypatch.setattr(sam, "find_spec", lambda name: None)  # nor is its package needed
    method = method_of(decomposition=False)
    assert set(method.networks) == {"depth", "pose"}
    losses = method.losses(open_clips(config_of(), store).training.batch(0, 2))
    assert not {"reflectance", "reconstruction"} & set(losses)
    with pytest.raises(ReconError, match="endorecon\\[foundation\\]"):
        method_of()


def test_one_step_moves_what_is_trained_and_nothing_else(store):
    batch = open_clips(config_of(), store).training.batch(0, 2)
    method = method_of()
    state = TrainingState(method, ())
    state.train_step(batch, epoch=0)  # B is 0 until then, so A has no gradient
    before = {name: p.detach().clone() for name, p in method.networks.named_parameters()}
    state.train_step(batch, epoch=0)
    moved = {name for name, p in method.networks.named_parameters() if not torch.equal(p, before[name])}
    assert moved <= {name for name, p in method.networks.named_parameters() if p.requires_grad}
    for part in (
        "lora_A",
        "lora_B",
        "residual_",
        "dual_attention_",
        "conv_depth_",
        "decompose_head.projects",
        "conv_albedo",
        "light.decoder",
    ):
        assert any(part in name for name in moved), part
    assert not any(name.endswith(("lora_U", "lora_V")) for name in moved)
    frozen = ("depth.encoder.patch_embed", "depth.depth_head.projects", "decomposer.encoder.patch_embed", "decomposer.encoder.pos_embed")
    assert not any(name.startswith(frozen) for name in moved)


def test_frames_go_into_the_pose_network_in_order_of_time(store):
    """The earlier source's motion is inverted: of one and the same network output, the two motions are each other's inverse."""
    batch = open_clips(config_of(), store).training.batch(0, 2)
    method, seen = method_of(), []

    def pose(first, second):
        seen.append((first, second))
        return Motion(torch.full((2, 3), 0.1), torch.full((2, 3), 0.2), None)

    method.networks["pose"].forward = pose
    (before, _), (after, _) = method.poses(batch)
    target, earlier, later = batch.color_aug.unbind(dim=1)
    assert all(torch.equal(a, b) for a, b in zip((*seen[0], *seen[1]), (earlier, target, target, later), strict=True))
    torch.testing.assert_close(before @ after, torch.eye(4).expand(2, 4, 4), atol=1e-6, rtol=0.0)


def test_what_networks_see_is_what_is_compared(store):
    batch = open_clips(config_of(), store).training.batch(0, 2)
    losses = method_of().losses(batch)["total"]
    other = dataclasses.replace(batch, color_aug=(batch.color_aug * 0.7 + 0.1))
    assert method_of().losses(other)["total"] != losses
    # `color` serves labels alone, and those are kept away here.
    blind = method_of(segment_smoothness_weight=0.0)
    first = blind.losses(batch)["total"]
    assert torch.equal(first, method_of(segment_smoothness_weight=0.0).losses(dataclasses.replace(batch, color=0 * batch.color))["total"])


def test_the_rate_falls_once():
    method = method_of(decay_epochs=10)
    assert [method.decay(epoch, "depth") for epoch in (0, 9, 10, 25)] == [1.0, 1.0, 0.1, 0.1]


def test_foundation_models_are_loaded_and_said(tmp_path):
    from transformers import SamConfig, SamModel

    original = DepthAnything(1, SIZES["tiny"])
    torch.save(original.state_dict(), tmp_path / "depth_anything.pth")
    config = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "mlp_dim": 128, "image_size": 64, "window_size": 2}
    whole = SamModel(SamConfig(vision_config={**config, "global_attn_indexes": [1, 3]}))
    torch.save(whole.state_dict(), tmp_path / "medsam.pth")
    method = method_of(foundation_weights=tmp_path / "depth_anything.pth", sam_weights=tmp_path / "medsam.pth")
    assert method.seen_before == ("natural pictures", "medical pictures")
    encoder = method.networks["depth"].encoder
    assert torch.equal(encoder.blocks[1].attn.qkv.weight, original.pretrained.blocks[1].attn.qkv.weight)
    assert torch.equal(method.networks["decomposer"].encoder.pos_embed, whole.vision_encoder.pos_embed)
    with pytest.raises(ReconError, match=r"medsam\.pth: weights do not fit the network: missing encoder\.cls_token"):
        method_of(foundation_weights=tmp_path / "medsam.pth")


def test_it_trains_from_the_command_line_and_a_run_uses_what_came_out(capsys, tmp_path):
    pairs = (f"sources={json.dumps([SHORT])}", "num_epochs=1", "cbam=false", *(f"{key}={value}" for key, value in TINY.items()))
    words = ["train", str(CONFIG), "--out", str(tmp_path / "net"), *(word for pair in pairs for word in ("--set", pair))]
    assert cli.main(words) == 0
    best = tmp_path / "net" / "best"
    run = ["run", "phantom:tube?seed=1&frames=2&width=240&height=200", "--out", str(tmp_path / "run"), "--until", "depth", "--set"]
    assert cli.main([*run, "depth.model=endoufm"]) == 2
    assert "depth_model.pth, which its authors publish at https://github.com/RealMindyY/EndoUFM" in capsys.readouterr().err
    assert cli.main([*run, "depth.model=endoufm", f"depth.weights={best}"]) == 0
    (folder,) = {path.parent for path in (tmp_path / "run").rglob("depth.json")}
    assert read_json(folder / "depth.json")["trained_on"] == ["phantom"]
    depth = read_depth(folder / "depth" / "000001.tiff")
    assert (depth > 0).mean() > 0.5
    assert cli.main([*run, "depth.model=endodac", f"depth.weights={best}"]) == 2
    assert "were trained as 'endoufm', not as 'endodac'" in capsys.readouterr().err


def test_the_shipped_config_holds_the_published_settings():
    table = tomllib.loads(CONFIG.read_text())
    assert table.pop("method") == "endoufm"
    config = build_config(trainings()["endoufm"].config, table, "endoufm")
    assert (config.batch_size, config.num_epochs, config.learning_rate, config.width_px, config.height_px) == (4, 30, 1e-4, 320, 256)
    assert (config.reflectance_weight, config.reconstruction_weight, config.segment_smoothness_weight) == (0.2, 0.2, 0.003)


def test_what_cannot_be_trained_is_refused(tmp_path):
    for changes, says in (
        ({"size": "huge"}, "size must be one of"),
        ({"sam_size": "huge"}, "sam_size must be one of base, tiny, found 'huge'"),
        ({"labels": tmp_path / "nowhere"}, "is no folder: give the folder of label PNGs"),
    ):
        with pytest.raises(ReconError, match=says):
            method_of(**changes)
    assert not isinstance(method_of(segment_smoothness_weight=0.0, labels=tmp_path / "nowhere"), nn.Module)
