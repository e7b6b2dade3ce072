"""Which part of the image shows the patient: everything inside the scope's black border, whatever the border's shape.

The border is dark in every frame, tissue is not: a pixel's brightness over a few frames spread over the recording tells
them apart. Scope fields are convex (round, oval, cut corners, full frame), so the convex hull of what is lit keeps a dark
lumen, shadows that touch the border, and corners that are merely vignetted.
"""

from __future__ import annotations

from collections.abc import Iterable

import cv2
import numpy as np
from jaxtyping import Bool, UInt8

from recon.image.channels import brightest
from recon.types import ReconError

NUM_FRAMES = 20
"""Enough for the camera's motion to light most of the field; the caller spreads them over the recording."""

BRIGHT_PERCENTILE = 90.0
"""Over frames: near the maximum, so that dark tissue counts as lit once it was, yet deaf to a stray white frame."""

BORDER_SHARE = 0.08
"""Of the tissue's brightness. The glow of bright tissue in the border reaches a few percent of it."""

BORDER_LEVELS = (8.0, 24.0)
"""Limits of the border's grey level: above compression noise in black, below dark tissue in a bright recording."""

RIM_SHARE = 0.03
"""Of the shorter side: how far the border moves against the image within a recording."""

FULL_FRAME_SHARE = 0.995
MARGIN_SHARE = 0.012
"""Of the shorter side: the field's rim is blurred by the aperture and by compression."""


def find_scope_mask(images: Iterable[UInt8[np.ndarray, "h w 3"]]) -> Bool[np.ndarray, "h w"]:
    """True where the scope shows tissue, from about `NUM_FRAMES` RGB frames; all True without a border or in total darkness."""
    brightness = [brightest(image) for image in images]
    if not brightness:
        raise ReconError("no frame could be decoded: there is nothing to find the scope's field in", exit_code=1)
    lit = np.percentile(np.stack(brightness), BRIGHT_PERCENTILE, axis=0).astype(np.float32)
    field = _hull(_main_part(lit > _border_level(lit)))
    if field.mean() >= FULL_FRAME_SHARE or not field.any():
        return np.ones(lit.shape, dtype=bool)
    return _shrink(field, max(1, round(MARGIN_SHARE * min(lit.shape))))


def dark_rim(image: UInt8[np.ndarray, "h w 3"], scope: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """True on unlit pixels close to the scope's border: there the border itself has moved in, as it does with a loose coupler."""
    brightness = brightest(image)
    band = scope & ~_shrink(scope, max(1, round(RIM_SHARE * min(scope.shape))))
    return band & (brightness <= _border_level(brightness[scope])) if band.any() else band


def _border_level(lit: np.ndarray) -> float:
    black, bright = np.percentile(lit, [1.0, 95.0])
    return float(np.clip(black + BORDER_SHARE * (bright - black), *BORDER_LEVELS))


def _main_part(content: np.ndarray) -> np.ndarray:
    """The largest connected part, after thin things (overlay text, lines) and specks in the border are removed."""
    size = max(3, round(0.012 * min(content.shape)) | 1)
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (size, size))
    # Outside the image counts as content, so that the opening does not round the corners of a full frame.
    opened = cv2.erode(content.astype(np.uint8), kernel)
    num, labels, stats, _ = cv2.connectedComponentsWithStats(opened)
    if num == 1:
        return np.zeros_like(content)
    main = labels == 1 + int(np.argmax(stats[1:, cv2.CC_STAT_AREA]))
    return cv2.dilate(main.astype(np.uint8), kernel).astype(bool) & content


def _hull(content: np.ndarray) -> np.ndarray:
    field = np.zeros(content.shape, dtype=np.uint8)
    if content.any():
        v, u = np.nonzero(content)
        hull = cv2.convexHull(np.stack([u, v], axis=-1).astype(np.int32))
        cv2.fillConvexPoly(field, hull, 1)
    return field.astype(bool)


def _shrink(field: np.ndarray, margin_px: int) -> np.ndarray:
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * margin_px + 1, 2 * margin_px + 1))
    return cv2.erode(field.astype(np.uint8), kernel).astype(bool)
