"""The "ATE" of EndoGSLAM's tables on C3VD, replayed so that old tables can be compared: the protocol "c3vd-legacy".

It is no error of camera centres. EndoGSLAM's `utils/eval_helpers.py` writes world-to-camera matrices relative to the first frame,
for the frames that were used for mapping (all but 7, 15, 23 ...); its `utils/metrics_helper.py` takes their translation columns,
-R^T c, aligns them rigidly without scale and averages the distances (a mean, not an RMSE). A camera that turns about its right
centre is wrong by it, and some wrong centres are right by it. Endo-2DTAM uses the same arithmetic.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

from recon.geometry.se3 import inverse
from recon.types import Metric

PROTOCOL = "c3vd-legacy"
HELD_OUT_EVERY = 8
MIN_FRAMES = 3


def legacy_ate(pred: Float[np.ndarray, "n 4 4"], gt: Float[np.ndarray, "n 4 4"]) -> float:
    """Return the mean distance of aligned translation columns, of camera-to-world poses in the same unit."""
    source, target = (_translation_columns(poses) for poses in (pred, gt))
    source, target = source - source.mean(axis=0), target - target.mean(axis=0)
    U, _, Vt = np.linalg.svd(target.T @ source)
    R = (U * [1, 1, 1 if np.linalg.det(U) * np.linalg.det(Vt) >= 0 else -1]) @ Vt
    return float(np.mean(np.linalg.norm(source @ R.T - target, axis=1)))


def c3vd_legacy_metrics(
    pred: Float[np.ndarray, "n 4 4"], gt: Float[np.ndarray, "n 4 4"], frame_idx: Int[np.ndarray, " n"], both_metric: bool
) -> tuple[list[Metric], list[str]]:
    """Return the figure for paths in millimetres; it has no other alignment than the rigid one."""
    if not both_metric:
        return [], [f"{PROTOCOL} is not computable, because it knows no scale and not both paths are in millimetres"]
    mapped = frame_idx % HELD_OUT_EVERY != HELD_OUT_EVERY - 1
    if np.count_nonzero(mapped) < MIN_FRAMES:
        return [], [f"{PROTOCOL} is not computable, because fewer than {MIN_FRAMES} frames are left without those it holds out"]
    value = legacy_ate(pred[mapped], gt[mapped])
    return [Metric("trajectory", "c3vd_legacy_ate_mean", value, "mm", "se3_trajectory", protocol=PROTOCOL)], []


def _translation_columns(T_world_camera: np.ndarray) -> np.ndarray:
    relative = inverse(T_world_camera[0]) @ T_world_camera
    return inverse(relative)[:, :3, 3]
