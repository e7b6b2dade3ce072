"""How a reconstruction is brought to the truth: every rung from taking it at its word to fitting its surface.

none, first_pose and the rigid rungs take the reconstruction's millimetres at their word and exist only when it has them.
The rungs of the camera path never see the surface. The ICP rungs see half of the truth: of a checkerboard of cells in its world
one colour may pull and the other is kept for the score. The prediction's samples belong to the cell of their nearest true point,
for where they start says nothing of where they end; so no true cell that took part in a fit is scored.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float, Int

from recon.eval.distances import Samples, Surface
from recon.eval.icp import IcpSettings, icp
from recon.eval.trajectory import similarity
from recon.geometry.se3 import inverse
from recon.geometry.similarity import Similarity
from recon.types import Alignment, Mesh, ReconError, Unit

LADDER: tuple[Alignment, ...] = ("none", "first_pose", "se3_trajectory", "sim3_trajectory", "se3_icp", "sim3_icp")
ICP_LADDER: tuple[Alignment, ...] = ("se3_icp", "sim3_icp")
"""The rungs that are fitted to the surface; without millimetres only the second makes sense."""
CELLS_PER_RADIUS = 4.0

Poses = tuple[Float[np.ndarray, "n 4 4"], Float[np.ndarray, "n 4 4"]]
"""Predicted and true camera-to-world poses of the same frames."""


@dataclass(frozen=True)
class Rung:
    """One alignment of prediction and truth."""

    similarity: Similarity
    """From the prediction's world to the truth's."""
    alignment: Alignment
    unit: Unit
    """Of the truth."""
    centroid: Float[np.ndarray, " 3"]
    """Of the predicted surface, before."""
    condition: float | None = None
    """Of an ICP fit's normal matrix."""
    unseen: tuple[Bool[np.ndarray, " n"], Bool[np.ndarray, " m"]] | None = None
    """Of a fit to the surface: which samples of prediction and truth belong to cells that took no part in it."""
    has_settled: bool = True
    """False for a fit whose steps ran out: what it says of the scale is not believed."""

    @property
    def shift_of_centroid(self) -> float:
        """How far the predicted surface's centroid moves, in the truth's unit."""
        return float(np.linalg.norm(self.similarity.map(self.centroid[None])[0] - self.centroid))

    def apply(self, mesh: Mesh) -> Mesh:
        """The prediction in the truth's world and unit."""
        normals = None if mesh.normals is None else mesh.normals @ self.similarity.R.T
        return replace(mesh, vertices=self.similarity.map(mesh.vertices), normals=normals, unit=self.unit)


@dataclass(frozen=True)
class Sampled:
    """A surface with its samples."""

    surface: Surface
    samples: Samples


@dataclass(frozen=True)
class Checkerboard:
    """Cubes of the truth's world in two colours: one for fitting, the other for scoring the fit."""

    middle: Float[np.ndarray, " 3"]
    cell: float
    """Length of an edge."""

    @classmethod
    def on(cls, points: Float[np.ndarray, "n 3"]) -> Checkerboard:
        """Four cells to the points' median distance from their middle."""
        middle = np.median(points, axis=0)
        return cls(middle, float(np.median(np.linalg.norm(points - middle, axis=1))) / CELLS_PER_RADIUS)

    def cells(self, points: Float[np.ndarray, "n 3"]) -> Int[np.ndarray, "n 3"]:
        """The cell that each point lies in."""
        # A quarter of a cell off: a flat surface through the middle would else lie on a border of cells and fall apart by rounding.
        return np.floor((points - self.middle) / self.cell + 0.25).astype(np.int64)

    def is_for_fit(self, points: Float[np.ndarray, "n 3"]) -> Bool[np.ndarray, " n"]:
        return self.cells(points).sum(axis=1) % 2 == 0


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
                ("se3_trajectory", lambda: similarity(*poses, with_scale=False)),
            ]
        ways.append(("sim3_trajectory", lambda: similarity(*poses, with_scale=True)))
    for alignment, way in ways:
        try:
            rungs.append(Rung(way(), alignment, unit, centroid))
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
    board = Checkerboard.on(gt.samples.points)
    starts = {rung.alignment: rung for rung in below}
    for alignment in wanted:
        with_scale = alignment == "sim3_icp"
        if not with_scale and (factor := _scale_gap(starts.get("sim3_trajectory"))) > settings.max_scale_change:
            notes.append(f"surface ({alignment}): not computable, because the sizes differ by a factor of {factor:.3g}")
            continue
        order = ("sim3_trajectory", "se3_trajectory", "first_pose", "none")[not with_scale :]
        start = next((starts[name].similarity for name in order if name in starts), None)
        if start is None:
            start = _by_moments(pred.samples.points, gt.samples.points, poses)
            notes.append(f"surface ({alignment}): started from equal centroids and sizes, for no camera path gives a start")
        try:
            fit = icp(pred.surface, pred.samples, gt.surface, gt.samples, start, with_scale, settings, board.is_for_fit)
        except ReconError as error:
            notes.append(f"surface ({alignment}): not computable, because {error}")
            continue
        nearest = gt.surface.closest(fit.similarity.map(pred.samples.points)).points
        unseen = ~board.is_for_fit(nearest), ~board.is_for_fit(gt.samples.points)
        rungs.append(Rung(fit.similarity, alignment, unit, centroid, fit.condition, unseen, fit.has_settled))
        notes.extend(f"surface ({alignment}): {note}" for note in fit.notes)
    return rungs, notes


def _scale_gap(rung: Rung | None) -> float:
    return 1.0 if rung is None else max(rung.similarity.scale, 1 / rung.similarity.scale)


def _first_pose(poses: Poses) -> Similarity:
    T = poses[1][0] @ inverse(poses[0][0])
    return Similarity(1.0, T[:3, :3], T[:3, 3])


def _by_moments(pred: np.ndarray, gt: np.ndarray, poses: Poses | None) -> Similarity:
    """Same centroid and RMS radius; turned as the first camera says, if there is one."""
    R = np.eye(3) if poses is None or not len(poses[0]) else _first_pose(poses).R
    radius = [float(np.sqrt(np.mean(np.sum((points - points.mean(axis=0)) ** 2, axis=1)))) for points in (pred, gt)]
    scale = radius[1] / radius[0]
    return Similarity(scale, R, gt.mean(axis=0) - scale * R @ pred.mean(axis=0))
