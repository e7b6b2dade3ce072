"""Parts from factorised features: shared by all views, blind to the features' scale, and best aligned at the true depth."""

from __future__ import annotations

import math

import torch
from torch.nn import functional

from recon.geometry.torch_cameras import TorchLens
from recon.geometry.warp import correspond, sample
from recon.losses import masked_mean
from recon.losses.segmentation import factorised, part_error, shared_parts, weak_texture
from recon.types import Camera


def mixture(seed, places=60, channels=12, number=3, batch=2):
    generator = torch.Generator().manual_seed(seed)
    weights, factors = (torch.rand(batch, *shape, generator=generator) for shape in ((places, number), (number, channels)))
    return weights**3 @ factors**3


def test_what_has_few_factors_is_found_again():
    values = mixture(0)
    weights, factors = factorised(values, 3)
    assert weights.min() >= 0 and factors.min() >= 0
    assert (values - weights @ factors).norm() < 0.1 * values.norm()
    assert torch.allclose(factors.norm(dim=2), torch.ones(2, 3), atol=1e-5)
    # The best that singular values allow with fewer factors is worse than what was found with enough.
    rest = torch.linalg.svdvals(values)[:, 2:].square().sum().sqrt()
    assert (values - weights @ factors).norm() < rest


def test_one_factor_is_the_first_singular_vector():
    values = mixture(1, number=2)
    weights, factors = factorised(values, 1)
    left, strength, right = torch.linalg.svd(values)
    assert torch.allclose(factors[:, 0], right[:, 0].abs(), atol=1e-3)
    assert torch.allclose(weights[..., 0], left[:, :, 0].abs() * strength[:, :1], atol=1e-3 * strength.max())


def test_the_scale_of_features_is_in_the_weights_alone():
    values = mixture(2)
    weights, factors = factorised(values, 3)
    larger, same = factorised(1000.0 * values, 3)
    assert torch.allclose(same, factors, atol=1e-4) and torch.allclose(larger, 1000.0 * weights, rtol=1e-2, atol=1e-2 * float(larger.max()))
    for empty in (torch.zeros(1, 5, 4), torch.zeros(1, 5, 4).index_fill(1, torch.tensor([2]), 1.0)):
        assert all(torch.isfinite(part).all() for part in factorised(empty, 2))


def views_of_patches():
    """Four kinds of patches with features of their own: two in the first view, the others in the second, all in the third; the kinds."""
    generator = torch.Generator().manual_seed(3)
    rows = torch.tensor([[0, 1, 0, 1], [2, 3, 3, 2], [3, 1, 0, 2]])
    kinds = rows.repeat_interleave(6, dim=1).reshape(3, 4, 6)
    own = torch.eye(4).repeat_interleave(3, dim=1) + 0.05 * torch.rand(4, 12, generator=generator)
    return own[kinds].permute(0, 3, 1, 2)[None], kinds


def test_views_that_are_factorised_together_call_a_part_by_one_name():
    features, kinds = views_of_patches()
    shares = shared_parts(features, 4)
    assert torch.allclose(shares.sum(dim=2), torch.ones(1, 3, 4, 6), atol=1e-5)
    labels = shares[0].argmax(dim=1)
    assert len(pairs_of(kinds, labels)) == 4 == len(labels.unique())
    # One by one they are named as chance has it: why they must not be.
    alone = torch.cat([shared_parts(features[:, [view]], 4)[0] for view in range(3)]).argmax(dim=1)
    assert len(pairs_of(kinds, alone)) > 4


def pairs_of(kinds, labels):
    return set(zip(kinds.flatten().tolist(), labels.flatten().tolist(), strict=True))


def test_the_error_is_the_cross_entropy_of_the_shares():
    generator = torch.Generator().manual_seed(0)
    shares = torch.rand(2, 4, 5, 6, generator=generator).softmax(dim=1).requires_grad_()
    labels = torch.randint(0, 4, (2, 5, 6), generator=generator)
    mask = torch.rand(2, 5, 6, generator=generator) > 0.3
    found = part_error(shares, labels, mask)
    expected = functional.nll_loss(shares.log(), labels, reduction="none") * mask
    assert torch.allclose(found, expected, atol=1e-6)
    assert part_error(functional.one_hot(labels, 4).permute(0, 3, 1, 2).float(), labels, mask).max() == 0
    found.sum().backward()
    assert (shares.grad.abs().amax(dim=1) > 0).equal(mask)


def test_parts_agree_best_at_the_true_depth():
    """A plane 10 units away with a smooth border between two parts, and a camera that steps aside by 0.5."""
    camera = Camera("PINHOLE", 64, 48, (60.0, 60.0, 31.5, 23.5))
    lens = TorchLens((camera,))
    T_source_target = torch.eye(4)[None].clone()
    T_source_target[:, 0, 3] = -0.5
    edge = lambda shift: torch.sigmoid((torch.arange(64.0) - 31.5 + shift) / 3).expand(1, 48, 64)  # noqa: E731
    target, source = edge(0.0), edge(60.0 * 0.5 / 10)
    labels = (target > 0.5).long()
    middle = torch.zeros(1, 48, 64, dtype=torch.bool)
    middle[..., 8:56] = True
    errors, slopes = {}, {}
    for factor in (0.8, 0.9, 1.0, 1.1, 1.25):
        depth = torch.full((1, 48, 64), 10.0 * factor, requires_grad=True)
        where = correspond(depth, T_source_target, lens)
        warped = sample(torch.stack([1 - source, source], dim=1), where.pixels)
        assert where.valid[middle].all()
        error = masked_mean(part_error(warped, labels, middle), middle)
        error.backward()
        errors[factor], slopes[factor] = error.item(), depth.grad.sum().item()
    assert min(errors, key=errors.get) == 1.0
    assert slopes[0.8] < 0 < slopes[1.25]


def test_the_flat_half_of_a_picture_is_poor_in_texture():
    generator = torch.Generator().manual_seed(0)
    image = torch.full((2, 3, 40, 60), 0.5)
    image[0, :, :, 30:] = torch.rand(3, 40, 30, generator=generator)
    image[1, :, :20] = torch.rand(3, 20, 60, generator=generator)
    mask = torch.ones(2, 40, 60, dtype=torch.bool)
    mask[:, :, :2] = False
    found = weak_texture(image, mask, 0.4)
    assert not (found & ~mask).any() and found[0, :, 2:24].all() and not found[0, :, 36:].any()
    assert found[1, 26:, 2:].all() and not found[1, :14].any()
    assert not weak_texture(image, torch.zeros_like(mask), 0.5).any()
    assert math.isclose(float(weak_texture(torch.rand(1, 3, 40, 60), mask[:1], 0.25).sum()), 0.25 * float(mask[0].sum()), rel_tol=0.01)
