"""The loop of every self-supervised method: steps, validation, checkpoints; resumable to the same losses.

The best networks are those of the smallest photometric error on clips held out for it; depth truth and test parts are never read.
"""

from __future__ import annotations

import json
import logging
import math
from itertools import combinations, product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import safetensors.torch
import torch
from jaxtyping import UInt8

from recon.data import open_sequence
from recon.data.splits import read_split
from recon.io.atomic import write_bytes, write_json
from recon.io.images import write_png
from recon.models.weights import TRAINING
from recon.report.figures import DEPTH_COLORS, colorize
from recon.scoring.score import training_data
from recon.training.checkpoints import Interval, Log, load_checkpoint, recipe, save_checkpoint
from recon.training.clip_store import Recording
from recon.training.clips import ClipBatch, ClipSource, clip_batches, split_recordings
from recon.training.methods import METHODS
from recon.training.methods.method import Method, SelfSupervisedConfig, depth_at
from recon.types import ReconError

logger = logging.getLogger(__name__)


class Clips(NamedTuple):
    """What is learned from and what the best networks are chosen by."""

    training: ClipSource
    validation: ClipSource
    datasets: tuple[str, ...]
    """Which data sets they are from; `dataset/split` for a part of a split."""


def train_self_supervised(name: str, config: SelfSupervisedConfig, out: Path, stop_after: int | None = None) -> Path:
    """Train the method `name` of METHODS, or go on, and return the best networks' folder `out/best`.

    Args:
        name: of the method.
        config: its whole recipe.
        out: folder of clips, checkpoints, logs and pictures; an interrupted run goes on from there.
        stop_after: leave the loop after this step, as an interruption would.
    """
    if config.num_threads:
        torch.set_num_threads(config.num_threads)
    torch.manual_seed(config.seed)
    clips = open_clips(config, out / "clips")
    for note in (*clips.training.notes, *clips.validation.notes):
        logger.warning("%s", note)
    epoch_steps = clips.training.steps_per_epoch(config.batch_size)
    last_step = config.num_epochs * epoch_steps
    state = TrainingState(METHODS[name](config), clips.datasets)
    state.method.begin([stored.name for stored in clips.training.stored])
    state.load(out / "checkpoint.pt")
    log, due = Log(out, state.step), Interval(config.checkpoint_minutes)
    stop_step = state.step if state.is_stale else last_step
    if state.step == 0:
        state.validate(clips.validation, log, out / "best")
        state.draw(clips.validation, log, out / "pictures")
    for batch in clip_batches(clips.training, config.batch_size, state.step, stop_step, config.num_workers):
        losses = state.train_step(batch.to(config.device), state.step // epoch_steps)
        log.add("losses", state.step, losses)
        if state.step % (config.validate_every or epoch_steps) == 0 or state.step == last_step:
            state.validate(clips.validation, log, out / "best")
        if state.step % epoch_steps == 0:
            state.draw(clips.validation, log, out / "pictures")
        is_last = state.step in (last_step, stop_after) or state.is_stale
        if due.is_over() or is_last:
            state.save(out / "checkpoint.pt")
        if is_last:
            break
    if state.is_stale:
        logger.info("stopped after %d steps: the last %d validations were no better", state.step, state.num_stale)
    log.close()
    return out / "best"


def open_clips(config: SelfSupervisedConfig, folder: Path) -> Clips:
    """The clips of both parts.

    Raises ReconError when nothing is given to learn from, when a recording is to be learned from and to be validated on, and as
    `ClipSource`.
    """
    if not config.sources:
        raise ReconError('no sources: give recordings to learn from, e.g. --set sources=["phantom:tube?seed=1"]')
    plan = config.plan()
    if config.split is not None:
        if len(config.sources) != 1 or config.validation_sources:
            raise ReconError("with a split, sources is the one folder that its recordings lie below, and validation_sources stays empty")
        split, root = read_split(config.split), Path(config.sources[0])
        datasets = (f"{split.dataset}/{split.name}",)
        training, validation = split_recordings(split, "train", root), split_recordings(split, "val", root)
    else:
        training, validation = recordings(config.sources), recordings(config.validation_sources)
        check_apart(training, validation)
        datasets = tuple(sorted({training_data(r.sequence.dataset, r.sequence.name) for r in (*training, *validation)}))
    if validation:
        return Clips(ClipSource(training, folder, plan, "all"), ClipSource(validation, folder, plan, "all", augment=False), datasets)
    return Clips(ClipSource(training, folder, plan, "train"), ClipSource(training, folder, plan, "val"), datasets)


def recordings(sources: tuple[str, ...]) -> list[Recording]:
    """Open whole recordings."""
    return [Recording(source, open_sequence(source)) for source in sources]


def check_apart(training: list[Recording], validation: list[Recording]) -> None:
    """Raise ReconError where a recording is in both, or, where stretches of the training's are to be held out, in it twice."""
    for chosen, learned in product(validation, training):
        if _is_same(chosen, learned):
            raise ReconError(
                f"validation_sources: {chosen.source} is learned from as {learned.source}; give recordings that are in one of the two "
                "only, or leave validation_sources empty to hold stretches of the sources out"
            )
    for first, second in combinations(training, 2):
        if not validation and _is_same(first, second):
            raise ReconError(
                f"sources: {first.source} and {second.source} show the same, or one lies inside of the other, and what is held out of "
                "one would be learned from the other; give every recording once, or name validation_sources"
            )


def _is_same(one: Recording, other: Recording) -> bool:
    """Phantoms of one kind and seed are one scene whatever else their specs say; a folder holds what lies in it."""
    if _is_phantom(one) or _is_phantom(other):
        return one.sequence.name == other.sequence.name and _is_phantom(one) == _is_phantom(other)
    paths = [Path(recording.source).resolve() for recording in (one, other)]
    return paths[0].is_relative_to(paths[1]) or paths[1].is_relative_to(paths[0])


def _is_phantom(recording: Recording) -> bool:
    return recording.sequence.dataset == "phantom"


class TrainingState:
    """Everything that a resumed run needs: networks, optimisers, loss scales, step and the best so far."""

    def __init__(self, method: Method, datasets: tuple[str, ...]) -> None:
        self.method, self.config, self.datasets, self.recipe = method, method.config, datasets, recipe(method.config, method.checksums)
        device = torch.device(self.config.device).type
        self.scalers = [torch.amp.GradScaler(device, enabled=self.config.uses_half) for _ in method.phases]
        self.step = 0
        self.best_error = math.inf
        self.num_stale = 0
        """Validations since the best one."""

    @property
    def is_stale(self) -> bool:
        """Whether validation has not improved for as long as the recipe waits."""
        return 0 < self.config.patience <= self.num_stale

    def train_step(self, clips: ClipBatch, epoch: int) -> dict[str, float]:
        """One update of every phase; returns the losses and the decay of the last phase's first parameters, which are depth's."""
        self.method.begin_step(self.step)
        self.method.begin_epoch(epoch)
        logged, decay = {}, 1.0
        for phase, scaler in zip(self.method.phases, self.scalers, strict=True):
            for name, network in self.method.networks.items():
                network.train(name in phase.trained)
            for group in reversed(phase.optimizer.param_groups):
                decay = self.method.decay(epoch, group["name"])
                group["lr"] = phase.base_rate * decay
            losses = phase.losses(clips)
            prefix = "_".join(phase.trained)
            logged |= {f"{prefix}/{key}": float(value.detach()) for key, value in losses.items()}
            if not torch.isfinite(losses["total"]):
                raise ReconError(f"the loss of {prefix} is not finite at step {self.step}: lower learning_rate", exit_code=1)
            phase.optimizer.zero_grad(set_to_none=True)
            scaler.scale(losses["total"]).backward()
            scaler.step(phase.optimizer)
            scaler.update()
        self.step += 1
        return {**logged, "decay": decay}

    def validate(self, source: ClipSource, log: Log, best: Path) -> None:
        """Score the held-out clips, and keep the networks in the folder `best` if they are the best so far."""
        config, total, count = self.config, 0.0, 0
        for batch in clip_batches(source, config.batch_size, 0, source.steps_per_epoch(config.batch_size), config.num_workers):
            total += self.method.validation_error(batch.to(config.device)) * len(batch.recordings)
            count += len(batch.recordings)
        error = total / count
        self.num_stale = 0 if error < self.best_error else self.num_stale + 1
        log.add("validation", self.step, {"photometric": error})
        logger.info("step %d: validation error %.5f (best %.5f)", self.step, error, min(error, self.best_error))
        if error < self.best_error:
            self.best_error = error
            self.save_networks(best)

    def draw(self, source: ClipSource, log: Log, folder: Path) -> None:
        """A picture of the first held-out clip's depth as it is now."""
        picture = depth_picture(self.method, source.clip(0, 0).to(self.config.device))
        write_png(folder / f"{self.step:07d}.png", picture)
        log.add_picture("depth", self.step, picture)

    def save_networks(self, folder: Path) -> None:
        """Write every network as safetensors under its published key names, and the recipe beside them.

        The header says what `recon.models.inference` needs to run the depth network, and what it has seen.
        """
        seen = list(dict.fromkeys([*self.datasets, *self.method.seen_before]))
        facts = {"method": self.method.name, "trained_on": seen, **self.method.facts()}
        header = {TRAINING: json.dumps(facts)}
        for name, network in self.method.networks.items():
            weights = {key: value.detach().cpu().contiguous() for key, value in network.state_dict().items()}
            write_bytes(folder / f"{name}.safetensors", safetensors.torch.save(weights, header))
        write_json(folder / "training.json", {"config": self.recipe, "steps": self.step, "validation_error": self.best_error})

    def save(self, path: Path) -> None:
        parts = {
            "networks": self.method.networks.state_dict(),
            "optimizers": [phase.optimizer.state_dict() for phase in self.method.phases],
            "scalers": [scaler.state_dict() for scaler in self.scalers],
            "best_error": self.best_error,
            "num_stale": self.num_stale,
        }
        save_checkpoint(path, self.recipe, self.step, parts)

    def load(self, path: Path) -> None:
        """Go on from a checkpoint of the same recipe, when there is one."""
        checkpoint = load_checkpoint(path, self.recipe)
        if checkpoint is None:
            return
        self.method.networks.load_state_dict(checkpoint["networks"])
        for phase, state in zip(self.method.phases, checkpoint["optimizers"], strict=True):
            phase.optimizer.load_state_dict(state)
        for scaler, state in zip(self.scalers, checkpoint["scalers"], strict=True):
            # A training that began on a CPU scaled nothing.
            if state:
                scaler.load_state_dict(state)
        self.step, self.best_error, self.num_stale = (checkpoint[key] for key in ("step", "best_error", "num_stale"))


@torch.no_grad()
def depth_picture(method: Method, clip: ClipBatch) -> UInt8[np.ndarray, "h w2 3"]:
    """The target of a clip and its depth beside it, the nearest and the farthest two percent of depths held."""
    method.networks.eval()
    target = clip.color[:, 0]
    depth = depth_at(method.disparities(target)[0], target)[0].cpu().numpy()
    known = clip.mask[0, 0].cpu().numpy()
    low, high = np.percentile(np.log(depth[known] if known.any() else depth), (2, 98))
    image = (target[0].permute(1, 2, 0).cpu().numpy() * 255.0).round().astype(np.uint8)
    return np.concatenate([image, colorize(np.log(depth), float(low), float(high), DEPTH_COLORS, known)], axis=1)
