"""From Gaussians in the world to Gaussians in a picture (elliptical weighted averaging, Zwicker et al. 2002)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from recon.types import Camera, ReconError

BLUR_PX2 = 0.3
"""Added to the variance in the picture, so that no Gaussian is finer than the pixels."""
NEAR = 1e-2
"""Of the scene's unit, which is about its depth: what is nearer to the lens is not drawn."""
MARGIN = 0.15
"""Of the field of view on each side: the Jacobian of centres farther outside is that of this rim, as in the reference code."""


@dataclass(frozen=True)
class Pinhole:
    """A camera without distortion, pixel centres at integers."""

    fx: float
    fy: float
    cx: float
    cy: float
    width_px: int
    height_px: int

    @staticmethod
    def of(camera: Camera) -> Pinhole:
        """Raises ReconError for any lens but PINHOLE."""
        if camera.model != "PINHOLE":
            raise ReconError(f"splats are drawn through a PINHOLE, found {camera.model}: undistort first")
        return Pinhole(*camera.params, camera.width_px, camera.height_px)


@dataclass(frozen=True)
class Projected:
    """Gaussians in a picture."""

    centres_px: Float[Tensor, "n 2"]
    conics: Float[Tensor, "n 3"]
    """a, b, c of the inverse covariance: exponent 0.5 (a dx^2 + c dy^2) + b dx dy."""
    depths: Float[Tensor, " n"]
    """z-depth of the centres."""
    in_front: Bool[Tensor, " n"]


def rotations(quaternions: Float[Tensor, "n 4"]) -> Float[Tensor, "n 3 3"]:
    """Rotation matrices of wxyz quaternions of any length."""
    w, x, y, z = torch.nn.functional.normalize(quaternions, dim=1).unbind(1)
    rows = [
        *(1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
        *(2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
        *(2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
    ]
    return torch.stack(rows, dim=1).reshape(-1, 3, 3)


def project(
    means: Float[Tensor, "n 3"],
    quaternions: Float[Tensor, "n 4"],
    scales: Float[Tensor, "n 3"],
    T_camera_world: Float[Tensor, "4 4"],
    camera: Pinhole,
) -> Projected:
    """Centres, inverse covariances and depths in the picture of a camera."""
    R, t = T_camera_world[:3, :3], T_camera_world[:3, 3]
    x, y, z = (means @ R.T + t).unbind(1)
    in_front = z > NEAR
    safe = torch.where(in_front, z, 1.0)
    u, v = x / safe, y / safe
    limits_u, limits_v = _limits(camera.cx, camera.width_px, camera.fx), _limits(camera.cy, camera.height_px, camera.fy)
    slope_u, slope_v = u.clamp(*limits_u), v.clamp(*limits_v)
    # Rows of the Jacobian times the axes in camera coordinates; the covariance is their outer product.
    axes = (R @ rotations(quaternions)) * scales[:, None, :]
    across = camera.fx * (axes[:, 0] - slope_u[:, None] * axes[:, 2]) / safe[:, None]
    down = camera.fy * (axes[:, 1] - slope_v[:, None] * axes[:, 2]) / safe[:, None]
    xx, xy, yy = (across**2).sum(1) + BLUR_PX2, (across * down).sum(1), (down**2).sum(1) + BLUR_PX2
    determinant = xx * yy - xy * xy
    conics = torch.stack([yy, -xy, xx], dim=1) / determinant[:, None]
    centres = torch.stack([camera.fx * u + camera.cx, camera.fy * v + camera.cy], dim=1)
    return Projected(centres, conics, z, in_front)


def _limits(centre: float, size: int, focal: float) -> tuple[float, float]:
    """Slopes of the rays at the rim of the widened field of view."""
    margin = MARGIN * size
    return (-0.5 - margin - centre) / focal, (size - 0.5 + margin - centre) / focal
