"""Pose of one frame relative to a keyframe, from every pixel.

Keyframe pixels with depth are moved into the frame, and two kinds of residual are made small together: photometric
(contrast there against contrast here, with gain and bias: Engel et al. 2018) and geometric (log depth there against the
frame's own depth, up to one factor). Iteratively reweighted Gauss-Newton on SE(3), coarse to fine (Kerl et al. 2013).
The factor between the two depth maps is solved for, so the scale of the map carries from frame to frame.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float

from recon.geometry import se3
from recon.tracking.dense_frame import DenseFrame, Level

NUM_POSE, NUM_PARAMS = 6, 9
MIN_PIXELS = 64
"""Fewer overlapping pixels than this at a level say nothing."""
HUBER = 1.345
"""Threshold in standard deviations (95 % efficiency for Gaussian noise)."""
MAD_TO_SIGMA = 1.4826
COARSE_CONTRAST_SIGMA = 0.05
"""Ordinary size of a contrast residual when a guess is weighed."""


@dataclass(frozen=True)
class AlignmentOptions:
    """Weights of the residuals and limits of the verdict."""

    geometric_weight: float = 0.05
    """Share of a depth residual: errors of predicted depth are smooth, so their pixels are far from independent."""
    geometric_sigma: float = 0.03
    """Smallest standard deviation of a log-depth residual."""
    scale_sigma: float = 0.1
    """Prior standard deviation of the log factor between the depth maps of the two frames."""
    max_iterations: int = 25
    """Per pyramid level."""
    min_overlap: float = 0.3
    """Share of keyframe pixels that must land on valid pixels of the frame."""
    min_inliers: float = 0.5
    """Share of overlapping pixels whose contrast agrees within 3 standard deviations of an ordinary residual."""
    min_correlation: float = 0.6
    """Correlation of the contrast of the two images after alignment."""
    min_contrast: float = 0.004
    """Standard deviation of the contrast of the keyframe: below it there is nothing to align."""
    min_conditioning: float = 1e-5
    """Smallest over largest eigenvalue of the normal equations of the pose (translations in units of median depth)."""
    max_rotation_rad: float = 0.6
    max_translation: float = 0.6
    """In units of the keyframe's median depth."""


@dataclass(frozen=True)
class State:
    """What is solved for."""

    T_frame_key: Float[np.ndarray, "4 4"]
    gain: float = 1.0
    bias: float = 0.0
    log_scale: float = 0.0
    """Log of the factor that takes the frame's depth map to the keyframe's unit."""

    def moved(self, step: Float[np.ndarray, "9"]) -> State:
        """The state after a step [translation, rotation, gain, bias, log scale], the twist acting from the left."""
        return State(se3.exp(step[:NUM_POSE]) @ self.T_frame_key, self.gain + step[6], self.bias + step[7], self.log_scale + step[8])


@dataclass(frozen=True)
class Verdict:
    """How an alignment ended."""

    state: State
    reason: str | None
    """Why the pose is not to be trusted; None when it is."""
    overlap: float
    inliers: float
    correlation: float
    conditioning: float


@dataclass(frozen=True)
class Residuals:
    """Residuals and their derivatives over the n pixels of the keyframe that have depth."""

    photometric: Float[np.ndarray, " n"]
    seen: Bool[np.ndarray, " n"]
    """Whether the photometric residual exists."""
    J_photometric: Float[np.ndarray, "n 9"]
    geometric: Float[np.ndarray, " n"]
    has_depth: Bool[np.ndarray, " n"]
    """Whether the geometric residual exists."""
    J_geometric: Float[np.ndarray, "n 9"]


def align(key: DenseFrame, frame: DenseFrame, initial: State, options: AlignmentOptions) -> Verdict:
    """Align a frame to a keyframe, from the coarsest level to the finest."""
    state = initial
    for key_level, level in zip(reversed(key.levels), reversed(frame.levels), strict=True):
        state = _solve(key_level, level, state, key.median_depth, options)
    return _verdict(key, frame, state, options)


def coarse_cost(key: DenseFrame, frame: DenseFrame, state: State, options: AlignmentOptions) -> float:
    """Robust cost of a guess at the coarsest level, for choosing between guesses; infinite without overlap.

    Contrast is measured against a fixed standard deviation, so that costs of different guesses compare.
    """
    r = residuals(key.levels[-1], frame.levels[-1], state)
    if r.seen.sum() < MIN_PIXELS:
        return float("inf")
    return _cost(r, state, (COARSE_CONTRAST_SIGMA, options.geometric_sigma), options)


def residuals(key: Level, frame: Level, state: State) -> Residuals:
    """Both kinds of residual at a state, with analytic derivatives in the order of `State.moved`."""
    use = key.valid & key.has_depth
    points = key.rays[use] * np.exp(key.log_depth[use])[:, None]
    Y = points @ state.T_frame_key[:3, :3].T + state.T_frame_key[:3, 3]
    in_front = Y[:, 2] > 1e-6 * np.abs(points[:, 2])
    Y[~in_front] = (0.0, 0.0, 1.0)
    fx, fy, cx, cy = frame.camera.params
    # A copy, for the logarithm below: of a strided column numpy takes it by vector or by scalar code, which differ in the last
    # digit, depending on whether the result happens to lie right behind the column in memory.
    z = Y[:, 2].copy()
    x, y = Y[:, 0] / z, Y[:, 1] / z
    sample = _Bilinear(fx * x + cx, fy * y + cy, frame.contrast.shape)
    seen = in_front & sample.all_of(frame.valid)
    has_depth = in_front & sample.all_of(frame.has_depth)
    contrast, gx, gy = sample(frame.contrast)
    log_depth, hx, hy = sample(frame.log_depth)
    here = key.contrast[use]

    def through_pixel(du: np.ndarray, dv: np.ndarray) -> np.ndarray:
        """Derivative by Y of a quantity whose derivatives by pixel are (du, dv)."""
        return np.stack([du * fx / z, dv * fy / z, -(du * fx * x + dv * fy * y) / z], axis=-1)

    J_p, J_g = np.zeros((len(z), NUM_PARAMS)), np.zeros((len(z), NUM_PARAMS))
    by_point = -through_pixel(gx, gy)
    J_p[:, :3], J_p[:, 3:6], J_p[:, 6], J_p[:, 7] = by_point, np.cross(Y, by_point), here, 1.0
    by_point = -through_pixel(hx, hy)
    by_point[:, 2] += 1.0 / z
    J_g[:, :3], J_g[:, 3:6], J_g[:, 8] = by_point, np.cross(Y, by_point), -1.0
    photometric = state.gain * here + state.bias - contrast
    geometric = np.log(z) - log_depth - state.log_scale
    return Residuals(photometric, seen, J_p, geometric, has_depth, J_g)


def _solve(key: Level, frame: Level, state: State, median_depth: float, options: AlignmentOptions) -> State:
    """Levenberg-Marquardt on one level; translations are scaled by the median depth so that damping is unit free."""
    unit = np.array([median_depth] * 3 + [1.0] * 6)
    damping, current = 1e-4, residuals(key, frame, state)
    for _ in range(options.max_iterations):
        if current.seen.sum() < MIN_PIXELS:
            return state
        sigmas = _sigmas(current, options)
        H, g = _normal_equations(current, state, sigmas, options)
        H, g = H * np.outer(unit, unit), g * unit
        cost = _cost(current, state, sigmas, options)
        for _ in range(6):
            step = -unit * np.linalg.solve(H + damping * np.diag(np.diag(H)) + 1e-9 * np.eye(NUM_PARAMS), g)
            moved = state.moved(step)
            candidate = residuals(key, frame, moved)
            if candidate.seen.sum() >= MIN_PIXELS and _cost(candidate, moved, sigmas, options) < cost:
                break
            damping *= 8.0
        else:
            return state
        state, current, damping = moved, candidate, max(damping / 8.0, 1e-7)
        if np.abs(step / unit).max() < 1e-5:
            return state
    return state


def _sigmas(r: Residuals, options: AlignmentOptions) -> tuple[float, float]:
    photometric = MAD_TO_SIGMA * np.median(np.abs(r.photometric[r.seen]))
    geometric = MAD_TO_SIGMA * np.median(np.abs(r.geometric[r.has_depth])) if r.has_depth.any() else 0.0
    return max(float(photometric), 1e-4), max(float(geometric), options.geometric_sigma)


def _normal_equations(
    r: Residuals, state: State, sigmas: tuple[float, float], options: AlignmentOptions
) -> tuple[Float[np.ndarray, "9 9"], Float[np.ndarray, "9"]]:
    """Mean-normalised Hessian and gradient of the robust cost."""
    num = float(r.seen.sum())
    H, g = np.zeros((NUM_PARAMS, NUM_PARAMS)), np.zeros(NUM_PARAMS)
    terms = ((r.photometric, r.seen, r.J_photometric, sigmas[0], 1.0), (r.geometric, r.has_depth, r.J_geometric, sigmas[1], None))
    for value, use, J, sigma, weight in terms:
        weight = options.geometric_weight if weight is None else weight
        w = weight / num * huber_weight(value[use] / sigma) / sigma**2
        Jw = J[use] * w[:, None]
        H += Jw.T @ J[use]
        g += Jw.T @ value[use]
    for index, (offset, sigma) in _priors(state, options).items():
        H[index, index] += 1.0 / sigma**2 / num
        g[index] += offset / sigma**2 / num
    return H, g


def _cost(r: Residuals, state: State, sigmas: tuple[float, float], options: AlignmentOptions) -> float:
    num = float(r.seen.sum())
    cost = float(huber(r.photometric[r.seen] / sigmas[0]).mean())
    if r.has_depth.any():
        # The normal equations divide both sums by the same count; so does the cost.
        cost += options.geometric_weight * float(huber(r.geometric[r.has_depth] / sigmas[1]).sum()) / num
    return cost + sum(0.5 * (offset / sigma) ** 2 for offset, sigma in _priors(state, options).values()) / num


def _priors(state: State, options: AlignmentOptions) -> dict[int, tuple[float, float]]:
    """Offset and standard deviation of the parameters that the images may leave open."""
    return {6: (state.gain - 1.0, 0.5), 7: (state.bias, 0.1), 8: (state.log_scale, options.scale_sigma)}


def huber(r: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Huber's loss of residuals in standard deviations."""
    a = np.abs(r)
    return np.where(a <= HUBER, 0.5 * a**2, HUBER * (a - 0.5 * HUBER))


def huber_weight(r: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Weight of iteratively reweighted least squares for `huber`."""
    return HUBER / np.maximum(np.abs(r), HUBER)


def _verdict(key: DenseFrame, frame: DenseFrame, state: State, options: AlignmentOptions) -> Verdict:
    fine = key.levels[0]
    r = residuals(fine, frame.levels[0], state)
    num = max(1, len(r.seen))
    overlap = float(r.seen.sum()) / num
    if r.seen.sum() < MIN_PIXELS:
        return Verdict(state, f"only {overlap:.0%} of the keyframe is in view", overlap, 0.0, 0.0, 0.0)
    here = fine.contrast[fine.valid & fine.has_depth][r.seen]
    there = state.gain * here + state.bias - r.photometric[r.seen]
    sigma = _sigmas(r, options)
    correlation = _correlation(here, there)
    inliers = float((np.abs(r.photometric[r.seen]) < 3.0 * sigma[0]).mean())
    H, _ = _normal_equations(r, state, sigma, replace(options, geometric_weight=0.0))
    unit = np.array([key.median_depth] * 3 + [1.0] * 3)
    eigenvalues = np.linalg.eigvalsh(H[:NUM_POSE, :NUM_POSE] * np.outer(unit, unit))
    conditioning = float(max(eigenvalues[0], 0.0) / max(eigenvalues[-1], 1e-12))
    twist = se3.log(state.T_frame_key)
    rotation, translation = float(np.linalg.norm(twist[3:])), float(np.linalg.norm(state.T_frame_key[:3, 3])) / key.median_depth
    tests = (
        (float(here.std()) < options.min_contrast, f"the image has no texture (contrast {here.std():.4f})"),
        (overlap < options.min_overlap, f"only {overlap:.0%} of the keyframe is in view"),
        (rotation > options.max_rotation_rad, f"the rotation of {np.degrees(rotation):.0f} degrees is too large to be trusted"),
        (translation > options.max_translation, f"the step of {translation:.2f} median depths is too large to be trusted"),
        (correlation < options.min_correlation, f"the images agree too little after alignment (correlation {correlation:.2f})"),
        (inliers < options.min_inliers, f"only {inliers:.0%} of the pixels agree after alignment"),
        (conditioning < options.min_conditioning, "the texture does not determine the pose"),
    )
    return Verdict(state, next((text for failed, text in tests if failed), None), overlap, inliers, correlation, conditioning)


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a - a.mean(), b - b.mean()
    return float((a * b).sum() / max(np.sqrt((a**2).sum() * (b**2).sum()), 1e-12))


class _Bilinear:
    """Samples images at fixed pixels, with the exact derivative of the interpolant."""

    def __init__(self, u: np.ndarray, v: np.ndarray, shape: tuple[int, int]) -> None:
        height, width = shape
        self.inside = (u >= 0) & (u <= width - 1) & (v >= 0) & (v <= height - 1)
        u0 = np.clip(np.nan_to_num(u), 0, width - 1.001).astype(np.int64)
        v0 = np.clip(np.nan_to_num(v), 0, height - 1.001).astype(np.int64)
        u0, v0 = np.minimum(u0, width - 2), np.minimum(v0, height - 2)
        self.a, self.b = np.where(self.inside, u - u0, 0.0), np.where(self.inside, v - v0, 0.0)
        self.corner = v0 * width + u0
        self.width = width

    def _corners(self, image: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        flat = image.reshape(-1)
        return (flat[self.corner], flat[self.corner + 1], flat[self.corner + self.width], flat[self.corner + self.width + 1])

    def all_of(self, mask: np.ndarray) -> np.ndarray:
        """Inside, and all four pixels around are True."""
        p, q, r, s = self._corners(mask)
        return self.inside & p & q & r & s

    def __call__(self, image: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Value and its derivatives by u and v."""
        p, q, r, s = self._corners(image)
        top, bottom = p + self.a * (q - p), r + self.a * (s - r)
        du = (1.0 - self.b) * (q - p) + self.b * (s - r)
        return top + self.b * (bottom - top), du, bottom - top
