"""EndoDAV (Zhou et al., "EndoDAV: depth any video in endoscopy with spatiotemporal accuracy", MICCAI 2025): Video Depth Anything
learns AF-SfMLearner's way from windows of consecutive frames, by the scales of its feed-forward layers alone, with a learned lens.

The spatial scales are trained for 400 steps and the temporal ones for 100, in turn. While the temporal ones are, depth of each frame
must be where its neighbours in the window see it (`recon.losses.consistency.projected_difference`, in both directions, no stop
of gradients, the weight 0.01 of an absolute difference, all as published).

Decided otherwise than the authors' code: a window is cut from one recording, and frames are compared inside it alone (their lists run
on from one recording into the next); pixels count where the lens and both masks say so, not where depth is above 0.001, which is
near this network's depths; each source is warped through the lens that was learned from it. As theirs, the loss runs over T = 16
targets; the first and the last have a neighbour beyond the window, which depth is not asked of.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from recon.geometry.torch_cameras import Lens
from recon.geometry.warp import correspond, sample
from recon.losses import masked_mean
from recon.losses.consistency import projected_difference
from recon.models.depth_anything import SIZES
from recon.models.endodav import GRID, EndoDAV, load_video_depth_anything
from recon.models.published import NATURAL
from recon.models.video_depth_anything import MAX_FRAMES
from recon.training.clips import ClipBatch, ClipPlan
from recon.training.methods.af_sfm import AfSfmConfig, AfSfmMethod
from recon.training.methods.method import Losses, depth_at, inner
from recon.types import ReconError, bounded

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EndoDavConfig(AfSfmConfig):
    """The published settings."""

    foundation_weights: Path | None = None
    """Weights of Video Depth Anything of the same size (video_depth_anything_vits.pth)."""
    size: str = "small"
    """Of the foundation model: small, base or large."""
    grid_rows: int = bounded(GRID[0], 1)
    """Rows of patches that pictures are resized to for the depth network."""
    grid_columns: int = bounded(GRID[1], 1)
    """Columns of them."""
    num_frames: int = bounded(16, 2, MAX_FRAMES)
    """Of a window; two more, its neighbours, are sources only."""
    spatial_steps: int = bounded(400, 0)
    """Steps in which the encoder's scales are trained, before the temporal ones' turn."""
    temporal_steps: int = bounded(100, 0)
    """Steps of the temporal modules' scales."""
    projection_weight: float = bounded(0.01, 0.0)
    """Of the depth's difference from its neighbours' while the temporal modules are trained. 0 leaves the term out."""
    scales_rate: float = bounded(1.0, 0.0)
    """What the scales' learning rate is of the other networks': 1 as published; small networks, which have few scales, want more."""
    batch_size: int = bounded(1, 1)
    """Windows a step."""
    smoothness_weight: float = bounded(1e-3, 0.0)
    """Of the disparity's edge-aware smoothness at the finest scale; half of it at each coarser one."""
    learn_intrinsics: bool = True
    """Learn a pinhole lens instead of using the recordings' own; for recordings without a known lens."""

    def plan(self) -> ClipPlan:
        """Windows of consecutive frames; an epoch sees as many as would lie end to end."""
        return replace(super().plan(), offsets=tuple(range(self.num_frames + 2)), thinning=self.num_frames)


class EndoDavMethod(AfSfmMethod):
    """AF-SfMLearner's phases over the frames of windows."""

    name = "endodav"
    config_type = EndoDavConfig
    config: EndoDavConfig
    is_temporal = False
    """Whose turn it is."""

    def depth_network(self) -> EndoDAV:
        config = self.config
        if config.size not in SIZES:
            raise ReconError(f"size must be one of {', '.join(SIZES)}, found {config.size!r}")
        if config.spatial_steps + config.temporal_steps == 0:
            raise ReconError("spatial_steps and temporal_steps are both 0: nothing of the depth network would be trained")
        network = EndoDAV(SIZES[config.size], (config.grid_rows, config.grid_columns))
        if config.foundation_weights is None:
            logger.warning("foundation_weights is not set: the frozen part of the depth network has random weights")
        else:
            load_video_depth_anything(network, config.foundation_weights)
            self.seen_before = (*self.seen_before, *NATURAL)
        return network

    def facts(self) -> dict[str, int]:
        config = self.config
        grid = {"grid_rows": config.grid_rows, "grid_columns": config.grid_columns}
        return {**super().facts(), **grid, "encoder_width": SIZES[config.size].vit.width}

    def begin_step(self, step: int) -> None:
        """Train the encoder's scales and the temporal modules' in turn."""
        config = self.config
        self.is_temporal = step % (config.spatial_steps + config.temporal_steps) >= config.spatial_steps
        self.networks["depth"].train_part(self.is_temporal)

    def decay(self, epoch: int, network: str) -> float:
        return super().decay(epoch, network) * (self.config.scales_rate if network == "depth" else 1.0)

    def disparities(self, image: Float[Tensor, "b 3 h w"]) -> list[Float[Tensor, "b _h _w"]]:
        """Of single pictures, each a window of its own."""
        with self.half_precision():
            found = self.networks["depth"](image[:, None])
        return [disparity[:, 0].float() for disparity in found]

    def window_disparities(self, clips: ClipBatch) -> list[Float[Tensor, "targets _h _w"]]:
        """Of every target of `triplets`, which sees its window."""
        with self.half_precision():
            found = self.networks["depth"](clips.color_aug[:, 1:-1])
        return [disparity.flatten(0, 1).float() for disparity in found]

    def flow_losses(self, clips: ClipBatch) -> Losses:
        return super().flow_losses(triplets(clips))

    def depth_losses(self, clips: ClipBatch) -> Losses:
        """AF-SfMLearner's over the windows' frames, and in the temporal modules' turn the projection loss."""
        targets, disparities = triplets(clips), self.window_disparities(clips)
        poses = self.poses(targets)
        losses = self.synthesis_losses(targets, disparities, poses)
        if self.config.projection_weight == 0:
            return losses
        with torch.set_grad_enabled(self.is_temporal):
            projection = self.projection_loss(targets, disparities, poses)
        weight = self.config.projection_weight if self.is_temporal else 0.0
        return {**losses, "projection": projection, "total": losses["total"] + weight * projection}

    def projection_loss(
        self, targets: ClipBatch, disparities: list[Float[Tensor, "targets _h _w"]], poses: list[tuple[Tensor, Lens]]
    ) -> Float[Tensor, ""]:
        """Difference of each frame's depth from its neighbours' where it lies in them; mean over scales and directions."""
        number = self.config.num_frames
        mask, errors = inner(targets.mask[:, 0]), []
        for source, pose, offset in zip((1, 2), poses, (-1, 1), strict=True):
            # Targets whose neighbour is in the window, and that neighbour: frames in order, window after window.
            places = torch.arange(len(mask), device=mask.device)
            places = places[(places % number + offset >= 0) & (places % number + offset < number)]
            for disparity in disparities:
                depth = depth_at(disparity, targets.color[:, 0])
                where = correspond(depth, *pose)
                shown = sample(targets.mask[:, source, None].float(), where.pixels.detach())[:, 0] > 0.999
                seen = (mask & where.valid & shown)[places]
                neighbour = type(where)(*(part[places] for part in where))
                errors.append(masked_mean(projected_difference(neighbour, depth[places + offset], seen), seen))
        return torch.stack(errors).mean()

    @torch.no_grad()
    def validation_error(self, clips: ClipBatch) -> float:
        """That of `Method`, over the frames of windows."""
        self.networks.eval()
        return self.warp_error(triplets(clips), self.window_disparities(clips)[0])


def triplets(clips: ClipBatch) -> ClipBatch:
    """Every frame of a window but the first and the last as a target, with the frames before and after it as sources.

    From b windows of t frames to b (t - 2) clips of 3, a window's in order.
    """
    number = clips.color.shape[1] - 2

    def cut(frames: Tensor) -> Tensor:
        return torch.stack([frames[:, 1:-1], frames[:, :-2], frames[:, 2:]], dim=2).flatten(0, 1)

    def repeated(values: tuple) -> tuple:
        return tuple(value for value in values for _ in range(number))

    return ClipBatch(
        color=cut(clips.color),
        color_aug=cut(clips.color_aug),
        mask=cut(clips.mask),
        cameras=repeated(clips.cameras),
        recordings=repeated(clips.recordings),
        frame_indices=cut(clips.frame_indices),
        flipped=clips.flipped.repeat_interleave(number),
    )
