"""Fit one surface to another: point-to-plane ICP in both directions, trimmed, and honest about what the shape does not fix.

Residuals along the target's normals: Chen & Medioni, "Object modelling by registration of multiple range images" (1992).
The share of matches that is kept: Chetverikov et al., "The trimmed iterative closest point algorithm" (2002), its own criterion.
Samples of both surfaces are matched, for from one side alone a free scale would shrink a surface onto a single spot of the other.
Lengths are measured from the centroid in units of the RMS radius, which makes turning and shifting comparable: Gelfand et al.,
"Geometrically stable sampling for the ICP algorithm" (2003). Directions that the shape leaves loose are frozen at the start's
value: Zhang, Kaess & Singh, "On degeneracy of optimization-based state estimation problems" (2016).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from recon.eval.distances import Samples, Surface
from recon.geometry.se3 import exp
from recon.geometry.similarity import Similarity
from recon.types import ReconError

_SETTLED = 1e-5
_NOISE, _FIRST_NOISE, _COOLING = 0.01, 0.2, 0.7
"""Share of the surface's own size up to which trimming takes distances for noise, from the first step on and at last: less would
let it settle on a few walls that fit exactly, and at first even on walls that fit by chance."""
_UNSETTLED = 1e-3
_MAX_STEP = 0.2
_MIN_MATCHES = 20
"""For up to seven unknowns."""
_PARTS = ((slice(0, 3), "rotation about"), (slice(3, 6), "translation along"))


@dataclass(frozen=True)
class IcpSettings:
    """How one surface is fitted to another."""

    num_samples: int = 10_000
    """At most, on each surface; where only half of the target may pull, about half of them do."""
    max_iterations: int = 100
    min_overlap: float = 0.5
    """At least this share of the matches is kept."""
    max_condition: float = 100.0
    """Of the normal matrix; a direction weaker than the strongest by more is frozen. A shift is that weak when the normals lean
    about 4 degrees (RMS) out of the plane across it: then 0.5 mm of error already moves the fit by 7 mm."""
    max_scale_change: float = 2.0
    """The scale stays between the start's divided and multiplied by this."""


@dataclass(frozen=True)
class IcpFit:
    """What a fit found, and how far the shape supports it."""

    similarity: Similarity
    condition: float
    """Largest over smallest eigenvalue of the normal matrix; 1 / machine precision at most."""
    overlap: float
    """Share of matches kept at the end."""
    notes: tuple[str, ...]
    has_settled: bool


def icp(
    source: Surface,
    source_samples: Samples,
    target: Surface,
    target_samples: Samples,
    start: Similarity,
    with_scale: bool,
    settings: IcpSettings,
    may_pull: Callable[[Float[np.ndarray, "n 3"]], Bool[np.ndarray, " n"]] | None = None,
) -> IcpFit:
    """Fit the source to the target from `start` by at most `num_samples` of each one's samples.

    `may_pull` says which places of the target are looked at; a match with any other is dropped. None: all.
    Raises ReconError (exit code 1) when hardly anything may pull, when the scale runs into its bounds and when the fit lies
    farther from the target than the start did: then the surfaces do not match at all.
    """
    may_pull = may_pull or _everywhere
    points, goals = (samples.points[: settings.num_samples] for samples in (source_samples, target_samples))
    size = float(np.median(np.linalg.norm(goals - np.median(goals, axis=0), axis=1)))
    pulling = may_pull(goals)
    pair = _Pair(source, points, target, Samples(goals[pulling], target_samples.normals[: len(goals)][pulling]), size, may_pull)
    fit = _descend(pair, start, with_scale, settings)
    if not _within(fit.similarity.scale / start.scale, settings.max_scale_change):
        raise ReconError(f"the fit ran into the scale's bounds (a factor of {settings.max_scale_change:g} from its start)", exit_code=1)
    before, after = (pair.distance(pose) for pose in (start, fit.similarity))
    if after > before + _NOISE * size:
        raise ReconError(f"the fit ended farther away than it started (median distance {after:.3g} after {before:.3g})", exit_code=1)
    return fit


@dataclass(frozen=True)
class _Pair:
    """Two surfaces and the samples that are matched."""

    source: Surface
    points: np.ndarray
    target: Surface
    goals: Samples
    size: float
    """Median distance of the target's samples from their middle."""
    may_pull: Callable[[np.ndarray], np.ndarray]

    def distance(self, pose: Similarity) -> float:
        """Mean of the two medians of the distances between the surfaces, in the target's unit."""
        there = self.target.distances(pose.map(self.points))
        back = pose.scale * self.source.distances(pose.unmap(self.goals.points))
        return float(np.median(there) + np.median(back)) / 2

    def matches(self, pose: Similarity, min_overlap: float, noise: float) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
        """Source points at their present place, target points, target normals of the kept matches, and the share that was kept."""
        moved = pose.map(self.points)
        there, back = self.target.closest(moved), self.source.closest(pose.unmap(self.goals.points))
        pulling = np.flatnonzero(self.may_pull(there.points))
        if min(len(pulling), len(self.goals.points)) < _MIN_MATCHES:
            raise ReconError("hardly any part of the surfaces is left to fit them by", exit_code=1)
        keep_there = pulling[_overlapping(there.distances[pulling], min_overlap, noise)]
        keep_back = _overlapping(pose.scale * back.distances, min_overlap, noise)
        from_source = np.concatenate([moved[keep_there], pose.map(back.points[keep_back])])
        on_target = np.concatenate([there.points[keep_there], self.goals.points[keep_back]])
        normals = np.concatenate([there.normals[keep_there], self.goals.normals[keep_back]])
        return from_source, on_target, normals, len(on_target) / (len(pulling) + len(self.goals.points))


def _everywhere(points: np.ndarray) -> np.ndarray:
    return np.ones(len(points), bool)


def _descend(pair: _Pair, start: Similarity, with_scale: bool, settings: IcpSettings) -> IcpFit:
    """Gauss-Newton steps until they vanish or run out."""
    pose, step = start, np.inf
    for idx in range(settings.max_iterations):
        noise = max(_NOISE, _FIRST_NOISE * _COOLING**idx)
        moved, fixed, normals, overlap = pair.matches(pose, settings.min_overlap, noise * pair.size)
        centre = moved.mean(axis=0)
        radius = float(np.sqrt(np.mean(np.sum((moved - centre) ** 2, axis=1))))
        J, r = _linearised((moved - centre) / radius, (fixed - moved) / radius, normals, with_scale)
        strength, directions = np.linalg.eigh(J.T @ J / len(r))
        free = strength > strength[-1] / settings.max_condition
        delta = directions[:, free] @ (directions[:, free].T @ (J.T @ r / len(r)) / strength[free])
        step = float(np.linalg.norm(delta))
        delta = delta * min(1.0, _MAX_STEP / max(step, _SETTLED))
        pose = _moved(pose, delta, centre, radius)
        if (step < _SETTLED and noise == _NOISE) or not _within(pose.scale / start.scale, settings.max_scale_change):
            break
    loose = "; ".join(_described(direction) for direction in directions.T[~free])
    notes = [f"the surface does not fix {loose}: not moved along it"] if loose else []
    has_settled = step <= _UNSETTLED
    if not has_settled:
        notes.append(f"the fit had not settled after {settings.max_iterations} steps")
    condition = float(strength[-1] / max(strength[0], np.finfo(float).eps * strength[-1]))
    return IcpFit(pose, condition, overlap, tuple(notes), has_settled)


def _overlapping(distances: np.ndarray, min_overlap: float, noise: float) -> np.ndarray:
    """The nearest share xi of the matches that minimises (their mean squared distance) / xi^3, Chetverikov's lambda of 2."""
    order = np.argsort(distances, kind="stable")
    counts = np.arange(max(1, int(np.ceil(min_overlap * len(distances)))), len(distances) + 1)
    mean = np.cumsum(distances[order] ** 2)[counts - 1] / counts + noise**2
    return order[: counts[np.argmin(mean / (counts / len(distances)) ** 3)]]


def _linearised(points: np.ndarray, gaps: np.ndarray, normals: np.ndarray, with_scale: bool) -> tuple[np.ndarray, np.ndarray]:
    """Jacobian (n, 6 or 7) by rotation, translation and log scale, and the residual to make up for."""
    columns = [np.cross(points, normals), normals]
    if with_scale:
        columns.append(np.sum(points * normals, axis=1, keepdims=True))
    return np.concatenate(columns, axis=1), np.sum(gaps * normals, axis=1)


def _moved(pose: Similarity, delta: np.ndarray, centre: np.ndarray, radius: float) -> Similarity:
    """The pose after a small turn, shift and growth about the centre."""
    turn = exp(np.concatenate([np.zeros(3), delta[:3]]))[:3, :3]
    growth = float(np.exp(delta[6])) if len(delta) == 7 else 1.0
    return Similarity(pose.scale * growth, turn @ pose.R, centre + growth * turn @ (pose.t - centre) + radius * delta[3:6])


def _within(change: float, limit: float) -> bool:
    return 1 / limit < change < limit


def _described(direction: np.ndarray) -> str:
    """A loose direction in words, leaving out parts below a third of the whole."""
    words = []
    for part, name in _PARTS:
        length = np.linalg.norm(direction[part])
        if length > 1 / 3:
            axis = direction[part] / length
            axis = axis * np.sign(axis[np.argmax(np.abs(axis))])
            words.append(f"{name} ({', '.join(f'{round(float(value), 2) + 0.0:.2f}' for value in axis)})")
    if len(direction) == 7 and abs(direction[6]) > 1 / 3:
        words.append("scale")
    return " with ".join(words)
