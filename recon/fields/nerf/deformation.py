"""Where a point that is seen now lies in the canonical scene: x_canonical = x + d(x, t).

The displacement is a perceptron of position and time under a positional encoding (D-NeRF, Pumarola et al. 2021; EndoNeRF, Wang et al.
2022). Its last layer starts at zero: training begins with a scene that stands still.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn

POSITION_FREQUENCIES = 4
MIN_FRAMES_PER_PERIOD = 8
"""Of the fastest wave of time: a faster one fits the frames that are seen and wavers between them."""


def num_time_frequencies(num_frames: int) -> int:
    """Octaves of time that so many frames determine; the second makes one period over the recording."""
    return max(2, 2 + int(math.log2(max(num_frames / MIN_FRAMES_PER_PERIOD, 1))))


class Deformation(nn.Module):
    """d(x, t) in box units.

    Args:
        half_side: of the cube about the origin that holds the scene; positions are divided by it.
        width: of the hidden layers.
        num_layers: hidden ones.
        num_frequencies: octaves of time.
    """

    def __init__(self, half_side: float, width: int, num_layers: int, num_frequencies: int) -> None:
        super().__init__()
        self.half_side, self.num_frequencies = half_side, num_frequencies
        sizes = [3 * (1 + 2 * POSITION_FREQUENCIES) + 1 + 2 * num_frequencies] + [width] * num_layers
        layers: list[nn.Module] = []
        for num_in, num_out in pairwise(sizes):
            layers += [nn.Linear(num_in, num_out), nn.ReLU()]
        last = nn.Linear(sizes[-1], 3)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.layers = nn.Sequential(*layers, last)

    def forward(self, positions: Float[Tensor, "*n 3"], times: Float[Tensor, "*n 1"]) -> Float[Tensor, "*n 3"]:
        """Displacement of points (box units) at their times (0 to 1 over the recording)."""
        encoded = [encode(positions / self.half_side, POSITION_FREQUENCIES), encode(2 * times - 1, self.num_frequencies)]
        return self.half_side * self.layers(torch.cat(encoded, dim=-1))


def encode(values: Float[Tensor, "*n c"], num_frequencies: int) -> Float[Tensor, "*n e"]:
    """Values and the sines and cosines of their octaves; values from -1 to 1 make one period at the second lowest."""
    angles = values[..., None] * (math.pi / 2 * 2.0 ** torch.arange(num_frequencies, device=values.device))
    waves = torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(-2)
    return torch.cat([values, waves], dim=-1)
