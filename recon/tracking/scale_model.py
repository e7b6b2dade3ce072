"""Millimetres per world unit from a pre-operative model: the run's depth, laid onto a surface whose size is known.

A similarity is searched for from all turns that bring principal axes onto each other (coarse iterations of closest points after
Besl and McKay 1992, with the scale of Umeyama 1991), and the best few are refined by the point-to-plane fit of `recon.eval.icp`.
The answer is taken only where the shape decides: a fit that leaves a direction loose (a tube turns and slides), a second fit that
is about as good in another scale, and surfaces that do not match are refused. Half of the model or more must have been seen, since a scale
that is free would else shrink one surface onto a spot of the other: cut the model to the region of the recording.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations, product

import numpy as np
import open3d as o3d
import open3d.core as o3c
from jaxtyping import Float
from scipy.spatial import cKDTree

from recon.eval.distances import Samples, Surface, sample_surface
from recon.eval.icp import IcpFit, IcpSettings, icp
from recon.geometry.alignment import umeyama
from recon.geometry.cameras import ray_grid
from recon.geometry.depth_surface import depth_surface
from recon.geometry.similarity import Similarity
from recon.tracking.scale_sources import MIN_LOG_SIGMA, NUM_WINDOWS, MeasuredScale, WindowScale, jackknife_sigma
from recon.types import Camera, Mesh, ReconError, Scale

NUM_COARSE, COARSE_STEPS = 400, 12
START_SCALES = (1.0, 0.75)
"""Of the ratio of the surfaces' sizes: where the run saw less than the model holds, the true scale is smaller."""
SEEN_SHARE = 0.5
"""Of the model, at least, that counts when a start is judged."""
NUM_REFINED = 4
SETTINGS = IcpSettings(num_samples=1500, max_iterations=40)
AGAIN = IcpSettings(num_samples=1000, max_iterations=20)
"""From where a fit has settled."""
NUM_BLOCKS = 6
"""Of views, left out in turn to see how sure the scale is."""
MAX_RESIDUAL = 0.05
"""Median distance of a believable fit, in sizes of the model (median distance from its middle)."""
MAX_RIVAL = 1.4
"""A second fit whose distance is at most this many times the best one's leaves the answer open."""
SAME_DEG, SAME_LOG_SCALE = 15.0, 0.05
"""Starts that are closer to each other than both are one; fits whose scales are closer agree, wherever they lie."""


@dataclass(frozen=True)
class ModelView:
    """A posed frame with the run's depth, coarse enough to be a mesh."""

    index: int
    camera: Camera
    T_world_camera: Float[np.ndarray, "4 4"]
    depth: Float[np.ndarray, "h w"]
    """z-depth in world units on the camera's pixels; 0 unknown."""


def scale_from_model(views: Sequence[ModelView], model_mm: Mesh) -> MeasuredScale:
    """Register the views' depth with the model. One sigma joins the jackknife over views with the misfit of the shape.

    Raises ReconError (exit code 1) when the run has no depth, when nothing fits, and when the fit is not the only one.
    """
    mesh = _joined(views)
    if not len(mesh.faces):
        raise ReconError(f"scale.model_mm: none of {len(views)} posed frames has depth to lay onto the model", 1)
    source, target = Surface(mesh), Surface(model_mm)
    samples, goals = sample_surface(mesh, SETTINGS.num_samples, 0), sample_surface(model_mm, SETTINGS.num_samples, 1)
    fits = _refined(source, samples, target, goals)
    if not fits:
        raise ReconError(
            "scale.model_mm: the run's surface fits the model nowhere: is it the same organ, cut to the region that was seen?", 1
        )
    (distance, fit), size = fits[0], _size(goals.points)
    _check(distance, size, fit, fits[1:])
    blocks = np.array_split(np.arange(len(views)), min(NUM_BLOCKS, len(views)))
    scatter = jackknife_sigma([_without(views, block, target, goals, fit.similarity) for block in blocks]) if len(blocks) > 1 else 0.0
    scale = fit.similarity.scale
    sigma = scale * max(float(np.hypot(scatter, distance / size)), MIN_LOG_SIGMA)
    figures = {"overlap": fit.overlap, "condition": fit.condition, "distance_mm": distance}
    return MeasuredScale(Scale("model", scale, sigma), _along_path(views, fit.similarity, model_mm), figures=figures)


def _joined(views: Sequence[ModelView]) -> Mesh:
    """The depth of all views as one mesh in world units."""
    vertices, faces, count = [np.zeros((0, 3))], [np.zeros((0, 3), np.int64)], 0
    for view in views:
        mesh = depth_surface(view.camera, view.depth.astype(np.float64), view.depth > 0)
        vertices.append(mesh.vertices @ view.T_world_camera[:3, :3].T + view.T_world_camera[:3, 3])
        faces.append(mesh.faces + count)
        count += len(mesh.vertices)
    return Mesh(np.concatenate(vertices), np.concatenate(faces))


def _refined(source: Surface, samples: Samples, target: Surface, goals: Samples) -> list[tuple[float, IcpFit]]:
    """Fits from the best coarse starts with their symmetric distances (mm), best first; those that failed are left out."""
    found = []
    for start in _starts(samples.points, goals.points):
        try:
            fit = icp(source, samples, target, goals, start, True, SETTINGS)
        except ReconError:
            continue
        found.append((_distance(source, samples, target, goals, fit.similarity), fit))
    return sorted(found, key=lambda pair: pair[0])


def _starts(points: np.ndarray, goals: np.ndarray) -> list[Similarity]:
    """The best few of all turns of the principal axes after coarse iterations, none near a better one."""
    points, goals = points[:NUM_COARSE], goals[:NUM_COARSE]
    ratio = _size(goals) / _size(points)
    axes_of_points, axes_of_goals = _principal_axes(points), _principal_axes(goals)
    tree = cKDTree(goals)
    tried = []
    for turn, share in product(_axis_turns(), START_SCALES):
        R = axes_of_goals @ turn @ axes_of_points.T
        start = Similarity(ratio * share, R, goals.mean(axis=0) - ratio * share * R @ points.mean(axis=0))
        tried.append(_coarse(points, goals, tree, start))
    kept: list[Similarity] = []
    for _, pose in sorted(tried, key=lambda pair: pair[0]):
        if len(kept) < NUM_REFINED and not any(_is_same(pose, other) for other in kept):
            kept.append(pose)
    return kept


def _coarse(points: np.ndarray, goals: np.ndarray, tree: cKDTree, pose: Similarity) -> tuple[float, Similarity]:
    """Closest points in both directions, the nearest share of the goals; returns the mean distance and the pose."""
    for _ in range(COARSE_STEPS):
        moved = pose.map(points)
        there = tree.query(moved)[1]
        distance, back = cKDTree(moved).query(goals)
        near = np.argsort(distance, kind="stable")[: int(SEEN_SHARE * len(goals))]
        fit = umeyama(np.concatenate([points, points[back[near]]]), np.concatenate([goals[there], goals[near]]))
        pose = Similarity(max(fit.scale, 1e-9), fit.R, fit.t)
    moved = pose.map(points)
    back = np.sort(cKDTree(moved).query(goals)[0])[: int(SEEN_SHARE * len(goals))]
    return float(tree.query(moved)[0].mean() + back.mean()), pose


def _distance(source: Surface, samples: Samples, target: Surface, goals: Samples, pose: Similarity) -> float:
    """Mean of the medians of the distances between the surfaces, of the model only its share that was surely seen, mm."""
    there = target.distances(pose.map(samples.points))
    back = np.sort(pose.scale * source.distances(pose.unmap(goals.points)))[: int(SEEN_SHARE * len(goals.points))]
    return float(np.median(there) + np.median(back)) / 2


def _check(distance: float, size: float, fit: IcpFit, others: Sequence[tuple[float, IcpFit]]) -> None:
    """Raises ReconError where the best fit is none, or not the only one."""
    advice = "give the unit in another way, such as scale.factor_mm"
    if distance > MAX_RESIDUAL * size:
        raise ReconError(
            f"scale.model_mm: the best fit lies {distance / size:.1%} of the model's size off, expected {MAX_RESIDUAL:.0%} or less: is it "
            "the same organ, cut to the region that was seen?",
            1,
        )
    if fit.condition > SETTINGS.max_condition:
        raise ReconError(f"scale.model_mm: the shape does not decide ({'; '.join(fit.notes)}), as of a tube or a ball; {advice}", 1)
    for rival, other in others:
        if abs(np.log(other.similarity.scale / fit.similarity.scale)) > SAME_LOG_SCALE and rival <= MAX_RIVAL * distance:
            scales = f"{fit.similarity.scale:.4g} and {other.similarity.scale:.4g} mm"
            raise ReconError(
                f"scale.model_mm: two fits are about as good, at {scales} per world unit: the model is too regular; {advice}", 1
            )


def _without(views: Sequence[ModelView], left_out: np.ndarray, target: Surface, goals: Samples, start: Similarity) -> float:
    """Log scale of the fit of the other views, since the errors of one view's depth go together."""
    mesh = _joined([view for number, view in enumerate(views) if number not in left_out])
    try:
        fit = icp(Surface(mesh), sample_surface(mesh, SETTINGS.num_samples, 0), target, goals, start, True, AGAIN)
    except ReconError as error:
        raise ReconError(
            f"scale.model_mm: without some of the views the fit fails ({error}), so its scale is not to be trusted", 1
        ) from error
    return float(np.log(fit.similarity.scale))


def _along_path(views: Sequence[ModelView], pose: Similarity, model_mm: Mesh) -> tuple[WindowScale, ...]:
    """The model's depth over the run's, along parts of the path, seen from the registered cameras."""
    scene = o3d.t.geometry.RaycastingScene()
    scene.add_triangles(o3c.Tensor(model_mm.vertices.astype(np.float32)), o3c.Tensor(model_mm.faces.astype(np.uint32)))
    factors = {}
    for view in views:
        T = pose.poses(view.T_world_camera)
        rays = ray_grid(view.camera)[view.depth > 0]
        origins = np.broadcast_to(T[:3, 3], rays.shape)
        hit = scene.cast_rays(o3c.Tensor(np.concatenate([origins, rays @ T[:3, :3].T], axis=1).astype(np.float32)))["t_hit"].numpy()
        ratio = (hit * rays[:, 2] / view.depth[view.depth > 0])[np.isfinite(hit)]
        if len(ratio):
            factors[view.index] = float(np.median(ratio))
    parts = np.array_split(np.array(list(factors), dtype=np.int64), max(1, min(NUM_WINDOWS, len(factors)))) if factors else []
    return tuple(WindowScale(int(part[len(part) // 2]), float(np.median([factors[index] for index in part]))) for part in parts)


def _is_same(one: Similarity, other: Similarity) -> bool:
    turned = Similarity(1.0, one.R @ other.R.T, np.zeros(3)).rotation_deg
    return turned < SAME_DEG and abs(float(np.log(one.scale / other.scale))) < SAME_LOG_SCALE


def _size(points: np.ndarray) -> float:
    return float(np.median(np.linalg.norm(points - np.median(points, axis=0), axis=1)))


def _principal_axes(points: np.ndarray) -> np.ndarray:
    """As columns, the longest first, right-handed."""
    axes = np.linalg.eigh(np.cov((points - points.mean(axis=0)).T))[1][:, ::-1]
    return axes * np.array([1.0, 1.0, np.sign(np.linalg.det(axes))])


def _axis_turns() -> list[np.ndarray]:
    """The 24 rotations that map axes onto axes."""
    signed = (np.eye(3)[list(order)] * np.array(signs)[:, None] for order in permutations(range(3)) for signs in product((1, -1), repeat=3))
    return [turn for turn in signed if np.linalg.det(turn) > 0]
