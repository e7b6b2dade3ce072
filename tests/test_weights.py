"""Weights from files: genuine layouts load, and what is damaged, dangerous or another network's is refused by name."""

from __future__ import annotations

import hashlib
import os
import random

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from recon.models import model_info
from recon.models.key_maps import original_names
from recon.models.weights import check_kind, fit_weights, load_weights, read_checkpoint, save_halved, sha256, training_facts
from recon.types import ReconError


def small_network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))


def state_dict() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return small_network().state_dict()


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert list(found) == list(expected)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"model": state, "optimizer": {"lr": 0.1}, "epoch": 3},
        lambda state: {"epoch": 3, "state_dict": {f"module.{name}": value for name, value in state.items()}},
        lambda state: {**state, "height": 256, "width": 320, "use_stereo": False},
    ],
    ids=["bare", "beside an optimiser", "DataParallel", "monodepth2's numbers"],
)
def test_what_training_scripts_save_is_read(tmp_path, wrap):
    state = state_dict()
    torch.save(wrap(state), tmp_path / "weights.pth")
    assert_same(read_checkpoint(tmp_path / "weights.pth"), state)


def test_both_file_kinds_load_with_their_checksum_and_in_the_networks_precision(tmp_path):
    state = state_dict()
    torch.save(state, tmp_path / "weights.pt")
    save_file({name: value.half() if value.is_floating_point() else value for name, value in state.items()}, tmp_path / "half.safetensors")
    for name, tolerance in (("weights.pt", 0.0), ("half.safetensors", 1e-3)):
        network = small_network()
        loaded = load_weights(network, tmp_path / name)
        assert loaded.sha256 == hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()
        assert loaded.kept == ()
        for key, value in network.state_dict().items():
            assert value.dtype == state[key].dtype
            torch.testing.assert_close(value, state[key], rtol=0.0, atol=tolerance)


def test_the_checksum_follows_a_file_that_changes(tmp_path):
    path = tmp_path / "weights.pth"
    torch.save({"a": torch.zeros(3)}, path)
    first = sha256(path)
    torch.save({"a": torch.ones(300)}, path)
    assert sha256(path) != first
    assert sha256(path) == hashlib.sha256(path.read_bytes()).hexdigest()


class Code:
    """Unpickled without care, it would leave a file behind."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_file_is_named_and_not_run(tmp_path, zipped):
    torch.save({"a": Code(str(tmp_path / "ran"))}, tmp_path / "evil.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(ReconError, match=r"evil.pth hold code \((posix|nt).mkdir\), which is never run"):
        read_checkpoint(tmp_path / "evil.pth")
    assert not (tmp_path / "ran").exists()


def test_a_whole_pickled_network_is_refused(tmp_path):
    torch.save(small_network(), tmp_path / "network.pth")
    with pytest.raises(ReconError, match=r"hold code \(torch.nn.modules.container.Sequential\).*state_dict"):
        read_checkpoint(tmp_path / "network.pth")


@pytest.mark.filterwarnings("ignore:'torch.load' received a zip file", "ignore:.*torch.jit", "ignore:`torch.jit")
def test_a_compiled_network_is_refused(tmp_path):
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), tmp_path / "compiled.pt")
    with pytest.raises(ReconError, match=r"hold code \(TorchScript\)"):
        read_checkpoint(tmp_path / "compiled.pt")


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
@pytest.mark.parametrize("damage", [lambda whole: whole[: len(whole) // 2], lambda whole: b"", lambda whole: b"<html>404</html>"])
def test_a_damaged_file_is_named(tmp_path, name, damage):
    path = tmp_path / name
    (save_file if path.suffix == ".safetensors" else torch.save)(state_dict(), path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ReconError, match=f"{name} cannot be read: .*get") as raised:
        read_checkpoint(path)
    assert raised.value.exit_code == 2


@pytest.mark.parametrize("zipped", [True, False])
def test_files_under_the_other_kinds_name_are_told_so(tmp_path, zipped):
    torch.save(state_dict(), tmp_path / "a.safetensors", _use_new_zipfile_serialization=zipped)
    save_file(state_dict(), tmp_path / "b.pth")
    for read in (read_checkpoint, check_kind):
        with pytest.raises(ReconError, match=r"a\.safetensors were written by torch.*rename the file to a\.pth"):
            read(tmp_path / "a.safetensors")
        with pytest.raises(ReconError, match=r"b\.pth are a safetensors file.*rename it to b\.safetensors"):
            read(tmp_path / "b.pth")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_damaged_file_is_found_before_it_is_needed(tmp_path, suffix):
    path = tmp_path / f"network{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(state_dict(), path)
    known = model_info("monodepth2")
    assert len(known.checksum(path)) == 64
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ReconError, match=r"network\..* cannot be read"):
        known.checksum(path)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("zipped", [True, False])
def test_any_damage_is_either_harmless_or_named(tmp_path, zipped):
    path = tmp_path / "weights.pth"
    torch.save(state_dict(), path, _use_new_zipfile_serialization=zipped)
    whole, draw, refused = path.read_bytes(), random.Random(1), 0
    for _ in range(200):
        damaged = bytearray(whole)
        damaged[draw.randrange(1000)] = draw.randrange(256)
        path.write_bytes(damaged)
        try:
            read_checkpoint(path)
        except ReconError:
            refused += 1
    assert refused > 50


@pytest.mark.parametrize(
    ("stored", "says"),
    [
        ([torch.zeros(1)], "hold a list, expected a state dict"),
        ({"epoch": 3}, "hold no tensor"),
        ({0: torch.zeros(1)}, r"no named tensors \(0\)"),
        ({"a": torch.zeros(1), "history": [1, 2]}, r"entries that are no named tensors \(history\)"),
    ],
)
def test_a_file_without_a_state_dict_says_what_it_holds(tmp_path, stored, says):
    torch.save(stored, tmp_path / "weights.pth")
    with pytest.raises(ReconError, match=says):
        read_checkpoint(tmp_path / "weights.pth")


def test_a_folder_and_nothing_are_named(tmp_path):
    for path, says in ((tmp_path, "are a folder, expected one file"), (tmp_path / "nowhere.pth", "are missing")):
        with pytest.raises(ReconError, match=says):
            load_weights(small_network(), path)
        with pytest.raises(ReconError, match="cannot be read"):
            read_checkpoint(path)


def test_only_what_may_miss_or_be_ignored_does_and_a_refused_file_changes_nothing(tmp_path):
    state = state_dict()
    del state["0.bias"]
    state["head.bias"] = torch.zeros(2)
    torch.save(state, tmp_path / "weights.pth")
    network = small_network()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(ReconError, match=r"weights.pth: weights do not fit .*missing 0.bias; unknown head.bias\. Are"):
        load_weights(network, tmp_path / "weights.pth")
    with pytest.raises(ReconError, match=r"fit the network: missing 0.bias\. Are"):
        load_weights(network, tmp_path / "weights.pth", may_ignore=["head.*"])
    assert_same(network.state_dict(), before)
    loaded = load_weights(network, tmp_path / "weights.pth", may_miss=["*.bias"], may_ignore=["head.*"])
    assert loaded.kept == ("0.bias",)
    assert torch.equal(network[0].bias, before["0.bias"])
    assert torch.equal(network[0].weight, state["0.weight"])


def test_another_shape_is_never_allowed():
    state = state_dict()
    state["0.weight"] = torch.zeros(5, 3)
    with pytest.raises(ReconError, match=r"0.weight is \(5, 3\), expected \(2, 3\)"):
        fit_weights(small_network(), state, may_miss=["*"], may_ignore=["*"])


def hub_layout() -> dict[str, torch.Tensor]:
    state = {"backbone.embeddings.cls_token": torch.zeros(1, 1, 4)}
    for place, part in enumerate(("query", "key", "value")):
        state[f"backbone.encoder.layer.11.attention.attention.{part}.weight"] = torch.full((4, 4), float(place))
    return state


def test_large_statistics_survive_half_precision(tmp_path):
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    network[1].running_var.fill_(2e5)
    save_halved(network, tmp_path / "own.safetensors", {"method": "student"})
    kept = read_checkpoint(tmp_path / "own.safetensors")
    assert kept["1.running_var"].tolist() == [2e5] * 4 and kept["0.weight"].dtype == torch.float16
    assert training_facts(tmp_path / "own.safetensors") == {"method": "student"}
    load_weights(network, tmp_path / "own.safetensors")


def test_infinite_numbers_are_refused():
    """They would load, and silence a channel or the network."""
    network = nn.BatchNorm2d(4)
    broken = {**network.state_dict(), "running_var": torch.tensor([1.0, torch.inf, 1.0, 1.0])}
    with pytest.raises(ReconError, match="infinite numbers or none: running_var"):
        fit_weights(network, broken)
    assert network.running_var.tolist() == [1.0] * 4


def test_names_of_the_hubs_files_are_joined_in_order():
    renamed = original_names({**hub_layout(), "backbone.encoder.layer.11.attention.output.dense.bias": torch.ones(4)})
    assert set(renamed) == {"pretrained.cls_token", "pretrained.blocks.11.attn.qkv.weight", "pretrained.blocks.11.attn.proj.bias"}
    expected = torch.arange(3.0).repeat_interleave(4)[:, None].expand(12, 4)
    assert torch.equal(renamed["pretrained.blocks.11.attn.qkv.weight"], expected)


def test_original_and_unknown_names_stay_as_they_are():
    original = {"pretrained.cls_token": torch.zeros(1), "depth_head.projects.0.bias": torch.zeros(2)}
    assert_same(original_names(original), original)
    assert "backbone.strange.weight" in original_names({**hub_layout(), "backbone.strange.weight": torch.zeros(1)})


def test_incomplete_and_doubled_attention_is_refused():
    with pytest.raises(ReconError, match=r"lack the key of 'pretrained.blocks.11.attn.qkv.weight'"):
        original_names({name: value for name, value in hub_layout().items() if ".key." not in name})
    with pytest.raises(ReconError, match="twice"):
        original_names({**hub_layout(), "backbone.encoder.layer.11.attention.q_proj.weight": torch.zeros(4, 4)})
