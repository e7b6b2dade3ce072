"""How a reconstruction is brought to the truth: every rung from taking it at its word to fitting its surface.

none, first_pose and the rigid rungs take the reconstruction's millimetres at their word and exist only when it has them.
The rungs of the camera path never see the surface. The ICP rungs see half of it: a checkerboard of cells in space says which
samples may pull and which are kept for the score.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float

from recon.eval.distances import Samples, Surface
from recon.eval.icp import IcpSettings, Similarity, icp
from recon.eval.trajectory import similarity
from recon.geometry.se3 import inverse
from recon.types import Alignment, Mesh, ReconError, Unit

LADDER: tuple[Alignment, ...] = ("none", "first_pose", "se3_trajectory", "sim3_trajectory", "se3_icp", "sim3_icp")
ICP_LADDER: tuple[Alignment, ...] = ("se3_icp", "sim3_icp")
"""The rungs that are fitted to the surface; without millimetres only the second makes sense."""
CELLS_PER_RADIUS = 4.0

Poses = tuple[Float[np.ndarray, "n 4 4"], Float[np.ndarray, "n 4 4"]]
"""Predicted and true camera-to-world poses of the same frames."""


@dataclass(frozen=True)
class Rung(Similarity):
    """One alignment: maps the prediction's points to the truth's world."""

    alignment: Alignment
    unit: Unit
    """Of the truth."""
    centroid: Float[np.ndarray, " 3"]
    """Of the predicted surface, before."""
    condition: float | None = None
    """Of an ICP fit's normal matrix."""
    notes: tuple[str, ...] = ()

    @property
    def is_fitted_to_surface(self) -> bool:
        return self.alignment in ICP_LADDER

    @property
    def shift_of_centroid(self) -> float:
        """How far the predicted surface's centroid moves, in the truth's unit."""
        return float(np.linalg.norm(self.map(self.centroid[None])[0] - self.centroid))

    @property
    def shift_of_origin(self) -> float:
        """Length of `t`: how far the prediction's origin moves, in the truth's unit."""
        return float(np.linalg.norm(self.t))

    def apply(self, mesh: Mesh) -> Mesh:
        """The prediction in the truth's world and unit."""
        normals = None if mesh.normals is None else mesh.normals @ self.R.T
        return replace(mesh, vertices=self.map(mesh.vertices), normals=normals, unit=self.unit)


@dataclass(frozen=True)
class Sampled:
    """A surface with its samples, and which of them an ICP fit may use; the others are for scoring it."""

    surface: Surface
    samples: Samples
    for_fit: Bool[np.ndarray, " n"]


def sampled(mesh: Mesh, samples: Samples) -> Sampled:
    """Split the samples by a checkerboard of cells, four to the median distance from the surface's middle."""
    middle = np.median(samples.points, axis=0)
    cell = np.median(np.linalg.norm(samples.points - middle, axis=1)) / CELLS_PER_RADIUS
    # A quarter of a cell off: a flat surface through the middle would else lie on a border of cells and fall apart by rounding.
    parity = np.floor((samples.points - middle) / cell + 0.25).sum(axis=1) % 2
    return Sampled(Surface(mesh), samples, parity == 0)


def trajectory_rungs(poses: Poses | None, is_metric: bool, centroid: Float[np.ndarray, " 3"], unit: Unit) -> tuple[list[Rung], list[str]]:
    """The rungs that the camera paths allow, and notes on those that they do not.

    Args:
        is_metric: whether the prediction claims the truth's unit.
        centroid: of the predicted surface.
    """
    rungs, notes = [], []
    identity = Similarity(1.0, np.eye(3), np.zeros(3))
    ways: list[tuple[Alignment, Callable[[], Similarity]]] = [("none", lambda: identity)] if is_metric else []
    if poses is not None and len(poses[0]):
        if is_metric:
            ways += [
                ("first_pose", lambda: _first_pose(poses)),
                ("se3_trajectory", lambda: Similarity(*similarity(*poses, with_scale=False))),
            ]
        ways.append(("sim3_trajectory", lambda: Similarity(*similarity(*poses, with_scale=True))))
    for alignment, way in ways:
        try:
            rungs.append(_rung(way(), alignment, unit, centroid))
        except ReconError as error:
            notes.append(f"surface ({alignment}): not computable, because {error}")
    return rungs, notes


def icp_rungs(
    pred: Sampled, gt: Sampled, below: list[Rung], poses: Poses | None, wanted: Sequence[Alignment], settings: IcpSettings
) -> tuple[list[Rung], list[str]]:
    """The wanted rungs of `ICP_LADDER`, each fitted from the best trajectory rung of its kind, and notes."""
    rungs, notes = [], []
    unit = gt.surface.mesh.unit
    centroid = pred.samples.points.mean(axis=0)
    starts = {rung.alignment: rung for rung in below}
    for alignment in wanted:
        with_scale = alignment == "sim3_icp"
        if not with_scale and (factor := _scale_gap(starts.get("sim3_trajectory"))) > settings.max_scale_change:
            notes.append(f"surface ({alignment}): not computable, because the sizes differ by a factor of {factor:.3g}")
            continue
        order = ("sim3_trajectory", "se3_trajectory", "first_pose", "none")[not with_scale :]
        start: Similarity | None = next((starts[name] for name in order if name in starts), None)
        if start is None:
            start = _by_moments(pred.samples.points, gt.samples.points, poses)
            notes.append(f"surface ({alignment}): started from equal centroids and sizes, for no camera path gives a start")
        try:
            fit = icp(
                pred.surface, pred.samples.chosen(pred.for_fit), gt.surface, gt.samples.chosen(gt.for_fit), start, with_scale, settings
            )
        except ReconError as error:
            notes.append(f"surface ({alignment}): not computable, because {error}")
            continue
        rungs.append(_rung(fit.similarity, alignment, unit, centroid, fit.condition, fit.notes))
        notes.extend(f"surface ({alignment}): {note}" for note in fit.notes)
    return rungs, notes


def _rung(
    found: Similarity, alignment: Alignment, unit: Unit, centroid: np.ndarray, condition: float | None = None, notes: tuple[str, ...] = ()
) -> Rung:
    return Rung(found.scale, found.R, found.t, alignment, unit, centroid, condition, notes)


def _scale_gap(rung: Rung | None) -> float:
    return 1.0 if rung is None else max(rung.scale, 1 / rung.scale)


def _first_pose(poses: Poses) -> Similarity:
    T = poses[1][0] @ inverse(poses[0][0])
    return Similarity(1.0, T[:3, :3], T[:3, 3])


def _by_moments(pred: np.ndarray, gt: np.ndarray, poses: Poses | None) -> Similarity:
    """Same centroid and RMS radius; turned as the first camera says, if there is one."""
    R = np.eye(3) if poses is None or not len(poses[0]) else _first_pose(poses).R
    radius = [float(np.sqrt(np.mean(np.sum((points - points.mean(axis=0)) ** 2, axis=1)))) for points in (pred, gt)]
    scale = radius[1] / radius[0]
    return Similarity(scale, R, gt.mean(axis=0) - scale * R @ pred.mean(axis=0))
