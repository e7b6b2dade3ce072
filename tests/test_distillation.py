"""The terms of distillation: what they do not see, what they see, and that their gradients are those of their values."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck
from torch.nn import functional

from recon.losses import masked_mean
from recon.losses.distillation import (
    distribution_divergence,
    gradient_error,
    most_alike,
    normalised,
    spatial_error,
    spectral_error,
)

ROWS, COLUMNS = 12, 16
MASK = torch.ones(2, ROWS, COLUMNS, dtype=torch.bool)
MASK[0, :3, :4] = False
TERMS = ("spatial", "amplitude", "phase", "gradient")


@pytest.fixture
def maps():
    generator = torch.Generator().manual_seed(4)
    return [torch.rand(2, ROWS, COLUMNS, generator=generator, dtype=torch.float64) for _ in range(2)]


def term(name, student, teacher):
    """The mean of one term, as a training takes it."""
    ours, theirs = normalised(student, MASK), normalised(teacher, MASK)
    if name == "spatial":
        return masked_mean(spatial_error(ours, theirs, MASK), MASK)
    if name == "gradient":
        return masked_mean(gradient_error(ours, theirs, MASK), MASK)
    return getattr(spectral_error(ours, theirs), name).mean()


@pytest.mark.parametrize("name", TERMS)
def test_scale_and_shift_of_either_are_not_seen_and_a_difference_is(name, maps):
    student, teacher = maps
    value = term(name, student, teacher)
    assert value > 0.01
    assert term(name, 3.0 * student - 1.0, teacher) == pytest.approx(value.item(), rel=1e-9)
    assert term(name, student, 0.02 * teacher + 7.0) == pytest.approx(value.item(), rel=1e-9)
    assert term(name, 5.0 * teacher + 2.0, teacher).item() == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("name", TERMS)
def test_no_gradient_pushes_scale_or_shift(name, maps):
    """Along the map itself and along a constant the loss does not change, so the pose network's scale is left alone."""
    student, teacher = maps
    student.requires_grad_()
    term(name, student, teacher).backward()
    assert student.grad.abs().max() > 1e-6
    assert (student.grad * student.detach() * MASK).sum(dim=(1, 2)).abs().max() < 1e-10
    assert (student.grad * MASK).sum(dim=(1, 2)).abs().max() < 1e-10
    assert student.grad[~MASK].abs().max() == 0


@pytest.mark.parametrize("name", TERMS)
def test_gradients_are_finite_differences(name, maps):
    student, teacher = maps
    assert gradcheck(lambda values: term(name, values, teacher), (student.requires_grad_(),), atol=1e-5)


def test_normalised_maps_have_median_zero_and_unit_deviation(maps):
    found = normalised(maps[0], MASK)
    for values, mask in zip(found, MASK, strict=True):
        # torch takes the lower of two middle values.
        assert values[mask].median() == 0 and values[mask].abs().mean() == pytest.approx(1.0)
    assert found[~MASK].abs().max() == 0
    assert normalised(torch.full((2, ROWS, COLUMNS), 0.3), MASK).abs().max() == 0


def test_waves_differ_in_amplitude_or_in_phase():
    """One wave of 3 periods, half as high or moved along: each error is where that wave is and nowhere else."""
    across = torch.arange(COLUMNS, dtype=torch.float64) / COLUMNS * 2 * math.pi
    wave = lambda height, phase: (height * torch.cos(3 * across + phase)).expand(1, ROWS, COLUMNS)  # noqa: E731
    lower = spectral_error(wave(0.5, 0.0), wave(1.0, 0.0))
    peak = 0.5 * math.sqrt(ROWS * COLUMNS)
    assert lower.amplitude[0, 0, 3].item() == pytest.approx(math.log1p(peak) - math.log1p(peak / 2))
    assert lower.phase.mean() < 1e-3
    lower.amplitude[0, 0, 3] = 0
    assert lower.amplitude.max() < 1e-9
    moved = spectral_error(wave(1.0, 0.4), wave(1.0, 0.0))
    assert moved.amplitude.max() < 1e-9
    number = moved.phase.numel()
    # The chord of 0.4 rad; the one wave has all the weight, whose mean is one.
    assert moved.phase[0, 0, 3].item() == pytest.approx(2 * math.sin(0.2) * number, rel=1e-3)


def test_phases_on_either_side_of_half_a_turn_are_near():
    across = torch.arange(COLUMNS, dtype=torch.float64) / COLUMNS * 2 * math.pi
    wave = lambda phase: torch.cos(2 * across + phase).expand(1, ROWS, COLUMNS)  # noqa: E731
    values = [spectral_error(wave(math.pi + step), wave(math.pi - 0.01)).phase.mean().item() for step in (-0.01, 0.01, 0.03)]
    assert values[0] == pytest.approx(0, abs=1e-9)
    assert values[2] == pytest.approx(2 * values[1], rel=0.01)


def test_a_constant_has_no_error_of_its_own():
    a, b = torch.rand(2, 1, ROWS, COLUMNS, dtype=torch.float64)
    first, second = spectral_error(a, b), spectral_error(a + 5.0, b)
    assert torch.allclose(first.amplitude, second.amplitude) and torch.allclose(first.phase, second.phase)
    assert first.amplitude[0, 0, 0] == 0 and first.phase[0, 0, 0] == 0


def test_slopes_by_plain_loops(maps):
    student, teacher = maps
    found = gradient_error(student, teacher, MASK)
    difference = np.where(MASK, student - teacher, 0.0)
    expected = np.zeros((2, ROWS, COLUMNS))
    for image in range(2):
        for row in range(ROWS):
            for column in range(COLUMNS):
                for step in (1, 2, 4, 8):
                    for other in ((row + step, column), (row, column + step)):
                        if other[0] < ROWS and other[1] < COLUMNS and MASK[image, row, column] and MASK[(image, *other)]:
                            expected[image, row, column] += abs(difference[(image, *other)] - difference[image, row, column]) / 4
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-12)


def test_the_worst_pixels_are_left_out():
    error = torch.arange(10.0).reshape(1, 2, 5)
    assert most_alike(error, torch.ones(1, 2, 5, dtype=torch.bool), 0.9).sum() == 9
    mask = error != 3
    kept = most_alike(error, mask, 0.5)
    assert error[kept].tolist() == [0, 1, 2, 4, 5]
    assert not most_alike(error, torch.zeros(1, 2, 5, dtype=torch.bool), 0.5).any()


def test_divergence_is_torchs_and_teaches_the_student_alone():
    generator = torch.Generator().manual_seed(1)
    student, teacher = (torch.randn(2, 6, 3, 4, generator=generator).requires_grad_() for _ in range(2))
    found = distribution_divergence(student, teacher, 2.0)
    expected = functional.kl_div((student / 2).log_softmax(1), (teacher / 2).log_softmax(1), reduction="none", log_target=True).sum(1)
    assert torch.allclose(found, expected, atol=1e-6) and found.min() >= 0
    found.sum().backward()
    assert student.grad.abs().max() > 0 and teacher.grad is None
    # A constant added to all channels is no other distribution.
    assert torch.allclose(distribution_divergence(student + 3.0, teacher, 2.0), found, atol=1e-5)
    assert distribution_divergence(teacher, teacher, 2.0).abs().max() < 1e-6
