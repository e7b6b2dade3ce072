"""Least-squares fit between two sets of points."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from recon.geometry.similarity import Similarity
from recon.types import ReconError

RANK_TOLERANCE = 1e-9


def umeyama(source: Float[np.ndarray, "n 3"], target: Float[np.ndarray, "n 3"], with_scale: bool = True) -> Similarity:
    """Similarity from source to target of least squared error; scale 1 without `with_scale`.

    Umeyama, "Least-squares estimation of transformation parameters between two point patterns" (1991), eq. 40 to 43.
    Raises ReconError for fewer than three points and for points on one line, where the rotation is not determined.
    """
    if len(source) < 3:
        raise ReconError(f"aligning two point sets needs at least 3 points, found {len(source)}", exit_code=1)
    source_mean, target_mean = source.mean(axis=0), target.mean(axis=0)
    source_centred, target_centred = source - source_mean, target - target_mean
    for name, points in (("source", source_centred), ("target", target_centred)):
        spread = np.linalg.svd(points, compute_uv=False)
        if spread[0] == 0.0:
            raise ReconError(f"the {len(points)} {name} points are one and the same: their alignment is not determined", exit_code=1)
        if spread[1] <= RANK_TOLERANCE * spread[0]:
            raise ReconError(f"the {len(points)} {name} points lie on one line: their alignment is not determined", exit_code=1)
    U, singular, Vt = np.linalg.svd(target_centred.T @ source_centred / len(source))
    # A reflection would fit better than any rotation: flip the weakest axis (eq. 43).
    signs = np.array([1.0, 1.0, np.sign(np.linalg.det(U) * np.linalg.det(Vt))])
    R = (U * signs) @ Vt
    variance = float(np.mean(np.sum(source_centred**2, axis=1)))
    scale = float(singular @ signs) / variance if with_scale else 1.0
    return Similarity(scale, R, target_mean - scale * R @ source_mean)
