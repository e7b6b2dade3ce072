"""What the frames of a batch say against the network's depth: each against its partners, and each against the sparse points.

The network tells distance up to one factor per frame. A frame's sparse points give that factor, so that its depth has the unit of
the map and of the poses; it is a mean over points and passes gradients, so the network cannot win by a factor.
What the network says is a distance along each ray. It is told the lens of the recording, and poses and points are the map's, whose
lens may be refined; distance becomes z here as it does for the result, where `recon.geometry.surface.with_lens` keeps the distance
and puts it on the map's rays.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from recon.geometry.torch_cameras import TorchLens
from recon.geometry.warp import correspond, sample
from recon.losses.consistency import depth_inconsistency
from recon.losses.exposure import match_exposure
from recon.losses.photometric import photometric_error
from recon.models.student import network_layers, student_input
from recon.training.adaptation_views import Group, View
from recon.types import Camera

INLIER_DEVIATIONS = 3.0 * 1.4826
"""Points further than this many median absolute deviations from the median have no say in a frame's factor."""


class Views(NamedTuple):
    """A batch of frames as tensors; frames have up to n points."""

    seen: Float[Tensor, "b 7 h w"]
    colour: Float[Tensor, "b 3 h w"]
    tissue: Bool[Tensor, "b h w"]
    matte: Bool[Tensor, "b h w"]
    T_world_camera: Float[Tensor, "b 4 4"]
    cameras: tuple[Camera, ...]
    points_px: Float[Tensor, "b n 2"]
    log_distance: Float[Tensor, "b n"]
    has_point: Bool[Tensor, "b n"]

    def lens_of(self, rows: Sequence[int]) -> TorchLens:
        """The lenses of some of the frames."""
        return TorchLens([self.cameras[row] for row in rows], self.colour.device)


class Depths(NamedTuple):
    """What the network says of a batch of frames, in the unit of the map."""

    log_distance: Float[Tensor, "b h w"]
    log_scale: Float[Tensor, "b h w"]
    """Of the Laplace density of the log-distance."""
    z: Float[Tensor, "b h w"]
    """On the map's lens."""
    residual: Float[Tensor, "b n"]
    """Log-distance at the sparse points minus theirs; 0 where there is none."""


class Comparison(NamedTuple):
    """Each of t targets against its first and its second source, one value per pixel of the target."""

    error: Float[Tensor, "2 t h w"]
    """Photometric, 0 where not valid."""
    unwarped_error: Float[Tensor, "2 t h w"]
    """Of the source as it stands; without gradient."""
    inconsistency: Float[Tensor, "2 t h w"]
    valid: Bool[Tensor, "2 t h w"]


def stack_views(views: Sequence[View], camera: Camera, device: str) -> Views:
    """A batch of frames; `camera` is the lens that the network is told."""
    height, width = views[0].tissue.shape
    layers = [network_layers(view.image, camera, view.tissue, (width, height)) for view in views]
    colour, rays, mask = (torch.from_numpy(np.stack(part)).permute(0, 3, 1, 2).to(device) for part in zip(*layers, strict=True))
    num_points = max(len(view.log_distance) for view in views)

    def padded(arrays: Sequence[np.ndarray]) -> Tensor:
        rows = [np.pad(array, [(0, num_points - len(array)), *[(0, 0)] * (array.ndim - 1)]) for array in arrays]
        return torch.from_numpy(np.stack(rows)).to(device)

    return Views(
        seen=student_input(colour, rays, mask).contiguous(memory_format=torch.channels_last),
        colour=colour,
        tissue=mask[:, 0] > 0,
        matte=torch.from_numpy(np.stack([view.matte for view in views])).to(device),
        T_world_camera=torch.from_numpy(np.stack([view.T_world_camera for view in views])).to(device),
        cameras=tuple(view.camera for view in views),
        points_px=padded([view.points_px.astype(np.float32) for view in views]),
        log_distance=padded([view.log_distance.astype(np.float32) for view in views]),
        has_point=padded([np.ones(len(view.log_distance), bool) for view in views]),
    )


def predict(network: nn.Module, views: Views) -> Depths:
    """Depth of every frame of a batch, brought to its sparse points by one factor per frame."""
    log_distance, log_scale = network(views.seen)
    difference = sample(log_distance[:, None], views.points_px[:, None])[:, 0, 0] - views.log_distance
    factor = inlier_mean(difference, views.has_point)[:, None]
    log_distance = log_distance - factor[..., None]
    z = log_distance.exp() * views.lens_of(range(len(views.cameras))).rays[..., 2]
    return Depths(log_distance, log_scale, z, torch.where(views.has_point, difference - factor, 0.0))


def inlier_mean(values: Float[Tensor, "b n"], mask: Bool[Tensor, "b n"]) -> Float[Tensor, " b"]:
    """Mean of the values near the median, which pass gradients; 0 where the mask is empty."""
    known = torch.where(mask, values.detach(), torch.nan)
    gap = (known - known.nanmedian(dim=1, keepdim=True).values).abs()
    near = gap <= INLIER_DEVIATIONS * gap.nanmedian(dim=1, keepdim=True).values
    return (values * near).sum(dim=1) / near.sum(dim=1).clamp(min=1)


def compare(
    views: Views, depths: Depths, groups: Sequence[Group], rows: Mapping[int, int], valid: Bool[Tensor, "2 t h w"] | None = None
) -> Comparison:
    """Pull each group's sources onto its target; `rows` says where in the batch a frame lies.

    `valid` gives the pixels to compare instead of those that depth and motion carry into the source, whose border then stands in.
    """
    targets = [rows[group.target] for group in groups]
    target, matte, lens = views.colour[targets], views.matte[targets], views.lens_of(targets)
    columns = []
    for k, frames in enumerate(zip(*(group.sources for group in groups), strict=True)):
        sources = [rows[index] for index in frames]
        source = views.colour[sources]
        T_source_target = torch.linalg.inv(views.T_world_camera[sources]) @ views.T_world_camera[targets]
        where = correspond(depths.z[targets], T_source_target.float(), lens)
        is_shown = sample(views.matte[sources][:, None].float(), where.pixels)[:, 0] > 0.999
        usable = where.valid & is_shown & matte & (where.depth > 0) if valid is None else valid[k]
        error = photometric_error(match_exposure(sample(source, where.pixels), target, usable), target, usable)
        with torch.no_grad():
            unwarped = photometric_error(match_exposure(source, target, usable), target, usable)
        columns.append((error, unwarped, depth_inconsistency(where, depths.z[sources], usable), usable))
    return Comparison(*(torch.stack(part) for part in zip(*columns, strict=True)))
