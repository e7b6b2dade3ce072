"""Lite-Mono: its published size and names, its attention and positions against plain loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from recon.models.litemono import CrossCovarianceAttention, DropPath, FourierPositions, LiteMono, LiteMonoDecoder
from recon.models.monodepth2 import load_parts
from recon.types import ReconError


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def count(network):
    return sum(parameter.numel() for parameter in network.parameters())


def test_sizes_are_the_published_ones():
    network = LiteMono()
    assert (count(network.encoder), count(network.depth), count(network)) == (2_848_120, 226_627, 3_074_747)


def published_names():
    """Of all parameters of the encoder, written out from the authors' state dict."""
    names = [
        f"downsample_layers.0.{place}.{part}" for place in range(3) for part in ("conv.weight", "bn_gelu.bn.weight", "bn_gelu.bn.bias")
    ]
    names += ["downsample_layers.1.0.conv.weight", "downsample_layers.2.0.conv.weight", "stem2.0.conv.weight"]
    shared = ["gamma", "norm.weight", "norm.bias", "pwconv1.weight", "pwconv1.bias", "pwconv2.weight", "pwconv2.bias"]
    attention = ["gamma_xca", "norm_xca.weight", "norm_xca.bias", "xca.temperature"]
    attention += [f"xca.{layer}.{part}" for layer in ("qkv", "proj") for part in ("weight", "bias")]
    for stage, blocks in enumerate((3, 3, 9)):
        for block in range(blocks):
            names += [f"stages.{stage}.{block}.{part}" for part in [*shared, "ddwconv.conv.weight", "bn1.weight", "bn1.bias"]]
        names += [f"stages.{stage}.{blocks}.{part}" for part in [*shared, *attention]]
    return [*names, "stages.0.3.pos_embd.token_projection.weight", "stages.0.3.pos_embd.token_projection.bias"]


def test_names_are_the_published_ones():
    network = LiteMono()
    assert sorted(name for name, _ in network.encoder.named_parameters()) == sorted(published_names())
    blocks = {f"decoder.{place}.conv.conv.{part}" for place in range(6) for part in ("weight", "bias")}
    heads = {f"decoder.{place}.conv.{part}" for place in range(6, 9) for part in ("weight", "bias")}
    assert set(network.depth.state_dict()) == blocks | heads
    dilations = [[block.ddwconv.conv.dilation[0] for block in stage[:-1]] for stage in network.encoder.stages]
    assert dilations == [[1, 2, 3], [1, 2, 3], [1, 2, 3, 1, 2, 3, 2, 4, 6]]


def test_the_authors_files_load(tmp_path):
    source, loaded = LiteMono(), LiteMono()
    torch.save({**source.encoder.state_dict(), "height": 256, "width": 320, "use_stereo": False}, tmp_path / "encoder.pth")
    torch.save(source.depth.state_dict(), tmp_path / "depth.pth")
    load_parts(loaded, tmp_path)
    image = torch.rand(1, 3, 32, 48)
    with torch.inference_mode():
        assert all(torch.equal(a, b) for a, b in zip(source.eval()(image), loaded.eval()(image), strict=True))


def test_disparities_at_three_scales():
    with torch.inference_mode():
        outputs = LiteMono().eval()(torch.rand(2, 3, 48, 64))
    assert [tuple(output.shape) for output in outputs] == [(2, 48, 64), (2, 24, 32), (2, 12, 16)]
    assert all(output.min() > 0 and output.max() < 1 for output in outputs)
    with pytest.raises(ReconError, match="50x48 px: both sides must be multiples of 16"):
        LiteMono()(torch.zeros(1, 3, 48, 50))


def test_enlarging_keeps_the_corners():
    x = torch.rand(1, 1, 3, 4)
    large = LiteMonoDecoder().enlarged(x)
    assert torch.allclose(large[..., ::5, ::7], x[..., ::2, ::3])


def test_attention_among_channels():
    attention = CrossCovarianceAttention(16)
    attention.temperature.data.uniform_(0.5, 2.0)
    tokens = torch.randn(1, 5, 16)
    with torch.inference_mode():
        found = attention(tokens)[0].numpy()
        qkv = attention.qkv(tokens)[0].numpy()
    mixed = np.zeros((5, 16))
    for head in range(8):
        mine = [qkv[:, 16 * part + 2 * head : 16 * part + 2 * head + 2] for part in range(3)]
        query, key = (values / np.linalg.norm(values, axis=0) for values in mine[:2])
        for a in range(2):
            likeness = np.array([query[:, a] @ key[:, b] for b in range(2)]) * attention.temperature[head].item()
            weights = np.exp(likeness) / np.exp(likeness).sum()
            mixed[:, 2 * head + a] = mine[2] @ weights
    expected = mixed @ attention.proj.weight.detach().numpy().T + attention.proj.bias.detach().numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_positions_are_sines_and_cosines():
    positions = FourierPositions(64)
    torch.nn.init.dirac_(positions.token_projection.weight)
    torch.nn.init.zeros_(positions.token_projection.bias)
    with torch.inference_mode():
        found = positions(3, 4)[0].numpy()
    for row in range(3):
        for column in range(4):
            for half, (place, number) in enumerate(((row + 1, 3), (column + 1, 4))):
                for channel in range(32):
                    phase = 2 * math.pi * place / number / 10000 ** (2 * (channel // 2) / 32)
                    expected = math.sin(phase) if channel % 2 == 0 else math.cos(phase)
                    assert found[32 * half + channel, row, column] == pytest.approx(expected, abs=1e-4)


def test_dropped_paths_keep_their_mean():
    drop = DropPath(0.25)
    x = torch.ones(4000, 1, 1, 1)
    dropped = drop(x)
    assert dropped.unique().tolist() == pytest.approx([0, 4 / 3])
    assert dropped.mean().item() == pytest.approx(1, abs=0.04)
    assert torch.equal(drop.eval()(x), x)


def test_all_that_is_applied_learns():
    network = LiteMono().eval()
    sum((output**2).sum() for output in network(torch.rand(1, 3, 64, 64))).backward()
    idle = {name for name, parameter in network.named_parameters() if parameter.grad is None}
    # The norm of the dilated blocks is stored by the authors and never applied.
    assert idle == {
        f"encoder.stages.{stage}.{block}.norm.{part}"
        for stage, number in enumerate((3, 3, 9))
        for block in range(number)
        for part in ("weight", "bias")
    }
