"""Which depth pixels other frames confirm: only what agrees across views deserves the surface.

Each pixel is carried into a few other views and compared with their depth. A view that sees something nearer does not
vote when that nearer surface also stands in the first picture (a true occlusion); it votes against when it does not.

Where most of the voters contradict a pixel by more than the errors that both depths own up to, the tissue has moved between
the frames (or its depth is wrong beyond what it says): a still scene cannot look like that.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float

from recon.fusion.view import View, lookup, rays
from recon.geometry.se3 import inverse

MIN_VOTES = 2
"""Views that must see a place for it to be judged: against one alone, either may be wrong."""
MAD_TO_SIGMA = 1.4826
HIDDEN = 0.1
"""Log residual from which what another view sees is another thing in front: the step of depth that makes an edge."""
MIN_SIGMA = 1e-3
"""Of the logarithm of depth, for depth that claims to be exact: pixels are not points."""
NON_RIGID_SIGMAS = 3.0
"""Standard deviations of a residual that errors of depth explain."""


def log_residual(view: View, other: View, tolerance: float) -> Float[np.ndarray, "h w"]:
    """Return log(depth of the view's points in `other` / depth that `other` sees there), NaN where it has no vote.

    Positive: `other` sees something nearer. Negative: `other` looks through the point.
    """
    points = (rays(view.camera) * view.depth[..., None]).reshape(-1, 3)
    pixels = np.flatnonzero(view.valid)
    T_other_view = inverse(other.T_world_camera) @ view.T_world_camera
    moved = _transform(T_other_view, points[pixels])
    seen_at, inside = lookup(other, moved)
    inside &= other.valid.reshape(-1)[seen_at]
    pixels, moved, seen_at = pixels[inside], moved[inside], seen_at[inside]
    seen = other.depth.reshape(-1)[seen_at]
    residual = np.log(moved[:, 2] / seen)
    hidden = np.flatnonzero(residual > tolerance)
    occluder = (rays(other.camera).reshape(-1, 3)[seen_at[hidden]] * seen[hidden, None]).astype(np.float32)
    residual[hidden[_is_true_occlusion(view, _transform(inverse(T_other_view), occluder), tolerance)]] = np.nan
    out = np.full(view.depth.size, np.nan, np.float32)
    out[pixels] = residual
    return out.reshape(view.depth.shape)


def agreement(residuals: Float[np.ndarray, "k h w"], tolerance: float) -> Float[np.ndarray, "h w"]:
    """Return 0 to 1: the mean over voting views of exp(-(residual / tolerance)^2 / 2); 1 where nobody votes."""
    votes = np.isfinite(residuals)
    kernel = np.where(votes, np.exp(-0.5 * (np.where(votes, residuals, 0) / tolerance) ** 2), 0)
    count = votes.sum(axis=0)
    return np.where(count > 0, kernel.sum(axis=0) / np.maximum(count, 1), 1.0).astype(np.float32)


def moved(
    residuals: Float[np.ndarray, "k h w"], sigma: Float[np.ndarray, "h w"], noise: float
) -> tuple[Bool[np.ndarray, "h w"], Bool[np.ndarray, "h w"]]:
    """Return which pixels did not obey rigidity, and which could be judged: those that at least `MIN_VOTES` views see.

    A pixel moved when more than half of the votes differ from it by more than the errors of both depths explain. A view that sees
    something far nearer has no vote here: whatever stands there hides the place, and it is judged in its own frame.

    Args:
        sigma: standard deviation of the logarithm of the pixel's own depth; the other view's is taken to be the same.
        noise: median absolute residual over the recording, which a sigma that claims too little cannot undercut.
    """
    explained = NON_RIGID_SIGMAS * np.maximum(np.sqrt(2) * sigma, max(MAD_TO_SIGMA * noise, MIN_SIGMA))
    votes = np.isfinite(residuals) & (np.nan_to_num(residuals) < np.maximum(explained, HIDDEN))
    against = votes & (np.abs(np.where(votes, residuals, 0)) > explained)
    judged = votes.sum(axis=0) >= MIN_VOTES
    return judged & (2 * against.sum(axis=0) > votes.sum(axis=0)), judged


def _transform(T: np.ndarray, points: np.ndarray) -> np.ndarray:
    return points @ T[:3, :3].T.astype(np.float32) + T[:3, 3].astype(np.float32)


def _is_true_occlusion(view: View, occluders: np.ndarray, tolerance: float) -> np.ndarray:
    """True where the view itself sees the occluder, or cannot: it is out of the picture or unknown there."""
    pixel, inside = lookup(view, occluders)
    depth = np.where(inside, view.depth.reshape(-1)[pixel], 0)
    known = depth > 0
    ratio = np.where(known, occluders[:, 2], 1) / np.where(known, depth, 1)
    return ~known | (np.abs(np.log(np.maximum(ratio, 1e-6))) < tolerance)
