"""Input, render and rendered depth side by side over time, as pictures and as a video."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8

from recon.io.video_writer import write_mp4
from recon.report.figures import DEPTH_COLORS, INK, colorize, masked
from recon.types import ReconError, Unit

CAPTION_PX = 22
GAP_PX = 6
RANGE_PERCENTILES = (2, 98)


@dataclass(frozen=True)
class ComparedFrame:
    """One time: what the camera saw and what was rendered, of one size."""

    picture: UInt8[np.ndarray, "h w 3"]
    render: Float[np.ndarray, "h w 3"]
    """RGB, 0 to 1; what is outside is cut off."""
    depth: Float[np.ndarray, "h w"]
    """Rendered z-depth, 0 where unknown."""
    mask: Bool[np.ndarray, "h w"] | None = None
    """True on tissue; the rest of the picture is dimmed."""
    title: str = ""
    """Under the picture, such as its frame number and whether training saw it."""


def depth_range(depths: Iterable[Float[np.ndarray, "h w"]]) -> tuple[float, float]:
    """The range of colours for all frames: between percentiles 2 and 98 of each known depth, the widest. Raises ReconError without any."""
    ends = [np.percentile(depth[depth > 0], RANGE_PERCENTILES) for depth in depths if (depth > 0).any()]
    if not ends:
        raise ReconError("comparison video: no frame has a known depth", exit_code=1)
    return float(min(low for low, _ in ends)), float(max(high for _, high in ends))


def comparison_picture(frame: ComparedFrame, depth_limits: tuple[float, float], unit: Unit) -> UInt8[np.ndarray, "h2 w2 3"]:
    """Input, render and depth in a row with captions, on white."""
    picture = frame.picture if frame.mask is None else masked(frame.picture, frame.mask)
    render = np.round(255.0 * np.clip(frame.render, 0.0, 1.0)).astype(np.uint8)
    low, high = depth_limits
    depth = colorize(frame.depth, low, high, DEPTH_COLORS, frame.depth > 0)
    length = "" if unit == "unitless" else f" {unit}"
    captions = (" ".join(["input", frame.title]).strip(), "render", f"depth {low:.3g} to {high:.3g}{length}")
    height, width = frame.depth.shape
    canvas = np.full((height + CAPTION_PX, 3 * width + 2 * GAP_PX, 3), 255, np.uint8)
    for place, (panel, caption) in enumerate(zip((picture, render, depth), captions, strict=True)):
        left = place * (width + GAP_PX)
        canvas[:height, left : left + width] = panel
        _write(canvas[height:, left : left + width], caption)
    return canvas


def write_comparison_video(
    path: str | Path, frames: Iterable[ComparedFrame], depth_limits: tuple[float, float], unit: Unit, fps: float
) -> int:
    """Write an MP4 of comparison pictures as they come; returns how many. Raises ReconError as `write_mp4`."""
    return write_mp4(path, (comparison_picture(frame, depth_limits, unit) for frame in frames), fps)


def _write(strip: np.ndarray, text: str) -> None:
    """Draw a line of text into a strip, smaller where it would not fit."""
    font, scale = cv2.FONT_HERSHEY_SIMPLEX, 0.45
    (length, _), _ = cv2.getTextSize(text, font, scale, 1)
    scale *= min(1.0, (strip.shape[1] - 8) / max(length, 1))
    ink = tuple(int(INK[k : k + 2], 16) for k in (1, 3, 5))
    drawn = np.ascontiguousarray(strip)
    cv2.putText(drawn, text, (4, CAPTION_PX - 7), font, scale, ink, 1, cv2.LINE_AA)
    strip[:] = drawn
