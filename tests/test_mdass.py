"""M-DASS: the square, the terms that it and the parts add, their weights, and that it learns."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import safetensors.torch
import torch
from tiny_training import FLOW, SHORT, TUBE, abs_rel, config_of, untrained
from torch import nn

from recon.data import open_sequence
from recon.geometry.torch_cameras import TorchLens
from recon.losses.consistency import relative_change
from recon.models import model_info, registry
from recon.training.clips import ClipBatch
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
        ReconError,
        match=r"depth\.safetensors, which its authors \(https://arxiv\.org/abs/2504\.17582\) do not publish; `recon train configs",
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


class Wide(nn.Module):
    """A depth network of two layers that looks far around each pixel."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 4, 9, padding=4), nn.Tanh(), nn.Conv2d(4, 1, 9, padding=4))

    def forward(self, image):
        return [torch.sigmoid(self.layers(image))[:, 0, :: 2**scale, :: 2**scale] for scale in range(4)]


def test_depth_learned_with_the_occlusion_term_is_less_changed_by_squares(clips):
    """The same network fitted to a depth map, with the term and without it."""
    batch, found = clips.batch(0, 1), {}
    mask, wanted = inner(batch.mask[:, 0]), batch.color[:, 0].mean(dim=1) * 0.5 + 0.2
    for weight in (0.0, 1.0):
        torch.manual_seed(6)
        method = evaluated(config_of("mdass"))
        method.networks["depth"] = network = Wide()
        poses = [(torch.eye(4)[None], lens) for _, lens in method.poses(batch)]
        optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
        for _ in range(20):
            disparity = method.disparities(batch.color_aug[:, 0])[0]
            loss = (disparity - wanted).abs()[mask].mean()
            if weight > 0:
                loss = loss + weight * method.occlusion_loss(batch, depth_at(disparity, batch.color[:, 0]), poses, mask)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        found[weight] = sensitivity(method, clips)
    assert found[1.0] < 0.7 * found[0.0], found


@torch.no_grad()
def sensitivity(method, clips):
    """Relative change of depth outside of squares that the picture hides, mean over ten of them."""
    torch.manual_seed(0)
    image = clips.clip(0, 3).color[:, 0].expand(10, -1, -1, -1)
    hidden = random_squares(torch.ones_like(image[:, 0], dtype=torch.bool), 0.25)
    clean, occluded = (depth_at(method.disparities(seen)[0], image) for seen in (image, image * ~hidden[:, None]))
    return float(relative_change(occluded, clean, ~hidden).sum() / (~hidden).sum())


def test_parts_pull_depth_towards_the_truth():
    """True motion, and depth that is true but for a factor: the term's slope along the factor points back on either side."""
    sequence = open_sequence(TUBE)
    config = config_of("mdass")
    method, at = evaluated(config), 20
    frames = [at, at - 4, at + 4]
    color = torch.stack([torch.from_numpy(sequence.frames[frame].image()).permute(2, 0, 1).float() / 255 for frame in frames])[None]
    truth = sequence.depth_gt(at)
    mask = torch.from_numpy(truth.valid)[None]
    batch = ClipBatch(
        color, color, mask[:, None].expand(-1, 3, -1, -1), (sequence.camera,), ("tube",), torch.tensor([frames]), torch.tensor([False])
    )
    T = sequence.trajectory_gt.T_world_camera
    poses = [(torch.from_numpy(np.linalg.inv(T[frame]) @ T[at])[None].float(), TorchLens((sequence.camera,))) for frame in frames[1:]]
    slopes = {}
    for factor in (0.6, 1.7):
        scale = torch.tensor(factor, requires_grad=True)
        depth = torch.where(mask, torch.from_numpy(np.where(truth.valid, truth.depth, 1.0))[None].float(), 1.0) * scale
        method.segmentation_loss(batch, depth, poses, inner(mask)).backward()
        slopes[factor] = scale.grad.item()
    assert slopes[0.6] < 0 < slopes[1.7], slopes


@pytest.mark.slow
def test_depth_error_falls(tmp_path):
    config = config_of("mdass", num_epochs=4, batch_size=4, **FLOW)
    best = train_self_supervised("mdass", config, tmp_path)
    clips = open_clips(config, tmp_path / "clips").validation
    method = untrained("mdass", config)
    at_start = abs_rel(method, TUBE, clips)
    method.networks["depth"].load_state_dict(safetensors.torch.load_file(best / "depth.safetensors"))
    assert abs_rel(method, TUBE, clips) < 0.8 * at_start
