"""The unit from a second view: right on a rendered wall through any two lenses, honest about its error, and refused when it cannot be."""

from __future__ import annotations

from dataclasses import replace

import cv2
import heightfield
import numpy as np
import pytest

from recon.geometry import se3
from recon.geometry.cameras import project
from recon.tracking.scale_stereo import StereoPair, scale_from_stereo, triangulated
from recon.types import Camera, ReconError

MM_PER_WALL_UNIT = 30.0
TRUE_MM = 12.5
LEFT = heightfield.CAMERA
RIGHT = Camera("OPENCV", 240, 180, (190.0, 192.0, 118.0, 91.0, -0.08, 0.02, 0.001, -0.002))
T_RIGHT_LEFT_MM = se3.exp(np.array([-4.5, 0.1, 0.05, 0.004, 0.02, -0.01]))
WALL = [heightfield.render(pose) for pose in heightfield.sideways(3)]


def right_picture(pose: np.ndarray, seed: int = 0) -> np.ndarray:
    """What the right lens sees beside a left one at `pose`."""
    T = T_RIGHT_LEFT_MM.copy()
    T[:3, 3] /= MM_PER_WALL_UNIT
    return heightfield.render(pose @ se3.inverse(T), RIGHT, seed)[0]


RIGHTS = [right_picture(pose) for pose in heightfield.sideways(3)]


def pair(index: int, noise_seed: int | None = None) -> StereoPair:
    """The run's depth is true but for its unit and, with a seed, a smooth error of some percent."""
    image, depth = WALL[index]
    depth = depth * MM_PER_WALL_UNIT / TRUE_MM
    if noise_seed is not None:
        rng = np.random.default_rng([noise_seed, index])
        smooth = cv2.GaussianBlur(rng.normal(size=depth.shape), (0, 0), 20)
        depth = depth * np.exp(0.05 * smooth / smooth.std()).astype(np.float32)
        image = np.clip(image + rng.normal(0, 3, image.shape), 0, 255).astype(np.uint8)
    mask = np.ones(depth.shape, bool)
    return StereoPair(image, mask, LEFT, RIGHTS[index], RIGHT, T_RIGHT_LEFT_MM, depth.astype(np.float32))


def test_rays_meet_at_the_point_that_both_see():
    points = np.random.default_rng(0).uniform((-20, -15, 40), (20, 15, 90), (50, 3))
    at = points @ T_RIGHT_LEFT_MM[:3, :3].T + T_RIGHT_LEFT_MM[:3, 3]
    found = triangulated(LEFT, RIGHT, T_RIGHT_LEFT_MM, project(LEFT, points)[0], project(RIGHT, at)[0])
    assert len(found.depth_mm) == 50 and np.allclose(found.depth_mm, points[:, 2], rtol=1e-6)
    assert np.abs(found.across_px).max() < 1e-4


def test_the_unit_is_found_through_two_different_lenses():
    found = scale_from_stereo([0, 1, 2], pair)
    assert found.scale.source == "stereo" and found.scale.unit == "mm"
    assert found.scale.value == pytest.approx(TRUE_MM, rel=0.005)
    assert abs(found.scale.value - TRUE_MM) < 3 * found.scale.sigma < 0.05 * TRUE_MM
    assert found.figures["num_pairs"] == 3 and [window.index for window in found.windows] == [0, 1, 2]


def test_its_sigma_covers_errors_of_the_depth_that_it_is_held_against():
    off = []
    for seed in range(8):
        found = scale_from_stereo([0, 1, 2], lambda index, seed=seed: pair(index, seed))
        off.append((found.scale.value - TRUE_MM) / found.scale.sigma)
    assert 0.4 < np.sqrt(np.mean(np.square(off))) < 1.8


def test_a_turned_calibration_shows_in_the_sigma():
    tilt = se3.exp(np.array([0.0, 0.0, 0.0, 0.004, 0.0, 0.0]))
    good, bad = (
        scale_from_stereo([0], lambda _, T=T: replace(pair(0), T_right_left_mm=T)) for T in (T_RIGHT_LEFT_MM, tilt @ T_RIGHT_LEFT_MM)
    )
    assert abs(bad.figures["epipolar_bias_px"]) == pytest.approx(0.8, abs=0.2)
    assert bad.scale.sigma > 3 * good.scale.sigma


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda p: None, "none of 1 posed frames has a second view"),
        (lambda p: replace(p, right_image=np.full_like(p.right_image, 90)), "0 features met in 1 stereo pairs"),
        (lambda p: replace(p, depth=np.zeros_like(p.depth)), "in 0 parts of the pictures that have depth"),
        (lambda p: replace(p, T_right_left_mm=se3.exp(np.array([-4500.0, 0, 0, 0, 0, 0]))), r"4.5e\+03 mm apart.*in millimetres\?"),
    ],
)
def test_what_gives_no_unit_is_refused(change, says):
    with pytest.raises(ReconError, match=says):
        scale_from_stereo([0], lambda index: change(pair(index)))
