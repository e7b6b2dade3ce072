"""EndoDAC: its published size, what is trained when, and that it starts as the Depth Anything it is made of."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from recon.models.adapters import merge
from recon.models.depth_anything import DepthAnything, DepthAnythingSize
from recon.models.dpt import resized
from recon.models.endodac import ConvNeck, EndoDAC, load_depth_anything
from recon.models.vit import VitSize
from recon.models.weights import load_weights
from recon.types import ReconError

TINY = DepthAnythingSize(VitSize(32, 4, 2, trained_px=42), 8, (8, 12, 16, 20), (0, 1, 2, 3))


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def count(network, trained_only=False):
    return sum(p.numel() for p in network.parameters() if p.requires_grad or not trained_only)


def randomise(network):
    """Numbers that start at 0 (necks, B of the adapters) get values, so that what they do is seen."""
    for name, parameter in network.named_parameters():
        if ".norm3." in name or "lora_B" in name:
            nn.init.normal_(parameter, std=0.3)


def test_sizes_are_the_published_ones():
    with torch.device("meta"):
        network = EndoDAC()
    assert (count(network), count(network, trained_only=True)) == (99_091_748, 1_667_076)
    network.train_part(warm_up=False)
    assert count(network, trained_only=True) == 1_344_612
    network.train_part(warm_up=True)
    assert count(network, trained_only=True) == 1_667_076


def test_names_are_the_published_ones():
    names = set(EndoDAC(TINY).state_dict())
    assert {
        "encoder.cls_token",
        "encoder.mask_token",
        "encoder.blocks.0.mlp.fc1.weight",
        "encoder.blocks.3.mlp.fc2.lora_A",
        "encoder.blocks.3.mlp.fc2.lora_V",
        "encoder.blocks.2.residual_.conv2.weight",
        "encoder.blocks.2.residual_.norm3.bias",
        "depth_head.projects.0.bias",
        "depth_head.scratch.refinenet4.resConfUnit2.conv1.weight",
        "depth_head.conv_depth_1.head.0.weight",
        "depth_head.conv_depth_4.head.2.bias",
        "depth_head.conv_depth_4.head.4.weight",
    } <= names
    assert not any("output_conv" in name or name.startswith("pretrained.") for name in names)


@pytest.mark.parametrize("grid", [(2, 3), (3, 3), (5, 2)])
def test_any_grid_and_any_picture(grid):
    network = EndoDAC(TINY, grid)
    randomise(network)
    with torch.inference_mode():
        outputs = network(torch.rand(2, 3, 50, 61))
    for scale, output in enumerate(outputs):
        assert output.shape == (2, grid[0] * 16 // 2**scale, grid[1] * 16 // 2**scale)
        assert output.min() > 0 and output.max() < 1


def test_the_encoder_sees_colours_as_they_are():
    network = EndoDAC(TINY, (3, 4))
    seen = []
    network.encoder.patch_embed.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    image = torch.rand(1, 3, 30, 40)
    with torch.inference_mode():
        network(image)
    assert torch.equal(seen[0], resized(image, (42, 56)))
    assert torch.allclose(seen[0][..., ::41, ::55], image[..., ::29, ::39])


def test_it_starts_as_the_depth_anything_it_is_made_of(tmp_path):
    original, network = DepthAnything(1, TINY), EndoDAC(TINY, (3, 3))
    torch.save(original.state_dict(), tmp_path / "depth_anything.pth")
    loaded = load_depth_anything(network, tmp_path / "depth_anything.pth")
    assert {name for name in network.state_dict() if any(part in name for part in ("lora_", "residual_", "conv_depth_"))} == set(
        loaded.kept
    )
    image = torch.rand(1, 3, 42, 42)
    with torch.inference_mode():
        expected = original.pretrained(image, TINY.last_blocks)
        necks = {index: network.encoder.blocks[index].residual_ for index in network.neck_blocks}
        found = network.encoder(image, network.blocks, necks)
        for a, b in zip(found, expected, strict=True):
            assert torch.allclose(a, b, atol=1e-5)
        for a, b in zip(network.depth_head.paths(found), original.depth_head.paths(expected), strict=True):
            assert torch.allclose(a, b, atol=1e-5)


def test_its_own_file_loads_and_others_are_refused(tmp_path):
    source, network = EndoDAC(TINY), EndoDAC(TINY)
    randomise(source)
    torch.save({**source.state_dict(), "height": 256}, tmp_path / "depth_model.pth")
    assert load_weights(network, tmp_path / "depth_model.pth").kept == ()
    image = torch.rand(1, 3, 32, 40)
    with torch.inference_mode():
        assert all(torch.equal(a, b) for a, b in zip(source(image), network(image), strict=True))
    state = DepthAnything(1, TINY).state_dict()
    del state["pretrained.blocks.1.norm1.weight"]
    torch.save(state, tmp_path / "damaged.pth")
    with pytest.raises(ReconError, match=r"damaged\.pth.*missing encoder\.blocks\.1\.norm1\.weight"):
        load_depth_anything(network, tmp_path / "damaged.pth")


def test_what_is_trained_when():
    network = EndoDAC(TINY)
    always = {name for name, _ in network.named_parameters() if ".residual_." in name or ".conv_depth_" in name}
    for warm_up, vectors in ((True, ("lora_A", "lora_B")), (False, ("lora_U", "lora_V"))):
        network.train_part(warm_up)
        trained = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
        assert trained == always | {name for name, _ in network.named_parameters() if name.endswith(vectors)}


def test_gradients_reach_what_is_trained_and_nothing_else():
    network = EndoDAC(TINY, (2, 3))
    randomise(network)
    sum(output.sum() for output in network(torch.rand(1, 3, 28, 42))).backward()
    for name, parameter in network.named_parameters():
        assert (parameter.grad is not None and parameter.grad.abs().max() > 0) == parameter.requires_grad, name


def test_merged_and_unmerged_agree():
    network = EndoDAC(TINY, (3, 4))
    randomise(network)
    image = torch.rand(1, 3, 42, 56)
    with torch.inference_mode():
        expected = network(image)
        assert len(merge(network)) == 8
        for merged, unmerged in zip(network(image), expected, strict=True):
            assert (merged - unmerged).abs().max() < 1e-5


def test_a_neck_is_nothing_at_first_and_then_sees_its_neighbours():
    neck = ConvNeck(64)
    patches = torch.randn(1, 64, 5, 7)
    assert torch.equal(neck(patches), patches)
    nn.init.ones_(neck.norm3.weight)
    changed = patches.clone()
    changed[0, :, 2, 3] = torch.randn(64)
    with torch.inference_mode():
        differs = (neck(changed) - neck(patches) - (changed - patches)).abs().amax(dim=1)[0] > 1e-6
    assert differs[1:4, 2:5].any() and differs.sum() == differs[1:4, 2:5].sum()


def test_a_neck_by_its_formula():
    """The reference normalises channels by hand; GELU is the exact one."""
    neck = ConvNeck(64)
    for norm in (neck.norm1, neck.norm2, neck.norm3):
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)

    def normalised(x, norm):
        centred = x - x.mean(1, keepdim=True)
        scaled = centred / (centred.pow(2).mean(1, keepdim=True) + 1e-6).sqrt()
        return scaled * norm.weight[:, None, None] + norm.bias[:, None, None]

    def gelu(x):
        return x * 0.5 * (1 + torch.erf(x / 2**0.5))

    patches = torch.randn(2, 64, 3, 4)
    with torch.inference_mode():
        inside = gelu(normalised(torch.einsum("oi,bihw->bohw", neck.conv1.weight[:, :, 0, 0], patches), neck.norm1))
        inside = gelu(normalised(nn.functional.conv2d(inside, neck.conv2.weight, padding=1), neck.norm2))
        inside = normalised(torch.einsum("oi,bihw->bohw", neck.conv3.weight[:, :, 0, 0], inside), neck.norm3)
        assert torch.allclose(neck(patches), patches + inside, atol=1e-5)
