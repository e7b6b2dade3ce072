"""From likeness at every hypothesis to a distance along each ray, with its precision, where stereo has something to say."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float

from recon.geometry.cameras import ray_grid
from recon.geometry.se3 import inverse
from recon.geometry.torch_cameras import TorchLens
from recon.stereo.semi_global import aggregate
from recon.stereo.sweep import COARSE, Likeness
from recon.types import Camera

PIXEL_ERROR = 0.07
"""Standard deviation, px, with which the maximum of likeness is found: of windows of 7 x 7, measured on rendered organs."""
MIN_SIGMA = 0.004
"""Of the logarithm of distance: what lens, poses and windows leave even where points travel far."""
MIN_TRAVEL = 1e-3
"""px a hypothesis; where points stand still, as in the middle of a straight way ahead, nothing is measured."""
MIN_BEND = 1e-4
"""Second difference of likeness below which a maximum is too flat to be refined."""


@dataclass(frozen=True)
class MatchOptions:
    """What counts as a match."""

    window_px: int = 7
    """Side of the window that was compared."""
    small_step: float = 0.08
    large_step: float = 0.6
    min_likeness: float = 0.3
    """Correlation of a pixel's window at its distance."""


@dataclass(frozen=True)
class Match:
    """Distance along each ray."""

    distance: Float[np.ndarray, "h w"]
    """0 where nothing matches."""
    sigma: Float[np.ndarray, "h w"]
    """Standard deviation of the logarithm of the distance, from how far the point travels in the other pictures; 0 where nothing
    matches."""


def match(likeness: Likeness, planes: Float[np.ndarray, " p"], usable: Bool[np.ndarray, "h w"], options: MatchOptions) -> Match:
    """The cheapest hypothesis after aggregation, refined by a parabola through what was measured around it.

    Not through the aggregated cost: penalties for steps pull its minimum off a curved wall, by a third of a step on a flat wall
    beside the lens, whose distance grows towards the sides.
    """
    cost = np.ascontiguousarray(1.0 - likeness.correlation.transpose(1, 2, 0))
    best = aggregate(cost, options.small_step, options.large_step).argmin(axis=2)
    inner = np.clip(best, 1, len(planes) - 2)
    steadied = cv2.blur(cost, (3, 3))
    below, middle, above = (np.take_along_axis(steadied, (inner + k)[..., None], axis=2)[..., 0] for k in (-1, 0, 1))
    bend = below - 2 * middle + above
    offset = np.where(bend > MIN_BEND, 0.5 * (below - above) / np.maximum(bend, MIN_BEND), 0.0)
    inverse_distance = planes[0] + (planes[1] - planes[0]) * (inner + np.clip(offset, -1.0, 1.0))
    correlation = np.take_along_axis(likeness.correlation, best[None], axis=0)[0]
    # Near the rim a window is cut short, and which pictures have a say changes with the hypothesis.
    margin = 2 * (options.window_px // 2 + COARSE // 2) + 1
    whole = cv2.erode(usable.astype(np.uint8), np.ones((margin, margin), np.uint8), borderValue=0) > 0
    # The first and the last hypothesis stand for everything beyond.
    known = whole & (correlation >= options.min_likeness) & (best > 0) & (best < len(planes) - 1) & (inverse_distance > 0)
    safe = np.where(known, inverse_distance, 1.0)
    distance = np.where(known, 1.0 / safe, 0.0)
    steps = np.minimum(_coarse(best, likeness), len(planes) - 2)
    travel = cv2.resize(np.take_along_axis(likeness.travel_px, steps[None], axis=0)[0], best.shape[::-1])
    step = (planes[1] - planes[0]) / safe
    sigma = np.hypot(PIXEL_ERROR * step / np.maximum(travel, MIN_TRAVEL), MIN_SIGMA)
    return Match(distance.astype(np.float32), np.where(known, sigma, 0.0).astype(np.float32))


def _coarse(best: np.ndarray, likeness: Likeness) -> np.ndarray:
    """The hypotheses on the coarse grid."""
    return cv2.resize(best.astype(np.float32), likeness.travel_px.shape[:0:-1], interpolation=cv2.INTER_NEAREST).astype(np.int64)


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
