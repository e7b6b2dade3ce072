"""Depth of a video that does not flicker: overlapping windows, each aligned with the one before (EndoDAV, Zhou et al. 2025).

A window holds 32 frames, of which the first ten are old: two from the middle of the window before and its last eight. On
these eight the new window's disparity is fitted to what was said of them before, and the two are faded into each other.
Video Depth Anything (Chen et al. 2025) fits on the two alone. A network that looks at whole windows sees its own past through
the ten. The authors pad a video with its last frame and so does this; a last window of nothing but padding is left out.

A network that sees one frame at a time says the same of a frame in every window, so that windows alone change nothing; what
flickers is its scale. `steadied` lets it change evenly within a window, as it does when the camera travels, and no faster.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice, pairwise
from typing import TypeVar

import numpy as np
from jaxtyping import Float

from recon.models import DepthEstimate

LENGTH = 32
KEPT = (6, 12)
"""Positions in the window before from which the first inputs are taken; its last BLENDED follow."""
BLENDED = 8
OVERLAP = len(KEPT) + BLENDED

Item = TypeVar("Item")


def consistent_disparity(
    frames: Iterable[Item], estimate: Callable[[Sequence[Item]], Float[np.ndarray, "t h w"]], has_shift: bool
) -> Iterator[Float[np.ndarray, "h w"]]:
    """Disparity of each frame, in order, all in the first window's scale; holds one window and never the video.

    Args:
        frames: in the order of the video; what they are is between the caller and `estimate`.
        estimate: disparity of a window of LENGTH frames, 0 where unknown.
        has_shift: fit a shift beside the factor, as networks of affine-invariant disparity need.
    """
    rest = iter(frames)
    window = list(islice(rest, LENGTH))
    if not window:
        return
    number = len(window)
    pending = list(estimate(_padded(window))[:number])
    while True:
        yield from pending[:-BLENDED]
        pending = pending[-BLENDED:]
        new = list(islice(rest, LENGTH - OVERLAP))
        if not new:
            break
        before = np.stack(pending)
        window = _padded([*(window[position] for position in KEPT), *window[-BLENDED:], *new])
        said = estimate(window)
        factor, shift = fit(said[len(KEPT) : OVERLAP], before, has_shift)
        said = np.where(said > 0, np.maximum(factor * said + shift, 0), 0)
        pending = [*faded(before, said[len(KEPT) : OVERLAP]), *said[OVERLAP : OVERLAP + len(new)]]
    yield from pending


def consistent_depth(
    indices: Sequence[int], estimate: Callable[[int], DepthEstimate], has_shift: bool
) -> Iterator[tuple[int, DepthEstimate]]:
    """Depth of consecutive frames, in order, of a network that sees one frame at a time; each frame is estimated once.

    Args:
        indices: of the frames; what is left out between them counts as no time.
        estimate: the network's word on a frame.
        has_shift: see `consistent_disparity`.
    """
    known: dict[int, DepthEstimate] = {}

    def of_window(places: Sequence[int]) -> Float[np.ndarray, "t h w"]:
        # Frames that this window does not hold are all given out.
        kept = {place: known[place] if place in known else estimate(indices[place]) for place in dict.fromkeys(places)}
        known.clear()
        known.update(kept)
        said = {place: _inverse(of_frame.depth) for place, of_frame in kept.items()}
        last_gap = max((i for i in range(1, len(places)) if places[i] > places[i - 1] + 1), default=0)
        run = sorted(set(places[last_gap:]))
        said.update(zip(run, steadied(np.stack([said[place] for place in run])), strict=True))
        return np.stack([said[place] for place in places])

    for place, disparity in enumerate(consistent_disparity(range(len(indices)), of_window, has_shift)):
        depth = _inverse(disparity)
        yield indices[place], DepthEstimate(depth, np.where(depth > 0, known[place].sigma, 0).astype(np.float32))


def steadied(disparity: Float[np.ndarray, "t h w"]) -> Float[np.ndarray, "t h w"]:
    """Consecutive frames, each times a factor, so that the log of their scale changes along a straight line.

    From frame to frame the scale changes by the median ratio of what both know at a pixel; motion moves single pixels, the
    median little. The line is the one nearest to all frames, so that a steady approach stays one.
    """
    steps = [_log_ratio(before, after) for before, after in pairwise(disparity)]
    logs = np.concatenate([[0.0], np.cumsum(steps)])
    if len(logs) < 3:
        return disparity
    time = np.arange(len(logs)) - (len(logs) - 1) / 2
    line = logs.mean() + time * float(time @ logs / (time @ time))
    return disparity * np.exp(line - logs).astype(np.float32)[:, None, None]


def fit(said: Float[np.ndarray, "t h w"], wanted: Float[np.ndarray, "t h w"], has_shift: bool) -> tuple[float, float]:
    """Factor and shift, by least squares over what both know, that bring `said` to `wanted`; (1, 0) where nothing tells."""
    both = (said > 0) & (wanted > 0)
    x, y = said[both].astype(np.float64), wanted[both].astype(np.float64)
    if has_shift and len(x) and np.ptp(x) > 0:
        covariance = np.cov(x, y, bias=True)
        factor = float(covariance[0, 1] / covariance[0, 0])
        if factor > 0:
            return factor, float(y.mean() - factor * x.mean())
    return (float(x @ y / (x @ x)), 0.0) if len(x) else (1.0, 0.0)


def faded(before: Float[np.ndarray, "t h w"], after: Float[np.ndarray, "t h w"]) -> Float[np.ndarray, "t h w"]:
    """From all of one to all of the other; where one knows nothing, the other alone."""
    weight = np.linspace(0, 1, len(before))[:, None, None]
    mixed = (1 - weight) * before + weight * after
    return np.where(before == 0, after, np.where(after == 0, before, mixed))


def _padded(window: Sequence[Item]) -> list[Item]:
    return [*window, *window[-1:] * (LENGTH - len(window))]


def _log_ratio(before: np.ndarray, after: np.ndarray) -> float:
    both = (before > 0) & (after > 0)
    return float(np.median(np.log(after[both] / before[both]))) if both.any() else 0.0


def _inverse(values: np.ndarray) -> np.ndarray:
    return np.divide(1.0, values, out=np.zeros(values.shape, np.float32), where=values > 0)
