"""A toy pipeline as a program, for tests that need another process: `toy_pipeline.py RUN [wait]`."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path

from recon.io.atomic import write_text
from recon.pipeline import Stage, unkeyed
from recon.pipeline.config import Settings
from recon.pipeline.lock import run_lock
from recon.pipeline.runner import execute, lay_out


@dataclass(frozen=True)
class Config:
    wait_s: float = unkeyed(0.0)


def write_numbers(inputs, out, config):
    for i in range(6):
        path = out / f"{i}.txt"
        if not path.exists():
            write_text(path, str(i))
            time.sleep(config.wait_s if i == 2 else 0)


def write_total(inputs, out, config):
    write_text(out / "total.txt", str(sum(int(path.read_text()) for path in inputs["numbers"].glob("*.txt"))))


if __name__ == "__main__":
    run = Path(sys.argv[1])
    stages = {"numbers": Stage(Config, write_numbers, writes=("5.txt",)), "report": Stage(Config, write_total, reads=("numbers",))}
    configs = {name: Config(wait_s=600 if "wait" in sys.argv else 0) for name in stages}
    with run_lock(run):
        execute(run, lay_out(run, stages, configs, "source-key", Settings()), Settings(), lambda line: None)
