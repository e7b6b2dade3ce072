"""AF-SfMLearner trained end to end (Shao et al., "Self-supervised monocular depth and ego-motion estimation in endoscopy:
appearance flow to the rescue", 2022).

Light moves with an endoscope, so brightness is not constant. Optical flow registers the source to the target, an appearance flow
says what must be added to the target to look like the registered source, and depth is learned against this refined target.
Each step trains the optical flow first and then depth, pose and appearance flow, with an optimiser each.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from recon.geometry.torch_cameras import Lens
from recon.geometry.warp import displaced, register, sample
from recon.losses import masked_mean
from recon.losses.appearance import refined_target, transform_constraint
from recon.losses.occlusion import visible_mask
from recon.losses.photometric import photometric_error
from recon.losses.smoothness import edge_aware
from recon.models.flow import FLOW_INIT_STD, AppearanceNet, FlowNet
from recon.models.monodepth2 import NUM_SCALES, Monodepth2
from recon.models.posenet import PoseNet
from recon.training.clips import ClipBatch
from recon.training.methods.method import (
    Losses,
    Method,
    SelfSupervisedConfig,
    at_scale,
    averaged,
    depth_at,
    enlarged,
    inner,
    smoothness,
    warp_source,
)
from recon.types import bounded


@dataclass(frozen=True)
class AfSfmConfig(SelfSupervisedConfig):
    """The published settings."""

    flow_learning_rate: float = bounded(1e-4, 0.0)
    """Of the optical flow's Adam."""
    flow_smoothness_weight: float = bounded(1e-3, 0.0)
    """Of the optical flow's edge-aware smoothness at the finest scale; half of it at each coarser one."""
    constraint_weight: float = bounded(0.01, 0.0)
    """Of the difference between refined target and registered source."""
    appearance_smoothness_weight: float = bounded(0.01, 0.0)
    """Of the appearance flow's smoothness, less where target and registered source differ sharply."""


class Registration(NamedTuple):
    """A source moved onto the target by optical flow."""

    flows: list[Float[Tensor, "b 2 _h _w"]]
    """At every scale, pixels of the full size."""
    image: Float[Tensor, "b 3 h w"]
    """The source, moved by the finest flow."""
    visible: Bool[Tensor, "b h w"]
    """Target pixels inside the mask that the source sees, and shows inside its own mask."""


class AfSfmMethod(Method):
    """Two phases: optical flow; depth, pose and appearance flow."""

    name = "af_sfm"
    config_type = AfSfmConfig
    config: AfSfmConfig
    num_scales: ClassVar[int] = NUM_SCALES
    """At which the depth network speaks; the flows are compared at as many."""

    def __init__(self, config: AfSfmConfig) -> None:
        self.config = config
        pose = PoseNet(config.motion_factor, config.learn_intrinsics)
        own = {"depth": self.depth_network(), "pose": pose, "flow": FlowNet(), "appearance": AppearanceNet()}
        others = self.other_networks()
        self.networks = nn.ModuleDict({**own, **others}).to(config.device)
        self.start_from_imagenet()
        for head in self.networks["appearance"].transform.decoder[-NUM_SCALES:]:
            nn.init.normal_(head.conv.weight, std=FLOW_INIT_STD)
            nn.init.zeros_(head.conv.bias)
        self.phases = (
            self.phase(("flow",), self.flow_losses, config.flow_learning_rate),
            self.phase(("depth", "pose", "appearance", *others), self.depth_losses, config.learning_rate),
        )

    def depth_network(self) -> nn.Module:
        """A network that gives sigmoid disparities, finest first."""
        return Monodepth2(centred=False)

    def other_networks(self) -> dict[str, nn.Module]:
        """What is trained together with depth, pose and appearance flow."""
        return {}

    def flow_losses(self, clips: ClipBatch) -> Losses:
        """Likeness of the registered sources to the refined target, and smoothness; means over sources and scales."""
        target, mask = clips.color[:, 0], inner(clips.mask[:, 0])
        terms = {"registration": [], "smoothness": []}
        for source in range(1, clips.color.shape[1]):
            registration = self.register(clips, source, mask)
            with torch.no_grad():
                refined = self.refine(registration, target)[1]
            for scale, flow in enumerate(registration.flows):
                moved = register(clips.color[:, source], enlarged(flow, target))
                guide, own_mask = at_scale(target, mask, flow.shape[-2:])
                error = photometric_error(moved, refined[scale], registration.visible)
                terms["registration"].append(masked_mean(error, registration.visible))
                terms["smoothness"].append(edge_aware(flow, guide, own_mask).mean() / 2**scale)
        means = averaged(terms)
        return {"total": means["registration"] + self.config.flow_smoothness_weight * means["smoothness"], **means}

    def depth_losses(self, clips: ClipBatch) -> Losses:
        """What depth, pose and appearance flow are trained by."""
        return self.synthesis_losses(clips, self.disparities(clips.color_aug[:, 0]), self.poses(clips))

    def synthesis_losses(
        self, clips: ClipBatch, disparities: list[Float[Tensor, "b _h _w"]], poses: list[tuple[Float[Tensor, "b 4 4"], Lens]]
    ) -> Losses:
        """Likeness of the sources warped through depth to the refined target, and what holds depth and appearance flow in bounds.

        `seen`, for the log, is the share of the picture that is compared: near 0 the motion has thrown everything out of view.
        """
        config, target, mask = self.config, clips.color[:, 0], inner(clips.mask[:, 0])
        depths = [depth_at(disparity, target) for disparity in disparities]
        terms = {"photometric": [], "constraint": [], "appearance_smoothness": [], "seen": []}
        for source, pose in enumerate(poses, start=1):
            with torch.no_grad():
                registration = self.register(clips, source, mask)
            transforms, refined = self.refine(registration, target)
            visible, residue = registration.visible, target - registration.image
            for depth, transform, bright in zip(depths, transforms, refined, strict=True):
                warped = warp_source(clips, source, depth, *pose)
                seen = visible & warped.valid
                terms["photometric"].append(masked_mean(photometric_error(warped.image, bright, seen), seen))
                terms["seen"].append(seen.sum() / mask.sum().clamp(min=1))
                terms["constraint"].append(masked_mean(transform_constraint(bright, registration.image, visible), visible))
                terms["appearance_smoothness"].append(edge_aware(transform, residue, visible).mean())
        terms["smoothness"] = [smoothness(disparity, target, mask) / 2**scale for scale, disparity in enumerate(disparities)]
        means = averaged(terms)
        total = (
            means["photometric"]
            + config.constraint_weight * means["constraint"]
            + config.appearance_smoothness_weight * means["appearance_smoothness"]
            + config.smoothness_weight * means["smoothness"]
        )
        return {"total": total, **means}

    def register(self, clips: ClipBatch, source: int, mask: Bool[Tensor, "b h w"]) -> Registration:
        """Move a source onto the target by optical flow; the reverse flow, which says what is visible, takes no gradient."""
        seen_target, seen_source = clips.color_aug[:, 0], clips.color_aug[:, source]
        flows = self.networks["flow"](seen_source, seen_target)[: self.num_scales]
        with torch.no_grad():
            reverse = self.networks["flow"](seen_target, seen_source)[0]
        usable = sample(clips.mask[:, source, None].float(), displaced(flows[0].detach()))[:, 0] > 0.999
        return Registration(flows, register(clips.color[:, source], flows[0]), mask & usable & visible_mask(reverse))

    def refine(
        self, registration: Registration, target: Float[Tensor, "b 3 h w"]
    ) -> tuple[list[Float[Tensor, "b 3 h w"]], list[Float[Tensor, "b 3 h w"]]]:
        """The appearance flow at full size and the target refined by it, for each scale."""
        with self.half_precision():
            coarse = self.networks["appearance"](registration.image.detach(), target)[: self.num_scales]
        transforms = [enlarged(transform.float(), target) for transform in coarse]
        return transforms, [refined_target(target, transform, registration.visible) for transform in transforms]
