"""Rigid motions as 4x4 matrices: the group's exponential, logarithm and geodesics.

Twists are `[translation, rotation]`, the order of the closed forms in Blanco, "A tutorial on SE(3) transformation
parameterizations and on-manifold optimization" (2010). Every function works over leading dimensions in float64.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

SMALL_ANGLE_RAD = 1e-4
"""Below this the closed forms lose digits to cancellation and their Taylor series (error of order angle^4) are used."""


def inverse(T: Float[np.ndarray, "*batch 4 4"]) -> Float[np.ndarray, "*batch 4 4"]:
    """The inverse motion: `inverse(T_a_b)` is `T_b_a`."""
    R_transposed = np.swapaxes(T[..., :3, :3], -1, -2)
    return _assemble(R_transposed, -(R_transposed @ T[..., :3, 3:])[..., 0])


def exp(xi: Float[np.ndarray, "*batch 6"]) -> Float[np.ndarray, "*batch 4 4"]:
    """Motion of a twist `[translation, rotation]` (length unit, rad)."""
    xi = np.asarray(xi, dtype=np.float64)
    W = _skew(xi[..., 3:])
    WW = W @ W
    angle = np.linalg.norm(xi[..., 3:], axis=-1)[..., None, None]
    a, b, c = _rodrigues_coefficients(angle)
    R = np.eye(3) + a * W + b * WW
    V = np.eye(3) + b * W + c * WW
    return _assemble(R, (V @ xi[..., :3, None])[..., 0])


def log(T: Float[np.ndarray, "*batch 4 4"]) -> Float[np.ndarray, "*batch 6"]:
    """Twist `[translation, rotation]` of a motion, its rotation angle in [0, pi]; inverse of `exp`."""
    q = quat_wxyz_from_matrix(T[..., :3, :3])
    sin_half = np.linalg.norm(q[..., 1:], axis=-1, keepdims=True)
    angle = 2.0 * np.arctan2(sin_half, q[..., :1])
    # angle / sin(angle / 2) tends to 2, where q is [1, w / 2].
    phi = q[..., 1:] * np.where(sin_half > 0.5 * SMALL_ANGLE_RAD, angle / np.maximum(sin_half, 1e-300), 2.0 + angle**2 / 12.0)
    W = _skew(phi)
    half = 0.5 * angle[..., None]
    is_small = half < 0.5 * SMALL_ANGLE_RAD
    safe_half = np.where(is_small, 1.0, half)
    c = np.where(is_small, 1.0 / 12.0 + half**2 / 180.0, (1.0 - safe_half / np.tan(safe_half)) / (4.0 * safe_half**2))
    V_inverse = np.eye(3) - 0.5 * W + c * (W @ W)
    return np.concatenate([(V_inverse @ T[..., :3, 3:])[..., 0], phi], axis=-1)


def interpolate(
    T_a: Float[np.ndarray, "*batch 4 4"], T_b: Float[np.ndarray, "*batch 4 4"], alpha: float | Float[np.ndarray, "..."]
) -> Float[np.ndarray, "... 4 4"]:
    """Screw motion from `T_a` (alpha 0) to `T_b` (alpha 1); outside 0..1 it extrapolates with constant velocity."""
    return T_a @ exp(np.asarray(alpha)[..., None] * log(inverse(T_a) @ T_b))


def quat_wxyz_from_matrix(R: Float[np.ndarray, "*batch 3 3"]) -> Float[np.ndarray, "*batch 4"]:
    """Unit quaternion with w >= 0 of a rotation matrix (Shepperd's method: divide by the largest component)."""
    R = np.asarray(R, dtype=np.float64)
    xx, yy, zz = R[..., 0, 0], R[..., 1, 1], R[..., 2, 2]
    sx, sy, sz = R[..., 2, 1] - R[..., 1, 2], R[..., 0, 2] - R[..., 2, 0], R[..., 1, 0] - R[..., 0, 1]
    xy, xz, yz = R[..., 0, 1] + R[..., 1, 0], R[..., 0, 2] + R[..., 2, 0], R[..., 1, 2] + R[..., 2, 1]
    # Row k is 4 * q * q[k]; its own entry k tells how well conditioned it is.
    rows = np.stack(
        [
            np.stack([1 + xx + yy + zz, sx, sy, sz], axis=-1),
            np.stack([sx, 1 + xx - yy - zz, xy, xz], axis=-1),
            np.stack([sy, xy, 1 - xx + yy - zz, yz], axis=-1),
            np.stack([sz, xz, yz, 1 - xx - yy + zz], axis=-1),
        ],
        axis=-2,
    )
    best = np.argmax(np.diagonal(rows, axis1=-2, axis2=-1), axis=-1)
    q = np.take_along_axis(rows, best[..., None, None], axis=-2)[..., 0, :]
    q = q / np.linalg.norm(q, axis=-1, keepdims=True)
    return np.where(q[..., :1] < 0.0, -q, q)


def matrix_from_quat_wxyz(q: Float[np.ndarray, "*batch 4"]) -> Float[np.ndarray, "*batch 3 3"]:
    """Rotation matrix of a quaternion, which need not be normalised."""
    q = np.asarray(q, dtype=np.float64)
    q = q / np.linalg.norm(q, axis=-1, keepdims=True)
    W = _skew(q[..., 1:])
    return np.eye(3) + 2.0 * (q[..., :1, None] * W + W @ W)


def _assemble(R: np.ndarray, t: np.ndarray) -> np.ndarray:
    T = np.zeros((*R.shape[:-2], 4, 4))
    T[..., :3, :3] = R
    T[..., :3, 3] = t
    T[..., 3, 3] = 1.0
    return T


def _skew(w: np.ndarray) -> np.ndarray:
    W = np.zeros((*w.shape[:-1], 3, 3))
    W[..., 0, 1], W[..., 0, 2], W[..., 1, 2] = -w[..., 2], w[..., 1], -w[..., 0]
    return W - np.swapaxes(W, -1, -2)


def _rodrigues_coefficients(angle: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """sin(t)/t, (1-cos(t))/t^2 and (t-sin(t))/t^3."""
    is_small = angle < SMALL_ANGLE_RAD
    t = np.where(is_small, 1.0, angle)
    a = np.where(is_small, 1.0 - angle**2 / 6.0, np.sin(t) / t)
    # The half-angle form keeps its digits where 1 - cos(t) would cancel.
    b = np.where(is_small, 0.5 - angle**2 / 24.0, 0.5 * (np.sin(0.5 * t) / (0.5 * t)) ** 2)
    c = np.where(is_small, 1.0 / 6.0 - angle**2 / 120.0, (t - np.sin(t)) / t**3)
    return a, b, c
