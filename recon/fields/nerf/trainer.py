"""Nerfstudio's trainer with checkpoints that survive a kill, and losses that are watched.

Nerfstudio writes a checkpoint in place and trains on when a loss is no number. Here a checkpoint is whole or not there, holds only
finite values, and a step's random numbers depend on the seed and the step alone, so that a continued training makes what an unbroken
one would have made.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nerfstudio.engine.trainer import Trainer, TrainerConfig

from recon.io.atomic import atomic_path
from recon.types import ReconError

_MAX_SEED = 2**31


@dataclass
class EndoTrainerConfig(TrainerConfig):
    """Nerfstudio's settings of a training."""

    _target: type = field(default_factory=lambda: EndoTrainer)


class EndoTrainer(Trainer):
    """`after_step`, where set, is called with the number of steps done and the terms of the loss."""

    config: EndoTrainerConfig
    after_step: Callable[[int, dict[str, float]], None] | None = None

    def train_iteration(self, step: int) -> tuple[torch.Tensor, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        torch.manual_seed((self.config.machine.seed * 1_000_003 + step) % _MAX_SEED)
        loss, terms, metrics = super().train_iteration(step)
        values = {name: float(term) for name, term in terms.items()}
        self._check(step, values)
        if self.after_step is not None:
            self.after_step(step + 1, values)
        return loss, terms, metrics

    def save_checkpoint(self, step: int) -> None:
        """Under nerfstudio's name and keys, with what the sampler counts. Refuses values that are not finite."""
        state = self.pipeline.state_dict()
        broken = [name for name, value in state.items() if value.is_floating_point() and not bool(torch.isfinite(value).all())]
        if broken:
            raise self._failure(step, f"the weights {broken[0]} are not finite")
        path = self.checkpoint_dir / f"step-{step:09d}.ckpt"
        content = {
            "step": step,
            "pipeline": state,
            "optimizers": {name: _plain(optimizer.state_dict()) for name, optimizer in self.optimizers.optimizers.items()},
            "schedulers": {name: _plain(scheduler.state_dict()) for name, scheduler in self.optimizers.schedulers.items()},
            "scalers": self.grad_scaler.state_dict(),
            "sampler": [self._sampler._step, self._sampler._steps_since_update],
        }
        with atomic_path(path) as part:
            torch.save(content, part)
        for old in self.checkpoint_dir.glob("step-*.ckpt"):
            if old != path:
                old.unlink()

    def _load_checkpoint(self) -> None:
        """Nerfstudio's own state and the sampler's. Torch reads nothing but tensors and plain values from it."""
        path = latest_checkpoint(self.config.load_dir) if self.config.load_dir is not None else None
        try:
            super()._load_checkpoint()
            if path is not None:
                self._sampler._step, self._sampler._steps_since_update = torch.load(path, map_location="cpu", weights_only=True)["sampler"]
        except Exception as error:  # a damaged pickle leads torch's reader into any of a dozen
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise ReconError(
                f"{path} cannot be read as a checkpoint of this method ({reason}): delete it and train anew", exit_code=1
            ) from error

    @property
    def _sampler(self) -> Any:
        """Nerfstudio's, which counts the steps since the proposals learnt last and does not save that."""
        return self.pipeline.model.proposal_sampler

    def _check(self, step: int, terms: dict[str, float]) -> None:
        broken = {name: value for name, value in terms.items() if not math.isfinite(value)}
        if broken:
            name, value = next(iter(broken.items()))
            raise self._failure(step, f"the term {name} of the loss became {value}")

    def _failure(self, step: int, what: str) -> ReconError:
        last = latest_checkpoint(self.checkpoint_dir)
        kept = f"the last good checkpoint is {last}" if last else "it came before the first checkpoint"
        return ReconError(f"the NeRF's training stopped at step {step}: {what}; {kept}; try a smaller learning rate", exit_code=1)


def _plain(value: Any) -> Any:
    """Without numpy's numbers, which nerfstudio's schedules leave in the rates: they would need a loader that runs code."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_plain(item) for item in value)
    return value.item() if isinstance(value, np.generic) else value


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint of a folder, None where there is none."""
    return max(folder.glob("step-*.ckpt"), default=None)


def steps_done(path: Path) -> int:
    """How many steps the training had made that wrote a checkpoint of this name."""
    return int(path.stem.removeprefix("step-")) + 1


def optimizer_groups(learning_rate: float, num_steps: int) -> dict[str, Any]:
    """Adam for each group of parameters, decaying to a tenth over the training."""
    from nerfstudio.engine.optimizers import AdamOptimizerConfig
    from nerfstudio.engine.schedulers import ExponentialDecaySchedulerConfig

    rates = {"fields": 1.0, "proposal_networks": 1.0, "deformation": 0.1, "depth_fit": 0.1}
    return {
        name: {
            "optimizer": AdamOptimizerConfig(lr=share * learning_rate, eps=1e-15),
            "scheduler": ExponentialDecaySchedulerConfig(lr_final=0.1 * share * learning_rate, max_steps=num_steps),
        }
        for name, share in rates.items()
    }
