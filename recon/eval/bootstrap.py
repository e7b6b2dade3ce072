"""How sure a mean is: bootstrap intervals over frames or sequences, and the mean over sequences.

Neighbouring frames of a video are much alike, so their values are resampled in blocks: the circular block bootstrap of Politis
and Romano, "A circular block-resampling procedure for stationary data" (1992). Unrelated frames and whole sequences are
resampled one by one (block 1), which is Efron's percentile bootstrap.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Float, Int

from recon.types import Metric, ReconError

NUM_RESAMPLES = 2000
MIN_BLOCKS = 6
"""Fewer have no interval worth printing: their percentiles are those of a handful of combinations."""
MAX_COUNTS = 4_000_000
"""Held at a time; longer recordings are resampled in several rounds."""


def block_length(num: int, is_unrelated: bool = False) -> int:
    """Return how many neighbours are drawn together: the square root of their number, rounded up; 1 for unrelated values."""
    return 1 if is_unrelated else max(1, math.ceil(math.sqrt(num)))


def has_interval(num: int, block: int) -> bool:
    """Whether so many values, drawn in such blocks, say how sure their mean is."""
    return math.ceil(num / block) >= MIN_BLOCKS


def no_interval_note(num: int, of: str) -> str:
    """Say why means over `num` of them have none."""
    return f"means over {of} have no interval, for {num} make fewer than {MIN_BLOCKS} blocks to resample"


def interval(values: Float[np.ndarray, " n"], block: int, seed: int, level: float = 0.95) -> tuple[float, float] | None:
    """Return the bounds of the values' mean, or None where `has_interval` says no. `block` as in `intervals`."""
    if not has_interval(len(values), block):
        return None
    low, high = intervals(values[:, None], block, seed, level)[0]
    return float(low), float(high)


def intervals(
    values: Float[np.ndarray, "n m"], block: int, seed: int, level: float = 0.95, weights: Float[np.ndarray, " n"] | None = None
) -> Float[np.ndarray, "m 2"]:
    """Return the bounds of the mean of each column, from the same resamples for all.

    Args:
        values: in the order of time, all finite.
        block: how many neighbours are drawn together; 1 for values that have no order.
        seed: same seed, same bounds.
        level: share of the resampled means between the bounds.
        weights: of the values in the mean; None: equal.

    Raises ReconError for no values, a block that does not fit or values that are not finite.
    """
    num = len(values)
    if not 1 <= block <= num:
        raise ReconError(f"bootstrap: a block of {block} does not fit {num} values, expected 1 to {num}")
    if not np.all(np.isfinite(values)):
        raise ReconError("bootstrap: a value is not finite, leave it out and say so")
    weight = np.ones(num) if weights is None else weights.astype(np.float64)
    columns = np.ascontiguousarray(values, dtype=np.float64) * weight[:, None]
    # Not a matrix product: its sum would depend on the number of threads.
    means = [np.einsum("bn,nm->bm", counts, columns) / (counts @ weight)[:, None] for counts in _resamples(num, block, seed)]
    tail = (1 - level) / 2
    return np.quantile(np.concatenate(means), [tail, 1 - tail], axis=0).T


def _resamples(num: int, block: int, seed: int) -> Iterator[Float[np.ndarray, "b n"]]:
    """Yield how often each value is drawn, a row per resample."""
    rng = np.random.default_rng(seed)
    left = NUM_RESAMPLES
    while left > 0:
        rows = min(left, max(1, MAX_COUNTS // num))
        starts: Int[np.ndarray, "b k"] = rng.integers(num, size=(rows, math.ceil(num / block)))
        drawn = ((starts[:, :, None] + np.arange(block)) % num).reshape(rows, -1)[:, :num]
        flat = (drawn + num * np.arange(rows)[:, None]).ravel()
        yield np.bincount(flat, minlength=rows * num).reshape(rows, num).astype(np.float64)
        left -= rows


def macro_mean(
    sequences: Sequence[Sequence[Metric]], seed: int = 0, weights: Sequence[int] | None = None, of: str = "sequences", block: int = 1
) -> tuple[list[Metric], list[str]]:
    """Return the mean of each metric over sequences with its interval, and notes on metrics that some of them lack and on
    too few sequences for intervals.

    Args:
        sequences: metrics of each; those of one name, alignment, protocol and unit belong together.
        seed: of the bootstrap over sequences.
        weights: frames that each sequence's means stand for, which makes it the mean of all frames; None: every sequence counts
            the same, whatever its length.
        of: what the notes call them.
        block: how many neighbours are resampled together, as in `intervals`.
    """
    found: dict[tuple, dict[int, Metric]] = {}
    for i, metrics in enumerate(sequences):
        for metric in metrics:
            found.setdefault((metric.group, metric.name, metric.alignment, metric.protocol, metric.unit), {})[i] = metric
    means, partial = [], {}
    for found_in in found.values():
        first = next(iter(found_in.values()))
        values = np.array([metric.value for metric in found_in.values()])
        weight = np.array([1.0 if weights is None else float(weights[i]) for i in found_in])
        if weight.sum() == 0:
            continue
        is_enough = has_interval(len(values), block) and weight.all()
        bounds = intervals(values[:, None], block, seed, weights=weight)[0] if is_enough else None
        floors = [metric.noise_floor for metric in found_in.values() if metric.noise_floor is not None]
        means.append(
            replace(
                first,
                value=float(np.sum(values * weight) / weight.sum()),
                interval=None if bounds is None else (float(bounds[0]), float(bounds[1])),
                noise_floor=max(floors, default=None),
            )
        )
        if len(found_in) < len(sequences):
            partial.setdefault((first.alignment, len(found_in)), []).append(first.name)
    notes = [
        f"mean over {of}: under {alignment}, {_named(names)} in {count} of {len(sequences)} {of} only"
        for (alignment, count), names in partial.items()
    ]
    if means and not has_interval(len(sequences), block):
        notes.append(no_interval_note(len(sequences), of))
    return means, notes


def _named(names: Sequence[str]) -> str:
    return f"{', '.join(names[:3])} and {len(names) - 3} more" if len(names) > 4 else ", ".join(names)
