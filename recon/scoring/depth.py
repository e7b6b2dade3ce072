"""Depth maps against a recording's true depth: which frames, on which grid, under which protocols."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from recon.data import DATASETS
from recon.eval.depth import DepthPair, DepthScore, score_depth
from recon.eval.protocols import OWN, PROTOCOLS
from recon.eval.temporal import TemporalScore
from recon.scoring.ppsnet import PPSNET, undistorted
from recon.scoring.prediction import Prediction, chosen_frames
from recon.scoring.score import Score
from recon.scoring.temporal import ENDODAV, endodav_agreement, temporal_agreement
from recon.types import DepthMap, FrameSequence, Metric, ReconError

WITH_SPLIT = ("scared-af", "scared-video", "c3vd-ppsnet")
"""Protocols whose published figures are of a split of the same name."""
STEREO_PROTOCOL = "servct-official"
"""Its authors report all of the reference, and what both views see, apart."""


@dataclass(frozen=True)
class DepthOptions:
    """What is scored and how."""

    protocols: tuple[str, ...] = ()
    """Published protocols beside the project's own definition and those of the data set, keys of `PROTOCOLS`."""
    indices: tuple[int, ...] | None = None
    """Frames to score; None for all."""
    max_frames: int | None = None
    """Of these, at most so many, evenly spread."""
    split: str | None = None
    """Name of the published split that chose the frames."""
    seed: int = 0
    num_workers: int = 2


def compare_depth(sequence: FrameSequence, prediction: Prediction, options: DepthOptions) -> Score:
    """Score every true depth map; a frame without a prediction counts as empty, not as absent.

    Raises ReconError for a protocol that is not known and for a recording or a prediction without depth.
    """
    if sequence.depth_gt is None:
        raise ReconError(f"{sequence.name} has no true depth to score against")
    if prediction.depth is None:
        raise ReconError(f"{prediction.name} holds no depth")
    unknown = [name for name in options.protocols if name not in PROTOCOLS]
    if unknown:
        raise ReconError(f"protocol {unknown[0]!r} is not known; known: {', '.join(PROTOCOLS)}")
    comparison = _Comparison(sequence, prediction, options, chosen_frames(sequence, options.indices, options.max_frames))
    own = comparison.add(OWN)
    if own is not None:
        comparison.add_temporal(temporal_agreement(sequence, prediction, comparison.indices, own, options.num_workers, options.seed))
    for name in options.protocols:
        comparison.add(name)
    for name in _belonging(sequence):
        if name not in options.protocols:
            comparison.add(name, is_optional=True)
    return comparison.score()


@dataclass
class _Comparison:
    """The numbers of one sequence, gathered protocol by protocol."""

    sequence: FrameSequence
    prediction: Prediction
    options: DepthOptions
    indices: list[int]
    metrics: list[Metric] = field(default_factory=list)
    rows: dict[int, dict[str, Any]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def add(self, name: str, is_optional: bool = False) -> DepthScore | None:
        """Score under a protocol. One that was not asked for and does not fit leaves a note instead of an error."""
        try:
            scored = self._scored(name, self._pair if name != PPSNET else undistorted(self.sequence.camera, self._pair))
        except ReconError as error:
            if not is_optional:
                raise
            self.notes.append(f"{name}: not computable, because {error}")
            return None
        self.metrics += scored.metrics
        self.notes += [note if name == OWN else f"{name}: {note}" for note in scored.notes]
        home = PROTOCOLS[name].dataset
        if home not in (None, self.sequence.dataset):
            self.notes.append(f"{name}: its arithmetic on data it was not made for; its published figures are of {home}")
        if name == PPSNET:
            self.notes.append(f"{name}: true and predicted depth are undistorted to its authors' pinhole by nearest pixel")
        if name in WITH_SPLIT and self.options.split != name:
            self.notes.append(f"{name}: its arithmetic on all frames given; published figures are those of configs/splits/{name}.toml")
        self._keep_rows(scored, "" if name == OWN else f"{name}/")
        if name == STEREO_PROTOCOL and self._has_stereo_truth():
            # The toolkit's "noc": only what both views see, where its "occ" is all of the reference.
            in_both = self._scored(name, self._pair_in_both_views)
            self.metrics += [replace(m, name=f"{m.name}_noc") for m in in_both.metrics]
            self._keep_rows(in_both, f"{name}/noc/")
        if name == ENDODAV:
            self.add_temporal(
                endodav_agreement(self.sequence, self._pair, self.indices, scored, self.options.num_workers, self.options.seed)
            )
        return scored

    def _keep_rows(self, scored: DepthScore, prefix: str) -> None:
        for row in scored.frames:
            values = {key if key == "index" else prefix + key: value for key, value in row.items()}
            self.rows.setdefault(row["index"], {"name": self.sequence.frames[int(row["index"])].name}).update(values)

    def add_temporal(self, found: TemporalScore | None) -> None:
        if found is not None:
            self.metrics += found.metrics
            self.notes += found.notes

    def score(self) -> Score:
        used = {"depth": bool(self.rows), "trajectory": any(m.name == "tae" for m in self.metrics), "mesh": False}
        return Score(
            self.prediction.name,
            self.sequence.name,
            self.sequence.dataset,
            self.metrics,
            self.prediction.inputs,
            used,
            frames=[self.rows[index] for index in sorted(self.rows)],
            notes=list(dict.fromkeys([*self.prediction.notes, *self.notes])),
        )

    def _scored(self, name: str, pair_of: Callable[[int], DepthPair | None]) -> DepthScore:
        return score_depth(
            self.indices,
            pair_of,
            PROTOCOLS[name],
            unit=self.sequence.unit,
            is_metric=self.prediction.unit == self.sequence.unit == "mm",
            noise_floor=self.sequence.noise_floor_mm,
            is_unrelated=self.sequence.is_unrelated,
            sequence=self.sequence.name,
            num_workers=self.options.num_workers,
            seed=self.options.seed,
        )

    def _pair(self, index: int) -> DepthPair | None:
        truth = self._truth(index)
        return None if truth is None else self._paired(index, truth, truth.valid)

    def _pair_in_both_views(self, index: int) -> DepthPair | None:
        truth = self._truth(index)
        if truth is None or truth.in_both_views is None:
            return None
        return self._paired(index, truth, truth.valid & truth.in_both_views)

    def _truth(self, index: int) -> DepthMap | None:
        return self.sequence.depth_gt(index) if self.sequence.depth_gt is not None else None

    def _paired(self, index: int, truth: DepthMap, valid: np.ndarray) -> DepthPair:
        gt = np.where(valid, truth.depth, 0).astype(np.float32)
        pred = None if self.prediction.depth is None else self.prediction.depth(index)
        return DepthPair(np.zeros_like(gt) if pred is None else pred, gt, self.prediction.is_disparity)

    def _has_stereo_truth(self) -> bool:
        truths = (self._truth(index) for index in self.indices)
        return any(truth is not None and truth.in_both_views is not None for truth in truths)


def _belonging(sequence: FrameSequence) -> tuple[str, ...]:
    """Protocols that nobody asked for and that readers of this data set look for; where one does not fit, a note says so."""
    return DATASETS[sequence.dataset].protocols if sequence.dataset in DATASETS else ()
