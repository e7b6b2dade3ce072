"""The unit from an instrument's width: the shaft found where it is through any lens, its touch found among hovering, and honest doubt."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest
from shafts import SLANT, WIDTH_MM, silhouette

from recon.geometry.cameras import project
from recon.tracking.scale_instrument import InstrumentView, find_shaft, scale_from_instrument
from recon.types import Camera, ReconError

PINHOLE = Camera("PINHOLE", 320, 256, (260.0, 260.0, 159.5, 127.5))
FISHEYE = Camera("OPENCV_FISHEYE", 320, 256, (190.0, 190.0, 159.5, 127.5, -0.03, 0.0, 0.0, 0.0))
TRUE_MM = 12.5
TIPS_MM = [(4.0, 2.0, 60.0), (-8.0, 6.0, 75.0), (0.0, -5.0, 50.0)]


def view(tip_mm: tuple[float, float, float], camera: Camera = PINHOLE, gap: float = 1.0, jaws: bool = False) -> InstrumentView:
    """Tissue is a plane that the tip touches, or `gap` times as far away."""
    instrument = silhouette(camera, np.array(tip_mm), SLANT, jaws)
    tissue = ~cv2.dilate(instrument.astype(np.uint8), np.ones((5, 5), np.uint8)).astype(bool)
    return InstrumentView(camera, instrument, tissue, np.where(tissue, gap * tip_mm[2] / TRUE_MM, 0))


@pytest.mark.parametrize("camera", [PINHOLE, FISHEYE], ids=lambda camera: camera.model)
@pytest.mark.parametrize("tip_mm", TIPS_MM)
@pytest.mark.parametrize("jaws", [False, True])
def test_the_tip_is_placed_in_millimetres(camera, tip_mm, jaws):
    shaft = find_shaft(silhouette(camera, np.array(tip_mm), SLANT, jaws), camera, WIDTH_MM)
    assert np.linalg.norm(shaft.tip_px - project(camera, np.array([tip_mm]))[0][0]) < shaft.width_px
    # The foremost pixel is the rim of the blunt end, half a width (of the jaws, where there are any) farther than the axis' end.
    assert -0.01 < shaft.tip_mm[2] / tip_mm[2] - 1 < 0.07
    assert np.linalg.norm(shaft.tip_mm - tip_mm) < 0.8 * WIDTH_MM


def recording(seed: int, touching: float) -> dict[int, InstrumentView]:
    """Frames of which a share touches; the others hover up to a third of the depth in front, and depth errs by 5 %."""
    rng = np.random.default_rng(seed)
    views = {}
    for index in range(30):
        gap = 1.0 if rng.random() < touching else 1 / rng.uniform(0.67, 1.0)
        found = view((rng.uniform(-8, 8), rng.uniform(-6, 6), rng.uniform(45, 80)), gap=gap)
        views[index] = replace(found, depth=found.depth * np.exp(rng.normal(0, 0.05)))
    return views


@pytest.mark.parametrize(("seed", "touching"), [(0, 0.4), (1, 0.6), (2, 1.0), (3, 0.8)])
def test_its_sigma_covers_hovering_and_noise(seed, touching):
    found = scale_from_instrument(range(30), recording(seed, touching).get, WIDTH_MM)
    assert (found.scale.source, found.scale.unit, len(found.windows)) == ("instrument", "mm", 5)
    assert abs(found.scale.value - TRUE_MM) < 1.5 * found.scale.sigma
    assert 0.1 * TRUE_MM < found.scale.sigma < 0.25 * TRUE_MM


def blob(camera: Camera) -> np.ndarray:
    return np.linalg.norm(np.stack(np.mgrid[:256, :320], axis=-1) - (128, 160), axis=-1) < 40


@pytest.mark.parametrize(
    ("view_of", "says"),
    [
        (lambda index: None, "0 of 0 frames with an instrument"),
        (lambda index: replace(view(TIPS_MM[0]), instrument=blob(PINHOLE)), "0 of 8 frames with an instrument show a straight shaft"),
        (lambda index: replace(view(TIPS_MM[0]), depth=np.zeros((256, 320))), "0 of 8 frames.*tissue with depth at its tip"),
    ],
)
def test_what_shows_no_shaft_is_refused(view_of, says):
    with pytest.raises(ReconError, match=says):
        scale_from_instrument(range(8), view_of, WIDTH_MM)
