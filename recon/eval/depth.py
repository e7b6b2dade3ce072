"""Errors of depth maps against truth, from evenly spread pixels of each frame.

Definitions of Eigen et al., "Depth map prediction from a single image using a multi-scale deep network" (2014). Every
metric is the mean over frames of the frame's own value, so a frame counts the same however much of it is valid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from recon.types import Metric, Unit

MIN_VALID_SHARE = 0.05
"""Of the true pixels; a frame with fewer predicted ones says nothing and is left out."""
MAX_PIXELS = 40_000
"""Of a frame, evenly spread: enough for three digits, and a long recording fits in memory."""
HIGHER_IS_BETTER = {"delta_1.25"}
LENGTHS = {"rmse", "mae"}
RELATIVE = "1"


@dataclass(frozen=True)
class DepthPair:
    """Predicted and true depth of one frame at pixels where both are known."""

    index: int
    pred: Float[np.ndarray, " n"]
    gt: Float[np.ndarray, " n"]

    @property
    def scale(self) -> float:
        """Median of true over predicted depth."""
        return float(np.median(self.gt / self.pred))


def pair(index: int, pred: Float[np.ndarray, "h w"], gt: Float[np.ndarray, "h w"]) -> DepthPair | None:
    """Return pixels known in both (0 is unknown), or None when they are too few."""
    known = (pred > 0) & (gt > 0)
    if known.sum() == 0 or known.sum() < MIN_VALID_SHARE * (gt > 0).sum():
        return None
    chosen = np.flatnonzero(known)[:: -(-int(known.sum()) // MAX_PIXELS)]
    return DepthPair(index, pred.reshape(-1)[chosen].astype(np.float32), gt.reshape(-1)[chosen].astype(np.float32))


def depth_errors(pred: Float[np.ndarray, " n"], gt: Float[np.ndarray, " n"]) -> dict[str, float]:
    """Return the errors of one frame. `sq_rel` keeps the unit of depth, `rmse_log` is in natural logarithms."""
    pred, gt = pred.astype(np.float64), gt.astype(np.float64)
    difference = pred - gt
    ratio = np.maximum(pred / gt, gt / pred)
    return {
        "abs_rel": float(np.mean(np.abs(difference) / gt)),
        "sq_rel": float(np.mean(difference**2 / gt)),
        "rmse": float(np.sqrt(np.mean(difference**2))),
        "rmse_log": float(np.sqrt(np.mean(np.log(pred / gt) ** 2))),
        "mae": float(np.mean(np.abs(difference))),
        "delta_1.25": float(np.mean(ratio < 1.25)),
    }


def depth_metrics(pairs: Sequence[DepthPair], unit: Unit, is_metric: bool) -> tuple[list[Metric], list[str]]:
    """Return metrics without scale alignment (only when both are in mm), with one scale, and with one scale per frame.

    Args:
        pairs: of the frames that have both.
        unit: of the truth.
        is_metric: whether prediction and truth are both in millimetres.

    Returns metrics, and notes on what could not be computed.
    """
    scales = np.array([frame.scale for frame in pairs])
    if len(scales) == 0:
        return [], ["depth: not computable, no frame has both a predicted and a true depth"]
    factors = {"scale_sequence": float(np.median(scales)), "scale_frame": None}
    if is_metric:
        factors = {"none": 1.0, **factors}
    errors: dict[str, list[dict[str, float]]] = {alignment: [] for alignment in factors}
    for frame in pairs:
        for alignment, factor in factors.items():
            errors[alignment].append(depth_errors(frame.pred * (frame.scale if factor is None else factor), frame.gt))
    metrics = [
        Metric("depth", name, float(np.mean([e[name] for e in frames])), _unit_of(name, unit), alignment, name not in HIGHER_IS_BETTER)
        for alignment, frames in errors.items()
        for name in frames[0]
    ]
    drift = float(np.std(scales) / np.mean(scales))
    return [*metrics, Metric("depth", "scale_drift", drift, RELATIVE, "none")], []


def _unit_of(name: str, unit: Unit) -> str:
    return unit if name in LENGTHS or name == "sq_rel" else RELATIVE
