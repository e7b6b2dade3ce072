"""Errors of a camera path against truth, after no, a rigid and a similarity alignment of the camera centres.

ATE and RPE as in Sturm et al., "A benchmark for the evaluation of RGB-D SLAM systems" (2012).
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from recon.geometry.alignment import umeyama
from recon.geometry.se3 import inverse
from recon.types import Alignment, Metric, ReconError, Trajectory

MIN_POSES = 3
STRAIGHT = 0.05
"""A path whose second extent is a smaller share of its first leaves the roll about it to noise: orientations decide."""


def match(pred: Trajectory, gt: Trajectory) -> tuple[Float[np.ndarray, "n 4 4"], Float[np.ndarray, "n 4 4"]]:
    """Return the poses of the frames that both have, in frame order."""
    common, of_pred, of_gt = np.intersect1d(pred.frame_indices, gt.frame_indices, return_indices=True)
    return pred.T_world_camera[of_pred].reshape(len(common), 4, 4), gt.T_world_camera[of_gt].reshape(len(common), 4, 4)


def similarity(
    pred: Float[np.ndarray, "n 4 4"], gt: Float[np.ndarray, "n 4 4"], with_scale: bool
) -> tuple[float, Float[np.ndarray, "3 3"], Float[np.ndarray, " 3"]]:
    """Return scale, R, t that bring predicted camera centres to the true ones. Raises ReconError when they do not determine it.

    Along a nearly straight path the rotation is the mean of what the orientations say (chordal mean, Hartley et al. 2013).
    """
    source, target = pred[:, :3, 3], gt[:, :3, 3]
    if not is_nearly_straight(gt):
        return umeyama(source, target, with_scale)
    U, _, Vt = np.linalg.svd(np.sum(gt[:, :3, :3] @ np.swapaxes(pred[:, :3, :3], 1, 2), axis=0))
    R = U @ np.diag([1.0, 1.0, np.linalg.det(U @ Vt)]) @ Vt
    from_mean, to_mean = (source - source.mean(axis=0)) @ R.T, target - target.mean(axis=0)
    scale = float(np.sum(from_mean * to_mean) / np.sum(from_mean**2)) if with_scale else 1.0
    return scale, R, target.mean(axis=0) - scale * R @ source.mean(axis=0)


def is_nearly_straight(poses: Float[np.ndarray, "n 4 4"]) -> bool:
    """Whether centres move, but along one line."""
    centres = poses[:, :3, 3] - poses[:, :3, 3].mean(axis=0)
    extents = np.linalg.svd(centres, compute_uv=False)
    return bool(len(poses) >= MIN_POSES and extents[0] > 0 and extents[1] < STRAIGHT * extents[0])


def transformed(poses: Float[np.ndarray, "n 4 4"], scale: float, R: Float[np.ndarray, "3 3"], t: Float[np.ndarray, " 3"]) -> np.ndarray:
    """Apply a similarity to camera-to-world poses (n, 4, 4); rotations stay rotations."""
    out = poses.copy()
    out[:, :3, :3] = R @ poses[:, :3, :3]
    out[:, :3, 3] = scale * poses[:, :3, 3] @ R.T + t
    return out


def ate_rmse(pred: Float[np.ndarray, "n 4 4"], gt: Float[np.ndarray, "n 4 4"]) -> float:
    """Root mean square distance of camera centres."""
    return float(np.sqrt(np.mean(np.sum((pred[:, :3, 3] - gt[:, :3, 3]) ** 2, axis=1))))


def rotation_errors_rad(pred: Float[np.ndarray, "n 4 4"], gt: Float[np.ndarray, "n 4 4"]) -> Float[np.ndarray, " n"]:
    """Return the angle between each pair of orientations."""
    relative = np.swapaxes(pred[:, :3, :3], 1, 2) @ gt[:, :3, :3]
    # The angle from its sine and cosine: arccos alone loses half of the digits near zero.
    axis = np.stack([relative[:, 2, 1] - relative[:, 1, 2], relative[:, 0, 2] - relative[:, 2, 0], relative[:, 1, 0] - relative[:, 0, 1]])
    return np.arctan2(np.linalg.norm(axis, axis=0), np.trace(relative, axis1=1, axis2=2) - 1)


def relative_errors(pred: Float[np.ndarray, "n 4 4"], gt: Float[np.ndarray, "n 4 4"]) -> tuple[float, float]:
    """Return the RMS translation error and the RMS rotation error (rad) of steps from each posed frame to the next."""
    step_pred, step_gt = inverse(pred[:-1]) @ pred[1:], inverse(gt[:-1]) @ gt[1:]
    error = inverse(step_gt) @ step_pred
    translation = np.sqrt(np.mean(np.sum(error[:, :3, 3] ** 2, axis=1)))
    rotation = np.sqrt(np.mean(rotation_errors_rad(step_pred, step_gt) ** 2))
    return float(translation), float(rotation)


def trajectory_metrics(pred: Trajectory, gt: Trajectory) -> tuple[list[Metric], list[str]]:
    """Return metrics under every alignment that makes sense, and notes on what could not be computed.

    Lengths are in the truth's unit. Without an alignment and with a rigid one only when both paths are in millimetres;
    then `scale_error` says by how much the claimed scale is off.
    """
    a, b = match(pred, gt)
    if len(a) < MIN_POSES:
        return [], [f"trajectory: not computable, {len(a)} frames have both a pose and a true pose and {MIN_POSES} are needed"]
    both_metric = pred.unit == gt.unit == "mm"
    aligned: dict[Alignment, np.ndarray] = {"none": a} if both_metric else {}
    notes = []
    if is_nearly_straight(b):
        notes.append("trajectory: the true path is nearly straight, so the rotation of the alignment is taken from the orientations")
    scale = None
    try:
        if both_metric:
            aligned["se3_trajectory"] = transformed(a, *similarity(a, b, with_scale=False))
        scale, R, t = similarity(a, b, with_scale=True)
        aligned["sim3_trajectory"] = transformed(a, scale, R, t)
    except ReconError as error:
        notes.append(f"trajectory: aligned errors are not computable, {error}")
    metrics = [metric for name, poses in aligned.items() for metric in _metrics(poses, b, name, gt.unit)]
    if both_metric and scale is not None:
        metrics.append(Metric("trajectory", "scale_error", 100 * abs(1 / scale - 1), "%", "sim3_trajectory"))
    return metrics, notes


def _metrics(pred: np.ndarray, gt: np.ndarray, alignment: Alignment, unit: str) -> list[Metric]:
    translation, rotation = relative_errors(pred, gt)
    ate = ate_rmse(pred, gt)
    path = float(np.sum(np.linalg.norm(np.diff(gt[:, :3, 3], axis=0), axis=1)))
    metrics = [Metric("trajectory", "ate_rmse", ate, unit, alignment)]
    if path > 0:
        metrics.append(Metric("trajectory", "ate_percent_of_path", 100 * ate / path, "%", alignment))
    return [
        *metrics,
        Metric("trajectory", "rotation_mean", float(np.degrees(np.mean(rotation_errors_rad(pred, gt)))), "deg", alignment),
        Metric("trajectory", "rpe_translation", translation, unit, alignment),
        Metric("trajectory", "rpe_rotation", float(np.degrees(rotation)), "deg", alignment),
    ]
