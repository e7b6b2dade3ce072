"""MiDaS on BEiT gives what Hugging Face's independent port gives, and its files' names are the published ones."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import BeitConfig, DPTConfig, DPTForDepthEstimation

from recon.models.beit import BeitSize, distance_index
from recon.models.midas import Midas, MidasSize, load_midas
from recon.types import ReconError

TINY = MidasSize(BeitSize(48, 4, 3, trained_px=64, layer_scale=0.1), 32, (16, 24, 32, 48), (0, 1, 2, 3))


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def randomised(network: nn.Module) -> nn.Module:
    with torch.no_grad():
        for value in network.parameters():
            value.copy_(torch.randn(value.shape) / max(value[0].numel(), 4) ** 0.5 + (value == 1))
    return network.eval()


def port() -> DPTForDepthEstimation:
    """Hugging Face's MiDaS of our tiny size, with random weights."""
    beit = BeitConfig(
        hidden_size=48, num_hidden_layers=4, num_attention_heads=3, intermediate_size=192, image_size=64, patch_size=16,
        use_absolute_position_embeddings=False, use_relative_position_bias=True, layer_scale_init_value=0.1, use_mean_pooling=True,
        out_features=["stage1", "stage2", "stage3", "stage4"], reshape_hidden_states=False, hidden_act="gelu", layer_norm_eps=1e-6,
    )  # fmt: skip
    config = DPTConfig(
        backbone_config=beit, neck_hidden_sizes=[16, 24, 32, 48], fusion_hidden_size=32, reassemble_factors=[4, 2, 1, 0.5],
        readout_type="project", is_hybrid=False, hidden_size=48,
    )  # fmt: skip
    network = randomised(DPTForDepthEstimation(config))
    nn.init.constant_(network.head.head[4].bias, 8.0)  # so that the ReLU at the end lets most pixels through
    return network


BLOCK = {
    "lambda_1": "gamma_1", "lambda_2": "gamma_2", "attention.q_proj.bias": "attn.q_bias", "attention.v_proj.bias": "attn.v_bias",
    "relative_position_bias.relative_position_bias_table": "attn.relative_position_bias_table",
    **{
        f"{theirs}.{leaf}": f"{ours}.{leaf}"
        for theirs, ours in (
            ("attention.o_proj", "attn.proj"), ("layernorm_before", "norm1"), ("layernorm_after", "norm2"),
            ("mlp.fc1", "mlp.fc1"), ("mlp.fc2", "mlp.fc2"),
        )
        for leaf in ("weight", "bias")
    },
}  # fmt: skip


def published_names(theirs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The port's tensors under the names of MiDaS' own files."""
    start, encoder = "backbone.beit.", "pretrained.model."
    named = {f"{encoder}cls_token": theirs[f"{start}embeddings.cls_token"]}
    for leaf in ("weight", "bias"):
        named[f"{encoder}patch_embed.proj.{leaf}"] = theirs[f"{start}embeddings.patch_embeddings.projection.{leaf}"]
        for level in range(4):
            stage, neck = f"pretrained.act_postprocess{level + 1}", "neck.reassemble_stage"
            named[f"{stage}.0.project.0.{leaf}"] = theirs[f"{neck}.readout_projects.{level}.0.{leaf}"]
            named[f"{stage}.3.{leaf}"] = theirs[f"{neck}.layers.{level}.projection.{leaf}"]
            if level != 2:
                named[f"{stage}.4.{leaf}"] = theirs[f"{neck}.layers.{level}.resize.{leaf}"]
            fusion = f"neck.fusion_stage.layers.{3 - level}"
            named[f"scratch.refinenet{level + 1}.out_conv.{leaf}"] = theirs[f"{fusion}.projection.{leaf}"]
            for unit in (1, 2):
                for conv in (1, 2):
                    named[f"scratch.refinenet{level + 1}.resConfUnit{unit}.conv{conv}.{leaf}"] = theirs[
                        f"{fusion}.residual_layer{unit}.convolution{conv}.{leaf}"
                    ]
        for layer in (0, 2, 4):
            named[f"scratch.output_conv.{layer}.{leaf}"] = theirs[f"head.head.{layer}.{leaf}"]
    for level in range(4):
        named[f"scratch.layer{level + 1}_rn.weight"] = theirs[f"neck.convs.{level}.weight"]
    for block in range(4):
        parts = [theirs[f"{start}layers.{block}.attention.{name}_proj.weight"] for name in "qkv"]
        named[f"{encoder}blocks.{block}.attn.qkv.weight"] = torch.cat(parts)
        named |= {f"{encoder}blocks.{block}.{ours}": theirs[f"{start}layers.{block}.{name}"] for name, ours in BLOCK.items()}
    return named


@pytest.mark.parametrize("size", [(64, 64), (64, 96), (128, 96)])
def test_it_agrees_with_the_port_on_any_grid(tmp_path, size):
    """Also where the tables of positions are resampled; grids are even, for the port pads odd ones otherwise."""
    theirs, ours = port(), Midas(TINY).eval()
    classifier = {"pretrained.model.fc_norm.weight": torch.ones(48), "pretrained.model.head.bias": torch.zeros(1000)}
    index = {"pretrained.model.blocks.0.attn.relative_position_index": torch.zeros(17, 17, dtype=torch.long)}
    torch.save({**published_names(theirs.state_dict()), **classifier, **index}, tmp_path / "midas.pt")
    assert load_midas(ours, tmp_path / "midas.pt").kept == ()
    image = torch.randn(2, 3, *size)
    with torch.inference_mode():
        expected, found = theirs(image).predicted_depth, ours(image)
    assert found.shape == (2, *size) and expected.std() > 0.01 and (expected > 0).float().mean() > 0.5
    assert (found - expected).abs().max() < 1e-4


def test_what_fills_no_patch_is_left_out():
    network = randomised(Midas(TINY))
    image = torch.randn(1, 3, 75, 110)
    with torch.inference_mode():
        assert torch.equal(network(image), network(image[..., :64, :96]))


def test_distances_between_patches():
    index = distance_index(2, 3)
    # Patches row by row behind the class token: 1 is (0, 0), 6 is (1, 2). Tables hold 3 x 5 distances and the class.
    assert index.shape == (7, 7) and index.max() == 17
    assert index[1, 1] == index[6, 6] == 7  # no rows and no columns apart
    assert index[1, 6] == 0 and index[6, 1] == 14 and index[1, 2] == 6 and index[4, 1] == 12
    assert (index[0, 1:] == 15).all() and (index[1:, 0] == 16).all() and index[0, 0] == 17


def test_the_published_size():
    """The published file holds 1,027,048 numbers more: ImageNet's classifier and its norm, which nothing reads."""
    with torch.device("meta"):
        network = Midas()
    assert sum(value.numel() for value in network.parameters()) == 345_014_441 - 1_027_048
    names = network.state_dict()
    assert names["pretrained.model.blocks.23.attn.relative_position_bias_table"].shape == (3972, 16)
    assert names["pretrained.act_postprocess4.4.weight"].shape == (1024, 1024, 3, 3)


def test_another_size_is_refused(tmp_path):
    torch.save(Midas(TINY).state_dict(), tmp_path / "tiny.pt")
    wider = MidasSize(BeitSize(96, 4, 3, trained_px=64), 32, (16, 24, 32, 48), (0, 1, 2, 3))
    with pytest.raises(ReconError, match=r"tiny\.pt: weights do not fit the network: pretrained\.model\.cls_token is \(1, 1, 48\)"):
        load_midas(Midas(wider), tmp_path / "tiny.pt")
