"""Lenses for view synthesis: the rays of all pixels, and a projection whose pixels are differentiable in the points.

A batch may mix lenses: every image brings its own `Camera`. Rays come from `recon.geometry.cameras`, so that training and
reconstruction agree to rounding; the perspective and fisheye models are projected in closed form. Scaramuzza's lens has no
closed form: its image radius over the angle is a cubic Hermite table of `TABLE_SIZE` knots (C1; under 0.001 px from the root).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from recon.geometry.cameras import angle_limit, project, ray_grid, usable_mask
from recon.types import CAMERA_PARAMS, Camera, ReconError

TABLE_SIZE = 1024
MAX_TANGENT = 1e3
"""Perspective lenses see up to this tangent of the angle to the axis (89.94 degrees), far outside any picture; numpy's have no such
bound. It keeps powers of the radius, and the gradients of points beside the camera, within float32."""
NEAR_AXIS = 1e-5
"""Tangent under which image radius over lateral distance is replaced by its limit on the axis: exact to 1e-10, no 0 / 0."""
CACHED_LENSES = 64


@runtime_checkable
class Lens(Protocol):
    """What view synthesis asks of a lens, for a batch of b images of h by w pixels."""

    rays: Float[Tensor, "b h w 3"]
    """Direction of each pixel centre's ray, of any positive length."""
    usable: Bool[Tensor, "b h w"]
    """False where no ray meets the pixel or the ray is too far sideways to carry a z-depth."""

    def project(self, points: Float[Tensor, "b h w 3"]) -> tuple[Float[Tensor, "b h w 2"], Bool[Tensor, "b h w"]]:
        """Pixels (u, v) of camera points, centres at integers, and whether the lens can see in that direction.

        Pixels of invalid points are finite and so are their gradients. Image borders do not count here.
        """
        ...


class TorchLens:
    """One calibrated lens per image of a batch; all images have one size. Same rays and pixels as `recon.geometry.cameras`."""

    def __init__(self, cameras: Sequence[Camera], device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> None:
        sizes = {(camera.width_px, camera.height_px) for camera in cameras}
        if len(sizes) != 1:
            found = ", ".join(f"{width}x{height}" for width, height in sorted(sizes)) or "no camera"
            raise ReconError(f"lenses of one batch: found {found}, expected one image size; resize the cameras together with their images")
        self.rays = torch.stack([_grid(camera)[0] for camera in cameras]).to(device, dtype)
        self.usable = torch.stack([_grid(camera)[1] for camera in cameras]).to(device)
        self._groups = []
        for models, projection in _PROJECTIONS:
            members = [i for i, camera in enumerate(cameras) if camera.model in models]
            if members:
                self._groups.append((torch.tensor(members, device=device), projection([cameras[i] for i in members], device, dtype)))

    def project(self, points: Float[Tensor, "b h w 3"]) -> tuple[Float[Tensor, "b h w 2"], Bool[Tensor, "b h w"]]:
        """See `Lens.project`."""
        parts = [projection(points if len(self._groups) == 1 else points[members]) for members, projection in self._groups]
        if len(parts) == 1:
            return parts[0]
        order = torch.cat([members for members, _ in self._groups]).argsort()
        pixels, valid = (torch.cat(columns)[order] for columns in zip(*parts, strict=True))
        return pixels, valid


class LearnedPinhole:
    """An undistorted lens whose focal lengths and centre (px) are tensors of a network; rays and pixels pass gradients to both."""

    def __init__(self, focal_px: Float[Tensor, "b 2"], centre_px: Float[Tensor, "b 2"], height: int, width: int) -> None:
        self._focal, self._centre = focal_px[:, None, None], centre_px[:, None, None]
        v, u = torch.meshgrid(
            torch.arange(height, dtype=focal_px.dtype, device=focal_px.device),
            torch.arange(width, dtype=focal_px.dtype, device=focal_px.device),
            indexing="ij",
        )
        xy = (torch.stack([u, v], dim=-1) - self._centre) / self._focal
        self.rays = torch.cat([xy, torch.ones_like(xy[..., :1])], dim=-1)
        self.usable = torch.ones(xy.shape[:3], dtype=torch.bool, device=xy.device)

    def project(self, points: Float[Tensor, "b h w 3"]) -> tuple[Float[Tensor, "b h w 2"], Bool[Tensor, "b h w"]]:
        """See `Lens.project`."""
        xy, valid = _perspective(points, torch.full_like(self._focal[..., 0], MAX_TANGENT))
        return xy * self._focal + self._centre, valid


class _Brown:
    """Closed form of `recon.geometry.brown`."""

    def __init__(self, cameras: Sequence[Camera], device: torch.device | str, dtype: torch.dtype) -> None:
        rows = [_brown_row(camera) for camera in cameras]
        columns = torch.tensor(rows, device=device, dtype=dtype)[:, None, None]
        self.focal, self.centre = columns[..., :2], columns[..., 2:4]
        self.distortion = columns[..., 4:].unbind(dim=-1)
        self.limit = torch.tensor([min(float(np.tan(angle_limit(camera))), MAX_TANGENT) for camera in cameras], device=device, dtype=dtype)

    def __call__(self, points: Tensor) -> tuple[Tensor, Tensor]:
        xy, valid = _perspective(points, self.limit[:, None, None])
        k1, k2, p1, p2 = self.distortion
        x, y = xy.unbind(dim=-1)
        rr = x * x + y * y
        radial = 1.0 + rr * (k1 + rr * k2)
        x_d = x * radial + 2.0 * p1 * x * y + p2 * (rr + 2.0 * x * x)
        y_d = y * radial + 2.0 * p2 * x * y + p1 * (rr + 2.0 * y * y)
        return torch.stack([x_d, y_d], dim=-1) * self.focal + self.centre, valid


class _Fisheye:
    """Closed form of `recon.geometry.fisheye`."""

    def __init__(self, cameras: Sequence[Camera], device: torch.device | str, dtype: torch.dtype) -> None:
        columns = torch.tensor([camera.params for camera in cameras], device=device, dtype=dtype)[:, None, None]
        self.focal, self.centre = columns[..., :2], columns[..., 2:4]
        self.k = columns[..., 4:].unbind(dim=-1)
        self.limit = torch.tensor([angle_limit(camera) for camera in cameras], device=device, dtype=dtype)[:, None, None]

    def __call__(self, points: Tensor) -> tuple[Tensor, Tensor]:
        k1, k2, k3, k4 = self.k
        theta, lateral, is_axial, valid = _angles(points, self.limit)
        s = theta * theta
        theta_d = theta * (1.0 + s * (k1 + s * (k2 + s * (k3 + s * k4))))
        scale = _radius_per_lateral(theta_d, lateral, is_axial, torch.ones_like(self.limit), points[..., 2])
        return points[..., :2] * scale * self.focal + self.centre, valid


class _Scaramuzza:
    """`recon.geometry.scaramuzza` with its image radius from a table."""

    def __init__(self, cameras: Sequence[Camera], device: torch.device | str, dtype: torch.dtype) -> None:
        columns = torch.tensor([camera.params for camera in cameras], device=device, dtype=dtype)[:, None, None]
        self.centre, self.a0 = columns[..., :2], columns[..., 2]
        self.affine = columns[..., 7:].unbind(dim=-1)
        self.limit = torch.tensor([angle_limit(camera) for camera in cameras], device=device, dtype=dtype)[:, None, None]
        self.table = torch.stack([_radius_table(camera) for camera in cameras]).to(device, dtype)

    def __call__(self, points: Tensor) -> tuple[Tensor, Tensor]:
        theta, lateral, is_axial, valid = _angles(points, self.limit)
        rho = _hermite(self.table, theta / self.limit * (TABLE_SIZE - 1))
        x, y = (points[..., :2] * _radius_per_lateral(rho, lateral, is_axial, self.a0, points[..., 2])).unbind(dim=-1)
        c, d, e = self.affine
        return torch.stack([c * x + d * y, e * x + y], dim=-1) + self.centre, valid


_PROJECTIONS = (
    ({"SIMPLE_PINHOLE", "PINHOLE", "SIMPLE_RADIAL", "RADIAL", "OPENCV"}, _Brown),
    ({"OPENCV_FISHEYE"}, _Fisheye),
    ({"SCARAMUZZA"}, _Scaramuzza),
)


@lru_cache(maxsize=CACHED_LENSES)
def _grid(camera: Camera) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(ray_grid(camera)), torch.from_numpy(usable_mask(camera))


def _brown_row(camera: Camera) -> tuple[float, ...]:
    given = dict(zip(CAMERA_PARAMS[camera.model], camera.params, strict=True))
    fx, fy = given.get("fx", given.get("f")), given.get("fy", given.get("f"))
    k1 = given.get("k1", given.get("k", 0.0))
    return (fx, fy, given["cx"], given["cy"], k1, given.get("k2", 0.0), given.get("p1", 0.0), given.get("p2", 0.0))


def _perspective(points: Tensor, limit: Tensor) -> tuple[Tensor, Tensor]:
    """x / z and y / z, held within the radius `limit`, and whether they were and the point is in front."""
    z = points[..., 2]
    floor = points.abs().amax(dim=-1) / MAX_TANGENT + 1e-12
    xy = points[..., :2] / torch.maximum(z, floor)[..., None]
    rr = xy.square().sum(dim=-1)
    is_outside = rr > limit.square()
    shrink = torch.where(is_outside, limit * torch.where(is_outside, rr, 1.0).rsqrt(), 1.0)
    return xy * shrink[..., None], (z > 0.0) & ~is_outside


def _angles(points: Tensor, limit: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Angle to the axis held within `limit` (rad), lateral distance, whether the point is on the axis, and within the limit."""
    z = points[..., 2]
    squared = points[..., :2].square().sum(dim=-1)
    is_axial = squared <= (NEAR_AXIS * z).square()
    lateral = torch.where(is_axial, 1.0, squared).sqrt()
    theta = torch.atan2(lateral, z)
    # On the axis `theta` is a stand-in; what counts there is whether the point is in front.
    valid = torch.where(is_axial, z > 0.0, theta <= limit)
    return torch.minimum(theta, limit), lateral, is_axial, valid


def _radius_per_lateral(radius: Tensor, lateral: Tensor, is_axial: Tensor, slope: Tensor, z: Tensor) -> Tensor:
    """Image radius over lateral distance; on the axis its limit, the lens' slope there over z."""
    in_front = torch.where(is_axial & (z > 0.0), z, 1.0)
    return torch.where(is_axial, slope / in_front, radius / lateral)[..., None]


@lru_cache(maxsize=CACHED_LENSES)
def _radius_table(camera: Camera) -> Tensor:
    """Image radius at evenly spaced angles from the axis to the limit, and its slope per step: (TABLE_SIZE, 2)."""
    coefficients = camera.params[2:7]
    centred = Camera(camera.model, camera.width_px, camera.height_px, (0.0, 0.0, *coefficients, 1.0, 0.0, 0.0))
    angles = np.linspace(0.0, angle_limit(camera), TABLE_SIZE)
    pixels, _ = project(centred, np.stack([np.sin(angles), np.zeros(TABLE_SIZE), np.cos(angles)], axis=-1))
    rho = pixels[:, 0]
    f = np.polynomial.Polynomial(coefficients)
    # theta = atan2(rho, f(rho)) turned around.
    slope = (rho**2 + f(rho) ** 2) / (f(rho) - rho * f.deriv()(rho)) * (angles[1] - angles[0])
    return torch.from_numpy(np.stack([rho, slope], axis=-1))


def _hermite(table: Tensor, position: Tensor) -> Tensor:
    """Cubic Hermite interpolation of (b, n, 2) values and slopes at positions (b, h, w) in 0..n-1."""
    left = position.detach().floor().clamp(0, table.shape[1] - 2).long()
    s = position - left
    image = torch.arange(len(table), device=table.device)[:, None, None]
    (value_0, slope_0), (value_1, slope_1) = table[image, left].unbind(dim=-1), table[image, left + 1].unbind(dim=-1)
    rise = value_1 - value_0
    return value_0 + s * (slope_0 + s * (3.0 * rise - 2.0 * slope_0 - slope_1 + s * (slope_0 + slope_1 - 2.0 * rise)))
