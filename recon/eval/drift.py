"""How a camera path goes wrong along the way: errors of relative motion over frames and over lengths of path, and of the scale.

Relative pose errors as in Sturm et al., "A benchmark for the evaluation of RGB-D SLAM systems" (2012). Drift as in Geiger et al.,
"Are we ready for autonomous driving? The KITTI vision benchmark suite" (2012), with lengths that fit an endoscope.
Lengths of path are measured on the true path; over frames without a pose it is taken as straight.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

from recon.geometry.se3 import inverse
from recon.types import Alignment, Metric, ReconError, Unit

RPE_PATH_MM = 10.0
PATH_TOLERANCE = 0.1
"""A pair of poses counts for a length of path that it meets within this share."""
DRIFT_LENGTHS_MM = (10.0, 20.0, 30.0, 40.0, 50.0, 60.0, 70.0, 80.0)
NUM_SCALE_PARTS = 10
MIN_SCALE_PARTS = 3

Pairs = tuple[Int[np.ndarray, " m"], Int[np.ndarray, " m"]]
"""Positions of the first and of the last pose of each pair."""


def rotation_errors_rad(pred: Float[np.ndarray, "n 4 4"], gt: Float[np.ndarray, "n 4 4"]) -> Float[np.ndarray, " n"]:
    """Return the angle between each pair of orientations."""
    relative = np.swapaxes(pred[:, :3, :3], 1, 2) @ gt[:, :3, :3]
    # The angle from its sine and cosine: arccos alone loses half of the digits near zero.
    axis = np.stack([relative[:, 2, 1] - relative[:, 1, 2], relative[:, 0, 2] - relative[:, 2, 0], relative[:, 1, 0] - relative[:, 0, 1]])
    return np.arctan2(np.linalg.norm(axis, axis=0), np.trace(relative, axis1=1, axis2=2) - 1)


def relative_errors(
    pred: Float[np.ndarray, "n 4 4"], gt: Float[np.ndarray, "n 4 4"], pairs: Pairs
) -> tuple[Float[np.ndarray, " m"], Float[np.ndarray, " m"]]:
    """Return for each pair the translation and the rotation (rad) between the predicted and the true relative motion."""
    first, last = pairs
    move_pred, move_gt = inverse(pred[first]) @ pred[last], inverse(gt[first]) @ gt[last]
    error = inverse(move_gt) @ move_pred
    return np.linalg.norm(error[:, :3, 3], axis=1), rotation_errors_rad(move_pred, move_gt)


def travelled(poses: Float[np.ndarray, "n 4 4"]) -> Float[np.ndarray, " n"]:
    """Return the length of path from the first pose to each."""
    return np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(poses[:, :3, 3], axis=0), axis=1))])


def path_length(poses: Float[np.ndarray, "n 4 4"]) -> float:
    """Return the length of path from the first pose to the last."""
    return float(travelled(poses)[-1])


def next_frames(frame_idx: Int[np.ndarray, " n"]) -> Pairs:
    """Pairs of frames that follow one another directly; a step over a frame without a pose is no step of one frame."""
    first = np.flatnonzero(np.diff(frame_idx) == 1)
    return first, first + 1


def pairs_at(travelled_path: Float[np.ndarray, " n"], length: float) -> Pairs:
    """From every pose to the later one whose path from there is nearest to `length`, where that is within `PATH_TOLERANCE`."""
    first, last = [], []
    for i in range(len(travelled_path) - 1):
        misses = np.abs(travelled_path[i + 1 :] - travelled_path[i] - length)
        nearest = int(np.argmin(misses))
        if misses[nearest] <= PATH_TOLERANCE * length:
            first.append(i)
            last.append(i + 1 + nearest)
    return np.array(first, dtype=np.int64), np.array(last, dtype=np.int64)


def drift(pred: Float[np.ndarray, "n 4 4"], gt: Float[np.ndarray, "n 4 4"]) -> tuple[float, float]:
    """Return the mean error of relative motion per length of path: translation in %, rotation in deg per mm. Poses in mm.

    Averaged over all parts of 10, 20 ... 80 mm that the path holds, each ending at the first pose beyond that length. Unlike
    KITTI's, parts start at every pose and not at every tenth, and errors are divided by the true length of the part.
    Raises ReconError when the path is shorter than every length.
    """
    position = travelled(gt)
    translations, rotations = [], []
    for length in DRIFT_LENGTHS_MM:
        end = np.searchsorted(position, position + length, side="right")
        first = np.flatnonzero(end < len(position))
        translation, rotation_rad = relative_errors(pred, gt, (first, end[first]))
        path = position[end[first]] - position[first]
        translations.append(translation / path)
        rotations.append(rotation_rad / path)
    if not len(translations[0]):
        raise ReconError(f"the true path is {position[-1]:.3g} mm long and at least {DRIFT_LENGTHS_MM[0]:g} mm are needed", exit_code=1)
    return 100 * float(np.mean(np.concatenate(translations))), float(np.degrees(np.mean(np.concatenate(rotations))))


def scale_drift_percent(pred: Float[np.ndarray, "n 4 4"], gt: Float[np.ndarray, "n 4 4"]) -> float:
    """Return by how much the predicted scale changes from the beginning of the path to its end, up or down, in %.

    In each of 10 parts of equal true length (fewer for short paths) the scale is the ratio of the centres' spreads (Horn 1987, the
    symmetric scale); a line is fitted to its logarithm over the share of the path. Raises ReconError when no line can be fitted.
    """
    position = travelled(gt)
    if position[-1] == 0:
        raise ReconError("the true path does not move", exit_code=1)
    share = position / position[-1]
    num_parts = min(NUM_SCALE_PARTS, len(gt) // MIN_SCALE_PARTS)
    where, log_ratios = [], []
    for part in range(num_parts):
        inside = (share >= part / num_parts) & (share <= (part + 1) / num_parts)
        spread_pred, spread_gt = (_spread(poses[inside, :3, 3]) for poses in (pred, gt))
        if spread_gt == 0:
            continue
        if spread_pred == 0:
            raise ReconError("the predicted path stands still where the true one moves", exit_code=1)
        where.append(float(np.mean(share[inside])))
        log_ratios.append(np.log(spread_pred / spread_gt))
    if len(where) < MIN_SCALE_PARTS:
        raise ReconError(f"the path has {len(where)} parts with motion and {MIN_SCALE_PARTS} are needed", exit_code=1)
    return 100 * abs(float(np.expm1(np.polyfit(where, log_ratios, 1)[0])))


def _spread(centres: np.ndarray) -> float:
    return float(np.linalg.norm(centres - centres.mean(axis=0))) if len(centres) > 1 else 0.0


def relative_metrics(
    pred: Float[np.ndarray, "n 4 4"],
    gt: Float[np.ndarray, "n 4 4"],
    frame_idx: Int[np.ndarray, " n"],
    alignment: Alignment,
    unit: Unit,
) -> tuple[list[Metric], list[str]]:
    """Return RMS relative pose errors over one frame and over 10 mm of path, and drift; the lengths only for paths in mm."""
    metrics, notes = [], []
    steps = next_frames(frame_idx)
    skipped = len(frame_idx) - 1 - len(steps[0])
    if len(steps[0]):
        metrics += _rms_metrics(relative_errors(pred, gt, steps), "", alignment, unit)
        if skipped:
            notes.append(f"rpe over one frame leaves out {skipped} of {len(frame_idx) - 1} steps, which skip frames without a pose")
    else:
        notes.append("rpe over one frame is not computable, because no two frames in succession have poses")
    if unit != "mm":
        return metrics, [*notes, "errors over lengths of path are not computable, because the truth is not in millimetres"]
    pairs = pairs_at(travelled(gt), RPE_PATH_MM)
    if len(pairs[0]):
        metrics += _rms_metrics(relative_errors(pred, gt, pairs), f"_{RPE_PATH_MM:g}mm", alignment, unit)
    else:
        notes.append(f"rpe over {RPE_PATH_MM:g} mm of path is not computable, because no two poses are that far apart along the path")
    try:
        translation, rotation = drift(pred, gt)
        metrics.append(Metric("trajectory", "drift_percent", translation, "%", alignment))
        metrics.append(Metric("trajectory", "drift_rotation", rotation, "deg/mm", alignment))
    except ReconError as error:
        notes.append(f"drift is not computable, because {error}")
    return metrics, notes


def _rms_metrics(errors: tuple[np.ndarray, np.ndarray], suffix: str, alignment: Alignment, unit: Unit) -> list[Metric]:
    translation, rotation_rad = (float(np.sqrt(np.mean(values**2))) for values in errors)
    return [
        Metric("trajectory", f"rpe_translation{suffix}", translation, unit, alignment),
        Metric("trajectory", f"rpe_rotation{suffix}", float(np.degrees(rotation_rad)), "deg", alignment),
    ]
