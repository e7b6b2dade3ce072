"""Drawing Gaussians by gsplat on CUDA (Ye et al. 2024), in the conventions of the processor's tiles."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from recon.fields.splats.projection import BLUR_PX2, NEAR, Pinhole
from recon.fields.splats.rasterize import Splats
from recon.types import ReconError


def rasterize_cuda(
    splats: Splats, T_camera_world: Float[Tensor, "4 4"], camera: Pinhole
) -> tuple[Float[Tensor, "h w c"], Float[Tensor, "h w"], Float[Tensor, "h w"], Float[Tensor, "n 2"], Float[Tensor, "1 n 2"]]:
    """The parts of a `Rendering`.

    Raises ReconError where gsplat is not installed.
    """
    try:
        from gsplat import rasterization
    except ImportError as error:
        raise ReconError("drawing splats on CUDA needs gsplat: pip install 'endorecon[cuda]', or set splats.backend=cpu") from error
    # gsplat counts pixels from the corner of the picture, this project from the centre of its first pixel.
    K = torch.tensor([[camera.fx, 0, camera.cx + 0.5], [0, camera.fy, camera.cy + 0.5], [0, 0, 1]], device=splats.means.device)
    z = splats.means @ T_camera_world[2, :3] + T_camera_world[2, 3]
    image, alpha, facts = rasterization(
        means=splats.means,
        quats=splats.quaternions,
        scales=splats.scales,
        opacities=splats.opacities,
        colors=torch.cat([splats.features, z[:, None]], dim=1),
        viewmats=T_camera_world[None],
        Ks=K[None],
        width=camera.width_px,
        height=camera.height_px,
        near_plane=NEAR,
        eps2d=BLUR_PX2,
        packed=False,
        render_mode="RGB",
    )
    centres = facts["means2d"]
    if centres.requires_grad:
        centres.retain_grad()
    return image[0, ..., :-1], image[0, ..., -1], alpha[0, ..., 0], centres[0] - 0.5, centres
