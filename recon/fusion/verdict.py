"""What the other views say of one frame's depth: how much each pixel counts, and how much of the view stood still."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8

from recon.fusion.consistency import agreement, log_residual, moved
from recon.fusion.view import View


@dataclass(frozen=True)
class Verdict:
    """Of one frame; counts are of pixels."""

    index: int
    """Of the source frame."""
    weight: UInt8[np.ndarray, "h w"]
    """What the pixel's own weight is multiplied by, in 255ths."""
    known: int
    kept: int
    """Known pixels of weight above 0."""
    judged: int
    """Known pixels that enough other views see to tell whether they stood still."""
    non_rigid: int
    """Judged pixels that did not."""


def judge(view: View, others: Sequence[View], tolerance: float, noise: float, min_agreement: float) -> Verdict:
    """Compare a view with others.

    A pixel counts as much as the others agree with it; nothing where they agree less than `min_agreement`, and nothing where they
    say that it moved.

    Args:
        tolerance: residual of log depth that counts as agreement.
        noise: median absolute residual over the recording.
    """
    valid = view.valid
    known = int(valid.sum())
    if not others:
        return Verdict(view.index, np.full(valid.shape, 255, np.uint8), known, known, 0, 0)
    residuals = np.stack([log_residual(view, other, tolerance) for other in others])
    sigma = view.sigma if view.sigma is not None else np.zeros(valid.shape, np.float32)
    has_moved, is_judged = moved(residuals, sigma, noise)
    agreed = agreement(residuals, tolerance)
    agreed[(agreed < min_agreement) | has_moved] = 0
    counts = (int((valid & mask).sum()) for mask in (agreed > 0, is_judged, has_moved))
    return Verdict(view.index, np.rint(agreed * 255).astype(np.uint8), known, *counts)


@dataclass(frozen=True)
class Rigidity:
    """How much of what the fused frames show did not obey rigidity: most other views contradict it beyond what sigma explains."""

    judged_share: float
    """Of the known pixels, the share that enough other views see to be judged."""
    non_rigid_share: float | None
    """Of the judged pixels; None when nothing could be judged, as before a camera that stands still."""
    frames: list[dict[str, float | int | None]]
    """Per fused frame its `index` and `non_rigid_share`."""


def rigidity_of(verdicts: Sequence[Verdict]) -> Rigidity:
    """Sum up over frames; every pixel counts the same."""
    judged, known = sum(v.judged for v in verdicts), sum(v.known for v in verdicts)
    frames = [{"index": v.index, "non_rigid_share": _share(v.non_rigid, v.judged)} for v in verdicts]
    return Rigidity(_share(judged, known) or 0.0, _share(sum(v.non_rigid for v in verdicts), judged), frames)


def _share(part: int, whole: int) -> float | None:
    return round(part / whole, 5) if whole else None
