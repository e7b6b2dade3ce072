"""Errors of windows of 5 frames, as networks that predict relative poses are compared on SCARED: the protocol "snippet-5".

The arithmetic of AF-SfMLearner's and EndoDAC's `evaluate_pose.py` (after SfMLearner): within a window the steps are chained from
the first frame, one least-squares factor scales the predicted positions, and the error is the root of the summed squared
distances divided by the number of positions, which is not an RMSE. That factor, one for each window, is what `sim3_trajectory`
stands for here; nothing is turned or shifted, for both start at the first pose. Three things of it are kept although one would
not choose them: a step maps points of a frame into the next one's axes and is chained as if it were the camera's motion; the
windows at the end of a sequence are shorter, down to 3 frames; and the mean rotation counts the first frame, whose error is 0.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

from recon.eval.drift import rotation_errors_rad
from recon.geometry.se3 import inverse
from recon.types import Metric, Unit

PROTOCOL = "snippet-5"
NUM_FRAMES = 5
MIN_FRAMES = 3
"""Of a sequence, and of the windows at its end."""


def snippet_errors(
    pred_steps: Float[np.ndarray, "n 4 4"], gt_steps: Float[np.ndarray, "n 4 4"]
) -> tuple[Float[np.ndarray, " w"], Float[np.ndarray, " w"]]:
    """Return position error (length unit of the truth) and mean rotation error (rad) of each window of one gapless sequence.

    `steps[i]` maps points of camera i into camera i + 1. n steps give n - 1 windows.
    """
    ates, rotations = [], []
    for start in range(len(gt_steps) - 1):
        pred, gt = (_chained(steps[start : start + NUM_FRAMES - 1]) for steps in (pred_steps, gt_steps))
        ates.append(_scaled_error(pred[:, :3, 3], gt[:, :3, 3]))
        rotations.append(float(np.mean(rotation_errors_rad(pred, gt))))
    return np.array(ates), np.array(rotations)


def snippet_metrics(
    pred: Float[np.ndarray, "n 4 4"], gt: Float[np.ndarray, "n 4 4"], frame_idx: Int[np.ndarray, " n"], unit: Unit
) -> tuple[list[Metric], list[str]]:
    """Return mean and standard deviation over the windows of camera-to-world poses. No window reaches over a missing frame."""
    runs = np.split(np.arange(len(frame_idx)), np.flatnonzero(np.diff(frame_idx) != 1) + 1)
    errors = [snippet_errors(_steps(pred[run]), _steps(gt[run])) for run in runs if len(run) >= MIN_FRAMES]
    if not errors:
        return [], [f"{PROTOCOL} is not computable, because no {MIN_FRAMES} frames in succession have poses"]
    ate, rotation = (np.concatenate(values) for values in zip(*errors, strict=True))
    values = {
        "snippet_5_ate_mean": (np.mean(ate), unit),
        "snippet_5_ate_std": (np.std(ate), unit),
        "snippet_5_rotation_mean": (np.mean(rotation), "rad"),
        "snippet_5_rotation_std": (np.std(rotation), "rad"),
    }
    return [Metric("trajectory", name, float(value), u, "sim3_trajectory", protocol=PROTOCOL) for name, (value, u) in values.items()], []


def _steps(T_world_camera: np.ndarray) -> np.ndarray:
    return inverse(T_world_camera[1:]) @ T_world_camera[:-1]


def _chained(steps: np.ndarray) -> np.ndarray:
    poses = [np.eye(4)]
    for step in steps:
        poses.append(poses[-1] @ step)
    return np.stack(poses)


def _scaled_error(pred: np.ndarray, gt: np.ndarray) -> float:
    moved = float(np.sum(pred**2))
    # No factor changes a prediction that stands still.
    scale = float(np.sum(gt * pred)) / moved if moved > 0 else 1.0
    return float(np.sqrt(np.sum((scale * pred - gt) ** 2))) / len(gt)
