"""Instruments by their look, without any training: grey things with sharp, straight edges that reach in from the field's rim.

Tissue is coloured by blood, while steel and black insulation are as grey as the lamp's light (dichromatic model, Shafer 1985: what
mirrors or absorbs all wavelengths alike keeps the light's colour). How coloured tissue is, the recording itself says, so that a
processor's white balance matters little. Highlights are grey too, but small or ragged and not joined to the rim; overexposed
tissue fades softly into its surroundings; where all the tissue is grey, nothing is found.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8

from recon.image.channels import brightest, darkest

SHORTER_SIDE_PX = 240
"""At which frames are looked at: in larger ones the tissue's grain and a shaft's scratches get in the way."""

FLOOR = 8.0
"""Grey levels added to every channel: below, ratios of channels are compression noise."""

LIT = (30.0, 245.0)
"""Grey levels of the strongest channel between which a pixel tells the tissue's colour."""

MIN_CHROMA = 0.22
"""Of the tissue's log ratios of channels: with less, tissue is too grey itself."""

GREY_SHARES = (0.45, 0.3, 0.15)
"""Of the tissue's chroma, below which a pixel is grey; the stricter ones part a shaft from pale tissue behind it."""

MAX_TINT = 0.16
"""Of a grey pixel's log ratio across the tissue's hue, either way: blue cloth and green plastic are no metal."""

MIN_BRIGHTNESS = 14.0
"""Strongest channel of a pixel whose colour is known."""

CLIPPED = 235.0
"""Weakest channel above which a pixel is plain white."""

FIELD_MARGIN, OPENING, REGROWTH, CLOSING = 0.015, 0.012, 0.012, 0.01
"""Radii in shorter sides: left out along the rim, of the thinnest thing looked for, and of what is mended on its outline."""

MIN_AREA_SHARE, MIN_CONTACT = 0.003, 0.02
"""Of the field's area and of the shorter side: a smaller part, or one that touches the rim along less, is no candidate."""

STEP = 0.3
"""In the tissue's chroma: a change of colour across an outline that counts as sharp."""

STEP_REACH_PX = (3.0, 2.0)
"""Where colours are compared, outside and inside of an outline."""

RIM_PX = 5.0
"""An outline nearer than this to the rim is the field's, not the thing's."""

STRAIGHT_LENGTH, STRAIGHT_WITHIN = 0.1, 0.012
"""In shorter sides: how long a line is straight, and how far an outline may stray from it."""


@dataclass(frozen=True)
class TissueColour:
    """Median log ratios of channels (red to green, blue to green) of a recording's tissue."""

    log_ratios: Float[np.ndarray, " 2"]

    @property
    def is_telling(self) -> bool:
        """Whether grey differs from it enough to be told apart."""
        return self.chroma >= MIN_CHROMA

    @cached_property
    def chroma(self) -> float:
        return float(np.linalg.norm(self.log_ratios))


@dataclass(frozen=True)
class Candidate:
    """A grey part of a frame that touches the rim of the scope's field, and what speaks for an instrument."""

    mask: Bool[np.ndarray, "h w"]
    area: float
    """Share of the field, 0 to 1."""
    sharpness: float
    """Share of its free outline across which the colour changes at once, 0 to 1."""
    straightness: float
    """Share of its free outline that runs along straight lines, 0 to 1."""
    reach: float
    """How far it comes in from the rim, over the width of its root there."""
    clipped: float
    """Share of its pixels that are plain white, 0 to 1."""


@dataclass(frozen=True)
class Look:
    """A frame at the size that it is looked at."""

    image: UInt8[np.ndarray, "h w 3"]
    scope: Bool[np.ndarray, "h w"]
    """True inside the scope's field."""
    field: Bool[np.ndarray, "h w"]
    """The same without a margin, which the scope's rim colours."""


def look_at(image: UInt8[np.ndarray, "H W 3"], scope: Bool[np.ndarray, "H W"]) -> Look:
    """Bring an RGB frame to the size that it is looked at; `scope` is True inside the field."""
    scale = SHORTER_SIDE_PX / min(scope.shape)
    size = round(scope.shape[1] * scale), round(scope.shape[0] * scale)
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    inside = cv2.resize(scope.astype(np.float32), size, interpolation=cv2.INTER_LINEAR) > 0.99
    return Look(small, inside, _eroded(inside, FIELD_MARGIN * SHORTER_SIDE_PX))


def tissue_colour(looks: Iterable[Look]) -> TissueColour:
    """From a few frames spread over a recording; medians, so instruments may cover up to half of them. Zero without light."""
    found = [np.zeros((0, 2), np.float32)]
    for look in looks:
        log_ratios, brightest, _ = _channels(look.image)
        found.append(log_ratios[look.field & (brightest > LIT[0]) & (brightest < LIT[1])][::7])
    pixels = np.concatenate(found)
    return TissueColour(np.median(pixels, axis=0) if len(pixels) else np.zeros(2))


def candidates(look: Look, tissue: TissueColour) -> list[Candidate]:
    """Grey parts that touch the rim, none overlapping; nothing where grey tells nothing."""
    if not tissue.is_telling or not look.field.any():
        return []
    colour, tint, brightest, weakest = _relative_colour(look.image, tissue)
    could_be = look.field & (np.abs(tint) < MAX_TINT) & (brightest > MIN_BRIGHTNESS)
    # The outermost ring of the field: what touches it comes in from outside.
    rim = look.field & ~_eroded(look.field, 2.0)
    found: list[Candidate] = []
    for share in GREY_SHARES:
        for mask in _parts(could_be & (colour < share), look.field):
            if (rim & mask).sum() / 2 >= MIN_CONTACT * SHORTER_SIDE_PX:
                found.append(replace(_judged(mask, rim, colour, weakest > CLIPPED, look.field), mask=_to_the_rim(mask, look)))
    found.sort(key=lambda one: one.sharpness * one.straightness * min(one.reach, 1.0), reverse=True)
    kept: list[Candidate] = []
    for one in found:
        if not any((one.mask & other.mask).any() for other in kept):
            kept.append(one)
    return kept


def excess_motion(look: Look, before: Look, mask: Bool[np.ndarray, "h w"]) -> float:
    """How differently from the tissue around it a part moved since the frame before, in spreads of that tissue's own motion."""
    flow = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM).calc(_grey(look.image), _grey(before.image), None)
    around = _dilated(mask, 0.12 * SHORTER_SIDE_PX) & ~_dilated(mask, 0.02 * SHORTER_SIDE_PX) & look.field
    if not around.any():
        return 0.0
    tissue = np.median(flow[around], axis=0)
    spread = np.median(np.linalg.norm(flow[around] - tissue, axis=1))
    return float(np.linalg.norm(np.median(flow[mask], axis=0) - tissue) / (spread + 0.3))


def _channels(image: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Log ratios of red and of blue to green (h, w, 2), and the strongest and weakest channel."""
    levels = cv2.GaussianBlur(image.astype(np.float32), (0, 0), 1.2) + FLOOR
    logs = np.log(levels)
    return logs[..., [0, 2]] - logs[..., [1]], brightest(levels) - FLOOR, darkest(levels) - FLOOR


def _relative_colour(image: np.ndarray, tissue: TissueColour) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Colour (0 grey, 1 the tissue's), tint across it, strongest and weakest channel."""
    log_ratios, brightest, weakest = _channels(image)
    along = tissue.log_ratios / tissue.chroma
    return log_ratios @ along / tissue.chroma, log_ratios @ np.array([-along[1], along[0]]), brightest, weakest


def _parts(grey: np.ndarray, field: np.ndarray) -> list[np.ndarray]:
    """Connected parts without thin outgrowths, the small ones left out."""
    reach = round(2 * OPENING * SHORTER_SIDE_PX)
    padded = np.pad(grey.astype(np.uint8), reach, mode="edge")
    core = cv2.morphologyEx(padded, cv2.MORPH_OPEN, _disc(OPENING * SHORTER_SIDE_PX))[reach:-reach, reach:-reach]
    whole = grey & _dilated(core > 0, REGROWTH * SHORTER_SIDE_PX)
    whole = cv2.morphologyEx(whole.astype(np.uint8), cv2.MORPH_CLOSE, _disc(CLOSING * SHORTER_SIDE_PX)) & field
    num, labels, stats, _ = cv2.connectedComponentsWithStats(whole)
    return [labels == part for part in range(1, num) if stats[part, cv2.CC_STAT_AREA] >= MIN_AREA_SHARE * field.sum()]


def _judged(mask: np.ndarray, rim: np.ndarray, colour: np.ndarray, clipped: np.ndarray, field: np.ndarray) -> Candidate:
    outlines, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    outline = max(outlines, key=len)
    free = _eroded(field, RIM_PX)
    return Candidate(
        mask,
        float(mask.sum() / field.sum()),
        _sharpness(mask, outline[:, 0], colour, free),
        _straightness(outline, free),
        _reach(mask, rim & mask),
        float(clipped[mask].mean()),
    )


def _to_the_rim(mask: np.ndarray, look: Look) -> np.ndarray:
    """Go on through the margin that was left out."""
    return mask | (_dilated(mask, FIELD_MARGIN * SHORTER_SIDE_PX + 1) & look.scope & ~look.field)


def _sharpness(mask: np.ndarray, points: np.ndarray, colour: np.ndarray, free: np.ndarray) -> float:
    soft = cv2.GaussianBlur(mask.astype(np.float32), (0, 0), 2.0)
    points = points[free[points[:, 1], points[:, 0]]]
    if not len(points):
        return 0.0
    inwards = np.stack([cv2.Sobel(soft, cv2.CV_32F, *order)[points[:, 1], points[:, 0]] for order in ((1, 0), (0, 1))], axis=1)
    inwards /= np.maximum(np.linalg.norm(inwards, axis=1, keepdims=True), 1e-6)
    limited = np.clip(colour, -0.5, 1.5).astype(np.float32)

    def at(offset_px: float) -> np.ndarray:
        where = (points + offset_px * inwards).astype(np.float32)
        return cv2.remap(limited, where[:, :1], where[:, 1:], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)[:, 0]

    return float((at(-STEP_REACH_PX[0]) - at(STEP_REACH_PX[1]) > STEP).mean())


def _straightness(outline: np.ndarray, free: np.ndarray) -> float:
    corners = cv2.approxPolyDP(outline, STRAIGHT_WITHIN * SHORTER_SIDE_PX, True)[:, 0].astype(np.float64)
    following = np.roll(corners, -1, axis=0)
    length, middle = np.linalg.norm(following - corners, axis=1), ((following + corners) / 2).astype(int)
    is_free = free[middle[:, 1], middle[:, 0]]
    straight = length[is_free & (length > STRAIGHT_LENGTH * SHORTER_SIDE_PX)].sum()
    return float(straight / max(length[is_free].sum(), 1.0))


def _reach(mask: np.ndarray, root: np.ndarray) -> float:
    distance = cv2.distanceTransform((~root).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return float(distance[mask].max() / max(root.sum() / 2, 1.0))


def _grey(image: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)


def _disc(radius_px: float) -> np.ndarray:
    radius = max(1, round(radius_px))
    return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))


def _dilated(mask: np.ndarray, radius_px: float) -> np.ndarray:
    return cv2.dilate(mask.astype(np.uint8), _disc(radius_px)).astype(bool)


def _eroded(mask: np.ndarray, radius_px: float) -> np.ndarray:
    """The picture's edge counts as an edge of the mask."""
    return cv2.erode(np.pad(mask.astype(np.uint8), 1), _disc(radius_px))[1:-1, 1:-1].astype(bool)
