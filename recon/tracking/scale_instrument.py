"""Millimetres per world unit from an instrument whose shaft is as wide as somebody knows: rough, and it says so.

A straight round shaft of radius r shows two edges. With the camera's centre each edge spans a plane that touches the shaft; both
planes hold its axis' direction, and the wedge between them opens by 2 asin(r / D), where D is how far the axis passes from the centre.
That is exact for any lens and any slant, and places the axis, and the tip on it, in millimetres. The run knows the depth of tissue,
not of metal: where the tip touches tissue the two depths are one, and where it hovers in front the quotient is too small. Hence a
high quantile over frames, and a wide sigma.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Bool, Float

from recon.geometry.cameras import unproject
from recon.sampling import spread
from recon.tracking.scale_sources import NUM_WINDOWS, MeasuredScale, WindowScale
from recon.types import Camera, ReconError, Scale

MAX_FRAMES = 200
MIN_FRAMES = 5
"""With a shaft and tissue at its tip."""
TOUCHING = 0.8
"""Quantile over frames that stands for touch: what hovers is below, and noise alone is above."""
NOISE_QUANTILES = (0.5, 0.95)
"""Half of what lies between them is one sigma."""
MIN_LOG_SIGMA = 0.1
"""Nobody saw the touch itself."""
EDGE_ERROR_PX = 1.0
"""Masks are not drawn to less."""
MIN_AREA_SHARE = 0.003
"""Of the picture, below which a spot is no instrument."""
MIN_ELONGATION = 2.0
SHAFT_SPAN = (0.1, 0.7)
"""From where it enters to its tip, the part of an instrument that is shaft: then come wrist and jaws."""
MIN_EDGE_POINTS = 15
MAX_EDGE_ERROR_PX = 1.5
"""Median distance of an edge from a straight one."""
NUM_ROUNDS = 10
TIP_REACH = 1.0
"""In widths of the shaft, how far around the tip tissue counts as being at the tip."""
MIN_TIP_PIXELS = 10


@dataclass(frozen=True)
class InstrumentView:
    """A posed frame with an instrument."""

    camera: Camera
    instrument: Bool[np.ndarray, "h w"]
    """True on instruments."""
    tissue: Bool[np.ndarray, "h w"]
    """True where the run's depth is of tissue; False outside the scope's field."""
    depth: Float[np.ndarray, "h w"]
    """The run's z-depth in world units; 0 unknown."""


@dataclass(frozen=True)
class Shaft:
    """A straight shaft and its tip in the camera's axes."""

    tip_mm: Float[np.ndarray, " 3"]
    tip_px: Float[np.ndarray, " 2"]
    direction_px: Float[np.ndarray, " 2"]
    """Unit vector in the picture from where it enters to the tip."""
    width_px: float
    """Median in the picture."""


def scale_from_instrument(indices: Sequence[int], view_of: Callable[[int], InstrumentView | None], width_mm: float) -> MeasuredScale:
    """Measure some frames' instruments.

    Args:
        indices: posed frames in order; MAX_FRAMES of them are asked for.
        view_of: from such a frame to its instrument; None where it shows none.
        width_mm: diameter of the shaft.

    Raises ReconError (exit code 1) when too few frames show a straight shaft with tissue at its tip.
    """
    frames, factors, widths = [], [], []
    num_views = 0
    for index in spread(indices, MAX_FRAMES):
        view = view_of(index)
        num_views += view is not None
        shaft = None if view is None else find_shaft(view.instrument, view.camera, width_mm)
        tissue_z = None if view is None or shaft is None else depth_at_tip(view, shaft)
        if shaft is not None and tissue_z is not None and shaft.tip_mm[2] > 0:
            frames.append(index)
            factors.append(float(shaft.tip_mm[2] / tissue_z))
            widths.append(shaft.width_px)
    if len(frames) < MIN_FRAMES:
        raise ReconError(
            f"scale.instrument_width_mm: {len(frames)} of {num_views} frames with an instrument show a straight shaft "
            f"that has tissue with depth at its tip, expected {MIN_FRAMES} or more; give the unit in another way, such as "
            "scale.factor_mm",
            1,
        )
    logs = np.log(factors)
    low, high = np.quantile(logs, NOISE_QUANTILES)
    value = float(np.exp(np.quantile(logs, TOUCHING)))
    # Both edges may be off by a pixel, in all frames the same way.
    sigma = value * float(np.sqrt(((high - low) / 2) ** 2 + MIN_LOG_SIGMA**2 + (2 * EDGE_ERROR_PX / np.median(widths)) ** 2))
    windows = tuple(
        WindowScale(frames[part[len(part) // 2]], float(np.exp(np.quantile(logs[part], TOUCHING))))
        for part in np.array_split(np.arange(len(frames)), min(NUM_WINDOWS, len(frames)))
    )
    figures = {"num_frames": len(frames), "shaft_width_px": float(np.median(widths))}
    return MeasuredScale(Scale("instrument", value, sigma), windows, figures=figures)


def find_shaft(instrument: Bool[np.ndarray, "h w"], camera: Camera, width_mm: float) -> Shaft | None:
    """The largest instrument's shaft; None where it is no long straight thing.

    Which end is the tip follows from the picture's border alone; that the other end really enters there is not asked, since a round
    field hides it.
    """
    part = _largest_part(instrument)
    if part is None:
        return None
    rows, columns = np.nonzero(part)
    pixels = np.stack([columns, rows], axis=1).astype(np.float64)
    middle = pixels.mean(axis=0)
    variances, axes = np.linalg.eigh(np.cov((pixels - middle).T))
    if variances[1] < MIN_ELONGATION**2 * variances[0]:
        return None
    along = axes[:, 1] * _sign_to_tip((pixels - middle) @ axes[:, 1], pixels, part.shape)
    across = np.array([-along[1], along[0]])
    s = (pixels - middle) @ along
    entry, tip = s.min(), s.max()
    contour = np.concatenate([c[:, 0] for c in cv2.findContours(part.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)[0]])
    contour = contour.astype(np.float64)
    position, offset = (contour - middle) @ along, (contour - middle) @ across
    share = (position - entry) / (tip - entry)
    on_shaft = (share > SHAFT_SPAN[0]) & (share < SHAFT_SPAN[1]) & _inside(contour, part.shape)
    # A mask's outermost pixels lie half a pixel inside its edge.
    edges = [contour[on_shaft & (side * offset > 0)] + side * 0.5 * across for side in (1.0, -1.0)]
    planes = [_plane(edge, camera) for edge in edges]
    if planes[0] is None or planes[1] is None:
        return None
    inner = unproject(camera, middle[None])[0]
    inward = [plane * np.sign(plane @ inner) for plane in planes]
    tip_px = pixels[s > tip - 1.0].mean(axis=0)
    tip_mm = _on_axis(inward, unproject(camera, tip_px[None])[0], width_mm / 2)
    width_px = float(np.median((edges[0] - middle) @ across) - np.median((edges[1] - middle) @ across))
    return None if tip_mm is None else Shaft(tip_mm, tip_px, along, width_px)


def depth_at_tip(view: InstrumentView, shaft: Shaft) -> float | None:
    """Median of the run's depth on tissue around and ahead of the tip; None where hardly any is known."""
    rows, columns = np.nonzero(view.tissue & (view.depth > 0))
    away = np.stack([columns, rows], axis=1) - shaft.tip_px
    near = (np.linalg.norm(away, axis=1) < TIP_REACH * shaft.width_px) & (away @ shaft.direction_px > 0)
    return float(np.median(view.depth[rows[near], columns[near]])) if near.sum() >= MIN_TIP_PIXELS else None


def _largest_part(instrument: np.ndarray) -> np.ndarray | None:
    count, labels, statistics, _ = cv2.connectedComponentsWithStats(instrument.astype(np.uint8), connectivity=8)
    if count < 2:
        return None
    largest = 1 + int(np.argmax(statistics[1:, cv2.CC_STAT_AREA]))
    return labels == largest if statistics[largest, cv2.CC_STAT_AREA] >= MIN_AREA_SHARE * instrument.size else None


def _sign_to_tip(s: np.ndarray, pixels: np.ndarray, shape: tuple[int, ...]) -> float:
    """1 when the end of larger `s` is the one farther from the picture's border, -1 when the other is: instruments come from outside."""
    height, width = shape
    to_border = np.minimum(np.minimum(pixels[:, 0], width - 1 - pixels[:, 0]), np.minimum(pixels[:, 1], height - 1 - pixels[:, 1]))
    return 1.0 if to_border[np.argmax(s)] >= to_border[np.argmin(s)] else -1.0


def _inside(pixels: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Not on the border of the picture, where a mask ends without an edge."""
    return np.all((pixels > 1) & (pixels < np.array(shape[::-1]) - 2), axis=1)


def _plane(edge: np.ndarray, camera: Camera) -> np.ndarray | None:
    """Unit normal of the plane through the camera's centre and a straight edge; None where the edge is short or bent."""
    if len(edge) < MIN_EDGE_POINTS:
        return None
    rays = unproject(camera, edge)
    one, other = unproject(camera, np.stack([edge.mean(axis=0), edge.mean(axis=0) + np.array([1.0, 0.0])]))
    pixel_rad = float(np.linalg.norm(one - other))
    weights = np.ones(len(rays))
    for _ in range(NUM_ROUNDS):
        normal = np.linalg.svd(rays * weights[:, None])[2][-1]
        error = np.abs(rays @ normal) / pixel_rad
        scale = max(float(np.median(error)), 0.3)
        weights = 1 / (1 + (error / (2 * scale)) ** 2)
    return normal if float(np.median(error)) <= MAX_EDGE_ERROR_PX else None


def _on_axis(inward: Sequence[np.ndarray], ray: np.ndarray, radius_mm: float) -> np.ndarray | None:
    """Where the axis of the shaft that touches both planes is nearest in direction to a ray; None where it looks away."""
    axis, towards = np.cross(inward[0], inward[1]), inward[0] + inward[1]
    if min(np.linalg.norm(axis), np.linalg.norm(towards)) < 1e-9:
        return None
    axis, towards = axis / np.linalg.norm(axis), towards / np.linalg.norm(towards)
    # The wedge between planes with inward normals a and b opens by pi less the angle between a and b.
    sine_half = float(np.sqrt(np.clip((1 + inward[0] @ inward[1]) / 2, 1e-12, 1.0)))
    forward = float(ray @ towards)
    return None if forward <= 1e-6 else radius_mm / sine_half * (towards + axis * float(ray @ axis) / forward)
