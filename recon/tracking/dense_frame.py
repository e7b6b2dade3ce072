"""What dense alignment sees of a frame: a small undistorted image pyramid with depth and mask.

Intensity is replaced by local contrast, I / (local mean) - 1: the lamp travels with the camera, so shading moves over the
tissue, and dividing by the local mean leaves mostly what belongs to the tissue (Land's Retinex in its simplest form).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8

from recon.geometry.cameras import ray_grid, resize
from recon.geometry.undistort import pinhole_for, remap, remap_grid
from recon.types import Camera

MEAN_WINDOW_SHARE = 1 / 16
"""Sigma of the local mean, as a share of the image width."""
DARK_LEVEL = 0.06
"""Added to the local mean (intensity 0..1): keeps the noise of dark regions from becoming contrast."""
NOISE_SIGMA_PX = 0.8
"""Blur against sensor noise and JPEG blocks at each level."""


@dataclass(frozen=True)
class Level:
    """One size of the pyramid."""

    camera: Camera
    """PINHOLE."""
    contrast: Float[np.ndarray, "h w"]
    valid: Bool[np.ndarray, "h w"]
    """Pixels whose contrast can be trusted."""
    log_depth: Float[np.ndarray, "h w"]
    """Of z-depth, in the unit of the depth that was given; 0 where unknown."""
    has_depth: Bool[np.ndarray, "h w"]
    rays: Float[np.ndarray, "h w 3"]
    """Scaled to z = 1."""


@dataclass(frozen=True)
class DenseFrame:
    """Levels from fine to coarse."""

    levels: tuple[Level, ...]
    median_depth: float
    """In the unit of the depth that was given; 1 without depth."""

    def scaled(self, factor: float) -> DenseFrame:
        """The same frame with its depth times a factor."""
        shift = float(np.log(factor))
        levels = [replace(level, log_depth=np.where(level.has_depth, level.log_depth + shift, 0.0)) for level in self.levels]
        return DenseFrame(tuple(levels), self.median_depth * factor)


@dataclass(frozen=True)
class Undistorter:
    """The pinhole of a lens, and how its pixels are filled from the image and from a depth map of another size."""

    lens: Camera
    width_px: int = 192
    fov_rad: float = 1.75
    num_levels: int = 4

    @property
    def pinhole(self) -> Camera:
        return pinhole_for(self.lens, self.fov_rad, self.width_px)

    def frame(
        self, image: UInt8[np.ndarray, "h w 3"], mask: Bool[np.ndarray, "h w"], depth: Float[np.ndarray, "hd wd"] | None
    ) -> DenseFrame:
        """`depth` is z-depth on the same lens at any resolution, 0 where unknown."""
        pinhole = self.pinhole
        # Area-averaged to about the target's sampling first: remapping a large image straight down would alias.
        step = max(1, round(self.lens.width_px / (2 * self.width_px)))
        size = (self.lens.width_px // step, self.lens.height_px // step)
        grey = cv2.resize(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), size, interpolation=cv2.INTER_AREA).astype(np.float32) / 255.0
        map_xy, seen = self._grid(*size)
        grey = remap(grey, map_xy, seen)
        solid = cv2.resize(mask.astype(np.float32), size, interpolation=cv2.INTER_AREA)
        valid = remap(solid, map_xy, seen) > 0.99
        depth, known = self._depth(depth)
        levels = [_level(pinhole, grey, valid, depth, known, scale) for scale in range(self.num_levels)]
        median = float(np.median(depth[known])) if known.any() else 1.0
        return DenseFrame(tuple(levels), median)

    def _depth(self, depth: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        if depth is None:
            shape = (self.pinhole.height_px, self.pinhole.width_px)
            return np.zeros(shape, np.float32), np.zeros(shape, bool)
        map_xy, seen = self._grid(depth.shape[1], depth.shape[0])
        known = remap((depth > 0).astype(np.float32), map_xy, seen) > 0.99
        return remap(depth.astype(np.float32), map_xy, seen) * known, known

    def _grid(self, width_px: int, height_px: int) -> tuple[np.ndarray, np.ndarray]:
        return _remap_grid(resize(self.lens, width_px, height_px), self.pinhole)


@lru_cache(maxsize=8)
def _remap_grid(lens: Camera, pinhole: Camera) -> tuple[np.ndarray, np.ndarray]:
    return remap_grid(lens, pinhole)


def _level(pinhole: Camera, grey: np.ndarray, valid: np.ndarray, depth: np.ndarray, known: np.ndarray, halvings: int) -> Level:
    width, height = max(8, pinhole.width_px >> halvings), max(8, pinhole.height_px >> halvings)
    camera = resize(pinhole, width, height)

    def shrink(x: np.ndarray) -> np.ndarray:
        return cv2.resize(x.astype(np.float32), (width, height), interpolation=cv2.INTER_AREA)

    share, known_share = shrink(valid), shrink(known)
    small = shrink(grey * valid) / np.maximum(share, 1e-6)
    log_depth = shrink(np.log(np.where(known, depth, 1.0))) / np.maximum(known_share, 1e-6)
    rays = ray_grid(camera)
    solid, has_depth = share > 0.9, known_share > 0.9
    return Level(
        camera=camera,
        contrast=local_contrast(small, solid).astype(np.float64),
        valid=solid,
        log_depth=np.where(has_depth, log_depth, 0.0).astype(np.float64),
        has_depth=has_depth,
        rays=rays / rays[..., 2:],
    )


def local_contrast(grey: Float[np.ndarray, "h w"], valid: Bool[np.ndarray, "h w"]) -> Float[np.ndarray, "h w"]:
    """Intensity (0..1) over its local mean, minus one; means over valid pixels only, 0 where not valid."""
    grey = _masked_blur(grey, valid, NOISE_SIGMA_PX)
    mean = _masked_blur(grey, valid, MEAN_WINDOW_SHARE * grey.shape[1])
    return np.where(valid, (grey - mean) / (mean + DARK_LEVEL), 0.0)


def _masked_blur(image: np.ndarray, valid: np.ndarray, sigma_px: float) -> np.ndarray:
    weight = cv2.GaussianBlur(valid.astype(np.float32), (0, 0), sigma_px)
    return cv2.GaussianBlur((image * valid).astype(np.float32), (0, 0), sigma_px) / np.maximum(weight, 1e-6)
