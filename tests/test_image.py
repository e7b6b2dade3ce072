"""Scope field, highlights, instruments and frame quality on images whose answer is known, and on real ones where at hand."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from recon.image.highlights import highlight_mask
from recon.image.instruments import judge_polarity
from recon.image.quality import GateLimits, Quality, blur_limit, blur_score, measure_quality, rejections
from recon.image.scope import dark_rim, find_scope_mask
from recon.io.images import read_image
from recon.types import ReconError

pytestmark = pytest.mark.filterwarnings("error")

HEIGHT, WIDTH = 240, 320
DATA = Path(__file__).parents[2] / "shared" / "data"
V, U = np.mgrid[:HEIGHT, :WIDTH].astype(np.float64)
RADIUS = np.hypot(U - 159.5, V - 119.5)
EVERYWHERE = np.ones((HEIGHT, WIDTH), dtype=bool)


def tissue(seed: int, brightness: float = 1.0) -> np.ndarray:
    """Red, textured at several scales, darker towards the corners."""
    rng = np.random.default_rng(seed)
    texture = sum(cv2.resize(rng.normal(size=(n, n)), (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC) for n in (6, 24, 96))
    shade = (0.75 + 0.08 * texture) / (1.0 + (RADIUS / 200.0) ** 2) * brightness
    return np.clip(shade[..., None] * (230.0, 110.0, 95.0), 0, 255).astype(np.uint8)


FIELDS = {
    "round": RADIUS < 105.0,
    "oval cut at top and bottom": (((U - 170.0) / 100.0) ** 2 + ((V - 119.5) / 135.0) ** 2) < 1.0,
    "cut corners": (RADIUS < 180.0),
    "octagon": (np.abs(U - 159.5) + np.abs(V - 119.5) < 220.0),
    "pillarbox": (np.abs(U - 159.5) < 120.0),
}


@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize("border_level", [0, 6])
def test_scope_field_of_any_shape(name, border_level):
    field = FIELDS[name]
    frames = [np.where(field[..., None], tissue(seed), border_level).astype(np.uint8) for seed in range(6)]
    found = find_scope_mask(frames)
    assert not (found & ~field).any()
    assert (found & field).sum() > 0.93 * field.sum()


def test_full_frame_has_no_border_even_with_vignetted_corners():
    assert find_scope_mask([tissue(seed) for seed in range(4)]).all()
    vignetted = [(tissue(seed) * np.exp(-((RADIUS / 150.0) ** 2))[..., None]).astype(np.uint8) for seed in range(4)]
    assert find_scope_mask(vignetted).mean() > 0.97


def test_dark_lumen_and_shadow_at_the_border_stay_inside():
    field = FIELDS["round"]
    dark = (np.hypot(U - 160.0, V - 120.0) < 40.0) | (np.hypot(U - 60.0, V - 120.0) < 20.0)
    found = find_scope_mask([np.where((field & ~dark)[..., None], tissue(seed), 1).astype(np.uint8) for seed in range(6)])
    assert found[100:140, 140:180].all()
    assert (found & field).sum() > 0.92 * field.sum()


def test_overlay_text_and_stray_white_frames_are_not_the_scope():
    field = FIELDS["round"]
    frames = [np.where(field[..., None], tissue(seed), 0).astype(np.uint8) for seed in range(20)]
    for frame in frames:
        cv2.putText(frame, "12:34:56", (2, 14), cv2.FONT_HERSHEY_SIMPLEX, 0.4, (255, 255, 255), 1)
    frames[7][:] = 255
    found = find_scope_mask(frames)
    assert not (found & ~field).any()
    assert (found & field).sum() > 0.93 * field.sum()


def test_total_darkness_is_all_valid_and_no_frame_is_an_error():
    assert find_scope_mask([np.zeros((30, 40, 3), np.uint8)]).all()
    with pytest.raises(ReconError, match="no frame"):
        find_scope_mask([])


def test_border_that_moves_in_is_found_per_frame():
    scope = RADIUS < 105.0
    moved = np.where((np.hypot(U - 163.5, V - 119.5) < 105.0)[..., None], tissue(0), 0).astype(np.uint8)
    rim = dark_rim(moved, scope)
    assert rim[120, 56] and not rim[120, 100:260].any()
    assert not dark_rim(tissue(0), EVERYWHERE).any()


@pytest.mark.parametrize("exposure", [0.5, 1.0])
def test_highlights_are_masked_and_broad_bright_tissue_is_not(exposure):
    image = tissue(0).astype(np.float64)
    glow = np.clip(1.6 - np.hypot(U - 250.0, V - 120.0) / 60.0, 0.0, 1.0)[..., None]
    image = image * (1.0 - 0.8 * glow) + 0.8 * glow * (250.0, 235.0, 225.0)
    spot = np.hypot(U - 90.0, V - 80.0) < 4.0
    image[spot] = 250.0
    keep = highlight_mask((image * exposure).astype(np.uint8), EVERYWHERE)
    assert not keep[spot].any()
    assert (~keep).sum() < 3 * spot.sum()


def test_tissue_without_gloss_keeps_every_pixel():
    assert highlight_mask(tissue(1), EVERYWHERE).all()
    assert highlight_mask(tissue(1, 0.2), EVERYWHERE).all()
    assert highlight_mask(np.zeros((30, 40, 3), np.uint8), np.ones((30, 40), bool)).all()


def test_blur_score_grows_with_blur_and_hardly_depends_on_resolution():
    image = tissue(2)
    scores = [blur_score(image, EVERYWHERE)] + [blur_score(cv2.GaussianBlur(image, (0, 0), s), EVERYWHERE) for s in (0.7, 1.5, 3.0, 6.0)]
    assert np.all(np.diff(scores) > 0.0)
    assert scores[-1] > 0.8 and scores[0] < 0.6
    soft = cv2.GaussianBlur(image, (0, 0), 2.0)
    double = cv2.resize(soft, None, fx=2, fy=2, interpolation=cv2.INTER_CUBIC)
    assert blur_score(double, np.ones((2 * HEIGHT, 2 * WIDTH), bool)) == pytest.approx(blur_score(soft, EVERYWHERE), abs=0.06)


def test_blur_score_does_not_see_the_mask_border():
    soft = cv2.GaussianBlur(tissue(2), (0, 0), 3.0)
    field = FIELDS["round"]
    cut = np.where(field[..., None], soft, 0).astype(np.uint8)
    assert blur_score(cut, field) == pytest.approx(blur_score(soft, field), abs=0.01)


def test_gate_rejects_what_cannot_be_seen_and_says_why():
    frames = [tissue(seed) for seed in range(8)]
    frames.append(np.full((HEIGHT, WIDTH, 3), 3, np.uint8))
    frames.append(np.full((HEIGHT, WIDTH, 3), 255, np.uint8))
    frames.append(cv2.GaussianBlur(tissue(9), (0, 0), 6.0))
    qualities = [measure_quality(frame, EVERYWHERE, EVERYWHERE) for frame in frames]
    qualities.append(measure_quality(tissue(0), RADIUS < 20.0, EVERYWHERE))
    reasons = rejections(qualities, GateLimits())
    assert reasons[:8] == [None] * 8
    assert reasons[8] == "too dark: 100% of the field is black, limit 90%"
    assert reasons[9] == "overexposed: 100% of the field is saturated, limit 80%"
    assert reasons[10].startswith("blurred: blur score 0.") and "limit for this recording 0." in reasons[10]
    assert reasons[11].startswith("covered: 2% of the field")


def test_blur_limit_follows_the_recording():
    limits = GateLimits()
    even, uneven = np.full(20, 0.5), np.linspace(0.3, 0.7, 21)
    assert blur_limit(even, limits) == pytest.approx(0.5 + limits.blur_margin)
    assert blur_limit(uneven, limits) > uneven.max()
    assert blur_limit(even + 0.4, limits) == limits.blur_max
    assert blur_limit(np.zeros(0), limits) == limits.blur_max
    assert rejections([Quality(1.0, 0.0, 1.0, 0.0, 0.0)], limits)[0].startswith("too dark")


def instrument_frames() -> list[tuple[np.ndarray, np.ndarray]]:
    samples = []
    for seed in range(5):
        shaft = np.abs((V - 200.0) + 0.6 * (U - 250.0) * (1 - 0.1 * seed)) < 18.0
        shaft &= U > 180.0
        image = tissue(seed)
        image[shaft] = (150, 152, 155)
        samples.append((image, shaft))
    return samples


def test_polarity_is_judged_from_the_images():
    samples = instrument_frames()
    right = judge_polarity(samples, EVERYWHERE)
    assert (right.white, right.is_clear) == ("instrument", True)
    wrong = judge_polarity([(image, ~mask) for image, mask in samples], EVERYWHERE)
    assert (wrong.white, wrong.is_clear) == ("tissue", True)
    assert "more colourful" in wrong.reason


def test_polarity_of_masks_without_instruments_and_of_unclear_ones():
    image = tissue(0)
    assert judge_polarity([(image, EVERYWHERE)] * 3, EVERYWHERE).white == "tissue"
    assert judge_polarity([(image, ~EVERYWHERE)] * 3, EVERYWHERE).white == "instrument"
    half = judge_polarity([(np.full_like(image, 90), U < WIDTH / 2)] * 3, EVERYWHERE)
    assert (half.white, half.is_clear) == ("instrument", False)
    assert judge_polarity([], EVERYWHERE).reason == "no frame has a mask"


def spread_images(folder: str, pattern: str) -> list[np.ndarray]:
    files = sorted((DATA / folder).glob(pattern))
    if not files:
        pytest.skip(f"{DATA / folder} is absent: these images are not part of the project")
    return [read_image(file) for file in files[:: max(1, len(files) // 8)][:8]]


@pytest.mark.parametrize(
    ("folder", "pattern", "share"),
    [
        ("nasal/seq_b", "[0-9]*.jpg", (0.38, 0.44)),
        ("c3vd_like/colon_a", "*_color.png", (0.94, 0.961)),
        ("endonerf_like/pull_a/images", "*.png", (1.0, 1.0)),
        ("servct_like", "*/Left_rectified/*.png", (1.0, 1.0)),
    ],
)
def test_scope_field_of_recordings(folder, pattern, share):
    images = spread_images(folder, pattern)
    scope = find_scope_mask(images)
    assert share[0] <= scope.mean() <= share[1]
    qualities = [measure_quality(image, scope & highlight_mask(image, scope), scope) for image in images[:3]]
    assert rejections(qualities, GateLimits()) == [None] * 3
    assert min(quality.valid_share for quality in qualities) > 0.75
