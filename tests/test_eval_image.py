"""Scores of renders: against scikit-image, against the protocols' formulas written out, and the neighbours to beat."""

import math

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch.nn import functional

from recon.eval.image import (
    IMAGE_PROTOCOLS,
    nearest_kept,
    neighbour_average,
    protocol_scores,
    psnr,
    score_frame,
    scored_frames,
    ssim,
    ssim_map,
)
from recon.models.lpips import Lpips, load_lpips, perceptual_distance
from recon.types import ReconError


@pytest.fixture
def rng():
    return np.random.default_rng(3)


def some_frames(rng, count=3, height=40, width=48):
    """Smooth pictures, renders a little off, masks with a corner missing."""
    frames = []
    for k in range(count):
        v, u = np.mgrid[:height, :width] / width
        picture = np.stack([0.5 + 0.4 * np.sin(7 * u + k), 0.5 + 0.3 * np.cos(9 * v), 0.4 + 0.2 * u], axis=-1)
        render = picture + rng.normal(scale=0.02 * (k + 1), size=picture.shape)
        mask = (u + v) > 0.3 + 0.1 * k
        frames.append((render, picture, mask))
    return frames


# --- PSNR and SSIM


def test_psnr_and_ssim_are_scikit_image_s_where_all_counts(rng):
    render, picture, _ = some_frames(rng)[2]
    everywhere = np.ones(picture.shape[:2], bool)
    assert psnr(render, picture, everywhere) == pytest.approx(peak_signal_noise_ratio(picture, render, data_range=1.0), abs=1e-9)
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1.0, "channel_axis": 2}
    inner, full = structural_similarity(picture, render, full=True, **options)
    np.testing.assert_allclose(ssim_map(render, picture), full, atol=1e-9)
    assert ssim(render, picture, everywhere) == pytest.approx(full.mean(), abs=1e-9)
    assert ssim_map(render, picture, "valid").mean() == pytest.approx(inner, abs=1e-9)


def test_what_the_mask_leaves_out_changes_nothing(rng):
    render, picture, mask = some_frames(rng)[0]
    other = np.where(mask[..., None], render, rng.random(render.shape))
    assert psnr(other, picture, mask) == psnr(render, picture, mask)
    assert ssim(other, picture, mask) == ssim(render, picture, mask)


def test_an_error_of_one_level_is_48_db_and_equal_pictures_are_perfect(rng):
    _, picture, mask = some_frames(rng)[0]
    assert psnr(picture + 1 / 255, picture, mask) == pytest.approx(20 * math.log10(255), abs=1e-9)
    assert psnr(picture, picture, mask) == math.inf and ssim(picture, picture, mask) == pytest.approx(1.0)


def test_bad_pictures_are_named(rng):
    render, picture, mask = some_frames(rng)[0]
    with pytest.raises(ReconError, match="leaves no pixel"):
        psnr(render, picture, np.zeros_like(mask))
    with pytest.raises(ReconError, match="not finite"):
        score_frame("endosurf", np.full_like(render, np.nan), picture, mask)
    with pytest.raises(ReconError, match="known: endonerf, endosurf, endogaussian"):
        score_frame("endodream", render, picture, mask)


# --- the protocols


def test_the_protocols_score_other_frames():
    assert scored_frames("endonerf", range(5)) == [1, 2, 3, 4]
    assert scored_frames("endosurf", range(20)) == scored_frames("endogaussian", range(20)) == [1, 9, 17]
    with pytest.raises(ReconError, match="scores none of 1 frames"):
        scored_frames("endosurf", [0])


def ssim_by_convolution(a, b, padding):
    """The arithmetic of the authors' torch code: plain 2-D windows, zeros outside or none."""
    offsets = torch.arange(11, dtype=torch.float64) - 5
    line = torch.exp(-(offsets**2) / (2 * 1.5**2))
    window = (line[:, None] * line[None] / line.sum() ** 2).expand(3, 1, 11, 11)
    x, y = (torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None] for image in (a, b))

    def mean(image):
        return functional.conv2d(image, window, padding=padding, groups=3)

    mx, my = mean(x), mean(y)
    top = (2 * mx * my + 0.01**2) * (2 * (mean(x * y) - mx * my) + 0.03**2)
    return (top / ((mx**2 + my**2 + 0.01**2) * (mean(x * x) - mx**2 + mean(y * y) - my**2 + 0.03**2))).mean().item()


def test_each_protocol_is_its_authors_formula(rng):
    frames = some_frames(rng)
    masks = np.stack([mask for *_, mask in frames])[..., None].astype(float)
    pictures = np.stack([picture for _, picture, _ in frames]) * masks
    renders = np.clip(np.stack([render for render, *_ in frames]), 0, 1)
    found = {name: protocol_scores(name, [score_frame(name, *frame) for frame in frames]) for name in IMAGE_PROTOCOLS}

    cut = (255 * renders).astype(np.uint8) / 255 * masks
    assert found["endonerf"]["psnr"] == pytest.approx(-10 * np.log10(((cut - pictures) ** 2).mean()), abs=1e-9)
    assert found["endonerf"]["ssim"] == pytest.approx(
        np.mean([ssim_by_convolution(a, b, 5) for a, b in zip(cut, pictures, strict=True)]), abs=1e-9
    )

    exact = np.stack([render for render, *_ in frames]) * masks
    pooled = ((exact - pictures) ** 2).sum() / (3 * masks.sum())
    assert found["endosurf"]["psnr"] == pytest.approx(-10 * np.log10(pooled), abs=1e-9)
    assert found["endosurf"]["ssim"] == pytest.approx(
        np.mean([ssim_by_convolution(a, b, 0) for a, b in zip(exact, pictures, strict=True)]), abs=1e-9
    )

    rounded = np.round(255 * renders) / 255 * masks
    squares = ((rounded - pictures) ** 2).sum(axis=(1, 2, 3))
    all_pixels = -10 * np.log10(squares / pictures[0].size)
    in_mask = -10 * np.log10(squares / (3 * masks.sum(axis=(1, 2, 3))))
    assert found["endogaussian"]["psnr"] == pytest.approx(all_pixels.mean(), abs=1e-9)
    assert found["endogaussian"]["psnr_star"] == pytest.approx(in_mask.mean(), abs=1e-9)
    assert found["endogaussian"]["psnr"] > found["endogaussian"]["psnr_star"]
    assert all("lpips" not in scores for scores in found.values())


def test_lpips_gets_masked_pictures_on_the_scale_of_the_protocol(rng):
    render, picture, mask = some_frames(rng)[0]
    asked = {}

    def distance(a, b, is_signed):
        assert not a[~mask].any() and not b[~mask].any()
        return 0.25 if is_signed else 0.125

    for name in IMAGE_PROTOCOLS:
        asked[name] = protocol_scores(name, [score_frame(name, render, picture, mask, distance)]).get("lpips")
    assert asked == {"endonerf": 0.125, "endosurf": None, "endogaussian": 0.25}


# --- LPIPS


@pytest.fixture
def weight_files(tmp_path):
    """Random weights in the two public layouts; the linear ones positive, as the trained ones are."""
    torch.manual_seed(0)
    shapes = {0: (64, 3, 11, 11), 3: (192, 64, 5, 5), 6: (384, 192, 3, 3), 8: (256, 384, 3, 3), 10: (256, 256, 3, 3)}
    alexnet = {f"features.{k}.weight": torch.randn(shape) / math.sqrt(math.prod(shape[1:])) for k, shape in shapes.items()}
    alexnet |= {f"features.{k}.bias": torch.randn(shape[0]) * 0.1 for k, shape in shapes.items()} | {
        "classifier.1.weight": torch.zeros(2, 2)
    }
    linear = {f"lin{k}.model.1.weight": torch.rand(1, shape[0], 1, 1) for k, shape in enumerate(shapes.values())}
    torch.save(alexnet, tmp_path / "alexnet.pth")
    torch.save(linear, tmp_path / "alex.pth")
    return tmp_path / "alexnet.pth", tmp_path / "alex.pth"


def lpips_by_hand(files, a, b):
    """The definition with bare tensors: pictures in -1..1."""
    net, lin = (torch.load(file) for file in files)
    shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
    total, features = 0.0, []
    for picture in (a, b):
        x = ((torch.from_numpy(picture).float() - shift) / scale).permute(2, 0, 1)[None]
        stages = []
        for k, stride, padding, pool in ((0, 4, 2, True), (3, 1, 2, True), (6, 1, 1, False), (8, 1, 1, False), (10, 1, 1, False)):
            x = functional.conv2d(x, net[f"features.{k}.weight"], net[f"features.{k}.bias"], stride, padding).relu()
            stages.append(functional.normalize(x, dim=1))
            x = functional.max_pool2d(x, 3, 2) if pool else x
        features.append(stages)
    for k, (p, q) in enumerate(zip(*features, strict=True)):
        total += float((lin[f"lin{k}.model.1.weight"][0] * (p - q)[0] ** 2).sum(dim=0).mean())
    return total


def test_lpips_is_its_definition_on_both_scales(rng, weight_files):
    network = load_lpips(*weight_files)
    a, b = rng.random((2, 64, 72, 3))
    assert perceptual_distance(network, a, b, False) == pytest.approx(lpips_by_hand(weight_files, a, b), rel=1e-4)
    assert perceptual_distance(network, a, b, True) == pytest.approx(lpips_by_hand(weight_files, 2 * a - 1, 2 * b - 1), rel=1e-4)
    assert perceptual_distance(network, a, a, True) == 0.0
    with pytest.raises(ReconError, match="at least 31 px"):
        perceptual_distance(network, a[:20], b[:20], True)


def test_weights_that_lack_a_layer_are_refused_by_name(weight_files):
    alexnet, linear = weight_files
    with pytest.raises(ReconError, match=r"alex\.pth.*missing features\.0\.weight"):
        load_lpips(linear, linear)
    state = torch.load(linear)
    del state["lin3.model.1.weight"]
    torch.save(state, linear)
    with pytest.raises(ReconError, match=r"missing lin3\.model\.1\.weight"):
        load_lpips(alexnet, linear)
    assert set(Lpips().linear.state_dict()) == {*state, "lin3.model.1.weight"}


# --- the neighbours to beat


def test_neighbours_reproduce_a_picture_that_changes_evenly():
    times_s = np.array([0.0, 0.1, 0.3, 0.6, 0.7])

    def load(index):
        return np.full((2, 2, 3), times_s[index])

    kept = [3, 0, 1]
    assert neighbour_average(load, kept, times_s, 2)[0, 0, 0] == pytest.approx(0.3)
    assert nearest_kept(load, kept, times_s, 2)[0, 0, 0] == 0.1
    assert neighbour_average(load, kept, times_s, 4)[0, 0, 0] == nearest_kept(load, kept, times_s, 4)[0, 0, 0] == 0.6
    for baseline in (nearest_kept, neighbour_average):
        with pytest.raises(ReconError, match="frame 1 is kept itself"):
            baseline(load, kept, times_s, 1)
        with pytest.raises(ReconError, match="no frame is kept"):
            baseline(load, [], times_s, 1)
