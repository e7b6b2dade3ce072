"""What self-supervised methods share: a recipe, networks that know depth and motion, and phases with an optimiser each.

A method says what is minimised; the loop (`recon.training.selfsup`) says when. In every step each phase in turn trains its own
networks, while the others are in evaluation mode and take no gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from recon.geometry.torch_cameras import LearnedPinhole, Lens, TorchLens
from recon.geometry.torch_se3 import motion
from recon.geometry.warp import correspond, sample
from recon.losses import masked_mean
from recon.losses.photometric import photometric_error
from recon.losses.smoothness import edge_aware, relative_disparity
from recon.models.monodepth2 import depth_from_sigmoid
from recon.models.resnet import ResNetEncoder, load_imagenet
from recon.training.clips import ClipBatch, ClipPlan
from recon.types import MAX_SEED, MAX_THREADS, ReconError, bounded

Losses = dict[str, Tensor]
"""Scalars by name; `total` is what is minimised, the others are for the log."""


@dataclass(frozen=True)
class SelfSupervisedConfig:
    """What `recon train` reads from its file for every self-supervised method."""

    sources: tuple[str, ...] = ()
    """Recordings (paths or phantom specs) to learn from; with a split the folder that its recordings lie below."""
    validation_sources: tuple[str, ...] = ()
    """Recordings to choose the best networks by; none: stretches held out of the sources."""
    split: Path | None = None
    """Split file (configs/splits) whose train part is trained on and whose val part chooses the best networks."""
    width_px: int = bounded(320, 64)
    """Working size; both sides multiples of 32."""
    height_px: int = bounded(256, 64)
    """See `width_px`."""
    batch_size: int = bounded(12, 1)
    """Clips a step."""
    num_epochs: int = bounded(20, 1)
    """Times that every clip is seen."""
    learning_rate: float = bounded(1e-4, 0.0)
    """Of Adam."""
    decay_epochs: int = bounded(10, 1)
    """After every so many epochs the learning rate is multiplied by `decay`."""
    decay: float = bounded(0.1, 0.0, 1.0)
    """See `decay_epochs`."""
    smoothness_weight: float = bounded(1e-4, 0.0)
    """Of the disparity's edge-aware smoothness at the finest scale; half of it at each coarser one."""
    motion_factor: float = bounded(0.001, 0.0)
    """What the pose network says is multiplied by this: 0.001 for SCARED, 0.01 for larger steps between frames."""
    learn_intrinsics: bool = False
    """Learn a pinhole lens instead of using the recordings' own; for recordings without a known lens."""
    imagenet_weights: Path | None = None
    """torchvision's resnet18-*.pth, from which all ResNet-18 encoders start."""
    min_motion_px: float = bounded(0.25, 0.0)
    """Clips whose picture moves less are left out."""
    validate_every: int = bounded(0, 0)
    """Steps between validations; 0 means an epoch."""
    patience: int = bounded(0, 0)
    """Stop after so many validations without a new best; 0 never stops early."""
    checkpoint_minutes: float = bounded(5.0, 0.0)
    """Time between checkpoints; an interrupted run loses no more than this."""
    mixed_precision: bool = True
    """Half precision for depth and appearance networks; on CUDA only."""
    num_workers: int = bounded(0, 0, 64)
    """Processes that read clips ahead; they change nothing else."""
    num_threads: int = bounded(0, 0, MAX_THREADS)
    """0 means all."""
    seed: int = bounded(0, 0, MAX_SEED)
    """Of everything random."""
    device: str = "cpu"
    """"cpu", "cuda" or "cuda:1"."""

    @property
    def uses_half(self) -> bool:
        """Whether depth and appearance networks run in half precision, with their losses scaled for it."""
        return self.mixed_precision and torch.device(self.device).type == "cuda"

    def plan(self) -> ClipPlan:
        """How clips are cut: a target between the frames before and after it."""
        return ClipPlan(
            width_px=self.width_px,
            height_px=self.height_px,
            min_motion_px=self.min_motion_px,
            seed=self.seed,
        )


@dataclass(frozen=True)
class Phase:
    """One half of an alternating step, or all of a plain one."""

    trained: tuple[str, ...]
    """Names of the networks whose parameters the optimiser holds."""
    losses: Callable[[ClipBatch], Losses]
    base_rate: float
    """Learning rate before any decay."""
    optimizer: torch.optim.Optimizer


class Warped(NamedTuple):
    """A source pulled onto the target through depth and motion."""

    image: Float[Tensor, "b 3 h w"]
    valid: Bool[Tensor, "b h w"]
    """Where it shows the patient: seen by the lens, inside the source and its scope, off its instruments."""


class Method:
    """A depth network, a pose network and whatever else a method trains, in `networks`; its `phases` say how."""

    name: ClassVar[str]
    """As a training's config calls it, and `recon models` the depth network."""
    config_type: ClassVar[type[SelfSupervisedConfig]]
    config: SelfSupervisedConfig
    seen_before: tuple[str, ...] = ()
    """What weights that training starts from were trained on."""
    checksums: Mapping[str, str] = MappingProxyType({})
    """SHA-256 of files that decide a training though no path in its recipe leads to them."""
    networks: nn.ModuleDict
    phases: tuple[Phase, ...]

    def facts(self) -> dict[str, int]:
        """What must be known to run the depth network again, for the header of its weights."""
        return {"width": self.config.width_px, "height": self.config.height_px}

    def begin(self, recordings: Sequence[str]) -> None:
        """Learn the names of what is learned from before the first step; ReconError where the method cannot use them."""

    def begin_step(self, step: int) -> None:
        """Change what is trained where a method has a schedule; the loop calls it before every step, also after a resume."""

    def begin_epoch(self, epoch: int) -> None:
        """The same by epochs, before every step."""

    def decay(self, epoch: int, network: str) -> float:
        """What a network's learning rate is multiplied by in an epoch, counted from 0."""
        return self.config.decay ** (epoch // self.config.decay_epochs)

    def phase(self, trained: tuple[str, ...], losses: Callable[[ClipBatch], Losses], base_rate: float) -> Phase:
        """A phase with an optimiser of its own; parameters that are frozen at the time have no gradient and are passed over."""
        groups = [{"params": list(self.networks[name].parameters()), "name": name} for name in trained]
        return Phase(trained, losses, base_rate, self.optimizer(groups, base_rate))

    def optimizer(self, groups: list[dict[str, Any]], base_rate: float) -> torch.optim.Optimizer:
        """Adam; each network is a group."""
        return torch.optim.Adam(groups, lr=base_rate, fused=True)

    def start_from_imagenet(self) -> None:
        """Fill every ResNet-18 from the configured file, when there is one, and say so in `seen_before`."""
        if self.config.imagenet_weights is not None:
            for module in self.networks.modules():
                if isinstance(module, ResNetEncoder):
                    load_imagenet(module, self.config.imagenet_weights)
            self.seen_before = (*self.seen_before, "imagenet")

    def half_precision(self) -> AbstractContextManager:
        """In which networks run in half precision where the config says so; nothing changes elsewhere."""
        return torch.autocast(torch.device(self.config.device).type, torch.float16, enabled=self.config.uses_half)

    def disparities(self, image: Float[Tensor, "b 3 h w"]) -> list[Float[Tensor, "b _h _w"]]:
        """Sigmoid disparity at four scales, finest first, in single precision."""
        with self.half_precision():
            found = self.networks["depth"](image)
        return [disparity.float() for disparity in found]

    def poses(self, clips: ClipBatch) -> list[tuple[Float[Tensor, "b 4 4"], Lens]]:
        """T_source_target of every source and the lens; each source's own where the lens is learned."""
        known = None if self.config.learn_intrinsics else known_lens(clips)
        poses = []
        for source in range(1, clips.color.shape[1]):
            found = self.networks["pose"](clips.color_aug[:, source], clips.color_aug[:, 0])
            lens = known or LearnedPinhole(found.intrinsics[:, :2], found.intrinsics[:, 2:], *clips.color.shape[-2:])
            poses.append((motion(found.axis_angle, found.translation), lens))
        return poses

    @torch.no_grad()
    def validation_error(self, clips: ClipBatch) -> float:
        """Photometric error of the sources warped onto the targets; what leaves the source counts as if it had not been moved.

        Without that, a motion that throws nearly everything out of view would win.
        """
        self.networks.eval()
        return self.warp_error(clips, self.disparities(clips.color_aug[:, 0])[0])

    def warp_error(self, clips: ClipBatch, disparity: Float[Tensor, "b _h _w"]) -> float:
        """See `validation_error`; `disparity` is the targets'."""
        target, mask = clips.color[:, 0], inner(clips.mask[:, 0])
        depth = depth_at(disparity, target)
        errors = []
        for source, pose in enumerate(self.poses(clips), start=1):
            warped = warp_source(clips, source, depth, *pose)
            image = torch.where(warped.valid[:, None], warped.image, clips.color[:, source])
            errors.append(masked_mean(photometric_error(image, target, mask), mask))
        return float(torch.stack(errors).mean())


def known_lens(clips: ClipBatch) -> TorchLens:
    """The lenses of the recordings. Raises ReconError where one has none."""
    unknown = [name for name, camera in zip(clips.recordings, clips.cameras, strict=True) if camera is None]
    if unknown:
        raise ReconError(f"{unknown[0]}: its lens is not known; set learn_intrinsics = true or give recordings with a camera")
    return TorchLens(clips.cameras, clips.color.device)


def depth_at(disparity: Float[Tensor, "b _h _w"], image: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b h w"]:
    """z-depth of a sigmoid disparity at the image's size, whatever its own (monodepth2's multi-scale estimation)."""
    return depth_from_sigmoid(enlarged(disparity[:, None], image)[:, 0])


def enlarged(values: Float[Tensor, "b c _h _w"], image: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c h w"]:
    """A coarse map at the image's size; outer pixel centres stay where they are (align_corners)."""
    return functional.interpolate(values, image.shape[-2:], mode="bilinear", align_corners=True)


def inner(mask: Bool[Tensor, "b h w"]) -> Bool[Tensor, "b h w"]:
    """The mask without its outermost pixels, whose 3x3 windows reach into what is no picture."""
    return functional.max_pool2d((~mask[:, None]).float(), 3, 1, 1)[:, 0] == 0


def warp_source(
    clips: ClipBatch, source: int, depth: Float[Tensor, "b h w"], T_source_target: Float[Tensor, "b 4 4"], lens: Lens
) -> Warped:
    """Source number `source` pulled onto the target."""
    where = correspond(depth, T_source_target, lens)
    usable = sample(clips.mask[:, source, None].float(), where.pixels.detach())[:, 0] > 0.999
    return Warped(sample(clips.color[:, source], where.pixels), where.valid & usable)


def smoothness(disparity: Float[Tensor, "b _h _w"], image: Float[Tensor, "b 3 h w"], mask: Bool[Tensor, "b h w"]) -> Float[Tensor, ""]:
    """Edge-aware smoothness of the relative disparity at its own scale."""
    guide, own_mask = at_scale(image, mask, disparity.shape[-2:])
    return edge_aware(relative_disparity(disparity, own_mask)[:, None], guide, own_mask).mean()


def at_scale(
    image: Float[Tensor, "b 3 h w"], mask: Bool[Tensor, "b h w"], size: Sequence[int]
) -> tuple[Float[Tensor, "b 3 _h _w"], Bool[Tensor, "b _h _w"]]:
    """Image and mask at a coarser scale; the mask holds where all that is averaged does."""
    height, width = size
    small = functional.interpolate(image, (height, width), mode="area")
    whole = functional.interpolate(mask[:, None].float(), (height, width), mode="area")[:, 0] > 0.999
    return small, whole


def averaged(terms: dict[str, list[Tensor]]) -> Losses:
    """The mean of each list of scalars."""
    return {name: torch.stack(values).mean() for name, values in terms.items()}
