"""The instrument finder without weights: grey, sharp-edged things that enter from the rim, judged over a few frames at a time.

What is sure of its look alone is taken; what is less sure must move otherwise than the tissue around it. Either must last: a thing is
followed through the frames just before and after, and the typical look of all of these decides. It would rather miss an
instrument than cover tissue: a missed one is seen in the surface, covered tissue is gone.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Bool, UInt8

from recon.image.metal import Candidate, Look, TissueColour, candidates, excess_motion, look_at, tissue_colour

AROUND = 4
"""Frames before and after through which a thing is followed."""

MIN_FRAMES = 3
"""In which a thing is seen; all, where there are fewer."""

MIN_OVERLAP = 0.3
"""Of the smaller of two masks in consecutive frames, where they are of the same thing."""


@dataclass(frozen=True)
class Limits:
    """Least area, sharpness, straightness and reach, and most share of plain white."""

    area: float
    sharpness: float
    straightness: float
    reach: float
    clipped: float

    def are_met(self, seen: Sequence[Candidate]) -> bool:
        """Whether the typical look of a thing, seen at least once, keeps them."""
        return bool(
            np.median([one.area for one in seen]) >= self.area
            and np.median([one.sharpness for one in seen]) >= self.sharpness
            and np.median([one.straightness for one in seen]) >= self.straightness
            and np.median([one.reach for one in seen]) >= self.reach
            and np.median([one.clipped for one in seen]) <= self.clipped
        )


SURE = Limits(0.01, 0.85, 0.75, 1.0, 0.35)
"""By the look alone; a small thing may be the highlight of a fold."""

LIKELY = Limits(0.003, 0.75, 0.6, 0.35, 0.9)
"""With motion of its own."""

OWN_MOTION = 1.5
"""Spreads of the tissue's motion; exceeded in the faster half of the frames."""


@dataclass(frozen=True)
class Sight:
    """A candidate with its motion since the frame before (0 in the first)."""

    candidate: Candidate
    motion: float


class MetalFinder:
    """`recon.models.instruments.InstrumentFinder` of grey metal."""

    def find(
        self,
        frames: Iterable[UInt8[np.ndarray, "h w 3"]],
        scope: Bool[np.ndarray, "h w"],
        samples: Iterable[UInt8[np.ndarray, "h w 3"]],
    ) -> Iterator[Bool[np.ndarray, "h w"]]:
        """True on instruments, a mask a frame, in order; see `InstrumentFinder.find`."""
        size = scope.shape[1], scope.shape[0]
        for found in self.parts(frames, scope, samples):
            small = np.any([one.mask for one in found], axis=0) if found else np.zeros((1, 1), bool)
            yield (cv2.resize(small.astype(np.float32), size, interpolation=cv2.INTER_LINEAR) >= 0.5) & scope

    def parts(
        self,
        frames: Iterable[UInt8[np.ndarray, "h w 3"]],
        scope: Bool[np.ndarray, "h w"],
        samples: Iterable[UInt8[np.ndarray, "h w 3"]],
    ) -> Iterator[list[Candidate]]:
        """Each frame's instruments one by one, at the size they were looked at."""
        tissue = tissue_colour(look_at(image, scope) for image in samples)
        sights = _sights((look_at(image, scope) for image in frames), tissue)
        for middle, window in _windows(sights):
            yield [sight.candidate for sight in window[middle] if _is_instrument(_followed(sight, middle, window), len(window))]


def _sights(looks: Iterable[Look], tissue: TissueColour) -> Iterator[list[Sight]]:
    before = None
    for look in looks:
        found = candidates(look, tissue)
        yield [Sight(one, excess_motion(look, before, one.mask) if before is not None else 0.0) for one in found]
        before = look


def _windows(sights: Iterable[list[Sight]]) -> Iterator[tuple[int, list[list[Sight]]]]:
    """Every frame's place in the frames around it, and these."""
    kept: deque[list[Sight]] = deque(maxlen=2 * AROUND + 1)
    place = -AROUND - 1
    for sight in sights:
        kept.append(sight)
        place = min(place + 1, AROUND)
        if place >= 0:
            yield place, list(kept)
    # The last frames, or all of a short recording, have fewer after them.
    window, remaining = list(kept), min(AROUND, len(kept))
    for middle in range(len(window) - remaining, len(window)):
        yield middle - max(0, middle - AROUND), window[max(0, middle - AROUND) :]


def _followed(sight: Sight, middle: int, window: list[list[Sight]]) -> list[Sight]:
    """The same thing in the frames before and after, as far as it is seen without a break."""
    seen = [sight]
    for frames in (window[middle + 1 :], window[:middle][::-1]):
        last = sight
        for others in frames:
            best = max(others, key=lambda other: _overlap(last.candidate.mask, other.candidate.mask), default=None)
            if best is None or _overlap(last.candidate.mask, best.candidate.mask) < MIN_OVERLAP:
                break
            seen.append(best)
            last = best
    return seen


def _overlap(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / min(a.sum(), b.sum()))


def _is_instrument(seen: Sequence[Sight], num_frames: int) -> bool:
    if len(seen) < min(MIN_FRAMES, num_frames):
        return False
    looks = [sight.candidate for sight in seen]
    moves = np.percentile([sight.motion for sight in seen], 75.0) >= OWN_MOTION
    return SURE.are_met(looks) or bool(moves and LIKELY.are_met(looks))
