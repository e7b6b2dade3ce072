"""Which frames are good enough to use: sharpness and exposure of each, judged against the recording.

Real endoscopy is soft and dark in places, so limits are the recording's own median and spread, with absolute limits only
where nothing can be seen at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8

from recon.image.channels import brightest, darkest
from recon.types import bounded

BLUR_SIGMA_SHARE = 0.006
"""Of the shorter side: the re-blur's width. Tied to the image's size so that the score does not depend on resolution."""

NOISE_SIGMA_SHARE = 0.0015
"""Of the shorter side: smoothing against sensor noise, which looks sharp."""

DARK_LEVEL = 20
"""Below it a pixel shows noise and compression; studio-range video has its black at 16."""

SATURATED_LEVEL = 250


@dataclass(frozen=True)
class Quality:
    """Scores of one frame, over its valid pixels."""

    blur: float
    """0 is sharp, 1 has lost every detail."""
    exposure: float
    """Mean brightness, 0 to 1."""
    dark_share: float
    saturated_share: float
    valid_share: float
    """Valid pixels of the scope's field."""


@dataclass(frozen=True)
class GateLimits:
    """When a frame is rejected."""

    blur_spread: float = bounded(6.0, 0.0)
    """Robust standard deviations (1.4826 MAD) that the blur score may lie above the recording's median."""
    blur_margin: float = bounded(0.22, 0.0)
    """The blur score may lie at least this far above the median, however even the recording is."""
    blur_max: float = bounded(0.95, 0.0)
    """No frame above this blur score is used; a sharp image blurred by 8 pixels at 540 rows has about that."""
    dark_share_max: float = bounded(0.9, 0.0, 1.0)
    """Share of valid pixels too dark to hold anything (below 20 of 255)."""
    saturated_share_max: float = bounded(0.8, 0.0, 1.0)
    """Share of valid pixels at the sensor's limit (250 of 255 in every channel)."""
    valid_share_min: float = bounded(0.1, 0.0, 1.0)
    """Share of the scope's field that highlights and instruments must leave."""


def measure_quality(image: UInt8[np.ndarray, "h w 3"], valid: Bool[np.ndarray, "h w"], scope: Bool[np.ndarray, "h w"]) -> Quality:
    """Scores of an RGB frame; `valid` lies within `scope`. Highlights count for saturation but not for sharpness."""
    if not scope.any():
        return Quality(1.0, 0.0, 1.0, 0.0, 0.0)
    largest, smallest = brightest(image)[scope], darkest(image)[scope]
    return Quality(
        blur=blur_score(image, valid),
        exposure=float(image[scope].mean() / 255.0),
        dark_share=float((largest < DARK_LEVEL).mean()),
        saturated_share=float((smallest >= SATURATED_LEVEL).mean()),
        valid_share=float(valid.sum() / scope.sum()),
    )


def blur_score(image: UInt8[np.ndarray, "h w 3"], valid: Bool[np.ndarray, "h w"]) -> float:
    """Share of the gradient that survives another blur: near 1 for a frame that is blurred already.

    Crete, Dolmiere, Ladret & Nicolas, "The blur effect: perception and estimation with a new no-reference perceptual blur
    metric" (2007), with Gaussian blurs and gradients inside the mask only.
    """
    shorter = min(valid.shape)
    # Green carries the tissue's detail at the best signal to noise.
    sharp = cv2.GaussianBlur(image[..., 1].astype(np.float32), (0, 0), max(0.5, NOISE_SIGMA_SHARE * shorter))
    blurred = cv2.GaussianBlur(sharp, (0, 0), BLUR_SIGMA_SHARE * shorter)
    reach = 2 * max(1, round(2.0 * BLUR_SIGMA_SHARE * shorter)) + 1
    inside = cv2.erode(valid.astype(np.uint8), np.ones((reach, reach), np.uint8)).astype(bool)
    if not inside.any():
        return 1.0
    before, after = _gradient(sharp)[inside], _gradient(blurred)[inside]
    total = float(before.sum())
    lost = float(np.maximum(before - after, 0.0).sum())
    return 1.0 - lost / total if total > 0.0 else 1.0


def rejections(qualities: Sequence[Quality], limits: GateLimits) -> list[str | None]:
    """For each frame why it is rejected, with the figure and the limit, or None. Blur is judged against the visible frames."""
    unseen = [unseen_reason(quality, limits) for quality in qualities]
    limit = blur_limit(np.array([q.blur for q, reason in zip(qualities, unseen, strict=True) if reason is None]), limits)
    return [
        reason or (f"blurred: blur score {q.blur:.2f}, limit for this recording {limit:.2f}" if q.blur > limit else None)
        for q, reason in zip(qualities, unseen, strict=True)
    ]


def blur_limit(blur: Float[np.ndarray, " n"], limits: GateLimits) -> float:
    """Highest blur score that a recording with these scores accepts."""
    if not len(blur):
        return limits.blur_max
    median = float(np.median(blur))
    spread = 1.4826 * float(np.median(np.abs(blur - median)))
    return min(limits.blur_max, median + max(limits.blur_margin, limits.blur_spread * spread))


def unseen_reason(quality: Quality, limits: GateLimits) -> str | None:
    """Why a frame shows nothing, sharp or not; None when it shows something."""
    if quality.dark_share > limits.dark_share_max:
        return f"too dark: {quality.dark_share:.0%} of the field is black, limit {limits.dark_share_max:.0%}"
    if quality.saturated_share > limits.saturated_share_max:
        return f"overexposed: {quality.saturated_share:.0%} of the field is saturated, limit {limits.saturated_share_max:.0%}"
    if quality.valid_share < limits.valid_share_min:
        return f"covered: {quality.valid_share:.0%} of the field is free of instruments and highlights, limit {limits.valid_share_min:.0%}"
    return None


def _gradient(values: np.ndarray) -> np.ndarray:
    return np.abs(cv2.Sobel(values, cv2.CV_32F, 1, 0)) + np.abs(cv2.Sobel(values, cv2.CV_32F, 0, 1))
