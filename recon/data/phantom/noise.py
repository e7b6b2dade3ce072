"""Band-limited periodic noise, made once and looked up anywhere in space.

One small volume filled through its spectrum replaces per-point procedural noise: a lookup is one trilinear
interpolation, so shading costs little, and there are no lattice artefacts at the wavelengths used.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

SIZE = 64
WAVELENGTH_VOXELS = 6.0
CHANNELS = 4
BANK = 6


def noise_volume(seed: int) -> Float[Tensor, "1 c d d d"]:
    """Make `CHANNELS` independent unit-variance noise fields, periodic, one voxel of wrap-around at each far side."""
    rng = np.random.default_rng(seed)
    frequency = np.fft.fftfreq(SIZE)
    radius = np.sqrt(sum(f**2 for f in np.meshgrid(frequency, frequency, np.fft.rfftfreq(SIZE), indexing="ij")))
    band = np.exp(-(((radius - 1 / WAVELENGTH_VOXELS) * WAVELENGTH_VOXELS / 0.45) ** 2))
    fields = []
    for _ in range(CHANNELS):
        field = np.fft.irfftn(np.fft.rfftn(rng.standard_normal((SIZE,) * 3)) * band, s=(SIZE,) * 3, axes=(0, 1, 2))
        fields.append(np.pad(field / field.std(), ((0, 1),) * 3, mode="wrap"))
    return torch.from_numpy(np.stack(fields)[None].astype(np.float32))


def sample_noise(volume: Float[Tensor, "1 c d d d"], points: Float[Tensor, "n 3"], wavelength: float) -> Float[Tensor, "n c"]:
    """Look the noise up at points, with its dominant wavelength in the points' own unit."""
    voxels = torch.remainder(points * (WAVELENGTH_VOXELS / wavelength), SIZE)
    grid = (voxels * (2.0 / SIZE) - 1.0)[None, None, None]
    return functional.grid_sample(volume, grid, mode="bilinear", align_corners=True)[0, :, 0, 0].T


@lru_cache(maxsize=BANK)
def _banked(seed: int) -> Float[np.ndarray, "c d d d"]:
    return noise_volume(seed)[0, :, :SIZE, :SIZE, :SIZE].numpy()


def random_noise(rng: np.random.Generator) -> Float[Tensor, "1 c d d d"]:
    """A volume as `noise_volume` makes it, ten times faster: one of `BANK` kept ones, turned, shifted, channels swapped."""
    field = _banked(int(rng.integers(BANK)))[rng.permutation(CHANNELS)].transpose(0, *(1 + rng.permutation(3)))
    field = np.roll(field, rng.integers(0, SIZE, 3), axis=(1, 2, 3))
    return torch.from_numpy(np.pad(field, ((0, 0), *((0, 1),) * 3), mode="wrap")[None])
