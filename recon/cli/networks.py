"""The verbs about networks: models, train."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from rich.table import Table

from recon.cli.results import stdout
from recon.pipeline.config import build_config, read_table
from recon.types import ReconError

FIELDS = ("name", "parameters", "trainable", "licence", "weights", "output", "trained_on")


def models(arguments: argparse.Namespace) -> int:
    """List every registered network."""
    from recon.models import registry

    rows = [{field: getattr(model, field) for field in FIELDS} for model in registry().values()]
    if arguments.json:
        print(json.dumps(rows, indent=1))
        return 0
    table = Table(*FIELDS, header_style="")
    for row in rows:
        table.add_row(*(str(value) for value in row.values()))
    stdout.print(table)
    return 0


def train(arguments: argparse.Namespace) -> int:
    """Train a network as its config file says; the same command continues an interrupted training."""
    from recon.training import trainings

    table = read_table(arguments.config, arguments.overrides)
    name, known = table.pop("method", "student"), trainings()
    if name not in known:
        raise ReconError(f"{arguments.config}: there is no method {name!r}; it is one of: {', '.join(known)}")
    config = build_config(known[name].config, table, str(arguments.config))
    weights = known[name].run(config, arguments.out or Path("runs") / arguments.config.stem)
    stdout.print(f"weights {weights}", soft_wrap=True)
    return 0
