"""Plane sweep on the lens itself (Collins 1996; Yang & Pollefeys 2003): how alike pictures are at each distance along each ray.

Every pixel's ray is followed through a fixed set of inverse distances, and each hypothesis is looked up in the other
pictures through the lens model, so nothing is undistorted and the whole field of a fisheye takes part. Likeness is the zero-mean
normalised cross-correlation of a window, which neither gain nor bias of the exposure changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float

from recon.geometry.cameras import ray_grid, resize
from recon.geometry.se3 import inverse
from recon.geometry.torch_cameras import TorchLens
from recon.types import Camera

COARSE = 4
"""The lens is projected at every fourth pixel and interpolated between: it is smooth."""
MIN_DEVIATION = 0.004
"""Grey deviation (of 1) in a window below which there is no texture to compare: sensors and coders make as much."""


@dataclass(frozen=True)
class Picture:
    """One frame as the sweep sees it, on the working grid of its lens."""

    grey: Float[np.ndarray, "h w"]
    """0 to 1."""
    usable: Bool[np.ndarray, "h w"]
    """Tissue without highlights."""
    T_world_camera: Float[np.ndarray, "4 4"]


@dataclass(frozen=True)
class Likeness:
    """How alike the pictures are at each hypothesis."""

    correlation: Float[np.ndarray, "p h w"]
    """-1 to 1; 0 where no other picture has a say."""
    travel_px: Float[np.ndarray, "q hc wc"]
    """How far the step to the next hypothesis moves the point, on the coarse grid: the mean over the pictures that show it before
    and after. One less than the hypotheses."""


def inverse_distances(near: float, far: float, num: int) -> Float[np.ndarray, " p"]:
    """Hypotheses at equal steps of the inverse distance, the farthest first: equal steps in the pictures."""
    return np.linspace(1.0 / far, 1.0 / near, num).astype(np.float32)


def sweep(
    camera: Camera, reference: Picture, others: Sequence[Picture], planes: Float[np.ndarray, " p"], window: int, drop_share: float = 1 / 3
) -> Likeness:
    """Mean correlation over the better part of the other pictures at each hypothesis.

    Args:
        camera: the lens at the size of the pictures, a multiple of COARSE.
        planes: inverse distances along the rays.
        drop_share: of the pictures, the least alike at each hypothesis have no say: folds hide the place from them.
    """
    lens, rays = _coarse_lens(camera)
    num_dropped = int(len(others) * drop_share)
    total = np.zeros((len(planes), *reference.grey.shape), np.float32)
    lowest: list[np.ndarray] = [np.full_like(total, np.inf) for _ in range(num_dropped)]
    mean, deviation = _window_statistics(reference.grey, window)
    travel = np.zeros((len(planes) - 1, *rays.shape[1:3]), np.float32)
    num_seen = np.zeros_like(travel)
    for other in others:
        where = hypotheses_in(lens, rays, inverse(other.T_world_camera) @ reference.T_world_camera, planes)
        inside = np.all((where >= 0) & (where < [camera.width_px, camera.height_px]), axis=-1)
        seen = inside[1:] & inside[:-1]
        travel += np.where(seen, np.linalg.norm(np.diff(where, axis=0), axis=-1), 0)
        num_seen += seen
        whole = cv2.erode(other.usable.astype(np.uint8), np.ones((window, window), np.uint8), borderValue=0)
        for k in range(len(planes)):
            likeness = _correlation(reference.grey, mean, deviation, other.grey, whole, where[k], camera, window)
            total[k] += likeness
            for low in lowest:
                likeness, low[k] = np.maximum(likeness, low[k]), np.minimum(likeness, low[k])
    for low in lowest:
        total -= low
    return Likeness(total / max(len(others) - num_dropped, 1), travel / np.maximum(num_seen, 1))


def hypotheses_in(
    lens: TorchLens, rays: Float[np.ndarray, "1 h w 3"], T_other_reference: Float[np.ndarray, "4 4"], planes: Float[np.ndarray, " p"]
) -> Float[np.ndarray, "p h w 2"]:
    """Pixels of the coarse grid's rays in another picture at each inverse distance; far outside where the lens does not look.

    The point at inverse distance q lies in the direction R ray + q t: infinity is no special case.
    """
    R, t = (torch.from_numpy(part.astype(np.float32)) for part in (T_other_reference[:3, :3], T_other_reference[:3, 3]))
    directions = torch.from_numpy(rays) @ R.T + torch.from_numpy(planes)[:, None, None, None] * t
    count, height, width, _ = directions.shape
    pixels, valid = lens.project(directions.reshape(1, count * height, width, 3))
    pixels = torch.where(valid[..., None], pixels, -1e4)
    return pixels.reshape(count, height, width, 2).numpy()


def _coarse_lens(camera: Camera) -> tuple[TorchLens, np.ndarray]:
    """The projection into the full picture, and rays at the centres of its blocks of COARSE by COARSE pixels."""
    rays = ray_grid(resize(camera, camera.width_px // COARSE, camera.height_px // COARSE))
    return TorchLens([camera]), rays[None].astype(np.float32)


def _window_statistics(grey: np.ndarray, window: int) -> tuple[np.ndarray, np.ndarray]:
    mean = cv2.blur(grey, (window, window))
    variance = cv2.blur(grey * grey, (window, window)) - mean * mean
    return mean, np.sqrt(np.maximum(variance, MIN_DEVIATION**2))


def _correlation(
    grey: np.ndarray,
    mean: np.ndarray,
    deviation: np.ndarray,
    other: np.ndarray,
    whole: np.ndarray,
    coarse_px: np.ndarray,
    camera: Camera,
    window: int,
) -> np.ndarray:
    pixels = cv2.resize(coarse_px, (camera.width_px, camera.height_px), interpolation=cv2.INTER_LINEAR)
    warped = cv2.remap(other, pixels, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    usable = cv2.remap(whole, pixels, None, cv2.INTER_NEAREST, borderMode=cv2.BORDER_CONSTANT, borderValue=0)
    other_mean, other_deviation = _window_statistics(warped, window)
    covariance = cv2.blur(warped * grey, (window, window)) - other_mean * mean
    return covariance / (deviation * other_deviation) * usable
