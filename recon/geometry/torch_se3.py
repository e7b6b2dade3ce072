"""Rigid motions of a pose network as 4x4 tensors, differentiable everywhere, the identity included.

monodepth2 (Godard et al. 2019) predicts an axis-angle vector and a translation per pair of frames. Its published form divides by
the angle plus 1e-7; the series used here near zero have the same values to 1e-7 and finite gradients.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

SMALL_ANGLE_SQUARED = 1e-4
"""rad^2; below it the Taylor series are exact to 1e-15 and the closed forms would divide zero by zero."""


def motion(axis_angle: Float[Tensor, "b 3"], translation: Float[Tensor, "b 3"], invert: bool = False) -> Float[Tensor, "b 4 4"]:
    """`x -> R x + t` as a matrix, R the rotation of `axis_angle` (rad); with `invert` the inverse motion `x -> R^T (x - t)`."""
    R = rotation(axis_angle)
    if invert:
        R = R.transpose(1, 2)
        translation = -(R * translation[:, None]).sum(dim=2)
    upper = torch.cat([R, translation[:, :, None]], dim=2)
    last = torch.tensor([0.0, 0.0, 0.0, 1.0], dtype=R.dtype, device=R.device).expand(len(R), 1, 4)
    return torch.cat([upper, last], dim=1)


def rotation(axis_angle: Float[Tensor, "b 3"]) -> Float[Tensor, "b 3 3"]:
    """Rodrigues' formula, `I + a W + b W^2` with a = sin(t) / t and b = (1 - cos(t)) / t^2."""
    x, y, z = axis_angle.unbind(dim=1)
    zero = torch.zeros_like(x)
    W = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], dim=1).reshape(-1, 3, 3)
    squared = axis_angle.square().sum(dim=1)[:, None, None]
    unit = torch.eye(3, dtype=W.dtype, device=W.device)
    # No matrix product anywhere: under mixed precision and TF32 it would lose its digits.
    WW = axis_angle[:, :, None] * axis_angle[:, None] - squared * unit
    is_small = squared < SMALL_ANGLE_SQUARED
    # The root's gradient is infinite at zero, so the closed forms never see a small angle.
    angle = torch.where(is_small, 1.0, squared).sqrt()
    a = torch.where(is_small, 1.0 - squared / 6.0 + squared**2 / 120.0, torch.sin(angle) / angle)
    b = torch.where(is_small, 0.5 - squared / 24.0 + squared**2 / 720.0, 0.5 * (torch.sin(0.5 * angle) / (0.5 * angle)) ** 2)
    return unit + a * W + b * WW
