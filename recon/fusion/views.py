"""Views made from the files of earlier stages: undistort depth, its uncertainty, the mask and the picture; weigh."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from recon.fusion.view import View, rays
from recon.fusion.weights import pixel_weights
from recon.geometry.cameras import resize
from recon.geometry.surface import edge_mask, normals_from_depth
from recon.geometry.undistort import pinhole_for, remap, remap_grid
from recon.io.depth import read_depth
from recon.io.images import read_image
from recon.io.masks import read_mask
from recon.types import Camera, ReconError

LEAST_TYPICAL_SIGMA = 0.02
"""Pixels count relative to the typical sigma, and to no smaller one: where stereo is sharp nearly everywhere, the network's word still
has to weigh something between it."""
MEASURED_FRAMES = 24
"""Frames, spread over the recording, from which the medians of depth and sigma are taken."""


@dataclass(frozen=True)
class ViewSettings:
    """How a lens picture becomes a pinhole view."""

    fov_rad: float
    width_px: int
    min_cosine: float
    max_depth_ratio: float
    """Depth beyond this many median depths is unknown."""
    max_jump: float
    """Relative step of depth between neighbouring pixels that makes an edge, which is unknown."""


class ViewSource:
    """Loads the views of some posed frames, one at a time.

    Args:
        camera: the lens at working resolution; depth maps lie on it at any size.
        depth_folder: holds `depth/NNNNNN.tiff` and `sigma/NNNNNN.tiff`, and `matched/NNNNNN.png` where views were matched.
        image_folder, mask_folder: hold `NNNNNN.jpg` and `NNNNNN.png` at working resolution.
        frame_indices, poses: which frames, and their T_world_camera.
    """

    def __init__(
        self,
        camera: Camera,
        depth_folder: Path,
        image_folder: Path,
        mask_folder: Path,
        frame_indices: Sequence[int],
        poses: np.ndarray,
        settings: ViewSettings,
    ) -> None:
        self.camera, self.settings = camera, settings
        self.pinhole = pinhole_for(camera, settings.fov_rad, settings.width_px)
        self.frame_indices, self.poses = frame_indices, poses
        self._depth_folder, self._image_folder, self._mask_folder = depth_folder, image_folder, mask_folder
        self._grids: dict[tuple[int, int], tuple[np.ndarray, np.ndarray]] = {}

    @cached_property
    def medians(self) -> tuple[float, float]:
        """Median depth and typical sigma over known pixels of the recording."""
        chosen = np.unique(np.linspace(0, len(self.frame_indices) - 1, MEASURED_FRAMES).round().astype(int))
        depth, sigma = [], []
        for position in chosen:
            z, s = self._read(self.frame_indices[position], "depth"), self._read(self.frame_indices[position], "sigma")
            known = (z > 0) & (s > 0)
            depth.append(z[known][::7])
            sigma.append(s[known][::7])
        all_depth = np.concatenate(depth)
        if len(all_depth) == 0:
            raise ReconError(f"none of {len(chosen)} depth maps in {self._depth_folder} has a known pixel: nothing to fuse", exit_code=1)
        return float(np.median(all_depth)), max(float(np.median(np.concatenate(sigma))), LEAST_TYPICAL_SIGMA)

    def load(self, position: int) -> View:
        """Return the view at `position` in `frame_indices`."""
        index = self.frame_indices[position]
        median_depth, median_sigma = self.medians
        depth = self._undistorted(self._read(index, "depth"), "nearest")
        sigma = self._undistorted(self._read(index, "sigma"), "nearest")
        mask = self._undistorted(read_mask(self._mask_folder / f"{index:06d}.png"), "nearest")
        color = self._undistorted(read_image(self._image_folder / f"{index:06d}.jpg"), "linear")
        known = mask & (depth > 0) & (depth < self.settings.max_depth_ratio * median_depth)
        # Edges are found before masking: a step hidden under a highlight is still a step.
        smooth = edge_mask(depth, depth > 0, self.settings.max_jump)
        normals = normals_from_depth(depth, rays(self.pinhole)).astype(np.float32)
        weight = pixel_weights(self.pinhole, depth, normals, sigma, known & smooth, median_depth, median_sigma, self.settings.min_cosine)
        matched = self._matched(index) & (depth > 0)
        return View(index, self.pinhole, self.poses[position], depth, normals, weight, color, matched, sigma)

    def _matched(self, index: int) -> np.ndarray:
        """Where matching gave the depth; nowhere when nothing was matched."""
        path = self._depth_folder / "matched" / f"{index:06d}.png"
        if path.exists():
            return self._undistorted(read_mask(path), "nearest")
        return np.zeros((self.pinhole.height_px, self.pinhole.width_px), bool)

    def _read(self, index: int, kind: str) -> np.ndarray:
        return read_depth(self._depth_folder / kind / f"{index:06d}.tiff")

    def _undistorted(self, picture: np.ndarray, interpolation: str) -> np.ndarray:
        height, width = picture.shape[:2]
        if (height, width) not in self._grids:
            self._grids[height, width] = remap_grid(resize(self.camera, width, height), self.pinhole)
        map_xy, valid = self._grids[height, width]
        return remap(picture, map_xy, valid, interpolation)
