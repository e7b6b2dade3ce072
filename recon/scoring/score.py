"""What a comparison leaves: numbers, what they rest on, and which truth was known to the method beforehand."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from recon.eval.bootstrap import macro_mean
from recon.eval.protocols import PROTOCOLS
from recon.types import Metric

SCHEMA = 1
"""Of the JSON form."""
SINGLE_RECORDINGS = ("video", "folder")
"""Keys of `recon.data.DATASETS` that say how a recording is stored: two of a kind have nothing else in common."""


def training_data(dataset: str, name: str) -> str:
    """A recording as `trained_on` names it: its data set, or `dataset/name` where it is of none."""
    return f"{dataset}/{name}" if dataset in SINGLE_RECORDINGS else dataset


@dataclass(frozen=True)
class Inputs:
    """Which truth the method had before it was scored. None: nobody said."""

    gt_depth: bool | None = None
    gt_pose: bool | None = None
    gt_scale: bool | None = None
    intrinsics: str | None = None
    """"given", "dataset" or "estimated"; "several" in a mean of such."""
    trained_on: tuple[str, ...] | None = None
    """Data sets (`dataset/split` for splits) whose images or truth trained the networks in it; see `training_data`."""
    adapted_on_this_recording: bool | None = None
    """Whether a network in it was fine-tuned on the frames it is scored on, without their truth."""

    def has_seen(self, dataset: str, name: str) -> bool:
        """Whether any training data is of the data set of this recording, or the recording itself where it is of none."""
        seen = self.trained_on or ()
        if dataset in SINGLE_RECORDINGS:
            return training_data(dataset, name) in seen
        return dataset in {entry.split("/")[0] for entry in seen}

    def sentences(self, dataset: str, name: str) -> list[str]:
        """Say it in words; the data set and the name are those of the recording scored on."""
        used = [name for name, value in (("depth", self.gt_depth), ("poses", self.gt_pose), ("scale", self.gt_scale)) if value]
        unstated = [name for name, value in (("depth", self.gt_depth), ("poses", self.gt_pose), ("scale", self.gt_scale)) if value is None]
        lines = [f"true {', '.join(used)} entered the prediction: its errors are no errors of a reconstruction"] if used else []
        if unstated:
            lines.append(f"not stated whether true {', '.join(unstated)} entered the prediction")
        elif not used:
            lines.append("no truth entered the prediction")
        lines.append(f"intrinsics: {self.intrinsics or 'not stated'}")
        if self.trained_on is None:
            lines.append("trained on: not stated")
        else:
            lines.append(f"trained on: {', '.join(self.trained_on) or 'nothing'}")
            if self.has_seen(dataset, name):
                lines.append(f"the method was trained on {training_data(dataset, name)}: these are no zero-shot numbers")
        if self.adapted_on_this_recording:
            lines.append("a network in it was adapted on this recording, by what its frames say of each other and without truth")
        return lines


@dataclass(frozen=True)
class Score:
    """One method on one sequence."""

    method: str
    sequence: str
    dataset: str
    """Key of `recon.data.DATASETS`, or "files" when the truth came as bare files."""
    metrics: list[Metric]
    inputs: Inputs
    truth_used: dict[str, bool]
    """Which truth the comparison opened: depth, trajectory, mesh."""
    frames: list[dict[str, Any]] = field(default_factory=list)
    """Values of single frames, one row each."""
    rungs: list[dict[str, Any]] = field(default_factory=list)
    """Every alignment of the surface with its transform."""
    curves: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    """Precision, recall and F over the threshold, by alignment."""
    notes: list[str] = field(default_factory=list)

    def value(self, name: str, alignment: str, protocol: str | None = None) -> float | None:
        """The number of that name, None when it was not computed."""
        found = (m.value for m in self.metrics if (m.name, m.alignment, m.protocol) == (name, alignment, protocol))
        return next(found, None)

    def as_json(self) -> dict[str, Any]:
        """What is written into a JSON file."""
        return {
            "schema": SCHEMA,
            **asdict(self),
            "inputs": {**asdict(self.inputs), "text": self.inputs.sentences(self.dataset, self.sequence)},
        }


def mean_score(scores: Sequence[Score], seed: int = 0) -> Score:
    """One method over several sequences, with bootstrap intervals over sequences.

    Each sequence counts the same, except under published protocols whose authors average over all frames at once: there errors
    are weighted by the frames that have them, and coverage by all frames with truth, so that what was left out is not forgotten.
    """
    metrics, notes = [], []
    for kind in dict.fromkeys(_averaged_like(metric) for score in scores for metric in score.metrics):
        alike = [[metric for metric in score.metrics if _averaged_like(metric) == kind] for score in scores]
        found, remarks = macro_mean(alike, seed, _weights(scores, kind))
        metrics += found
        notes += remarks
    notes = list(dict.fromkeys(notes))
    used = {name: any(score.truth_used.get(name, False) for score in scores) for name in scores[0].truth_used}
    datasets = {score.dataset for score in scores}
    dataset = datasets.pop() if len(datasets) == 1 else "several"
    return Score(scores[0].method, f"mean of {len(scores)} sequences", dataset, metrics, _of_all(scores), used, notes=notes)


def _of_all(scores: Sequence[Score]) -> Inputs:
    """What holds for a mean: truth, training data and adaptation that any of its scores rests on."""
    inputs = [score.inputs for score in scores]
    lenses = {one.intrinsics for one in inputs}
    trained = [one.trained_on for one in inputs]
    return Inputs(
        *(_any(getattr(one, name) for one in inputs) for name in ("gt_depth", "gt_pose", "gt_scale")),
        intrinsics=lenses.pop() if len(lenses) == 1 else "several",
        trained_on=None if None in trained else tuple(dict.fromkeys(name for names in trained for name in names)),
        adapted_on_this_recording=_any(one.adapted_on_this_recording for one in inputs),
    )


def _any(values: Iterable[bool | None]) -> bool | None:
    """True when one is, else None when one is, since nobody said."""
    found = set(values)
    return True if True in found else None if None in found else False


def _averaged_like(metric: Metric) -> tuple[str | None, str]:
    """Protocol, and the value that a frame's row must have for the frame to count."""
    rows = f"{metric.protocol}/noc/" if metric.name.endswith("_noc") else f"{metric.protocol}/"
    return metric.protocol, rows + ("coverage" if metric.name.startswith("coverage") else "scale")


def _weights(scores: Sequence[Score], kind: tuple[str | None, str]) -> list[int] | None:
    protocol, column = kind
    if protocol not in PROTOCOLS or PROTOCOLS[protocol].averaging != "frames":
        return None
    return [sum(column in row for row in score.frames) for score in scores]
