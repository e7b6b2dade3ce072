"""Which frames of a data set a published comparison trains and tests on, and what a model trained on one split has seen of another.

A split file (`configs/splits/*.toml`) states facts: names of recordings and ranges of frame numbers as the authors' lists give
them, and the known leakage between its parts. Recordings carry the names of the data set's own release, so that splits of one
data set can be compared; frame numbers are the authors' (some count from 1) and become indices into a recording here.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from recon.types import ReconError

SEEN_PARTS = ("train", "val")
"""What a model has met before it is tested: fitted to the one, chosen by the other."""

_TABLE_KEYS = {"title", "source", "dataset", "group", "leakage", "parts"}
_OPTIONAL_KEYS = {"first_frame", "notes"}


class Run(NamedTuple):
    """Every `step`th frame number from `first` to `last`, both included; `last` None = to the end of the recording."""

    first: int
    last: int | None
    step: int

    def holds(self, number: int) -> bool:
        return self.first <= number and (self.last is None or number <= self.last) and (number - self.first) % self.step == 0

    def numbers(self, last: int) -> range:
        """The frame numbers, up to `last` where the run has no end of its own."""
        return range(self.first, (last if self.last is None else self.last) + 1, self.step)


Frames = tuple[Run, ...] | None
"""Frame numbers of one recording; None = all of it."""


@dataclass(frozen=True)
class Split:
    """One published division of a data set."""

    name: str
    """Stem of its file."""
    title: str
    source: str
    """Repository (or paper) and path in it where the lists were read."""
    dataset: str
    """Key of `recon.data.DATASETS`."""
    first_frame: int
    """Number that the lists give to the first frame of a recording."""
    group: str
    """Pattern of that beginning of a recording's name which names what was recorded."""
    group_means: str
    """What recordings of one group share, e.g. the animal."""
    leakage: tuple[str, ...]
    """What is known to pass from training to test, one sentence each."""
    notes: tuple[str, ...]
    parts: dict[str, dict[str, Frames]]
    """Recordings of each part ("train", "val", "test", ...) with their frames."""

    def recording(self, part: str, folder: str) -> str | None:
        """The part's own name of the recording in `folder`, None when it is not in the part.

        Spellings agree: `test/dataset8/keyframe0` and `dataset_8_keyframe_0` are `dataset_8/keyframe_0`. Only what the end of
        the path says counts, whatever lies above it.
        """
        tokens = _tokens(folder)
        return next((name for name in self._part(part) if tokens[-len(_tokens(name)) :] == _tokens(name)), None)

    def frames(self, part: str, recording: str, num_frames: int) -> Int[np.ndarray, " n"]:
        """Indices from 0, ascending, of the part's frames in a recording of `num_frames` frames.

        Raises ReconError when the recording is not in the part, and when it is shorter than the split says.
        """
        runs = self._runs(part, recording)
        if runs is None:
            return np.arange(num_frames)
        last = self.first_frame + num_frames - 1
        wanted = [run.numbers(last) for run in runs]
        highest = max((numbers[-1] for numbers in wanted if numbers), default=last)
        if highest > last:
            raise ReconError(
                f"{recording}: split {self.name} asks for frame {highest} but the recording has frames {self.first_frame} to {last}; "
                "compare its length and its name with the data set's release (some loaders renumber recordings)"
            )
        return np.array(sorted(set().union(*wanted)), dtype=np.int64) - self.first_frame

    def seen_frames(self, folder: str, num_frames: int) -> Int[np.ndarray, " n"]:
        """Indices of the frames of the recording in `folder` that a model trained and chosen on this split has seen."""
        last = self.first_frame + num_frames - 1
        seen: set[int] = set()
        for part in SEEN_PARTS:
            recording = self.recording(part, folder) if part in self.parts else None
            if recording is not None:
                runs = self._runs(part, recording) or (Run(self.first_frame, None, 1),)
                seen.update(number for run in runs for number in run.numbers(last) if number <= last)
        return np.array(sorted(seen), dtype=np.int64) - self.first_frame

    def group_of(self, recording: str) -> str:
        """What was recorded, e.g. `dataset_8` for `dataset_8/keyframe_0`."""
        found = re.match(self.group, recording)
        if found is None:
            raise ReconError(f"split {self.name}: recording {recording!r} does not begin with its group ({self.group})")
        return found.group()

    def _part(self, part: str) -> dict[str, Frames]:
        if part not in self.parts:
            raise ReconError(f"split {self.name} has no part {part!r}; it has: {', '.join(self.parts)}")
        return self.parts[part]

    def _runs(self, part: str, recording: str) -> Frames:
        recordings = self._part(part)
        if recording not in recordings:
            raise ReconError(f"split {self.name}: {recording!r} is not in its {part} part; it has: {', '.join(recordings)}")
        return recordings[recording]


def read_split(path: Path) -> Split:
    """Read a split file.

    `parts` holds, per part, either a list of recordings used whole or a table from recording to frame numbers such as
    "2-16,19-194", "2-186:8" (every 8th) or "7-:8" (to the end). Raises ReconError naming the file and what is wrong in it.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ReconError(f"{path} cannot be read as a split: {error}") from error
    _check_keys(path, table)
    parts = {part: _recordings(path, part, value) for part, value in table["parts"].items()}
    split = Split(
        path.stem,
        table["title"],
        table["source"],
        table["dataset"],
        table.get("first_frame", 0),
        table["group"]["pattern"],
        table["group"]["means"],
        tuple(table["leakage"]),
        tuple(table.get("notes", ())),
        parts,
    )
    for recordings in parts.values():
        for recording, runs in recordings.items():
            split.group_of(recording)
            if any(run.first < split.first_frame for run in runs or ()):
                raise ReconError(f"{path}: {recording} names a frame before the first one, {split.first_frame}")
    return split


def overlap(train: Split, test: Split, part: str = "test") -> list[str]:
    """What a model trained and chosen on one split has seen of a part of another (or of the same) one: a sentence for each.

    First recordings, with the number of shared frames where both splits bound them, then groups (animals, organs) of which
    other recordings were seen. Empty when nothing is shared; splits of different data sets share nothing.
    """
    if train.dataset != test.dataset:
        return []
    tested = test._part(part)
    sentences = [sentence for sentence, _ in _same_recordings(train, test, part)]
    for group in dict.fromkeys(test.group_of(recording) for recording in tested):
        for name, recordings in _seen(train):
            others = [recording for recording in recordings if train.group_of(recording) == group and recording not in tested]
            if others:
                sentences.append(f"{group} ({test.group_means}): the {name} part of {train.name} has {', '.join(others)}")
    return sentences


def shared_frames(train: Split, test: Split, part: str = "test") -> list[str]:
    """The sentences of `overlap` on recordings of which the very same frames were seen: a score there would mean nothing."""
    return (
        [sentence for sentence, same_frames in _same_recordings(train, test, part) if same_frames] if train.dataset == test.dataset else []
    )


def _seen(train: Split) -> list[tuple[str, dict[str, Frames]]]:
    return [(name, train.parts[name]) for name in SEEN_PARTS if name in train.parts]


def _same_recordings(train: Split, test: Split, part: str) -> list[tuple[str, bool]]:
    """A sentence for every recording of the part that was seen, and whether the same frames of it were."""
    return [
        _shared_frames(train, test, part, recording, name)
        for recording in test._part(part)
        for name, recordings in _seen(train)
        if recording in recordings
    ]


def _shared_frames(train: Split, test: Split, part: str, recording: str, seen_part: str) -> tuple[str, bool]:
    ours, theirs = test.parts[part][recording], train.parts[seen_part][recording]
    where = f"is in the {seen_part} part of {train.name}"
    if ours is None or any(run.last is None for run in ours):
        return f"{recording}: {'all of it' if theirs is None else 'the same recording'} {where}", True
    numbers = {number - test.first_frame + train.first_frame for run in ours for number in run.numbers(run.last)}
    shared = len(numbers) if theirs is None else sum(any(run.holds(number) for run in theirs) for number in numbers)
    if not shared:
        return f"{recording}: the same recording, with other frames, {where}", False
    return f"{recording}: {shared} of its {len(numbers)} {part} frames are{where[2:]}", True


def _recordings(path: Path, part: str, value: Any) -> dict[str, Frames]:
    if isinstance(value, list) and value and all(isinstance(name, str) for name in value):
        if len(set(value)) < len(value):
            raise ReconError(f"{path}: part {part} names a recording twice")
        return dict.fromkeys(value)
    if isinstance(value, dict) and value and all(isinstance(text, str) for text in value.values()):
        return {recording: _parse_runs(path, recording, text) for recording, text in value.items()}
    raise ReconError(f"{path}: part {part} must be a list of recordings or a table from recording to frame ranges, found {value!r}")


def _parse_runs(path: Path, recording: str, text: str) -> tuple[Run, ...]:
    return tuple(_parse_run(path, recording, item.strip()) for item in text.split(","))


def _parse_run(path: Path, recording: str, item: str) -> Run:
    found = re.fullmatch(r"(\d{1,6})(-(\d{0,6}))?(:(\d{1,6}))?", item)
    if found is None:
        raise ReconError(f"{path}: {recording}: {item!r} is no frame range; write 12, 2-16, 2-186:8 or 7-:8")
    first = int(found[1])
    last = first if found[2] is None else int(found[3]) if found[3] else None
    step = int(found[5] or 1)
    if step < 1 or (last is not None and last < first):
        raise ReconError(f"{path}: {recording}: frame range {item!r} is empty")
    return Run(first, last, step)


def _check_keys(path: Path, table: dict[str, Any]) -> None:
    missing, unknown = _TABLE_KEYS - set(table), set(table) - _TABLE_KEYS - _OPTIONAL_KEYS
    if missing or unknown:
        what = f"lacks {', '.join(sorted(missing))}" if missing else f"has unknown {', '.join(sorted(unknown))}"
        raise ReconError(f"{path} is no split: it {what}; it must have {', '.join(sorted(_TABLE_KEYS))}")
    for key in ("title", "source", "dataset"):
        _expect(path, isinstance(table[key], str), f"{key} must be a string", table[key])
    for key in ("leakage", "notes"):
        value = table.get(key, [])
        _expect(path, isinstance(value, list) and all(isinstance(item, str) for item in value), f"{key} must be a list of strings", value)
    _expect(path, type(table.get("first_frame", 0)) is int, "first_frame must be an integer", table.get("first_frame"))
    _expect(path, isinstance(table["parts"], dict), "parts must be a table", table["parts"])
    group = table["group"]
    fits = isinstance(group, dict) and set(group) == {"pattern", "means"} and all(isinstance(value, str) for value in group.values())
    _expect(path, fits, "group must be a table of two strings, pattern and means", group)
    try:
        re.compile(group["pattern"])
    except re.error as error:
        raise ReconError(f"{path}: the pattern {group['pattern']!r} of group is no regular expression: {error}") from error


def _expect(path: Path, holds: bool, what: str, found: Any) -> None:
    if not holds:
        raise ReconError(f"{path}: {what}, found {found!r}")


def _tokens(name: str) -> Sequence[str | int]:
    """`dataset_8/keyframe_0` as ("dataset", 8, "keyframe", 0); C3VD's first release adds a suffix that says nothing here."""
    plain = name.lower().removesuffix("/").removesuffix("_under_review")
    return [int(token) if token.isdecimal() else token for token in re.findall(r"[a-z]+|[0-9]+", plain)]
