"""EndoDAV: its published size, what is trained when, its windows in training and in inference, and that it learns."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import safetensors.torch
import torch
from tiny_training import FLOW, TUBE, abs_rel, config_of, untrained
from torch import nn

from recon.data import open_sequence
from recon.geometry.torch_cameras import TorchLens
from recon.models import VideoDepthModel, registry
from recon.models.adapters import merge
from recon.models.depth_anything import SIZES, DepthAnythingSize, imagenet_normalised
from recon.models.dpt import resized
from recon.models.endodav import EndoDAV, load_video_depth_anything
from recon.models.video_depth_anything import VideoDepthAnything
from recon.models.video_inference import VideoDepth
from recon.models.vit import VitSize
from recon.training.clips import ClipBatch
from recon.training.methods.endodav import triplets
from recon.training.selfsup import TrainingState, open_clips, train_self_supervised
from recon.types import Camera, ReconError

TINY = DepthAnythingSize(VitSize(48, 4, 3, trained_px=70), 32, (16, 24, 32, 64), (0, 1, 2, 3))
VIDEO = {"size": "tiny_video", "grid_rows": 5, "grid_columns": 7, "num_frames": 4, "batch_size": 1, "learn_intrinsics": False}


@pytest.fixture(autouse=True)
def tiny_video(monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setitem(SIZES, "tiny_video", TINY)


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    return open_clips(config_of("endodav", **VIDEO), tmp_path_factory.mktemp("clips")).training


def trained(network):
    return {name for name, parameter in network.named_parameters() if parameter.requires_grad}


def randomised(network):
    """Scales that do something, temporal modules that say something, and a disparity above 0."""
    for name, parameter in network.named_parameters():
        if ".lora_" in name:
            nn.init.uniform_(parameter, 0.7, 1.3)
        elif ".proj_out." in name:
            nn.init.normal_(parameter, std=0.1)
    nn.init.constant_(network.head.scratch.output_conv2[2].bias, 1.0)
    return network.eval()


def test_sizes_are_the_published_ones():
    with torch.device("meta"):
        network = EndoDAV()
    assert sum(p.numel() for p in network.parameters()) == 29_035_137 + 49_600 == registry()["endodav"].parameters
    counts = []
    for temporal in (False, True):
        network.train_part(temporal)
        counts.append(sum(p.numel() for p in network.parameters() if p.requires_grad))
    assert counts == [46_080, 3_520] and sum(counts) == 49_600 == registry()["endodav"].trainable


def test_what_is_trained_when():
    network = EndoDAV(TINY)
    scales = {f"pretrained.blocks.{block}.mlp.fc{layer}.lora_{side}" for block in range(4) for layer in (1, 2) for side in "AB"}
    assert trained(network) == scales
    network.train_part(temporal=True)
    module = "temporal_transformer.transformer_blocks.0.ff.net.2"
    assert trained(network) == {f"head.motion_modules.{place}.{module}.lora_{side}" for place in range(4) for side in "AB"}


def test_gradients_reach_what_is_trained_and_nothing_else():
    network = randomised(EndoDAV(TINY, (2, 3)))
    for temporal in (False, True):
        network.train_part(temporal)
        network.zero_grad()
        sum(output.sum() for output in network(torch.rand(1, 3, 3, 30, 40))).backward()
        assert {name for name, parameter in network.named_parameters() if parameter.grad is not None and parameter.grad.any()} == trained(
            network
        )


def test_it_starts_as_the_video_depth_anything_it_is_made_of(tmp_path):
    original, network = VideoDepthAnything(TINY).eval(), EndoDAV(TINY, (3, 4)).eval()
    nn.init.constant_(original.head.scratch.output_conv2[2].bias, 1.0)
    torch.save(original.state_dict(), tmp_path / "video_depth_anything.pth")
    kept = load_video_depth_anything(network, tmp_path / "video_depth_anything.pth").kept
    assert set(kept) == {name for name in network.state_dict() if ".lora_" in name} and len(kept) == 2 * (8 + 4)
    frames = torch.rand(2, 3, 3, 50, 61)
    with torch.inference_mode():
        found = network(frames)
        seen = imagenet_normalised(resized(frames.flatten(0, 1), (42, 56))).unflatten(0, (2, 3))
        assert torch.allclose(found[0], original(seen), atol=1e-5)
    assert [tuple(output.shape) for output in found] == [(2, 3, 42, 56), (2, 3, 21, 28), (2, 3, 10, 14), (2, 3, 5, 7)]
    # Corner pixels stay in the corners down to the coarsest scale.
    assert torch.allclose(found[3][..., ::4, ::6], found[0][..., ::41, ::55], atol=1e-5)
    state = original.state_dict()
    del state["head.projects.0.bias"]
    torch.save(state, tmp_path / "damaged.pth")
    with pytest.raises(ReconError, match=r"damaged\.pth.*missing head\.projects\.0\.bias"):
        load_video_depth_anything(network, tmp_path / "damaged.pth")


def test_merged_and_unmerged_agree():
    network = randomised(EndoDAV(TINY, (3, 4)))
    frames = torch.rand(1, 4, 3, 42, 56)
    with torch.inference_mode():
        expected = network(frames)[0]
        assert len(merge(network)) == 12
        assert (network(frames)[0] - expected).abs().max() < 1e-5


def test_four_hundred_spatial_steps_and_a_hundred_temporal_ones_in_turn():
    method = untrained("endodav", config_of("endodav", **VIDEO))
    turns = {}
    for step in (0, 399, 400, 499, 500, 899, 900, 999, 1000):
        method.begin_step(step)
        turns[step] = method.is_temporal
        assert all(("motion_modules" in name) == method.is_temporal for name in trained(method.networks["depth"]))
    assert [step for step, temporal in turns.items() if temporal] == [400, 499, 900, 999]
    with pytest.raises(ReconError, match="both 0"):
        untrained("endodav", config_of("endodav", **VIDEO, spatial_steps=0, temporal_steps=0))
    with pytest.raises(ReconError, match="size must be one of"):
        untrained("endodav", config_of("endodav", size="huge"))


def numbered_windows(num_windows, num_frames):
    """Windows whose every frame is painted with its number."""
    camera = Camera("PINHOLE", 96, 64, (80.0, 80.0, 47.5, 31.5))
    numbers = torch.arange(num_windows * num_frames).reshape(num_windows, num_frames)
    color = numbers[:, :, None, None, None].float().expand(-1, -1, 3, 64, 96) / 255
    mask = torch.ones(num_windows, num_frames, 64, 96, dtype=torch.bool)
    return ClipBatch(
        color, color + 0.5, mask, (camera,) * num_windows, tuple("ab"[:num_windows]), numbers, torch.tensor([False, True][:num_windows])
    )


def test_each_inner_frame_has_its_own_neighbours():
    found = triplets(numbered_windows(2, 6))
    expected = [[1, 0, 2], [2, 1, 3], [3, 2, 4], [4, 3, 5], [7, 6, 8], [8, 7, 9], [9, 8, 10], [10, 9, 11]]
    assert found.frame_indices.tolist() == expected
    assert (found.color[:, :, 0, 5, 7] * 255).round().int().tolist() == expected
    assert torch.allclose(found.color_aug, found.color + 0.5) and found.mask.shape == (8, 3, 64, 96)
    assert found.recordings == tuple("aaaabbbb") and found.flipped.tolist() == [False] * 4 + [True] * 4 and len(found.cameras) == 8


def test_an_epoch_sees_as_many_windows_as_lie_end_to_end(clips):
    """What a held-out stretch and its margins leave of 40 frames gives windows of 4 frames and two neighbours, none across the stretch."""
    windows = [clips.clip(epoch, place).frame_indices[0].tolist() for epoch in range(6) for place in range(len(clips))]
    assert all(window == list(range(window[0], window[0] + 6)) for window in windows)
    assert len(clips) == -(-len(clips.clips) // 4)
    assert len({window[0] for window in windows}) > len(clips)  # others in another epoch


def wall_ahead(num_windows, step=1.0):
    """Targets, disparities and poses of a camera that nears a wall by so much a frame; depth is exact."""
    windows = numbered_windows(num_windows, 6)
    targets = triplets(windows)
    depth = torch.tensor([10.0 - frame for frame in (1, 2, 3, 4)] * num_windows)[:, None, None].expand(-1, 64, 96)
    disparity = (1 / depth - 1 / 150) / (10 - 1 / 150)
    poses = []
    for sign in (1, -1):  # the camera before is farther away, so the wall is deeper for it
        pose = torch.eye(4).repeat(len(depth), 1, 1)
        pose[:, 2, 3] = sign * step
        poses.append((pose, TorchLens(targets.cameras)))
    return targets, disparity, poses


def test_depth_that_is_where_its_neighbours_see_it_costs_nothing():
    method = untrained("endodav", config_of("endodav", **VIDEO))
    targets, disparity, poses = wall_ahead(1)
    assert method.projection_loss(targets, [disparity], poses) < 1e-4
    # Without motion each pair of neighbours is a unit apart.
    still = wall_ahead(1, step=0.0)[2]
    assert method.projection_loss(targets, [disparity] * 2, still).item() == pytest.approx(1.0, rel=1e-4)
    # It is an absolute difference: half as deep, half as much.
    shallow = (1 / (0.5 / (disparity * (10 - 1 / 150) + 1 / 150)) - 1 / 150) / (10 - 1 / 150)
    assert method.projection_loss(targets, [shallow], still).item() == pytest.approx(0.5, rel=1e-4)


def test_windows_are_not_compared_with_each_other():
    """The last frame of the first window is nearer to the wall than the first of the second, which is no neighbour of it."""
    method = untrained("endodav", config_of("endodav", **VIDEO))
    targets, disparity, poses = wall_ahead(2)
    assert method.projection_loss(targets, [disparity], poses) < 1e-4


def test_the_projection_loss_counts_in_the_temporal_turn_alone(clips):
    method = untrained("endodav", config_of("endodav", **VIDEO, projection_weight=0.5, **FLOW))
    randomised(method.networks["depth"])
    for network in method.networks.values():
        network.eval()
    batch, totals = clips.batch(0, 1), []
    for step in (0, 400):
        method.begin_step(step)
        losses = method.depth_losses(batch)
        plain = method.synthesis_losses(triplets(batch), method.window_disparities(batch), method.poses(triplets(batch)))["total"]
        totals.append(((losses["total"] - plain) / losses["projection"]).item())
        assert losses["projection"] > 0 and losses["projection"].requires_grad == method.is_temporal
    assert totals == pytest.approx([0.0, 0.5], abs=1e-3)
    losses["projection"].backward()
    assert {name for name, p in method.networks["depth"].named_parameters() if p.grad is not None and p.grad.any()} == trained(
        method.networks["depth"]
    )
    method.config = dataclasses.replace(method.config, projection_weight=0.0)
    assert "projection" not in method.depth_losses(batch)


def test_steps_move_the_scales_whose_turn_it_is(clips):
    state = TrainingState(untrained("endodav", config_of("endodav", **VIDEO, spatial_steps=1, temporal_steps=1, **FLOW)), ())
    network = randomised(state.method.networks["depth"])
    for temporal in (False, True):
        before = {name: value.clone() for name, value in network.state_dict().items()}
        state.train_step(clips.batch(state.step, 1), epoch=0)
        moved = {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}
        assert moved == trained(network) and all(("motion_modules" in name) == temporal for name in moved)


class Numbered(nn.Module):
    """A network whose disparity is the number painted on each frame and a ramp, in another scale and shift for each window."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, frames):
        self.seen.append((frames[0, :, 0, 4, 4] * 255).round().int().tolist())
        ramp = torch.linspace(1, 2, 48).reshape(6, 8)
        number = len(self.seen)
        return [number * (frames[:, :, 0, 0, 0, None, None] * 255 + ramp) + (number - 1) * 0.5]


def test_every_frame_of_a_video_is_given_once_in_the_scale_of_the_first_window():
    model = VideoDepth(Numbered(), (16, 12), "cpu")
    assert isinstance(model, VideoDepthModel)
    camera, asked = Camera("PINHOLE", 32, 24, (30.0, 30.0, 15.5, 11.5)), []

    def frames():
        for number in range(80):
            asked.append(number)
            mask = np.ones((24, 32), bool)
            mask[:, : number % 3 * 4] = False
            yield np.full((24, 32, 3), number, np.uint8), mask

    ramp = np.linspace(1, 2, 48).reshape(6, 8)
    for number, estimate in enumerate(model.infer_video(frames(), camera)):
        expected = 1 / (1 / 150 + (10 - 1 / 150) * (number + ramp))
        expected[:, : number % 3] = 0
        np.testing.assert_allclose(estimate.depth, expected, rtol=1e-4)
        assert ((estimate.sigma > 0) == (estimate.depth > 0)).all()
        assert len(asked) <= number + 54  # the window at hand and the next
    assert number == 79
    windows = model.network.seen
    assert windows[0] == list(range(32)) and windows[1] == [6, 12, *range(24, 54)]
    assert windows[2] == [28, 34, *range(46, 76)] and windows[3] == [50, 56, *range(68, 80), *[79] * 18]


def test_nothing_lies_fifty_times_farther_than_the_nearest():
    class Dark(nn.Module):
        def forward(self, frames):
            disparity = torch.zeros(1, frames.shape[1], 6, 8)
            disparity[..., 0, 0] = 7.0
            return [disparity]

    camera = Camera("PINHOLE", 32, 24, (30.0, 30.0, 15.5, 11.5))
    estimate = VideoDepth(Dark(), (16, 12), "cpu").infer(np.zeros((24, 32, 3), np.uint8), camera, np.ones((24, 32), bool))
    assert estimate.depth.max() / estimate.depth.min() == pytest.approx(50)


def foundation(path, steps=10):
    """Weights of a tiny Video Depth Anything that has learned a little of the depth of other phantoms, from their truth."""
    torch.manual_seed(1)
    network = EndoDAV(TINY, (5, 7))
    own = [parameter.requires_grad_() for name, parameter in network.named_parameters() if ".lora_" not in name]
    for module in network.head.motion_modules:
        nn.init.normal_(module.temporal_transformer.proj_out.weight, std=0.02)
    for block in network.pretrained.blocks:
        # Perceptrons that matter, as those of a network that was trained for long.
        for layer in (block.mlp.fc1, block.mlp.fc2):
            nn.init.normal_(layer.weight, std=3.0 * layer.in_features**-0.5)
    nn.init.constant_(network.head.scratch.output_conv2[2].bias, 0.1)
    pictures, wanted = [], []
    for kind in ("cavity", "relief"):
        sequence = open_sequence(TUBE.replace("tube?seed=3", f"{kind}?seed=5"))
        for frame in sequence.frames:
            truth = sequence.depth_gt(frame.index)
            pictures.append(torch.from_numpy(frame.image()).permute(2, 0, 1).float() / 255)
            wanted.append(torch.from_numpy(0.1 * np.median(truth.depth[truth.valid]) / np.where(truth.valid, truth.depth, np.inf)).float())
    optimizer = torch.optim.Adam(own, lr=1e-3)
    for step in range(steps):
        start = step * 7 % (len(pictures) - 3)
        found = network(torch.stack(pictures[start : start + 4])[None])[0][0]
        target = resized(torch.stack(wanted[start : start + 4])[:, None], found.shape[-2:])[:, 0]
        loss = (found - target).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    state = {name: value for name, value in network.state_dict().items() if ".lora_" not in name}
    torch.save(state, path)


@pytest.mark.slow
def test_depth_error_falls(tmp_path):
    """Scales of a network that knows other scenes, trained on a new one: its held-out depth gets better than it was."""
    foundation(tmp_path / "foundation.pth")
    schedule = {"spatial_steps": 16, "temporal_steps": 4, "num_epochs": 8, "learning_rate": 5e-4, "scales_rate": 40.0}
    windows = {**VIDEO, "num_frames": 2, "batch_size": 2}
    config = config_of("endodav", **{**windows, **FLOW, **schedule}, foundation_weights=tmp_path / "foundation.pth")
    best = train_self_supervised("endodav", config, tmp_path / "net")
    clips = open_clips(config_of("af_sfm"), tmp_path / "clips").validation  # the same stretch, frame by frame
    method = untrained("endodav", config)
    at_start = abs_rel(method, TUBE, clips)
    method.networks["depth"].load_state_dict(safetensors.torch.load_file(best / "depth.safetensors"))
    left = abs_rel(method, TUBE, clips) / at_start
    assert left < 0.9, left
