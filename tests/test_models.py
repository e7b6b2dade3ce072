"""Depth models: what they promise for any picture, and that weights either fit exactly or say why not."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from recon import cli
from recon.data.phantom import open_phantom
from recon.geometry.cameras import crop
from recon.models import load_depth_model, model_info, registry
from recon.models.falloff import Falloff
from recon.models.student import INPUT_AREA_PX, INPUTS, WEIGHTS, Student, StudentDepth, Window, input_size, seen_window
from recon.models.weights import load_weights, sha256
from recon.training.student import StudentConfig
from recon.types import Camera, ReconError

READY = [name for name, info in registry().items() if info.packaged or not info.published]
"""Those that need no file from elsewhere."""


@pytest.fixture(scope="module")
def phantom():
    return open_phantom("phantom:tube?seed=9&frames=2&width=192&height=160")


def abs_rel(model, sequence) -> float:
    """Abs Rel of the first frame with one factor."""
    image, truth = sequence.frames[0].image(), sequence.depth_gt(0)
    estimate = model.infer(image, sequence.camera, truth.valid)
    rows, columns = (np.arange(n) * m // n for n, m in zip(truth.depth.shape, estimate.depth.shape, strict=True))
    pred = estimate.depth[np.ix_(rows, columns)]
    both = truth.valid & (pred > 0)
    pred = pred * np.median(truth.depth[both] / pred[both])
    return float(np.mean(np.abs(pred[both] - truth.depth[both]) / truth.depth[both]))


@pytest.mark.parametrize("name", READY)
@pytest.mark.parametrize(("height", "width"), [(120, 160), (90, 160), (150, 150)])
def test_every_model_keeps_the_array_contract(name, height, width):
    camera = Camera("PINHOLE", width, height, (0.7 * width, 0.7 * width, (width - 1) / 2, (height - 1) / 2))
    mask = np.ones((height, width), bool)
    mask[:, : width // 4] = False
    image = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    estimate = load_depth_model(name).infer(image, camera, mask)
    rows, columns = estimate.depth.shape
    assert estimate.depth.dtype == estimate.sigma.dtype == np.float32
    assert np.isfinite(estimate.depth).all() and np.isfinite(estimate.sigma).all()
    assert (estimate.depth[:, : columns // 5] == 0).all() and (estimate.depth[:, columns // 3 :] > 0).all()
    assert ((estimate.sigma > 0) == (estimate.depth > 0)).all()
    assert abs(rows - columns * height / width) <= 0.5


@pytest.mark.parametrize("name", READY)
def test_a_black_picture_gives_no_nan(name):
    camera = Camera("PINHOLE", 96, 64, (60.0, 60.0, 47.5, 31.5))
    estimate = load_depth_model(name).infer(np.zeros((64, 96, 3), np.uint8), camera, np.ones((64, 96), bool))
    assert np.isfinite(estimate.depth).all()


def test_falloff_finds_the_depth_of_a_tube_better_than_a_constant(phantom):
    class Constant(Falloff):
        def infer(self, image, camera, mask):
            estimate = super().infer(image, camera, mask)
            return dataclasses.replace(estimate, depth=(estimate.depth > 0).astype(np.float32))

    assert abs_rel(Falloff(), phantom) < 0.6 * abs_rel(Constant(), phantom)


def test_the_shipped_student_beats_the_falloff(phantom):
    assert abs_rel(load_depth_model("student"), phantom) < abs_rel(Falloff(), phantom)


def test_shipped_weights_are_small_and_have_a_card():
    assert WEIGHTS.stat().st_size < 8_000_000
    card = WEIGHTS.with_suffix(".md").read_text()
    assert sha256(WEIGHTS) in card


def test_networks_are_listed_with_whole_addresses(capsys):
    assert cli.main(["models"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name, info in registry().items():
        assert f"weights of {name}: {info.weights}" in lines
    assert not any("('" in line for line in lines)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--out {file}", "--out {file} cannot be made"),
        ("--out {file}/below", "--out {file}/below cannot be made"),
        ("--out {file}.d --set device=tpu", "device 'tpu': here are cpu"),
        ("--out {file}.d --set imagenet_weights={file}.pth", "imagenet_weights {file}.pth does not exist"),
        ("--out {file}.d --set foundation_weights={file}", "foundation_weights: weights {file} cannot be read"),
    ],
)
def test_training_names_what_it_cannot_use_before_it_makes_anything(capsys, tmp_path, words, says):
    file = tmp_path / "file"
    file.write_text("no weights")
    config = Path(__file__).parents[1] / "configs" / "train" / "endodac.toml"
    assert cli.main(["train", str(config), *words.format(file=file).split()]) == 2
    assert says.format(file=file) in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [file]


def test_an_unknown_model_lists_the_known_ones():
    with pytest.raises(ReconError, match="known: student, falloff"):
        model_info("midas")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda w: w.pop("head.1.bias"), "missing head.1.bias"),
        (lambda w: w.update(extra=torch.zeros(1)), "unknown extra"),
        (lambda w: w.update({"head.1.bias": torch.zeros(5)}), r"head.1.bias is \(5,\), expected \(2,\)"),
    ],
)
def test_weights_that_do_not_fit_say_where(tmp_path, change, says):
    weights = dict(Student().state_dict())
    change(weights)
    save_file(weights, tmp_path / "weights.safetensors")
    with pytest.raises(ReconError, match=says):
        load_weights(Student(), tmp_path / "weights.safetensors")


def test_weights_survive_a_round_trip_and_damage_is_noticed(tmp_path):
    network = Student()
    path = tmp_path / "weights.safetensors"
    save_file(network.state_dict(), path)
    other = Student()
    load_weights(other, path)
    assert all(torch.equal(a, b) for a, b in zip(network.state_dict().values(), other.state_dict().values(), strict=True))
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ReconError, match="cannot be read"):
        StudentDepth(path, "cpu")
    with pytest.raises(ReconError, match="are missing"):
        sha256(tmp_path / "nowhere")


def test_input_sizes_keep_area_and_aspect():
    assert max(math.prod(map(int, size.split("x"))) for size in StudentConfig.sizes_px) == INPUT_AREA_PX
    assert input_size(500, 500) == (192, 192)
    for width, height in ((960, 540), (675, 540), (720, 576), (500, 500)):
        columns, rows = input_size(width, height)
        assert columns % 32 == rows % 32 == 0
        assert 0.7 < columns * rows / INPUT_AREA_PX < 1.4
        assert 0.8 < (columns / rows) / (width / height) < 1.25


def test_a_round_view_in_a_black_frame_says_what_its_part_alone_says(phantom):
    """The window is cut out with its lens and put back where it was, whatever lies around it."""
    model, truth = load_depth_model("student"), phantom.depth_gt(0)
    image, (height, width) = phantom.frames[0].image(), truth.valid.shape
    alone = model.infer(image, phantom.camera, truth.valid)
    left, top = 2 * width // 3, height // 8
    framed = np.zeros((height + 2 * top, width + 3 * left, 3), np.uint8)
    framed[top : top + height, left : left + width] = image
    mask = np.zeros(framed.shape[:2], bool)
    mask[top : top + height, left : left + width] = truth.valid
    wide = model.infer(framed, crop(phantom.camera, -left, -top, framed.shape[1], framed.shape[0]), mask)
    assert wide.depth.shape[1] / wide.depth.shape[0] == pytest.approx(framed.shape[1] / framed.shape[0], rel=0.02)
    pixels = np.stack(np.meshgrid(np.arange(width), np.arange(height)), -1).astype(np.float32) + 0.5

    def at(depth, shift, size):
        place = (pixels + shift) * np.array(depth.shape[::-1]) / size - 0.5
        return cv2.remap(depth, place.astype(np.float32), None, cv2.INTER_LINEAR)

    one, other = at(alone.depth, 0, (width, height)), at(wide.depth, (left, top), framed.shape[1::-1])
    inside = cv2.erode(truth.valid.astype(np.uint8), np.ones((9, 9)), borderType=cv2.BORDER_CONSTANT, borderValue=0) > 0
    ratio = np.log(one[inside] / other[inside])
    # The rasters of the two windows differ, so the network sees the part in slightly other sizes.
    assert np.abs(ratio - np.median(ratio)).mean() < 0.05


def test_a_window_is_put_back_where_it_was_cut_out():
    """Maps that hold every pixel's own place say that place in the whole picture, on grids of any size."""
    window, whole = Window(30, 12, 120, 60), (90, 200)
    column, row = np.meshgrid((np.arange(48) + 0.5) * 120 / 48 + 29.5, (np.arange(40) + 0.5) * 60 / 40 + 11.5)
    maps = torch.from_numpy(np.stack([column, row]))[None].float()
    for rows, columns in ((90, 200), (45, 100), (63, 160)):
        back = window.put_back(maps, whole, (rows, columns))[0].numpy()
        place = np.stack(np.meshgrid((np.arange(columns) + 0.5) * 200 / columns - 0.5, (np.arange(rows) + 0.5) * 90 / rows - 0.5))
        inside = (np.abs(place - np.array([89.5, 41.5])[:, None, None]) < np.array([58, 29])[:, None, None]).all(axis=0)
        assert inside.sum() > 200 and np.abs(back - place)[:, inside].max() < 1e-3


@pytest.mark.parametrize(
    ("rows", "columns", "expected"),
    [
        ((0, 480), (0, 960), Window(0, 0, 960, 480)),
        ((0, 480), (250, 700), Window(220, 0, 500, 480)),
        ((400, 440), (0, 960), Window(0, 240, 960, 240)),
        ((0, 10), (900, 905), Window(480, 0, 480, 240)),
        ((101, 459), (3, 801), Window(0, 100, 820, 360)),
        ((0, 0), (0, 0), Window(0, 0, 960, 480)),
    ],
)
def test_the_window_holds_the_mask_and_half_of_the_picture(rows, columns, expected):
    mask = np.zeros((480, 960), bool)
    mask[slice(*rows), slice(*columns)] = True
    assert seen_window(mask) == expected


def test_half_precision_is_used_where_the_processor_has_it_and_says_the_same_depth(phantom):
    model, image, mask = load_depth_model("student"), phantom.frames[0].image(), phantom.depth_gt(0).valid
    model.in_bfloat16 = False
    full = model.infer(image, phantom.camera, mask)
    model.in_bfloat16 = True
    half = model.infer(image, phantom.camera, mask)
    inside = full.depth > 0
    assert 0 < np.abs(np.log(half.depth[inside] / full.depth[inside])).max() < 0.01
    assert np.abs(np.log(half.sigma[inside] / full.sigma[inside])).max() < 0.05
    known = torch.cpu.get_capabilities()
    assert known.get("architecture") != "x86_64" or "avx512_bf16" in known, "torch renamed it"
    assert StudentDepth(WEIGHTS, "cpu").in_bfloat16 == known.get("avx512_bf16", False)


def test_half_precision_leaves_no_terraces():
    """Eight bits of a log-distance near 1 would leave some hundred values on as many thousand pixels."""
    model = load_depth_model("student")
    seen = torch.rand(1, INPUTS, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        for said in model.network(seen):
            assert said.dtype == torch.float32 and len(said.unique()) > 0.9 * said.numel()
