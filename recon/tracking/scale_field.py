"""Predicted depth brought to the scale of a sparse map: a factor per frame and a smooth field over the image.

Where sparse points meet predicted depth they give log ratios. These are explained, in this order, by the frame's median,
by one field that all frames share (what the network gets wrong for this lens and scene), and by a field of the frame's own.
Fields are Gaussian processes (Rasmussen and Williams 2006): they interpolate where points are dense, shrink to zero where
points are few or far, and say how sure they are. How rough a field may be is chosen by leave-one-out error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
from jaxtyping import Float
from scipy.linalg import cholesky, solve_triangular
from scipy.linalg.lapack import dtrtri
from scipy.spatial.distance import cdist

CELLS_ACROSS = 20
"""Ratios are summarised by their medians in square cells, this many across the image."""
LENGTH_SCALES: tuple[tuple[float, ...], ...] = ((), (0.5,), (0.5, 0.15), (0.5, 0.08))
"""Candidate fields, from none to rough: length scales of the summed kernels, in image widths."""
MIN_GAIN = 0.05
"""Share by which a rougher field must lower the leave-one-out error to be preferred."""
MIN_CELLS = 8
"""Fewer cells than this get no field."""
STUDENT_DOF = 3.0
"""Degrees of freedom of the noise model: outliers lose their weight."""
WINDOW_REACH = 4.0
"""Neighbours in time count up to this many standard deviations of the window."""
MIN_NOISE = 0.005
"""Smallest standard deviation of a log ratio."""
MAD_TO_SIGMA = 1.4826
CLAMP_QUANTILE = 0.02
"""A field stays between these quantiles of the ratios it was fitted to."""


@dataclass(frozen=True, eq=False)
class Field:
    """A smooth function of image position, of log ratios around zero."""

    points: Float[np.ndarray, "n 2"]
    """Positions in image widths."""
    weights: Float[np.ndarray, " n"]
    """Of the kernel at each position."""
    length_scales: tuple[float, ...]
    amplitude: float
    variances: Float[np.ndarray, " n"]
    """Of the noise at each position; the covariance is made from them when asked for, since every frame has a field."""
    limits: tuple[float, float]
    noise: float
    """Standard deviation of what the field does not explain, from leave-one-out residuals."""

    def __call__(self, at: Float[np.ndarray, "m 2"]) -> tuple[Float[np.ndarray, " m"], Float[np.ndarray, " m"]]:
        """Mean and standard deviation at positions in image widths."""
        if not self.length_scales:
            return np.zeros(len(at)), np.zeros(len(at))
        k = _kernel(at, self.points, self.length_scales, self.amplitude)
        K = _kernel(self.points, self.points, self.length_scales, self.amplitude) + np.diag(self.variances)
        variance = self.amplitude**2 - (solve_triangular(cholesky(K, lower=True), k.T, lower=True) ** 2).sum(axis=0)
        return np.clip(k @ self.weights, *self.limits), np.sqrt(np.maximum(variance, 0.0))

    def mean(self, at: Float[np.ndarray, "m 2"]) -> Float[np.ndarray, " m"]:
        """The mean alone, which costs far less."""
        if not self.length_scales:
            return np.zeros(len(at))
        return np.clip(_kernel(at, self.points, self.length_scales, self.amplitude) @ self.weights, *self.limits)


def fit_field(
    positions: Float[np.ndarray, "n 2"], values: Float[np.ndarray, " n"], candidates: Sequence[tuple[float, ...]] = LENGTH_SCALES
) -> Field:
    """Field through scattered log ratios whose median is near zero; outliers and noise are expected.

    `candidates` are sets of length scales from smooth to rough, the first one empty for no field.
    """
    centres, medians, counts = _cells(positions, values)
    fields = [_fit(centres, medians, counts, scales) for scales in candidates if not scales or len(centres) >= MIN_CELLS]
    best, best_error = fields[0]
    for field, error in fields[1:]:
        if error < (1.0 - MIN_GAIN) * best_error:
            best, best_error = field, error
    return best


def _cells(positions: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean position, median value and count of each occupied cell."""
    if not len(values):
        return np.zeros((0, 2)), np.zeros(0), np.zeros(0)
    cell = np.floor(positions * CELLS_ACROSS).astype(np.int64)
    _, inverse, counts = np.unique(cell, axis=0, return_inverse=True, return_counts=True)
    groups = np.split(np.argsort(inverse.reshape(-1), kind="stable"), np.cumsum(counts)[:-1])
    centres = np.array([positions[group].mean(axis=0) for group in groups])
    return centres, np.array([np.median(values[group]) for group in groups]), counts.astype(np.float64)


def _kernel(a: np.ndarray, b: np.ndarray, length_scales: tuple[float, ...], amplitude: float) -> np.ndarray:
    """Sum of Gaussian kernels that share the variance amplitude^2 equally."""
    squared = cdist(a, b, "sqeuclidean")
    return amplitude**2 / len(length_scales) * sum(np.exp(-0.5 * squared / scale**2) for scale in length_scales)


def _fit(x: np.ndarray, y: np.ndarray, counts: np.ndarray, length_scales: tuple[float, ...]) -> tuple[Field, float]:
    """Field of one roughness and its mean absolute leave-one-out error (eq. 5.12), outliers capped."""
    spread = max(MAD_TO_SIGMA * float(np.median(np.abs(y))), MIN_NOISE) if len(y) else MIN_NOISE
    if not length_scales:
        error = float(np.minimum(np.abs(y), 3.0 * spread).mean()) if len(y) else 0.0
        return Field(np.zeros((0, 2)), np.zeros(0), (), 0.0, np.zeros(0), (0.0, 0.0), spread), error
    K = _kernel(x, x, length_scales, spread)
    noise, weight, residual = 0.5 * spread, np.ones(len(y)), y
    for _ in range(6):
        # A cell's median is surer with more points, but never surer than half the noise: its points share their bias.
        variance = noise**2 * (0.25 + 0.75 / counts) / weight
        root, _ = dtrtri(cholesky(K + np.diag(variance), lower=True), lower=1)
        alpha = root.T @ (root @ y)
        residual = alpha / (root**2).sum(axis=0)
        noise = max(MAD_TO_SIGMA * float(np.median(np.abs(residual))), MIN_NOISE)
        weight = (STUDENT_DOF + 1.0) / (STUDENT_DOF + (residual / noise) ** 2)
    inliers = y[np.abs(residual) < 3.0 * noise]
    limits = np.quantile(inliers if len(inliers) else y, [CLAMP_QUANTILE, 1.0 - CLAMP_QUANTILE])
    field = Field(x, alpha, length_scales, spread, variance, (float(limits[0]), float(limits[1])), noise)
    return field, float(np.minimum(np.abs(residual), 3.0 * spread).mean())


@dataclass(frozen=True)
class FrameRatios:
    """Where sparse points meet the predicted depth of one frame."""

    positions: Float[np.ndarray, "n 2"]
    """In image widths."""
    log_ratio: Float[np.ndarray, " n"]
    """Log of sparse depth over predicted depth."""


def smooth_factors(
    indices: Sequence[int], ratios: Mapping[int, FrameRatios], guesses: Mapping[int, float], window: float, pseudo_count: float = 5.0
) -> dict[int, float]:
    """Log factor of each frame: the median of its ratios, drawn to its neighbours in time where points are few.

    `guesses` are log factors known otherwise (from alignment); they count as `pseudo_count` points. `window` is the standard
    deviation, in frames, of the neighbourhood.
    """
    order = np.array(indices, dtype=np.float64)
    count = np.array([len(ratios[i].log_ratio) if i in ratios else 0 for i in indices], dtype=np.float64)
    own = np.array([float(np.median(ratios[i].log_ratio)) if i in ratios and len(ratios[i].log_ratio) else guesses[i] for i in indices])
    trust = np.maximum(count, pseudo_count)
    # A frame's say grows with its points but levels off: a thousand points are not a hundred times surer than ten.
    say = trust / (trust + 10.0 * pseudo_count)
    neighbours = np.empty(len(order))
    for k, index in enumerate(order):
        reach = WINDOW_REACH * window
        near = slice(np.searchsorted(order, index - reach), np.searchsorted(order, index + reach, side="right"))
        weight = np.exp(-0.5 * ((order[near] - index) / window) ** 2) * say[near]
        neighbours[k] = (weight * own[near]).sum() / weight.sum()
    log_factor = (count * own + pseudo_count * neighbours) / (count + pseudo_count)
    return {index: float(value) for index, value in zip(indices, log_factor, strict=True)}


@dataclass(frozen=True)
class ScaleModel:
    """Log factors and fields of a recording."""

    log_factor: Mapping[int, float]
    """By frame index: the level of the frame."""
    shared: Field
    """The field of all frames."""
    own: Mapping[int, Field]
    """The field of one frame on top of the shared one, for frames with points."""

    def log_field(self, index: int, height: int, width: int) -> tuple[Float[np.ndarray, "h w"], Float[np.ndarray, "h w"]]:
        """Log factor of every pixel of a frame's depth map and its standard deviation."""
        grid, shape = _grid(height, width)
        mean, sigma = _on_grid(self.shared, height, width)
        variance = sigma**2
        if index in self.own:
            own_mean, own_sigma = self.own[index](grid)
            mean, variance = mean + own_mean, variance + own_sigma**2
        size = (width, height)
        log_field = cv2.resize((self.log_factor[index] + mean).reshape(shape), size, interpolation=cv2.INTER_LINEAR)
        return log_field, cv2.resize(np.sqrt(variance).reshape(shape), size, interpolation=cv2.INTER_LINEAR)

    def residual(self, index: int) -> float:
        """Standard deviation of log ratios that the model leaves in a frame."""
        return self.own[index].noise if index in self.own else self.shared.noise


def fit_scale_model(
    indices: Sequence[int], ratios: Mapping[int, FrameRatios], guesses: Mapping[int, float], window: float = 5.0, use_fields: bool = True
) -> ScaleModel:
    """Levels, shared field and own fields of the frames in `indices`; `guesses` and `window` as in `smooth_factors`."""
    candidates = LENGTH_SCALES if use_fields else LENGTH_SCALES[:1]
    log_factor = smooth_factors(indices, ratios, guesses, window)
    usable = [i for i in indices if i in ratios and len(ratios[i].log_ratio)]
    shared = fit_field(
        np.concatenate([ratios[i].positions for i in usable] or [np.zeros((0, 2))]),
        np.concatenate([ratios[i].log_ratio - log_factor[i] for i in usable] or [np.zeros(0)]),
        candidates,
    )
    own = {}
    for i in usable:
        left = ratios[i].log_ratio - log_factor[i] - shared.mean(ratios[i].positions)
        own[i] = fit_field(ratios[i].positions, left, candidates)
    return ScaleModel(log_factor, shared, own)


@lru_cache(maxsize=4)
def _on_grid(field: Field, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """A field that all frames share at the grid that all frames have."""
    return field(_grid(height, width)[0])


def _grid(height: int, width: int) -> tuple[np.ndarray, tuple[int, int]]:
    """Cell centres of a coarse grid over the image, in image widths: fields are smooth and are resized from it."""
    columns = 3 * CELLS_ACROSS
    rows = max(2, round(columns * height / width))
    v, u = np.mgrid[0:rows, 0:columns]
    positions = np.stack([(u + 0.5) / columns, (v + 0.5) / rows * height / width], axis=-1)
    return positions.reshape(-1, 2), (rows, columns)


def sample_ratios(
    depth: Float[np.ndarray, "h w"], pixels: Float[np.ndarray, "n 2"], size_px: tuple[int, int], z: Float[np.ndarray, " n"]
) -> FrameRatios:
    """Ratios of sparse z-depths to a predicted depth map, for those points that have one.

    `pixels` are in an image of `size_px` (width, height) that the depth map covers at its own resolution.
    """
    inside = (z > 0) & (pixels > -0.5).all(axis=1) & (pixels < np.array(size_px) - 0.5).all(axis=1)
    positions, z = (pixels[inside] + 0.5) / size_px[0], z[inside]
    predicted = sample_nearest(depth, positions)
    known = predicted > 0
    return FrameRatios(positions[known], np.log(z[known] / predicted[known]))


def sample_nearest(image: Float[np.ndarray, "h w"], positions: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, " n"]:
    """Values at positions in image widths."""
    height, width = image.shape
    column, row = np.floor(positions * width).astype(np.int64).T
    return image[np.clip(row, 0, height - 1), np.clip(column, 0, width - 1)].astype(np.float64)
