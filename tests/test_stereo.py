"""Stereo tells true distances on real lenses, whatever the exposure does, and is silent where it knows nothing."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from recon.data import open_sequence
from recon.geometry import se3
from recon.geometry.cameras import ray_grid, resize
from recon.stereo.blend import blend
from recon.stereo.matching import MatchOptions, match, relative_difference
from recon.stereo.neighbours import GROUP, PairOptions, choose_keyframes, choose_partners, sample_points, sighting, spread_groups
from recon.stereo.semi_global import DIRECTIONS, aggregate
from recon.stereo.sweep import Picture, inverse_distances, sweep
from recon.types import Camera

PINHOLE = Camera("PINHOLE", 96, 72, (60.0, 60.0, 47.5, 35.5))
FISHEYE = Camera("OPENCV_FISHEYE", 96, 72, (45.0, 45.0, 47.5, 35.5, -0.02, 0.0, 0.0, 0.0))
TRIANGLE = (0.0, 0.0), (2.4, 0.0), (-1.2, 2.0), (-1.2, -2.0)
"""Places (x, y) of the cameras, mm, beside a wall about 20 mm away."""


def wall_picture(camera: Camera, x: float, y: float, distance_mm: float = 20.0, gain: float = 1.0, bias: float = 0.0) -> Picture:
    """A wall at z = `distance_mm` with a smooth random pattern, seen from (x, y, 0)."""
    rng = np.random.default_rng(5)
    waves, phases = rng.normal(0, 1.6, (40, 2)), rng.uniform(0, 2 * np.pi, 40)
    rays = ray_grid(camera)
    hit = rays[..., :2] / rays[..., 2:] * distance_mm + [x, y]
    grey = 0.5 + 0.05 * np.cos(hit @ waves.T + phases).sum(-1)
    pose = np.eye(4)
    pose[:2, 3] = x, y
    return Picture((gain * grey + bias).astype(np.float32), np.ones(grey.shape, bool), pose)


def matched(camera: Camera, pictures: list[Picture], window: int = 7):
    planes = inverse_distances(10.0, 60.0, 48)
    alike = sweep(camera, pictures[0], pictures[1:], planes, window)
    return match(alike, planes, pictures[0].usable, MatchOptions()), planes


@pytest.mark.parametrize("camera", [PINHOLE, FISHEYE], ids=["pinhole", "fisheye"])
def test_a_wall_is_found_at_its_distance_along_every_ray(camera):
    found, _ = matched(camera, [wall_picture(camera, *place) for place in TRIANGLE])
    true = 20.0 / ray_grid(camera)[..., 2]
    inner = np.zeros(true.shape, bool)
    inner[6:-6, 6:-6] = True
    inner &= true < 40
    assert (found.distance[inner] > 0).mean() > 0.97
    error = np.abs(found.distance - true)[inner & (found.distance > 0)] / true[inner & (found.distance > 0)]
    assert np.median(error) < 0.01 and np.percentile(error, 95) < 0.04
    # The median of a normal error is 0.67 of its standard deviation. These pictures have no noise; nothing may be too sure.
    assert 0.15 < np.median(error / found.sigma[inner & (found.distance > 0)]) < 1.4


def test_gain_and_bias_of_the_exposure_change_nothing():
    plain = [wall_picture(FISHEYE, *place) for place in TRIANGLE]
    exposed = [
        plain[0],
        *(
            wall_picture(FISHEYE, *place, gain=g, bias=b)
            for place, g, b in zip(TRIANGLE[1:], (0.6, 1.3, 0.8), (0.2, -0.1, 0.05), strict=True)
        ),
    ]
    first, second = matched(FISHEYE, plain)[0], matched(FISHEYE, exposed)[0]
    assert np.allclose(first.distance, second.distance, rtol=1e-3)


def test_a_wall_without_texture_matches_nowhere():
    blank = [Picture(np.full((72, 96), 0.5, np.float32), p.usable, p.T_world_camera) for p in (wall_picture(PINHOLE, *q) for q in TRIANGLE)]
    assert not matched(PINHOLE, blank)[0].distance.any()


def test_what_a_mask_hides_has_no_say():
    pictures = [wall_picture(PINHOLE, *place) for place in TRIANGLE]
    blind = [pictures[0], *(Picture(p.grey, np.zeros_like(p.usable), p.T_world_camera) for p in pictures[1:])]
    assert not matched(PINHOLE, blind)[0].distance.any()
    hidden = Picture(pictures[0].grey, pictures[0].usable & (np.arange(96) < 48), pictures[0].T_world_camera)
    assert not matched(PINHOLE, [hidden, *pictures[1:]])[0].distance[:, 48:].any()


def test_the_least_alike_picture_is_left_out():
    pictures = [wall_picture(PINHOLE, *place) for place in TRIANGLE]
    wrong = Picture(np.random.default_rng(0).random((72, 96)).astype(np.float32), pictures[3].usable, pictures[3].T_world_camera)
    planes = inverse_distances(10.0, 60.0, 48)
    whole = sweep(PINHOLE, pictures[0], pictures[1:], planes, 7, drop_share=0.34)
    spoiled = sweep(PINHOLE, pictures[0], [*pictures[1:3], wrong], planes, 7, drop_share=0.34)
    at_wall = np.abs(1 / planes - 20).argmin()
    inner = (slice(10, -10), slice(10, -10))
    assert spoiled.correlation[at_wall][inner].mean() > 0.9 * whole.correlation[at_wall][inner].mean()


def brute_force_paths(cost: np.ndarray, small: float, large: float, down: int, right: int) -> np.ndarray:
    """The recursion of Hirschmuller's equation 13, pixel by pixel, by the definition."""
    height, width, planes = cost.shape
    out = np.zeros_like(cost)
    rows = range(height) if down >= 0 else range(height - 1, -1, -1)
    columns = range(width) if right >= 0 else range(width - 1, -1, -1)
    for y, x in itertools.product(rows, columns):
        v, u = y - down, x - right
        if not (0 <= v < height and 0 <= u < width):
            out[y, x] = cost[y, x]
            continue
        for p in range(planes):
            steps = [out[v, u, q] + (0 if q == p else small if abs(q - p) == 1 else large) for q in range(planes)]
            out[y, x, p] = cost[y, x, p] + min(steps) - out[v, u].min()
    return out


def test_aggregation_is_the_recursion_of_its_paper():
    cost = np.random.default_rng(0).random((5, 6, 4))
    expected = np.mean([brute_force_paths(cost, 0.1, 0.5, down, right) for down, right in DIRECTIONS], axis=0)
    assert np.allclose(aggregate(cost, 0.1, 0.5), expected)


def test_two_maps_of_one_wall_agree_and_a_nearer_thing_is_said_to_be_nearer():
    first, second = (wall_picture(FISHEYE, *place) for place in ((0.0, 0.0), (2.0, 1.0)))
    true = (20.0 / ray_grid(FISHEYE)[..., 2]).astype(np.float32)
    apart = relative_difference(FISHEYE, true, first.T_world_camera, true, second.T_world_camera)
    assert np.isnan(apart).mean() < 0.2 and np.nanmax(np.abs(apart)[true < 40]) < 0.05
    nearer = relative_difference(FISHEYE, true, first.T_world_camera, 0.5 * true, second.T_world_camera)
    assert np.nanmedian(nearer) == pytest.approx(np.log(2), abs=0.02)
    assert np.isnan(relative_difference(FISHEYE, true, first.T_world_camera, 0 * true, second.T_world_camera)).all()


def test_the_network_meets_stereo_around_it_and_stereo_is_surer():
    height, width = 60, 80
    true = np.full((height, width), 30.0)
    trusted = np.ones((height, width), bool)
    trusted[20:40, 30:40] = False
    network = 0.8 * true
    found = blend(np.where(trusted, true, 0.0), np.full(true.shape, 0.005), trusted, network, np.full(true.shape, 0.1))
    assert np.allclose(found.distance[trusted], 30.0, rtol=0.01) and np.array_equal(found.from_stereo, trusted)
    assert np.allclose(found.distance[~trusted], 30.0, rtol=0.06)
    assert found.sigma[trusted].max() < 0.1 * found.sigma[~trusted].min()
    alone = blend(np.zeros(true.shape), np.zeros(true.shape), np.zeros(true.shape, bool), network, np.full(true.shape, 0.1))
    assert np.allclose(alone.distance, network) and np.allclose(alone.sigma, 0.1) and not alone.from_stereo.any()


def test_nothing_is_known_where_neither_speaks():
    nothing = np.zeros((20, 30))
    found = blend(nothing, nothing, nothing > 0, nothing, nothing)
    assert not found.distance.any() and not found.sigma.any()


def test_partners_see_the_place_from_the_wanted_angle():
    depth = np.full((72, 96), 20.0)
    points = sample_points(PINHOLE, depth)
    poses = np.tile(np.eye(4), (41, 1, 1))
    poses[:, 0, 3] = np.linspace(-4, 4, 41)
    # At 20 mm, two degrees are 0.7 mm aside; frames are 0.2 mm apart.
    partners = choose_partners(PINHOLE, points, 20, poses, range(41), PairOptions(num=4))
    aside = np.abs(poses[partners, 0, 3])
    assert len(partners) == 4 and np.all((aside > 0.35) & (aside < 1.1))
    assert sum(p < 20 for p in partners) == 2
    seen = sighting(PINHOLE, points, se3.inverse(poses[24]) @ poses[20])
    towards, back = points / np.linalg.norm(points, axis=1, keepdims=True), points - [0.8, 0, 0]
    angles = np.arccos(np.sum(towards * back, axis=1) / np.linalg.norm(back, axis=1))
    assert seen.angle_rad == pytest.approx(np.median(angles), rel=0.05) and seen.overlap > 0.9
    behind = np.diag([1.0, -1.0, -1.0, 1.0])
    assert sighting(PINHOLE, points, behind).overlap == 0
    assert choose_partners(PINHOLE, points, 0, np.stack([np.eye(4), behind]), range(2), PairOptions()) == []


def test_a_still_camera_has_one_keyframe_and_the_end():
    still = np.tile(np.eye(4), (30, 1, 1))
    depth = np.full((72, 96), 20.0)
    assert choose_keyframes(PINHOLE, range(30), still, lambda _: depth, 0.03, 0.85, 100) == [0, 29]
    moving = still.copy()
    moving[:, 0, 3] = np.linspace(0, 10, 30)
    chosen = choose_keyframes(PINHOLE, range(30), moving, lambda _: depth, 0.03, 0.85, 100)
    assert 8 < len(chosen) < 20 and chosen[0] == 0 and chosen[-1] == 29
    assert len(choose_keyframes(PINHOLE, range(30), moving, lambda _: depth, 0.03, 0.85, GROUP)) == GROUP


def test_what_is_left_of_many_keyframes_has_neighbours_that_judge_it():
    assert spread_groups(7, 10) == list(range(7))
    for num, most in ((100, 40), (1000, 41), (9, 8), (50, 4), (50, 2), (5, 1)):
        kept = spread_groups(num, most)
        assert len(kept) <= most and kept == sorted(set(kept)) and kept[0] >= 0 and kept[-1] < num
        if most >= GROUP:
            assert all(k - 1 in kept or k + 1 in kept for k in kept)
            assert (kept[0] == 0 and kept[-1] == num - 1) or most < 2 * GROUP


@pytest.mark.parametrize("radius", [200, 40, 28])
def test_up_to_the_rim_nothing_is_said_that_is_wrong(radius):
    """Windows that the picture's border or the scope's rim cuts are left out."""
    y, x = np.mgrid[:72, :96]
    field = np.hypot(x - 47.5, y - 35.5) < radius
    pictures = [wall_picture(FISHEYE, *place) for place in TRIANGLE]
    pictures = [Picture(p.grey * field, p.usable & field, p.T_world_camera) for p in pictures]
    found, _ = matched(FISHEYE, pictures)
    true = 20.0 / ray_grid(FISHEYE)[..., 2]
    known = (found.distance > 0) & (true < 40)
    error = np.abs(found.distance - true)[known] / true[known]
    assert known.sum() > 0.4 * (field & (true < 40)).sum()
    assert np.percentile(error, 95) < 0.06


def test_stereo_is_sharp_on_a_rendered_tube():
    """The whole matching on pictures of the phantom, with its true poses."""
    sequence = open_sequence("phantom:tube?seed=2&frames=16&width=240&height=200&noise=0.005")
    assert sequence.trajectory_gt is not None and sequence.depth_gt is not None
    lens = resize(sequence.camera, 240, 200)
    poses = sequence.trajectory_gt.T_world_camera
    depth = sequence.depth_gt(8)
    points = sample_points(lens, depth.depth * depth.valid)
    partners = choose_partners(lens, points, 8, poses, range(16), PairOptions())
    assert len(partners) == 6

    def picture(index: int) -> Picture:
        grey = sequence.frames[index].image().astype(np.float32).mean(axis=2) / 255
        return Picture(grey, grey > 0.02, poses[index])

    far = np.linalg.norm(points, axis=1).max()
    planes = inverse_distances(np.linalg.norm(points, axis=1).min() / 2, 2 * far, 96)
    alike = sweep(lens, picture(8), [picture(p) for p in partners], planes, 7)
    found = match(alike, planes, picture(8).usable, MatchOptions())
    true = depth.depth / ray_grid(lens)[..., 2]
    both = (found.distance > 0) & depth.valid
    error = np.abs(found.distance[both] - true[both]) / true[both]
    assert both.sum() > 0.7 * depth.valid.sum()
    assert np.median(error) < 0.02
