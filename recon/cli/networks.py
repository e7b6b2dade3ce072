"""The verbs about networks: models, train."""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from rich.table import Table

from recon.cli.results import stdout
from recon.pipeline.config import build_config, read_table
from recon.pipeline.lock import run_lock
from recon.types import ReconError

FIELDS = ("name", "parameters", "trainable", "licence", "weights", "output", "trained_on")


def models(arguments: argparse.Namespace) -> int:
    """List every registered network."""
    from recon.models import registry

    rows = [{field: getattr(model, field) for field in FIELDS} for model in registry().values()]
    if arguments.json:
        print(json.dumps(rows, indent=1))
        return 0
    table = Table(*(field for field in FIELDS if field != "weights"), header_style="")
    for row in rows:
        table.add_row(*(_words(value) for field, value in row.items() if field != "weights"))
    stdout.print(table)
    for row in rows:
        stdout.print(f"weights of {row['name']}: {row['weights']}", soft_wrap=True)
    return 0


def _words(value: Any) -> str:
    """A cell of the table."""
    if isinstance(value, tuple):
        return ", ".join(value) or "nothing"
    return f"{value:,}" if isinstance(value, int) else "not stated" if value is None else value


def train(arguments: argparse.Namespace) -> int:
    """Train a network as its config file says; the same command continues an interrupted training."""
    from recon.models import torch_device
    from recon.training import trainings

    table = read_table(arguments.config, arguments.overrides)
    name, known = table.pop("method", "student"), trainings()
    if not isinstance(name, str) or name not in known:
        raise ReconError(f"{arguments.config}: there is no method {name!r}; it is one of: {', '.join(known)}")
    config = build_config(known[name].config, table, str(arguments.config))
    _check_weights(config)
    config = replace(config, device=torch_device(config.device))
    out = _made(arguments.out or Path("runs") / arguments.config.stem)
    with run_lock(out):
        weights = known[name].run(config, out)
    stdout.print(f"weights {weights}", soft_wrap=True)
    return 0


def _check_weights(config: Any) -> None:
    """Raises ReconError naming the setting whose file is not there or is no file of weights."""
    from recon.models.weights import check_kind

    for name in (field.name for field in fields(config) if field.name.endswith("_weights")):
        path = getattr(config, name)
        if path is None:
            continue
        if not path.is_file():
            found = "is a folder" if path.is_dir() else "does not exist"
            raise ReconError(f"{name} {path} {found}: give a file of weights or leave it out")
        try:
            check_kind(path)
        except ReconError as error:
            raise ReconError(f"{name}: {error}") from error


def _made(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ReconError(f"--out {folder} cannot be made ({error.strerror}): choose a folder that can be written") from error
    if not os.access(folder, os.W_OK):
        raise ReconError(f"--out {folder} cannot be written: choose another folder")
    return folder
