"""LiteNet (Zhu et al., "Beyond foundation models: distilling geometric priors for lightweight monocular depth estimation in
endoscopy", IEEE TMI 2026, 10.1109/TMI.2026.3690379): Lite-Mono learns AF-SfMLearner's way and from a large network's depth.

Public are the student, its options (three scales, AdamW, two cosine cycles, a learned lens) and, from the abstract, that a geometric
foundation model is distilled by spatial, spectral and gradient terms and that semantic distributions are aligned. No equation
of these, weight or number is public; what stands here are decisions:

- The four terms are those of `recon.losses.distillation`, on the finest disparity, which median and mean deviation free of
  scale and shift first: the teacher's scale is its own and would fight the pose network. The weights are those that the same
  group gives its like in DAE (CVPR 2026): 0.1 for geometry, 0.01 for semantics. The worst tenth of pixels is not followed.
- The teacher is any network of `recon models`. The authors' options name an EndoDAC; the default here is the packaged network,
  because it needs no file.
- Semantics: the authors have a Swin-S whose features are pooled, which leaves no places to align. Here they are DINOv2's
  patches, one to a cell of the student's coarsest map, which a trained 1x1 convolution carries over.
- The optical flow learns as pose does.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from recon.losses import masked_mean
from recon.losses.distillation import distribution_divergence, gradient_error, most_alike, normalised, spatial_error, spectral_error
from recon.models.depth_anything import imagenet_normalised
from recon.models.dpt import resized
from recon.models.litemono import WIDTHS, LiteMono, load_imagenet_encoder
from recon.models.published import NATURAL
from recon.models.vit import PATCH_PX, VIT_SIZES, DinoVisionTransformer, load_dino
from recon.training.clips import ClipBatch
from recon.training.methods.af_sfm import AfSfmConfig, AfSfmMethod
from recon.training.methods.method import Losses
from recon.training.teacher import load_teacher, teacher_disparity
from recon.types import ReconError, bounded

logger = logging.getLogger(__name__)

CYCLE_GAIN = 0.9
"""What each cosine cycle's first learning rate is of the one before (Lite-Mono's training, Zhang et al. 2023)."""


@dataclass(frozen=True)
class LiteNetConfig(AfSfmConfig):
    """The published options; the terms that no one published have this project's weights."""

    VERSION: ClassVar[int] = 2
    """Raised whenever the same recipe trains otherwise; last when the packaged teacher took larger pictures."""
    teacher: str = "student"
    """A name from `recon models`, or the path of an exported network: whose depth is distilled."""
    teacher_path: Path | None = None
    """Its weights (file or folder), where they are not in the package."""
    spatial_weight: float = bounded(0.1, 0.0)
    """Of the difference of disparities in place; 0 leaves the term out."""
    spectral_weight: float = bounded(0.1, 0.0)
    """Of their difference by frequency, in amplitude and in phase."""
    gradient_weight: float = bounded(0.1, 0.0)
    """Of the difference of their slopes."""
    semantic_weight: float = bounded(0.01, 0.0)
    """Of the divergence of the student's features from DINOv2's."""
    kept_share: float = bounded(0.9, 0.0, 1.0)
    """Of a picture's pixels that the spatial term looks at, those nearest to the teacher."""
    dino_weights: Path | None = None
    """Weights of DINOv2 or of a Depth Anything (depth_anything_v2_vits.pth), whose encoder gives the semantic features."""
    dino_size: str = "small"
    """Of it: small, base or large."""
    temperature: float = bounded(4.0, 0.01)
    """Features are divided by this before they become distributions."""
    encoder_weights: Path | None = None
    """Lite-Mono's encoder, trained on ImageNet (lite-mono-pretrain.pth); without it the student is clearly weaker."""
    num_epochs: int = bounded(30, 1)
    """Times that every clip is seen."""
    decay_epochs: int = bounded(15, 1)
    """Length of a cosine cycle of the learning rates."""
    decay: float = bounded(0.05, 0.0, 1.0)
    """What a cycle leaves of depth's learning rate."""
    pose_decay: float = bounded(0.1, 0.0, 1.0)
    """What it leaves of the others'."""
    weight_decay: float = bounded(1e-2, 0.0)
    """Of AdamW."""
    learn_intrinsics: bool = True
    """Learn a pinhole lens instead of using the recordings' own; for recordings without a known lens."""

    @property
    def distils(self) -> bool:
        """Whether any term asks the teacher."""
        return max(self.spatial_weight, self.spectral_weight, self.gradient_weight) > 0


class LiteNetMethod(AfSfmMethod):
    """AF-SfMLearner's phases for Lite-Mono, with a teacher."""

    name = "litenet"
    config_type = LiteNetConfig
    config: LiteNetConfig
    num_scales = 3

    def __init__(self, config: LiteNetConfig) -> None:
        self.teacher = None
        if config.distils:
            self.teacher, self.seen_before, checksum = load_teacher(config.teacher, config.teacher_path, config.device)
            if config.teacher_path is None and checksum:
                self.checksums = {"teacher": checksum}
        self.dino = _dino(config)
        if self.dino is not None:
            self.seen_before = (*self.seen_before, *NATURAL)
        super().__init__(config)

    def depth_network(self) -> nn.Module:
        network = LiteMono()
        if self.config.encoder_weights is not None:
            load_imagenet_encoder(network.encoder, self.config.encoder_weights)
            self.seen_before = (*self.seen_before, "imagenet")
        return network

    def other_networks(self) -> dict[str, nn.Module]:
        """The 1x1 convolution from the student's coarsest features to DINOv2's."""
        return {} if self.dino is None else {"projection": nn.Conv2d(WIDTHS[-1], self.dino.size.width, 1)}

    def optimizer(self, groups: list[dict[str, Any]], base_rate: float) -> torch.optim.Optimizer:
        return torch.optim.AdamW(groups, base_rate, weight_decay=self.config.weight_decay, fused=True)

    def decay(self, epoch: int, network: str) -> float:
        """Cosine cycles, each from CYCLE_GAIN of the one before down to the network's own floor."""
        config = self.config
        floor = config.decay if network in ("depth", "projection") else config.pose_decay
        cycle, place = divmod(epoch, config.decay_epochs)
        return floor + (CYCLE_GAIN**cycle - floor) * (1 + math.cos(math.pi * place / config.decay_epochs)) / 2

    def depth_losses(self, clips: ClipBatch) -> Losses:
        """AF-SfMLearner's, and every term of distillation whose weight is not 0."""
        config = self.config
        features, disparities = self.features_and_disparities(clips.color_aug[:, 0])
        losses = self.synthesis_losses(clips, disparities, self.poses(clips))
        distilled = self.distillation_losses(clips, disparities[0], features)
        weights = {
            "spatial": config.spatial_weight,
            "amplitude": config.spectral_weight,
            "phase": config.spectral_weight,
            "gradient": config.gradient_weight,
            "semantic": config.semantic_weight,
        }
        total = losses["total"] + sum(weights[name] * value for name, value in distilled.items())
        return {**losses, **distilled, "total": total}

    def features_and_disparities(
        self, image: Float[Tensor, "b 3 h w"]
    ) -> tuple[Float[Tensor, "b c rows columns"], list[Float[Tensor, "b _h _w"]]]:
        """The encoder's coarsest features beside what `disparities` gives."""
        depth = self.networks["depth"]
        with self.half_precision():
            maps = depth.encoder(image)
            found = depth.depth(maps)
        return maps[-1].float(), [disparity.float() for disparity in found]

    def distillation_losses(
        self, clips: ClipBatch, disparity: Float[Tensor, "b h w"], features: Float[Tensor, "b c rows columns"]
    ) -> dict[str, Float[Tensor, ""]]:
        """The means of the terms that the config asks for."""
        config, terms = self.config, {}
        if self.teacher is not None:
            taught, known = teacher_disparity(self.teacher, clips)
            ours, theirs = normalised(disparity, known), normalised(taught, known)
            if config.spatial_weight > 0:
                error = spatial_error(ours, theirs, known)
                terms["spatial"] = masked_mean(error, most_alike(error, known, config.kept_share))
            if config.spectral_weight > 0:
                spectrum = spectral_error(ours, theirs)
                terms |= {"amplitude": spectrum.amplitude.mean(), "phase": spectrum.phase.mean()}
            if config.gradient_weight > 0:
                terms["gradient"] = masked_mean(gradient_error(ours, theirs, known), known)
        if self.dino is not None:
            divergence = distribution_divergence(self.networks["projection"](features), self.semantics(clips, features), config.temperature)
            tissue = functional.interpolate(clips.mask[:, :1].float(), divergence.shape[-2:], mode="area")[:, 0] > 0.999
            terms["semantic"] = masked_mean(divergence, tissue)
        return terms

    @torch.no_grad()
    def semantics(self, clips: ClipBatch, features: Float[Tensor, "b _c rows columns"]) -> Float[Tensor, "b c rows columns"]:
        """DINOv2's features of the targets (colours as they are) at a size that has a patch for each cell of the student."""
        size = (features.shape[-2] * PATCH_PX, features.shape[-1] * PATCH_PX)
        return self.dino(imagenet_normalised(resized(clips.color[:, 0], size)), [self.dino.size.num_blocks - 1])[0]


def _dino(config: LiteNetConfig) -> DinoVisionTransformer | None:
    """The frozen encoder; None where its term is left out."""
    if config.semantic_weight == 0:
        return None
    if config.dino_weights is None:
        logger.warning("dino_weights is not set: semantic distributions are not aligned")
        return None
    if config.dino_size not in VIT_SIZES:
        raise ReconError(f"dino_size must be one of {', '.join(VIT_SIZES)}, found {config.dino_size!r}")
    network = DinoVisionTransformer(VIT_SIZES[config.dino_size])
    load_dino(network, config.dino_weights)
    return network.eval().requires_grad_(False).to(config.device)
