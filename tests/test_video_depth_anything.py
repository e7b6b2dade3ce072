"""Video Depth Anything: Depth Anything frame by frame until its temporal modules are trained, then attention over time."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from recon.models.depth_anything import SIZES, DepthAnything, DepthAnythingSize
from recon.models.video_depth_anything import TemporalModule, VideoDepthAnything
from recon.models.vit import VitSize
from recon.models.weights import fit_weights
from recon.types import ReconError

TINY = DepthAnythingSize(VitSize(48, 4, 3, trained_px=70), 32, (16, 24, 32, 64), (0, 1, 2, 3))
WIDTH = 32


def randomised(network: nn.Module) -> nn.Module:
    """Also the last layers of the temporal modules, which start at zero."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for value in network.parameters():
            value.copy_(torch.randn(value.shape, generator=generator) / max(value[0].numel(), 4) ** 0.5 + (value == 1))
    return network.eval()


def window(num_frames: int = 5, batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, num_frames, 3, 28, 42, generator=torch.Generator().manual_seed(6))


def frame_by_frame() -> tuple[DepthAnything, VideoDepthAnything]:
    image_network, video_network = randomised(DepthAnything(2, TINY)), VideoDepthAnything(TINY).eval()
    nn.init.constant_(image_network.depth_head.scratch.output_conv2[2].bias, 5.0)
    state = {name.replace("depth_head.", "head."): value for name, value in image_network.state_dict().items()}
    kept = fit_weights(video_network, state, may_miss=["head.motion_modules.*"])
    assert all(name.startswith("head.motion_modules.") for name in kept) and len(kept) == 4 * 28
    return image_network, video_network


def test_untrained_it_is_depth_anything_frame_by_frame():
    image_network, video_network = frame_by_frame()
    frames = window()
    with torch.inference_mode():
        found = video_network(frames)
        expected = torch.stack([image_network(clip) for clip in frames])
    assert found.shape == (2, 5, 28, 42)
    assert expected.std() > 0.01
    assert (found - expected).abs().max() < 1e-5


def test_trained_each_frame_sees_all_of_its_window_and_no_other_window():
    network = frame_by_frame()[1]
    for module in network.head.motion_modules:
        randomised(module)
    frames = window()
    changed = frames.clone()
    changed[0, 4] += 1.0
    with torch.inference_mode():
        difference = (network(frames) - network(changed)).abs().amax(dim=(2, 3))
    assert (difference[0] > 1e-4).all()
    assert (difference[1] < 1e-6).all()


def test_no_gradient_reaches_a_module_before_its_last_layer_has_moved():
    network = TemporalModule(WIDTH)
    inner, last = network.temporal_transformer.proj_in.weight, network.temporal_transformer.proj_out.weight
    frames = torch.randn(1, 3, WIDTH, 2, 2)
    network(frames).square().sum().backward()
    assert inner.grad.abs().max() == 0 and last.grad.abs().max() > 0
    nn.init.normal_(last)
    network(frames).square().sum().backward()
    assert inner.grad.abs().max() > 0


def plain_module(state: dict[str, torch.Tensor], frames: torch.Tensor) -> torch.Tensor:
    """One temporal module in loops over pixels, heads and frames, from the paper's description; (t, c, h, w) in double."""
    state = {name.removeprefix("temporal_transformer."): value.double() for name, value in state.items()}

    def linear(name: str, x: torch.Tensor) -> torch.Tensor:
        return x @ state[f"{name}.weight"].T + state.get(f"{name}.bias", 0.0)

    def normed(name: str, x: torch.Tensor) -> torch.Tensor:
        centred = x - x.mean(dim=-1, keepdim=True)
        return centred / (centred.square().mean(dim=-1, keepdim=True) + 1e-5).sqrt() * state[f"{name}.weight"] + state[f"{name}.bias"]

    def attended(name: str, x: torch.Tensor) -> torch.Tensor:
        place = torch.tensor([[math.sin(t / 10000 ** (c / WIDTH)) if c % 2 == 0 else math.cos(t / 10000 ** ((c - 1) / WIDTH))
                               for c in range(WIDTH)] for t in range(len(x))]).double()  # fmt: skip
        query, key, value = (linear(f"{name}.{part}", x + place) for part in ("to_q", "to_k", "to_v"))
        heads = []
        for head in range(8):
            part = slice(head * WIDTH // 8, (head + 1) * WIDTH // 8)
            heads.append(torch.softmax(query[:, part] @ key[:, part].T / math.sqrt(WIDTH / 8), dim=1) @ value[:, part])
        return linear(f"{name}.to_out.0", torch.cat(heads, dim=1))

    def gelu(x: torch.Tensor) -> torch.Tensor:
        return x * (1 + torch.erf(x / math.sqrt(2))) / 2

    # Groups of one channel: WIDTH is the number of groups.
    centred = frames - frames.mean(dim=(2, 3), keepdim=True)
    grouped = centred / (centred.square().mean(dim=(2, 3), keepdim=True) + 1e-6).sqrt()
    grouped = grouped * state["norm.weight"][:, None, None] + state["norm.bias"][:, None, None]
    block, output = "transformer_blocks.0", frames.clone()
    for row in range(frames.shape[2]):
        for column in range(frames.shape[3]):
            x = linear("proj_in", grouped[:, :, row, column])
            for i in (0, 1):
                x = x + attended(f"{block}.attention_blocks.{i}", normed(f"{block}.norms.{i}", x))
            values, gate = linear(f"{block}.ff.net.0.proj", normed(f"{block}.ff_norm", x)).chunk(2, dim=1)
            x = x + linear(f"{block}.ff.net.2", values * gelu(gate))
            output[:, :, row, column] += linear("proj_out", x)
    return output


def test_a_module_does_what_plain_loops_do():
    network = randomised(TemporalModule(WIDTH))
    frames = torch.randn(2, 4, WIDTH, 2, 3, generator=torch.Generator().manual_seed(7))
    with torch.inference_mode():
        found = network(frames)
    for clip, result in zip(frames, found, strict=True):
        expected = plain_module(network.state_dict(), clip.double())
        assert (expected - clip).std() > 0.1
        assert (result - expected).abs().max() < 1e-4


@pytest.mark.parametrize(("size", "parameters"), [("small", 29_035_137), ("base", 114_441_409)])
def test_sizes_are_the_published_ones(size, parameters):
    with torch.device("meta"):
        network = VideoDepthAnything(SIZES[size])
    assert sum(value.numel() for value in network.parameters()) == parameters


def test_names_are_those_of_the_published_files():
    with torch.device("meta"):
        names = set(VideoDepthAnything(TINY).state_dict())
    block = "transformer_blocks.0"
    attention = ["to_q.weight", "to_k.weight", "to_v.weight", "to_out.0.weight", "to_out.0.bias", "pos_encoder.pe"]
    modules = ["norm", "proj_in", "proj_out", f"{block}.norms.0", f"{block}.norms.1", f"{block}.ff.net.0.proj", f"{block}.ff.net.2"]
    expected = [f"{module}.{leaf}" for module in [*modules, f"{block}.ff_norm"] for leaf in ("weight", "bias")]
    expected += [f"{block}.attention_blocks.{i}.{leaf}" for i in (0, 1) for leaf in attention]
    temporal = {f"head.motion_modules.{k}.temporal_transformer.{name}" for k in range(4) for name in expected}
    assert {name for name in names if "motion_modules" in name} == temporal
    with torch.device("meta"):
        frame = set(DepthAnything(2, TINY).state_dict())
    assert names - temporal == {name.replace("depth_head.", "head.") for name in frame}


def test_a_window_too_long_is_refused():
    with pytest.raises(ReconError, match=r"window of 33 frames: .*at most 32"):
        VideoDepthAnything(TINY)(torch.zeros(1, 33, 3, 14, 14))
