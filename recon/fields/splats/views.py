"""The kept frames of a scene as tensors in normalised units: lengths in median depths, so that m, cm and mm train alike."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from recon.fields.scene import Scene
from recon.image.denoise import denoised
from recon.image.filling import bridge
from recon.io.atomic import atomic_path

CACHED = 64
"""Frames in memory at a time."""


@dataclass(frozen=True)
class TrainingView:
    """One frame; lengths in median depths."""

    image: Float[Tensor, "h w 3"]
    """0 to 1."""
    tissue: Bool[Tensor, "h w"]
    depth: Float[Tensor, "h w"]
    """Freed of noise; 0 where unknown."""
    filled: Float[Tensor, "h w"]
    """The depth bridged over what is unknown."""
    T_camera_world: Float[Tensor, "4 4"]
    time: float


def filled_depth(scene: Scene, file: Path) -> Float[np.ndarray, "n h w"]:
    """Depth of the kept frames, freed of noise and bridged where it is unknown, mapped from a file that is written once.

    In the scene's unit; 0 for frames that are held out.
    """
    if not file.exists():
        with atomic_path(file) as part:
            filled = np.lib.format.open_memmap(part, "w+", np.float32, scene.depth.shape)
            for i in scene.kept:
                view = scene.view(i)
                known = view.tissue & (view.depth > 0)
                filled[i] = bridge(denoised(view.depth, known), known)
            filled.flush()
    return np.load(file, mmap_mode="r", allow_pickle=False)


class TrainingViews:
    """Views by position in the scene; `filled` is what `filled_depth` gives."""

    def __init__(self, scene: Scene, filled: Float[np.ndarray, "n h w"], device: str) -> None:
        self.scene, self.device = scene, device
        self._filled = filled
        self.view = lru_cache(CACHED)(self._view)

    def _view(self, position: int) -> TrainingView:
        raw, frame, size = self.scene.view(position), self.scene.frames[position], np.float32(self.scene.median_depth)
        known = raw.tissue & (raw.depth > 0)
        T = np.linalg.inv(frame.T_world_camera)
        T[:3, 3] /= self.scene.median_depth
        arrays = (raw.image / np.float32(255), raw.tissue, np.where(known, self._filled[position], 0) / size, self._filled[position] / size)
        tensors = [torch.from_numpy(np.array(array)).to(self.device) for array in arrays]
        return TrainingView(*tensors, torch.tensor(T, dtype=torch.float32, device=self.device), frame.time)
