"""From the errors of frames to the metrics of a sequence: means with intervals, spread and drift of the scale, and notes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from recon.eval.bootstrap import block_length, has_interval, intervals, no_interval_note
from recon.eval.depth_errors import HIGHER_IS_BETTER, LENGTHS, unit_of
from recon.eval.protocols import Protocol, sequence_number
from recon.eval.unit_guess import unit_notes
from recon.types import Alignment, Metric, Unit

Row = dict[str, float | int | str]
"""One frame: `index`, `coverage`, `unreadable` (pixels), `scale` where errors could be computed, and "alignment.measure"."""

MIN_DRIFT_FRAMES = 3


@dataclass(frozen=True)
class Scored:
    """What was scored, and how."""

    protocol: Protocol
    alignments: tuple[Alignment, ...]
    unit: Unit
    is_metric: bool
    noise_floor: float | None
    is_unrelated: bool
    sequence: str
    seed: int


def frame_means(rows: list[Row], scored: Scored) -> list[Metric]:
    """Return the mean of every column over the frames that have it; frames are resampled once for all of them."""
    measures = scored.protocol.measures
    columns: list[tuple[Alignment, str, str]] = [("none", "coverage", "coverage")]
    columns += [(alignment, measure, f"{alignment}.{measure}") for alignment in scored.alignments for measure in measures]
    groups: dict[tuple[int, ...], list[tuple[Alignment, str, str]]] = {}
    for column in columns:
        chosen = tuple(i for i, row in enumerate(rows) if column[2] in row)
        if chosen:
            groups.setdefault(chosen, []).append(column)
    found = {}
    for chosen, group in groups.items():
        values = np.array([[rows[i][key] for i in chosen] for _, _, key in group], dtype=np.float64)
        block = block_length(len(chosen), scored.is_unrelated)
        bounds = intervals(values.T, block, scored.seed) if has_interval(len(chosen), block) else None
        for k, (alignment, measure, key) in enumerate(group):
            bound = None if bounds is None else (float(bounds[k, 0]), float(bounds[k, 1]))
            found[key] = _metric(measure, float(values[k].mean()), alignment, bound, scored)
    return [found[key] for _, _, key in columns if key in found]


def _metric(measure: str, value: float, alignment: Alignment, bound: tuple[float, float] | None, scored: Scored) -> Metric:
    floor = scored.noise_floor if measure in LENGTHS and scored.unit == "mm" else None
    unit, better = unit_of(measure, scored.unit), measure not in HIGHER_IS_BETTER
    return Metric("depth", measure, value, unit, alignment, better, scored.protocol.metric_name, bound, floor)


def log_scale_drift(rows: list[Row], is_unrelated: bool) -> float | None:
    """Return by how much the logarithm of the frames' scale changes along the sequence, on a least-squares line.

    0.1 is about 10 %. None for unrelated frames and for fewer than `MIN_DRIFT_FRAMES`.
    """
    scales = np.array([row["scale"] for row in rows if "scale" in row], dtype=np.float64)
    if is_unrelated or len(scales) < MIN_DRIFT_FRAMES:
        return None
    indices = np.array([row["index"] for row in rows if "scale" in row], dtype=np.float64)
    time = indices - indices.mean()
    return float(np.sum(time * np.log(scales)) / np.sum(time**2) * np.ptp(indices)) if np.ptp(indices) > 0 else None


def scale_metrics(rows: list[Row], scored: Scored) -> list[Metric]:
    """Return how much the scale differs between frames (standard deviation over mean) and how far it runs away."""
    scales = np.array([row["scale"] for row in rows if "scale" in row], dtype=np.float64)
    metrics = []
    if "scale_spread" in scored.protocol.measures and len(scales) > 0:
        metrics.append(Metric("depth", "scale_spread", float(np.std(scales) / np.mean(scales)), "1"))
    drift = log_scale_drift(rows, scored.is_unrelated)
    if "scale_drift" in scored.protocol.measures and drift is not None:
        metrics.append(Metric("depth", "scale_drift", abs(drift), "1"))
    return metrics


def notes_on(rows: list[Row], num_inverted: int, scored: Scored) -> list[str]:
    """Return what a reader must know before quoting the numbers."""
    protocol, notes = scored.protocol, []
    if not rows:
        return ["depth: not computable, no frame has a true depth that counts"]
    scales = [row["scale"] for row in rows if "scale" in row]
    if len(scales) == 0:
        notes.append("depth: errors are not computable, no frame has enough predicted pixels that can be aligned with true ones")
    elif len(scales) < len(rows):
        notes.append(
            f"depth: {len(rows) - len(scales)} of {len(rows)} frames are too little predicted to have errors; coverage counts them"
        )
    unreadable = [row["unreadable"] for row in rows if row["unreadable"]]
    if unreadable:
        notes.append(
            f"depth: {sum(unreadable)} predicted pixels in {len(unreadable)} frames are negative, NaN or infinite: taken as unknown"
        )
    if num_inverted:
        notes.append(f"depth: a negative scale fits {num_inverted} of {len(rows)} frames best: is the prediction depth or disparity?")
    crop = protocol.crop
    if crop is not None and crop.first_sequence is not None and sequence_number(scored.sequence) is None:
        notes.append(f"depth: {protocol.name} cuts sequences by their number and the name {scored.sequence!r} holds none: not cut")
    if scored.is_metric and scored.unit == "mm" and scales:
        notes += unit_notes("depth", float(np.median(np.array(scales, dtype=np.float64))))
    if protocol.metric_name is None and not has_interval(len(rows), block_length(len(rows), scored.is_unrelated)):
        notes.append(f"depth: {no_interval_note(len(rows), 'frames')}")  # once, and not again for every protocol
    return notes
