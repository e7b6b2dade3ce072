"""Training of networks: what `recon train` runs, by the method that its config file names."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple


class Training(NamedTuple):
    """One method of training."""

    config: type
    """A frozen dataclass of its settings."""
    run: Callable[[Any, Path], Path]
    """From settings and output folder to the weights."""


def trainings() -> dict[str, Training]:
    """All methods by name."""
    from recon.training.methods import METHODS
    from recon.training.metric import MetricConfig, train_metric
    from recon.training.selfsup import train_self_supervised
    from recon.training.student import StudentConfig, train_student

    found = {name: Training(method.config_type, partial(train_self_supervised, name)) for name, method in METHODS.items()}
    return {"student": Training(StudentConfig, train_student), **found, "endosynth": Training(MetricConfig, train_metric)}
