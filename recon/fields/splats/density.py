"""More Gaussians where detail is missing, none where they do nothing (Kerbl et al. 2023)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from recon.fields.splats.model import SplatModel
from recon.fields.splats.projection import rotations

MIN_OPACITY = 0.02
MAX_SCALE = 0.25
"""Of the median depth; what grows beyond it is haze."""
SPLIT_SHRINK = 1.6


@dataclass
class Demand:
    """How much each Gaussian's picture position wants to move: a mean over the views that drew it."""

    total: Float[Tensor, " n"]
    count: Float[Tensor, " n"]

    @staticmethod
    def none(num: int, device: torch.device) -> Demand:
        return Demand(torch.zeros(num, device=device), torch.zeros(num, device=device))

    def add(self, gradient_px: Float[Tensor, "n 2"], width_px: int) -> None:
        """`gradient_px` of the loss; made independent of the picture's size as in the reference code."""
        norm = gradient_px.norm(dim=1) * (0.5 * width_px)
        self.total += norm
        self.count += norm > 0

    def mean(self) -> Float[Tensor, " n"]:
        return self.total / self.count.clamp_min(1)


def split_and_prune(
    model: SplatModel, optimizer: torch.optim.Optimizer, demand: Demand, threshold: float, max_gaussians: int
) -> Int[Tensor, " m"]:
    """Split the most demanded Gaussians in two, as many as there is room for, and drop those that show nothing.

    Returns the row that each Gaussian comes from; the model's and the optimiser's rows follow.
    """
    with torch.no_grad():
        kept = _useful(model)
        wanted = torch.where(kept, demand.mean(), 0.0)
        room = max(max_gaussians - int(kept.sum()), 0)
        order = torch.argsort(wanted, descending=True)[:room]
        parents = order[wanted[order] > threshold]
        rows = torch.cat([torch.nonzero(kept)[:, 0], parents])
        is_parent = torch.zeros(len(model), dtype=torch.bool, device=wanted.device)
        is_parent[parents] = True
        shift = _along_longest(model)
        replace_rows(model, optimizer, rows)
        split = is_parent[rows]
        side = torch.where(torch.arange(len(rows), device=rows.device) < int(kept.sum()), 1.0, -1.0)
        model.means[split] += (side[:, None] * shift[rows])[split]
        model.log_scales[split] -= float(torch.log(torch.tensor(SPLIT_SHRINK)))
    return rows


def _useful(model: SplatModel) -> Bool[Tensor, " n"]:
    opaque = torch.sigmoid(model.opacity_logits) > MIN_OPACITY
    return opaque & (model.scales().max(dim=1).values < MAX_SCALE) & torch.isfinite(model.means).all(dim=1)


def _along_longest(model: SplatModel) -> Float[Tensor, "n 3"]:
    """Half a standard deviation along each Gaussian's longest axis."""
    longest = model.scales().max(dim=1)
    axes = rotations(model.quaternions)
    return 0.5 * longest.values[:, None] * axes[torch.arange(len(axes), device=axes.device), :, longest.indices]


def replace_rows(model: SplatModel, optimizer: torch.optim.Optimizer, rows: Int[Tensor, " m"]) -> None:
    """Take these rows of everything that has a row a Gaussian, in the model and in the optimiser's moments."""
    state = optimizer.state
    model.is_seen = model.is_seen[rows]
    for group in optimizer.param_groups:
        for k, old in enumerate(group["params"]):
            name = model.row_name(old)
            if name is None:
                continue
            new = nn.Parameter(old.detach()[rows].clone())
            moments = state.pop(old, {})
            state[new] = {
                key: value[rows].clone() if torch.is_tensor(value) and value.dim() > 0 else value for key, value in moments.items()
            }
            group["params"][k] = new
            model.set_row(name, new)
