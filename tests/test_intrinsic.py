"""The second foundation model of EndoUFM: SAM's encoder with its files, albedo and light, segments and what they are made by."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import SamConfig, SamModel, SamVisionConfig

from recon.data import open_sequence
from recon.image.superpixels import superpixels
from recon.models import sam
from recon.models.depth_anything import SIZES, DepthAnythingSize
from recon.models.intrinsic import Decomposer, LightAdjustment
from recon.models.sam import SAM_SIZES, SamFeatures, SamSize, load_sam
from recon.models.sam_segments import SamSegmenter, distinct, painted, point_grid, stability
from recon.models.vit import VitSize
from recon.types import ReconError

TINY = SamSize(32, 4, 2, 64, 2, (1, 3))
PYRAMID = DepthAnythingSize(VitSize(48, 4, 3, 70), 16, (8, 12, 16, 20), (0, 1, 2, 3))


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def vision_config() -> SamVisionConfig:
    return SamVisionConfig(
        hidden_size=32, num_hidden_layers=4, num_attention_heads=2, mlp_dim=128, image_size=64, window_size=2, global_attn_indexes=[1, 3],
        output_channels=32, num_pos_feats=16,
    )  # fmt: skip


def original_file(path, whole: SamModel):
    """The encoder's tensors as SAM's and MedSAM's own files name them, beside what else they hold."""
    state = {}
    for name, value in whole.vision_encoder.state_dict().items():
        name = name.replace("patch_embed.projection", "patch_embed.proj").replace("layers.", "blocks.").replace(".layer_norm", ".norm")
        for theirs, ours in (("0", "conv1"), ("1", "norm1"), ("2", "conv2"), ("3", "norm2")):
            name = name.replace(f"neck.{ours}", f"neck.{theirs}") if name.startswith("neck.") else name
        state[f"image_encoder.{name}"] = value
    state |= {"prompt_encoder.no_mask_embed.weight": torch.zeros(1, 32), "mask_decoder.iou_token.weight": torch.zeros(1, 32)}
    torch.save(state, path)


def randomised_sam() -> SamModel:
    whole = SamModel(SamConfig(vision_config=vision_config().to_dict())).eval()
    for parameter in whole.vision_encoder.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return whole


@pytest.mark.parametrize("layout", ["original", "hugging face"])
def test_sams_files_load_and_give_what_sam_gives(tmp_path, layout):
    whole, ours = randomised_sam(), SamFeatures(TINY).eval()
    path = tmp_path / "sam.pth"
    if layout == "original":
        original_file(path, whole)
    else:
        torch.save(whole.state_dict(), path)
    assert all(".lora_" in name for name in load_sam(ours, path).kept)
    image = torch.rand(2, 3, 64, 64)
    with torch.inference_mode():
        found = ours(image, (5, 7))
        shown = torch.nn.functional.interpolate(image, (70, 98), mode="bilinear", align_corners=True)
        shown = torch.nn.functional.interpolate(shown, (64, 64), mode="bilinear", align_corners=True)
        expected = whole.vision_encoder(shown, output_hidden_states=True).hidden_states[-4:]
    assert len(found) == 4
    for ours_, theirs in zip(found, expected, strict=True):
        on_grid = torch.nn.functional.interpolate(theirs.permute(0, 3, 1, 2), (5, 7), mode="bilinear", align_corners=True)
        torch.testing.assert_close(ours_, on_grid, atol=1e-5, rtol=1e-4)


def test_adapters_are_on_the_last_three_blocks_alone():
    network = SamFeatures(TINY)
    trained = {name for name, p in network.named_parameters() if p.requires_grad}
    layers = [f"layers.{index}.mlp.lin{number}" for index in (1, 2, 3) for number in (1, 2)]
    assert trained == {f"{layer}.lora_{letter}" for layer in layers for letter in "AB"}


def test_another_networks_file_is_refused(tmp_path):
    torch.save({"blocks.0.norm1.weight": torch.zeros(7), "cls_token": torch.zeros(1)}, tmp_path / "dino.pth")
    with pytest.raises(ReconError, match=r"dino\.pth: weights do not fit the network: missing pos_embed.*unknown cls_token"):
        load_sam(SamFeatures(TINY), tmp_path / "dino.pth")


def test_without_the_package_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(sam, "find_spec", lambda name: None)
    with pytest.raises(ReconError, match=r"pip install 'endorecon\[foundation\]'"):
        SamFeatures(TINY)


def test_the_published_size():
    assert SAM_SIZES["base"] == SamSize(768, 12, 12, 1024, 14, (2, 5, 8, 11))
    with torch.device("meta"):
        network = Decomposer(SAM_SIZES["base"], (16, 20), SIZES["base"])
    adapters = sum(p.numel() for name, p in network.encoder.named_parameters() if p.requires_grad)
    assert adapters == 3 * 2 * 4 * (768 + 3072)
    assert network.decompose_head.conv_albedo.conv1.weight.shape == (16, 128, 3, 3)
    assert network.decompose_head.conv_light.conv3.weight.shape == (1, 32, 1, 1)


@pytest.mark.parametrize("size", [(40, 56), (64, 96), (33, 47)])
def test_parts_have_the_pictures_size_and_range(size):
    network = Decomposer(TINY, (5, 7), PYRAMID)
    image = torch.rand(2, 3, *size)
    parts = network(image)
    assert parts.albedo.shape == (2, 3, *size) and parts.light.shape == (2, 1, *size)
    assert all(part.min() >= 0 and part.max() <= 1 for part in parts)
    torch.testing.assert_close(parts.picture()[:, 2], parts.albedo[:, 2] * parts.light[:, 0])
    trained = {name for name, p in network.named_parameters() if p.requires_grad}
    assert {"decompose_head.projects.0.weight", "decompose_head.scratch.refinenet1.out_conv.weight"} <= trained


def test_light_changes_within_bounds():
    change = LightAdjustment()(torch.rand(2, 3, 24, 32))
    assert change.shape == (2, 1, 24, 32) and change.abs().max() < 1


def test_superpixels_of_a_board_follow_its_colours():
    board = np.kron(np.indices((4, 5)).sum(axis=0) % 2, np.ones((20, 20), dtype=int))
    image = (board[..., None] * [200, 40, 40] + 30).astype(np.uint8)
    labels = superpixels(image, 20)
    for label in np.unique(labels):
        colours = board[labels == label]
        assert max(colours.mean(), 1 - colours.mean()) > 0.95
    assert np.array_equal(labels, superpixels(image, 20))


def test_superpixels_are_about_as_many_as_asked_for_and_compact():
    image = open_sequence("phantom:tube?seed=3&frames=2&width=160&height=128").frames[0].image()
    labels = superpixels(image)
    used = np.unique(labels)
    assert 80 <= len(used) <= 120 and labels.max() <= 255
    v, u = np.indices(labels.shape)
    spread = [np.hypot(v[labels == k].std(), u[labels == k].std()) for k in used]
    assert np.median(spread) < 12


def masks_of(*boxes):
    found = torch.zeros(len(boxes), 20, 30, dtype=torch.bool)
    for mask, (top, bottom, left, right) in zip(found, boxes, strict=True):
        mask[top:bottom, left:right] = True
    return found


def test_masks_that_are_nearly_the_same_leave_the_surest():
    masks = masks_of((0, 10, 0, 10), (0, 10, 0, 9), (0, 5, 0, 10), (3, 3, 3, 3), (12, 20, 20, 30))
    kept = distinct(masks, torch.tensor([0.90, 0.95, 0.99, 0.999, 0.89]))
    assert [mask.sum().item() for mask in kept] == [50, 90, 80]


def test_small_segments_lie_on_large_ones():
    labels = painted(masks_of((2, 4, 2, 4), (0, 10, 0, 10)))
    assert labels[0, 0] == 1 and labels[3, 3] == 2 and labels[15, 15] == 0


def test_a_mask_is_stable_where_its_edge_is_sharp():
    ramp = torch.linspace(-10, 10, 201)[None, None, :].expand(1, 5, 201)
    assert stability(torch.cat([ramp, 100 * ramp])).tolist() == pytest.approx([90 / 110, 1.0], abs=0.02)


def test_points_are_spread_over_the_picture():
    points = point_grid((64, 40), 4)
    assert points.shape == (16, 2)
    assert points[0].tolist() == [8, 5] and points[1].tolist() == [24, 5] and points[-1].tolist() == [56, 35]


def test_sam_labels_a_picture(tmp_path, monkeypatch):
    """With random weights nothing is sure, so the bounds are let down: sizes, order and repetition are seen, not segments."""
    config = SamConfig(
        vision_config=vision_config().to_dict(),
        prompt_encoder_config={"hidden_size": 32, "image_size": 64, "image_embedding_size": 4, "mask_input_channels": 4},
        mask_decoder_config={"hidden_size": 32, "mlp_dim": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "iou_head_hidden_dim": 32},
    )
    torch.save(SamModel(config).state_dict(), tmp_path / "sam.pth")
    segmenter = SamSegmenter(tmp_path / "sam.pth", config=config)
    image = np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)
    assert segmenter(image).max() == 0
    monkeypatch.setattr("recon.models.sam_segments.MIN_CONFIDENCE", -10.0)
    monkeypatch.setattr("recon.models.sam_segments.MIN_STABILITY", 0.0)
    labels = segmenter(image)
    assert labels.shape == (40, 60) and 0 < labels.max() <= 255
    assert np.array_equal(labels, segmenter(image))
