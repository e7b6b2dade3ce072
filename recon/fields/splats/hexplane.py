"""Motion as a small network over six planes of features (HexPlane, Cao & Johnson 2023; 4D Gaussians, Wu et al. 2024).

Features of the planes xy, xz, yz, xt, yt and zt at a Gaussian's canonical place and the time are multiplied, those of three
resolutions in space joined, and a small network makes an offset of them. Neighbours share features, so motion is smooth by its
make. Colour over time is every Gaussian's own, as in `time_basis`: highlights are finer than the planes.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from recon.fields.splats.time_basis import Deformed, bumps

AXES = ((0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3))
CHANNELS, WIDTH, RESOLUTION = 12, 64, 32
LEVELS = (1, 2, 4)
OFFSET_SCALE = 0.05
"""Median depths per unit that the network gives: steps of its weights are as coarse as motion is large."""
MARGIN = 0.05
"""Of the extent, around the Gaussians."""
WARM_STEPS, WARM_SAMPLES = 1200, 4096
"""Of learning a motion that is known: steps, and places and times in each."""
WARM_RATES = {"planes": 8e-2, "network": 1e-2}


class HexPlane(nn.Module):
    """Offsets and colours over time from where a Gaussian is."""

    def __init__(self, means: Float[Tensor, "n 3"], num_times: int, num_color: int, motion: Float[Tensor, "n b 3"] | None) -> None:
        super().__init__()
        self.color = nn.Parameter(torch.zeros(len(means), num_color, 3))
        low, high = torch.quantile(means[:: max(len(means) // 10000, 1)], torch.tensor([0.001, 0.999]), dim=0)
        extent = (high - low).max().clamp_min(1e-6)
        self.register_buffer("centre", (low + high) / 2)
        self.register_buffer("half_extent", (high - low).clamp_min(0.05 * extent) * (0.5 + MARGIN))
        self.planes = nn.ParameterList()
        for level in LEVELS:
            # Finer in space only: between the frames that are learned, finer planes of time would hold what nothing taught them.
            sizes = [RESOLUTION * level] * 3 + [num_times]
            for a, b in AXES:
                start = torch.rand(1, CHANNELS, sizes[b], sizes[a]) + 0.5 if b < 3 else torch.ones(1, CHANNELS, sizes[b], sizes[a])
                self.planes.append(nn.Parameter(start))
        self.body = nn.Sequential(nn.Linear(CHANNELS * len(LEVELS), WIDTH), nn.SiLU(), nn.Linear(WIDTH, WIDTH), nn.SiLU())
        self.to_offset = nn.Linear(WIDTH, 3)
        nn.init.zeros_(self.to_offset.weight)
        nn.init.zeros_(self.to_offset.bias)
        if motion is not None:
            self._imitate(means, motion)

    def forward(self, means: Float[Tensor, "n 3"], time: float) -> Deformed:
        """State at a time of 0..1, of all Gaussians."""
        at = torch.tensor([time], dtype=means.dtype, device=means.device)
        colors = torch.einsum("b,nbc->nc", bumps(at, self.color.shape[1])[0], self.color)
        return Deformed(self._offsets(means, at.expand(len(means))), colors)

    def _offsets(self, means: Float[Tensor, "m 3"], times: Float[Tensor, " m"]) -> Float[Tensor, "m 3"]:
        """Of any places and times; those outside the planes take the nearest value on them."""
        where = torch.cat([(means.detach() - self.centre) / self.half_extent, 2.0 * times[:, None] - 1.0], dim=1)
        joined = []
        for level in range(len(LEVELS)):
            product = None
            for plane, (a, b) in zip(self.planes[level * len(AXES) : (level + 1) * len(AXES)], AXES, strict=True):
                at = where[None, None][..., [a, b]]
                feature = functional.grid_sample(plane, at, align_corners=True, padding_mode="border")[0, :, 0]
                product = feature if product is None else product * feature
            joined.append(product)
        hidden = self.body(torch.cat(joined).T)
        return OFFSET_SCALE * self.to_offset(hidden)

    def unlikeness(self, neighbours: Int[Tensor, "n k"]) -> Float[Tensor, "n k"]:
        """Nothing to ask for: neighbours share features."""
        return torch.zeros(neighbours.shape)

    def per_gaussian(self) -> dict[str, nn.Parameter]:
        """Parameters with a row for every Gaussian."""
        return {"color": self.color}

    def shared(self) -> dict[str, list[nn.Parameter]]:
        """Parameters that all Gaussians share, by the name of their group."""
        return {"planes": list(self.planes), "network": [*self.body.parameters(), *self.to_offset.parameters()]}

    def _imitate(self, means: Tensor, motion: Tensor) -> None:
        """Learn offsets that are known already."""
        optimizer = torch.optim.Adam([{"params": parameters, "name": name} for name, parameters in self.shared().items()], fused=True)
        for step in range(WARM_STEPS):
            some, times = torch.randint(len(means), (WARM_SAMPLES,)), torch.rand(WARM_SAMPLES)
            wanted = torch.einsum("nb,nbc->nc", bumps(times, motion.shape[1]), motion[some])
            loss = (self._offsets(means[some], times) - wanted).abs().mean()
            for group in optimizer.param_groups:
                group["lr"] = WARM_RATES[group["name"]] * 0.02 ** (step / WARM_STEPS)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
