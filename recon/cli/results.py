"""The verbs that look at what a run left: show, clean. And how its numbers are printed."""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from recon.io.atomic import read_json
from recon.pipeline import store
from recon.pipeline.lock import run_lock
from recon.pipeline.stage import SOURCE
from recon.report.tables import alignment_table, metric_of, with_interval
from recon.types import ReconError
from stages import PIPELINE

stdout = Console(highlight=False, markup=False, emoji=False, width=None if sys.stdout.isatty() else 200)
"""Plain text; wide where nobody looks, so that a table in a log is not folded at 80 columns."""


def newest_report(run: Path) -> Path:
    """Folder of the newest results. Raises ReconError when the run has none."""
    results = run / "results"
    if not (results / "report.json").is_file():
        raise ReconError(f"{run} holds no finished run (no results/report.json): make one with `recon run SOURCE --out {run}`")
    return results


def artifact(run: Path, stage: str, hint: str = "") -> Path:
    """The artifact of a stage that the newest results were made from; `hint` says how to get one where there is none."""
    run = run.resolve()
    for folder in store.reached_from(run, (run / "results").resolve()):
        if folder.parent.name == stage:
            if not store.is_complete(folder):
                raise ReconError(f"{folder} is gone or damaged: run `recon run` again, it makes only what is missing", exit_code=1)
            return folder
    raise ReconError(f"{run}/results was made without a stage {stage!r}{hint and ': '}{hint}", exit_code=1)


def check_is_run(run: Path) -> None:
    """Raises ReconError when the folder holds neither results nor anything a stage left."""
    if not store.artifacts(run, (SOURCE, *PIPELINE)):
        raise ReconError(f"{run} holds no run, not even an unfinished one: make one with `recon run SOURCE --out {run}`")


def unit_phrase(report: dict[str, Any]) -> str:
    """What lengths in the results mean."""
    if report["unit"] == "unitless":
        return "the scale is unknown, so lengths have no unit (--set scale.factor_mm=... gives one)"
    return f"lengths are in {report['unit']} (scale: {report['scale']['source']})"


def print_metrics(metrics: list[dict[str, Any]]) -> None:
    """Print numbers, a table a group: a column says how prediction and truth were aligned."""
    for group in dict.fromkeys(metric["group"] for metric in metrics):
        stdout.print(alignment_table([metric_of(metric) for metric in metrics if metric["group"] == group], group, with_interval))


def show(arguments: argparse.Namespace) -> int:
    """Print the report of a run."""
    report = read_json(newest_report(arguments.run) / "report.json")
    frames = report["frames"]
    stdout.print(", ".join(f"{name} {number}" for name, number in frames.items() if isinstance(number, int)), "frames")
    stdout.print(f"{unit_phrase(report)}; intrinsics: {report['inputs_used']['intrinsics']}")
    print_metrics(report["metrics"])
    table = Table("stage", header_style="")
    table.add_column("s", justify="right")
    for stage, seconds in report["seconds"].items():
        table.add_row(f"{stage} (resumed: its last attempt)" if stage in report.get("resumed", []) else stage, f"{seconds:.1f}")
    stdout.print(table)
    stdout.print(f"peak memory {report['peak_rss_mb']:.0f} MB")
    for reason in report.get("partial", []):
        stdout.print(f"partial: {reason}")
    return 0


def clean(arguments: argparse.Namespace) -> int:
    """List, and with --yes delete, artifacts that the newest results were not made from; without results that is all."""
    run = arguments.run
    check_is_run(run)
    if not (run / "results").exists():
        stdout.print("no results yet, so nothing here is used by any")
    with run_lock(run):
        used = store.reached_from(run.resolve(), (run / "results").resolve())
        unused = [path for path in store.artifacts(run.resolve(), (SOURCE, *PIPELINE)) if path not in used]
        for path in unused:
            stdout.print(f"{_megabytes(path):9.1f} MB  {path}", soft_wrap=True)
            if arguments.yes:
                shutil.rmtree(path)
    total = "nothing is unused" if not unused else "deleted" if arguments.yes else "delete with `recon clean RUN --yes`"
    stdout.print(total)
    return 0


def _megabytes(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6
