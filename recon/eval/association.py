"""Which frames of a recording foreign poses belong to: by time, by frame number, or by order when nothing else is known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from recon.types import ReconError, Trajectory

MAX_DIFFERENCE_S = 0.01
"""As evo's: a quarter of the time between frames at 25 Hz."""
MIN_SHARE_IN_TIME = 0.5
"""Of the shorter path. When fewer poses find a partner, the clocks are not the same and the matches are chance."""
SHARE_SURELY_IN_TIME = 0.9


def on_frames_of(pred: Trajectory, gt: Trajectory, max_difference_s: float = MAX_DIFFERENCE_S) -> tuple[Trajectory, list[str]]:
    """Return foreign poses with the frame indices of the truth, and notes on how they were found.

    Times (not NaN) count first; times that are all whole numbers, against a truth whose times are not, are frame numbers. Paths
    of as many poses whose times or numbers do not agree belong together in order. Raises ReconError when nothing fits.
    """
    if np.isnan(pred.timestamps_s).any() or np.isnan(gt.timestamps_s).any():
        return _by_number(pred, gt, "no times")
    if _are_whole(pred.timestamps_s) and not _are_whole(gt.timestamps_s):
        return _by_number(replace(pred, frame_indices=pred.timestamps_s.astype(np.int64)), gt, "whole numbers for times")
    shorter = min(len(pred), len(gt))
    found = by_timestamp(pred, gt, max_difference_s)
    if len(found) < SHARE_SURELY_IN_TIME * shorter and len(pred) == len(gt):
        return by_order(pred, gt), [f"the times of poses and truth do not agree; {len(pred)} poses each, so they are matched by order"]
    if len(found) < MIN_SHARE_IN_TIME * shorter:
        spans = [f"{times.min():.3f} to {times.max():.3f} s" for times in (pred.timestamps_s, gt.timestamps_s)]
        raise ReconError(
            f"only {len(found)} of {shorter} poses have a true one within {max_difference_s:g} s (they span {spans[0]},"
            f" the truth {spans[1]}): use the same clock, or write frame numbers for times"
        )
    if len(found) < shorter:
        return found, [f"{len(found)} of {len(pred)} poses have one of {len(gt)} true poses within {max_difference_s:g} s"]
    return found, []


def by_timestamp(pred: Trajectory, gt: Trajectory, max_difference_s: float) -> Trajectory:
    """Return the poses whose time is within `max_difference_s` of a true one, with its frame index; each true pose is used once."""
    order = np.argsort(gt.timestamps_s, kind="stable")
    times = gt.timestamps_s[order]
    if not len(times):
        return _selected(pred, np.zeros(0, np.int64), np.zeros(0, np.int64))
    after = np.clip(np.searchsorted(times, pred.timestamps_s), 1, max(len(times) - 1, 1))
    before = after - 1
    after = np.minimum(after, len(times) - 1)
    is_before = np.abs(times[before] - pred.timestamps_s) <= np.abs(times[after] - pred.timestamps_s)
    nearest = np.where(is_before, before, after)
    difference = np.abs(times[nearest] - pred.timestamps_s)
    best_first = np.lexsort((difference, nearest))
    _, first = np.unique(nearest[best_first], return_index=True)
    chosen = best_first[first]
    chosen = chosen[difference[chosen] <= max_difference_s]
    return _selected(pred, chosen, gt.frame_indices[order][nearest[chosen]])


def by_order(pred: Trajectory, gt: Trajectory) -> Trajectory:
    """Return the poses with the frame indices of the truth, first with first. Raises ReconError for another number of poses."""
    if len(pred) != len(gt):
        raise ReconError(f"{len(pred)} poses cannot be matched with {len(gt)} true ones by order")
    return _selected(pred, np.argsort(pred.frame_indices, kind="stable"), np.sort(gt.frame_indices))


def _by_number(pred: Trajectory, gt: Trajectory, found: str) -> tuple[Trajectory, list[str]]:
    shared = np.isin(pred.frame_indices, gt.frame_indices)
    if len(pred) == len(gt) and not shared.all():
        return by_order(pred, gt), [f"the poses have {found} and other frame numbers than the truth, but are as many: matched by order"]
    if not shared.any():
        raise ReconError(f"the poses have {found}, and none of their {len(pred)} frame numbers is one of the truth's {len(gt)}")
    numbers = f"{pred.frame_indices.min()} to {pred.frame_indices.max()}"
    return pred, [f"the poses have {found} and are matched by frame number ({numbers})"]


def _are_whole(times: np.ndarray) -> bool:
    return bool(np.all(times == np.round(times)))


def _selected(pred: Trajectory, rows: np.ndarray, frame_idx: np.ndarray) -> Trajectory:
    order = np.argsort(frame_idx, kind="stable")
    rows = rows[order]
    return replace(pred, frame_indices=frame_idx[order], timestamps_s=pred.timestamps_s[rows], T_world_camera=pred.T_world_camera[rows])
