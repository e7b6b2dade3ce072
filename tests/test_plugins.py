"""A user's own network: from a file under one array contract, and from a package by its entry point."""

from __future__ import annotations

import dataclasses
import logging
import sys
import zipfile
from importlib.metadata import EntryPoint
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import recon.models
from recon.geometry.cameras import ray_grid
from recon.models import DepthEstimate, ModelInfo, load_depth_model, model_info, registry, torch_device
from recon.models.falloff import Falloff
from recon.models.inference import SIGMA
from recon.types import Camera, ReconError

CAMERA = Camera("PINHOLE", 80, 64, (60.0, 60.0, 39.5, 31.5))
IMAGE = np.random.default_rng(0).integers(1, 255, (64, 80, 3), dtype=np.uint8)
MASK = np.arange(80)[None] + np.zeros((64, 1), int) >= 20


class Brightness(nn.Module):
    """Says how bright a pixel is, under the given name."""

    def __init__(self, name):
        super().__init__()
        self.name = name

    def forward(self, image):
        return {self.name: image.mean(dim=1) + 0.1}


class WithLens(nn.Module):
    """Distance 2 everywhere on the mask, none elsewhere, and a sigma."""

    def forward(self, image, rays, mask):
        distance = 2 * mask * rays.norm(dim=1, keepdim=True)
        return {"distance": distance + 0 * image[:, :1], "sigma": 0 * distance + 0.5}


def exported(network, path, *inputs, **options):
    torch.export.save(torch.export.export(network, inputs, **options), path)
    return str(path)


def picture(height=64, width=80):
    return torch.rand(1, 3, height, width)


@pytest.mark.parametrize(("name", "power"), [("depth", 1), ("disparity", -1)])
def test_an_exported_network_is_run_as_it_says(tmp_path, name, power):
    model = load_depth_model(exported(Brightness(name), tmp_path / "own.pt2", picture()))
    estimate = model.infer(IMAGE, CAMERA, MASK)
    expected = (IMAGE.astype(np.float32).mean(axis=2) / 255 + 0.1) ** power
    np.testing.assert_allclose(estimate.depth, np.where(MASK, expected, 0), rtol=1e-5)
    np.testing.assert_allclose(estimate.sigma, np.where(MASK, SIGMA, 0), rtol=1e-6)


def test_a_network_may_ask_for_rays_and_mask_and_say_distance_and_sigma(tmp_path):
    path = exported(WithLens(), tmp_path / "own.pt2", picture(), picture(), torch.rand(1, 1, 64, 80))
    estimate = load_depth_model(path).infer(IMAGE, CAMERA, MASK)
    np.testing.assert_allclose(estimate.depth, np.where(MASK, 2 * ray_grid(CAMERA)[..., 2], 0), rtol=1e-5)
    np.testing.assert_allclose(estimate.sigma, np.where(MASK, 0.5, 0))


def test_a_fixed_size_of_another_aspect_and_an_open_one(tmp_path):
    fixed = load_depth_model(exported(Brightness("depth"), tmp_path / "fixed.pt2", picture(32, 64)))
    assert fixed.infer(IMAGE, CAMERA, MASK).depth.shape == (51, 64)
    sides = {"image": {2: torch.export.Dim("h"), 3: torch.export.Dim("w")}}
    path = exported(Brightness("depth"), tmp_path / "open.pt2", picture(), dynamic_shapes=sides)
    estimate = load_depth_model(path).infer(IMAGE, CAMERA, MASK)
    assert estimate.depth.shape == (256, 320)
    assert (estimate.depth[:, :80] == 0).all() and (estimate.depth[:, 80:] > 0).all()


def test_an_open_side_stays_within_what_the_file_allows(tmp_path):
    """The usual size would be 320 x 256."""
    sides = {"image": {2: 14 * torch.export.Dim("rows", min=2, max=8), 3: torch.export.Dim("w", min=64, max=128)}}
    path = exported(Brightness("depth"), tmp_path / "bounded.pt2", picture(70, 80), dynamic_shapes=sides)
    model = load_depth_model(path)
    assert model._size(CAMERA) == (128, 112)
    assert (model.infer(IMAGE, CAMERA, MASK).depth[:, 40:] > 0).all()
    narrow = {"image": {2: 14 * torch.export.Dim("rows", min=2, max=100), 3: torch.export.Dim("w", min=400)}}
    path = exported(Brightness("depth"), tmp_path / "large.pt2", picture(420, 420), dynamic_shapes=narrow)
    assert load_depth_model(path)._size(CAMERA) == (400, 252)


def test_what_goes_wrong_in_the_network_is_named(tmp_path):
    """Both sides are one symbol: no picture but a square one fits."""
    side = torch.export.Dim("side")
    path = exported(Brightness("depth"), tmp_path / "square.pt2", picture(64, 64), dynamic_shapes={"image": {2: side, 3: side}})
    with pytest.raises(ReconError, match=r"square\.pt2: fails on a picture of 320 x 256 px") as error:
        load_depth_model(path).infer(IMAGE, CAMERA, MASK)
    assert error.value.exit_code == 1


class Several(nn.Module):
    """Depth beside things that nobody asks for."""

    def forward(self, image):
        return {"depth": image.mean(dim=1) + 0.1, "features": [image, image], "note": None}


class Nested(nn.Module):
    def forward(self, image):
        return {"depth": [image.mean(dim=1)]}


def test_outputs_that_nobody_asks_for_may_be_anything(tmp_path):
    path = exported(Several(), tmp_path / "several.pt2", picture())
    assert (load_depth_model(path).infer(IMAGE, CAMERA, MASK).depth[:, 30:] > 0).all()


class Tuple(nn.Module):
    def forward(self, image):
        return image.mean(dim=1)


class Unknown(nn.Module):
    def forward(self, picture):
        return {"depth": picture.mean(dim=1)}


class NoPlane(nn.Module):
    def forward(self, image):
        return {"depth": image}


@pytest.mark.parametrize(
    ("network", "says"),
    [
        (Tuple(), "returns a Tensor, expected a dict with one of depth, distance, disparity"),
        (Brightness("inverse"), "outputs are inverse; expected exactly one of depth"),
        (Unknown(), r"inputs are picture \(1, 3, 64, 80\); expected image"),
        (Nested(), r"output depth is a list, expected an array of float32"),
        (NoPlane(), r"output depth is \(1, 3, 64, 80\), expected \(1, h, w\)"),
    ],
)
def test_a_broken_contract_is_named(tmp_path, network, says):
    path = exported(network, tmp_path / "own.pt2", picture())
    with pytest.raises(ReconError, match=says) as error:
        load_depth_model(path).infer(IMAGE, CAMERA, MASK)
    assert str(tmp_path) in str(error.value)


def test_missing_damaged_and_doubled_files_are_named(tmp_path):
    with pytest.raises(ReconError, match=r"nowhere\.pt2 does not exist"):
        model_info(str(tmp_path / "nowhere.pt2"))
    (tmp_path / "folder.pt2").mkdir()
    with pytest.raises(ReconError, match=r"folder\.pt2 is a folder"):
        model_info(str(tmp_path / "folder.pt2"))
    damaged = tmp_path / "damaged.pt2"
    damaged.write_bytes(b"no archive")
    with pytest.raises(ReconError, match=r"damaged\.pt2 cannot be read"):
        model_info(str(damaged))
    whole = tmp_path / "whole.pt2"
    exported(Brightness("depth"), whole, picture())
    with pytest.raises(ReconError, match=r"depth\.weights .* takes none"):
        load_depth_model(str(whole), weights=whole)
    assert len(model_info(str(whole)).checksum()) == 64
    with pytest.raises(ReconError, match=r"weights\.pth is a file of weights: set depth\.weights="):
        model_info("weights.pth")


def test_an_archive_of_something_else_is_named_once(tmp_path, caplog):
    """torch logs how it failed before it raises."""
    with zipfile.ZipFile(tmp_path / "other.pt2", "w") as archive:
        archive.writestr("other/nothing", "of use")
    level = logging.getLogger("torch").level
    with pytest.raises(ReconError, match=r"other\.pt2 cannot be read"):
        load_depth_model(str(tmp_path / "other.pt2"))
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING] and logging.getLogger("torch").level == level


def test_weights_beside_an_onnx_file_are_refused(tmp_path, monkeypatch):
    """They would not be in the checksum. An entry of `external_data` is a message of a key and a value."""
    monkeypatch.setattr("recon.models.exported.find_spec", lambda name: name)
    entry = b"\x0a\x08location\x12\x0eown.onnx.data2 "
    path = tmp_path / "own.onnx"
    path.write_bytes(b"graph" + entry.replace(b"2 ", b"") + b"rest")
    assert model_info(str(path)).name == str(path)  # what is not there is the runtime's to miss
    path.write_bytes(b"graph" + entry + b"rest")
    (tmp_path / "own.onnx.data2").write_bytes(b"weights")
    with pytest.raises(ReconError, match=r"keeps weights in own\.onnx\.data2.*external_data=False"):
        model_info(str(path))
    path.write_bytes(b"")
    with pytest.raises(ReconError, match="it is empty"):
        model_info(str(path))


def test_without_onnxruntime_an_onnx_file_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr("recon.models.exported.find_spec", lambda name: None)
    (tmp_path / "own.onnx").write_bytes(b"a graph")
    with pytest.raises(ReconError, match="pip install onnxruntime"):
        load_depth_model(str(tmp_path / "own.onnx"))


def test_an_onnx_file_runs_under_the_same_contract(tmp_path, monkeypatch):
    """A stand-in for the runtime, of which only three calls are used."""

    class InferenceSession:
        def __init__(self, path, providers):
            assert path.endswith("own.onnx") and providers == ["CPUExecutionProvider"]

        def get_inputs(self):
            return [SimpleNamespace(name="image", shape=["n", 3, 64, "width"])]

        def get_outputs(self):
            return [SimpleNamespace(name="sigma"), SimpleNamespace(name="disparity")]

        def run(self, names, given):
            assert names is None and given["image"].shape == (1, 3, 64, 320) and given["image"].dtype == np.float32
            return [np.full((1, 1, 64, 320), 0.3, np.float32), np.full((1, 64, 320), 4.0, np.float32)]

    runtime = ModuleType("onnxruntime")
    runtime.InferenceSession = InferenceSession
    monkeypatch.setitem(sys.modules, "onnxruntime", runtime)
    monkeypatch.setattr("recon.models.exported.find_spec", lambda name: runtime)
    (tmp_path / "own.onnx").write_bytes(b"a graph")
    estimate = load_depth_model(str(tmp_path / "own.onnx")).infer(IMAGE, CAMERA, np.ones((64, 80), bool))
    assert estimate.depth.shape == (256, 320)
    np.testing.assert_allclose(estimate.depth, 0.25)
    np.testing.assert_allclose(estimate.sigma, 0.3)


def information(name="own"):
    return ModelInfo(name, 0, 0, "MIT", "distance", (), lambda device, weights: Falloff())


class Entry(EntryPoint):
    dist = SimpleNamespace(name="their-package", version="1.2")


@pytest.fixture
def plug_in(monkeypatch):
    def put(function, name="own"):
        module = ModuleType("their_package")
        module.function = function
        monkeypatch.setitem(sys.modules, "their_package", module)
        monkeypatch.setattr(recon.models, "entry_points", lambda group: [Entry(name, "their_package:function", group)])

    return put


def test_a_package_adds_a_network_and_its_version_counts(plug_in):
    plug_in(information)
    assert "own" in registry() and model_info("own").code == "their-package 1.2"
    assert (load_depth_model("own").infer(IMAGE, CAMERA, MASK).depth > 0).any()


@pytest.mark.parametrize(
    ("function", "name", "says"),
    [
        (lambda: 1 / 0, "own", "their-package 1.2 cannot be loaded: ZeroDivisionError"),
        (lambda: 7, "own", "returned a int, expected a recon.models.ModelInfo named 'own'"),
        (lambda: information("other"), "own", "returned a ModelInfo named 'other'"),
        (lambda: information("student"), "student", "their-package 1.2 names its network 'student', which is taken"),
    ],
)
def test_a_broken_package_is_named_and_stops_no_other_network(plug_in, function, name, says):
    plug_in(function, name)
    with pytest.raises(ReconError, match=says):
        registry()
    assert model_info("student").code == ""


PLANE = np.ones((4, 5), np.float32)


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (PLANE, "a ndarray, expected a recon.models.DepthEstimate"),
        (SimpleNamespace(depth=PLANE, sigma=PLANE), "a SimpleNamespace, expected"),
        ((torch.ones(4, 5), PLANE), "depth that is a Tensor, expected an array of floats"),
        ((PLANE, PLANE[None]), r"sigma that is float32 \(1, 4, 5\)"),
        ((PLANE * np.nan, PLANE), "depth with NaN, infinite or negative values, expected 0 where nothing is known"),
        ((PLANE, PLANE[:3]), r"depth \(4, 5\) and sigma \(3, 5\), expected both of one size"),
    ],
)
def test_a_package_that_returns_no_estimate_is_named(plug_in, answer, says):
    class Theirs:
        def infer(self, image, camera, mask):
            if not isinstance(answer, tuple):
                return answer
            estimate = DepthEstimate(PLANE, PLANE)
            for name, value in zip(("depth", "sigma"), answer, strict=True):
                object.__setattr__(estimate, name, value)
            return estimate

    plug_in(lambda: dataclasses.replace(information(), load=lambda device, weights: Theirs()))
    with pytest.raises(ReconError, match=f"their-package 1.2: 'own' returned {says}"):
        load_depth_model("own").infer(IMAGE, CAMERA, MASK)


def test_a_package_that_loads_no_network_is_named(plug_in):
    plug_in(lambda: dataclasses.replace(information(), load=lambda device, weights: None))
    with pytest.raises(ReconError, match=r"their-package 1\.2 loads 'own' as a NoneType, expected an object with a method infer"):
        load_depth_model("own")


@pytest.mark.parametrize(
    ("num_cuda", "name", "expected"),
    [
        (0, "auto", "cpu"),
        (2, "auto", "cuda"),
        (0, "cpu", "cpu"),
        (2, "cuda:1", "cuda:1"),
        (0, "cuda", "there is no CUDA device here; use auto or cpu"),
        (2, "cuda:2", "here are cpu, cuda, cuda:0, cuda:1; use auto or cpu"),
        (0, "gpu", "'gpu': here are cpu; use auto or cpu"),
    ],
)
def test_a_device_is_checked_before_it_is_used(monkeypatch, num_cuda, name, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: num_cuda > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: num_cuda)
    if " " not in expected:
        assert torch_device(name) == expected
        return
    with pytest.raises(ReconError, match=expected) as error:
        torch_device(name)
    assert error.value.exit_code == 2
