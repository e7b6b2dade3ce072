"""LiteNet: what it is taught, that each term does something and none imports the teacher's scale, and that it learns."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import safetensors.torch
import torch
from tiny_training import FLOW, SHORT, TUBE, abs_rel, config_of, untrained

from recon.io.atomic import read_json
from recon.models import DepthEstimate, registry
from recon.models.litemono import LiteMono
from recon.models.student import Student
from recon.models.vit import VIT_SIZES, DinoVisionTransformer, VitSize
from recon.models.weights import save_halved, training_facts
from recon.training.selfsup import TrainingState, open_clips, train_self_supervised
from recon.training.teacher import load_teacher, teacher_disparity
from recon.types import ReconError

LITENET = {"learn_intrinsics": False, "learning_rate": 5e-4, **FLOW}
OFF = {"spatial_weight": 0.0, "spectral_weight": 0.0, "gradient_weight": 0.0, "semantic_weight": 0.0}


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    return open_clips(config_of("litenet", (SHORT,)), tmp_path_factory.mktemp("clips")).training


@pytest.fixture
def dino(tmp_path, monkeypatch):
    """A file of a tiny encoder's weights, named as in a Depth Anything's."""
    monkeypatch.setitem(VIT_SIZES, "tiny", VitSize(24, 2, 2, 70))
    torch.manual_seed(8)
    state = {f"pretrained.{name}": value for name, value in DinoVisionTransformer(VIT_SIZES["tiny"]).state_dict().items()}
    torch.save({**state, "depth_head.projects.0.bias": torch.zeros(3)}, tmp_path / "depth_anything.pth")
    return {"dino_weights": tmp_path / "depth_anything.pth", "dino_size": "tiny"}


def test_size_is_the_published_one():
    info = registry()["litenet"]
    network = untrained("litenet", config_of("litenet", **OFF)).networks["depth"]
    assert isinstance(network, LiteMono)
    assert sum(p.numel() for p in network.parameters()) == 3_074_747 == info.parameters == info.trainable


class Scaled:
    """A teacher whose every picture has another scale."""

    def __init__(self, factor):
        self.factor = factor

    def infer(self, image, camera, mask):
        depth = np.linspace(1, 3, 24, dtype=np.float32).reshape(4, 6) * self.factor
        return DepthEstimate(depth, 0.1 * depth)


def test_the_teachers_scale_changes_no_loss(clips):
    method, batch = untrained("litenet", config_of("litenet", **LITENET)), clips.batch(0, 2)
    features, disparities = method.features_and_disparities(batch.color_aug[:, 0])
    found = []
    for factor in (1.0, 250.0):
        method.teacher = Scaled(factor)
        found.append(method.distillation_losses(batch, disparities[0].detach(), features))
    assert set(found[0]) == {"spatial", "amplitude", "phase", "gradient"}
    assert all(value > 0 for value in found[0].values())
    for name, value in found[0].items():
        assert value.item() == pytest.approx(found[1][name].item(), rel=1e-4)


def test_a_teacher_is_asked_in_disparity_where_it_and_the_mask_know(clips):
    class Half(Scaled):
        def infer(self, image, camera, mask):
            assert image.shape == (64, 96, 3) and (camera.width_px, camera.height_px) == (96, 64)
            depth = super().infer(image, camera, mask).depth
            depth[:, :3] = 0
            return DepthEstimate(depth, depth)

    clip = clips.clip(0, 0)
    for cameras in (clip.cameras, (None,)):
        disparity, known = teacher_disparity(Half(2.0), dataclasses.replace(clip, cameras=cameras))
        assert disparity.shape == known.shape == (1, 64, 96)
        assert not known[:, :, :40].any() and known[:, 20:40, 60:80].all() and not (known & ~clip.mask[:, 0]).any()
        # The lower right cell's disparity is 1 / (2 * 3).
        assert disparity[0, -1, -1].item() == pytest.approx(1 / 6, rel=1e-5)


def test_a_training_does_not_go_on_under_another_packaged_teacher(tmp_path, monkeypatch):
    config = config_of("litenet", **LITENET)
    TrainingState(untrained("litenet", config), ()).save(tmp_path / "checkpoint.pt")
    TrainingState(untrained("litenet", config), ()).load(tmp_path / "checkpoint.pt")
    save_halved(Student(), tmp_path / "next.safetensors", {"method": "student", "trained_on": ["phantom"]})
    monkeypatch.setattr("recon.models.student.WEIGHTS", tmp_path / "next.safetensors")
    with pytest.raises(ReconError, match="began with another file of teacher"):
        TrainingState(untrained("litenet", config), ()).load(tmp_path / "checkpoint.pt")


def test_teachers_are_those_of_the_registry():
    model, seen, checksum = load_teacher("falloff", None, "cpu")
    assert seen == () and checksum == "" and model is not None
    assert untrained("litenet", config_of("litenet", **LITENET)).seen_before == ("phantom",)
    with pytest.raises(ReconError, match=r"teacher = 'endodac'.*needs its weights.*depth_model\.pth, which its authors publish at"):
        untrained("litenet", config_of("litenet", teacher="endodac"))
    assert untrained("litenet", config_of("litenet", teacher="endodac", **OFF)).teacher is None


TERMS = {
    "spatial": ("spatial_weight", ("spatial",)),
    "spectral": ("spectral_weight", ("amplitude", "phase")),
    "gradient": ("gradient_weight", ("gradient",)),
    "semantic": ("semantic_weight", ("semantic",)),
}


@pytest.mark.parametrize("name", TERMS)
def test_each_term_is_in_the_total_and_teaches_depth(clips, dino, name):
    """With a weight of 0 the term is gone; with one, the total has it, and a step against its gradient lowers it."""
    weight, parts = TERMS[name]
    config = config_of("litenet", **{**LITENET, **OFF, weight: 0.5}, **dino)
    method, batch = untrained("litenet", config), clips.batch(0, 2)
    for network in method.networks.values():
        network.eval()
    losses = method.depth_losses(batch)
    assert set(losses) & {part for _, names in TERMS.values() for part in names} == set(parts)
    term = sum(losses[part] for part in parts)
    plain = method.synthesis_losses(batch, method.disparities(batch.color_aug[:, 0]), method.poses(batch))["total"]
    assert losses["total"].item() == pytest.approx((plain + 0.5 * term).item(), rel=1e-5)
    depth = list(method.networks["depth"].encoder.parameters())
    slopes = torch.autograd.grad(term, depth, allow_unused=True)
    squared = sum(float(slope.square().sum()) for slope in slopes if slope is not None)
    assert squared > 0
    with torch.no_grad():
        for parameter, slope in zip(depth, slopes, strict=True):
            if slope is not None:
                parameter -= 1e-3 * float(term) / squared * slope
    features, disparities = method.features_and_disparities(batch.color_aug[:, 0])
    found = method.distillation_losses(batch, disparities[0], features)
    assert sum(found[part] for part in parts) < term


def test_rates_go_in_cosine_cycles_with_a_floor_for_depth_and_one_for_the_others():
    method = untrained("litenet", config_of("litenet", **{**OFF, "learning_rate": 1e-4}))
    depth, pose = "depth", "pose"
    assert method.decay(0, depth) == method.decay(0, pose) == 1.0
    assert method.decay(15, depth) == pytest.approx(0.9)
    half = lambda top, floor: (top + floor) / 2  # noqa: E731
    assert method.decay(5, depth) == pytest.approx(0.05 + 0.95 * (1 + math.cos(math.pi / 3)) / 2)
    method.config = dataclasses.replace(method.config, decay_epochs=16)
    assert method.decay(8, depth) == pytest.approx(half(1.0, 0.05)) and method.decay(24, pose) == pytest.approx(half(0.9, 0.1))
    groups = method.phases[1].optimizer.param_groups
    assert [group["name"] for group in groups] == ["depth", "pose", "appearance"]
    assert all(isinstance(phase.optimizer, torch.optim.AdamW) for phase in method.phases)
    assert {group["weight_decay"] for group in groups} == {0.01}


def test_a_step_trains_the_student_and_what_carries_its_features_over(clips, dino):
    config = config_of("litenet", **LITENET, **dino)
    state = TrainingState(untrained("litenet", config), ())
    before = {name: value.clone() for name, value in state.method.networks.state_dict().items()}
    taught = {name: value.clone() for name, value in state.method.dino.state_dict().items()}
    logged = state.train_step(clips.batch(0, 2), epoch=1)
    assert logged["decay"] == pytest.approx(0.05 + 0.95 * (1 + math.cos(math.pi / 15)) / 2)
    moved = {name.split(".")[0] for name, value in state.method.networks.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {"depth", "pose", "flow", "appearance", "projection"}
    assert all(torch.equal(value, taught[name]) for name, value in state.method.dino.state_dict().items())


def test_files_to_start_from(tmp_path, dino, caplog):
    """Lite-Mono's ImageNet file holds its encoder and a classifier; semantics without DINOv2 are left out and said to be."""
    torch.manual_seed(3)
    encoder = LiteMono().encoder
    extra = {"norm.weight": torch.zeros(80), "head.bias": torch.zeros(1000)}
    torch.save({"model": {**encoder.state_dict(), **extra}}, tmp_path / "lite-mono-pretrain.pth")
    method = untrained("litenet", config_of("litenet", encoder_weights=tmp_path / "lite-mono-pretrain.pth"))
    assert torch.equal(method.networks["depth"].encoder.stem2[0].conv.weight, encoder.stem2[0].conv.weight)
    assert method.seen_before == ("phantom", "imagenet")
    assert "dino_weights is not set" in caplog.text and "projection" not in method.networks
    with pytest.raises(ReconError, match="dino_size must be one of small, base, large, tiny, found 'huge'"):
        untrained("litenet", config_of("litenet", **{**dino, "dino_size": "huge"}))
    with pytest.raises(ReconError, match="do not fit the network"):
        untrained("litenet", config_of("litenet", **{**dino, "dino_size": "small"}))
    with pytest.raises(ReconError, match="do not fit the network"):
        untrained("litenet", config_of("litenet", encoder_weights=dino["dino_weights"]))


@pytest.mark.slow
def test_depth_error_falls(tmp_path):
    """Held-out depth error after 30 steps of training, with the packaged network as teacher and without one."""
    left = {}
    for name, terms in (("taught", {}), ("alone", OFF)):
        config = config_of("litenet", num_epochs=3, **LITENET, **terms)
        best = train_self_supervised("litenet", config, tmp_path / name)
        clips = open_clips(config, tmp_path / name / "clips").validation
        method = untrained("litenet", config)
        at_start = abs_rel(method, TUBE, clips)
        method.networks["depth"].load_state_dict(safetensors.torch.load_file(best / "depth.safetensors"))
        left[name] = abs_rel(method, TUBE, clips) / at_start
        assert training_facts(best)["trained_on"] == ["phantom"]
        assert read_json(best / "training.json")["config"]["teacher"] == "student"
    assert left["taught"] < 0.8 and left["taught"] < 0.95 * left["alone"], left
