"""GT of `recon eval`: one sequence of a data set, a folder of such sequences, or bare files; whole or a part of a split."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from recon.data import DATASETS, detect, is_phantom, open_sequence
from recon.data.bare_truth import depth_truth, surface_truth, trajectory_truth
from recon.data.collection import find_sequences
from recon.data.splits import Split, overlap, read_split, shared_frames
from recon.io.cameras import read_camera
from recon.types import FrameSequence, ReconError

WITHOUT_TRUTH = ("folder", "video")


@dataclass(frozen=True)
class Truth:
    """One recording to score against."""

    name: str
    """Where predictions for it lie below PRED; empty when GT is this one recording."""
    sequence: FrameSequence
    indices: tuple[int, ...] | None
    """Frames of the split's part; None for all."""
    is_bare: bool
    """True when it came as a file and not as a data set, so that all of a surface counts unless a lens says what was seen."""
    path: str = ""
    """Of the recording, absolute unless it names a phantom; empty for bare files."""


def open_truths(kind: str, arguments: argparse.Namespace) -> Iterator[Truth]:
    """Yield every recording that is to be scored. Raises ReconError when there is none."""
    split = None if arguments.split is None else read_split(arguments.split)
    if split is not None:
        _refuse_seen_recordings(split, arguments)
    recordings = recordings_of(arguments.truth, arguments.dataset)
    if recordings is None:
        if split is not None:
            raise ReconError(f"{arguments.truth} is no sequence of a known data set, so --split cannot say which part of it counts")
        yield Truth("", _bare(kind, arguments), None, is_bare=True)
        return
    num_found = 0
    for name, path in recordings:
        wanted = None if split is None else split.recording(arguments.part, str(Path(path).absolute()))
        if split is not None and wanted is None:
            continue
        sequence = open_sequence(path, arguments.dataset)
        indices = None
        if split is not None and wanted is not None:
            indices = tuple(int(index) for index in split.frames(arguments.part, wanted, len(sequence.frames)))
        _refuse_seen_frames(sequence, Path(path), indices, arguments)
        num_found += 1
        place = path if is_phantom(path) else str(Path(path).absolute())
        yield Truth(name, replace(sequence, name=name or sequence.name), indices, is_bare=False, path=str(place))
    if not num_found:
        raise ReconError(f"{arguments.truth} holds no recording of the {arguments.part} part of {arguments.split}")


def split_notes(arguments: argparse.Namespace) -> list[str]:
    """What a reader must know of the split: its title, leakage, and what the method has seen of it."""
    if arguments.split is None:
        return []
    split = read_split(arguments.split)
    notes = [f"{split.title}, part {arguments.part} ({split.source})", *split.leakage, *split.notes]
    for train in _training_splits(arguments):
        notes += overlap(train, split, arguments.part)
    return notes


def recordings_of(source: str, dataset: str | None) -> list[tuple[str, str | Path]] | None:
    """Names and paths, the name empty when the source itself is the recording; None when it is a bare file or folder."""
    if is_phantom(source):
        return [("", source)]
    found = detect(source)
    if dataset is not None or found not in WITHOUT_TRUTH:
        if dataset is not None and dataset not in DATASETS:
            raise ReconError(f"data set {dataset!r} is not known; known: {', '.join(DATASETS)}")
        if dataset is None or DATASETS[dataset].matches(Path(source)):
            return [("", source)]
    below = find_sequences(source, dataset) if Path(source).is_dir() else []
    if not below and dataset is not None:
        raise ReconError(f"{source} is no recording of {dataset} and holds none")
    return list(below) or None


def _bare(kind: str, arguments: argparse.Namespace) -> FrameSequence:
    path = Path(arguments.truth)
    if kind == "depth":
        return depth_truth(path, arguments.gt_unit, arguments.gt_scale)
    if kind == "trajectory":
        return trajectory_truth(path, arguments.gt_unit, arguments.gt_scale, arguments.format)
    camera = None if arguments.camera is None else read_camera(arguments.camera)
    return surface_truth(path, arguments.gt_unit, arguments.gt_scale, arguments.gt_trajectory, camera)


def _training_splits(arguments: argparse.Namespace) -> list[Split]:
    return [read_split(Path(name)) for name in arguments.trained_on or () if name.endswith(".toml")]


def _refuse_seen_frames(sequence: FrameSequence, path: Path, indices: tuple[int, ...] | None, arguments: argparse.Namespace) -> None:
    """The same without a split of GT: the very frames that trained the method."""
    scored = set(range(len(sequence.frames)) if indices is None else indices)
    for train in _training_splits(arguments):
        seen = train.seen_frames(str(path.absolute()), len(sequence.frames)) if train.dataset == sequence.dataset else ()
        shared = scored & {int(index) for index in seen}
        if shared:
            raise ReconError(
                f"a method trained on {train.name} must not be scored on {path}: it has seen {len(shared)} of the {len(scored)} frames; "
                "give --split to score the others"
            )


def _refuse_seen_recordings(split: Split, arguments: argparse.Namespace) -> None:
    """A recording that the method was trained on says nothing about it: refused, not footnoted."""
    for train in _training_splits(arguments):
        seen = shared_frames(train, split, arguments.part)
        if seen:
            raise ReconError(f"a method trained on {train.name} must not be scored on the {arguments.part} part of {split.name}: {seen[0]}")
