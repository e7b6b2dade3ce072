"""The numbers that the distances between two aligned surfaces are summed up in, by one definition each.

Accuracy: from the reconstruction to the truth. Completeness: from the truth to the reconstruction. Chamfer L1 is the mean of the
two means, chamfer L2 the sum of the two mean squares, HD95 the larger of the two 95th percentiles and Hausdorff the larger of the
two maxima over the samples. Only the penalised figure is capped, so elsewhere an outlier costs what it costs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.spatial import cKDTree

from recon.eval.distances import Closest, FacingSurface, Samples, face_normals
from recon.eval.ladder import Sampled
from recon.geometry.similarity import Similarity
from recon.types import Mesh


@dataclass(frozen=True)
class SurfaceErrors:
    """Distances both ways under one alignment, in the truth's unit."""

    to_gt: Float[np.ndarray, " n"]
    to_pred: Float[np.ndarray, " m"]
    signed_to_gt: Float[np.ndarray, " n"]
    """Across the truth: positive in front of it, where the cameras are."""
    facing_to_gt: Float[np.ndarray, " n"]
    """To faces of the truth that look the same way; infinite where there is none."""
    cosines: Float[np.ndarray, " both"]
    """Between the normals of each sample, of either surface, and of its nearest point."""


@dataclass(frozen=True)
class Curve:
    """Precision, recall and F over the distance that still counts as right."""

    thresholds: Float[np.ndarray, " k"]
    precision: Float[np.ndarray, " k"]
    recall: Float[np.ndarray, " k"]
    f: Float[np.ndarray, " k"]


def front_signs(mesh: Mesh, centres: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, " f"]:
    """1 for each face whose normal points to the side of the camera centre nearest to it, -1 for the others."""
    middles = mesh.vertices[mesh.faces].mean(axis=1)
    _, nearest = cKDTree(centres).query(middles)
    return np.where(np.sum(face_normals(mesh) * (centres[nearest] - middles), axis=1) < 0, -1.0, 1.0)


def surface_errors(
    pred: Sampled,
    gt: Sampled,
    facing: FacingSurface,
    front: Float[np.ndarray, " f"],
    fit: Similarity,
    use_pred: np.ndarray,
    use_gt: np.ndarray,
) -> SurfaceErrors:
    """Measure the chosen samples (n,), (m,) bool of both surfaces; `front` as from `front_signs` of the truth.

    Nothing is moved but samples: those of the truth go into the prediction's own world, and their distances come back scaled.
    """
    on_pred, on_gt = pred.samples.chosen(use_pred), gt.samples.chosen(use_gt)
    moved = Samples(fit.map(on_pred.points), on_pred.normals @ fit.R.T)
    there = gt.surface.closest(moved.points)
    back = pred.surface.closest(fit.unmap(on_gt.points))
    cosines = [np.sum(moved.normals * there.normals, axis=1), np.sum(on_gt.normals * (back.normals @ fit.R.T), axis=1)]
    # Wound inside out as a whole, every face would look the wrong way; which way a surface is wound is another figure's matter.
    facing_normals = moved.normals * (-1.0 if np.median(cosines[0]) < 0 else 1.0)
    return SurfaceErrors(
        there.distances,
        fit.scale * back.distances,
        _along_normal(moved.points, there) * front[there.face_idx],
        facing.distances(moved.points, facing_normals, there),
        np.concatenate(cosines),
    )


def length_figures(errors: SurfaceErrors) -> dict[str, float]:
    """Figures that are lengths."""
    figures = {
        f"{name}_{statistic}": value
        for name, distances in (("accuracy", errors.to_gt), ("completeness", errors.to_pred))
        for statistic, value in _statistics(distances).items()
    }
    return figures | {
        "chamfer_l1": (figures["accuracy_mean"] + figures["completeness_mean"]) / 2,
        "hausdorff": max(figures["accuracy_max"], figures["completeness_max"]),
        "hd95": max(figures["accuracy_p95"], figures["completeness_p95"]),
    }


def facing_figure(errors: SurfaceErrors) -> tuple[float | None, float]:
    """Mean distance to the truth's faces that look the same way, and the share of samples for which there is none."""
    found = np.isfinite(errors.facing_to_gt)
    return (float(errors.facing_to_gt[found].mean()) if found.any() else None), float(np.mean(~found))


def chamfer_l2(errors: SurfaceErrors) -> float:
    return float(np.mean(errors.to_gt**2) + np.mean(errors.to_pred**2))


def normal_consistency(errors: SurfaceErrors) -> tuple[float, float]:
    """Mean absolute cosine, and mean cosine: -1 for a surface wound inside out."""
    return float(np.abs(errors.cosines).mean()), float(errors.cosines.mean())


def penalised(errors: SurfaceErrors, filled: float, cap: float) -> float:
    """Chamfer L1 with no distance beyond the cap, and the cap for every part of the truth's area that was not even filled.

    `filled` is the area of the reconstruction in that of the truth, at most 1. An empty reconstruction gets the cap, and one
    speck on the surface nearly as much.
    """
    accuracy = filled * np.minimum(errors.to_gt, cap).mean() + (1 - filled) * cap
    return float((accuracy + np.minimum(errors.to_pred, cap).mean()) / 2)


def curve(to_gt: Float[np.ndarray, " n"], to_pred: Float[np.ndarray, " m"], thresholds: Float[np.ndarray, " k"]) -> Curve:
    """Shares of samples nearer than each threshold; without samples none is near."""
    precision, recall = (np.searchsorted(np.sort(values), thresholds, side="left") / max(len(values), 1) for values in (to_gt, to_pred))
    return Curve(
        thresholds, precision, recall, np.array([f_score(*pair) for pair in zip(precision.tolist(), recall.tolist(), strict=True)])
    )


def f_score(precision: float, recall: float) -> float:
    """Harmonic mean; 0 when both are 0."""
    return 0.0 if precision + recall == 0 else 2 * precision * recall / (precision + recall)


def _statistics(distances: np.ndarray) -> dict[str, float]:
    median, p90, p95 = np.percentile(distances, [50, 90, 95])
    return {
        "mean": float(distances.mean()),
        "median": float(median),
        "rmse": float(np.sqrt(np.mean(distances**2))),
        "p90": float(p90),
        "p95": float(p95),
        "max": float(distances.max()),
    }


def _along_normal(points: np.ndarray, nearest: Closest) -> np.ndarray:
    return np.sum((points - nearest.points) * nearest.normals, axis=1)
