"""Lay out which stages would run and which are done, then run what is missing."""

from __future__ import annotations

import errno
import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from recon.pipeline import machine, store
from recon.pipeline.config import Settings
from recon.pipeline.source import source_folder
from recon.pipeline.stage import RUN, SOURCE, Stage, keyed_values
from recon.types import ReconError

RESULTS_STAGE = "report"
"""The stage that `RUN/results` points at."""
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
ALMOST_NOTHING_BYTES = 1 << 20


@dataclass(frozen=True)
class Step:
    """One stage of one plan."""

    name: str
    stage: Stage
    config: Any
    recipe: dict[str, Any]
    key: str
    folder: Path
    inputs: dict[str, Path]

    @property
    def is_done(self) -> bool:
        """Whether the artifact is there and whole, now."""
        return store.is_complete(self.folder)


def lay_out(run: Path, stages: Mapping[str, Stage], configs: Mapping[str, Any], source_key: str, settings: Settings) -> list[Step]:
    """Know every key and folder before anything runs. `stages` is in running order, the last one is wanted.

    Left out is what neither it nor anything that it reads, through however many stages, reads under these configs.
    One thread promises the same bytes, so what several threads made is not taken for it, nor the other way round.
    """
    keys = {SOURCE: source_key}
    folders = {SOURCE: source_folder(run, source_key), RUN: run}
    steps = []
    for name in _needed(stages, configs):
        stage, config = stages[name], configs[name]
        reads = stage.all_reads(config)
        recipe = {
            "stage": name,
            "version": stage.version,
            "config": keyed_values(config),
            "checksums": stage.checksums(config) if stage.checksums else {},
            "reads": {read: keys[read] for read in reads if read != RUN},
            "one_thread": settings.num_threads == 1,
        }
        keys[name] = store.recipe_key(recipe)
        folders[name] = run / name / keys[name]
        inputs = {read: folders[read] for read in reads}
        steps.append(Step(name, stage, config, recipe, keys[name], folders[name], inputs))
    return steps


def _needed(stages: Mapping[str, Stage], configs: Mapping[str, Any]) -> list[str]:
    """The last stage and all that it hangs on, in running order."""
    needed: list[str] = []
    wanted = {next(reversed(stages))}
    for name in reversed(stages):
        if name in wanted:
            needed.append(name)
            wanted.update(stages[name].all_reads(configs[name]))
    return needed[::-1]


def execute(run: Path, steps: Sequence[Step], settings: Settings, say: Callable[[str], None]) -> None:
    """Run what is not done, in order, and let `RUN/results` point at the newest report. The caller holds the lock."""
    for step in steps:
        if step.is_done:
            say(f"{step.name:<12} reused")
        else:
            with _disk_errors(step):
                seconds = _run_step(step, settings)
            say(f"{step.name:<12} done in {seconds:.1f} s")
        if step.name == RESULTS_STAGE:
            store.point_results(run, step.folder)


def _run_step(step: Step, settings: Settings) -> float:
    work = store.working_folder(step.folder)
    is_resumed = any(work.iterdir())
    machine.seed_generators(settings.seed)
    start = time.perf_counter()
    step.stage.run(step.inputs, work, step.config)
    seconds = time.perf_counter() - start
    cost = {"seconds": round(seconds, 3), "resumed": is_resumed, "peak_rss_mb": machine.peak_rss_mb(), "versions": machine.versions()}
    manifest = {**step.recipe, "key": step.key, "config": asdict(step.config), "settings": asdict(settings), **cost}
    store.finish(step.folder, json.loads(json.dumps(manifest, default=str)), step.stage.writes)
    return seconds


@contextmanager
def _disk_errors(step: Step) -> Iterator[None]:
    """Tell a full disk from our own mistakes; libraries in C++ report it in their own words, so look at the disk too."""
    try:
        yield
    except ReconError:
        raise
    except Exception as error:
        told = isinstance(error, OSError) and error.errno in DISK_FULL
        if not told and shutil.disk_usage(step.folder.parent).free > ALMOST_NOTHING_BYTES:
            raise
        path = getattr(error, "filename", None) or step.folder.parent
        message = f"{path}: no space left to write in stage {step.name!r}: free some, then run the same command, it continues"
        raise ReconError(message, exit_code=1) from error
