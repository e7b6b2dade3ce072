"""Losses against their definitions."""

from __future__ import annotations

import torch

from recon.losses.depth import gradient_residual, laplace_nll, log_residual, masked_median


def test_median_ignores_what_is_masked():
    values = torch.tensor([[[1.0, 2.0, 300.0]], [[5.0, 6.0, 7.0]]])
    mask = torch.tensor([[[True, False, False]], [[False, False, False]]])
    assert masked_median(values, mask).tolist() == [1.0, 0.0]


def test_a_factor_costs_nothing():
    log_gt = torch.randn(2, 8, 8)
    mask = torch.rand(2, 8, 8) > 0.3
    residual = log_residual(log_gt + torch.tensor([0.7, -2.0])[:, None, None], log_gt, mask)
    assert residual.abs().max() < 1e-6


def test_masked_pixels_have_neither_loss_nor_gradient():
    log_pred = torch.zeros(1, 4, 4, requires_grad=True)
    mask = torch.ones(1, 4, 4, dtype=torch.bool)
    mask[0, 0, 0] = False
    log_gt = torch.randn(1, 4, 4)
    log_gt[0, 0, 0] = 1e6
    log_residual(log_pred, log_gt, mask).abs().sum().backward()
    assert log_pred.grad[0, 0, 0] == 0 and log_pred.grad.abs().max() <= 1


def test_gradient_of_a_ramp_is_its_slope():
    ramp = torch.arange(6.0).expand(1, 6, 6)
    mask = torch.ones(1, 6, 6, dtype=torch.bool)
    out = gradient_residual(ramp, mask, 2)
    assert (out[0, :, :4] == 2.0).all() and (out[0, :, 4:] == 0).all()
    mask[0, :, 3] = False
    assert (gradient_residual(ramp, mask, 2)[0, :, [1, 3]] == 0).all()


def test_the_best_laplace_scale_is_the_mean_absolute_residual():
    residual = torch.randn(1, 64, 64) * 0.3
    log_scale = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.SGD([log_scale], lr=0.5)
    for _ in range(200):
        optimizer.zero_grad()
        laplace_nll(residual, log_scale.expand(1, 64, 64)).mean().backward()
        optimizer.step()
    assert torch.isclose(log_scale.exp(), residual.abs().mean(), rtol=1e-3)
