"""Depth networks on the frames of recordings, each in a process of its own, as predictions to score and with what they cost.

A fresh process a network keeps the figures honest: its peak memory holds no other network's weights, and no warm cache of one
helps the next. Predictions stay on the disk and are used again as long as network, weights, recording, device and threads are
the same.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

import recon
from recon.io.atomic import read_json, write_json
from recon.io.depth import read_depth
from recon.models import UNSTATED, ModelInfo, model_info
from recon.scoring.network_run import LOG
from recon.scoring.prediction import Prediction
from recon.scoring.score import Inputs
from recon.types import FrameSequence, Metric, ReconError

MM_PER_METRE = 1000.0
NEARNESS_MM = 1e6
"""Disparity is this over the depth that a network gave, up to scale: large enough that no protocol's clamp of 1 / disparity bites."""
MADE_BY, TASK = "made_by.json", "task.json"


@dataclass(frozen=True)
class Entrant:
    """One network of a comparison. Raises ReconError, by `entrant`, when it is not known or its weights are of no use."""

    label: str
    """As tables show it."""
    info: ModelInfo
    model: str
    """Name in the registry, or path of an exported network."""
    weights: Path | None
    """As given; None for those of the package, and where there are none."""
    sha256: str
    """Of the weights; empty where there are none."""

    @property
    def seen(self) -> tuple[str, ...] | None:
        """What trained it, None where nobody said."""
        seen = self.info.seen(self.weights)
        return None if seen == UNSTATED else seen


@dataclass(frozen=True)
class Recording:
    """Frames of one recording that are to be predicted."""

    path: str
    dataset: str | None
    """Key of the layout to read it as; None: recognised."""
    sequence: FrameSequence
    indices: tuple[int, ...]
    """Frames to predict, ascending."""


@dataclass(frozen=True)
class Machine:
    """Where networks run."""

    device: str
    threads: int


@dataclass(frozen=True)
class Cost:
    """What a network needs; numbers of one process that did nothing else."""

    parameters: int | None
    trainable: int | None
    """How many of them its authors train."""
    ms_per_frame: float | None
    """Median over frames, from decoded picture to depth; loading and the very first call are left out."""
    peak_memory_mb: float | None
    """Of the whole process: interpreter, libraries, weights and activations, 10^6 bytes."""
    gpu_memory_mb: float | None
    num_timed: int
    device: str
    threads: int

    def metrics(self) -> list[Metric]:
        """The same as figures of a table, of the group "speed"."""
        millions = None if self.parameters is None else self.parameters / 1e6
        share = 100 * self.trainable / self.parameters if self.parameters and self.trainable is not None else None
        found = (
            ("parameters", millions, "M", None),
            ("trainable_share", share, "%", None),
            ("ms_per_frame", self.ms_per_frame, "ms", True),
            ("peak_memory", self.peak_memory_mb, "MB", True),
            ("peak_gpu_memory", self.gpu_memory_mb, "MB", True),
        )
        return [Metric("speed", name, value, unit, "none", is_error) for name, value, unit, is_error in found if value is not None]


def entrant(text: str) -> Entrant:
    """From `name` or `name=WEIGHTS`. Raises ReconError saying what was found, what was expected and what to do."""
    name, _, given = text.partition("=")
    if not name or (not given and "=" in text):
        raise ReconError(f"method {text!r}: expected a name of `recon models`, or NAME=WEIGHTS; write one of these")
    weights = Path(given) if given else None
    try:
        info = model_info(name)
        if weights is None and info.packaged is None and info.published is not None:
            raise ReconError(f"it needs weights and none were given: write {name}=FILE; {info.published}")
        return Entrant(text, info, name, weights, info.checksum(weights))
    except ReconError as error:
        raise ReconError(f"method {text!r}: {error}", exit_code=error.exit_code) from error


def with_short_labels(entrants: Sequence[Entrant]) -> list[Entrant]:
    """Label each by its name where that tells them apart. Raises ReconError when one is given twice."""
    whole = [one.label for one in entrants]
    twice = next((label for label in whole if whole.count(label) > 1), None)
    if twice is not None:
        raise ReconError(f"method {twice!r} is given twice; name it once")
    names = [Path(one.model).name for one in entrants]
    return [replace(one, label=name) if names.count(name) == 1 else one for one, name in zip(entrants, names, strict=True)]


def frames_to_predict(sequence: FrameSequence, chosen: Sequence[int]) -> tuple[int, ...]:
    """The frames that scoring looks at: the chosen ones, and where temporal agreement can be had, those that follow them."""
    has_motion = sequence.trajectory_gt is not None and not sequence.is_unrelated
    following = [index + 1 for index in chosen if index + 1 < len(sequence.frames)] if has_motion else []
    return tuple(sorted({*chosen, *following}))


def predict(
    entrants: Sequence[Entrant], recordings: Sequence[Recording], machine: Machine, out: Path, say: Callable[[str], None]
) -> dict[str, Cost]:
    """Predict what is not there yet, one network after the other; returns the costs by label.

    Raises ReconError when a network cannot be loaded or its process ends (exit code 1), and for files in `out` that are not ours.
    """
    costs = {}
    for one in entrants:
        missing = [(recording, _missing(one, recording, machine, out)) for recording in recordings]
        num_missing, num_all = sum(len(indices) for _, indices in missing), sum(len(recording.indices) for recording in recordings)
        say(f"{one.label}: {num_missing} of {num_all} frames to predict" if num_missing else f"{one.label}: all {num_all} frames are there")
        if num_missing:
            _in_child(one, missing, machine, out)
        costs[one.label] = _cost(one, recordings, machine, out)
    return costs


def network_prediction(one: Entrant, recording: Recording, out: Path) -> Prediction:
    """What a network said of a recording. Metric networks claim millimetres; the others have no unit."""
    folder = _folder(one, recording, out)
    is_metric, is_disparity = one.info.output == "metric", one.info.output == "disparity"

    def depth(index: int) -> np.ndarray | None:
        file = folder / f"{index:06d}.tiff"
        if not file.exists():
            return None
        z = read_depth(file)
        if is_disparity:
            return np.divide(NEARNESS_MM, z, out=np.zeros_like(z), where=z > 0)
        return z * np.float32(MM_PER_METRE) if is_metric else z

    lens = recording.sequence.camera is not None or recording.sequence.frame_camera is not None
    inputs = Inputs(False, False, False, "dataset" if lens else "estimated", one.seen)
    return Prediction(one.label, inputs, "mm" if is_metric else "unitless", depth=depth, is_disparity=is_disparity)


def _missing(one: Entrant, recording: Recording, machine: Machine, out: Path) -> list[int]:
    """Frames without a prediction; makes the recording's folder anew where what lies in it was made otherwise."""
    folder = _folder(one, recording, out)
    made_by = {
        "version": recon.__version__,
        "model": one.model,
        "code": one.info.code,
        "arithmetic": one.info.arithmetic(machine.device),
        "weights_sha256": one.sha256,
        "recording": recording.path,
        "dataset": recording.sequence.dataset,
        "num_frames": len(recording.sequence.frames),
        **asdict(machine),
    }
    if folder.exists():
        if not (folder / MADE_BY).exists():
            raise ReconError(f"{folder} holds files that this command did not write: choose another --out, or move that folder away")
        if read_json(folder / MADE_BY) == made_by:
            done = {row["index"] for row in _log(folder) if row["seconds"] is None or (folder / f"{row['index']:06d}.tiff").exists()}
            return [index for index in recording.indices if index not in done]
        shutil.rmtree(folder)
    write_json(folder / MADE_BY, made_by)
    return list(recording.indices)


def _in_child(one: Entrant, missing: Sequence[tuple[Recording, list[int]]], machine: Machine, out: Path) -> None:
    task = {
        "model": one.model,
        "weights": None if one.weights is None else str(one.weights),
        **asdict(machine),
        "recordings": [
            {"path": recording.path, "dataset": recording.dataset, "missing": indices, "folder": str(_folder(one, recording, out))}
            for recording, indices in missing
            if indices
        ],
    }
    place = _method_folder(one, out) / TASK
    write_json(place, task)
    # The child must find this very package, wherever the parent has it from.
    paths = [str(Path(recon.__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {"OMP_WAIT_POLICY": "PASSIVE", **os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, "-m", "recon.scoring.network_run", str(place)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode == 130:
        raise KeyboardInterrupt
    if done.returncode:
        raise _failure(one, done)


def _failure(one: Entrant, done: subprocess.CompletedProcess[str]) -> Exception:
    for line in reversed(done.stdout.splitlines()):
        if line.startswith('{"error"'):
            said = json.loads(line)
            return ReconError(f"method {one.label!r}: {said['error']}", exit_code=said["exit_code"])
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        hint = "memory may be short; what it predicted is kept, and the same command goes on from there"
        return ReconError(f"method {one.label!r}: its process was ended by {name}: {hint}", exit_code=1)
    return RuntimeError(f"method {one.label}: its process failed\n{done.stderr}")


def _cost(one: Entrant, recordings: Sequence[Recording], machine: Machine, out: Path) -> Cost:
    rows = [row for recording in recordings for row in _log(_folder(one, recording, out))]
    seconds = [row["seconds"] for row in rows if row["seconds"] is not None]
    memory, gpu = ([row[key] for row in rows if row[key] is not None] for key in ("peak_memory_mb", "gpu_memory_mb"))
    return Cost(
        one.info.parameters,
        one.info.trainable,
        1000 * float(np.median(seconds)) if seconds else None,
        max(memory, default=None),
        max(gpu, default=None),
        len(seconds),
        **asdict(machine),
    )


def _log(folder: Path) -> list[dict[str, Any]]:
    """Lines of whole frames; a killed process may have left half a line at the end."""
    path = folder / LOG
    rows: dict[int, dict[str, Any]] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            row = json.loads(line)
            rows[row["index"]] = row
        except (ValueError, KeyError, TypeError):
            continue
    return list(rows.values())


def _method_folder(one: Entrant, out: Path) -> Path:
    return out / "predictions" / _safe(one.label, f"{one.model}={one.weights}")


def _folder(one: Entrant, recording: Recording, out: Path) -> Path:
    return _method_folder(one, out) / _safe(recording.sequence.name, recording.path)


def _safe(name: str, unique: str) -> str:
    """A name for a folder: readable, and no other's."""
    return f"{re.sub(r'[^A-Za-z0-9._-]+', '_', name)[-60:]}-{hashlib.sha256(unique.encode()).hexdigest()[:8]}"
