"""The unit measured from another device's path: right factor, honest sigma, drift that shows, and a refusal where nothing is known."""

from __future__ import annotations

import numpy as np
import pytest

from recon.geometry import se3
from recon.tracking.scale_sources import scale_from_poses
from recon.types import ReconError, Trajectory


def path(positions: np.ndarray, times: np.ndarray, unit: str = "unitless") -> Trajectory:
    T = np.tile(np.eye(4), (len(positions), 1, 1))
    T[:, :3, 3] = positions
    return Trajectory(np.arange(len(positions)), times, T, unit)


def walk(num: int = 200) -> np.ndarray:
    """A winding way, mm."""
    t = np.linspace(0, 6, num)
    return np.column_stack([30 * np.sin(t), 20 * np.cos(1.7 * t), 15 * t])


TIMES = np.arange(200) / 25.0
TURN = se3.exp(np.array([5.0, -3.0, 2.0, 0.4, -0.7, 1.1]))


def test_the_factor_is_found_in_any_world_of_the_device():
    device = path(walk() @ TURN[:3, :3].T + TURN[:3, 3], TIMES, "mm")
    found = scale_from_poses(path(walk() / 12.5, TIMES), device)
    assert found.scale.source == "poses" and found.scale.unit == "mm"
    assert found.scale.value == pytest.approx(12.5, rel=1e-9) and found.scale.sigma < 1e-6
    assert found.residual_mm < 1e-9
    assert [w.factor_mm for w in found.windows] == pytest.approx([12.5] * 5)


def test_its_sigma_covers_the_error_that_noise_makes():
    off = []
    for seed in range(40):
        noise = np.random.default_rng(seed).normal(0, 2.0, (200, 3))
        found = scale_from_poses(path(walk() / 12.5, TIMES), path(walk() + noise, TIMES, "mm"))
        off.append((found.scale.value - 12.5) / found.scale.sigma)
    assert 0.6 < np.std(off) < 1.7


def test_a_unit_that_shrinks_on_the_way_shows_in_the_windows():
    steps = np.diff(walk(), axis=0, prepend=walk()[:1]) / 12.5 * np.linspace(1.0, 0.8, 200)[:, None]
    found = scale_from_poses(path(np.cumsum(steps, axis=0), TIMES), path(walk(), TIMES, "mm"))
    factors = [w.factor_mm for w in found.windows]
    assert all(np.diff(factors) > 0) and factors[-1] / factors[0] == pytest.approx(1 / 0.84, rel=0.1)


def test_a_device_of_another_rate_meets_in_time():
    fine = np.arange(800) / 100.0
    device = path(np.column_stack([np.interp(fine, TIMES, axis) for axis in walk().T]), fine, "mm")
    assert scale_from_poses(path(walk() / 12.5, TIMES), device).scale.value == pytest.approx(12.5, rel=0.01)


@pytest.mark.parametrize(
    ("device", "says"),
    [
        (path(walk()[:5], TIMES[:5], "mm"), "needs 10 frames that both paths have, found 5"),
        (path(walk() * 1e-3, TIMES, "mm"), "moves by 2 mm or more"),
        (path(walk(), TIMES + 1000.5, "mm"), "matched by order|have a true one within"),
    ],
)
def test_what_says_nothing_is_refused(device, says):
    ours = path(walk() / 12.5, TIMES)
    if says.startswith("matched"):
        # As many poses on another clock: taken in order.
        assert scale_from_poses(ours, device).scale.value == pytest.approx(12.5)
        return
    with pytest.raises(ReconError, match=says):
        scale_from_poses(ours, device)
