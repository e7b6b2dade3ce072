"""The training of the student on phantom renders: one plain loop, resumable to the same losses."""

from __future__ import annotations

import copy
import logging
import math
import multiprocessing
import re
import shutil
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from recon.data.phantom.variety import TRAINING_KINDS
from recon.io.atomic import write_json
from recon.losses.depth import gradient_residual, laplace_nll, log_residual
from recon.models import model_info
from recon.models.student import STRIDE, Student, student_input
from recon.models.weights import load_weights, save_halved
from recon.parallel import in_order
from recon.training.augment import augment, estrange
from recon.training.checkpoints import Interval, Log, load_checkpoint, recipe, save_checkpoint
from recon.training.relight import relight
from recon.training.shards import Batch, ShardShape, Shuffled, Views, cast_shard, shards_folder
from recon.types import MAX_SEED, MAX_THREADS, ReconError, bounded

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StudentConfig:
    """What `recon train` reads from its file."""

    VERSION: ClassVar[int] = 4
    """Raised whenever the same recipe trains otherwise: another network, other shards, another light."""

    num_shards: int = bounded(64, 1)
    """Shards of views to train on; two more are kept for validation."""
    views_per_shard: int = bounded(256, 1)
    views_per_scene: int = bounded(8, 1)
    sizes_px: tuple[str, ...] = ("192x128", "256x128", "192x192", "128x128")
    """Picture sizes, width x height, multiples of 32 (of 64 with `coarse_steps`); shards take them in turn."""
    batch_size: int = bounded(16, 1)
    num_steps: int = bounded(20000, 1)
    num_parts: int = bounded(1, 1)
    """Of a batch, each lit and passed through the network on a thread of its own (with its own statistics of normalisation):
    with `num_threads = 1` faster than threads inside of every operation."""
    coarse_steps: int = bounded(0, 0)
    """Of the steps, the first ones, in which pictures have half the size: several times as many are seen in the same time."""
    learning_rate: float = bounded(1.5e-3, 0.0)
    weight_decay: float = bounded(1e-4, 0.0)
    warmup_steps: int = bounded(500, 0)
    decay_share: float = bounded(0.3, 0.0, 1.0)
    """Of the steps, the last ones, in which the learning rate falls."""
    gradient_weight: float = bounded(0.5, 0.0)
    uncertainty_weight: float = bounded(0.2, 0.0)
    ema_decay: float = bounded(0.999, 0.0, 1.0)
    bfloat16: bool = True
    validate_every: int = bounded(1000, 1)
    checkpoint_minutes: float = bounded(5.0, 0.0)
    seed: int = bounded(0, 0, MAX_SEED)
    initial_weights: Path | None = None
    """Weights to begin from; None begins from random numbers."""
    kept_kinds: tuple[str, ...] = ()
    """Kinds of scenes on which the network goes on saying what the initial weights say, whatever the truth (learning without
    forgetting, Li & Hoiem 2017), depth and uncertainty: renders of them are the least like real pictures. So their tones are bent far
    more than those of the rest (`estrange`). Statistics of normalisation stay as well."""
    moved_share: float = bounded(1.0, 0.0, 1.0)
    """How far from the initial weights to those learnt the written ones lie, with `kept_kinds` (WiSE-FT, Wortsman et al. 2022).
    May be chosen when all is learnt: the same command with another share writes the weights again."""
    num_threads: int = bounded(0, 0, MAX_THREADS)
    """0 means all."""
    num_workers: int = bounded(2, 0, 64)
    """Processes that cast shards; 0 casts in this one."""
    device: str = "cpu"


def train_student(config: StudentConfig, out: Path, stop_after: int | None = None) -> Path:
    """Cast what is missing, train (or go on), and write `out/student.safetensors`.

    Args:
        config: the whole recipe.
        out: folder of shards, checkpoints and logs; an interrupted run goes on from there.
        stop_after: leave the loop after this step, as an interruption would.
    """
    if config.batch_size > config.views_per_shard:
        raise ReconError(f"batch_size is {config.batch_size}, expected at most {config.views_per_shard}, the views of a shard")
    if not 1 <= config.num_parts <= config.batch_size:
        raise ReconError(f"num_parts is {config.num_parts}, expected 1 to {config.batch_size}, the views of a batch")
    if strange := [kind for kind in config.kept_kinds if kind not in TRAINING_KINDS]:
        raise ReconError(f"kept_kinds names {', '.join(strange)}, expected some of {', '.join(TRAINING_KINDS)}")
    if config.kept_kinds and config.initial_weights is None:
        raise ReconError("kept_kinds keeps what the initial weights say: give initial_weights, the file to begin from")
    if config.moved_share < 1 and not config.kept_kinds:
        raise ReconError("moved_share below 1 goes with kept_kinds alone, for else statistics of normalisation move too: leave it out")
    if config.num_threads:
        torch.set_num_threads(config.num_threads)
    torch.manual_seed(config.seed)
    # What is wrong with a recipe is said before the shards are cast, which takes longest.
    state = TrainingState(config)
    state.load(out / "checkpoint.pt")
    if state.step >= config.num_steps:
        # All is learnt; there may be another share to write, and no shards are needed for it.
        return save_weights(state, out / "student.safetensors")
    shards = cast_shards(config, out)
    training = Shuffled(shards[2:], config.batch_size, config.seed, config.device)
    validation = Shuffled(shards[:2], config.batch_size, config.seed, config.device)
    due = Interval(config.checkpoint_minutes)
    log = Log(out, state.step)
    for step in range(state.step, config.num_steps):
        losses = training_step(state, training, config)
        if step % 50 == 0 or step + 1 == config.num_steps:
            log.add("losses", state.step, losses)
        if (step + 1) % config.validate_every == 0 or step + 1 == config.num_steps:
            log.add("validation", state.step, validate(state.average, validation, config))
        if due.is_over() or step + 1 in (config.num_steps, stop_after):
            state.save(out / "checkpoint.pt")
        if step + 1 == stop_after:
            break
    log.close()
    return save_weights(state, out / "student.safetensors")


def cast_shards(config: StudentConfig, out: Path) -> list[Path]:
    """Paths of all shards, validation first, casting those that are not there."""
    out.mkdir(parents=True, exist_ok=True)
    multiple = 2 * STRIDE if config.coarse_steps else STRIDE
    sizes = [tuple(map(int, size.split("x"))) for size in config.sizes_px if re.fullmatch(r"[1-9]\d*x[1-9]\d*", size)]
    if not sizes or len(sizes) < len(config.sizes_px) or any(value % multiple for size in sizes for value in size):
        raise ReconError(f"sizes_px must be sizes like 192x128 with sides in multiples of {multiple}, found {list(config.sizes_px)}")
    views = (config.views_per_shard, config.views_per_scene)
    folder = shards_folder(out / "shards", config.seed, *views)
    shapes = [ShardShape(*sizes[index % len(sizes)], *views) for index in range(config.num_shards + 2)]
    paths = [folder / f"{index:04d}_{shape.width_px}x{shape.height_px}.npy" for index, shape in enumerate(shapes)]
    missing = [index for index, path in enumerate(paths) if not path.exists()]
    needed, free = sum(shapes[index].dtype.itemsize * config.views_per_shard for index in missing), shutil.disk_usage(out).free
    if needed > free:
        raise ReconError(
            f"{len(missing)} shards of views take {needed / 1e9:.1f} GB, but {out} has {free / 1e9:.1f} GB left; "
            "choose another --out, fewer num_shards or smaller sizes_px"
        )
    jobs = [(paths[index], shapes[index], config.seed * 100_000 + index) for index in missing]
    if not config.num_workers:
        for job in jobs:
            cast_shard(*job)
    elif jobs:
        # Threads that torch started do not survive a fork.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(config.num_workers, context, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            for number, _ in enumerate(pool.map(cast_shard, *zip(*jobs, strict=True)), start=1):
                logger.info("cast %d of %d missing shards", number, len(jobs))
    return paths


class TrainingState:
    """Everything that a resumed run needs: network, its running average, optimiser and step."""

    def __init__(self, config: StudentConfig) -> None:
        self.config, self.recipe = config, recipe(config)
        self.network = Student()
        if config.initial_weights is not None:
            load_weights(self.network, config.initial_weights)
        self.network.to(config.device, memory_format=torch.channels_last)
        self.first = copy.deepcopy(self.network).eval().requires_grad_(False) if config.kept_kinds else None
        """What `kept_kinds` are held to."""
        self.replicas = [self.network, *(replica(self.network) for _ in range(config.num_parts - 1))]
        self.average = torch.optim.swa_utils.AveragedModel(
            self.network, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(config.ema_decay), use_buffers=self.first is None
        )
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
        self.step = 0

    def save(self, path: Path) -> None:
        parts = {"network": self.network, "average": self.average, "optimizer": self.optimizer}
        save_checkpoint(path, self.recipe, self.step, {name: part.state_dict() for name, part in parts.items()})

    def load(self, path: Path) -> None:
        """Go on from a checkpoint of the same recipe, when there is one."""
        checkpoint = load_checkpoint(path, self.recipe)
        if checkpoint is None:
            return
        self.network.load_state_dict(checkpoint["network"])
        self.average.load_state_dict(checkpoint["average"])
        self.optimizer.load_state_dict(checkpoint["optimizer"])
        self.step = checkpoint["step"]


def replica(network: torch.nn.Module) -> torch.nn.Module:
    """The same parameters with gradients and statistics of their own, for another thread."""
    twin = copy.deepcopy(network)
    for mine, shared in zip(twin.parameters(), network.parameters(), strict=True):
        mine.data = shared.data
    return twin


def training_step(state: TrainingState, views: Shuffled, config: StudentConfig) -> dict[str, float]:
    """One update with the views of the state's step, in the light that the step's number decides; returns the losses."""
    for group in state.optimizer.param_groups:
        group["lr"] = learning_rate(state.step, config)
    parts = enumerate(views.parts(state.step, config.num_parts))
    found = list(in_order(lambda numbered: backward(state, *numbered, config), parts, config.num_parts))
    if not all(math.isfinite(losses["total"]) for losses in found):
        raise ReconError(f"the loss is not finite at step {state.step}: lower learning_rate", exit_code=1)
    for replicas in zip(*(network.parameters() for network in state.replicas), strict=True):
        replicas[0].grad = sum(parameter.grad for parameter in replicas) / config.num_parts
    torch.nn.utils.clip_grad_norm_(state.network.parameters(), 1.0)
    state.optimizer.step()
    state.average.update_parameters(state.network)
    state.step += 1
    return {name: sum(losses[name] for losses in found) / config.num_parts for name in found[0]}


def backward(state: TrainingState, part: int, views: Views, config: StudentConfig) -> dict[str, float]:
    """Light and augment one part of a step's views and leave its gradients in its replica."""
    rng = np.random.default_rng([config.seed, state.step, part])
    batch = relight(views.every_second() if state.step < config.coarse_steps else views, rng)
    generator = torch.Generator().manual_seed(int(rng.integers(2**63)))
    batch = augment(batch, generator)
    kept = [index for index, kind in enumerate(views.kinds) if kind in config.kept_kinds]
    if kept:
        batch.image[kept] = estrange(batch.image[kept], generator)
    network = state.replicas[part]
    network.train(state.first is None)
    network.zero_grad(set_to_none=True)
    losses = compute_losses(predict(network, batch, config), batch, *taught(batch, kept, state))
    total = losses["depth"] + config.gradient_weight * losses["gradient"] + config.uncertainty_weight * losses["uncertainty"]
    total.backward()
    return {name: float(value.detach()) for name, value in {**losses, "total": total}.items()}


def truth(batch: Batch) -> tuple[Float[Tensor, "b h w"], Float[Tensor, "b h w"]]:
    """The true log-distances, and NaN for the errors to expect: a network's own against them."""
    return batch.log_distance, torch.full_like(batch.log_distance, torch.nan)


@torch.no_grad()
def taught(batch: Batch, kept: list[int], state: TrainingState) -> tuple[Float[Tensor, "b h w"], Float[Tensor, "b h w"]]:
    """The log-distances that the network is to say, and the errors that it is to expect.

    They are the truth, but for the views in `kept` what the initial weights say and expect: the truth of those pictures would teach how
    far the bending of their tones misleads, which is no property of real ones.
    """
    target, expected = (layer.clone() for layer in truth(batch))
    if kept:
        held = Batch(**{f.name: getattr(batch, f.name)[kept] for f in fields(Batch)})
        target[kept], log_scale = predict(state.first, held, state.config)
        expected[kept] = log_scale.exp()
    return target, expected


def learning_rate(step: int, config: StudentConfig) -> float:
    """Linear warm-up, a plateau, and at the end a fall with the square root of its progress (Hagele et al. 2024).

    As long as the plateau lasts, nothing depends on `num_steps` yet.
    """
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    num_falling = config.decay_share * config.num_steps
    progress = (step - (config.num_steps - num_falling)) / max(num_falling, 1.0)
    return config.learning_rate * max(1 - math.sqrt(max(progress, 0.0)), 0.01)


def predict(network: torch.nn.Module, batch: Batch, config: StudentConfig) -> tuple[Float[Tensor, "b h w"], Float[Tensor, "b h w"]]:
    """Log-distance and the log of its Laplace scale."""
    seen = student_input(batch.image, batch.rays, batch.mask).contiguous(memory_format=torch.channels_last)
    with torch.autocast(torch.device(config.device).type, torch.bfloat16, enabled=config.bfloat16):
        return network(seen)


def compute_losses(
    said: tuple[Float[Tensor, "b h w"], Float[Tensor, "b h w"]],
    batch: Batch,
    target: Float[Tensor, "b h w"],
    expected: Float[Tensor, "b h w"],
) -> dict[str, torch.Tensor]:
    """Mean losses of what `predict` said over the pixels whose distance is known: of the depth to `target`, of its uncertainty by the
    `expected` error, which NaN leaves to be that against the truth."""
    log_distance, log_scale = said
    residual = log_residual(log_distance, target, batch.known)
    error = torch.where(expected.isnan(), log_residual(log_distance.detach(), batch.log_distance, batch.known), expected)
    num_known = batch.known.sum().clamp_min(1)
    gradients = [gradient_residual(residual, batch.known, step) for step in (1, 2, 4, 8)]
    return {
        "depth": residual.abs().sum() / num_known,
        "gradient": torch.stack(gradients).sum() / num_known / len(gradients),
        "uncertainty": (laplace_nll(error, log_scale) * batch.known).sum() / num_known,
    }


@torch.no_grad()
def validate(network: torch.nn.Module, batches: Shuffled, config: StudentConfig) -> dict[str, float]:
    """Losses and Abs Rel of the distance, one factor per view, over the validation shards."""
    network.eval()
    sums: dict[str, float] = {}
    for step in range(len(batches.places)):
        batch = relight(batches[step], np.random.default_rng([config.seed, step]))
        said = predict(network, batch, config)
        losses = compute_losses(said, batch, *truth(batch))
        residual = log_residual(said[0], batch.log_distance, batch.known)
        losses["abs_rel"] = ((residual.exp() - 1).abs() * batch.known).sum() / batch.known.sum().clamp_min(1)
        for name, value in losses.items():
            sums[name] = sums.get(name, 0.0) + float(value) / len(batches.places)
    return sums


def save_weights(state: TrainingState, path: Path) -> Path:
    """Write the running average, or a point `moved_share` of the way to it from the initial weights, and the recipe beside it.

    Its header says what it was trained on.
    """
    start = state.config.initial_weights
    before = model_info("student").seen(start) if start is not None else ()
    network = copy.deepcopy(state.average.module)
    if state.first is not None:
        with torch.no_grad():
            for learnt, given in zip(network.parameters(), state.first.parameters(), strict=True):
                learnt.copy_(torch.lerp(given, learnt, state.config.moved_share))
    save_halved(network, path, {"method": "student", "trained_on": list(dict.fromkeys(["phantom", *before]))})
    write_json(path.with_suffix(".json"), {"config": state.recipe, "moved_share": state.config.moved_share, "steps": state.step})
    return path
