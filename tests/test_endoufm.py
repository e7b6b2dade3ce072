"""EndoUFM's depth network: its published size and names, what is trained, and what each part is for."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from recon.models.adapters import RVLoRALinear, merge
from recon.models.depth_anything import SIZES, DepthAnything, DepthAnythingSize
from recon.models.endodac import EndoDAC, load_depth_anything
from recon.models.endoufm import CBAM, EndoUFM, Parts, ResDSC
from recon.models.inference import load_endoufm
from recon.models.vit import VitSize
from recon.models.weights import load_weights
from recon.types import ReconError

TINY = DepthAnythingSize(VitSize(32, 4, 2, trained_px=42), 8, (8, 12, 16, 20), (0, 1, 2, 3))
EVERY_PART = ("rvlora", "res_dsc", "cbam")


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def count(network, trained_only=False):
    return sum(p.numel() for p in network.parameters() if p.requires_grad or not trained_only)


def randomise(network):
    """Numbers that start at 0 (Res-DSC's last norm, B of the adapters) get values, so that what they do is seen."""
    for name, parameter in network.named_parameters():
        if ".norm4." in name or "lora_B" in name:
            nn.init.normal_(parameter, std=0.3)
    return network


def test_sizes_are_the_published_ones():
    with torch.device("meta"):
        network = EndoUFM()
    assert (count(network), count(network, trained_only=True)) == (99_096_368, 1_671_696)

    def part(*words):
        return sum(p.numel() for name, p in network.named_parameters() if p.requires_grad and any(word in name for word in words))

    assert (part("lora_A"), part("lora_B"), part("residual_"), part("dual_attention_")) == (184_320, 184_320, 638_592, 295_308)
    assert part("conv_depth_") == 369_156 and part("lora_U", "lora_V") == 0


def test_names_are_the_published_ones():
    names = set(EndoUFM(TINY).state_dict())
    assert {
        "encoder.mask_token",
        "encoder.blocks.0.mlp.fc1.lora_A",
        "encoder.blocks.3.mlp.fc2.lora_V",
        "encoder.blocks.1.residual_.conv4.weight",
        "encoder.blocks.1.residual_.norm4.bias",
        "encoder.blocks.2.dual_attention_.ca.se.0.weight",
        "encoder.blocks.2.dual_attention_.ca.se.2.weight",
        "encoder.blocks.2.dual_attention_.sa.conv.bias",
        "depth_head.conv_depth_4.head.4.weight",
    } <= names
    assert not any(name.startswith("pretrained.") for name in names)


def test_vectors_stand_still_and_matrices_are_trained_throughout():
    network = EndoUFM(TINY)
    for warm_up in (True, False):
        network.train_part(warm_up)
        trained = {name for name, p in network.named_parameters() if p.requires_grad}
        expected = ("lora_A", "lora_B", ".residual_.", ".dual_attention_.", ".conv_depth_")
        assert trained == {name for name in network.state_dict() if any(part in name for part in expected)}
    layers = [module for module in network.modules() if isinstance(module, RVLoRALinear)]
    assert len(layers) == 8
    for layer in layers:
        assert layer.lora_U.abs().max() <= 1 and layer.lora_V.abs().max() <= 1 and layer.lora_B.abs().max() == 0
    assert not torch.equal(layers[0].lora_V, layers[2].lora_V)  # every layer draws its own


def test_rvlora_by_its_formula():
    layer = RVLoRALinear(nn.Linear(6, 5), 4, 1.0)
    nn.init.normal_(layer.lora_B)
    x = torch.randn(3, 6)
    change = (layer.lora_B * layer.lora_V) @ (layer.lora_A * layer.lora_U)
    torch.testing.assert_close(layer(x), x @ (layer.weight + change).T + layer.bias)


def test_it_starts_as_the_depth_anything_it_is_made_of(tmp_path):
    original, network = DepthAnything(1, TINY), EndoUFM(TINY, (3, 3))
    torch.save(original.state_dict(), tmp_path / "depth_anything.pth")
    loaded = load_depth_anything(network, tmp_path / "depth_anything.pth")
    added = ("lora_", "residual_", "dual_attention_", "conv_depth")
    assert {name for name in network.state_dict() if any(part in name for part in added)} == set(loaded.kept)
    image = torch.rand(1, 3, 42, 42)
    with torch.inference_mode():
        expected, found = original.pretrained(image, TINY.last_blocks), network.encoder(image, network.blocks, network.necks())
        for a, b in zip(found, expected, strict=True):
            assert torch.allclose(a, b, atol=1e-5)
        for a, b in zip(network.depth_head.paths(found), original.depth_head.paths(expected), strict=True):
            assert torch.allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("start", ["", "module.encoder.", "backbone."])
def test_names_that_do_not_fit_are_an_error_and_never_a_random_transformer(tmp_path, start):
    """The published code passes over every name that it does not find, which is all of them."""
    state = {name.replace("pretrained.", start): value for name, value in DepthAnything(1, TINY).state_dict().items()}
    torch.save(state, tmp_path / "strange.pth")
    network = EndoUFM(TINY)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(ReconError, match=r"strange\.pth: weights do not fit the network: missing encoder\.cls_token"):
        load_depth_anything(network, tmp_path / "strange.pth")
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_its_own_file_loads_and_endodacs_does_not(tmp_path):
    source, network = randomise(EndoUFM(TINY)), EndoUFM(TINY)
    torch.save(source.state_dict(), tmp_path / "depth_model.pth")
    assert load_weights(network, tmp_path / "depth_model.pth").kept == ()
    image = torch.rand(1, 3, 32, 40)
    with torch.inference_mode():
        assert all(torch.equal(a, b) for a, b in zip(source(image), network(image), strict=True))
    torch.save(EndoDAC(TINY).state_dict(), tmp_path / "endodac.pth")
    with pytest.raises(ReconError, match=r"missing encoder\.blocks\.0\.(residual_|dual_attention_)"):
        load_weights(network, tmp_path / "endodac.pth")


def test_the_authors_file_runs(tmp_path, monkeypatch):
    monkeypatch.setitem(SIZES, "base", TINY)
    torch.save(randomise(EndoUFM(TINY)).state_dict(), tmp_path / "depth_model.pth")
    assert load_endoufm("cpu", tmp_path).reading.size(640, 480) == (320, 256)


def test_gradients_reach_what_is_trained_and_nothing_else():
    network = randomise(EndoUFM(TINY, (4, 4)))
    sum(output.sum() for output in network(torch.rand(1, 3, 56, 56))).backward()
    for name, parameter in network.named_parameters():
        assert (parameter.grad is not None and parameter.grad.abs().max() > 0) == parameter.requires_grad, name


def test_merged_and_unmerged_agree():
    network = randomise(EndoUFM(TINY, (3, 4)))
    image = torch.rand(1, 3, 42, 56)
    with torch.inference_mode():
        expected = network(image)
        assert len(merge(network)) == 8
        assert all((a - b).abs().max() < 1e-5 for a, b in zip(network(image), expected, strict=True))


@pytest.mark.parametrize("part", EVERY_PART)
def test_every_part_changes_the_outcome(part):
    """With the same numbers everywhere else: what a part does once it has been trained."""
    whole = randomise(EndoUFM(TINY, (3, 4)))
    without = EndoUFM(TINY, (3, 4), Parts(**{name: name != part for name in EVERY_PART}))
    state = whole.state_dict()
    without.load_state_dict({name: state[name] for name in without.state_dict()})
    assert count(without, trained_only=True) < count(whole, trained_only=True)
    image = torch.rand(1, 3, 42, 56)
    with torch.inference_mode():
        assert (whole(image)[0] - without(image)[0]).abs().max() > 1e-4


def test_without_any_part_it_is_depth_anything_with_heads():
    network = EndoUFM(TINY, (3, 3), Parts(False, False, False))
    assert network.necks() == {}
    assert all("conv_depth_" in name for name, p in network.named_parameters() if p.requires_grad)


def test_res_dsc_is_nothing_at_first_and_then_sees_its_neighbours_channel_by_channel():
    block = ResDSC(64)
    patches = torch.randn(1, 64, 5, 7)
    assert block(patches).abs().max() == 0
    nn.init.ones_(block.norm4.weight)
    changed = patches.clone()
    changed[0, :, 2, 3] = torch.randn(64)
    with torch.inference_mode():
        differs = (block(changed) - block(patches)).abs().amax(dim=1)[0] > 1e-6
    assert differs[1:4, 2:5].any() and differs.sum() == differs[1:4, 2:5].sum()
    assert block.conv2.groups == 8 and sum(p.numel() for p in block.parameters()) == 64 * 8 * 2 + 8 * 9 + 64 + 2 * (3 * 8 + 64)


def test_cbam_by_its_formula():
    block = CBAM(32)
    x = torch.randn(2, 32, 4, 5)

    def perceptron(v):
        return torch.relu(v @ block.ca.se[0].weight[:, :, 0, 0].T) @ block.ca.se[2].weight[:, :, 0, 0].T

    with torch.inference_mode():
        share = torch.sigmoid(perceptron(x.amax(dim=(2, 3))) + perceptron(x.mean(dim=(2, 3))))[:, :, None, None]
        attended = x * share
        places = torch.stack([attended.amax(dim=1), attended.mean(dim=1)], dim=1)
        places = torch.sigmoid(nn.functional.conv2d(places, block.sa.conv.weight, block.sa.conv.bias, padding=3))
        torch.testing.assert_close(block(x), x + attended * places)
