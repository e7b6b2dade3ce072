"""How far a reconstructed surface is from the true one, under every alignment that makes sense.

Unseen truth does not count as missing: only the part that the true cameras saw is asked for. Invented surface counts as wrong:
the prediction is measured whole, and how much of it its own cameras never saw stands beside. A missing prediction is not a
good one: coverage, recall and the penalised figure are given even when there is nothing to measure.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from jaxtyping import Float

from recon.eval.distances import FacingSurface, Surface, double_areas, sample_surface
from recon.eval.icp import IcpSettings
from recon.eval.ladder import ICP_LADDER, LADDER, Poses, Rung, Sampled, icp_rungs, trajectory_rungs
from recon.eval.surface_errors import (
    Curve,
    SurfaceErrors,
    chamfer_l2,
    curve,
    facing_figure,
    front_signs,
    length_figures,
    normal_consistency,
    penalised,
    surface_errors,
)
from recon.eval.topology import topology
from recon.eval.unit_guess import unit_notes
from recon.eval.visibility import Views, observed_part, seen_points
from recon.types import Alignment, Mesh, Metric

WITHOUT_DIRECTION = {"components", "boundary_loops", "euler", "genus"}
"""Counts of which neither more nor fewer is better; non-manifold parts are always wrong."""


@dataclass(frozen=True)
class SurfaceOptions:
    """How finely surfaces are compared. Lengths are in the truth's unit, which must be mm for those that say so."""

    num_samples: int = 100_000
    """Points on each surface."""
    seed: int = 0
    thresholds_mm: tuple[float, ...] = (0.5, 1.0, 2.0, 5.0)
    """Of precision, recall and F."""
    coverage_mm: float = 5.0
    """True surface with reconstruction nearer than this is covered."""
    cap_mm: float = 10.0
    """What missing surface costs in the penalised figure, and where the curves end."""
    curve_steps: int = 100
    alignments: tuple[Alignment, ...] = LADDER
    """Which rungs are reported; those of the camera path are still found, for the others start from them."""
    icp: IcpSettings = field(default_factory=IcpSettings)


@dataclass(frozen=True)
class SurfaceScore:
    """What `score_surface` found."""

    metrics: list[Metric]
    rungs: list[Rung]
    curves: dict[Alignment, Curve]
    """Only when the truth is in mm."""
    notes: list[str]


def score_surface(
    pred: Mesh,
    gt: Mesh,
    *,
    poses: Poses | None,
    is_metric: bool,
    whole_gt: Mesh | None = None,
    pred_views: Views | None = None,
    gt_views: Views | None = None,
    gt_path: Float[np.ndarray, "m 4 4"] | None = None,
    median_depth: float | None = None,
    noise_floor: float | None = None,
    options: SurfaceOptions | None = None,
) -> SurfaceScore:
    """Score a prediction in its own world and unit against the truth.

    Args:
        gt: the part of the truth that the cameras saw, or all of it when `gt_views` says what they saw.
        poses: predicted and true camera-to-world poses of the same frames.
        is_metric: whether the prediction claims the truth's unit; without it there is no rung that believes its scale.
        whole_gt: all of the truth; adds `observable_share`, and hides in `gt_views`.
        pred_views: the prediction's own cameras, in its own world; adds `culled_share` and `accuracy_mean_visible`.
        gt_views: the true cameras in the truth's world; they restrict the truth to what they saw.
        gt_path: all true camera-to-world poses, in the truth's world: they tell the truth's front from its back. None: those of
            `gt_views` or `poses`.
        median_depth: of the true depth; adds `accuracy_mean_percent_of_depth`.
        noise_floor: of the truth, in its unit; noted on every length.
    """
    options = options or SurfaceOptions()
    whole = whole_gt if whole_gt is not None else gt if gt_views is not None else None
    observed = gt if gt_views is None or whole is None else observed_part(whole, gt_views)
    if not np.any(double_areas(observed) > 0):
        return SurfaceScore([], [], {}, ["surface: not computable, because the truth has no area that the cameras saw"])
    paths = (gt_path, gt_views and gt_views.T_world_camera, poses and poses[1])
    path = next((path for path in paths if path is not None and len(path)), None)
    front = np.ones(len(observed.faces)) if path is None else front_signs(observed, path[:, :3, 3])
    scorer = _Scorer(observed, front, options, median_depth, noise_floor)
    shared = [] if whole is None else [scorer.metric("observable_share", _area(observed) / _area(whole), "1", "none", lower=None)]
    structure = _topology_metrics(pred)
    if not np.any(double_areas(pred) > 0):
        rungs, notes = trajectory_rungs(poses, is_metric, np.zeros(3), gt.unit)
        empty = scorer.empty(rungs)
        return replace(empty, metrics=[*shared, *structure, *empty.metrics], notes=[*empty.notes, *notes])
    gt_sampled, pred_sampled = (
        Sampled(Surface(mesh), sample_surface(mesh, options.num_samples, options.seed)) for mesh in (observed, pred)
    )
    rungs, notes = _rungs(pred_sampled, gt_sampled, poses, is_metric, options)
    if path is None:
        notes.append("surface: signed_bias is positive on the side to which the truth's faces are wound, for no true camera path is known")
    is_seen = None if pred_views is None else seen_points(pred_sampled.samples.points, pred_sampled.surface, pred_views)
    if is_seen is not None:
        shared.append(scorer.metric("culled_share", float(np.mean(~is_seen)), "1", "none"))
    shown = [rung for rung in rungs if rung.alignment in options.alignments]
    scored = scorer.all(pred_sampled, gt_sampled, shown, is_seen)
    errors = _scale_errors(shown, rungs, scorer) if is_metric else []
    return SurfaceScore([*shared, *structure, *errors, *scored.metrics], shown, scored.curves, notes + scored.notes)


def _rungs(pred: Sampled, gt: Sampled, poses: Poses | None, is_metric: bool, options: SurfaceOptions) -> tuple[list[Rung], list[str]]:
    rungs, notes = trajectory_rungs(poses, is_metric, pred.samples.points.mean(axis=0), gt.surface.mesh.unit)
    if is_metric:
        by_path = [rung.similarity.scale for rung in rungs if rung.alignment == "sim3_trajectory"]
        notes += unit_notes("surface", by_path[0] if by_path else _extent(gt) / _extent(pred))
    wanted = [name for name in ICP_LADDER if name in options.alignments and (is_metric or name == "sim3_icp")]
    fitted, more = icp_rungs(pred, gt, rungs, poses, wanted, options.icp)
    return rungs + fitted, notes + more


def _extent(surface: Sampled) -> float:
    """Median distance of the samples from their middle: how large a surface is, outliers apart."""
    points = surface.samples.points
    return float(np.median(np.linalg.norm(points - np.median(points, axis=0), axis=1)))


@dataclass(frozen=True)
class _Scorer:
    """Metrics of one truth."""

    gt: Mesh
    front: Float[np.ndarray, " f"]
    """1 for the faces that are wound towards the cameras, -1 for the others."""
    options: SurfaceOptions
    median_depth: float | None
    noise_floor: float | None

    def metric(self, name: str, value: float, unit: str, alignment: Alignment, lower: bool | None = True) -> Metric:
        floor = self.noise_floor if unit == self.gt.unit else None
        return Metric("surface", name, value, unit, alignment, lower, noise_floor=floor)

    def all(self, pred: Sampled, gt: Sampled, rungs: list[Rung], is_seen: np.ndarray | None) -> SurfaceScore:
        """Every figure under every rung; the rungs fitted to the surface are scored on the half that they did not see."""
        metrics, curves, notes = [], {}, []
        facing = FacingSurface(gt.surface)
        everything = tuple(np.ones(len(surface.samples.points), bool) for surface in (pred, gt))
        for rung in rungs:
            use = rung.unseen or everything
            if not use[0].any() or not use[1].any():
                notes.append(f"surface ({rung.alignment}): not computable, because no samples are left to score the fit on")
                continue
            errors = surface_errors(pred, gt, facing, self.front, rung.similarity, *use)
            visible = None if is_seen is None else errors.to_gt[is_seen[use[0]]]
            metrics += self._figures(errors, visible, rung.alignment, notes)
            if rung.condition is not None:
                metrics.append(self.metric("icp_condition", rung.condition, "1", rung.alignment, lower=None))
            if self.gt.unit == "mm":
                metrics += self._at_thresholds(errors.to_gt, errors.to_pred, rung.alignment)
                filled = min(1.0, rung.similarity.scale**2 * pred.surface.area / gt.surface.area)
                metrics.append(self.metric("chamfer_penalised", penalised(errors, filled, self.options.cap_mm), "mm", rung.alignment))
                curves[rung.alignment] = curve(errors.to_gt, errors.to_pred, self._steps())
        return SurfaceScore(metrics, rungs, curves, notes)

    def empty(self, rungs: list[Rung]) -> SurfaceScore:
        """What is known without a reconstruction: nothing is covered, and missing costs the cap."""
        names: list[Alignment] = [rung.alignment for rung in rungs if rung.alignment in self.options.alignments] or ["none"]
        notes = ["surface: accuracy and completeness are not computable, because the reconstruction has no area"]
        if self.gt.unit != "mm":
            return SurfaceScore([], [], {}, notes)
        metrics = []
        for name in names:
            found = self._at_thresholds(np.zeros(0), np.full(1, np.inf), name)
            metrics += [metric for metric in found if not metric.name.startswith("precision")]
            metrics.append(self.metric("chamfer_penalised", self.options.cap_mm, "mm", name))
        return SurfaceScore(metrics, [], {}, notes)

    def _figures(self, errors: SurfaceErrors, visible: np.ndarray | None, alignment: Alignment, notes: list[str]) -> list[Metric]:
        unit = self.gt.unit
        metrics = [self.metric(name, value, unit, alignment) for name, value in length_figures(errors).items()]
        metrics.append(self.metric("signed_bias", float(errors.signed_to_gt.mean()), unit, alignment, lower=None))
        metrics.append(self.metric("chamfer_l2", chamfer_l2(errors), f"{unit}^2", alignment))
        for name, value in zip(("normal_consistency", "normal_consistency_signed"), normal_consistency(errors), strict=True):
            metrics.append(self.metric(name, value, "1", alignment, lower=False))
        facing, lost = facing_figure(errors)
        if facing is not None:
            metrics.append(self.metric("accuracy_normal_compatible", facing, unit, alignment))
        if lost > 0:
            notes.append(
                f"surface ({alignment}): {lost:.1%} of the reconstruction looks a way that no true face does; not in the facing figure"
            )
        if visible is not None and len(visible):
            metrics.append(self.metric("accuracy_mean_visible", float(visible.mean()), unit, alignment))
        elif visible is not None:
            notes.append(
                f"surface ({alignment}): accuracy_mean_visible is not computable, because its own cameras see none of the reconstruction"
            )
        if self.median_depth is not None:
            share = 100 * float(errors.to_gt.mean()) / self.median_depth
            floor = None if self.noise_floor is None else 100 * self.noise_floor / self.median_depth
            name = "accuracy_mean_percent_of_depth"
            metrics.append(Metric("surface", name, share, "%", alignment, noise_floor=floor))
        return metrics

    def _at_thresholds(self, to_gt: np.ndarray, to_pred: np.ndarray, alignment: Alignment) -> list[Metric]:
        limits = np.array([*self.options.thresholds_mm, self.options.coverage_mm], np.float64)
        found = curve(to_gt, to_pred, limits)
        metrics = []
        for idx, limit in enumerate(self.options.thresholds_mm):
            for name, values in (("precision", found.precision), ("recall", found.recall), ("f", found.f)):
                metrics.append(self.metric(f"{name}_{limit:g}mm", float(values[idx]), "1", alignment, lower=False))
        return [*metrics, self.metric("coverage", float(found.recall[-1]), "1", alignment, lower=False)]

    def _steps(self) -> np.ndarray:
        return np.linspace(0.0, self.options.cap_mm, self.options.curve_steps + 1)


def _scale_errors(shown: list[Rung], rungs: list[Rung], scorer: _Scorer) -> list[Metric]:
    """How much too large each rung leaves the reconstruction, by the camera path's scale, which no surface touched, or by the fit's."""
    scales = {rung.alignment: rung.similarity.scale for rung in rungs if rung.has_settled}
    right = scales.get("sim3_trajectory", scales.get("sim3_icp"))
    if right is None:
        return []
    return [scorer.metric("scale_error", 100 * (rung.similarity.scale / right - 1), "%", rung.alignment, lower=None) for rung in shown]


def _topology_metrics(pred: Mesh) -> list[Metric]:
    found = topology(pred)
    counts = {"components": found.components, "boundary_loops": found.boundary_loops, "non_manifold_edges": found.non_manifold_edges}
    counts |= {"non_manifold_vertices": found.non_manifold_vertices, "euler": found.euler}
    if found.genus is not None:
        counts["genus"] = found.genus
    metrics = [
        Metric("surface", name, float(value), "1", lower_is_better=None if name in WITHOUT_DIRECTION else True)
        for name, value in counts.items()
    ]
    return [*metrics, Metric("surface", "boundary_length", found.boundary_length, pred.unit, lower_is_better=None)]


def _area(mesh: Mesh) -> float:
    return float(double_areas(mesh).sum() / 2)
