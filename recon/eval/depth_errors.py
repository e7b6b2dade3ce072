"""The error of a depth map at given pixels: names, definitions, units.

`abs_rel` to `delta_1.25^3` as in Eigen et al., "Depth map prediction from a single image using a multi-scale deep network"
(2014); thresholds in millimetres mean something only where depth is in millimetres.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from recon.eval.medians import median
from recon.types import ReconError, Unit

HIGHER_IS_BETTER = {"delta_1.25", "delta_1.25^2", "delta_1.25^3", "acc_2cm", "acc_rel_0.1", "coverage"}
LENGTHS = {"rmse", "mae", "median_ae", "mae_penalised", "sq_rel"}
"""Measures in the unit of depth."""
DELTAS = {"delta_1.25": 1.25, "delta_1.25^2": 1.25**2, "delta_1.25^3": 1.25**3}
BAD_MM = {"bad_1mm": 1.0, "bad_2mm": 2.0, "bad_5mm": 5.0}
ACCURATE_MM = 20.0
"""acc_2cm counts errors below it."""
CHUNK = 1 << 18
"""Pixels at a time: what is worked on stays in the cache, and threads seldom wait for one another."""

PPSNET_EPSILON_M = 1e-6
MM_PER_M = 1000.0


def depth_errors(pred: Float[np.ndarray, " n"], gt: Float[np.ndarray, " n"]) -> dict[str, float]:
    """Return the errors over pixels at which both depths are positive.

    `sq_rel` keeps the unit of depth, `rmse_log` is in natural logarithms, `bad_1mm` is the share of errors above 1 in the unit
    of depth. Sums are taken in the precision of the input. Raises ReconError when there is no pixel.
    """
    if len(gt) == 0:
        raise ReconError("depth errors: no pixel has both depths, leave the frame out and say so")
    sums = dict.fromkeys(("abs_rel", "sq_rel", "square", "square_log", "mae", *DELTAS, "acc_2cm", *BAD_MM), 0.0)
    errors = np.abs(pred - gt)
    for start in range(0, len(gt), CHUNK):
        part = slice(start, start + CHUNK)
        p, g, error = pred[part], gt[part], errors[part]
        ratio, relative = p / g, error / g
        log = np.log(ratio)
        larger = np.maximum(ratio, g / p)
        sums["abs_rel"] += float(relative.sum())
        sums["sq_rel"] += float((relative * error).sum())
        sums["square"] += float((error * error).sum())
        sums["square_log"] += float((log * log).sum())
        sums["mae"] += float(error.sum())
        sums["acc_2cm"] += np.count_nonzero(error < ACCURATE_MM)
        for name, limit in DELTAS.items():
            sums[name] += np.count_nonzero(larger < limit)
        for name, limit in BAD_MM.items():
            sums[name] += np.count_nonzero(error > limit)
    means = {name: total / len(gt) for name, total in sums.items()}
    means["rmse"], means["rmse_log"] = float(np.sqrt(means.pop("square"))), float(np.sqrt(means.pop("square_log")))
    means["median_ae"] = median(errors)
    return means


def penalised_errors(pred: Float[np.ndarray, " n"], gt: Float[np.ndarray, " n"], missing: Float[np.ndarray, " k"]) -> dict[str, float]:
    """Return mean errors over all true pixels, where an error is at most the true depth itself and a missing pixel costs that.

    So leaving a pixel out is never better than a depth of zero, and never better than any other prediction.

    Args:
        pred, gt: where both are known.
        missing: true depth where nothing is predicted.
    """
    num = len(gt) + len(missing)
    error, relative = float(missing.sum(dtype=np.float64)), float(len(missing))
    for start in range(0, len(gt), CHUNK):
        g = gt[start : start + CHUNK]
        capped = np.minimum(np.abs(pred[start : start + CHUNK] - g), g)
        error += float(capped.sum())
        relative += float((capped / g).sum())
    return {"abs_rel_penalised": relative / num, "mae_penalised": error / num}


def ppsnet_errors(pred: Float[np.ndarray, " n"], gt: Float[np.ndarray, " n"]) -> dict[str, float]:
    """Return the errors as Roni-Lab/PPSNet test_ppsnet.py takes them, of depth in metres; lengths are returned in mm.

    A millionth of a metre keeps zeros out of denominators and logarithms; `acc_rel_0.1` is the share of relative errors below 0.1.
    """
    p, g = pred.astype(np.float64), gt.astype(np.float64)
    error = np.abs(g - p)
    relative = error / (g + PPSNET_EPSILON_M)
    return {
        "abs_rel": float(relative.mean()),
        "sq_rel": MM_PER_M * float((error**2 / (g + PPSNET_EPSILON_M)).mean()),
        "rmse": MM_PER_M * float(np.sqrt((error**2).mean())),
        "rmse_log": float(np.sqrt(((np.log(g + PPSNET_EPSILON_M) - np.log(p + PPSNET_EPSILON_M)) ** 2).mean())),
        "acc_rel_0.1": float((relative < 0.1).mean()),
    }


def unit_of(name: str, unit: Unit) -> str:
    """Return the unit of a measure of depth that is in `unit`."""
    return unit if name in LENGTHS else "1"
