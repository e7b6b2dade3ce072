"""Instrument finders: masks against rendered truth, nothing where no instrument is, SAM's prompts and weights, what the stage says."""

from __future__ import annotations

import json
import logging
import re
from dataclasses import replace
from functools import lru_cache

import cv2
import numpy as np
import pytest
import torch
from layouts import save
from transformers import SamConfig, SamModel

from recon.data.phantom.instruments import shapes
from recon.data.phantom.noise import random_noise
from recon.data.phantom.randomize import free_distance
from recon.data.phantom.render import Tool, render, trace
from recon.data.phantom.scene import Material, Scene
from recon.data.phantom.sequence import PhantomSpec, phantom_camera, phantom_path, phantom_scene
from recon.data.phantom.shading import Imaging
from recon.image import metal
from recon.io.atomic import write_json
from recon.io.masks import read_mask, write_mask
from recon.models import sam
from recon.models.instruments import InstrumentFinder, finder_info, finders, load_instrument_finder
from recon.models.metal_finder import MetalFinder
from recon.models.sam_finder import SamFinder, box_around, points_in
from recon.models.sam_promptable import as_medsam_sees, promptable_sam, whole_names
from recon.report.summary import instrument_notes
from recon.types import ReconError
from stages import camera, frames, masks

STEEL = Material((0.3, 0.3, 0.31), 0.1, 6.0, 0.0, grain=0.0, bump=0.0, gloss=2.0, shininess=60.0)
BLACK = Material((0.02, 0.02, 0.02), 0.05, 6.0, 0.0, grain=0.0, bump=0.0, gloss=1.5, shininess=40.0)
NUM_FRAMES = 5


@lru_cache(maxsize=16)
def recording(seed: int, with_tool: bool, white_balance: tuple[float, float, float] = (1.0, 1.0, 1.0)) -> tuple[np.ndarray, np.ndarray]:
    """Frames (n, h, w, 3) of a colon, with a shaft that goes to and fro or without, and where the shaft truly is (n, h, w)."""
    spec = PhantomSpec("tube", seed, NUM_FRAMES, 240, 200, lens="pinhole", fov_deg=80.0, step_mm=0.4)
    lens, poses, scene, rng = phantom_camera(spec), phantom_path(spec), phantom_scene(spec), np.random.default_rng(seed)
    imaging = Imaging(white_balance=white_balance)
    distance = free_distance(scene, poses[0], clearance_mm=0.1)
    shaft, tip = shapes(rng, "probe", distance)
    images, truths = [], []
    for index, pose in enumerate(poses):
        shift = 0.03 * distance * np.sin(1.3 * index) * np.array([1.0, -0.6, 0.2])
        moved = tuple(replace(surface, vertices=surface.vertices + shift) for surface in (shaft, *tip))
        materials = (STEEL if seed % 2 else BLACK,) * len(moved)
        tool = Tool(Scene(moved, materials, np.eye(4)[None], random_noise(np.random.default_rng(0))), False) if with_tool else None
        images.append(render(scene, lens, pose, imaging, rng, tool).image)
        truths.append(trace(scene, lens, pose, imaging.lamp_offset_mm, False, tool).on_tool)
    return np.array(images), np.array(truths)


def calm(num: int = NUM_FRAMES) -> np.ndarray:
    """Frames (n, 200, 240, 3) of one still picture of dull tissue."""
    rng = np.random.default_rng(0)
    texture = sum(cv2.resize(rng.normal(size=(n, n)), (240, 200), interpolation=cv2.INTER_CUBIC) for n in (4, 16, 48))
    image = np.clip((0.7 + 0.08 * texture)[..., None] * (220.0, 105.0, 90.0), 0, 255).astype(np.uint8)
    return np.repeat(image[None], num, axis=0)


def found_in(images: np.ndarray, scope: np.ndarray | None = None) -> np.ndarray:
    scope = np.ones(images.shape[1:3], bool) if scope is None else scope
    return np.array(list(MetalFinder().find(iter(images), scope, iter(images))))


@pytest.mark.parametrize("seed", [2, 3, 6, 7])
def test_shafts_are_found_and_tissue_is_left(seed):
    images, truth = recording(seed, True)
    found = found_in(images)
    assert (found & truth).sum() > 0.75 * (found | truth).sum()
    assert (found & truth).sum() > 0.95 * found.sum()


@pytest.mark.parametrize("seed", [2, 3, 6, 7])
def test_nothing_is_found_where_no_instrument_is(seed):
    assert found_in(recording(seed, False)[0]).mean() < 0.001


@pytest.mark.parametrize("gains", [(1.2, 1.0, 0.9), (0.85, 1.0, 1.15)])
def test_a_shifted_white_balance_is_borne(gains):
    images, truth = recording(3, True, gains)
    found = found_in(images)
    assert (found & truth).sum() > 0.7 * (found | truth).sum()
    assert found_in(recording(3, False, gains)[0]).mean() < 0.001


def test_what_is_not_joined_to_the_rim_is_no_instrument():
    """Neither a highlight nor the end of a shaft that floats: the same grey bar counts once it enters from outside."""
    images = calm()
    floating, entering = images.copy(), images.copy()
    floating[:, 60:90, 60:180] = (150, 150, 150)
    entering[:, 60:90, :150] = (150, 150, 150)
    assert not found_in(floating).any()
    bar = np.zeros(images.shape[1:3], bool)
    bar[60:90, :150] = True
    found = found_in(entering)
    assert all((mask & bar).sum() > 0.85 * (mask | bar).sum() for mask in found)


def test_a_thing_seen_in_one_frame_of_many_does_not_count():
    images = calm()
    images[2, 60:90, :150] = (150, 150, 150)
    assert not found_in(images).any()
    assert found_in(images[2:3]).any(), "a single picture is judged by its look alone"


def test_a_scopes_border_is_a_rim_too():
    images = calm()
    v, u = np.mgrid[: images.shape[1], : images.shape[2]]
    scope = np.hypot(u - 120.0, v - 100.0) < 95.0
    images[:, 60:90, :150] = (150, 150, 150)
    images[:, ~scope] = 0
    found = found_in(images, scope)
    bar = scope & (v >= 60) & (v < 90) & (u < 150)
    assert all((mask & bar).sum() > 0.8 * (mask | bar).sum() for mask in found)
    assert not (found & ~scope).any()


def test_where_tissue_is_grey_nothing_is_said():
    images = np.repeat(recording(3, True)[0].mean(axis=3, keepdims=True), 3, axis=3).astype(np.uint8)
    assert not found_in(images).any()
    assert not found_in(np.zeros_like(images)).any()


def test_motion_is_told_apart_from_the_tissues():
    rng = np.random.default_rng(0)
    texture = cv2.resize(rng.integers(0, 255, (60, 75, 3), dtype=np.uint8), (300, 240), interpolation=cv2.INTER_CUBIC)
    patch = np.zeros((240, 300), bool)
    patch[80:160, 100:180] = True
    before, scope = metal.look_at(texture, np.ones((240, 300), bool)), np.ones((240, 300), bool)
    all_moved = np.roll(texture, 3, axis=1)
    own = np.where(patch[..., None], np.roll(texture, 4, axis=0), texture)
    assert metal.excess_motion(metal.look_at(all_moved, scope), before, patch) < 0.5
    assert metal.excess_motion(metal.look_at(own, scope), before, patch) > 3.0


@pytest.mark.parametrize("length", [1, 2, 4, 5, 9, 10, 23])
def test_every_frame_gets_its_own_mask(length):
    """Whatever the number of frames before and after: a bar that grows by two pixels a frame."""
    images = calm(length)
    for k, image in enumerate(images):
        image[60:90, : 110 + 2 * k] = (150, 150, 150)
    reach = found_in(images)[:, 75].sum(axis=1)
    np.testing.assert_allclose(reach, 110 + 2 * np.arange(length), atol=4)


def test_the_registry_says_what_each_finder_needs():
    assert list(finders()) == ["metal", "sam", "medsam"]
    assert isinstance(load_instrument_finder("metal"), InstrumentFinder)
    assert finder_info("metal").checksum(None) == ""
    with pytest.raises(ReconError, match="'gold' is not known; known: metal, sam, medsam"):
        finder_info("gold")
    with pytest.raises(ReconError, match=r"'medsam' needs its weights: set masks\.instrument_weights=PATH.*medsam_vit_b\.pth"):
        load_instrument_finder("medsam")


@pytest.fixture
def tiny(tmp_path):
    """A folder as Hugging Face stores a model, with a SAM of random weights."""
    torch.manual_seed(0)
    config = SamConfig(
        vision_config={
            "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "mlp_dim": 32, "image_size": 64, "window_size": 2,
            "global_attn_indexes": [1], "output_channels": 16, "num_pos_feats": 8,
        },
        prompt_encoder_config={"hidden_size": 16, "image_size": 64, "image_embedding_size": 4, "mask_input_channels": 4},
        mask_decoder_config={"hidden_size": 16, "mlp_dim": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "iou_head_hidden_dim": 16},
    )  # fmt: skip
    SamModel(config).save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


def test_weights_are_checked_before_anything_runs(tiny, tmp_path, monkeypatch):
    info = finder_info("sam")
    assert re.fullmatch("[0-9a-f]{64}", info.checksum(tiny))
    before = info.checksum(tiny)
    (tiny / "config.json").write_text((tiny / "config.json").read_text() + " ")
    assert info.checksum(tiny) != before
    with pytest.raises(ReconError, match="metal' takes none"):
        finder_info("metal").checksum(tiny)
    with pytest.raises(ReconError, match="does not exist"):
        info.checksum(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ReconError, match=r"holds neither model\.safetensors nor"):
        info.checksum(tmp_path / "empty")
    with pytest.raises(ReconError, match="do not fit the network"):
        SamFinder(tiny / "model.safetensors")  # without its config, ViT-B is expected
    monkeypatch.setattr(sam, "find_spec", lambda name: None)
    with pytest.raises(ReconError, match=r"pip install 'endorecon\[foundation\]'"):
        info.checksum(tiny)


def authors_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """As segment-anything's `Sam` names what `transformers` holds; written down from its modules, not from our table."""
    numbers = {"conv1": 0, "layer_norm1": 1, "conv2": 3, "layer_norm2": 4, "conv3": 6}
    neck = {"conv1": 0, "layer_norm1": 1, "conv2": 2, "layer_norm2": 3}
    upscaling = {"upscale_conv1": 0, "upscale_layer_norm": 1, "upscale_conv2": 3}
    renamed = {}
    for name, value in state.items():
        if name.startswith("prompt_encoder.shared_embedding"):
            continue
        words = name.split(".")
        if words[0] == "vision_encoder":
            words[0] = "image_encoder"
            if words[1] == "neck":
                words[2] = str(neck[words[2]])
            words = [{"layers": "blocks", "projection": "proj", "layer_norm1": "norm1", "layer_norm2": "norm2"}.get(w, w) for w in words]
        elif words[0] == "shared_image_embedding":
            words = ["prompt_encoder", "pe_layer", "positional_encoding_gaussian_matrix"]
        elif words[1] == "mask_embed":
            words[1:3] = ["mask_downscaling", str(numbers[words[2]])]
        elif words[1] == "point_embed":
            words[1] = "point_embeddings"
        elif words[1] in upscaling:
            words[1:2] = ["output_upscaling", str(upscaling[words[1]])]
        elif words[1] == "transformer":
            words = [word.replace("layer_norm", "norm") for word in words]
        elif words[1] in ("output_hypernetworks_mlps", "iou_prediction_head"):
            end = {"proj_in": ["layers", "0"], "proj_out": ["layers", "2"], "layers": ["layers", "1"]}
            at = 3 if words[1] == "output_hypernetworks_mlps" else 2
            words = [*words[:at], *end[words[at]], words[-1]]
        renamed[".".join(words)] = value
    return renamed


def test_the_authors_files_load_too(tiny, tmp_path):
    whole = promptable_sam(tiny)
    state = whole.state_dict()
    torch.save(authors_names(state), tmp_path / "sam_vit_b.pth")
    assert set(authors_names(state)) & set(state) != set(state)
    loaded = promptable_sam(tmp_path / "sam_vit_b.pth", whole.config).state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in state.items())
    assert list(whole_names(state)) == list(state)


def test_prompts_lie_on_the_part_and_in_the_networks_pixels(tiny, monkeypatch):
    part = np.zeros((40, 80), bool)
    part[10:20, 0:60] = True
    assert box_around(part).tolist() == [0.0, 10.0, 60.0, 20.0]
    points = points_in(part)
    assert points.shape == (3, 2)
    assert all(part[int(v), int(u)] for u, v in points.tolist()) and np.ptp(points[:, 0].numpy()) > 20
    image = np.random.default_rng(0).integers(0, 255, (40, 80, 3), dtype=np.uint8)
    shown = {}

    def shows(finder):
        inner = finder.model.forward
        monkeypatch.setattr(finder.model, "forward", lambda **given: shown.update(given) or inner(**given))
        return finder.masks(image, [part, part])

    outlines = shows(SamFinder(tiny))
    assert outlines.shape == (2, 40, 80) and np.array_equal(outlines[0], outlines[1])
    assert shown["input_boxes"][0, 0].tolist() == pytest.approx([0.0, 8.0, 48.0, 16.0])  # the longer side, 80 px, is 64 there
    torch.testing.assert_close(shown["input_points"][0, 1], points * 0.8)
    assert shown["multimask_output"] is False
    shown.clear()
    shows(SamFinder(tiny, is_medsam=True))
    assert shown["input_boxes"][0, 0].tolist() == pytest.approx([0.0, 16.0, 48.0, 32.0])  # stretched to the square
    assert "input_points" not in shown
    square, _ = as_medsam_sees(image, 64)
    assert square.shape == (1, 3, 64, 64) and (float(square.min()), float(square.max())) == (0.0, 1.0)


def test_an_outline_is_taken_unless_it_is_absurd(tiny, monkeypatch):
    finder, image = SamFinder(tiny), np.zeros((40, 80, 3), np.uint8)
    part, better, elsewhere = (np.zeros((40, 80), bool) for _ in range(3))
    part[10:20, :40], better[9:21, :44], elsewhere[30:] = True, True, True
    for outline, expected in ((better, better), (elsewhere, part), (np.ones_like(part), part)):
        monkeypatch.setattr(finder, "masks", lambda image, parts, outline=outline: outline[None])
        assert np.array_equal(finder.outlined(image, [part]), expected)
    assert not finder.outlined(image, []).any()


def test_sam_outlines_what_metal_finds(tiny, monkeypatch):
    images, _ = recording(3, True)
    scope, finder = np.ones(images.shape[1:3], bool), SamFinder(tiny)
    monkeypatch.setattr(finder, "masks", lambda image, parts: np.array(parts))
    found = np.array(list(finder.find(iter(images), scope, iter(images))))
    assert np.array_equal(found, found_in(images))


@pytest.fixture
def masked(tmp_path):
    """Run the stages up to masks on a recording, and return the folder and what gate.json says of instruments."""

    def run(images, config, masks_dir=None):
        for k, image in enumerate(images):
            save(tmp_path / "rec" / f"{k:04d}.png", image)
        source = {"path": str(tmp_path / "rec"), "dataset": None, "camera_file": None, "masks_dir": masks_dir and str(masks_dir)}
        write_json(tmp_path / "source" / "source.json", source)
        folders = {name: tmp_path / name for name in ("source", "frames", "camera", "masks")}
        for name, module in (("frames", frames), ("camera", camera), ("masks", masks)):
            folders[name].mkdir(exist_ok=True)
            inputs = {key: folders[key] for key in module.STAGE.reads}
            module.run(inputs, folders[name], config if module is masks else module.Config())
        return folders["masks"], json.loads((folders["masks"] / "gate.json").read_text())["instruments"]

    return run


METAL = masks.Config(instruments="metal")


def test_the_stage_masks_what_it_finds_and_says_so(masked):
    images, truth = recording(3, True)
    folder, said = masked(images, METAL)
    assert (said["finder"], said["white"], said["is_used"], said["suspicious_frames"]) == ("metal", "instrument", True, [])
    assert said["mean_coverage"] == pytest.approx(truth.mean(), rel=0.15)
    for k in range(NUM_FRAMES):
        tissue = read_mask(folder / "tissue" / f"{k:06d}.png")
        assert tissue[truth[k]].mean() < 0.05 and tissue[~truth[k]].mean() > 0.9


def test_a_killed_search_starts_anew_and_ends_the_same(masked):
    folder, _ = masked(recording(3, True)[0], METAL)
    expected = {file.relative_to(folder): file.read_bytes() for file in folder.rglob("*.*")}
    for name in ("gate.json", "instruments/000002.png", "masks/000003.png"):
        (folder / name).unlink()
    masked(recording(3, True)[0], METAL)
    assert {file.relative_to(folder): file.read_bytes() for file in folder.rglob("*.*")} == expected


def test_nothing_is_looked_for_unasked_and_given_masks_win(masked, tmp_path, caplog):
    images, truth = recording(3, True)
    folder, said = masked(images, masks.Config())
    assert said is None and not (folder / "instruments").exists()
    assert masks.STAGE.checksums(masks.Config()) == {}
    for file in (folder / "masks").glob("*.png"):
        file.unlink()
    for k, mask in enumerate(truth):
        save(tmp_path / "given" / f"{k:04d}.png", np.where(mask, 255, 0).astype(np.uint8))
    with caplog.at_level(logging.INFO):
        folder, said = masked(images, METAL, tmp_path / "given")
    assert "win over masks.instruments=metal" in caplog.text
    assert "finder" not in said and not (folder / "instruments").exists()


def test_the_report_tells_what_was_found_here():
    said = {"finder": "metal", "is_used": True, "mean_coverage": 0.0523, "suspicious_frames": [], "reason": "white covers most"}
    assert instrument_notes(None) == instrument_notes({"white": "instrument"}) == []
    assert instrument_notes(said) == ["instruments were found by 'metal', not given: they cover 5.2% of the field on average"]
    assert instrument_notes(said | {"suspicious_frames": [3]})[0].endswith(", more than half of it in 1 frame: look at these")
    assert instrument_notes(said | {"is_used": False})[0].endswith("are not used: white covers most")


class Everything:
    """A finder that has gone mad."""

    def __init__(self, share: float) -> None:
        self.share = share

    def find(self, frames, scope, samples):
        for image in frames:
            yield scope & (np.arange(image.shape[1]) < self.share * image.shape[1])


def test_masks_of_everything_and_of_most_of_it_are_told(masked, monkeypatch, caplog):
    monkeypatch.setattr(masks, "load_instrument_finder", lambda *_: Everything(0.6))
    _, said = masked(recording(2, False)[0], METAL)
    assert said["suspicious_frames"] == list(range(NUM_FRAMES))
    assert "covers more than half of 5 frames, first of 0; set masks.instruments=given" in caplog.text


def test_masks_of_everything_are_an_error(masked, monkeypatch):
    monkeypatch.setattr(masks, "load_instrument_finder", lambda *_: Everything(1.0))
    monkeypatch.setattr(masks, "judge_polarity", lambda *_: masks.Polarity("instrument", True, "as told"))
    with pytest.raises(ReconError, match=r"rec: the instrument masks cover all of every frame; set masks\.instruments=given"):
        masked(recording(2, False)[0], METAL)


def test_given_masks_of_everything_are_an_error_too(masked, tmp_path):
    for k in range(NUM_FRAMES):
        write_mask(tmp_path / "given" / f"{k:04d}.png", np.ones((200, 240), bool))
    with pytest.raises(ReconError, match=r"cover all of every frame; give the right files, or set masks\.polarity"):
        masked(recording(2, False)[0], masks.Config(polarity="instrument"), tmp_path / "given")


def test_weights_without_their_finder_are_refused(tiny):
    with pytest.raises(ReconError, match=r"set masks\.instruments=sam or medsam"):
        masks.STAGE.checksums(masks.Config(instrument_weights=tiny))
    assert masks.STAGE.checksums(masks.Config(instruments="metal")) == {"instruments": ""}
    assert set(masks.STAGE.checksums(masks.Config(instruments="sam", instrument_weights=tiny))) == {"instruments"}
