"""The tile rasteriser against formulas, against every Gaussian at every pixel, and against finite differences."""

from __future__ import annotations

import numba
import numpy as np
import pytest
import torch

from recon.fields.splats.dense import rasterize_dense
from recon.fields.splats.projection import BLUR_PX2, Pinhole, rotations
from recon.fields.splats.rasterize import Splats, rasterize
from recon.types import Camera, ReconError

PARTS = ("means", "quaternions", "scales", "opacities", "features")


def cloud(num: int, width: int, height: int, seed: int = 0, size: float = 0.03) -> tuple[list[torch.Tensor], Pinhole]:
    """Random Gaussians of all shapes, some outside the picture, and the camera that looks at them."""
    generator = torch.Generator().manual_seed(seed)
    focal = 0.9 * width
    z = 1 + 0.5 * torch.rand(num, generator=generator)
    xy = (torch.rand(num, 2, generator=generator) - 0.5) * torch.tensor([width, height]) / focal * 1.2 * z[:, None]
    parts = [
        torch.cat([xy, z[:, None]], dim=1),
        torch.randn(num, 4, generator=generator),
        size * torch.exp(0.7 * torch.randn(num, 3, generator=generator)),
        0.02 + 0.97 * torch.rand(num, generator=generator),
        torch.rand(num, 3, generator=generator),
    ]
    return parts, Pinhole(focal, 1.1 * focal, 0.45 * width, 0.55 * height, width, height)


def slanted_pose() -> torch.Tensor:
    T = torch.eye(4)
    T[:3, :3] = rotations(torch.tensor([[1.0, 0.05, -0.08, 0.03]]))[0]
    T[:3, 3] = torch.tensor([0.02, -0.03, 0.1])
    return T


@pytest.mark.parametrize(("num", "width", "height", "size"), [(1, 16, 16, 0.05), (200, 53, 41, 0.03), (400, 33, 70, 0.1), (50, 7, 5, 0.01)])
def test_tiles_agree_with_every_gaussian_at_every_pixel(num, width, height, size):
    parts, camera = cloud(num, width, height, size=size)
    generator = torch.Generator().manual_seed(1)
    slopes = [torch.randn(height, width, *tail, generator=generator) for tail in ((3,), (), ())]
    results = []
    for draw in (rasterize, rasterize_dense):
        leaves = [part.clone().requires_grad_() for part in [*parts, slanted_pose()]]
        drawn = draw(Splats(*leaves[:5]), leaves[5], camera)
        (drawn.features * slopes[0]).sum().add((drawn.depth * slopes[1]).sum()).add((drawn.alpha * slopes[2]).sum()).backward()
        results.append((drawn, [leaf.grad for leaf in leaves]))
    (fast, fast_gradients), (slow, slow_gradients) = results
    for name in ("features", "depth", "alpha"):
        assert (getattr(fast, name) - getattr(slow, name)).abs().max() < 1e-4, name
    for name, a, b in zip([*PARTS, "pose"], fast_gradients, slow_gradients, strict=True):
        assert (a - b).abs().max() <= 1e-4 * b.abs().max().clamp_min(1e-3), name


@pytest.mark.parametrize("part", range(5))
def test_gradients_are_slopes_of_finite_differences(part):
    parts, camera = cloud(12, 24, 20, size=0.08)
    # Nothing near the thresholds of alpha, where the picture jumps.
    parts[3] = 0.3 + 0.4 * parts[3]
    slope = torch.randn(20, 24, 3, generator=torch.Generator().manual_seed(2))

    def loss(values: list[torch.Tensor]) -> torch.Tensor:
        return (rasterize_dense(Splats(*values), slanted_pose().double(), camera).features * slope).sum()

    leaves = [value.clone().requires_grad_() for value in parts]
    (rasterize(Splats(*leaves), slanted_pose(), camera).features * slope).sum().backward()
    direction = torch.randn(parts[part].shape, generator=torch.Generator().manual_seed(3)).double()
    step = 1e-6
    ends = []
    for sign in (-1, 1):
        moved = [value.double() for value in parts]
        moved[part] = moved[part] + sign * step * direction
        ends.append(float(loss(moved)))
    expected = (ends[1] - ends[0]) / (2 * step)
    found = float((leaves[part].grad.double() * direction).sum())
    assert found == pytest.approx(expected, rel=2e-3, abs=2e-3)


def test_one_gaussian_is_the_formula():
    camera = Pinhole(50.0, 50.0, 10.0, 8.0, 21, 17)
    sigma, z, opacity = 0.04, 2.0, 0.7
    splats = Splats(
        torch.tensor([[0.0, 0.0, z]]), torch.tensor([[1.0, 0, 0, 0]]), torch.full((1, 3), sigma), torch.tensor([opacity]), torch.ones(1, 1)
    )
    drawn = rasterize(splats, torch.eye(4), camera)
    variance = (50 * sigma / z) ** 2 + BLUR_PX2
    x, y = np.meshgrid(np.arange(21) - 10.0, np.arange(17) - 8.0)
    expected = opacity * np.exp(-(x**2 + y**2) / (2 * variance))
    expected[expected < 1 / 255] = 0
    assert np.abs(drawn.features[..., 0].numpy() - expected).max() < 1e-5
    assert np.abs(drawn.alpha.numpy() - expected).max() < 1e-5
    assert drawn.mean_depth()[8, 10] == pytest.approx(z, rel=1e-5)


def test_the_nearer_hides_the_farther_and_what_is_behind_the_lens_is_not_drawn():
    camera = Pinhole(40.0, 40.0, 8.0, 8.0, 17, 17)
    means = torch.tensor([[0, 0, 2.0], [0, 0, 1.0], [0, 0, -1.0]]).requires_grad_()
    colors = torch.eye(3)
    scales, opacities = torch.full((3, 3), 0.3), torch.full((3,), 1.0)
    drawn = rasterize(Splats(means, torch.tensor([[1.0, 0, 0, 0]]).repeat(3, 1), scales, opacities, colors), torch.eye(4), camera)
    middle = drawn.features[8, 8].detach()
    assert middle[1] == pytest.approx(0.999, abs=1e-4)
    assert middle[0] < 2e-3 and middle[2] == 0
    drawn.features.sum().backward()
    assert torch.isfinite(means.grad).all() and (means.grad[2] == 0).all()


def test_pictures_and_gradients_do_not_depend_on_threads():
    parts, camera = cloud(300, 60, 50)
    before = numba.get_num_threads()
    results = []
    try:
        for num in (1, min(2, numba.config.NUMBA_NUM_THREADS)):
            numba.set_num_threads(num)
            leaves = [part.clone().requires_grad_() for part in parts]
            drawn = rasterize(Splats(*leaves), torch.eye(4), camera)
            drawn.features.square().sum().backward()
            results.append([drawn.features.detach(), *(leaf.grad for leaf in leaves)])
    finally:
        numba.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_nothing_to_draw_is_black():
    parts, camera = cloud(5, 20, 12)
    parts[3] = torch.zeros(5)
    drawn = rasterize(Splats(*parts), torch.eye(4), camera)
    assert drawn.features.abs().max() == 0 and drawn.alpha.abs().max() == 0 and drawn.mean_depth().abs().max() == 0


def test_cuda_that_is_not_there_is_told():
    parts, camera = cloud(5, 20, 12)
    with pytest.raises(ReconError, match=r'backend "cuda" needs a CUDA device.*backend "cpu"'):
        rasterize(Splats(*parts), torch.eye(4), camera, "cuda")


def test_only_a_pinhole_is_drawn_through():
    with pytest.raises(ReconError, match="PINHOLE, found OPENCV_FISHEYE"):
        Pinhole.of(Camera("OPENCV_FISHEYE", 10, 10, (5.0, 5.0, 5.0, 5.0, 0.0, 0.0, 0.0, 0.0)))
