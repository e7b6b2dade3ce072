"""EndoSynth's networks: metres from each output, the authors' files, the order of colours, and the pipeline."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from layouts_depth import write_endosynth
from safetensors.torch import save_file
from torch import nn

from recon import cli
from recon.data import DATASETS, open_sequence
from recon.io.atomic import read_json
from recon.io.depth import read_depth
from recon.models import depth_anything, load_depth_model, midas, model_info
from recon.models.beit import BeitSize
from recon.models.depth_anything import DepthAnythingSize
from recon.models.endosynth import MAX_METRES, VARIANTS, load_metric, metres_from_inverse, metres_from_midas, metres_from_sigmoid
from recon.models.vit import VitSize
from recon.types import Camera, ReconError

TINY = DepthAnythingSize(VitSize(24, 4, 3, trained_px=42), 8, (8, 12, 16, 20), (0, 1, 2, 3))
TINY_MIDAS = midas.MidasSize(BeitSize(24, 4, 3, trained_px=64, layer_scale=0.1), 8, (8, 12, 16, 20), (0, 1, 2, 3))
WIDTH, HEIGHT = 120, 90
CAP = np.float32(MAX_METRES)


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setitem(depth_anything.SIZES, "base", TINY)
    monkeypatch.setitem(midas.SIZES, "large", TINY_MIDAS)


def picture() -> np.ndarray:
    return cv2.GaussianBlur(np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8), (0, 0), 3)


def network_of(name: str) -> nn.Module:
    """A network of random weights that says about 5 cm."""
    variant = VARIANTS[name]
    network = variant.build(variant.sizes[variant.published_size])
    variant.wake(network)
    return network.eval()


def authors_file(folder, name: str):
    """What the authors publish: a plain state dict, of MiDaS with what its encoder's library adds."""
    state = network_of(name).state_dict()
    if name == "midas":
        state |= {"pretrained.model.fc_norm.bias": torch.zeros(24), "pretrained.model.head.weight": torch.zeros(1000, 24)}
        state["pretrained.model.blocks.0.attn.relative_position_index"] = torch.zeros(17, 17, dtype=torch.long)
    torch.save(state, folder / f"{name}-f.pth")
    return folder / f"{name}-f.pth"


def test_outputs_become_metres_as_published():
    output = torch.tensor([[0.0, 1.0, 2.0, 29.0]])
    torch.testing.assert_close(metres_from_inverse(output), 0.3 / (1.0 + output + 1e-5))
    torch.testing.assert_close(metres_from_sigmoid(torch.tensor([[0.0, 1.0]])), torch.tensor([[0.3, 0.001]]))
    torch.testing.assert_close(metres_from_midas(torch.tensor([[1400.0]])), torch.tensor([[70_000 / (1 / 0.3 + (1000 - 1 / 0.3) * 1400)]]))
    depths = metres_from_inverse(torch.linspace(0, 1000, 50)[None])
    assert (depths.diff() < 0).all() and depths.max() <= CAP and depths.min() > 0


def test_the_second_version_ends_in_a_sigmoid_of_30_cm():
    """The authors take the last ReLU out and put 0.3 sigmoid behind it."""
    network = network_of("dav2")
    seen = []
    network.depth_head.scratch.output_conv2[2].register_forward_hook(lambda module, inputs, output: seen.append(output[:, 0]))
    with torch.inference_mode():
        found = network(torch.randn(1, 3, 42, 56))
    torch.testing.assert_close(found, 0.3 * torch.sigmoid(seen[0]))


@pytest.mark.parametrize("name", VARIANTS)
def test_the_authors_files_give_metres(tmp_path, name):
    model = load_metric(name, authors_file(tmp_path, name))
    sizes = []
    (embedding,) = (module for key, module in model.network.named_modules() if key.endswith("patch_embed"))
    embedding.register_forward_pre_hook(lambda module, inputs: sizes.append(tuple(inputs[0].shape)))
    metres = model.infer(picture())
    assert metres.shape == (HEIGHT, WIDTH) and metres.dtype == np.float32
    assert metres.min() > 0 and metres.max() <= CAP and metres.max() > 1.005 * metres.min()
    assert sizes == [(1, 3, 224, 280) if name == "endodac" else (1, 3, 420, 742)]
    assert np.array_equal(load_metric(name, tmp_path).infer(picture()), metres)  # from the folder


@pytest.mark.parametrize("name", VARIANTS)
def test_colours_are_fed_in_either_order(tmp_path, name):
    """The authors' loader takes arrays for BGR which are RGB: their weights see blue first. Those of `recon train` say what they see."""
    file = authors_file(tmp_path, name)
    image = picture()
    swapped, straight = load_metric(name, file).infer(image), load_metric(name, file, channels="rgb").infer(image)
    assert np.array_equal(swapped, load_metric(name, file, channels="bgr").infer(image))
    assert np.array_equal(swapped, load_metric(name, file, channels="rgb").infer(np.ascontiguousarray(image[..., ::-1])))
    assert np.abs(swapped - straight).max() > 1e-5
    facts = '{"method": "endosynth-%s", "encoder_width": 24, "width": 742, "height": 420, "is_rgb": %d}'
    for is_rgb, expected in ((1, straight), (0, swapped)):
        own = tmp_path / f"own{is_rgb}.safetensors"
        save_file(network_weights(file), own, {"endorecon": facts % (name, is_rgb)})
        assert np.array_equal(load_metric(name, own).infer(image), expected)


def network_weights(file):
    unused = ("fc_norm", "model.head", "relative_position_index")
    return {key: value for key, value in torch.load(file).items() if not any(part in key for part in unused)}


def test_a_picture_is_prepared_as_the_authors_do(tmp_path):
    """By hand: cubic to 742x420, ImageNet's mean and deviation, and back by corner-aligned bilinear interpolation."""
    model = load_metric("dav1", authors_file(tmp_path, "dav1"), channels="rgb")
    image = picture()
    seen = cv2.resize(image / 255.0, (742, 420), interpolation=cv2.INTER_CUBIC)
    seen = (seen - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    with torch.inference_mode():
        output = model.network(torch.from_numpy(seen).float().permute(2, 0, 1)[None])
        depth = torch.sigmoid(-torch.log(output + 1e-5)) * 0.3
        expected = nn.functional.interpolate(depth[None], (HEIGHT, WIDTH), mode="bilinear", align_corners=True)[0, 0]
    np.testing.assert_allclose(model.infer(image), expected.numpy(), atol=1e-6)


def test_midas_reads_its_output_and_is_cut_at_the_cap(tmp_path):
    """The authors' code computes MiDaS' depth from the picture, and 21 km where the output is 0."""
    state = torch.load(authors_file(tmp_path, "midas"))
    for bias, expected in ((700.0, 70_000 / (1 / 0.3 + (1000 - 1 / 0.3) * 700)), (-1.0, 0.3)):
        state["scratch.output_conv.4.weight"].zero_()
        state["scratch.output_conv.4.bias"].fill_(bias)
        torch.save(state, tmp_path / "midas-f.pth")
        np.testing.assert_allclose(load_metric("midas", tmp_path).infer(picture()), expected, rtol=1e-5)


@pytest.mark.parametrize("name", VARIANTS)
def test_the_pipeline_gets_the_same_metres(tmp_path, name):
    file = authors_file(tmp_path, name)
    camera = Camera("PINHOLE", WIDTH, HEIGHT, (80.0, 80.0, 59.5, 44.5))
    estimate = load_depth_model(f"endosynth-{name}", weights=file).infer(picture(), camera, np.ones((HEIGHT, WIDTH), bool))
    assert model_info(f"endosynth-{name}").output == "metric"
    expected = cv2.resize(load_metric(name, file).infer(picture()), estimate.depth.shape[::-1], interpolation=cv2.INTER_LINEAR)
    # On another grid, and in another order of resizing and inverting.
    assert np.median(np.abs(estimate.depth - expected) / expected) < 0.02
    assert estimate.depth.max() <= CAP


@pytest.mark.parametrize("name", ["dav2", "midas"])
def test_a_run_takes_the_authors_file_or_says_where_it_is(capsys, tmp_path, name):
    words = ["run", "phantom:tube?seed=1&frames=2&width=240&height=200", "--out", str(tmp_path / "run"), "--until", "depth"]
    words += ["--set", f"depth.model=endosynth-{name}"]
    assert cli.main(words) == 2
    err = capsys.readouterr().err
    assert f"{name}-f.pth, which its authors publish at https://github.com/TouchSurgery/EndoSynth" in err
    assert cli.main([*words, f"depth.weights={authors_file(tmp_path, name)}"]) == 0
    (folder,) = {path.parent for path in (tmp_path / "run").rglob("depth.json")}
    assert read_json(folder / "depth.json")["trained_on"] == ["endosynth", "natural pictures"]
    depth = read_depth(folder / "depth" / "000001.tiff")
    assert (depth > 0).mean() > 0.5 and depth.max() <= CAP


def test_files_of_other_variants_and_damaged_ones_are_refused(tmp_path):
    for name, other in (("dav1", "endodac"), ("endodac", "midas"), ("midas", "dav2")):
        file = authors_file(tmp_path, name)
        with pytest.raises(ReconError, match=rf"{name}-f\.pth: weights do not fit the network: missing"):
            load_metric(other, file)
        file.write_bytes(file.read_bytes()[:600])
        with pytest.raises(ReconError, match="cannot be read"):
            load_metric(name, file)
    with pytest.raises(ReconError, match="variant must be one of dav1, dav2, endodac, midas"):
        load_metric("dav3", tmp_path)


def test_parameters_are_the_published_ones(monkeypatch):
    monkeypatch.undo()
    for name in VARIANTS:
        variant, info = VARIANTS[name], model_info(f"endosynth-{name}")
        with torch.device("meta"):
            network = variant.build(variant.sizes[variant.published_size])
        parameters = list(network.parameters())
        assert sum(value.numel() for value in parameters) == info.parameters
        assert sum(value.numel() for value in parameters if value.requires_grad) == info.trainable


def test_the_data_set_is_scored_under_both_benchmark_protocols(tmp_path):
    sequence = open_sequence(str(write_endosynth(tmp_path / "EndoSynth")))
    assert DATASETS[sequence.dataset].protocols == ("endosynth-relative", "endosynth-metric")
