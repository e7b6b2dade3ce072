"""View synthesis: the target view put together from a source view, the target's depth and the motion between them.

Zhou et al. 2017 as in monodepth2 (Godard et al. 2019), for any lens. Everything is differentiable in depth, motion, lens and source.
One convention for pixels: centres at integers, (0, 0) the centre of the upper left one. `grid_sample` runs with
`align_corners=True`, under which -1 and 1 are the centres of the outer pixels, so pixel u is 2 u / (w - 1) - 1.
Flows have AF-SfMLearner's channel order (y, x), in pixels.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from recon.geometry.surface import MIN_COSINE
from recon.geometry.torch_cameras import Lens


class Correspondence(NamedTuple):
    """Where each target pixel's surface point lies in the source view."""

    pixels: Float[Tensor, "b h w 2"]
    """(u, v) in the source image."""
    depth: Float[Tensor, "b h w"]
    """z-depth of the point in the source camera."""
    valid: Bool[Tensor, "b h w"]
    """The target's lens gives the pixel a depth, the source's lens sees the point, and it lies inside the source image."""


def back_project(depth: Float[Tensor, "b h w"], rays: Float[Tensor, "b h w 3"]) -> Float[Tensor, "b h w 3"]:
    """Camera points of a z-depth map. Rays too far sideways for a z-depth (`Lens.usable`) give finite points without meaning."""
    return depth[..., None] * rays / rays[..., 2:].clamp(min=MIN_COSINE)


def transform(T_a_b: Float[Tensor, "b 4 4"], points_b: Float[Tensor, "b h w 3"]) -> Float[Tensor, "b h w 3"]:
    """Points of frame b in frame a. Written out because a matrix product loses its digits under mixed precision and TF32."""
    columns = T_a_b[:, None, None, :3].unbind(dim=-1)
    x, y, z = points_b[..., None].unbind(dim=-2)
    return columns[0] * x + columns[1] * y + columns[2] * z + columns[3]


def correspond(depth_target: Float[Tensor, "b h w"], T_source_target: Float[Tensor, "b 4 4"], lens: Lens) -> Correspondence:
    """Source pixel and source depth of every target pixel; both views are through `lens`."""
    points = transform(T_source_target, back_project(depth_target, lens.rays))
    pixels, seen = lens.project(points)
    height, width = depth_target.shape[1:]
    return Correspondence(pixels, points[..., 2], lens.usable & seen & inside(pixels, height, width))


def inside(pixels: Float[Tensor, "b h w 2"], height: int, width: int) -> Bool[Tensor, "b h w"]:
    """Whether pixels lie on the image: half a pixel beyond the outer centres still belongs to it."""
    end = torch.tensor([width - 0.5, height - 0.5], dtype=pixels.dtype, device=pixels.device)
    return ((pixels >= -0.5) & (pixels <= end)).all(dim=-1)


def sample(
    image: Float[Tensor, "b c hs ws"], pixels: Float[Tensor, "b h w 2"], padding: Literal["border", "zeros"] = "border"
) -> Float[Tensor, "b c h w"]:
    """Bilinear values at pixels (u, v); outside the image those of the nearest border pixel, or zero."""
    height, width = image.shape[2:]
    last = torch.tensor([width - 1, height - 1], dtype=pixels.dtype, device=pixels.device)
    return functional.grid_sample(image, 2.0 * pixels / last - 1.0, mode="bilinear", padding_mode=padding, align_corners=True)


def synthesise(
    source: Float[Tensor, "b c h w"], depth_target: Float[Tensor, "b h w"], T_source_target: Float[Tensor, "b 4 4"], lens: Lens
) -> tuple[Float[Tensor, "b c h w"], Bool[Tensor, "b h w"]]:
    """The target view from the source image, and where it is one (`Correspondence.valid`)."""
    where = correspond(depth_target, T_source_target, lens)
    return sample(source, where.pixels), where.valid


def register(source: Float[Tensor, "b c h w"], flow: Float[Tensor, "b 2 h w"]) -> Float[Tensor, "b c h w"]:
    """The source image pulled onto the target by the flow from target to source (AF-SfMLearner's registration)."""
    return sample(source, displaced(flow))


def displaced(flow: Float[Tensor, "b 2 h w"]) -> Float[Tensor, "b h w 2"]:
    """Pixels (u, v) at which the pixels of the grid end under a flow (y, x)."""
    height, width = flow.shape[2:]
    v = torch.arange(height, dtype=flow.dtype, device=flow.device)[:, None] + flow[:, 0]
    u = torch.arange(width, dtype=flow.dtype, device=flow.device) + flow[:, 1]
    return torch.stack([u, v], dim=-1)
