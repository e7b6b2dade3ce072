"""DINOv2 and Depth Anything give what Hugging Face's independent ports give, and are as large as published."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation, Dinov2Backbone, Dinov2Config

from recon.models.depth_anything import SIZES, DepthAnything, DepthAnythingSize, imagenet_normalised, network_size
from recon.models.key_maps import original_names
from recon.models.vit import VIT_SIZES, DinoVisionTransformer, VitSize
from recon.models.weights import fit_weights
from recon.types import ReconError

TINY = DepthAnythingSize(VitSize(48, 6, 3, trained_px=70), 32, (16, 24, 32, 48), (0, 1, 3, 5))
BLOCKS = {1: (2, 3, 4, 5), 2: TINY.spread_blocks}


def randomised(network: nn.Module) -> nn.Module:
    """Weights of a size that every layer matters; freshly initialised ones leave some residual branches at nothing."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for value in network.parameters():
            value.copy_(torch.randn(value.shape, generator=generator) * (1.0 / max(value[0].numel(), 4) ** 0.5) + (value == 1))
    return network.eval()


def port_config(blocks: tuple[int, ...], **options: bool) -> Dinov2Config:
    vit = TINY.vit
    stages = [block + 1 for block in blocks]
    return Dinov2Config(
        hidden_size=vit.width, num_hidden_layers=vit.num_blocks, num_attention_heads=vit.num_heads, image_size=vit.trained_px,
        patch_size=14, out_indices=stages, apply_layernorm=True, **options,
    )  # fmt: skip


def port(version: int, max_depth_m: int | None) -> DepthAnythingForDepthEstimation:
    """Hugging Face's Depth Anything of our tiny size, with random weights."""
    config = DepthAnythingConfig(
        backbone_config=port_config(BLOCKS[version], reshape_hidden_states=False), reassemble_hidden_size=TINY.vit.width,
        neck_hidden_sizes=list(TINY.channels), fusion_hidden_size=TINY.features, head_hidden_size=32,
        depth_estimation_type="relative" if max_depth_m is None else "metric", max_depth=max_depth_m or 1,
    )  # fmt: skip
    network = randomised(DepthAnythingForDepthEstimation(config))
    if max_depth_m is None:
        nn.init.constant_(network.head.conv3.bias, 8.0)  # so that the ReLU at the end lets most pixels through
    return network


def picture(height: int = 70, width: int = 70) -> torch.Tensor:
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(6))


def names_on_the_hub(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The names that transformers 4 wrote into the files of the hub."""
    old = {"q_proj": "attention.query", "k_proj": "attention.key", "v_proj": "attention.value", "o_proj": "output.dense"}
    renamed = {}
    for name, value in state.items():
        for new, theirs in old.items():
            name = name.replace(f"attention.{new}", f"attention.{theirs}")
        renamed[name] = value
    return renamed


@pytest.mark.parametrize("layout", [dict, names_on_the_hub], ids=["transformers 5", "hub"])
@pytest.mark.parametrize(("version", "max_depth"), [(1, None), (2, None), (2, 20)])
def test_depth_anything_agrees_with_the_port(version, max_depth, layout):
    theirs = port(version, max_depth)
    ours = DepthAnything(version, TINY, None if max_depth is None else float(max_depth)).eval()
    assert fit_weights(ours, original_names(layout(theirs.state_dict()))) == ()
    with torch.inference_mode():
        expected = theirs(picture()).predicted_depth
        found = ours(picture())
    assert found.shape == (2, 70, 70)
    assert expected.std() > 0.01 and (expected > 0).float().mean() > 0.5
    assert (found - expected).abs().max() < 1e-4


def test_versions_differ_by_the_blocks_they_read():
    first, second = randomised(DepthAnything(1, TINY)), DepthAnything(2, TINY)
    nn.init.constant_(first.depth_head.scratch.output_conv2[2].bias, 8.0)
    second.load_state_dict(first.state_dict())
    assert (first.blocks, second.blocks) == (BLOCKS[1], BLOCKS[2])
    with torch.inference_mode():
        assert (first(picture()) - second(picture())).abs().max() > 0.01


def test_the_encoder_agrees_with_the_port_and_nearly_so_on_another_grid():
    theirs = randomised(Dinov2Backbone(port_config(BLOCKS[2])))
    ours = DinoVisionTransformer(TINY.vit).eval()
    fit_weights(ours, original_names(theirs.state_dict()))
    with torch.inference_mode():
        for found, expected in zip(ours(picture(), BLOCKS[2]), theirs(picture()).feature_maps, strict=True):
            assert (found - expected).abs().max() < 1e-5
        # The authors' offset of 0.1 patches in resampling the position embedding, which the port does not have.
        found, expected = ours(picture(140, 112), BLOCKS[2])[-1], theirs(picture(140, 112)).feature_maps[-1]
    assert found.shape == expected.shape == (2, 48, 10, 8)
    assert 1e-4 < (found - expected).abs().max() < 0.05 * expected.std()


def test_positions_are_resampled_with_the_authors_offset():
    network = DinoVisionTransformer(VitSize(4, 1, 1))
    row, column = torch.meshgrid(torch.arange(37.0), torch.arange(37.0), indexing="ij")
    with torch.no_grad():
        network.pos_embed[0, 1:, 0], network.pos_embed[0, 1:, 1] = row.flatten(), column.flatten()
    grid = network._position_embedding(16, 20)[0, 1:].unflatten(0, (16, 20))
    # Bicubic interpolation as torch does it keeps straight lines to 0.05 away from the border; without the offset the last
    # of them would be off by 0.19.
    inner = slice(2, -2)
    expected_row = ((torch.arange(16) + 0.5) * 37 / 16.1 - 0.5)[inner]
    expected_column = ((torch.arange(20) + 0.5) * 37 / 20.1 - 0.5)[inner]
    torch.testing.assert_close(grid[inner, 5, 0], expected_row, rtol=0.0, atol=0.05)
    torch.testing.assert_close(grid[5, inner, 1], expected_column, rtol=0.0, atol=0.05)
    assert network._position_embedding(37, 37) is network.pos_embed


def test_a_neck_sees_the_patches_of_any_grid_after_its_block_alone():
    network = randomised(DinoVisionTransformer(TINY.vit))
    seen = []

    def neck(features: torch.Tensor) -> torch.Tensor:
        seen.append(features.shape)
        return features + features.roll(1, dims=1)

    with torch.inference_mode():
        for height, width in ((70, 70), (42, 84)):
            image = picture(height, width)
            plain = network(image, (0, 1, 2))
            assert all(torch.equal(a, b) for a, b in zip(plain, network(image, (0, 1, 2), {1: lambda x: x}), strict=True))
            changed = network(image, (0, 1, 2), {1: neck})
            assert torch.equal(plain[0], changed[0])
            assert not torch.allclose(plain[1], changed[1], atol=1e-3)
            assert not torch.allclose(plain[2], changed[2], atol=1e-3)
    assert seen == [(2, 48, 5, 5), (2, 48, 3, 6)]


@pytest.mark.parametrize(("size", "parameters"), [("small", 24_785_089), ("base", 97_470_785), ("large", 335_315_649)])
def test_sizes_are_the_published_ones(size, parameters):
    with torch.device("meta"):
        network = DepthAnything(2, SIZES[size])
    assert sum(value.numel() for value in network.parameters()) == parameters
    assert network.pretrained.size == VIT_SIZES[size]


def test_names_are_those_of_the_published_files():
    with torch.device("meta"):
        names = set(DepthAnything(2, SIZES["small"], 20.0).state_dict())
    pair = ("weight", "bias")
    expected = {f"pretrained.{name}" for name in ("cls_token", "pos_embed", "mask_token")}
    expected |= {f"pretrained.{module}.{leaf}" for module in ("patch_embed.proj", "norm") for leaf in pair}
    for block in range(12):
        modules = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
        expected |= {f"pretrained.blocks.{block}.{module}.{leaf}" for module in modules for leaf in pair}
        expected |= {f"pretrained.blocks.{block}.ls{place}.gamma" for place in (1, 2)}
    head = [f"projects.{i}" for i in range(4)] + [f"resize_layers.{i}" for i in (0, 1, 3)]
    head += [f"scratch.{name}" for name in ("output_conv1", "output_conv2.0", "output_conv2.2")]
    for block in (1, 2, 3, 4):
        units = [f"resConfUnit{unit}.conv{conv}" for unit in (1, 2) for conv in (1, 2)]
        head += [f"scratch.refinenet{block}.{name}" for name in ("out_conv", *units)]
        expected.add(f"depth_head.scratch.layer{block}_rn.weight")
    assert names == expected | {f"depth_head.{module}.{leaf}" for module in head for leaf in pair}


def test_a_file_of_another_size_or_version_of_the_head_is_refused():
    state = DepthAnything(2, TINY).state_dict()
    with pytest.raises(ReconError, match=r"missing .* more; pretrained.cls_token is \(1, 1, 48\), expected \(1, 1, 384\)"):
        fit_weights(DepthAnything(2, SIZES["small"]), state)
    encoder = {name.removeprefix("pretrained."): value for name, value in state.items() if name.startswith("pretrained.")}
    with pytest.raises(ReconError, match=r"missing pretrained.cls_token.* more; unknown cls_token"):
        fit_weights(DepthAnything(2, TINY), encoder)
    assert fit_weights(DepthAnything(2, TINY).pretrained, encoder) == ()


def test_pictures_and_settings_that_cannot_be_are_named():
    with pytest.raises(ReconError, match="image of 75x70 px: both sides must be multiples of 14"):
        DepthAnything(2, TINY)(picture(70, 75))
    for version, max_depth in ((1, 20.0), (2, 0.0)):
        with pytest.raises(ReconError, match="only V2 is metric"):
            DepthAnything(version, TINY, max_depth)


@pytest.mark.parametrize(
    ("picture_size", "size"), [((518, 518), (518, 518)), ((640, 480), (686, 518)), ((1920, 1080), (924, 518)), ((480, 640), (518, 686))]
)
def test_pictures_are_seen_at_the_authors_size(picture_size, size):
    assert network_size(*picture_size) == size


def test_colour_is_centred_as_on_imagenet():
    grey = torch.tensor([0.485, 0.456, 0.406])[:, None, None].expand(3, 2, 2)
    assert torch.equal(imagenet_normalised(grey), torch.zeros(3, 2, 2))
    torch.testing.assert_close(
        imagenet_normalised(torch.ones(1, 3, 1, 1)).flatten(), torch.tensor([2.2489, 2.4286, 2.6400]), rtol=0.0, atol=1e-4
    )
