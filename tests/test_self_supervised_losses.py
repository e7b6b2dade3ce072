"""The losses of self-supervised training against their definitions, written out as plain loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck

from recon.geometry.torch_cameras import TorchLens
from recon.geometry.torch_se3 import motion
from recon.geometry.warp import correspond, sample
from recon.losses import masked_mean
from recon.losses.appearance import refined_target, transform_constraint
from recon.losses.consistency import depth_inconsistency
from recon.losses.occlusion import splat_count, visible_mask
from recon.losses.photometric import auto_mask, minimum_over_sources, photometric_error, ssim_error
from recon.losses.smoothness import edge_aware, relative_disparity, total_variation
from recon.types import Camera


def everywhere(*shape: int) -> torch.Tensor:
    return torch.ones(*shape, dtype=torch.bool)


def doubles(*shapes: tuple[int, ...]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    return [torch.rand(*shape, generator=generator, dtype=torch.float64) for shape in shapes]


def ssim_by_loop(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(1 - SSIM) / 2 of one channel, window by window."""
    height, width = a.shape
    a, b = np.pad(a, 1, mode="reflect"), np.pad(b, 1, mode="reflect")
    out = np.zeros((height, width))
    for y in range(height):
        for x in range(width):
            p, q = a[y : y + 3, x : x + 3], b[y : y + 3, x : x + 3]
            covariance = np.mean((p - p.mean()) * (q - q.mean()))
            likeness = (2 * p.mean() * q.mean() + 1e-4) * (2 * covariance + 9e-4)
            most = (p.mean() ** 2 + q.mean() ** 2 + 1e-4) * (p.var() + q.var() + 9e-4)
            out[y, x] = min(max((1 - likeness / most) / 2, 0.0), 1.0)
    return out


def test_ssim_is_its_definition():
    a, b = doubles((2, 3, 7, 9), (2, 3, 7, 9))
    expected = [[ssim_by_loop(p.numpy(), q.numpy()) for p, q in zip(i, j, strict=True)] for i, j in zip(a, b, strict=True)]
    np.testing.assert_allclose(ssim_error(a, b).numpy(), expected, atol=1e-12)


def test_equal_pictures_have_no_photometric_error():
    (a,) = doubles((1, 3, 8, 8))
    assert photometric_error(a, a, everywhere(1, 8, 8)).abs().max() < 1e-12
    assert photometric_error(a.float(), a.float(), everywhere(1, 8, 8)).abs().max() < 1e-4


@pytest.mark.parametrize(
    "camera",
    [
        Camera("OPENCV", 32, 24, (30.0, 31.0, 15.0, 12.0, -0.2, 0.03, 0.01, -0.01)),
        Camera("OPENCV_FISHEYE", 32, 24, (20.0, 20.0, 15.0, 12.0, -0.1, 0.0, 0.0, 0.0)),
        Camera("SCARAMUZZA", 32, 24, (16.0, 12.0, 19.0, 0.0, -0.03, 0.0009, -0.00007, 1.0, 0.003, -0.003)),
    ],
    ids=lambda camera: camera.model,
)
def test_without_motion_there_is_no_loss(camera):
    image, depth = doubles((1, 3, 24, 32), (1, 24, 32))
    lens = TorchLens([camera], dtype=torch.float64)
    zero = torch.zeros(1, 3, dtype=torch.float64)
    where = correspond(20.0 + depth, motion(zero, zero), lens)
    assert where.valid.float().mean() > 0.9
    # Rounding at the lens' rim is all that is left, and SSIM divides it by 0.0009.
    assert photometric_error(sample(image, where.pixels), image, where.valid).max() < 1e-5
    assert depth_inconsistency(where, 20.0 + depth, where.valid).max() < 1e-6


def test_photometric_error_is_the_published_mixture_and_zero_outside_the_mask():
    a, b = doubles((2, 3, 6, 7), (2, 3, 6, 7))
    mask = torch.rand(2, 6, 7) > 0.4
    expected = 0.85 * ssim_error(a, b).mean(dim=1) + 0.15 * (a - b).abs().mean(dim=1)
    assert torch.allclose(photometric_error(a, b, mask), expected * mask)
    assert gradcheck(lambda a: photometric_error(a, b, mask), (a.requires_grad_(),))


def test_the_best_source_that_sees_the_pixel_counts():
    errors = torch.tensor([[[[0.5, 0.1, 0.3]]], [[[0.2, 0.4, 0.0]]]])
    masks = torch.tensor([[[[True, False, False]]], [[[True, True, False]]]])
    error, seen = minimum_over_sources(errors, masks)
    assert torch.equal(error, torch.tensor([[[0.2, 0.4, 0.0]]])) and seen.tolist() == [[[True, True, False]]]


def test_a_still_camera_leaves_nothing_to_learn_from():
    a, b = doubles((1, 3, 6, 7), (1, 3, 6, 7))
    everything = everywhere(1, 6, 7)
    unwarped = photometric_error(a, b, everything)
    assert not auto_mask(unwarped, unwarped, everything).any()
    assert auto_mask(0.5 * unwarped, unwarped, everything).all()
    assert not auto_mask(0.5 * unwarped, unwarped, ~everything).any()


def edge_aware_by_loop(values: np.ndarray, guide: np.ndarray) -> float:
    """Published reduction for one image of (c, h, w) values and (g, h, w) guide."""
    total = 0.0
    for axis in (1, 2):
        change = np.abs(np.diff(values, axis=axis)).mean(axis=0)
        total += np.mean(change * np.exp(-np.abs(np.diff(guide, axis=axis)).mean(axis=0)))
    return total


def test_smoothness_is_its_definition():
    values, guide = doubles((1, 2, 6, 7), (1, 3, 6, 7))
    assert np.isclose(edge_aware(values, guide, everywhere(1, 6, 7)).mean(), edge_aware_by_loop(values[0].numpy(), guide[0].numpy()))
    plain = total_variation(values, everywhere(1, 6, 7)).mean()
    assert np.isclose(plain, edge_aware_by_loop(values[0].numpy(), np.zeros((1, 6, 7))))
    assert gradcheck(lambda v: edge_aware(v, guide, everywhere(1, 6, 7)).mean(), (values.requires_grad_(),))


def test_smoothness_of_a_ramp_is_its_slope_and_edges_of_the_picture_forgive():
    ramp = torch.arange(5.0).expand(1, 1, 4, 5)
    step = torch.tensor([0.0, 0.0, 2.0, 2.0, 2.0]).expand(1, 3, 4, 5)
    out = edge_aware(ramp, step, everywhere(1, 4, 5))
    assert torch.allclose(out.across, torch.tensor([1.0, float(np.exp(-2.0)), 1.0, 1.0]).expand(1, 4, 4))
    assert (out.down == 0).all()


def test_a_change_counts_only_between_two_pixels_of_the_mask():
    values = torch.tensor([[[[0.0, 1.0, 1e6, 3.0, 5.0]]]]).expand(1, 1, 2, 5)
    mask = everywhere(1, 2, 5)
    mask[..., 2] = False
    out = total_variation(values, mask)
    assert out.across[0, 0].tolist() == [1.0, 0.0, 0.0, 2.0]
    assert out.mean().item() == 1.5


def test_relative_disparity_does_not_know_the_scale():
    (disparity,) = doubles((2, 4, 5))
    mask = everywhere(2, 4, 5)
    mask[0, 0, 0] = False
    scaled = disparity.clone()
    scaled[0] *= 7.0
    assert torch.allclose(relative_disparity(disparity, mask), relative_disparity(scaled, mask), atol=1e-6)
    scaled[0, 0, 0] = 1e6
    assert torch.allclose(relative_disparity(scaled, mask)[mask], relative_disparity(disparity, mask)[mask], atol=1e-6)
    assert abs(masked_mean(relative_disparity(disparity, mask)[:1], mask[:1]).item() - 1.0) < 1e-5


def splat_by_loop(flow: np.ndarray) -> np.ndarray:
    _, height, width = flow.shape
    count = np.zeros((height, width))
    for y in range(height):
        for x in range(width):
            v, u = y + flow[0, y, x], x + flow[1, y, x]
            for row in range(height):
                for column in range(width):
                    count[row, column] += max(0.0, 1.0 - abs(v - row)) * max(0.0, 1.0 - abs(u - column))
    return count


def test_splatting_is_its_definition():
    flow = 6.0 * torch.rand(2, 2, 6, 8) - 3.0
    np.testing.assert_allclose(splat_count(flow).numpy(), [splat_by_loop(one.numpy()) for one in flow], atol=1e-5)


def test_without_flow_every_pixel_is_seen_once():
    still = torch.zeros(1, 2, 5, 6)
    assert (splat_count(still) == 1.0).all() and visible_mask(still).all()


def test_what_a_front_hides_is_found():
    """The left half of the source moves three pixels right in the target, over the right half."""
    flow = torch.zeros(1, 2, 4, 10)
    flow[:, 1, :, :5] = 3.0
    flow.requires_grad_()
    assert splat_count(flow)[0, 0].tolist() == [0, 0, 0, 1, 1, 2, 2, 2, 1, 1]
    visible = visible_mask(flow)
    assert visible[0, 0].tolist() == [False] * 3 + [True] * 7
    assert not splat_count(flow).requires_grad


def test_the_refined_target_takes_the_brightness_of_the_source():
    target, source = torch.full((1, 3, 4, 4), 0.9), torch.full((1, 3, 4, 4), 0.5)
    visible = everywhere(1, 4, 4)
    visible[0, 0, 1] = False
    refined = refined_target(target, source - target, visible)
    assert torch.allclose(refined[:, :, 0, 1], target[:, :, 0, 1]) and torch.allclose(refined[:, :, 1], source[:, :, 1])
    assert refined_target(target, torch.ones_like(target), visible).max() == 1.0
    # SSIM windows of the first two rows touch the hidden pixel.
    assert photometric_error(refined, source, visible)[0, 2:].max() < 1e-5 < 0.1 < photometric_error(target, source, visible)[0, 2:].min()
    assert (transform_constraint(refined, source, visible) < 1e-6).all()
    assert (transform_constraint(target, source, visible) > 0).tolist() == visible.tolist()


def test_the_transform_constraint_teaches_the_appearance_only():
    target, flow, registration = (x.requires_grad_() for x in doubles((1, 3, 4, 4), (1, 3, 4, 4), (1, 3, 4, 4)))
    transform_constraint(refined_target(target, 0.1 * flow, everywhere(1, 4, 4)), registration, everywhere(1, 4, 4)).sum().backward()
    assert registration.grad is None and flow.grad.abs().sum() > 0


def test_depth_of_one_surface_is_consistent_and_its_scale_matters():
    camera = Camera("PINHOLE", 12, 10, (20.0, 20.0, 5.5, 4.5))
    lens = TorchLens([camera], dtype=torch.float64)
    closer = torch.eye(4, dtype=torch.float64)[None].clone()
    closer[0, 2, 3] = -10.0
    depth, depth_source = torch.full((1, 10, 12), 50.0).double(), torch.full((1, 10, 12), 40.0).double()
    where = correspond(depth, closer, lens)
    assert depth_inconsistency(where, depth_source, where.valid).abs().max() < 1e-12
    twice = depth_inconsistency(where, 2.0 * depth_source, where.valid)
    assert torch.allclose(twice[where.valid], torch.tensor(1.0 / 3.0).double()) and (twice[~where.valid] == 0).all()
    assert 0 < where.valid.sum() < where.valid.numel()


def test_consistency_has_the_right_gradient():
    lens = TorchLens([Camera("PINHOLE", 6, 5, (8.0, 8.0, 2.5, 2.0))], dtype=torch.float64)
    depth, depth_source, w, t = doubles((1, 5, 6), (1, 5, 6), (1, 3), (1, 3))

    def loss(depth, depth_source, w, t):
        where = correspond(5.0 + depth, motion(0.1 * w, 0.3 * t), lens)
        return depth_inconsistency(where, 6.0 + depth_source, where.valid)

    assert gradcheck(loss, [x.requires_grad_() for x in (depth, depth_source, w, t)])


@pytest.mark.parametrize("mask", [everywhere(2, 3), ~everywhere(2, 3)], ids=["full", "empty"])
def test_the_mean_of_nothing_is_nothing(mask):
    values = torch.arange(6.0).reshape(2, 3).requires_grad_()
    mean = masked_mean(values, mask)
    mean.backward()
    assert mean.item() == (2.5 if mask.all() else 0.0)
    assert torch.isfinite(values.grad).all()
