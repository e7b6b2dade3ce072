"""monodepth2 (Godard et al., "Digging into self-supervised monocular depth estimation", 2019): depth and pose from motion alone.

The error of a pixel is the smaller one over the two sources, pixels that a still camera explains better are left out, and all
four scales are compared at full size. The pose network has the endoscopic family's convention ([source, target], not inverted).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from recon.losses import masked_mean
from recon.losses.photometric import auto_mask, minimum_over_sources, photometric_error
from recon.models.monodepth2 import Monodepth2
from recon.models.posenet import PoseNet
from recon.training.clips import ClipBatch
from recon.training.methods.method import Losses, Method, SelfSupervisedConfig, averaged, depth_at, inner, smoothness, warp_source
from recon.types import bounded


@dataclass(frozen=True)
class Monodepth2Config(SelfSupervisedConfig):
    """The published settings, but for the picture's size and the pose's factor, which are the endoscopic family's."""

    smoothness_weight: float = bounded(1e-3, 0.0)
    """Of the disparity's edge-aware smoothness at the finest scale; half of it at each coarser one."""
    decay_epochs: int = bounded(15, 1)
    """After every so many epochs the learning rate is multiplied by `decay`."""


class Monodepth2Method(Method):
    """One phase: depth and pose together."""

    name = "monodepth2"
    config_type = Monodepth2Config

    def __init__(self, config: Monodepth2Config) -> None:
        self.config = config
        self.networks = nn.ModuleDict(
            {"depth": Monodepth2(centred=True), "pose": PoseNet(config.motion_factor, config.learn_intrinsics, centred=True)}
        ).to(config.device)
        self.start_from_imagenet()
        self.phases = (self.phase(("depth", "pose"), self.losses, config.learning_rate),)

    def losses(self, clips: ClipBatch) -> Losses:
        """Means over the scales of the smallest photometric error and of smoothness."""
        target, mask = clips.color[:, 0], inner(clips.mask[:, 0])
        sources = range(1, clips.color.shape[1])
        disparities = self.disparities(clips.color_aug[:, 0])
        poses = self.poses(clips)
        still = torch.stack([photometric_error(clips.color[:, source], target, mask) for source in sources]).amin(dim=0)
        terms = {"photometric": [], "smoothness": [], "kept": []}
        for scale, disparity in enumerate(disparities):
            depth = depth_at(disparity, target)
            warped = [warp_source(clips, source, depth, *pose) for source, pose in zip(sources, poses, strict=True)]
            masks = torch.stack([mask & view.valid for view in warped])
            errors = torch.stack([photometric_error(view.image, target, seen) for view, seen in zip(warped, masks, strict=True)])
            error, seen = minimum_over_sources(errors, masks)
            moving = auto_mask(error, still, seen)
            terms["photometric"].append(masked_mean(error, moving))
            terms["smoothness"].append(smoothness(disparity, target, mask) / 2**scale)
            terms["kept"].append(moving.sum() / mask.sum().clamp(min=1))
        means = averaged(terms)
        return {"total": means["photometric"] + self.config.smoothness_weight * means["smoothness"], **means}
