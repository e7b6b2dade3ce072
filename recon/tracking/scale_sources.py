"""Millimetres per world unit, measured: what all sources say in one form, and two of the sources.

From another device's poses of the same camera (robot kinematics, an electromagnetic tracker), and from the depth of a network that
claims to know metres. The others have files of their own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from recon.eval.association import on_frames_of
from recon.geometry.alignment import umeyama
from recon.types import ReconError, Scale, Trajectory

MIN_POSES = 10
MIN_MOVED_MM = 2.0
"""Spread of the device's positions below which they say nothing about scale: trackers and joints err by about as much."""
NUM_BLOCKS = 10
"""Parts of the path that are left out in turn to see how sure the factor is."""
NUM_DRAWS = 400
"""Of the bootstrap."""
NUM_WINDOWS = 5
MM_PER_M = 1000.0
MIN_LOG_SIGMA = 0.001
"""No source is surer of its factor than to one in a thousand."""


class WindowScale(NamedTuple):
    """The factor of one part of the path."""

    index: int
    """Frame in its middle."""
    factor_mm: float


@dataclass(frozen=True)
class MeasuredScale:
    """A scale and how it changes along the path."""

    scale: Scale
    windows: tuple[WindowScale, ...]
    residual_mm: float | None = None
    """Root mean square distance between the two paths after the fit; None where the source is no path."""
    figures: Mapping[str, float | int] = field(default_factory=dict)
    """What else the source has to say of how well it fits."""

    def described(self) -> dict[str, object]:
        """What scale.json holds of it beside the scale itself."""
        fit = {} if self.residual_mm is None else {"residual_mm": self.residual_mm}
        return {"along_path": [window._asdict() for window in self.windows]} | fit | dict(self.figures)


def scale_of_parts(
    source: str, indices: Int[np.ndarray, " n"], factors_mm: Float[np.ndarray, " n"], common_log_sigma: float, **figures: float | int
) -> MeasuredScale:
    """The median of factors that parts of a recording gave, in the order of the path; `indices` are their frames.

    One sigma joins the block bootstrap of the median's log (Kuensch 1989: neighbouring parts err together; a jackknife would be
    wrong of a median) with `common_log_sigma`, the error that all parts share and whose size no scatter can tell.
    """
    logs = np.log(factors_mm)
    value = float(np.median(logs))
    scatter = _median_sigma(logs) if len(logs) > 1 else 0.0
    sigma = float(np.exp(value) * max(np.hypot(scatter, common_log_sigma), MIN_LOG_SIGMA))
    windows = tuple(
        WindowScale(int(indices[part[len(part) // 2]]), float(np.exp(np.median(logs[part]))))
        for part in np.array_split(np.arange(len(logs)), min(NUM_WINDOWS, len(np.unique(indices))))
    )
    return MeasuredScale(Scale(source, float(np.exp(value)), sigma), windows, figures={"num_parts": len(logs), **figures})


def _median_sigma(logs: np.ndarray) -> float:
    """Standard error of the median of parts in the order of the path; few blocks say too little by themselves, hence the factor."""
    blocks = np.array_split(logs, min(NUM_BLOCKS, len(logs)))
    rng = np.random.default_rng(0)
    drawn = rng.integers(len(blocks), size=(NUM_DRAWS, len(blocks)))
    medians = [np.median(np.concatenate([blocks[k] for k in draw])) for draw in drawn]
    return float(np.std(medians) * np.sqrt(len(blocks) / (len(blocks) - 1)))


def jackknife_sigma(left_out: Sequence[float]) -> float:
    """Standard error of a figure from its values with one block after another left out."""
    values = np.array(left_out)
    return float(np.sqrt((len(values) - 1) / len(values) * np.sum((values - values.mean()) ** 2)))


def scale_from_metric_depth(
    indices: Int[np.ndarray, " n"],
    log_factors: Float[np.ndarray, " n"],
    stated_log_sigmas: Float[np.ndarray, " n"],
    source: str = "metric_network",
    mm_per_unit: float = MM_PER_M,
) -> MeasuredScale:
    """The unit that a network claims whose depth is in metres, or that depth brings along with a recording.

    Args:
        log_factors: per frame, the log of the run's depth in world units over the network's in metres.
        mm_per_unit: of the metric depth, where it is not in metres.
        stated_log_sigmas: per frame, the median of the network's own sigma of the log-depth. A network that is wrong about
            metres is wrong alike in all frames, so its own word is not averaged away.

    Raises ReconError where no frame meets the network's depth.
    """
    known = np.isfinite(log_factors)
    if not known.any():
        raise ReconError("scale from a metric network: no posed frame has depth that meets the camera path; give scale.factor_mm", 1)
    stated = float(np.median(stated_log_sigmas[known]))
    return scale_of_parts(source, indices[known], mm_per_unit / np.exp(log_factors[known]), stated, stated_log_sigma=stated)


def scale_from_poses(ours: Trajectory, device_mm: Trajectory) -> MeasuredScale:
    """Least-squares similarity between the two paths' positions (Umeyama 1991); one sigma by the block jackknife.

    Blocks rather than frames are left out because errors of neighbouring frames go together. `device_mm` needs the recording's
    clock, or frame numbers for times. Raises ReconError when too few poses meet or the device hardly moved.
    """
    matched, _ = on_frames_of(device_mm, ours)
    _, rows, device_rows = np.intersect1d(ours.frame_indices, matched.frame_indices, return_indices=True)
    if len(rows) < MIN_POSES:
        raise ReconError(
            f"scale from poses needs {MIN_POSES} frames that both paths have, found {len(rows)} of {len(ours)} posed frames", 1
        )
    a, b = ours.T_world_camera[rows, :3, 3], matched.T_world_camera[device_rows, :3, 3]
    moved = float(np.linalg.norm(b - b.mean(axis=0), axis=1).max())
    if moved < MIN_MOVED_MM:
        raise ReconError(f"scale from poses needs a device that moves by {MIN_MOVED_MM:g} mm or more, found {moved:.2g} mm", 1)
    fit = umeyama(a, b)
    if fit.scale <= 0:
        raise ReconError("the device's path has nothing in common with the camera's: check its clock, and that it holds millimetres", 1)
    sigma = jackknife_sigma([_scale_without(a, b, block) for block in np.array_split(np.arange(len(a)), NUM_BLOCKS)])
    frames = ours.frame_indices[rows]
    windows = tuple(
        WindowScale(int(frames[part[len(part) // 2]]), factor)
        for part in np.array_split(np.arange(len(a)), NUM_WINDOWS)
        if (factor := _spread_ratio(a[part], b[part])) is not None
    )
    residual = float(np.sqrt(np.mean(np.sum((fit.map(a) - b) ** 2, axis=1))))
    return MeasuredScale(Scale("poses", fit.scale, sigma), windows, residual)


def _scale_without(a: np.ndarray, b: np.ndarray, block: np.ndarray) -> float:
    kept = np.setdiff1d(np.arange(len(a)), block)
    return umeyama(a[kept], b[kept]).scale


def _spread_ratio(a: Float[np.ndarray, "n 3"], b: Float[np.ndarray, "n 3"]) -> float | None:
    """Ratio of the root mean square distances from the centre; None where one path stands still."""
    ours, theirs = (float(np.sqrt(np.mean(np.sum((p - p.mean(axis=0)) ** 2, axis=1)))) for p in (a, b))
    return theirs / ours if min(ours, theirs) > 1e-9 else None
