"""The Gaussians that are learned: canonical state and how it changes with time."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from recon.fields.splats.hexplane import HexPlane
from recon.fields.splats.projection import rotations
from recon.fields.splats.rasterize import Splats
from recon.fields.splats.time_basis import TimeBasis

OWN_ROWS = ("means", "quaternions", "log_scales", "opacity_logits", "colors")
THINNEST = 1e-3
"""Thickness of a surfel over its mean radius."""


class SplatModel(nn.Module):
    """Gaussians in normalised units (median depth 1), their parameters unconstrained.

    `is_seen` is False for those that were put where no frame saw anything.
    """

    def __init__(
        self,
        means: Float[Tensor, "n 3"],
        quaternions: Float[Tensor, "n 4"],
        scales: Float[Tensor, "n 3"],
        opacities: Float[Tensor, " n"],
        colors: Float[Tensor, "n 3"],
        deformation: nn.Module,
        are_surfels: bool,
        is_seen: Bool[Tensor, " n"],
    ) -> None:
        super().__init__()
        self.means = nn.Parameter(means)
        self.quaternions = nn.Parameter(quaternions)
        self.log_scales = nn.Parameter(torch.log(scales))
        self.opacity_logits = nn.Parameter(torch.logit(opacities))
        self.colors = nn.Parameter(colors)
        self.deformation = deformation
        self.are_surfels = are_surfels
        self.register_buffer("is_seen", is_seen)

    def __len__(self) -> int:
        return len(self.means)

    def at(self, time: float, extra: Float[Tensor, "n c"] | None = None) -> Splats:
        """Gaussians at a time of 0..1; `extra` features are blended after the colours."""
        deformed = self.deformation(self.means, time)
        colors = self.colors + deformed.colors
        features = colors if extra is None else torch.cat([colors, extra], dim=1)
        return Splats(self.means + deformed.offsets, self.quaternions, self.scales(), torch.sigmoid(self.opacity_logits), features)

    def scales(self) -> Float[Tensor, "n 3"]:
        """Standard deviations along the axes; a surfel's third axis is its normal."""
        scales = torch.exp(self.log_scales)
        if not self.are_surfels:
            return scales
        thin = THINNEST * scales[:, :2].mean(dim=1, keepdim=True)
        return torch.cat([scales[:, :2], thin], dim=1)

    def normals(self) -> Float[Tensor, "n 3"]:
        """Third axes: what a surfel faces, up to sign."""
        return rotations(self.quaternions)[:, :, 2]

    def per_gaussian(self) -> dict[str, nn.Parameter]:
        """Parameters with a row for every Gaussian, by the name of their group."""
        return {name: getattr(self, name) for name in OWN_ROWS} | self.deformation.per_gaussian()

    def set_row(self, name: str, parameter: nn.Parameter) -> None:
        """Put another parameter in the place of one that has a row for every Gaussian."""
        setattr(self if name in OWN_ROWS else self.deformation, name, parameter)


def model_from_state(state: dict[str, Tensor], are_surfels: bool) -> SplatModel:
    """The model that a checkpoint's tensors belong to."""
    num = len(state["means"])
    if "deformation.motion" in state:
        deformation: nn.Module = TimeBasis(num, state["deformation.motion"].shape[1], state["deformation.color"].shape[1])
    else:
        deformation = HexPlane(torch.zeros(num, 3), state["deformation.planes.3"].shape[2], state["deformation.color"].shape[1], None)
    like = [torch.empty_like(state[name]) for name in ("means", "quaternions", "log_scales", "opacity_logits", "colors")]
    scales, opacities, seen = torch.ones_like(like[2]), torch.full_like(like[3], 0.5), torch.ones(num, dtype=torch.bool)
    model = SplatModel(like[0], like[1], scales, opacities, like[4], deformation, are_surfels, seen)
    model.load_state_dict(state)
    return model
