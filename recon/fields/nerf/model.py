"""Nerfacto under a deformation, supervised by depth: the model of `endo-nerf`.

Rays end in a canonical scene that a field of density and colour holds; samples are moved into it by `Deformation` at the time of their
ray, for the proposal networks and for the field alike. Depth everywhere is z-depth in box units (median depths).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from typing import Any

import torch
from nerfstudio.cameras.rays import RayBundle, RaySamples
from nerfstudio.field_components.field_heads import FieldHeadNames
from nerfstudio.fields.nerfacto_field import NerfactoField
from nerfstudio.model_components.scene_colliders import SceneCollider
from nerfstudio.models.nerfacto import NerfactoModel, NerfactoModelConfig
from torch import Tensor, nn

from recon.fields.nerf.deformation import Deformation, encode, num_time_frequencies
from recon.fields.nerf.depth_terms import MIN_WEIGHT, huber_depth_loss, mean_where_known, termination_loss


@dataclass
class EndoNerfModelConfig(NerfactoModelConfig):
    """Nerfacto's settings for one surface in a small box, and those of deformation and depth."""

    _target: type = field(default_factory=lambda: EndoNerfModel)
    implementation: str = "torch"
    deformation_width: int = 64
    """Of the hidden layers of the deformation."""
    deformation_layers: int = 4
    """Hidden layers of the deformation; 0 gives a scene that stands still."""
    depth_sigma: float = 0.01
    """Standard deviation of trusted depth, relative to the median depth."""
    termination_loss_mult: float = 0.02
    """Of the term that says where rays end, for trusted depth."""
    depth_loss_mult: float = 0.002
    """Of the Huber term on the rendered depth."""
    opacity_loss_mult: float = 0.01
    """Of the term that says that every ray of tissue ends in it."""


class TimedColorField(NerfactoField):
    """Nerfacto's field whose colour may change with time: highlights wander over wet tissue that hardly moves. Density may not, so that
    motion is left to the deformation."""

    def __init__(self, aabb: Tensor, num_frequencies: int, **options: Any) -> None:
        super().__init__(aabb, num_images=0, appearance_embedding_dim=2 * num_frequencies, **options)
        self.num_frequencies = num_frequencies
        self.embedding_appearance = None  # the room that it has in the colour's perceptron is taken by the time

    def get_outputs(self, ray_samples: RaySamples, density_embedding: Tensor | None = None) -> dict[FieldHeadNames, Tensor]:
        directions = (ray_samples.frustums.directions + 1) / 2
        times = encode(2 * ray_samples.times - 1, self.num_frequencies)[..., 1:]
        seen = [self.direction_encoding(directions.reshape(-1, 3)), density_embedding.reshape(-1, self.geo_feat_dim), times.flatten(0, -2)]
        return {FieldHeadNames.RGB: self.mlp_head(torch.cat(seen, dim=-1)).view(*directions.shape)}


class DepthCollider(SceneCollider):
    """Rays between two planes across the optical axis, where the scene's depths are."""

    def __init__(self, near: float, far: float) -> None:
        super().__init__()
        self.near, self.far = near, far

    def set_nears_and_fars(self, ray_bundle: RayBundle) -> RayBundle:
        per_depth = ray_bundle.metadata["directions_norm"]
        ray_bundle.nears, ray_bundle.fars = self.near * per_depth, self.far * per_depth
        return ray_bundle


class NoLpips(nn.Module):
    """Stands in for the metric whose network nerfacto would download; nothing here asks it."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__()


@contextmanager
def without_lpips() -> Iterator[None]:
    """Nerfacto builds the metric that downloads weights while its modules are made."""
    module = import_module("torchmetrics.image.lpip")
    kept = module.LearnedPerceptualImagePatchSimilarity
    module.LearnedPerceptualImagePatchSimilarity = NoLpips
    try:
        yield
    finally:
        module.LearnedPerceptualImagePatchSimilarity = kept


class EndoNerfModel(NerfactoModel):
    """Takes rays with times; its metadata say what `scene_data` found of the scene."""

    config: EndoNerfModelConfig

    def populate_modules(self) -> None:
        with without_lpips():
            super().populate_modules()
        found = self.kwargs["metadata"]
        num_frequencies = num_time_frequencies(found["num_frames"])
        self.field = TimedColorField(
            self.scene_box.aabb,
            num_frequencies,
            num_levels=self.config.num_levels,
            base_res=self.config.base_res,
            max_res=self.config.max_res,
            log2_hashmap_size=self.config.log2_hashmap_size,
            hidden_dim=self.config.hidden_dim,
            hidden_dim_color=self.config.hidden_dim_color,
            implementation="torch",
        )
        self.collider = DepthCollider(found["near"], found["far"])
        self.deformation = None
        if self.config.deformation_layers:
            width, layers = self.config.deformation_width, self.config.deformation_layers
            self.deformation = Deformation(found["half_side"], width, layers, num_frequencies)
        # Depth that nobody vouches for is right up to a factor and a shift of each frame, which are learnt.
        self.depth_fit = nn.Parameter(torch.zeros(found["num_frames"], 2)) if not found["is_trusted"] else None

    def get_param_groups(self) -> dict[str, list[nn.Parameter]]:
        groups = super().get_param_groups()
        if self.deformation is not None:
            groups["deformation"] = list(self.deformation.parameters())
        if self.depth_fit is not None:
            groups["depth_fit"] = [self.depth_fit]
        return groups

    def get_outputs(self, ray_bundle: RayBundle) -> dict[str, Any]:
        times = ray_bundle.times

        def in_canonical(density_fn: Callable[[Tensor], Tensor], positions: Tensor) -> Tensor:
            with torch.no_grad():  # proposals follow the deformation, the field teaches it
                moved = positions + self._displacement(positions, times)
            return density_fn(moved)

        density_fns = [partial(in_canonical, density_fn) for density_fn in self.density_fns]
        ray_samples, weights_list, samples_list = self.proposal_sampler(ray_bundle, density_fns=density_fns)
        ray_samples.frustums.set_offsets(self._displacement(ray_samples.frustums.get_positions(), times))
        found = self.field(ray_samples)
        weights = ray_samples.get_weights(found[FieldHeadNames.DENSITY])
        per_depth = ray_bundle.metadata["directions_norm"]
        outputs = {
            "rgb": self.renderer_rgb(rgb=found[FieldHeadNames.RGB], weights=weights),
            "accumulation": self.renderer_accumulation(weights=weights),
            "depth": self.renderer_depth(weights=weights, ray_samples=ray_samples) / per_depth,
            "expected_depth": self.renderer_expected_depth(weights=weights, ray_samples=ray_samples) / per_depth,
        }
        if self.training:
            outputs |= {"weights_list": [*weights_list, weights], "ray_samples_list": [*samples_list, ray_samples], "per_depth": per_depth}
        return outputs

    def get_loss_dict(self, outputs: dict[str, Any], batch: dict[str, Tensor], metrics_dict: Any = None) -> dict[str, Tensor]:
        losses = super().get_loss_dict(outputs, batch, metrics_dict)
        if not self.training:
            return losses
        depth, sigma = batch["depth"], self.config.depth_sigma
        if self.depth_fit is not None:
            # The level that all frames share is the depth's own: seen by a still camera, nothing else tells it.
            factor, shift = (self.depth_fit - self.depth_fit.mean(dim=0))[batch["frame"].to(depth.device)].T
            depth = torch.where(depth > 0, depth * factor.exp() + shift, 0.0)
        else:
            levels = zip(outputs["weights_list"], outputs["ray_samples_list"], strict=True)
            terms = [termination_loss(*_along_depth(w, s, outputs["per_depth"]), depth, sigma) for w, s in levels]
            losses["termination_loss"] = self.config.termination_loss_mult * mean_where_known(sum(terms) / len(terms), depth)
        losses["depth_loss"] = self.config.depth_loss_mult * mean_where_known(
            huber_depth_loss(outputs["expected_depth"][:, 0], depth, sigma), depth
        )
        losses["opacity_loss"] = -self.config.opacity_loss_mult * torch.log(outputs["accumulation"] + MIN_WEIGHT).mean()
        return losses

    def get_image_metrics_and_images(
        self, outputs: dict[str, Tensor], batch: dict[str, Tensor]
    ) -> tuple[dict[str, float], dict[str, Tensor]]:
        """PSNR on tissue, and the picture beside its render."""
        error = ((outputs["rgb"] - batch["image"]) ** 2)[batch["tissue"]].mean()
        return {"psnr": float(-10 * torch.log10(error))}, {"img": torch.cat([batch["image"], outputs["rgb"]], dim=1)}

    def _displacement(self, positions: Tensor, times: Tensor) -> Tensor:
        """Of points (rays, samples, 3) at their rays' times (rays, 1)."""
        if self.deformation is None:
            return torch.zeros_like(positions)
        return self.deformation(positions, times[:, None].expand(*positions.shape[:-1], 1))


def _along_depth(weights: Tensor, samples: RaySamples, per_depth: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Weights, z-depth of the middles and extent in z-depth of the samples of rays, each (n, s)."""
    starts, ends = samples.frustums.starts[..., 0] / per_depth, samples.frustums.ends[..., 0] / per_depth
    return weights[..., 0], (starts + ends) / 2, ends - starts
