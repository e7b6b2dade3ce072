"""Depth maps against truth, frame by frame, under the alignments of a protocol side by side.

Every metric is the mean over frames of the frame's own value, so a frame counts the same however much of it is known. All
pixels are used. What cannot be computed is left out, and a note says why.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from jaxtyping import Float

from recon.eval.depth_errors import depth_errors, penalised_errors, ppsnet_errors
from recon.eval.depth_fit import Fit, least_median_squares, least_squares, median_of_ratios, ratio_of_medians
from recon.eval.depth_frames import DepthPair, Pixels, compared_pixels, in_range, on_truth_grid
from recon.eval.depth_summary import Row, Scored, frame_means, log_scale_drift, notes_on, scale_metrics
from recon.eval.medians import StreamedMedian
from recon.eval.protocols import IN_MM, FitName, Protocol
from recon.parallel import in_order
from recon.types import Alignment, Metric, ReconError, Unit

PairOf = Callable[[int], DepthPair | None]
Value = TypeVar("Value")


@dataclass(frozen=True)
class DepthScore:
    """What a protocol says of one sequence."""

    metrics: list[Metric]
    frames: list[Row]
    """Of each frame with truth: `index`, `coverage`, `unreadable` (predicted pixels that are negative, NaN or infinite), `scale`
    where errors could be computed, and these under the names "alignment.measure"."""
    notes: list[str]
    fits: dict[str, float]
    """Of the whole sequence: `scale_sequence`; `sequence_scale` and `sequence_shift`; `log_scale_drift` with its sign."""

    @property
    def num_frames(self) -> int:
        """How many frames have errors."""
        return sum("scale" in row for row in self.frames)


def score_depth(
    indices: Sequence[int],
    pair_of: PairOf,
    protocol: Protocol,
    *,
    unit: Unit,
    is_metric: bool,
    noise_floor: float | None = None,
    is_unrelated: bool = False,
    sequence: str = "",
    num_workers: int = 2,
    seed: int = 0,
) -> DepthScore:
    """Score the frames of one sequence. One frame per worker is held in memory, and maps are asked for up to three times.

    Args:
        indices: of the frames, in the order of time.
        pair_of: from frame index to its maps, None where there is no truth; a missing prediction is a map of zeros. Called from
            several threads.
        protocol: one of `recon.eval.protocols.PROTOCOLS`.
        unit: of the truth.
        is_metric: whether the prediction is in the truth's millimetres; without it nothing is compared unscaled.
        noise_floor: of the truth, mm.
        is_unrelated: whether frames do not follow one another.
        sequence: its name, for protocols that cut some sequences.
        num_workers: threads.
        seed: of the bootstrap.

    Raises ReconError when a prediction does not fit its truth.
    """
    aligned_by = {alignment: name for alignment, name in protocol.fits if is_metric or name != "none"}
    reason = _not_computable(protocol, unit, aligned_by)
    if reason is not None:
        return DepthScore([], [], [f"depth: {protocol.name} is not computable, {reason}"], {})
    reader = _Reader(list(indices), pair_of, protocol, sequence, num_workers)
    fits = _sequence_fits(reader, set(aligned_by.values()))
    found = [frame for frame in reader.each(lambda index, pixels: _score_frame(index, pixels, protocol, aligned_by, fits, unit))]
    rows = [row for row, _ in found]
    scored = Scored(protocol, tuple(aligned_by), unit, is_metric, noise_floor, is_unrelated, sequence, seed)
    drift = log_scale_drift(rows, is_unrelated)
    return DepthScore(
        frame_means(rows, scored) + scale_metrics(rows, scored),
        rows,
        notes_on(rows, sum(is_inverted for _, is_inverted in found), scored),
        fits if drift is None else {**fits, "log_scale_drift": drift},
    )


def aligned_depth(pair: DepthPair, protocol: Protocol, alignment: Alignment, fits: dict[str, float]) -> Float[np.ndarray, "h w"]:
    """Return predicted depth on the truth's grid as it was compared, 0 where it is unknown or the true depth does not count.

    Args:
        pair: of the frame.
        protocol: that was scored.
        alignment: one of the protocol's.
        fits: of the sequence's `DepthScore`.

    Raises ReconError for another alignment, for a protocol that does not compare on the image's grid, and without a fit.
    """
    names = dict(protocol.fits)
    if alignment not in names or protocol.resize == "square":
        raise ReconError(f"protocol {protocol.name} has no {alignment} depth on the image's grid; it aligns by {', '.join(names)}")
    depth, gt = on_truth_grid(pair, protocol, "frame"), pair.gt.astype(np.float32, copy=False)
    both = in_range(gt, protocol) & (depth > 0)
    if not both.any():
        return np.zeros_like(depth)
    fit = _fit(names[alignment], Pixels(depth[both], gt[both], gt[:0, 0], int(both.sum()), pair.is_disparity, 0), protocol, fits)
    if fit is None:
        raise ReconError(f"protocol {protocol.name}: {alignment} cannot be fitted; score the sequence first and give its fits")
    return np.where(both, fit(np.where(both, depth, np.float32(1))), np.float32(0))


@dataclass(frozen=True)
class _Reader:
    """The compared pixels of the frames, read anew in every pass."""

    indices: list[int]
    pair_of: PairOf
    protocol: Protocol
    sequence: str
    num_workers: int

    def each(self, function: Callable[[int, Pixels], Value]) -> Iterator[Value]:
        """Yield the function's value for each frame with truth, in order."""
        for found in in_order(lambda index: self._of_frame(index, function), self.indices, self.num_workers):
            yield from found

    def _of_frame(self, index: int, function: Callable[[int, Pixels], Value]) -> list[Value]:
        pair = self.pair_of(index)
        pixels = None if pair is None else compared_pixels(pair, self.protocol, self.sequence, f"frame {index}")
        return [] if pixels is None else [function(index, pixels)]


def _not_computable(protocol: Protocol, unit: Unit, aligned_by: dict[Alignment, FitName]) -> str | None:
    if not aligned_by:
        return "because it scales nothing and the prediction has no known unit"
    if protocol.is_in_mm and unit != "mm":
        return "because it counts millimetres and the truth has no known unit"
    return None


def _is_enough(pixels: Pixels, protocol: Protocol) -> bool:
    return len(pixels.pred) >= protocol.min_pixels and pixels.coverage >= protocol.min_share


def _sequence_fits(reader: _Reader, names: set[FitName]) -> dict[str, float]:
    """Fit what holds for the whole sequence; empty when there is nothing to fit it to."""
    if "sequence_median_of_ratios" in names:
        scales = list(reader.each(lambda _, pixels: [median_of_ratios(pixels)] if _is_enough(pixels, reader.protocol) else []))
        scales = [scale for of_frame in scales for scale in of_frame]
        return {"scale_sequence": float(np.median(scales))} if scales else {}
    if "sequence_deviation" in names:
        return _sequence_deviation(reader)
    return {}


def _sequence_deviation(reader: _Reader) -> dict[str, float]:
    gt, pred = StreamedMedian(), StreamedMedian()
    for pixels in reader.each(lambda _, pixels: pixels):
        gt.count(pixels.gt)
        pred.count(pixels.pred)
    for pixels in reader.each(lambda _, pixels: pixels):
        gt.refine(pixels.gt)
        pred.refine(pixels.pred)
    (median_gt, deviation_gt), (median_pred, deviation_pred) = gt.result() or (0.0, 0.0), pred.result() or (0.0, 0.0)
    if deviation_pred == 0:
        return {}
    scale = deviation_gt / deviation_pred
    return {"sequence_scale": scale, "sequence_shift": median_gt - scale * median_pred}


def _fit(name: FitName, pixels: Pixels, protocol: Protocol, fits: dict[str, float]) -> Fit | None:
    """The fit of one frame, or None when there is none."""
    limits = (protocol.min_truth, protocol.max_truth) if protocol.clamps and protocol.max_truth is not None else None
    if name == "least_squares":
        return least_squares(pixels)
    if name == "sequence_deviation":
        return Fit(fits["sequence_scale"], fits["sequence_shift"], limits=limits) if "sequence_scale" in fits else None
    scale = {
        "none": lambda _: 1.0,
        "sequence_median_of_ratios": lambda _: fits.get("scale_sequence", 0.0),
        "median_of_ratios": median_of_ratios,
        "ratio_of_medians": ratio_of_medians,
        "least_median_squares": least_median_squares,
    }[name](pixels)
    return Fit(scale, limits=limits) if np.isfinite(scale) and scale > 0 else None


def _score_frame(
    index: int, pixels: Pixels, protocol: Protocol, aligned_by: dict[Alignment, FitName], fits: dict[str, float], unit: Unit
) -> tuple[Row, bool]:
    """One row of `DepthScore.frames`, and whether a negative scale fits the frame best."""
    row: Row = {"index": index, "coverage": pixels.coverage, "unreadable": pixels.num_unreadable}
    is_enough = _is_enough(pixels, protocol)
    found = {alignment: _fit(name, pixels, protocol, fits) if is_enough else None for alignment, name in aligned_by.items()}
    if any(fit is not None for fit in found.values()):
        of_frame = found.get("scale_frame")
        row["scale"] = median_of_ratios(pixels) if of_frame is None else of_frame.scale
    for alignment, fit in found.items():
        errors = _errors(pixels, fit, protocol)
        for measure in protocol.measures:
            if measure in errors and (unit == "mm" or measure not in IN_MM):
                row[f"{alignment}.{measure}"] = errors[measure]
    shifted = found.get("scale_shift")
    return row, shifted is not None and shifted.scale < 0


def _errors(pixels: Pixels, fit: Fit | None, protocol: Protocol) -> dict[str, float]:
    if fit is None:  # the one thing to say is that everything is missing
        return penalised_errors(pixels.pred[:0], pixels.gt[:0], np.concatenate([pixels.gt, pixels.missing]))
    aligned = fit(pixels.pred)
    if protocol.resize == "square":
        return ppsnet_errors(aligned, pixels.gt)
    return depth_errors(aligned, pixels.gt) | penalised_errors(aligned, pixels.gt, pixels.missing)
