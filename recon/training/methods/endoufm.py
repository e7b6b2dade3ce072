"""EndoUFM ("EndoUFM: utilizing foundation models for monocular depth estimation of endoscopic images", arXiv 2508.17916, 2025).

Two foundation models: Depth Anything, adapted, for depth, and SAM's encoder with MedSAM's weights, adapted, that takes pictures
apart into albedo and light (for training alone). Sources are warped as albedo times their moved and adjusted light, and compared
with the target; depth is held smooth inside segments. Per scale, and then the mean over four scales (the published code's values):

    L = photo(target, warped albedo * adjusted light) + 0.2 |albedo - warped albedo| + 0.2 photo(picture, albedo * light)
        + 0.003 smoothness inside segments, at the finest scale only

Plain edge-aware smoothness and constancy of light are computed there and never added; here the former can be given a weight.
Decided here:
- The depth network's frozen part is Depth Anything, re-keyed and checked; the published code leaves it random without a word.
- The pyramid that decomposes is trained; there it stays random.
- Networks see jittered colours, and so do the comparisons here, as published: albedo and light must explain what they are made from.
- Frames go into the pose network in order of time, and the earlier one's motion is inverted, as published (monodepth2's order).
- The rate falls once, after `decay_epochs`.
- Labels: the authors' are of SAM's generator and not published; see `recon.training.segment_labels` for what may stand for them.
- A pixel counts where the lens sees it and neither scope nor instrument hides it, as everywhere in this package.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from jaxtyping import Bool, Float
from torch import Tensor, nn

from recon.geometry.torch_cameras import LearnedPinhole, Lens
from recon.geometry.torch_se3 import motion
from recon.geometry.warp import correspond, sample
from recon.losses import masked_mean
from recon.losses.photometric import photometric_error
from recon.losses.segments import changes, segment_mean
from recon.losses.smoothness import relative_disparity
from recon.models.depth_anything import SIZES
from recon.models.endodac import GRID, load_depth_anything
from recon.models.endoufm import EndoUFM, Parts
from recon.models.intrinsic import Decomposer, Intrinsics, LightAdjustment
from recon.models.posenet import PoseNet
from recon.models.published import NATURAL
from recon.models.sam import SAM_SIZES, load_sam
from recon.models.sam_segments import SamSegmenter
from recon.training.clips import ClipBatch
from recon.training.methods.method import (
    Losses,
    Method,
    SelfSupervisedConfig,
    at_scale,
    averaged,
    depth_at,
    inner,
    known_lens,
    smoothness,
)
from recon.training.segment_labels import SegmentLabels
from recon.types import ReconError, bounded

logger = logging.getLogger(__name__)

MEDICAL = ("medical pictures",)
"""What MedSAM has seen."""


@dataclass(frozen=True)
class EndoUfmConfig(SelfSupervisedConfig):
    """The published settings."""

    foundation_weights: Path | None = None
    """Weights of Depth Anything V1 of the same size (depth_anything_vitb14.pth)."""
    size: str = "base"
    """Of the foundation model: small, base or large."""
    sam_weights: Path | None = None
    """Weights of MedSAM's encoder (medsam_vit_b.pth) or SAM's, original or Hugging Face's."""
    sam_size: str = "base"
    """Of that encoder."""
    grid_rows: int = bounded(GRID[0], 1)
    """Rows of patches that pictures are resized to for both."""
    grid_columns: int = bounded(GRID[1], 1)
    """Columns of them."""
    batch_size: int = bounded(4, 1)
    """Clips a step."""
    num_epochs: int = bounded(30, 1)
    """Times that every clip is seen."""
    smoothness_weight: float = bounded(0.0, 0.0)
    """Of the disparity's plain edge-aware smoothness, halved at each coarser scale; the published code computes and leaves it out."""
    reflectance_weight: float = bounded(0.2, 0.0)
    """Of the difference between the target's albedo and the warped source's."""
    reconstruction_weight: float = bounded(0.2, 0.0)
    """Of how unlike albedo times light is to each picture."""
    segment_smoothness_weight: float = bounded(0.003, 0.0)
    """Of smoothness inside segments, at the finest of the four scales."""
    labels: Path | None = None
    """Folder of label PNGs, LABELS/<recording>/NNNNNN.png; none: superpixels."""
    segmenter_weights: Path | None = None
    """SAM's own weights (model.safetensors of facebook/sam-vit-base), which make the labels that `labels` lacks; minutes each."""
    rvlora: bool = True
    """Adapt the perceptrons of the depth network's encoder by RVLoRA."""
    res_dsc: bool = True
    """Put depthwise separable convolutions into it."""
    cbam: bool = True
    """Put attention over channels and places behind them."""
    decomposition: bool = True
    """Compare albedo and light; without it, the pictures as they are, and no second foundation model."""
    light_adjustment: bool = True
    """Let a network say how the source's light has changed."""


class Compared(NamedTuple):
    """A source on the target's pixels, and what it says of the target."""

    image: Float[Tensor, "b 3 h w"]
    """To be compared with the target."""
    albedo: Float[Tensor, "b 3 h w"] | None
    """Moved with it; None without decomposition."""
    seen: Bool[Tensor, "b h w"]


class EndoUfmMethod(Method):
    """One phase: depth, pose, and what takes pictures apart."""

    name = "endoufm"
    config_type = EndoUfmConfig
    config: EndoUfmConfig

    def __init__(self, config: EndoUfmConfig) -> None:
        self.config = config
        networks = {"depth": self.depth_network(), "pose": PoseNet(config.motion_factor, config.learn_intrinsics)}
        if config.decomposition:
            networks |= {"decomposer": self.decomposer()}
            networks |= {"light": LightAdjustment()} if config.light_adjustment else {}
        self.networks = nn.ModuleDict(networks).to(config.device)
        self.segments = None
        if config.segment_smoothness_weight > 0:
            segmenter = None if config.segmenter_weights is None else SamSegmenter(config.segmenter_weights, config.device)
            self.segments = SegmentLabels(config.labels, segmenter)
        self.start_from_imagenet()
        self.phases = (self.phase(tuple(networks), self.losses, config.learning_rate),)

    def begin(self, recordings: Sequence[str]) -> None:
        """Raises ReconError where labels cannot be told apart."""
        if self.segments is not None:
            self.segments.begin(recordings)

    def decay(self, epoch: int, network: str) -> float:
        """Once, as published."""
        return self.config.decay if epoch >= self.config.decay_epochs else 1.0

    def depth_network(self) -> EndoUFM:
        """EndoUFM on Depth Anything. Raises ReconError for an unknown size and for weights that do not fit."""
        config = self.config
        if config.size not in SIZES:
            raise ReconError(f"size must be one of {', '.join(SIZES)}, found {config.size!r}")
        network = EndoUFM(SIZES[config.size], (config.grid_rows, config.grid_columns), self.parts())
        if config.foundation_weights is None:
            logger.warning("foundation_weights is not set: the frozen part of the depth network has random weights")
        else:
            load_depth_anything(network, config.foundation_weights)
            self.seen_before = (*self.seen_before, *NATURAL)
        return network

    def decomposer(self) -> Decomposer:
        """The second foundation model. Raises ReconError where it cannot be had, as `recon.models.sam` says."""
        config = self.config
        if config.sam_size not in SAM_SIZES:
            raise ReconError(f"sam_size must be one of {', '.join(SAM_SIZES)}, found {config.sam_size!r}")
        network = Decomposer(SAM_SIZES[config.sam_size], (config.grid_rows, config.grid_columns), SIZES[config.size])
        if config.sam_weights is None:
            logger.warning("sam_weights is not set: the frozen part of the network for albedo and light has random weights")
        else:
            load_sam(network.encoder, config.sam_weights)
            self.seen_before = (*self.seen_before, *MEDICAL)
        return network

    def parts(self) -> Parts:
        """What the depth network adds to Depth Anything."""
        return Parts(self.config.rvlora, self.config.res_dsc, self.config.cbam)

    def facts(self) -> dict[str, int]:
        config = self.config
        parts = {"rvlora": int(config.rvlora), "res_dsc": int(config.res_dsc), "cbam": int(config.cbam)}
        grid = {"grid_rows": config.grid_rows, "grid_columns": config.grid_columns}
        return {**super().facts(), **grid, **parts, "encoder_width": SIZES[config.size].vit.width}

    def poses(self, clips: ClipBatch) -> list[tuple[Float[Tensor, "b 4 4"], Lens]]:
        """T_source_target of every source and the lens. The network sees the two frames in order of time."""
        known = None if self.config.learn_intrinsics else known_lens(clips)
        poses = []
        for source, offset in enumerate(self.config.plan().offsets[1:], start=1):
            pair = (clips.color_aug[:, source], clips.color_aug[:, 0])
            found = self.networks["pose"](*(pair if offset < 0 else pair[::-1]))
            lens = known or LearnedPinhole(found.intrinsics[:, :2], found.intrinsics[:, 2:], *clips.color.shape[-2:])
            poses.append((motion(found.axis_angle, found.translation, invert=offset < 0), lens))
        return poses

    def losses(self, clips: ClipBatch) -> Losses:
        """Means over sources and scales of what the module lists; `seen`, for the log, is the share of the picture that is compared."""
        config, target, mask = self.config, clips.color_aug[:, 0], inner(clips.mask[:, 0])
        disparities = self.disparities(target)
        parts = self.intrinsics(clips)
        terms: dict[str, list[Tensor]] = {"photometric": [], "seen": []}
        poses = self.poses(clips)
        for disparity in disparities:
            depth = depth_at(disparity, target)
            for source, pose in enumerate(poses, start=1):
                compared = self.compare(clips, source, depth, *pose, parts)
                seen = mask & compared.seen
                terms["photometric"].append(masked_mean(photometric_error(compared.image, target, seen), seen))
                terms["seen"].append(seen.sum() / mask.sum().clamp(min=1))
                if compared.albedo is not None:
                    change = (parts[0].albedo - compared.albedo).abs().mean(dim=1)
                    terms.setdefault("reflectance", []).append(masked_mean(change, seen))
        for frame, part in enumerate(parts):
            own = inner(clips.mask[:, frame])
            error = photometric_error(part.picture(), clips.color_aug[:, frame], own)
            terms.setdefault("reconstruction", []).append(masked_mean(error, own))
        terms["smoothness"] = [smoothness(disparity, target, mask) / 2**scale for scale, disparity in enumerate(disparities)]
        if self.segments is not None:
            # Added at one of the four scales that the mean is over.
            terms["segments"] = [self.segment_smoothness(clips, disparities[0], mask) / len(disparities)]
        means = averaged(terms)
        weights = {
            "photometric": 1.0,
            "reflectance": config.reflectance_weight,
            "reconstruction": config.reconstruction_weight,
            "smoothness": config.smoothness_weight,
            "segments": config.segment_smoothness_weight,
        }
        return {"total": sum(weights[name] * value for name, value in means.items() if name in weights), **means}

    def intrinsics(self, clips: ClipBatch) -> list[Intrinsics]:
        """Albedo and light of every frame, target first; nothing without decomposition."""
        if not self.config.decomposition:
            return []
        found = []
        for frame in range(clips.color_aug.shape[1]):
            with self.half_precision():
                albedo, light = self.networks["decomposer"](clips.color_aug[:, frame])
            found.append(Intrinsics(albedo.float(), light.float()))
        return found

    def compare(
        self,
        clips: ClipBatch,
        source: int,
        depth: Float[Tensor, "b h w"],
        T_source_target: Float[Tensor, "b 4 4"],
        lens: Lens,
        parts: list[Intrinsics],
    ) -> Compared:
        """Source number `source` on the target's pixels: as it is, or put together from its albedo and its adjusted light."""
        where = correspond(depth, T_source_target, lens)
        usable = sample(clips.mask[:, source, None].float(), where.pixels.detach())[:, 0] > 0.999
        seen = where.valid & usable
        moved = sample(clips.color_aug[:, source], where.pixels)
        if not parts:
            return Compared(moved, None, seen)
        albedo, light = (sample(part, where.pixels) for part in parts[source])
        if self.config.light_adjustment:
            difference = (clips.color_aug[:, 0] - moved).abs() * seen[:, None]
            light = (light + self.networks["light"](difference)).clamp(0.0, 1.0)
        return Compared(albedo * light, albedo, seen)

    def segment_smoothness(self, clips: ClipBatch, disparity: Float[Tensor, "b _h _w"], mask: Bool[Tensor, "b h w"]) -> Float[Tensor, ""]:
        """Changes of the relative disparity at its own size, meaned inside segments and then over them."""
        guide, own_mask = at_scale(clips.color_aug[:, 0], mask, disparity.shape[-2:])
        labels = self.segments.of_targets(clips)
        small = nn.functional.interpolate(labels[:, None].float(), disparity.shape[-2:], mode="nearest")[:, 0].long()
        return segment_mean(changes(relative_disparity(disparity, own_mask), guide, own_mask), small, own_mask)
