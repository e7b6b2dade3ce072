"""What white means in instrument masks that somebody else made.

Half of the public data sets paint instruments white, the other half paint usable tissue white, and nothing fails when one is
taken for the other: the reconstruction is merely wrong. The images decide: instruments are grey metal or plastic beside red
tissue, and cover the smaller part of most frames.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, UInt8

from recon.image.channels import brightest, darkest

SATURATION_STEP = 0.15
"""Difference of mean saturation that counts as much as covering all of the frame or nothing of it."""

MIN_CLASS_SHARE = 0.002
"""A class smaller than this share of the field gives no evidence of colour."""

CLEAR_SCORE = 0.25
"""Mean evidence per frame, from -2 to 2, below which the masks are called unclear."""


@dataclass(frozen=True)
class Polarity:
    """What white means in the masks, and the evidence in words."""

    white: Literal["instrument", "tissue"]
    is_clear: bool
    reason: str


def judge_polarity(
    samples: Iterable[tuple[UInt8[np.ndarray, "h w 3"], Bool[np.ndarray, "h w"]]], scope: Bool[np.ndarray, "h w"]
) -> Polarity:
    """Judge from a few RGB frames with their masks (True where the file is white). Unclear masks count as white = instrument."""
    evidence = np.array([_evidence(image, white, scope) for image, white in samples])
    if not len(evidence):
        return Polarity("instrument", False, "no frame has a mask")
    area, colour, white_share = evidence.mean(axis=0)
    score = area + colour
    facts = f"white covers {white_share:.0%} of the field in {len(evidence)} frames"
    if colour != 0.0:
        facts += f" and is {'less' if colour > 0 else 'more'} colourful than the rest"
    if abs(score) < CLEAR_SCORE:
        return Polarity("instrument", False, f"{facts}, which is not clear; taken as instruments")
    return Polarity("instrument" if score > 0.0 else "tissue", True, facts)


def _evidence(image: np.ndarray, white: np.ndarray, scope: np.ndarray) -> tuple[float, float, float]:
    """Area and colour evidence (each -1 to 1, positive: white is the instrument) and the share of white."""
    white_share = float(white[scope].mean())
    colour = 0.0
    if MIN_CLASS_SHARE < white_share < 1.0 - MIN_CLASS_SHARE:
        brightness = brightest(image).astype(np.float32)
        saturation = 1.0 - darkest(image) / np.maximum(brightness, 1.0)
        difference = float(saturation[scope & ~white].mean() - saturation[scope & white].mean())
        colour = float(np.clip(difference / SATURATION_STEP, -1.0, 1.0))
    return 1.0 - 2.0 * white_share, colour, white_share
