"""Pictures of the report: thumbnails, depth in colours, the camera path, errors. Arrays in, RGB or PNG bytes out."""

from __future__ import annotations

import io
from collections.abc import Sequence

import cv2
import matplotlib
import numpy as np
from jaxtyping import Bool, Float, UInt8
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

DEPTH_COLORS = "magma_r"
ERROR_COLORS = "inferno"
CONFIDENCE_COLORS = "viridis"
INK = "#2b2b2b"
PATH_COLOR, TRUTH_COLOR, KEYFRAME_COLOR = "#b3423a", "#8a8a8a", "#1f5f8b"


def thumbnail(image: UInt8[np.ndarray, "h w 3"], width_px: int) -> UInt8[np.ndarray, "h2 w2 3"]:
    """Scale to a width, keeping the aspect."""
    height_px = max(1, round(image.shape[0] * width_px / image.shape[1]))
    shrinks = width_px < image.shape[1]
    return cv2.resize(image, (width_px, height_px), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def masked(image: UInt8[np.ndarray, "h w 3"], mask: Bool[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w 3"]:
    """Dim and cool what the mask leaves out."""
    left_out = 0.35 * image + np.array([20.0, 45.0, 80.0])
    return np.where(mask[..., None], image, left_out).astype(np.uint8)


def colorize(
    values: Float[np.ndarray, "*shape"], low: float, high: float, colors: str, known: Bool[np.ndarray, "*shape"] | None = None
) -> UInt8[np.ndarray, "*shape 3"]:
    """Map values to colours; grey where not known."""
    share = np.clip((values - low) / max(high - low, 1e-12), 0, 1)
    rgb = (matplotlib.colormaps[colors](share)[..., :3] * 255).astype(np.uint8)
    return rgb if known is None else np.where(known[..., None], rgb, np.uint8(205)).astype(np.uint8)


def color_stops(colors: str, num: int = 9) -> list[str]:
    """Return CSS colours along a colour map, for a legend."""
    return [matplotlib.colors.to_hex(matplotlib.colormaps[colors](x)) for x in np.linspace(0, 1, num)]


def encode(image: UInt8[np.ndarray, "h w 3"], kind: str = "PNG") -> bytes:
    """Return the bytes of a PNG or JPEG file."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind, **({"quality": 88} if kind == "JPEG" else {}))
    return buffer.getvalue()


def trajectory_figure(
    centers: Float[np.ndarray, "n 3"],
    is_keyframe: Bool[np.ndarray, " n"],
    unit: str,
    truth: Float[np.ndarray, "m 3"] | None = None,
) -> bytes:
    """Return a PNG of the camera path seen along the three axes of the world; truth, if given, in the same frame."""
    figure = Figure(figsize=(11, 3.7), layout="constrained")
    label = "world units" if unit == "unitless" else unit
    for axes, (a, b) in zip(figure.subplots(1, 3), ((0, 2), (0, 1), (2, 1)), strict=True):
        if truth is not None:
            axes.plot(truth[:, a], truth[:, b], color=TRUTH_COLOR, linewidth=2.5, label="truth")
        axes.plot(centers[:, a], centers[:, b], color=PATH_COLOR, linewidth=1.2, label="camera path")
        if is_keyframe.any():
            axes.scatter(centers[is_keyframe, a], centers[is_keyframe, b], s=9, color=KEYFRAME_COLOR, zorder=3, label="keyframes")
        axes.scatter(centers[:1, a], centers[:1, b], s=45, marker="^", color=INK, zorder=4, label="start")
        axes.set_xlabel(f"{'xyz'[a]} ({label})")
        axes.set_ylabel(f"{'xyz'[b]} ({label})")
        axes.set_aspect("equal", adjustable="datalim")
        axes.grid(alpha=0.25)
        if b == 1:
            axes.invert_yaxis()  # y points down in camera axes
    figure.axes[0].legend(fontsize=8, frameon=False)
    return _png(figure)


def times_figure(seconds: dict[str, float]) -> bytes:
    """Return a PNG of bars, one per stage."""
    figure = Figure(figsize=(7.5, 0.32 * len(seconds) + 0.7), layout="constrained")
    axes = figure.subplots()
    bars = axes.barh(list(seconds), list(seconds.values()), color=KEYFRAME_COLOR, height=0.62)
    axes.bar_label(bars, [f"{s:.1f} s" for s in seconds.values()], padding=3, fontsize=9)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_xlabel("seconds")
    axes.spines[["top", "right"]].set_visible(False)
    return _png(figure)


def panels_figure(panels: Sequence[tuple[str, np.ndarray]], colors: str, low: float, high: float, label: str) -> bytes:
    """Return a PNG of titled pictures in a row; an (h, w) array is drawn in colours with a bar, NaN is grey."""
    figure = Figure(figsize=(3.6 * len(panels) + 0.6, 3.3), layout="constrained")
    mapping = matplotlib.colormaps[colors].with_extremes(bad="#cdcdcd")
    shown = None
    for axes, (title, picture) in zip(np.atleast_1d(figure.subplots(1, len(panels))), panels, strict=True):
        if picture.ndim == 2:
            shown = axes.imshow(picture, cmap=mapping, vmin=low, vmax=high, interpolation="nearest")
        else:
            axes.imshow(picture)
        axes.set_title(title, fontsize=10, color=INK)
        axes.set_axis_off()
    if shown is None:
        shown = matplotlib.cm.ScalarMappable(matplotlib.colors.Normalize(low, high), mapping)
    figure.colorbar(shown, ax=figure.axes, label=label, shrink=0.85, pad=0.01)
    return _png(figure)


def curves_figure(curves: dict[str, dict[str, list[float]]], unit: str) -> bytes:
    """Return a PNG of precision, recall and F over the distance that still counts as right, a line per alignment.

    Args:
        curves: by alignment, `thresholds`, `precision`, `recall` and `f` of equal length.
    """
    figure = Figure(figsize=(11, 3.4), layout="constrained")
    for axes, name in zip(figure.subplots(1, 3, sharey=True), ("precision", "recall", "f"), strict=True):
        for alignment, curve in curves.items():
            axes.plot(curve["thresholds"], curve[name], linewidth=1.4, label=alignment)
        axes.set_title(name, fontsize=10, color=INK)
        axes.set_xlabel(f"distance ({unit})")
        axes.set_ylim(0, 1.02)
        axes.grid(alpha=0.25)
    figure.axes[0].legend(fontsize=8, frameon=False)
    return _png(figure)


def _png(figure: Figure) -> bytes:
    FigureCanvasAgg(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    return buffer.getvalue()
