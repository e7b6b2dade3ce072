"""Supervised fine-tuning of EndoSynth's networks to say metres (Toussaint et al. 2025); resumable to the same losses.

The authors publish networks, data and inference, but no training: loss, rates, epochs and split are decided here. They are Depth
Anything V2's recipe for metric networks (Yang et al. 2024: SiLog, AdamW, a smaller rate for the encoder, polynomial decay, mirror
images), and the plain difference in metres beside SiLog, for acc@2cm, which the figures are about, counts plain differences.
EndoDAC trains what it trains anyway (LoRA's matrices, necks and heads), the others train whole. Truth beyond the largest depth that
the networks can say is left out. The best network is that of the smallest mean error in metres on held-out samples.
"""

from __future__ import annotations

import json
import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import safetensors.torch
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.data import DataLoader

from recon.data import open_sequence
from recon.io.atomic import write_bytes, write_json
from recon.losses import masked_mean
from recon.losses.metric import VARIANCE_FOCUS, absolute_error, log_error, silog
from recon.models.endodac import load_depth_anything
from recon.models.endosynth import (
    INPUT_PX,
    MAX_METRES,
    MIN_METRES,
    PREFIX,
    VARIANTS,
    Channels,
    encoder_width,
    finest,
    of_order,
    variant_size,
)
from recon.models.published import NATURAL, SCARED
from recon.models.weights import TRAINED, TRAINING, load_weights, training_facts
from recon.scoring.score import training_data
from recon.training.checkpoints import Interval, Log, load_checkpoint, recipe, save_checkpoint
from recon.training.clip_store import Recording
from recon.training.depth_samples import HELD_GAP, DepthBatch, DepthSamples, Schedule, held_out
from recon.training.selfsup import check_apart
from recon.types import MAX_SEED, MAX_THREADS, ReconError, bounded

logger = logging.getLogger(__name__)

ACCURATE_METRES = 0.02
"""acc@2cm: the share of true pixels that are less wrong."""


@dataclass(frozen=True)
class MetricConfig:
    """What `recon train` reads from its file."""

    VERSION: ClassVar[int] = 2
    """Raised whenever the same recipe trains otherwise."""

    variant: str = "dav1"
    """dav1, dav2, endodac or midas."""
    size: str = ""
    """Of the network; empty is the published one (base, for midas large)."""
    sources: tuple[str, ...] = ()
    """Data sets (or phantom specs) with true depth in a known unit: the folder of EndoSynth."""
    validation_sources: tuple[str, ...] = ()
    """What the best network is chosen by; none: `validation_share` of the sources."""
    validation_share: float = bounded(0.1, 0.0, 0.5)
    """One in so many of unrelated views, the last stretch of a recording."""
    start_weights: Path | None = None
    """Weights to start from: depth_anything_vitb14.pth for dav1, depth_anything_v2_vitb.pth for dav2, EndoDAC's depth_model.pth or
    Depth Anything V1's for endodac, dpt_beit_large_512.pt for midas."""
    width_px: int = bounded(INPUT_PX[0], 28)
    """Working size, whatever the pictures' aspect; both sides multiples of 14, of 16 for midas alone."""
    height_px: int = bounded(INPUT_PX[1], 28)
    """See `width_px`."""
    channels: Channels = "rgb"
    """The order in which the network sees colours; the authors' own weights want "bgr", see `recon.models.endosynth`."""
    silog_weight: float = bounded(1.0, 0.0)
    """Of the scale-invariant logarithmic error."""
    variance_focus: float = bounded(VARIANCE_FOCUS, 0.0, 1.0)
    """Share of the common factor that it forgives."""
    l1_weight: float = bounded(10.0, 0.0)
    """Of the mean difference in metres: 2 cm cost 0.2, about what SiLog says of a usual error."""
    batch_size: int = bounded(8, 1)
    """Pictures a step."""
    num_epochs: int = bounded(20, 1)
    """Times that every picture is seen."""
    learning_rate: float = bounded(5e-5, 0.0)
    """Of AdamW, for all but the encoder, and for what was added to it."""
    encoder_learning_rate: float = bounded(5e-6, 0.0)
    """For the encoder's own weights."""
    weight_decay: float = bounded(0.01, 0.0)
    """Of AdamW."""
    decay_power: float = bounded(0.9, 0.0)
    """Rates fall with (1 - progress) to this power."""
    flip_share: float = bounded(0.5, 0.0, 1.0)
    """Share of pictures that are mirrored left to right."""
    validate_every: int = bounded(0, 0)
    """Steps between validations; 0 means an epoch."""
    checkpoint_minutes: float = bounded(5.0, 0.0)
    """Time between checkpoints; an interrupted run loses no more than this."""
    mixed_precision: bool = True
    """Half precision (bfloat16) in the network; on CUDA only."""
    num_workers: int = bounded(0, 0, 64)
    """Processes that read samples ahead; they change nothing else."""
    num_threads: int = bounded(0, 0, MAX_THREADS)
    """0 means all."""
    seed: int = bounded(0, 0, MAX_SEED)
    """Of everything random."""
    device: str = "cpu"
    """"cpu", "cuda" or "cuda:1"."""


def train_metric(config: MetricConfig, out: Path, stop_after: int | None = None) -> Path:
    """Train, or go on, and return the best network's folder `out/best`.

    Args:
        config: the whole recipe.
        out: folder of samples, checkpoints and logs; an interrupted run goes on from there.
        stop_after: leave the loop after this step, as an interruption would.
    """
    if config.num_threads:
        torch.set_num_threads(config.num_threads)
    torch.manual_seed(config.seed)
    state = MetricTraining(config)
    training, validation = open_samples(config, out / "samples")
    schedule = training.schedule
    if not schedule.steps_per_epoch:
        raise ReconError(f"{len(schedule.places)} samples do not fill a batch of {config.batch_size}: make it smaller or give more")
    last_step = config.num_epochs * schedule.steps_per_epoch
    state.load(out / "checkpoint.pt")
    log, due = Log(out, state.step), Interval(config.checkpoint_minutes)
    if state.step == 0:
        state.validate(validation, log, out / "best")
    loader = DataLoader(
        training,
        batch_size=None,
        sampler=range(state.step, last_step),
        num_workers=config.num_workers,
        generator=torch.Generator(),
    )
    for batch in loader:
        losses = state.train_step(batch.to(config.device), state.step / last_step)
        log.add("losses", state.step, losses)
        if state.step % (config.validate_every or schedule.steps_per_epoch) == 0 or state.step == last_step:
            state.validate(validation, log, out / "best")
        is_last = state.step in (last_step, stop_after)
        if due.is_over() or is_last:
            state.save(out / "checkpoint.pt")
        if is_last:
            break
    log.close()
    return out / "best"


class Steps:
    """Batches by step, as a DataLoader asks for them."""

    def __init__(self, samples: DepthSamples, schedule: Schedule) -> None:
        self.samples, self.schedule = samples, schedule

    def __getitem__(self, step: int) -> DepthBatch:
        return self.samples.batch(*self.schedule.draw(step))


@dataclass(frozen=True)
class Held:
    """What the best network is chosen by: samples in order and unchanged."""

    samples: DepthSamples
    places: Int[np.ndarray, " n"]
    datasets: tuple[str, ...]
    """Which data sets training and choosing have seen."""

    def batches(self, batch_size: int) -> list[Int[np.ndarray, " b"]]:
        """Places by batch; the last may be smaller."""
        return [self.places[start : start + batch_size] for start in range(0, len(self.places), batch_size)]


def open_samples(config: MetricConfig, folder: Path) -> tuple[Steps, Held]:
    """What is learned from and what the best network is chosen by. Raises ReconError without sources, when one is in both, and as
    `DepthSamples`.
    """
    if not config.sources:
        raise ReconError('no sources: give data sets with true depth, e.g. --set sources=["EndoSynth"]')
    recordings, others = _opened(config.sources), _opened(config.validation_sources)
    check_apart(recordings, others)
    size_px = (config.width_px, config.height_px)
    datasets = tuple(sorted({training_data(r.sequence.dataset, r.sequence.name) for r in (*recordings, *others)}))
    samples = DepthSamples(recordings, folder, size_px)
    if others:
        chosen = DepthSamples(others, folder, size_px)
        held, places = Held(chosen, np.arange(len(chosen)), datasets), np.arange(len(samples))
    else:
        mask = held_out(samples, config.validation_share)
        held, places = Held(samples, np.flatnonzero(mask), datasets), np.flatnonzero(~held_out(samples, config.validation_share, HELD_GAP))
    for note in dict.fromkeys((*samples.notes, *held.samples.notes)):
        logger.warning("%s", note)
    if not len(held.places):
        raise ReconError("nothing is held out to choose the best network by: set validation_share above 0 or give validation_sources")
    return Steps(samples, Schedule(places, config.batch_size, config.flip_share, config.seed)), held


def _opened(sources: tuple[str, ...]) -> list[Recording]:
    return [Recording(source, open_sequence(source)) for source in sources]


class MetricTraining:
    """Everything that a resumed run needs: network, optimiser, step and the best so far."""

    def __init__(self, config: MetricConfig) -> None:
        self.config, self.recipe = config, recipe(config)
        self.size = variant_size(config.variant, config.size)
        self.variant = VARIANTS[config.variant]
        self.network = self.variant.build(self.size)
        self.trained_before = self.start()
        self.network.to(config.device)
        self.optimizer = torch.optim.AdamW(self.groups(), weight_decay=config.weight_decay, betas=(0.9, 0.999))
        self.step, self.best_error = 0, math.inf

    def start(self) -> tuple[str, ...]:
        """Fill the network from the configured file; of EndoDAC, Depth Anything's weights leave what it adds as it is.

        Returns what the file's network was trained on.
        """
        path = self.config.start_weights
        if path is None:
            logger.warning("start_weights is not set: the network starts from random weights")
            self.variant.wake(self.network)
            return ()
        is_endodac = self.config.variant == "endodac"
        try:
            load_weights(self.network, path, may_ignore=self.variant.unused)
        except ReconError:
            if not is_endodac:
                raise
            load_depth_anything(self.network, path)
            is_endodac = False
        return tuple(training_facts(path).get("trained_on", (*SCARED, *NATURAL) if is_endodac else NATURAL))

    def groups(self) -> list[dict]:
        """What is trained, the encoder's own weights at their own rate; `base_rate` is what a rate decays from."""
        own = {id(parameter) for name, parameter in self.network.named_parameters() if _is_encoder(name)}
        trained = [parameter for parameter in self.network.parameters() if parameter.requires_grad]
        parts = (
            ([p for p in trained if id(p) in own], self.config.encoder_learning_rate),
            ([p for p in trained if id(p) not in own], self.config.learning_rate),
        )
        return [{"params": parameters, "lr": rate, "base_rate": rate} for parameters, rate in parts if parameters]

    def metres(self, color: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b h w"]:
        """z-depth in metres of RGB in [0, 1]."""
        half = self.config.mixed_precision and torch.device(self.config.device).type == "cuda"
        with torch.autocast(torch.device(self.config.device).type, torch.bfloat16, enabled=half):
            output = finest(self.network(self.variant.normalised(of_order(color, self.config.channels))))
        return self.variant.metres_at(output.float(), color.shape[-2:])

    def losses(self, batch: DepthBatch) -> dict[str, Tensor]:
        """SiLog and the mean difference in metres where the truth is within what the network can say."""
        config, known, found = self.config, batch.known(MIN_METRES, MAX_METRES), self.metres(batch.color)
        logs = silog(log_error(found, batch.metres, known), known, config.variance_focus)
        plain = masked_mean(absolute_error(found, batch.metres, known), known)
        return {"total": config.silog_weight * logs + config.l1_weight * plain, "silog": logs, "l1_m": plain}

    def train_step(self, batch: DepthBatch, progress: float) -> dict[str, float]:
        """One update after a share `progress` of all; returns the losses and the decay. Raises ReconError when a loss is not finite."""
        self.network.train()
        decay = (1.0 - progress) ** self.config.decay_power
        for group in self.optimizer.param_groups:
            group["lr"] = group["base_rate"] * decay
        losses = self.losses(batch)
        if not torch.isfinite(losses["total"]):
            raise ReconError(f"the loss is not finite at step {self.step}: lower learning_rate", exit_code=1)
        self.optimizer.zero_grad(set_to_none=True)
        losses["total"].backward()
        self.optimizer.step()
        self.step += 1
        return {**{name: float(value.detach()) for name, value in losses.items()}, "decay": decay}

    @torch.no_grad()
    def errors(self, held: Held) -> dict[str, float]:
        """Means over the held-out pictures of mae_m, abs_rel and acc_2cm, nothing scaled, cut where inference cuts.

        Raises ReconError where no picture has true depth that the network could say.
        """
        self.network.eval()
        sums, count = torch.zeros(3), 0
        for places in held.batches(self.config.batch_size):
            batch = held.samples.batch(places, np.zeros(len(places), dtype=bool)).to(self.config.device)
            found, known = self.metres(batch.color).clamp(max=MAX_METRES), batch.known(MIN_METRES, MAX_METRES)
            wrong = absolute_error(found, batch.metres, known)
            maps = torch.stack([wrong, wrong / batch.metres.clamp(min=MIN_METRES), (wrong < ACCURATE_METRES) & known], dim=1)
            numbers = known.flatten(1).sum(dim=1)
            means = maps.flatten(2).sum(dim=2)[numbers > 0] / numbers[numbers > 0, None]
            sums, count = sums + means.sum(dim=0).cpu(), count + len(means)
        if not count:
            raise ReconError(f"no held-out picture has true depth between {MIN_METRES} and {MAX_METRES} m: give other sources")
        return dict(zip(("mae_m", "abs_rel", "acc_2cm"), (sums / count).tolist(), strict=True))

    def validate(self, held: Held, log: Log, best: Path) -> None:
        """Score the held-out samples, and keep the network in the folder `best` if it is the best so far."""
        errors = self.errors(held)
        log.add("validation", self.step, errors)
        logger.info("step %d: %.2f cm off, %.3f within 2 cm", self.step, 100.0 * errors["mae_m"], errors["acc_2cm"])
        if errors["mae_m"] < self.best_error:
            self.best_error = errors["mae_m"]
            self.save_network(best, held)

    def save_network(self, folder: Path, held: Held) -> None:
        """Write the network as safetensors under its published key names, and the recipe beside it."""
        config = self.config
        facts = {
            "method": PREFIX + config.variant,
            "trained_on": list(dict.fromkeys([*held.datasets, *self.trained_before])),
            "width": config.width_px,
            "height": config.height_px,
            "encoder_width": encoder_width(self.size),
            "is_rgb": int(config.channels == "rgb"),
        }
        weights = {name: value.detach().cpu().contiguous() for name, value in self.network.state_dict().items()}
        write_bytes(folder / TRAINED, safetensors.torch.save(weights, {TRAINING: json.dumps(facts)}))
        write_json(folder / "training.json", {"config": self.recipe, "steps": self.step, "validation_mae_m": self.best_error})

    def save(self, path: Path) -> None:
        parts = {"network": self.network.state_dict(), "optimizer": self.optimizer.state_dict(), "best_error": self.best_error}
        save_checkpoint(path, self.recipe, self.step, parts)

    def load(self, path: Path) -> None:
        """Go on from a checkpoint of the same recipe, when there is one."""
        checkpoint = load_checkpoint(path, self.recipe)
        if checkpoint is None:
            return
        self.network.load_state_dict(checkpoint["network"])
        self.optimizer.load_state_dict(checkpoint["optimizer"])
        self.step, self.best_error = checkpoint["step"], checkpoint["best_error"]


def _is_encoder(name: str) -> bool:
    """Whether a parameter is the encoder's own: not a head's, an adapter's or a neck's."""
    added = (".lora_", ".residual_.", ".act_postprocess")
    return name.startswith(("pretrained.", "encoder.")) and not any(part in name for part in added)
