"""What the network trains on: pictures and truth agree, nothing is known of the void, the order of organs is certain."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from recon.data.phantom.geometry import organ, rod
from recon.data.phantom.instruments import SHAPES, random_tool, shapes
from recon.data.phantom.noise import noise_volume
from recon.data.phantom.optics import Artefacts, motion_kernel, spoil
from recon.data.phantom.order import order_case
from recon.data.phantom.randomize import free_distance, random_view
from recon.data.phantom.render import Tool, render
from recon.data.phantom.scene import Material, Scene
from recon.data.phantom.shading import Imaging
from recon.data.phantom.variety import BRIGHT, DARK, TRAINING_KINDS, random_tissue, training_scene
from recon.geometry.cameras import ray_grid
from recon.training.shards import KIND_SHARES
from recon.types import Camera

CAMERA = Camera("PINHOLE", 96, 80, (70.0, 70.0, 47.5, 39.5))
MATT = Material((0.5, 0.5, 0.5), variation=0.0, vessels=0.0, grain=0.0, bump=0.0, gloss=0.0)


def ball_in_the_void(centre=(0.0, 0.0, 50.0), radius=12.0):
    ball = organ(np.random.default_rng(0), np.array(centre), np.full(3, radius), noise_volume(0), 0.0, rows=120)
    return Scene((ball,), (MATT,), np.eye(4)[None], noise_volume(0))


@pytest.mark.parametrize("kind", TRAINING_KINDS)
def test_one_seed_one_view(kind):
    def draw(seed):
        return random_view(training_scene(kind, seed), np.random.default_rng(seed), 64, 64, tries=30)

    first, again, other = draw(2), draw(2), draw(3)
    assert first is not None and other is not None
    assert np.array_equal(first[0].image, again[0].image) and np.array_equal(first[0].distance_mm, again[0].distance_mm)
    assert not np.array_equal(first[0].image, other[0].image)
    assert set(KIND_SHARES) == set(TRAINING_KINDS) and sum(KIND_SHARES.values()) == pytest.approx(1)


def test_a_ball_in_the_void_has_its_distance_and_nothing_else_has():
    rendering = render(ball_in_the_void(), CAMERA, np.eye(4), Imaging(noise=0.0), np.random.default_rng(0))
    cosine = ray_grid(CAMERA)[..., 2]
    under = 12.0**2 - 50.0**2 * (1 - cosine**2)
    expected = 50 * cosine - np.sqrt(np.maximum(under, 0))
    inside, outside = under > 8, under < -8
    assert np.abs(rendering.distance_mm - expected)[inside].max() < 0.1
    assert (rendering.distance_mm[outside] == 0).all() and (rendering.image[outside] == 0).all()
    assert rendering.mask.all() and (rendering.faces[outside] == -1).all()
    assert rendering.image[inside].min() > 0


def test_an_empty_view_is_black():
    away = np.diag([1.0, -1.0, -1.0, 1.0])
    rendering = render(ball_in_the_void(), CAMERA, away, Imaging(noise=0.0), np.random.default_rng(0))
    assert not rendering.image.any() and not rendering.distance_mm.any()
    assert free_distance(ball_in_the_void(), away) is None


def test_room_for_the_camera_is_seen():
    near = ball_in_the_void((0.0, 0.0, 13.0), 12.0)
    assert free_distance(near, np.eye(4)) is None
    assert free_distance(ball_in_the_void((0.0, 0.0, 0.0), 40.0), np.eye(4)) == pytest.approx(40, abs=0.1)


@pytest.mark.parametrize("masked", [False, True])
def test_an_instrument_has_its_distance_unless_it_is_masked(masked):
    bar = rod(np.linspace([-40.0, 0.0, 20.0], [40.0, 0.0, 20.0], 20), np.full(20, 3.0), sides=200)
    tool = Tool(Scene((bar,), (MATT,), np.eye(4)[None], noise_volume(0)), masked)
    rendering = render(ball_in_the_void(), CAMERA, np.eye(4), Imaging(noise=0.0), np.random.default_rng(0), tool)
    assert rendering.image[40, 48].min() > 20 and rendering.faces[40, 48] == -1
    assert rendering.mask[40, 48] != masked
    assert rendering.distance_mm[40, 48] == pytest.approx(0.0 if masked else 17.0, abs=0.05)
    assert rendering.mask[0, 0]


@pytest.mark.parametrize("shape", SHAPES)
def test_instruments_stay_before_the_lens(shape):
    for seed in range(20):
        shaft, tip = shapes(np.random.default_rng(seed), shape, 60.0)
        vertices = np.concatenate([part.vertices for part in (shaft, *tip)])
        assert np.isfinite(vertices).all() and np.linalg.norm(vertices, axis=1).max() < 200
    assert len(random_tool(np.random.default_rng(3), 60.0).scene.surfaces) >= 1


def test_albedo_is_drawn_without_regard_to_place():
    rng = np.random.default_rng(0)
    dark, bright = ([max(random_tissue(rng, tone).albedo) for _ in range(50)] for tone in (DARK, BRIGHT))
    assert max(dark) <= DARK[1] + 1e-9 and min(bright) >= BRIGHT[0] - 1e-9 and min(bright) / max(dark) >= 5
    distances, albedos = [], []
    for seed in range(60):
        scene = training_scene("void", seed)
        distances.append(np.linalg.norm(scene.surfaces[-1].vertices.mean(0) - scene.path[0][:3, 3]))
        albedos.append(max(scene.materials[-1].albedo))
    assert abs(np.corrcoef(np.log(distances), np.log(albedos))[0, 1]) < 0.3


def test_the_order_of_two_organs_is_certain_in_200_cases():
    opposed = 0
    for seed in range(100):
        for dark_in_front in (True, False):
            case = order_case(seed, dark_in_front, 64, 48)
            distance = case.rendering.distance_mm
            assert distance[case.near].min() > 0 and distance[case.near].max() < distance[case.far].min()
            assert not (case.near & case.far).any() and case.rendering.mask.all()
            grey = case.rendering.image.mean(axis=-1)
            opposed += (np.median(grey[case.near]) < np.median(grey[case.far])) == dark_in_front
    assert opposed >= 190


def test_turbinates_lie_along_the_passage_and_are_seen_in_front_of_its_wall():
    """Without them the same scene has another wall there, farther away; nothing else changes."""
    seen = 0
    for seed in range(12):
        scene = training_scene("turbinate", seed)
        wall, *bodies = [np.linalg.norm(s.vertices[::20, None] - scene.path[None, ::4, :3, 3], axis=-1).min(axis=1) for s in scene.surfaces]
        assert max(body.max() for body in bodies) < 2.5 * np.median(wall), "a body lies about the wall"
        bare = replace(scene, surfaces=scene.surfaces[:1], materials=scene.materials[:1])
        pose = scene.path[len(scene.path) // 2]
        with_, without = (render(s, CAMERA, pose, Imaging(noise=0.0), np.random.default_rng(0)) for s in (scene, bare))
        on_body = scene.object_of_face[np.maximum(with_.faces, 0)] > 0
        assert (with_.distance_mm <= without.distance_mm + 1e-3).all()
        assert np.array_equal(with_.distance_mm[~on_body], without.distance_mm[~on_body])
        seen += on_body.mean() > 0.05
    assert seen >= 6


def test_artefacts_of_strength_zero_change_nothing():
    image = np.random.default_rng(0).integers(0, 255, (40, 60, 3)).astype(np.uint8)
    assert np.array_equal(spoil(image, Artefacts(), np.random.default_rng(0)), image)
    banded = spoil(np.full_like(image, 128), Artefacts(banding=0.04, banding_rows=10.0), np.random.default_rng(0))
    assert (banded == banded[:, :1]).all() and 0.06 * 255 < np.ptp(banded.astype(float)) < 0.09 * 255


def test_motion_smears_along_its_direction():
    kernel = motion_kernel(6.0, 0.0)
    assert kernel.sum() == pytest.approx(1) and kernel.shape == (7, 7) and np.count_nonzero(kernel.sum(axis=1)) == 1
    assert np.count_nonzero(motion_kernel(0.0, 4.0).sum(axis=0)) == 1
