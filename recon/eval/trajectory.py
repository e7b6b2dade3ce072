"""How far a camera path is from the true one: which frames are compared, how the paths are laid over each other, and the errors.

Alignments: none, first_pose (the first common pose is made to coincide), se3_trajectory and sim3_trajectory (least squares of the
camera centres). ATE as in Sturm et al., "A benchmark for the evaluation of RGB-D SLAM systems" (2012), always of camera centres.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float

from recon.eval.bootstrap import block_length, has_interval, intervals, no_interval_note
from recon.eval.c3vd_legacy import c3vd_legacy_metrics
from recon.eval.drift import path_length, relative_metrics, rotation_errors_rad, scale_drift_percent
from recon.eval.snippets import snippet_metrics
from recon.eval.unit_guess import unit_notes
from recon.geometry.alignment import RANK_TOLERANCE, umeyama
from recon.geometry.se3 import inverse
from recon.geometry.similarity import Similarity
from recon.types import Alignment, Metric, ReconError, Trajectory, Unit

MIN_POSES = 3
STRAIGHT = 0.05
"""A path whose second extent is a smaller share of its first may leave the roll about it to noise."""
MAX_ROLL_ERROR_DEG = 3.0
"""Standard error of the roll beyond which centres do not determine it; 3 deg move tissue 30 mm from the path by 1.6 mm."""
NUM_ROLL_BLOCKS = 10
MIN_ROLL_AGREEMENT = 0.5
"""Mean resultant length, 0 to 1, of the rolls that the frames' orientations ask for."""
MIN_SCALE = 1e-12


@dataclass(frozen=True)
class TrajectoryScore:
    """Errors of one path."""

    metrics: list[Metric]
    """Lengths in the truth's unit."""
    frames: list[dict[str, float | int]] = field(default_factory=list)
    """For each compared frame its `index`, and `<alignment>.ate` and `<alignment>.rotation_deg`."""
    notes: list[str] = field(default_factory=list)
    """What was not computable and why, and what was decided on the way."""
    alignments: dict[Alignment, Similarity] = field(default_factory=dict)
    """The transforms from prediction to truth."""


def score_trajectory(
    pred: Trajectory, gt: Trajectory, noise_floor: float | None = None, seed: int = 0, with_c3vd_legacy: bool = False
) -> TrajectoryScore:
    """Compare the frames that both paths have (equal `frame_indices`) under every alignment that makes sense.

    Without an alignment, with the first pose and with a rigid one only when both paths are in millimetres; then `scale_error` says
    by how much the claimed scale is off before any alignment of it, +5 % for a path that is 5 % too long. `noise_floor` (truth's
    unit) is attached to distances of centres. `with_c3vd_legacy` adds the figure of EndoGSLAM's tables on C3VD.
    """
    frame_idx, a, b = _common(pred, gt)
    if len(a) < MIN_POSES:
        return TrajectoryScore(
            [], notes=[f"trajectory: not computable, because {len(a)} frames have both a pose and a true pose and {MIN_POSES} are needed"]
        )
    both_metric = pred.unit == gt.unit == "mm"
    alignments, notes = _alignments(a, b, both_metric)
    aligned = {name: found.poses(a) for name, found in alignments.items()}
    metrics, frames = [], [{"index": int(index)} for index in frame_idx]
    ates = {name: centre_errors(poses, b) for name, poses in aligned.items()}
    bounds = _intervals(ates, seed)
    if ates and not bounds:
        notes.append(no_interval_note(len(a), "frames"))
    for name, poses in aligned.items():
        rotations_deg = np.degrees(rotation_errors_rad(poses, b))
        metrics += _centre_metrics(ates[name], bounds.get(name, {}), path_length(b), name, gt.unit, noise_floor)
        metrics.append(Metric("trajectory", "rotation_mean", float(np.mean(rotations_deg)), "deg", name))
        found, remarks = relative_metrics(poses, b, frame_idx, name, gt.unit)
        metrics += found
        notes += remarks
        for row, ate, rotation_deg in zip(frames, ates[name], rotations_deg, strict=True):
            row |= {f"{name}.ate": float(ate), f"{name}.rotation_deg": float(rotation_deg)}
    protocols = [_scale_metrics(a, b, alignments, both_metric), snippet_metrics(a, b, frame_idx, gt.unit)]
    if with_c3vd_legacy:
        protocols.append(c3vd_legacy_metrics(a, b, frame_idx, both_metric))
    for found, remarks in protocols:
        metrics += found
        notes += remarks
    return TrajectoryScore(metrics, frames, [f"trajectory: {note}" for note in dict.fromkeys(notes)], alignments)


def match(pred: Trajectory, gt: Trajectory) -> tuple[Float[np.ndarray, "n 4 4"], Float[np.ndarray, "n 4 4"]]:
    """Return the poses of the frames that both have, in frame order."""
    return _common(pred, gt)[1:]


def _common(pred: Trajectory, gt: Trajectory) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    common, of_pred, of_gt = np.intersect1d(pred.frame_indices, gt.frame_indices, return_indices=True)
    return common, pred.T_world_camera[of_pred].reshape(len(common), 4, 4), gt.T_world_camera[of_gt].reshape(len(common), 4, 4)


def similarity(pred: Float[np.ndarray, "n 4 4"], gt: Float[np.ndarray, "n 4 4"], with_scale: bool) -> Similarity:
    """Return what brings predicted camera centres to the true ones: Umeyama's least squares.

    Where the centres do not determine the roll about a nearly straight path (`is_roll_lost`), it is the one that the orientations
    agree on best (chordal mean, Hartley et al., "Rotation averaging", 2013); the direction of the path stays that of the centres.
    Raises ReconError when neither determines it.
    """
    source, target = pred[:, :3, 3], gt[:, :3, 3]
    if is_roll_lost(pred, gt):
        R = _rotation_with_roll_of_orientations(pred, gt)
        from_mean, to_mean = (source - source.mean(axis=0)) @ R.T, target - target.mean(axis=0)
        scale = float(np.sum(from_mean * to_mean) / np.sum(from_mean**2)) if with_scale else 1.0
        found = Similarity(scale, R, target.mean(axis=0) - scale * R @ source.mean(axis=0))
    else:
        found = umeyama(source, target, with_scale)
    if found.scale < MIN_SCALE:
        raise ReconError("the predicted and the true path do not vary together: no scale brings one to the other", exit_code=1)
    return found


def is_roll_lost(pred: Float[np.ndarray, "n 4 4"], gt: Float[np.ndarray, "n 4 4"]) -> bool:
    """Whether one path moves along nearly a line and what is left sideways does not fix the roll about it (`roll_error_rad`)."""
    extents = [_extents(poses) for poses in (pred, gt)]
    if len(pred) < MIN_POSES or any(found[0] == 0 for found in extents) or not (is_nearly_straight(pred) or is_nearly_straight(gt)):
        return False
    on_a_line = any(bool(found[1] <= RANK_TOLERANCE * found[0]) for found in extents)
    return on_a_line or roll_error_rad(pred, gt) > math.radians(MAX_ROLL_ERROR_DEG)


def is_nearly_straight(poses: Float[np.ndarray, "n 4 4"]) -> bool:
    """Whether centres move, but along one line."""
    if len(poses) < MIN_POSES:
        return False
    extents = _extents(poses)
    return bool(extents[0] > 0 and extents[1] < STRAIGHT * extents[0])


def roll_error_rad(pred: Float[np.ndarray, "n 4 4"], gt: Float[np.ndarray, "n 4 4"]) -> float:
    """Standard error of the roll about the common direction of two paths, as their sideways motion determines it.

    With sideways motion as complex numbers x and y, the roll is the argument of the sum of conj(x) y. Its error follows from how
    much consecutive parts of the path disagree on it (linearised block jackknife, Künsch 1989): errors of a path are correlated
    in time, so single frames may not be counted as independent.
    """
    source, target, along_source, along_target = _along_paths(pred, gt)
    x, y = (points @ (axes[:, 1] + 1j * axes[:, 2]) for points, axes in ((source, along_source), (target, along_target)))
    parts = np.array([np.sum(part) for part in np.array_split(np.conj(x) * y, min(NUM_ROLL_BLOCKS, len(x)))])
    if abs(parts.sum()) == 0:
        return np.inf
    disagreement = np.imag(parts * np.exp(-1j * np.angle(parts.sum())))
    return float(np.sqrt(len(parts) / (len(parts) - 1) * np.sum(disagreement**2)) / abs(parts.sum()))


def _extents(poses: np.ndarray) -> np.ndarray:
    return np.linalg.svd(poses[:, :3, 3] - poses[:, :3, 3].mean(axis=0), compute_uv=False)


def _along_paths(pred: np.ndarray, gt: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Centred centres of both, and for both a right-handed frame whose first axis is their common direction."""
    source, target = (poses[:, :3, 3] - poses[:, :3, 3].mean(axis=0) for poses in (pred, gt))
    U, _, Vt = np.linalg.svd(target.T @ source)
    return source, target, _frame_along(Vt[0]), _frame_along(U[:, 0])


def _frame_along(direction: np.ndarray) -> np.ndarray:
    across = np.cross(direction, np.eye(3)[np.argmin(np.abs(direction))])
    across /= np.linalg.norm(across)
    return np.stack([direction, across, np.cross(direction, across)], axis=1)


def _rotation_with_roll_of_orientations(pred: np.ndarray, gt: np.ndarray) -> np.ndarray:
    *_, along_pred, along_gt = _along_paths(pred, gt)
    wanted = along_gt.T @ np.sum(gt[:, :3, :3] @ np.swapaxes(pred[:, :3, :3], 1, 2), axis=0) @ along_pred
    cosine, sine = wanted[1, 1] + wanted[2, 2], wanted[2, 1] - wanted[1, 2]
    length = np.hypot(cosine, sine)
    if length < MIN_ROLL_AGREEMENT * 2 * len(pred):
        raise ReconError("the centres lie nearly on a line and the orientations disagree on the roll about it: not determined", exit_code=1)
    roll = np.array([[length, 0, 0], [0, cosine, -sine], [0, sine, cosine]]) / length
    return along_gt @ roll @ along_pred.T


def centre_errors(pred: Float[np.ndarray, "n 4 4"], gt: Float[np.ndarray, "n 4 4"]) -> Float[np.ndarray, " n"]:
    """Return the distance of each pair of camera centres."""
    return np.linalg.norm(pred[:, :3, 3] - gt[:, :3, 3], axis=1)


def _alignments(pred: np.ndarray, gt: np.ndarray, both_metric: bool) -> tuple[dict[Alignment, Similarity], list[str]]:
    found: dict[Alignment, Similarity] = {}
    notes = []
    if both_metric:
        first = gt[0] @ inverse(pred[0])
        found = {"none": Similarity(1.0, np.eye(3), np.zeros(3)), "first_pose": Similarity(1.0, first[:3, :3], first[:3, 3])}
    else:
        notes.append("errors without an alignment of the scale are not computable, because not both paths are in millimetres")
    try:
        if both_metric:
            found["se3_trajectory"] = similarity(pred, gt, with_scale=False)
        found["sim3_trajectory"] = similarity(pred, gt, with_scale=True)
    except ReconError as error:
        return found, [*notes, f"aligned errors are not computable, because {error}"]
    if is_roll_lost(pred, gt):
        notes.append(
            "the path is nearly straight and its sideways motion does not determine the roll about it,"
            " so the alignment takes the roll from the orientations"
        )
    return found, notes


def _intervals(ates: dict[Alignment, np.ndarray], seed: int) -> dict[Alignment, dict[str, tuple[float, float]]]:
    """Of mean and RMSE over the frames, with the alignment held as it is."""
    num = len(next(iter(ates.values()), ()))
    if not has_interval(num, block_length(num)):
        return {}
    columns = np.stack([values for ate in ates.values() for values in (ate, ate**2)], axis=1)
    bounds = intervals(columns, block_length(num), seed).reshape(-1, 2, 2)
    return {
        name: {"ate_mean": (float(mean[0]), float(mean[1])), "ate_rmse": (float(np.sqrt(square[0])), float(np.sqrt(square[1])))}
        for name, (mean, square) in zip(ates, bounds, strict=True)
    }


def _centre_metrics(
    ate: np.ndarray, bounds: dict[str, tuple[float, float]], path: float, alignment: Alignment, unit: Unit, noise_floor: float | None
) -> list[Metric]:
    rmse = float(np.sqrt(np.mean(ate**2)))
    values = {"ate_rmse": rmse, "ate_mean": float(np.mean(ate)), "ate_median": float(np.median(ate)), "ate_max": float(np.max(ate))}
    metrics = [
        Metric("trajectory", name, value, unit, alignment, interval=bounds.get(name), noise_floor=noise_floor)
        for name, value in values.items()
    ]
    if path > 0:
        share_floor = None if noise_floor is None else 100 * noise_floor / path
        metrics.append(Metric("trajectory", "ate_percent_of_path", 100 * rmse / path, "%", alignment, noise_floor=share_floor))
    return metrics


def _scale_metrics(
    pred: np.ndarray, gt: np.ndarray, alignments: dict[Alignment, Similarity], both_metric: bool
) -> tuple[list[Metric], list[str]]:
    metrics, notes = [], []
    if both_metric and "sim3_trajectory" in alignments:
        claimed = 1 / alignments["sim3_trajectory"].scale
        notes += unit_notes("the path's scale", 1 / claimed)
        metrics.append(Metric("trajectory", "scale_error", 100 * (claimed - 1), "%", "none", lower_is_better=None))
    try:
        metrics.append(Metric("trajectory", "scale_drift", scale_drift_percent(pred, gt), "%", "sim3_trajectory"))
    except ReconError as error:
        notes.append(f"scale_drift is not computable, because {error}")
    return metrics, notes
