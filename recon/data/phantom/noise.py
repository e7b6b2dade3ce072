"""Band-limited periodic noise, made once and looked up anywhere in space.

One small volume filled through its spectrum replaces per-point procedural noise: a lookup is one trilinear
interpolation, so shading costs little, and there are no lattice artefacts at the wavelengths used.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

SIZE = 64
WAVELENGTH_VOXELS = 6.0
CHANNELS = 4


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
