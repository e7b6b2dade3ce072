"""Distances between a reconstructed and a true surface, from seeded samples to exact triangles, both ways.

Accuracy: from the reconstruction to the truth. Completeness: from the truth (the part that the camera saw) to the
reconstruction. Nothing is cropped or capped, so an outlier costs what it costs.
"""

from __future__ import annotations

import numpy as np
import open3d as o3d
import open3d.core as o3c
from jaxtyping import Float

from recon.types import Alignment, Mesh, Metric

THRESHOLDS_MM = (1, 2, 5)
COVERAGE_MM = 5


def sample_surface(mesh: Mesh, num: int, seed: int) -> Float[np.ndarray, "n 3"]:
    """Return points spread uniformly over the area."""
    a, b, c = (mesh.vertices[mesh.faces[:, i]] for i in range(3))
    cumulative = np.cumsum(_double_areas(mesh))
    rng = np.random.default_rng(seed)
    face = np.minimum(np.searchsorted(cumulative, rng.random(num) * cumulative[-1], side="right"), len(cumulative) - 1)
    # Osada et al., "Shape distributions" (2002), eq. 1: the square root makes the density uniform in the triangle.
    u, v = np.sqrt(rng.random((num, 1))), rng.random((num, 1))
    return (1 - u) * a[face] + u * (1 - v) * b[face] + u * v * c[face]


def distances(points: Float[np.ndarray, "n 3"], mesh: Mesh) -> Float[np.ndarray, " n"]:
    """Return the unsigned distance of each point to the nearest point of any triangle."""
    center = mesh.vertices.mean(axis=0)  # float32 inside: far from the origin it would lose the digits that matter
    scene = o3d.t.geometry.RaycastingScene()
    scene.add_triangles(o3c.Tensor((mesh.vertices - center).astype(np.float32)), o3c.Tensor(mesh.faces.astype(np.uint32)))
    return scene.compute_distance(o3c.Tensor((points - center).astype(np.float32))).numpy().astype(np.float64)


def f_score(precision: float, recall: float) -> float:
    """Harmonic mean; 0 when both are 0."""
    return 0.0 if precision + recall == 0 else 2 * precision * recall / (precision + recall)


def surface_metrics(
    pred: Mesh, gt: Mesh, alignment: Alignment, median_depth: float | None = None, num_samples: int = 100_000, seed: int = 0
) -> tuple[list[Metric], list[str]]:
    """Return metrics of an already aligned prediction in the truth's unit, and notes on what could not be computed.

    Args:
        median_depth: of the true depth; adds `accuracy_mean_percent_of_depth`.
        num_samples: points on each surface.
    """
    for name, mesh in (("reconstruction", pred), ("truth", gt)):
        if not np.any(_double_areas(mesh) > 0):
            return [], [f"surface: not computable, the {name} has no area"]
    to_gt = distances(sample_surface(pred, num_samples, seed), gt)
    to_pred = distances(sample_surface(gt, num_samples, seed), pred)
    values = {
        "accuracy_mean": to_gt.mean(),
        "accuracy_median": np.median(to_gt),
        "accuracy_p95": np.percentile(to_gt, 95),
        "completeness_mean": to_pred.mean(),
        "chamfer_l1": (to_gt.mean() + to_pred.mean()) / 2,
        "hd95": max(np.percentile(to_gt, 95), np.percentile(to_pred, 95)),
    }
    metrics = [Metric("surface", name, float(value), gt.unit, alignment) for name, value in values.items()]
    if median_depth is not None:
        metrics.append(Metric("surface", "accuracy_mean_percent_of_depth", 100 * float(to_gt.mean()) / median_depth, "%", alignment))
    if gt.unit == "mm":
        metrics += _at_thresholds(to_gt, to_pred, alignment)
    return metrics, []


def _at_thresholds(to_gt: np.ndarray, to_pred: np.ndarray, alignment: Alignment) -> list[Metric]:
    metrics = []
    for limit in THRESHOLDS_MM:
        precision, recall = float(np.mean(to_gt < limit)), float(np.mean(to_pred < limit))
        for name, value in (("precision", precision), ("recall", recall), ("f", f_score(precision, recall))):
            metrics.append(Metric("surface", f"{name}_{limit}mm", value, "1", alignment, lower_is_better=False))
    covered = float(np.mean(to_pred < COVERAGE_MM))
    return [*metrics, Metric("surface", "coverage", covered, "1", alignment, lower_is_better=False)]


def _double_areas(mesh: Mesh) -> np.ndarray:
    a, b, c = (mesh.vertices[mesh.faces[:, i]] for i in range(3))
    return np.linalg.norm(np.cross(b - a, c - a), axis=1)
