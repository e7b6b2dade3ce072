"""The verbs that work on a recording: run, plan, demo, adapt."""

from __future__ import annotations

import argparse
import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from recon.cli.results import newest_report, print_metrics, stdout, unit_phrase
from recon.cli.threads import configure_libraries
from recon.data import is_phantom, open_sequence
from recon.io.atomic import read_json
from recon.pipeline.config import Settings, read_table, settings_from, stage_config
from recon.pipeline.lock import run_lock
from recon.pipeline.runner import RESULTS_STAGE, Step, execute, lay_out
from recon.pipeline.source import Checksums, Source, source_folder, source_key, write_source
from recon.pipeline.stage import Stage
from recon.types import ReconError
from stages import PIPELINE, load

HEADLINES = {
    *("abs_rel", "rmse", "delta_1.25", "coverage", "ate_rmse", "ate_percent_of_path", "rpe_translation", "accuracy_mean"),
    *("accuracy_mean_percent_of_depth", "completeness_mean", "chamfer_l1", "f_2mm", "hd95", "scale_error"),
}
"""Metrics that the end of a run shows; `recon show` has all."""


@dataclass(frozen=True)
class _Job:
    """A recording and how to treat it, checked, before the run folder is touched."""

    run: Path
    source: Source
    num_frames: int
    generator_version: int | str | None
    settings: Settings
    stages: dict[str, Stage]
    configs: dict[str, Any]

    def steps(self, checksums: Checksums) -> tuple[str, list[Step]]:
        key = source_key(self.source, checksums, self.generator_version)
        return key, lay_out(self.run, self.stages, self.configs, key, self.settings)


def run(arguments: argparse.Namespace) -> int:
    """Make what is missing and say where it is. Returns 3 when the result is partial."""
    return _execute(_job_from(arguments))


def demo(arguments: argparse.Namespace) -> int:
    """Reconstruct the default phantom."""
    from recon.data.phantom import DEMO_SPEC

    source = argparse.Namespace(source=DEMO_SPEC, dataset=None, camera=None, masks=None, until=None)
    return _execute(_job_from(argparse.Namespace(**{**vars(arguments), **vars(source)})))


def adapt(arguments: argparse.Namespace) -> int:
    """Run as far as the depth network adapted to the recording; `run` in the same folder goes on from there.

    Returns 3 when the network stays as it was.
    """
    name = re.sub(r"[^\w.-]+", "_", Path(arguments.source).absolute().stem)
    words = {"out": arguments.out or Path("runs") / name, "overrides": [*arguments.overrides, "depth.adapt=true"], "until": "depth"}
    folder = _made(_job_from(argparse.Namespace(**{**vars(arguments), **words})))[-1].folder
    found = read_json(folder / "adaptation.json")
    given = {"--dataset": arguments.dataset, "--camera": arguments.camera, "--masks": arguments.masks, "--config": arguments.config}
    repeated = [word for option, value in given.items() if value is not None for word in (option, str(value))]
    again = shlex.join(["recon", "run", arguments.source, "--out", str(words["out"]), *repeated, "--set", *words["overrides"]])
    for line in (*_adaptation_lines(found, folder / "adapted.safetensors"), f"goes on with {again}"):
        stdout.print(line, soft_wrap=True)
    return 0 if found["adapted"] else 3


def _adaptation_lines(found: dict[str, Any], weights: Path) -> list[str]:
    """What adaptation.json says, for the terminal."""
    if not found["adapted"]:
        return [f"the network stays as it was: {found['reason']}"]
    counts = f"{found['num_learnt']} frames learnt from, {found['num_held_out']} held out; step {found['step']} of {found['num_steps']}"
    names = ("photometric", "points")
    errors = [f"held-out {name} error {found['start'][name]:.4f} before, {found['best'][name]:.4f} after" for name in names]
    return [counts, *errors, f"weights {weights}"]


def plan(arguments: argparse.Namespace) -> int:
    """Print what `run` would do."""
    job = _job_from(arguments)
    _, steps = job.steps(Checksums(job.run))
    table = Table("stage", "", "folder", header_style="")
    for title in ("about s", "about MB"):
        table.add_column(title, justify="right")
    seconds, megabytes = 0.0, 0.0
    for step in steps:
        is_done = step.is_done
        cost = (0.0, 0.0) if is_done else _estimate(step, job.num_frames)
        seconds, megabytes = seconds + cost[0], megabytes + cost[1]
        table.add_row(step.name, "reuse" if is_done else "run", str(step.folder), f"{cost[0]:.0f}", f"{cost[1]:.1f}")
    stdout.print(table)
    stdout.print(f"{job.num_frames} frames; about {seconds:.0f} s on two cores and {megabytes:.1f} MB of disk")
    return 0


def _estimate(step: Step, num_frames: int) -> tuple[float, float]:
    once = step.stage.seconds_once(step.config) if step.stage.seconds_once else 0.0
    return once + step.stage.seconds_per_frame * num_frames, step.stage.bytes_per_frame * num_frames / 1e6


def _job_from(arguments: argparse.Namespace) -> _Job:
    table = read_table(arguments.config, arguments.overrides)
    settings = settings_from(table, PIPELINE)
    names = _names_until(arguments.until)
    sequence = open_sequence(arguments.source, arguments.dataset, arguments.camera, arguments.masks)
    stages = {name: load(name) for name in PIPELINE}
    configs = {name: stage_config(stage.config, name, table, settings) for name, stage in stages.items()}
    configure_libraries(settings)
    return _Job(
        run=arguments.out,
        source=Source(
            path=arguments.source if is_phantom(arguments.source) else _absolute(arguments.source),
            dataset=arguments.dataset,
            camera_file=arguments.camera and _absolute(arguments.camera),
            masks_dir=arguments.masks and _absolute(arguments.masks),
        ),
        num_frames=len(sequence.frames),
        generator_version=_generator_version(arguments.source),
        settings=settings,
        stages={name: stages[name] for name in names},
        configs=configs,
    )


def _made(job: _Job) -> list[Step]:
    """The steps of a job, all done."""
    checksums = Checksums(job.run)
    key, steps = job.steps(checksums)
    with run_lock(job.run):
        checksums.save()
        write_source(source_folder(job.run, key), job.source)
        execute(job.run, steps, job.settings, say=lambda line: print(line, file=sys.stderr, flush=True))
    return steps


def _execute(job: _Job) -> int:
    steps = _made(job)
    if steps[-1].name != RESULTS_STAGE:
        stdout.print(f"stopped after {steps[-1].name}: {steps[-1].folder}", soft_wrap=True)
        return 0
    return _summary(job.run)


def _summary(run: Path) -> int:
    results = newest_report(run)
    report = read_json(results / "report.json")
    print_metrics([metric for metric in report["metrics"] if metric["name"] in HEADLINES])
    frames = report["frames"]
    stdout.print(f"{frames['posed']} of {frames['total']} frames posed; {unit_phrase(report)}")
    stdout.print(f"mesh    {results / 'mesh.ply'}", soft_wrap=True)
    stdout.print(f"report  {results / 'report.html'}", soft_wrap=True)
    reasons = report.get("partial", [])
    for reason in reasons:
        print(f"partial: {reason}", file=sys.stderr)
    return 3 if reasons else 0


def _names_until(last: str | None) -> Sequence[str]:
    if last is None:
        return PIPELINE
    if last not in PIPELINE:
        raise ReconError(f"--until {last!r} is no stage; stages: {', '.join(PIPELINE)}")
    return PIPELINE[: PIPELINE.index(last) + 1]


def _generator_version(source: str) -> int | str | None:
    if not is_phantom(source):
        return None
    from recon.data.phantom import GENERATOR_VERSION

    return GENERATOR_VERSION


def _absolute(path: str | Path) -> str:
    return str(Path(path).absolute())
