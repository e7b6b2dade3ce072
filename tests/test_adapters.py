"""Adapters: nothing at the start, the published formula when trained, and nothing lost when merged."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from recon.models import adapters
from recon.models.adapters import AdaptedLinear, attach, merge, train_adapters
from recon.models.weights import fit_weights
from recon.types import ReconError


class Network(nn.Module):
    """Two blocks of the form that is adapted, one layer without a bias, and one that must be left alone."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.ModuleDict({"fc1": nn.Linear(6, 10), "fc2": nn.Linear(10, 6, bias=False)}) for _ in range(2)])
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
        self.last = nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = x + block["fc2"](torch.relu(block["fc1"](x)))
        return self.last(x + self.attention(x, x, x)[0])


@pytest.fixture
def network():
    torch.manual_seed(0)
    return Network()


def randomise_adapters(network):
    for name, parameter in network.named_parameters():
        if ".lora_" in name:
            nn.init.normal_(parameter)


@pytest.mark.parametrize("kind", adapters.KINDS)
def test_an_adapter_is_nothing_at_first_and_keeps_all_names(network, kind):
    before = {name: value.clone() for name, value in network.state_dict().items()}
    x = torch.rand(2, 4, 6)
    expected = network(x)
    assert attach(network, "blocks.*.fc[12]", kind) == ["blocks.0.fc1", "blocks.0.fc2", "blocks.1.fc1", "blocks.1.fc2"]
    assert torch.allclose(network(x), expected, atol=1e-6)
    after = network.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    kept = fit_weights(network, before, may_miss=("*.lora_?",))
    assert set(kept) == set(after) - set(before) and len(kept) == 4 * {"lora": 2, "dvlora": 4, "rvlora": 4, "ssb": 2}[kind]


@pytest.mark.parametrize("kind", adapters.KINDS)
def test_merged_and_unmerged_agree(network, kind):
    names = set(network.state_dict())
    attach(network, "blocks.*", kind, rank=3, scale=0.5)
    randomise_adapters(network)
    x = torch.rand(2, 4, 6)
    with torch.inference_mode():
        expected = network(x)
        assert merge(network) == ["blocks.0.fc1", "blocks.0.fc2", "blocks.1.fc1", "blocks.1.fc2"]
        assert (network(x) - expected).abs().max() < 1e-5
    assert set(network.state_dict()) == names
    assert not any(isinstance(module, AdaptedLinear) for module in network.modules())
    assert merge(network) == []


@pytest.mark.parametrize("kind", adapters.KINDS)
def test_the_formula_by_plain_loops(network, kind):
    attach(network, "last", kind, rank=2, scale=0.25)
    randomise_adapters(network)
    layer = network.last
    value = {name: parameter.detach().double().numpy() for name, parameter in layer.named_parameters()}
    expected = value["bias"].copy()
    x = np.linspace(-1, 1, 6)
    for o in range(3):
        for i in range(6):
            if kind == "ssb":
                expected[o] += value["lora_B"][o, 0] * value["weight"][o, i] * value["lora_A"][i, 0] * x[i]
                continue
            change = 0.0
            for r in range(2):
                vectors = value["lora_V"][o, 0] * value["lora_U"][r, 0] if "lora_V" in value else 1.0
                change += value["lora_B"][o, r] * value["lora_A"][r, i] * vectors
            expected[o] += (value["weight"][o, i] + 0.25 * change) * x[i]
    with torch.inference_mode():
        np.testing.assert_allclose(layer(torch.tensor(x, dtype=torch.float32)).numpy(), expected, atol=1e-5)


def trained(network):
    return {name.rpartition(".")[2] for name, parameter in network.named_parameters() if parameter.requires_grad}


def test_the_warm_up_switches_what_is_trained(network):
    attach(network, "blocks.*", "dvlora")
    train_adapters(network, warm_up=True)
    assert trained(network) == {"lora_A", "lora_B"}
    train_adapters(network, warm_up=False)
    assert trained(network) == {"lora_U", "lora_V"}
    randomise_adapters(network)
    network(torch.rand(1, 4, 6)).sum().backward()
    for name, parameter in network.named_parameters():
        assert (parameter.grad is not None) == name.endswith(("lora_U", "lora_V")), name


def test_plain_lora_trains_the_same_all_the_time(network):
    attach(network, "last", "lora")
    for warm_up in (True, False):
        train_adapters(network, warm_up)
        assert trained(network) == {"lora_A", "lora_B"}


def test_the_start_is_the_published_one(network):
    network.last = nn.Linear(600, 400)
    attach(network, "last", "dvlora", rank=8)
    layer = network.last
    assert layer.lora_B.abs().max() == 0
    # kaiming_uniform(a = sqrt(5)) is uniform within 1 / sqrt(inputs); U and V have one input.
    assert 0.95 < layer.lora_A.abs().max().item() * 600**0.5 <= 1
    for vector in (layer.lora_U, layer.lora_V):
        assert vector.abs().max() <= 1
    assert layer.lora_V.std().item() == pytest.approx(3**-0.5, rel=0.1)
    assert layer.lora_U.shape == (8, 1) and layer.lora_V.shape == (400, 1)


def test_a_layer_whose_call_is_bypassed_is_not_adapted(network):
    """nn.MultiheadAttention multiplies by its output layer's weight without calling the layer."""
    with pytest.raises(ReconError, match="found no Linear layer of that name"):
        attach(network, "attention.*", "lora")
    assert attach(network, "*", "lora")[-1] == "last" and type(network.attention.out_proj) is type(nn.MultiheadAttention(6, 2).out_proj)


def test_wrong_names_are_told(network):
    with pytest.raises(ReconError, match="'vera' is not known; known: lora, dvlora, rvlora, ssb"):
        attach(network, "last", "vera")
    with pytest.raises(ReconError, match=r"'head\.\*': found no Linear layer.*blocks\.0\.fc1"):
        attach(network, "head.*", "lora")
    attach(network, "last", "lora")
    with pytest.raises(ReconError, match="'last': found no Linear layer"):
        attach(network, "last", "lora")


def test_another_kind_needs_only_the_weight_it_amounts_to(network, monkeypatch):
    class Scaled(AdaptedLinear):
        warm_up = tuned = ("factor",)

        def __init__(self, linear: nn.Linear, rank: int, scale: float) -> None:
            super().__init__(linear, rank, scale)
            self.factor = nn.Parameter(torch.ones(linear.out_features, 1))

        def changed_weight(self) -> torch.Tensor:
            return self.factor * self.weight

    monkeypatch.setitem(adapters.KINDS, "scaled", Scaled)
    attach(network, "last", "scaled")
    network.last.factor.data[:] = torch.tensor([[1.0], [2.0], [0.0]])
    train_adapters(network, warm_up=False)
    assert trained(network) == {"factor"}
    x = torch.rand(1, 4, 6)
    expected = network(x)
    weight = network.last.weight.clone()
    merge(network)
    assert torch.allclose(network(x), expected, atol=1e-6)
    assert torch.equal(network.last.weight[1], 2 * weight[1]) and network.last.weight[2].abs().max() == 0
