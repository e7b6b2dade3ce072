"""From likeness at every hypothesis to a distance along each ray, with its precision, where stereo has something to say."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float

from recon.geometry.cameras import ray_grid
from recon.geometry.se3 import inverse
from recon.geometry.torch_cameras import TorchLens
from recon.stereo.semi_global import aggregate
from recon.types import Camera


MIN_BEND = 1e-4
"""Second difference of likeness below which a maximum is too flat to be refined."""


@dataclass(frozen=True)
class MatchOptions:
    """What counts as a match."""

    small_step: float = 0.08
    large_step: float = 0.6
    min_likeness: float = 0.3
    """Correlation of a pixel's window at its distance."""
    max_deviation: float = 0.02
    """Relative difference of distance at which two keyframes agree."""
    min_agreeing: int = 2
    """Other keyframes that must agree."""


@dataclass(frozen=True)
class Match:
    """Distance along each ray."""

    distance: Float[np.ndarray, "h w"]
    """0 where nothing matches."""
    likeness: Float[np.ndarray, "h w"]
    precision: Float[np.ndarray, "h w"]
    """One step of the hypotheses over the inverse distance: how far a step moves the point, relative to its distance."""


def match(
    similarity: Float[np.ndarray, "p h w"], planes: Float[np.ndarray, " p"], usable: Bool[np.ndarray, "h w"], options: MatchOptions
) -> Match:
    """The cheapest hypothesis after aggregation, refined by a parabola through its neighbours' likeness.

    The parabola is laid through what was measured: penalties for steps pull the aggregated minimum off a slanted wall (by up to
    a whole step on a wall of constant depth, whose distance grows towards the sides).
    """
    cost = np.ascontiguousarray(1.0 - similarity.transpose(1, 2, 0))
    best = aggregate(cost, options.small_step, options.large_step).argmin(axis=2)
    inner = np.clip(best, 1, len(planes) - 2)
    below, middle, above = (np.take_along_axis(cost, (inner + k)[..., None], axis=2)[..., 0] for k in (-1, 0, 1))
    bend = below - 2 * middle + above
    offset = np.where(bend > MIN_BEND, 0.5 * (below - above) / np.maximum(bend, MIN_BEND), 0.0)
    inverse_distance = planes[0] + (planes[1] - planes[0]) * (inner + np.clip(offset, -1.0, 1.0))
    likeness = np.take_along_axis(similarity, best[None], axis=0)[0]
    # The first and the last hypothesis stand for everything beyond.
    known = usable & (likeness >= options.min_likeness) & (best > 0) & (best < len(planes) - 1) & (inverse_distance > 0)
    safe = np.where(known, inverse_distance, 1.0)
    distance = np.where(known, 1.0 / safe, 0.0)
    return Match(distance.astype(np.float32), likeness, np.where(known, (planes[1] - planes[0]) / safe, 0.0).astype(np.float32))


def relative_difference(
    camera: Camera,
    distance: Float[np.ndarray, "h w"],
    T_world_camera: Float[np.ndarray, "4 4"],
    other: Float[np.ndarray, "h w"],
    T_world_other: Float[np.ndarray, "4 4"],
) -> Float[np.ndarray, "h w"]:
    """Log of the distance from the other camera to each pixel's point over what the other map says there; NaN where it is silent.

    Positive where the other sees something nearer, which may hide the point.
    """
    known = distance > 0
    T = inverse(T_world_other) @ T_world_camera
    points = (ray_grid(camera)[known] * distance[known][:, None]) @ T[:3, :3].T + T[:3, 3]
    pixels, valid = TorchLens([camera]).project(torch.from_numpy(points[None, None].astype(np.float32)))
    pixels, valid = np.rint(pixels[0, 0].numpy()).astype(np.int64), valid[0, 0].numpy()
    inside = valid & (pixels >= 0).all(1) & (pixels[:, 0] < camera.width_px) & (pixels[:, 1] < camera.height_px)
    said = np.zeros(len(points), np.float32)
    said[inside] = other[pixels[inside, 1], pixels[inside, 0]]
    out = np.full(distance.shape, np.nan, np.float32)
    out[known] = np.where(said > 0, np.log(np.linalg.norm(points, axis=1) / np.where(said > 0, said, 1.0)), np.nan)
    return out
