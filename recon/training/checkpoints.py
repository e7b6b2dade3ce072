"""What lets a training go on after an interruption: checkpoints of one recipe, and logs without a doubled line."""

from __future__ import annotations

import csv
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch.utils.tensorboard import SummaryWriter

from recon.io.atomic import atomic_path, write_text
from recon.models.weights import TRAINED, sha256
from recon.types import ReconError

UNKEYED = (
    "num_threads", "num_workers", "device", "checkpoint_minutes", "validate_every", "patience", "moved_share",
)  # fmt: skip
"""Settings that may change between the parts of one training."""
CHECKSUM = "_sha256"
LOGS = ("losses", "validation")


def save_checkpoint(path: Path, made_by: dict[str, Any], step: int, parts: dict[str, Any]) -> None:
    """Write state dicts with the `recipe`, the number of steps done and the random state; the old file stays until the new one is whole."""
    random = {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []}
    with atomic_path(path) as part:
        torch.save({"config": made_by, "step": step, "random": random, **parts}, part)


def load_checkpoint(path: Path, wanted: dict[str, Any]) -> dict[str, Any] | None:
    """Read what `save_checkpoint` wrote and restore the random state; None when there is no file.

    Raises ReconError for a damaged file, for one that no training wrote, and for one of another recipe than the wanted one.
    """
    if not path.exists():
        return None
    remedy = "delete it to start anew, or choose another --out"
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle leads torch's reader into any of a dozen
        # Of a strange pickle torch says at length how to run it; only what the disk says is of use.
        reason = error if isinstance(error, OSError) else "it is damaged, or no training wrote it"
        raise ReconError(f"{path} cannot be read as a checkpoint ({reason}): {remedy}") from error
    if not isinstance(checkpoint, dict) or not {"config", "step", "random"} <= checkpoint.keys():
        raise ReconError(f"{path} is no checkpoint of a training (it holds no recipe): {remedy}")
    old = checkpoint["config"]
    changed = sorted(name for name in {*old, *wanted} if old.get(name) != wanted.get(name))
    if changed and all(name.endswith(CHECKSUM) for name in changed):
        files = ", ".join(name.removesuffix(CHECKSUM) for name in changed)
        raise ReconError(f"{path} began with another file of {files}: give it again or choose another --out")
    if changed:
        raise ReconError(f"{path} was trained with another {', '.join(changed)}: go on with that recipe or choose another --out")
    torch.set_rng_state(checkpoint["random"]["cpu"])
    if torch.cuda.is_available() and len(checkpoint["random"]["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(checkpoint["random"]["cuda"])
    return checkpoint


def recipe(config: Any, checksums: Mapping[str, str] = MappingProxyType({})) -> dict[str, Any]:
    """What decides a training's outcome, in plain values; `version` is the config's VERSION, raised where the code trains otherwise.

    Files that settings name are told by their SHA-256 as well, for another one of the same name makes another training: so it is to
    be asked for once, when they are read. `checksums` are those of files that settings lead to without a path.
    """
    values = {"version": getattr(config, "VERSION", 1), **asdict(config)}
    paths = {name: path / TRAINED if path.is_dir() else path for name, path in values.items() if isinstance(path, Path)}
    files = {name: sha256(path) for name, path in paths.items() if path.is_file()}
    values |= {name + CHECKSUM: found for name, found in {**files, **checksums}.items()}
    return {
        name: str(value) if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value
        for name, value in values.items()
        if name not in UNKEYED
    }


class Log:
    """CSV files and TensorBoard of one training.

    What an interrupted run logged after its last checkpoint is dropped: everything when it came to none, for then it starts anew.
    """

    def __init__(self, folder: Path, num_done: int) -> None:
        self.folder = folder
        self.writer = SummaryWriter(str(folder / "tensorboard"), purge_step=num_done + 1 if num_done else 0)
        for path in (folder / f"{name}.csv" for name in LOGS):
            if not path.exists():
                continue
            lines = path.read_text().splitlines(keepends=True)
            whole = [line for line in lines if line.endswith("\n")]
            kept = [line for line in whole if not line[0].isdigit() or int(line.partition(",")[0]) <= num_done]
            write_text(path, "".join(kept) if num_done else "")

    def add(self, name: str, step: int, values: dict[str, float]) -> None:
        """Append a row to `name`.csv, of LOGS, and to TensorBoard; `step` counts the steps done."""
        path = self.folder / f"{name}.csv"
        is_new = not path.exists() or not path.stat().st_size
        with path.open("a", newline="") as file:
            row = csv.writer(file, lineterminator="\n")
            if is_new:
                row.writerow(["step", *values])
            row.writerow([step, *(f"{value:.6g}" for value in values.values())])
        for key, value in values.items():
            self.writer.add_scalar(f"{name}/{key}", value, step)

    def add_picture(self, name: str, step: int, picture: Any) -> None:
        """Show an RGB uint8 picture (h, w, 3) in TensorBoard."""
        self.writer.add_image(name, picture, step, dataformats="HWC")

    def close(self) -> None:
        self.writer.close()


class Interval:
    """Says when the next checkpoint is due."""

    def __init__(self, minutes: float) -> None:
        self.seconds = 60.0 * minutes
        self.last = time.monotonic()

    def is_over(self) -> bool:
        """True once every so many minutes."""
        if time.monotonic() - self.last < self.seconds:
            return False
        self.last = time.monotonic()
        return True
