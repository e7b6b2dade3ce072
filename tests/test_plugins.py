"""A user's own network: from a file under one array contract, and from a package by its entry point."""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import recon.models
from recon.geometry.cameras import ray_grid
from recon.models import ModelInfo, load_depth_model, model_info, registry
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
    damaged = tmp_path / "damaged.pt2"
    damaged.write_bytes(b"no archive")
    with pytest.raises(ReconError, match=r"damaged\.pt2 cannot be read"):
        load_depth_model(str(damaged))
    with pytest.raises(ReconError, match=r"depth\.weights .* takes none"):
        load_depth_model(str(damaged), weights=damaged)
    assert len(model_info(str(damaged)).checksum()) == 64


def test_without_onnxruntime_an_onnx_file_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr("recon.models.exported.find_spec", lambda name: None)
    (tmp_path / "own.onnx").write_bytes(b"")
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
    (tmp_path / "own.onnx").write_bytes(b"")
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
