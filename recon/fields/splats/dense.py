"""Every Gaussian at every pixel, in plain torch: slow, short, and what the fast rasterisers are held against."""

from __future__ import annotations

import torch
from torch import Tensor

from recon.fields.splats.projection import Pinhole, project
from recon.fields.splats.rasterize import Rendering, Splats

MIN_ALPHA, MAX_ALPHA, MIN_TRANSMITTANCE = 1.0 / 255.0, 0.999, 1e-4


def rasterize_dense(splats: Splats, T_camera_world: Tensor, camera: Pinhole) -> Rendering:
    """What `rasterize` gives, by formula: memory grows with Gaussians times pixels."""
    projected = project(splats.means, splats.quaternions, splats.scales, T_camera_world, camera)
    order = torch.argsort(projected.depths, stable=True)
    y, x = torch.meshgrid(torch.arange(camera.height_px), torch.arange(camera.width_px), indexing="ij")
    dx = x[None] - projected.centres_px[order, 0, None, None]
    dy = y[None] - projected.centres_px[order, 1, None, None]
    a, b, c = (part[:, None, None] for part in projected.conics[order].unbind(1))
    opacities = torch.where(projected.in_front, splats.opacities, 0.0)[order, None, None]
    alpha = opacities * torch.exp(-(0.5 * (a * dx**2 + c * dy**2) + b * dx * dy))
    alpha = torch.where(alpha >= MIN_ALPHA, alpha.clamp_max(MAX_ALPHA), 0.0)
    after = torch.cumprod(1.0 - alpha, dim=0)
    before = torch.cat([torch.ones_like(after[:1]), after[:-1]])
    weight = torch.where(after >= MIN_TRANSMITTANCE, alpha * before, 0.0)
    blended = torch.cat([splats.features, projected.depths[:, None]], dim=1)[order]
    image = torch.einsum("nhw,nc->hwc", weight, blended)
    return Rendering(image[..., :-1], image[..., -1], weight.sum(dim=0), projected.centres_px, projected.centres_px)
