"""What is wrong with a drawn frame, term by term."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from recon.fields.scene import DepthKind
from recon.fields.splats.model import SplatModel
from recon.fields.splats.rasterize import Rendering
from recon.fields.splats.views import TrainingView
from recon.losses import masked_mean
from recon.losses.image import correlation_error, dissimilarity, inverse_depth_error

NEAREST = 0.05
"""Rendered depth, in median depths, below which it counts as this."""
RIGIDITY_EVERY = 4
"""Steps: neighbours are compared in all of their motion at once, so it need not be done for every frame."""


@dataclass(frozen=True)
class Weights:
    """Of the terms of the loss."""

    dissimilarity_share: float = 0.2
    """Of D-SSIM in the colour term; the rest is L1."""
    depth: float = 0.5
    """Of inverse depth where it is trusted."""
    shape: float = 0.05
    """Of the correlation of depth where it is not."""
    filled_depth: float = 0.25
    """Of the filled depth behind instruments, in proportion to their area."""
    opacity: float = 0.05
    """Of light that comes through anywhere."""
    hidden_opacity: float = 1.0
    """Of light that comes through behind instruments, where no colour forbids it."""
    rigidity: float = 1e-3
    """Of strain: squared differences between the motions of neighbours over their squared distance."""
    color_change: float = 0.002
    """Of colour that changes with time: highlights may, but it must not stand in for motion."""
    hidden_color_change: float = 0.05
    """Of the same where nothing is seen."""
    unseen_variation: float = 0.02
    """Of total variation where no frame ever saw anything."""
    normals: float = 0.02
    """Of surfels' normals against those of the drawn depth."""


@dataclass(frozen=True)
class Setting:
    """What a drawn frame is judged by, beside its own view."""

    neighbours: Int[Tensor, "n k"]
    """Of every Gaussian."""
    spacing: float
    """Root mean square distance of neighbours."""
    rays: Float[Tensor, "h w 3"]
    """Of the pixels, z = 1."""
    depth_kind: DepthKind
    weights: Weights


def terms(drawn: Rendering, view: TrainingView, model: SplatModel, setting: Setting, step: int) -> dict[str, Float[Tensor, ""]]:
    """Weighted losses by name.

    `drawn.features` are colours, whether the place was ever seen, and of surfels the normals in camera axes.
    """
    kind, weights = setting.depth_kind, setting.weights
    color, seen = drawn.features[..., :3], drawn.features[..., 3]
    hidden = ~view.tissue
    losses = {"color": _color(color, view, weights.dissimilarity_share)}
    depth = drawn.mean_depth()
    known = view.tissue & (view.depth > 0)
    if kind == "trusted":
        losses["depth"] = weights.depth * masked_mean(inverse_depth_error(depth, view.depth, known, NEAREST), known)
    elif kind == "untrusted":
        losses["shape"] = weights.shape * correlation_error(depth, view.depth, known)
    if kind == "trusted" and hidden.any():
        losses["filled depth"] = weights.filled_depth * inverse_depth_error(depth, view.filled, hidden, NEAREST).mean()
    through = 1.0 - drawn.alpha
    losses["opacity"] = weights.opacity * through.mean() + weights.hidden_opacity * (through * hidden).mean()
    if weights.rigidity and step % RIGIDITY_EVERY == 0:
        losses["rigidity"] = (
            RIGIDITY_EVERY * weights.rigidity * model.deformation.unlikeness(setting.neighbours).mean() / setting.spacing**2
        )
    change = model.deformation(model.means, view.time).colors.abs().mean(dim=1)
    out_of_sight = _out_of_sight(drawn.centres_px.detach(), hidden)
    losses["color change"] = weights.color_change * change.mean() + weights.hidden_color_change * (change * out_of_sight).mean()
    unseen = hidden & (seen < 0.5 * drawn.alpha)
    if unseen.any():
        losses["unseen"] = weights.unseen_variation * (_variation(color, unseen) + _variation(depth[..., None], unseen))
    if model.are_surfels:
        losses["normals"] = weights.normals * _normal_error(drawn.features[..., 4:7], depth, setting.rays, view.tissue)
    return losses


def _color(color: Tensor, view: TrainingView, share: float) -> Tensor:
    """L1 and D-SSIM on tissue; elsewhere the picture itself stands in, so that windows at the edge see no instrument."""
    shown = torch.where(view.tissue[..., None], color, view.image)
    absolute = masked_mean((shown - view.image).abs().mean(dim=2), view.tissue)
    return (1.0 - share) * absolute + share * masked_mean(dissimilarity(shown, view.image), view.tissue)


def _out_of_sight(centres_px: Float[Tensor, "n 2"], hidden: Bool[Tensor, "h w"]) -> Bool[Tensor, " n"]:
    """Gaussians whose centre falls on hidden pixels or outside the picture."""
    height, width = hidden.shape
    x, y = centres_px.round().long().unbind(1)
    outside = (x < 0) | (x >= width) | (y < 0) | (y >= height)
    return outside | hidden[y.clamp(0, height - 1), x.clamp(0, width - 1)]


def _variation(values: Float[Tensor, "h w c"], mask: Bool[Tensor, "h w"]) -> Float[Tensor, ""]:
    """Total variation over pairs of pixels that lie both in the mask, per pixel of the picture."""
    across = (values[:, 1:] - values[:, :-1]).abs().mean(dim=2) * (mask[:, 1:] & mask[:, :-1])
    down = (values[1:] - values[:-1]).abs().mean(dim=2) * (mask[1:] & mask[:-1])
    return across.mean() + down.mean()


def _normal_error(
    blended: Float[Tensor, "h w 3"], depth: Float[Tensor, "h w"], rays: Float[Tensor, "h w 3"], mask: Bool[Tensor, "h w"]
) -> Float[Tensor, ""]:
    """1 - |cosine| between the blended normals of surfels and those of the drawn depth (Huang et al. 2024), camera axes."""
    points = rays * depth[..., None]
    across, down = points[1:-1, 2:] - points[1:-1, :-2], points[2:, 1:-1] - points[:-2, 1:-1]
    surface = functional.normalize(torch.linalg.cross(across, down, dim=2), dim=2)
    cosine = (surface * functional.normalize(blended[1:-1, 1:-1], dim=2)).sum(dim=2)
    return masked_mean(1.0 - cosine.abs(), mask[1:-1, 1:-1])
