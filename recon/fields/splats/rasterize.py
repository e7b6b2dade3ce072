"""Draw Gaussians: one function, the processor's tiles or gsplat on CUDA behind it.

Gaussians are projected by the Jacobian of the pinhole at their centre (Zwicker et al. 2002), widened by 0.3 px^2 against aliasing
(Kerbl et al. 2023), and blended front to back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from recon.fields.splats.projection import Pinhole, project
from recon.types import ReconError

Backend = Literal["auto", "cpu", "cuda"]


@dataclass(frozen=True)
class Splats:
    """Gaussians as they are at one time."""

    means: Float[Tensor, "n 3"]
    """World units."""
    quaternions: Float[Tensor, "n 4"]
    """wxyz, of any length but 0: the axes in the world."""
    scales: Float[Tensor, "n 3"]
    """Standard deviations along the axes, world units."""
    opacities: Float[Tensor, " n"]
    """0 to 1."""
    features: Float[Tensor, "n c"]
    """What is blended: colours, normals, anything that adds."""


@dataclass(frozen=True)
class Rendering:
    """What a camera sees of Gaussians."""

    features: Float[Tensor, "h w c"]
    """Blended, on black."""
    depth: Float[Tensor, "h w"]
    """Blended z-depth of the centres, world units, not divided by alpha."""
    alpha: Float[Tensor, "h w"]
    """Share of the light that the Gaussians stop."""
    centres_px: Float[Tensor, "n 2"]
    """Where the Gaussians are in the picture."""
    tracked: Float[Tensor, "*one n 2"]
    """The same up to a shift, with its gradient kept: how strongly the loss wants to move them, px."""

    def mean_depth(self) -> Float[Tensor, "h w"]:
        """z-depth of what is seen, world units; 0 where nothing is."""
        return torch.where(self.alpha > 1e-3, self.depth / self.alpha.clamp_min(1e-3), 0.0)


def rasterize(splats: Splats, T_camera_world: Float[Tensor, "4 4"], camera: Pinhole, backend: Backend = "auto") -> Rendering:
    """Draw `splats`, with gradients to all of their parts and to the pose.

    "auto" takes gsplat where the Gaussians lie on a CUDA device. Raises ReconError when a backend is asked for that cannot run.
    """
    on_cuda = splats.means.is_cuda
    if backend == "cuda" and not on_cuda:
        raise ReconError('splats backend "cuda" needs a CUDA device and the Gaussians on it: set device="cuda", or use backend "cpu"')
    if on_cuda and backend != "cpu":
        from recon.fields.splats.cuda import rasterize_cuda

        return Rendering(*rasterize_cuda(splats, T_camera_world, camera))
    projected = project(splats.means, splats.quaternions, splats.scales, T_camera_world, camera)
    # Centres that are left out by the near plane must not reach the tiles.
    opacities = torch.where(projected.in_front, splats.opacities, 0.0)
    blended = torch.cat([splats.features, projected.depths[:, None]], dim=1)
    centres = projected.centres_px
    if centres.requires_grad:
        centres.retain_grad()
    image, left_over = _Blend.apply(centres, projected.conics, opacities, blended, projected.depths, camera.width_px, camera.height_px)
    return Rendering(image[..., :-1], image[..., -1], 1.0 - left_over, centres, centres)


class _Blend(torch.autograd.Function):
    """`tiles.blend` with its gradients."""

    @staticmethod
    def forward(ctx: Any, centres: Tensor, conics: Tensor, opacities: Tensor, features: Tensor, depths: Tensor, width: int, height: int):
        from recon.fields.splats import tiles

        arrays = [tensor.detach().cpu().contiguous().float().numpy() for tensor in (centres, conics, opacities, features)]
        order = torch.argsort(depths.detach().cpu(), stable=True).to(torch.int32).numpy()
        binned = tiles.bin_gaussians(order, *arrays[:3], width, height)
        image, left_over = tiles.blend(*binned[1:3], *arrays, width, height)
        ctx.saved = binned, arrays, image, left_over
        return torch.from_numpy(image).to(features), torch.from_numpy(left_over).to(features)

    @staticmethod
    def backward(ctx: Any, image_gradient: Tensor, left_over_gradient: Tensor):
        from recon.fields.splats import tiles

        (first, tile_first, gaussian_of, pair_of), arrays, image, left_over = ctx.saved
        slopes = [gradient.cpu().contiguous().float().numpy() for gradient in (image_gradient, left_over_gradient)]
        pairs = tiles.blend_backward(tile_first, gaussian_of, pair_of, *arrays, image, left_over, *slopes)
        total = torch.from_numpy(tiles.add_up(first, pairs)).to(image_gradient)
        return total[:, :2], total[:, 2:5], total[:, 5], total[:, 6:], None, None, None
