"""M-DASS (Huang et al., arXiv 2504.17582, 2025): AF-SfMLearner that sees occluded pictures and keeps parts of the scene together.

Public are the abstract and a review: depth of a target with a square of a quarter of the side blacked out must agree with the depth
of its source, and parts found by non-negative matrix factorisation of convolutional features must agree where texture is poor. No
code, weight or layer is public; the rest are decisions after JDACS (Xu et al. 2021), which has both ideas:

- Occlusion: the clean pass gives the depth that the occluded pass should give outside the square, and so does the sources'
  depth, seen from the target (the review's form). Differences are relative: absolute ones would shrink depth. The square is
  black, its side a quarter of the picture's shorter one, its place drawn anew for each clip and step. Depth sees single
  pictures, so the square is in the picture that the depth network sees, and pose sees all of it.
- Parts: K = 4 factors that target and sources share; features of a ResNet-18 that is not trained (its third map, at an eighth of
  the picture, behind a ReLU and so not negative), with ImageNet's weights where they are given. Factors per picture would number
  the parts differently in each.
- Weights of 0.01 each; that of occlusion is doubled at epochs 2, 4, 6 and 8 as JDACS does.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from recon.geometry.torch_cameras import Lens
from recon.geometry.warp import correspond, sample
from recon.losses import masked_mean
from recon.losses.consistency import depth_inconsistency, relative_change
from recon.losses.segmentation import part_error, shared_parts, weak_texture
from recon.models.resnet import ResNetEncoder, load_imagenet
from recon.training.clips import ClipBatch
from recon.training.methods.af_sfm import AfSfmConfig, AfSfmMethod
from recon.training.methods.method import Losses, depth_at, enlarged, inner
from recon.types import bounded

logger = logging.getLogger(__name__)

FEATURE_MAP = 2
"""Which of the encoder's maps is factorised: 1/8 of the picture, coarse enough to be of things and fine enough to have borders."""
DOUBLING_EPOCHS = (2, 4, 6, 8)
Poses = list[tuple[Tensor, Lens]]
"""As `Method.poses` gives them."""


@dataclass(frozen=True)
class MDassConfig(AfSfmConfig):
    """AF-SfMLearner's settings, and the two terms' after JDACS."""

    occlusion_weight: float = bounded(0.01, 0.0)
    """Of the occluded picture's depth, at first; doubled at epochs 2, 4, 6 and 8. 0 leaves the term out."""
    occluded_share: float = bounded(0.25, 0.0, 1.0)
    """Side of the black square over the picture's shorter side."""
    segmentation_weight: float = bounded(0.01, 0.0)
    """Of the parts' agreement. 0 leaves the term out."""
    num_parts: int = bounded(4, 2, 64)
    """Factors that a clip's pictures share."""
    weak_texture_share: float = bounded(0.5, 0.0, 1.0)
    """Of a picture's pixels that count as poor in texture, where parts have to agree."""


class MDassMethod(AfSfmMethod):
    """AF-SfMLearner's phases, and two more terms for depth and pose."""

    name = "mdass"
    config_type = MDassConfig
    config: MDassConfig

    def __init__(self, config: MDassConfig) -> None:
        super().__init__(config)
        self.epoch = 0
        self.features = ResNetEncoder(1, centred=True)
        if config.imagenet_weights is not None:
            load_imagenet(self.features, config.imagenet_weights)
        elif config.segmentation_weight > 0:
            logger.warning("imagenet_weights is not set: parts are found in features of random weights")
        self.features = self.features.eval().requires_grad_(False).to(config.device)

    def begin_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    @property
    def occlusion_weight(self) -> float:
        """Doubled at each of DOUBLING_EPOCHS that has come."""
        return self.config.occlusion_weight * 2 ** sum(self.epoch >= epoch for epoch in DOUBLING_EPOCHS)

    def depth_losses(self, clips: ClipBatch) -> Losses:
        """AF-SfMLearner's, and the two terms whose weights are not 0."""
        config, target = self.config, clips.color[:, 0]
        disparities, poses = self.disparities(clips.color_aug[:, 0]), self.poses(clips)
        losses = self.synthesis_losses(clips, disparities, poses)
        depth, mask, total = depth_at(disparities[0], target), inner(clips.mask[:, 0]), losses["total"]
        if config.occlusion_weight > 0:
            losses["occlusion"] = self.occlusion_loss(clips, depth, poses, mask)
            total = total + self.occlusion_weight * losses["occlusion"]
        if config.segmentation_weight > 0:
            losses["segmentation"] = self.segmentation_loss(clips, depth, poses, mask)
            total = total + config.segmentation_weight * losses["segmentation"]
        return {**losses, "total": total}

    def occlusion_loss(
        self, clips: ClipBatch, depth: Float[Tensor, "b h w"], poses: Poses, mask: Bool[Tensor, "b h w"]
    ) -> Float[Tensor, ""]:
        """Relative change of depth by the square, and its disagreement with the sources' depth, outside the square."""
        target = clips.color[:, 0]
        hidden = random_squares(mask, self.config.occluded_share)
        seen = mask & ~hidden
        occluded = depth_at(self.disparities(clips.color_aug[:, 0] * ~hidden[:, None])[0], target)
        change = masked_mean(relative_change(occluded, depth, seen), seen)
        disagreement = []
        for source, pose in enumerate(poses, start=1):
            with torch.no_grad():
                depth_source = depth_at(self.disparities(clips.color_aug[:, source])[0], target)
            where = correspond(occluded, *pose)
            usable = seen & where.valid & self.usable(clips, source, where.pixels)
            disagreement.append(masked_mean(depth_inconsistency(where, depth_source, usable), usable))
        return change + torch.stack(disagreement).mean()

    def segmentation_loss(
        self, clips: ClipBatch, depth: Float[Tensor, "b h w"], poses: Poses, mask: Bool[Tensor, "b h w"]
    ) -> Float[Tensor, ""]:
        """Cross entropy of the sources' parts, warped onto the target, with the target's, where it has little texture."""
        target = clips.color[:, 0]
        with torch.no_grad():
            features = self.features(clips.color.flatten(0, 1))[FEATURE_MAP].unflatten(0, clips.color.shape[:2])
            parts = shared_parts(features, self.config.num_parts)
            labels = enlarged(parts[:, 0], target).argmax(dim=1)
            plain = weak_texture(target, mask, self.config.weak_texture_share)
        errors = []
        for source, pose in enumerate(poses, start=1):
            where = correspond(depth, *pose)
            usable = plain & where.valid & self.usable(clips, source, where.pixels)
            warped = sample(enlarged(parts[:, source], target), where.pixels)
            errors.append(masked_mean(part_error(warped, labels, usable), usable))
        return torch.stack(errors).mean()

    @staticmethod
    def usable(clips: ClipBatch, source: int, pixels: Float[Tensor, "b h w 2"]) -> Bool[Tensor, "b h w"]:
        """Whether a source's own mask holds at pixels of it."""
        return sample(clips.mask[:, source, None].float(), pixels.detach())[:, 0] > 0.999


def random_squares(like: Bool[Tensor, "b h w"], share: float) -> Bool[Tensor, "b h w"]:
    """True in one square of each image, anywhere in it, whose side is so much of the shorter side."""
    batch, height, width = like.shape
    side = round(share * min(height, width))
    top = torch.randint(0, height - side + 1, (batch, 1)).to(like.device)
    left = torch.randint(0, width - side + 1, (batch, 1)).to(like.device)
    rows, columns = (torch.arange(number, device=like.device) for number in (height, width))
    in_rows, in_columns = (rows >= top) & (rows < top + side), (columns >= left) & (columns < left + side)
    return in_rows[:, :, None] & in_columns[:, None]
