"""M-DASS: the square, the terms that it and the parts add, their weights, and that it learns."""

from __future__ import annotations

import dataclasses

import pytest
import safetensors.torch
import torch
from tiny_training import FLOW, SHORT, TUBE, abs_rel, config_of, untrained
from torch import nn

from recon.losses.consistency import relative_change
from recon.models import model_info, registry
from recon.training.methods.mdass import random_squares
from recon.training.methods.method import depth_at, inner
from recon.training.selfsup import open_clips, train_self_supervised
from recon.types import ReconError


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    return open_clips(config_of("mdass", (SHORT,)), tmp_path_factory.mktemp("clips")).training


def evaluated(config):
    method = untrained("mdass", config)
    for network in method.networks.values():
        network.eval()
    return method


def test_size_is_that_of_the_network_that_it_trains():
    network = untrained("mdass", config_of("mdass")).networks["depth"]
    assert sum(p.numel() for p in network.parameters()) == registry()["mdass"].parameters == 14_329_236
    with pytest.raises(
        ReconError, match=r"depth\.safetensors, which its authors \(arXiv 2504\.17582\) do not publish; `recon train configs"
    ):
        model_info("mdass").weights_path(None)


def test_the_square_is_a_quarter_of_the_side_and_anywhere():
    torch.manual_seed(0)
    mask = torch.ones(300, 64, 96, dtype=torch.bool)
    hidden = random_squares(mask, 0.25)
    assert (hidden.sum(dim=(1, 2)) == 16 * 16).all()
    for square in hidden[:20]:
        rows, columns = square.nonzero(as_tuple=True)
        assert rows.max() - rows.min() == 15 and columns.max() - columns.min() == 15
    assert hidden.any(dim=0).float().mean() > 0.9
    assert not random_squares(mask, 0.0).any() and random_squares(mask, 1.0).any(dim=1).sum(dim=1).eq(64).all()


def test_change_is_relative_and_teaches_the_occluded_pass_alone():
    generator = torch.Generator().manual_seed(1)
    occluded, clean = (torch.rand(1, 4, 5, generator=generator).add(0.5).requires_grad_() for _ in range(2))
    mask = torch.ones(1, 4, 5, dtype=torch.bool)
    mask[0, 1] = False
    found = relative_change(occluded, clean, mask)
    assert torch.allclose(found, (occluded - clean).abs() / clean * mask)
    assert torch.allclose(relative_change(7 * occluded, 7 * clean, mask), found, atol=1e-6)
    found.sum().backward()
    assert clean.grad is None and (occluded.grad != 0).equal(mask)


class Blind(nn.Module):
    """A depth network that says the same whatever it sees."""

    def forward(self, image):
        return [torch.full_like(image[:, 0, :: 2**scale, :: 2**scale], 0.3) for scale in range(4)]


class Brightness(nn.Module):
    """One that takes brightness for nearness, and so a black square for a hole."""

    def forward(self, image):
        return [image.mean(dim=1)[:, :: 2**scale, :: 2**scale] for scale in range(4)]


def test_only_what_is_seen_outside_the_square_counts(clips):
    """A network without a view beyond each pixel changes nothing outside the square; one that smears the square is held to it."""
    method, batch = evaluated(config_of("mdass")), clips.batch(0, 2)
    mask, still = inner(batch.mask[:, 0]), torch.eye(4).expand(2, 4, 4)
    poses = [(still, lens) for _, lens in method.poses(batch)]

    class Smeared(Brightness):
        def forward(self, image):
            return super().forward(nn.functional.avg_pool2d(image, 9, 1, 4))

    found = {}
    for network in (Blind(), Brightness(), Smeared()):
        method.networks["depth"] = network
        torch.manual_seed(2)
        same = dataclasses.replace(batch, color_aug=batch.color_aug[:, :1].expand(-1, 3, -1, -1, -1))
        depth = depth_at(method.disparities(same.color_aug[:, 0])[0], same.color[:, 0])
        found[type(network).__name__] = method.occlusion_loss(same, depth, poses, mask).item()
    assert found["Blind"] < 1e-5 and found["Brightness"] < 1e-4 and found["Smeared"] > 0.02


def test_occlusion_weighs_more_as_epochs_go_by_and_parts_do_not():
    method = untrained("mdass", config_of("mdass"))
    weights = []
    for epoch in range(10):
        method.begin_epoch(epoch)
        weights.append(method.occlusion_weight)
    assert weights == pytest.approx([0.01, 0.01, 0.02, 0.02, 0.04, 0.04, 0.08, 0.08, 0.16, 0.16])
    assert method.config.segmentation_weight == 0.01


OFF = {"occlusion_weight": 0.0, "segmentation_weight": 0.0}


@pytest.mark.parametrize("name", OFF)
def test_each_term_is_in_the_total_and_teaches_depth(clips, name):
    """With a weight of 0 the term is gone; with one, the total has it, and its gradient reaches depth."""
    term = name.removesuffix("_weight")
    method, batch = evaluated(config_of("mdass", **{**OFF, **FLOW, name: 0.5})), clips.batch(0, 2)
    losses = method.depth_losses(batch)
    assert set(losses) & {"occlusion", "segmentation"} == {term}
    plain = evaluated(config_of("mdass", **OFF, **FLOW)).depth_losses(batch)
    assert not set(plain) & {"occlusion", "segmentation"}
    assert losses["total"].item() == pytest.approx((plain["total"] + 0.5 * losses[term]).item(), rel=1e-5)
    losses[term].backward()
    for part in ("encoder", "depth"):
        assert any(p.grad is not None and p.grad.any() for p in getattr(method.networks["depth"], part).parameters())


def test_parts_come_from_features_that_are_not_trained(tmp_path, caplog):
    method = untrained("mdass", config_of("mdass"))
    assert "features of random weights" in caplog.text
    assert not any(p.requires_grad for p in method.features.parameters()) and not method.features.training
    held = {id(p) for phase in method.phases for group in phase.optimizer.param_groups for p in group["params"]}
    assert not held & {id(p) for p in method.features.parameters()}
    torch.save(method.networks["depth"].encoder.encoder.state_dict(), tmp_path / "resnet18.pth")
    started = untrained("mdass", config_of("mdass", imagenet_weights=tmp_path / "resnet18.pth"))
    assert torch.equal(started.features.encoder.conv1.weight, method.networks["depth"].encoder.encoder.conv1.weight)


@torch.no_grad()
def sensitivity(method, clips):
    """Relative change of held-out depth outside of squares that the picture hides, mean over ten of them a clip."""
    torch.manual_seed(0)
    for network in method.networks.values():
        network.eval()
    changes = []
    for place in range(len(clips)):
        image = clips.clip(0, place).color[:, 0].expand(10, -1, -1, -1)
        hidden = random_squares(torch.ones_like(image[:, 0], dtype=torch.bool), 0.25)
        clean, occluded = (depth_at(method.disparities(seen)[0], image) for seen in (image, image * ~hidden[:, None]))
        changes.append(relative_change(occluded, clean, ~hidden).sum() / (~hidden).sum())
    return float(torch.stack(changes).mean())


@torch.no_grad()
def disagreement(method, clips):
    """Of the held-out sources' parts with the target's, through the depth and motion that were learned."""
    batch = clips.batch(0, len(clips))
    depth = depth_at(method.disparities(batch.color[:, 0])[0], batch.color[:, 0])
    return float(method.segmentation_loss(batch, depth, method.poses(batch), inner(batch.mask[:, 0])))


@pytest.mark.slow
def test_depth_error_falls_and_each_term_leaves_its_mark(tmp_path):
    """Trained with the published weights, and with either term a hundred times as strong beside one without it."""
    found = {}
    for name, terms in {
        "whole": {},
        "neither": OFF,
        "occlusion": {**OFF, "occlusion_weight": 1.0},
        "parts": {**OFF, "segmentation_weight": 1.0},
    }.items():
        config = config_of("mdass", num_epochs=4, batch_size=4, **FLOW, **terms)
        best = train_self_supervised("mdass", config, tmp_path / name)
        clips, method = open_clips(config, tmp_path / name / "clips").validation, untrained("mdass", config)
        at_start = abs_rel(method, TUBE, clips)
        method.networks["depth"].load_state_dict(safetensors.torch.load_file(best / "depth.safetensors"))
        left = abs_rel(method, TUBE, clips) / at_start
        method.networks.load_state_dict(torch.load(tmp_path / name / "checkpoint.pt", weights_only=True)["networks"])
        found[name] = {"left": left, "sensitivity": sensitivity(method, clips), "disagreement": disagreement(method, clips)}
    print(found)
    assert found["whole"]["left"] < 0.85, found
    assert found["occlusion"]["sensitivity"] < 0.8 * found["neither"]["sensitivity"], found
    assert found["parts"]["disagreement"] < found["neither"]["disagreement"], found
