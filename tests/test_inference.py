"""Published networks as depth models: sizes, colours, what the output means, which files they ask for."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from recon.io.atomic import write_json
from recon.io.cameras import write_camera
from recon.io.images import write_jpeg
from recon.io.masks import write_mask
from recon.models import DepthEstimate, inference, load_depth_model, model_info, registry
from recon.models.depth_anything import DepthAnything, DepthAnythingSize
from recon.models.endodac import EndoDAC
from recon.models.litemono import LiteMono
from recon.models.monodepth2 import Monodepth2
from recon.models.student import Student
from recon.models.vit import VitSize
from recon.pipeline.config import build_config
from recon.pipeline.stage import keyed_values
from recon.types import Camera, ReconError
from stages import depth as depth_stage
from stages.depth import STAGE, Config

TINY = DepthAnythingSize(VitSize(32, 4, 2, trained_px=42), 8, (8, 12, 16, 20), (0, 1, 2, 3))
CAMERA = Camera("OPENCV_FISHEYE", 160, 90, (60.0, 60.0, 79.5, 44.5, 0.0, 0.0, 0.0, 0.0))
IMAGE = np.random.default_rng(0).integers(0, 255, (90, 160, 3), dtype=np.uint8)
MASK = np.broadcast_to(np.arange(160) >= 40, (90, 160)).copy()
PUBLISHED = [name for name, info in registry().items() if info.published and not info.packaged]


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def check_contract(estimate: DepthEstimate, sigma: float = inference.SIGMA):
    rows, columns = estimate.depth.shape
    assert rows == round(columns * 90 / 160)
    assert estimate.depth.dtype == estimate.sigma.dtype == np.float32 and np.isfinite(estimate.depth).all()
    edge = columns // 4
    assert (estimate.depth[:, : edge - 2] == 0).all() and (estimate.depth[:, edge + 2 :] > 0).all()
    np.testing.assert_allclose(estimate.sigma, np.where(estimate.depth > 0, sigma, 0), rtol=1e-6)


def save_parts(network, folder: Path, **numbers):
    folder.mkdir()
    torch.save({**network.encoder.state_dict(), **numbers}, folder / "encoder.pth")
    torch.save(network.depth.state_dict(), folder / "depth.pth")
    return folder


def seen_by(network, image):
    with torch.inference_mode():
        return network.eval()(image)


def by_hand(disparity, columns, rows):
    """Depth of a sigmoid disparity, resized as a disparity."""
    resized = cv2.resize(disparity, (columns, rows), interpolation=cv2.INTER_LINEAR)
    return 1 / (1 / 150 + (1 / 0.1 - 1 / 150) * resized)


@pytest.mark.parametrize(("name", "centred"), [("monodepth2", True), ("af_sfm", False)])
def test_monodepth2_and_its_endoscopic_descendant(tmp_path, name, centred):
    """The authors' folder tells the size; the same parts in one file have the endoscopic one."""
    network = Monodepth2(centred)
    folder = save_parts(network, tmp_path / "weights", width=128, height=64, use_stereo=False)
    estimate = load_depth_model(name, weights=folder).infer(IMAGE, CAMERA, MASK)
    check_contract(estimate)
    assert estimate.depth.shape == (72, 128)
    small = np.asarray(Image.fromarray(IMAGE).resize((128, 64), Image.Resampling.LANCZOS), np.float32) / 255
    disparity = seen_by(network, torch.from_numpy(small).permute(2, 0, 1)[None])[0][0].numpy()
    known = estimate.depth > 0
    np.testing.assert_allclose(estimate.depth[known], by_hand(disparity, 128, 72)[known], rtol=1e-4)

    save_file({name: value.contiguous() for name, value in network.state_dict().items()}, tmp_path / "both.safetensors")
    assert load_depth_model(name, weights=tmp_path / "both.safetensors").infer(IMAGE, CAMERA, MASK).depth.shape == (180, 320)


def test_litemono(tmp_path):
    folder = save_parts(LiteMono(), tmp_path / "weights", width=64, height=32)
    estimate = load_depth_model("litemono", weights=folder).infer(IMAGE, CAMERA, MASK)
    check_contract(estimate)
    assert estimate.depth.shape == (36, 64)


def test_endodac_sees_plain_colours_and_its_adapters_are_merged(tmp_path, monkeypatch):
    network = EndoDAC(TINY, (4, 5))
    for name, parameter in network.named_parameters():
        if ".norm3." in name or "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    torch.save({**network.state_dict(), "height": 256, "width": 320}, tmp_path / "depth_model.pth")
    monkeypatch.setattr(inference, "EndoDAC", lambda *size_and_grid: EndoDAC(TINY, (4, 5)))
    model = load_depth_model("endodac", weights=tmp_path)
    assert not any("lora" in name for name in model.network.state_dict())
    estimate = model.infer(IMAGE, CAMERA, MASK)
    check_contract(estimate)
    plain = torch.from_numpy(inference.lanczos(IMAGE, (320, 256))).permute(2, 0, 1)[None]
    disparity = seen_by(network, plain)[0][0].numpy()
    columns = disparity.shape[1]
    expected = by_hand(disparity, columns, round(columns * 90 / 160))
    known = estimate.depth > 0
    np.testing.assert_allclose(estimate.depth[known], expected[known], rtol=1e-4)


@pytest.mark.parametrize(("version", "is_metric"), [(1, False), (2, False), (2, True)])
def test_depth_anything_sees_whole_patches_of_the_pictures_aspect(tmp_path, monkeypatch, version, is_metric):
    network = DepthAnything(version, TINY, 20.0 if is_metric else None)
    # The plain output may be 0 everywhere: lift it, so that there is something to compare.
    torch.nn.init.constant_(network.depth_head.scratch.output_conv2[2].bias, 0.5)
    save_file({name: value.contiguous() for name, value in network.state_dict().items()}, tmp_path / "tiny.safetensors")
    monkeypatch.setitem(inference.SIZES, "small", TINY)
    monkeypatch.setattr(inference, "network_size", lambda width, height: (112, 56))
    name = "depth_anything" + ("_v2" if version == 2 else "") + ("_metric" if is_metric else "") + "_s"
    estimate = load_depth_model(name, weights=tmp_path / "tiny.safetensors").infer(IMAGE, CAMERA, MASK)
    check_contract(estimate)
    colour = cv2.resize(IMAGE.astype(np.float32) / 255, (112, 56), interpolation=cv2.INTER_CUBIC)
    colour = (colour - np.float32([0.485, 0.456, 0.406])) / np.float32([0.229, 0.224, 0.225])
    output = seen_by(network, torch.from_numpy(colour).permute(2, 0, 1)[None])[0].numpy()
    output = cv2.resize(output, (112, 63), interpolation=cv2.INTER_LINEAR)
    known = estimate.depth > 0
    expected = output if is_metric else output.max() / output
    np.testing.assert_allclose(estimate.depth[known], expected[known], rtol=1e-3)


def test_a_relative_disparity_never_gives_infinite_depth():
    depth = inference.depth_of_relative(np.array([[4.0, 2.0, 0.0, 0.001]], np.float32))
    np.testing.assert_allclose(depth, [[1, 2, 50, 50]], rtol=1e-6)
    np.testing.assert_allclose(inference.depth_of_relative(np.zeros((2, 2), np.float32)), 1)
    np.testing.assert_allclose(inference.depth_of_metres(np.zeros((1, 1), np.float32)), 1e-3)


def test_a_sigmoid_spans_the_familys_depths():
    np.testing.assert_allclose(inference.depth_of_sigmoid(np.array([[0.0, 1.0]], np.float32)), [[150.0, 0.1]], rtol=1e-5)


def test_registered_sizes_are_the_networks_own():
    def count(network):
        return sum(parameter.numel() for parameter in network.parameters())

    known = registry()
    with torch.device("meta"):
        for letter, size in (("s", "small"), ("b", "base"), ("l", "large")):
            for version, name in ((1, "depth_anything_"), (2, "depth_anything_v2_"), (2, "depth_anything_v2_metric_")):
                assert known[name + letter].parameters == count(DepthAnything(version, inference.SIZES[size]))
        endodac = EndoDAC()
        assert known["endodac"].parameters == count(endodac)
        assert known["endodac"].trainable == sum(p.numel() for p in endodac.parameters() if p.requires_grad)
        assert known["monodepth2"].parameters == known["af_sfm"].parameters == count(Monodepth2())
    assert known["litemono"].parameters == count(LiteMono())


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_network_without_its_weights_says_where_they_are_to_be_had(name, tmp_path):
    with pytest.raises(ReconError, match=rf"{name}.*depth\.weights=FILE.*https://"):
        load_depth_model(name)
    with pytest.raises(ReconError, match=r"nowhere does not exist.*https://"):
        model_info(name).checksum(tmp_path / "nowhere")
    assert "https://" in model_info(name).weights and model_info(name).licence


def test_weights_of_another_network_are_refused(tmp_path):
    torch.save(Student().state_dict(), tmp_path / "student.pth")
    with pytest.raises(ReconError, match=r"student\.pth: weights do not fit"):
        load_depth_model("monodepth2", weights=tmp_path / "student.pth")
    with pytest.raises(ReconError, match="takes none"):
        load_depth_model("falloff", weights=tmp_path / "student.pth")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ReconError, match=r"holds no \.pth or \.safetensors file"):
        model_info("monodepth2").checksum(tmp_path / "empty")


def test_the_stage_keys_by_what_the_weights_are_and_not_by_where_they_lie(tmp_path):
    save_file(Student().state_dict(), tmp_path / "a.safetensors")
    (tmp_path / "b.safetensors").write_bytes((tmp_path / "a.safetensors").read_bytes())
    config = build_config(Config, {"weights": str(tmp_path / "a.safetensors")}, "[depth]")
    moved, packaged = Config(weights=tmp_path / "b.safetensors"), Config()
    assert "weights" not in keyed_values(config)
    assert STAGE.checksums(config) == STAGE.checksums(moved) != STAGE.checksums(packaged)
    folder = save_parts(Monodepth2(), tmp_path / "parts")
    before = STAGE.checksums(Config(model="monodepth2", weights=folder))
    torch.save({"other": torch.zeros(1)}, folder / "depth.pth")
    assert STAGE.checksums(Config(model="monodepth2", weights=folder)) != before
    with pytest.raises(ReconError, match=r"endodac.*depth\.weights=FILE"):
        STAGE.checksums(Config(model="endodac"))


def test_a_device_that_is_not_here_is_told_before_the_first_stage():
    with pytest.raises(ReconError, match=r"device 'tpu'.*use auto or cpu"):
        STAGE.checksums(Config(device="tpu"))


class Blind:
    """Knows the first `known` frames."""

    def __init__(self, known):
        self.known, self.num_asked = known, 0

    def infer(self, image, camera, mask):
        self.num_asked += 1
        depth = np.full((9, 16), float(self.num_asked <= self.known), np.float32)
        return DepthEstimate(depth, depth)


@pytest.mark.parametrize(("known", "says"), [(0, "gave no depth in any of 4 frames"), (1, "gave depth in 1 of 4 frames only"), (2, None)])
def test_a_network_that_knows_nothing_is_no_success(tmp_path, monkeypatch, caplog, known, says):
    write_json(tmp_path / "in" / "gate.json", {"frames": [{"index": index, "status": "ok"} for index in range(4)]})
    write_camera(tmp_path / "in" / "camera.json", CAMERA)
    for index in range(4):
        write_jpeg(tmp_path / "in" / "images" / f"{index:06d}.jpg", IMAGE)
        write_mask(tmp_path / "in" / "tissue" / f"{index:06d}.png", MASK)
    network = Blind(known)
    monkeypatch.setattr(depth_stage, "load_depth_model", lambda *arguments: network)
    inputs = dict.fromkeys(("frames", "camera", "masks"), tmp_path / "in")
    for _ in range(2):  # the second goes on from what the first left
        caplog.clear()
        if known == 0:
            with pytest.raises(ReconError, match=f"depth.model 'falloff' {says}") as error:
                depth_stage.run(inputs, tmp_path / "out", Config(model="falloff"))
            assert error.value.exit_code == 1 and not (tmp_path / "out" / "depth.json").exists()
        else:
            depth_stage.run(inputs, tmp_path / "out", Config(model="falloff"))
            assert says in caplog.text if says else not caplog.text
    assert network.num_asked == 4
