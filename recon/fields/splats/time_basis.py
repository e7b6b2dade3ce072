"""Motion as a sum of Gaussian bumps in time with coefficients of their own for every Gaussian (Deform3DGS, Yang et al. 2024).

There centre and width of every bump are learned for every Gaussian and channel, 510 numbers each. Here all Gaussians share evenly
spaced bumps: positions are then linear in what is learned, so depth and flow give a start by least squares, and neighbours can be
compared coefficient by coefficient. Colour has fewer and wider bumps: highlights wander, but colour must not stand in for motion.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

WIDTH = 1.0
"""Standard deviation of a bump, in distances between bumps."""


CHUNK = 2048
"""Gaussians that are solved for at once."""
SHRINKAGE = 1e-2
"""Weight of coefficients themselves beside that of their second differences: it decides between the mean and an even motion."""


@dataclass(frozen=True)
class Deformed:
    """How Gaussians differ from their canonical state at one time."""

    offsets: Float[Tensor, "n 3"]
    colors: Float[Tensor, "n 3"]


def bumps(times: Float[Tensor, " t"], num: int) -> Float[Tensor, "t num"]:
    """Values of `num` bumps, evenly spaced over 0..1, at some times."""
    spacing = 1.0 / max(num - 1, 1)
    centres = torch.linspace(0.0, 1.0, num, dtype=times.dtype, device=times.device)
    return torch.exp(-0.5 * ((times[:, None] - centres) / (WIDTH * spacing)) ** 2)


class TimeBasis(nn.Module):
    """Offsets and colours of Gaussians over time."""

    def __init__(self, num_gaussians: int, num_motion: int, num_color: int) -> None:
        super().__init__()
        self.motion = nn.Parameter(torch.zeros(num_gaussians, num_motion, 3))
        self.color = nn.Parameter(torch.zeros(num_gaussians, num_color, 3))

    def forward(self, means: Float[Tensor, "n 3"], time: float) -> Deformed:
        """State at a time of 0..1. `means` are of no concern here: every Gaussian has its own numbers."""
        at = torch.tensor([time], dtype=means.dtype, device=means.device)
        return Deformed(*(torch.einsum("b,nbc->nc", bumps(at, part.shape[1])[0], part) for part in (self.motion, self.color)))

    def unlikeness(self, neighbours: Int[Tensor, "n k"]) -> Float[Tensor, "n k"]:
        """Squared difference of each Gaussian's motion from its neighbours', summed over bumps and axes."""
        return ((self.motion[:, None] - self.motion[neighbours]) ** 2).sum(dim=(2, 3))

    def per_gaussian(self) -> dict[str, nn.Parameter]:
        """Parameters with a row for every Gaussian."""
        return {"motion": self.motion, "color": self.color}

    def shared(self) -> dict[str, list[nn.Parameter]]:
        """Parameters that all Gaussians share: none."""
        return {}


def fit_motion(
    times: Float[Tensor, " t"], tracks: Float[Tensor, "n t 3"], weights: Float[Tensor, "n t"], num: int, ridge: float = 0.02
) -> tuple[Float[Tensor, "n 3"], Float[Tensor, "n num 3"]]:
    """Means and coefficients whose sum follows known positions, by weighted least squares.

    Args:
        ridge: weight of second differences between coefficients, per unit of mean weight: what gaps in time are bridged by.
    """
    basis = torch.cat([torch.ones(len(times), 1, dtype=torch.float64), bumps(times.double(), num)], dim=1)
    weights = weights.double()
    products = (basis[:, :, None] * basis[:, None]).reshape(len(times), -1)
    bend = torch.diff(torch.eye(num, dtype=torch.float64), n=2, dim=0) if num > 2 else torch.zeros(1, num, dtype=torch.float64)
    penalty = torch.zeros(num + 1, num + 1, dtype=torch.float64)
    penalty[1:, 1:] = bend.T @ bend + SHRINKAGE * torch.eye(num, dtype=torch.float64)
    tiny, parts = 1e-9 * torch.eye(num + 1, dtype=torch.float64), []
    for some, track in zip(weights.split(CHUNK), tracks.split(CHUNK), strict=True):
        normal = (some @ products).reshape(-1, num + 1, num + 1)
        right = basis.T @ (some[..., None] * track.double())
        scale = ridge * some.mean(dim=1)[:, None, None] + 1e-9
        parts.append(torch.linalg.solve(normal + scale * penalty + tiny, right).float())
    found = torch.cat(parts)
    # The solver's columns are contiguous; the fused Adam takes parameter, gradient and moments by their place in memory.
    return found[:, 0].contiguous(), found[:, 1:].contiguous()
