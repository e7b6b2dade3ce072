"""How far a student's disparity is from a teacher's, in place, in frequency and in slope, whatever the scale and shift of either.

LiteNet (Zhu et al., "Beyond foundation models: distilling geometric priors for lightweight monocular depth estimation in
endoscopy", 2026) distils by spatial, spectral and gradient terms and aligns semantic distributions; its equations are not public.
The forms here are this project's. All but the last compare maps that `normalised` has freed of scale and shift.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from recon.losses.depth import gradient_residual, masked_median

FLOOR = 1e-6
"""Least spread that is divided by: a flat map stays flat."""
GRADIENT_STEPS = (1, 2, 4, 8)
"""Pixels between the neighbours whose difference is compared."""
PHASE_FLOOR = 0.1
"""Amplitude (of an orthonormal transform of unit spread) below which a frequency's phase says less and less."""


class Spectrum(NamedTuple):
    """Errors of every frequency but the constant one, which is 0; rows and columns are those of `torch.fft.rfft2`."""

    amplitude: Float[Tensor, "b h f"]
    phase: Float[Tensor, "b h f"]


def normalised(disparity: Float[Tensor, "b h w"], mask: Bool[Tensor, "b h w"]) -> Float[Tensor, "b h w"]:
    """(d - median) / mean absolute deviation from it, over the mask of each image; 0 outside (MiDaS, Ranftl et al. 2020)."""
    centred = torch.where(mask, disparity - masked_median(disparity, mask)[:, None, None], 0.0)
    spread = centred.abs().sum(dim=(1, 2)) / mask.sum(dim=(1, 2)).clamp(min=1)
    return centred / spread.clamp(min=FLOOR)[:, None, None]


def most_alike(error: Float[Tensor, "b h w"], mask: Bool[Tensor, "b h w"], share: float) -> Bool[Tensor, "b h w"]:
    """The share of each image's masked pixels with the smallest errors: where the teacher is plainly wrong it is not followed."""
    ranked = torch.where(mask, error.detach(), torch.inf).flatten(1).sort(dim=1).values
    last = (share * mask.sum(dim=(1, 2))).ceil().long().clamp(min=1) - 1
    return mask & (error <= ranked.gather(1, last[:, None])[:, :, None])


def spatial_error(student: Float[Tensor, "b h w"], teacher: Float[Tensor, "b h w"], mask: Bool[Tensor, "b h w"]) -> Float[Tensor, "b h w"]:
    """Absolute difference of two normalised maps; 0 outside the mask."""
    return torch.where(mask, (student - teacher).abs(), 0.0)


def gradient_error(student: Float[Tensor, "b h w"], teacher: Float[Tensor, "b h w"], mask: Bool[Tensor, "b h w"]) -> Float[Tensor, "b h w"]:
    """Absolute difference of the slopes of two normalised maps, right and down, mean over GRADIENT_STEPS; 0 outside the mask."""
    difference = torch.where(mask, student - teacher, 0.0)
    return torch.stack([gradient_residual(difference, mask, step) for step in GRADIENT_STEPS]).mean(dim=0)


def spectral_error(student: Float[Tensor, "b h w"], teacher: Float[Tensor, "b h w"]) -> Spectrum:
    """Difference of two normalised maps by frequency: of log(1 + amplitude), and of phase, weighed by the teacher's amplitude.

    Phases are compared as points of the unit circle, so that angles on either side of 180 degrees are near each other.
    Their weight is the teacher's amplitude over its mean: each frequency counts by what the teacher has of it.
    """
    ours, theirs = (torch.fft.rfft2(values, norm="ortho") for values in (student, teacher))
    ours_abs, theirs_abs = ours.abs(), theirs.abs()
    varies = torch.ones_like(theirs_abs)
    varies[:, 0, 0] = 0.0
    amplitude = (ours_abs.log1p() - theirs_abs.log1p()).abs() * varies
    weight = theirs_abs * varies
    weight = weight / weight.mean(dim=(1, 2), keepdim=True).clamp(min=FLOOR)
    return Spectrum(amplitude, (_direction(ours) - _direction(theirs)).abs() * weight)


def distribution_divergence(
    student: Float[Tensor, "b c h w"], teacher: Float[Tensor, "b c h w"], temperature: float
) -> Float[Tensor, "b h w"]:
    """Kullback-Leibler divergence of the student's softmax over channels from the teacher's, at each place; the teacher's stands still."""
    log_ours, log_theirs = ((values / temperature).log_softmax(dim=1) for values in (student, teacher.detach()))
    return (log_theirs.exp() * (log_theirs - log_ours)).sum(dim=1)


def _direction(spectrum: Tensor) -> Tensor:
    """On the unit circle, and towards its centre where there is almost no amplitude, which keeps gradients finite."""
    return spectrum / (spectrum.real.square() + spectrum.imag.square() + PHASE_FLOOR**2).sqrt()
