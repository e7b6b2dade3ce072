"""Exposure and colours against recordings whose gains, light and texture are known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from fusion_scenes import CAMERA, fused, silent, view_of

from recon.fusion.exposure import Observations, solve_exposure
from recon.fusion.review import review
from recon.fusion.view import rays

DEPTH = 30.0
FALLOFF = np.array([-0.9, 0.45, 0.3])


def observed(seed=0, num_vertices=300, num_frames=12, outliers=0.0):
    """Every vertex in some six frames, with known gains and falloff and a little noise."""
    rng = np.random.default_rng(seed)
    gains = rng.normal(0, 0.3, (num_frames, 3))
    vertex = np.repeat(np.arange(num_vertices), 6)
    frame = np.concatenate([rng.choice(num_frames, 6, replace=False) for _ in range(num_vertices)])
    x = np.stack([rng.normal(0, 0.4, len(vertex)), np.log(rng.uniform(0.3, 1, len(vertex))), np.log(rng.uniform(0.5, 1, len(vertex)))], -1)
    albedo = rng.normal(4.5, 0.3, (num_vertices, 3))
    value = albedo[vertex] + gains[frame] + (x @ FALLOFF)[:, None] + rng.normal(0, 0.02, (len(vertex), 3))
    value[rng.random(len(vertex)) < outliers] += 1.5
    return Observations(vertex, frame, value, x), gains


@pytest.mark.parametrize("outliers", [0.0, 0.08])
def test_gains_and_falloff_are_found_also_among_highlights(outliers):
    observations, gains = observed(outliers=outliers)
    found = solve_exposure(observations, len(gains))
    # A gain common to all frames is one with the albedo.
    assert np.abs((found.log_gain - found.log_gain.mean(axis=0)) - (gains - gains.mean(axis=0))).max() < 0.03
    assert np.abs(found.falloff - FALLOFF).max() < 0.05
    assert found.disagreement < 0.03 < 0.2 < found.disagreement_before


def test_a_term_that_no_lamp_could_cause_is_left_out():
    observations, gains = observed()
    odd = replace(observations, log_color=observations.log_color + 1.4 * observations.falloff[:, :1])  # brighter the farther
    found = solve_exposure(odd, len(gains))
    assert found.falloff[0] == 0 and np.all(found.falloff[1:] > 0.1)


def test_without_overlap_nothing_is_corrected():
    observations, gains = observed()
    once = np.unique(observations.vertex, return_index=True)[1]
    alone = Observations(*(getattr(observations, name)[once] for name in ("vertex", "frame", "log_color", "falloff")))
    found = solve_exposure(alone, len(gains))
    assert not found.log_gain.any() and not found.falloff.any()


def wall_poses(num=9) -> list[np.ndarray]:
    """A camera that wanders before a wall at z = 0 and nears it now and then."""
    poses = []
    for k in range(num):
        T = np.eye(4)
        T[:3, 3] = [4 * np.sin(1.3 * k), 3 * np.cos(2.1 * k), -DEPTH * (0.7 + 0.3 * np.cos(1.7 * k))]
        poses.append(T)
    return poses


def stripes(x, y):
    return 100 + 40 * np.sign(np.sin(2 * np.pi * x / 3.0)) * np.sign(np.sin(2 * np.pi * y / 3.0))


def wall_view(T, index, texture, gain=1.0, is_lit=False, blunder=(0.0, 0.0)):
    """The wall in a texture, recorded under a gain and a lamp, by a camera whose pose is known with a blunder."""
    distance = -T[2, 3]
    ray = rays(CAMERA).astype(np.float64)
    value = texture(ray[..., 0] * distance + T[0, 3], ray[..., 1] * distance + T[1, 3]) * gain
    if is_lit:
        length = np.linalg.norm(ray, axis=-1)
        value = value * (distance * length / DEPTH) ** -0.9 * (1 / length) ** 0.75
    said = T.copy()
    said[:2, 3] += blunder
    color = np.repeat(np.clip(np.rint(value), 0, 255).astype(np.uint8)[..., None], 3, axis=2)
    return view_of(np.full(ray.shape[:2], distance), said, index, color=color)


def middle_of(mesh) -> np.ndarray:
    return np.abs(mesh.vertices[:, :2]).max(axis=1) < 7


def colored(views):
    mesh = fused(views, voxel=0.35, truncation=1.5)
    return mesh, *review(mesh, views.__getitem__, list(map(float, range(len(views)))), DEPTH, 1.5, silent)


def test_frames_of_different_gain_under_a_moving_lamp_give_one_even_wall():
    gains = np.exp(np.random.default_rng(1).normal(0, 0.25, 9))
    views = [wall_view(T, i, lambda x, y: 90 + 0 * x, gains[i], is_lit=True) for i, T in enumerate(wall_poses())]
    mean, best, exposure = colored(views)
    even, uneven = (np.std(m.colors[middle_of(m), 0]) / np.mean(m.colors[middle_of(m), 0]) for m in (best, mean))
    assert even < 0.025 and even < 0.4 * uneven
    error = exposure.log_gain[:, 0] - np.log(gains)
    assert np.std(error) < 0.05
    assert exposure.disagreement < 0.2 * exposure.disagreement_before


def test_texture_stays_sharp_where_poses_are_a_little_off():
    rng = np.random.default_rng(2)
    views = [wall_view(T, i, stripes, blunder=rng.normal(0, 0.35, 2)) for i, T in enumerate(wall_poses())]
    mean, best, _ = colored(views)
    sharp, blurred = (np.std(m.colors[middle_of(m), 0].astype(float)) for m in (best, mean))
    truth = np.std(stripes(*best.vertices[middle_of(best), :2].T))
    assert sharp > 0.8 * truth
    assert sharp > 1.1 * blurred


def test_nothing_from_outside_the_lens_is_mixed_in():
    poses, views = wall_poses(), []
    for i, T in enumerate(poses):
        view = wall_view(T, i, lambda x, y: 120 + 0 * x)
        outside = np.hypot(*np.meshgrid(np.arange(128) - 63.5, np.arange(96) - 47.5)) > 25 + i
        view.color[outside], view.weight[outside] = 0, 0
        views.append(view)
    _, best, _ = colored(views)
    assert best.colors[middle_of(best)].min() > 110


def test_saturated_and_dark_frames_lend_no_colour():
    poses = wall_poses()
    views = [wall_view(T, i, stripes, gain={0: 6.0, 4: 0.05}.get(i, 1.0)) for i, T in enumerate(poses)]
    _, best, _ = colored(views)
    middle = middle_of(best)
    clear = np.abs(np.abs(np.sin(2 * np.pi * best.vertices[:, :2] / 3.0)).min(axis=1)) > 0.5
    at = middle & clear
    ratio = best.colors[at, 0] / stripes(*best.vertices[at, :2].T)
    assert np.std(ratio) / np.mean(ratio) < 0.12
