"""Whether the camera moved at all: a fixed scope over breathing tissue must not become a moving scope over stiff tissue.

Both look alike to structure from motion when the motion is small. But breathing comes back: over a still camera, features
are no further from their place after half the recording than after an eighth, while a moving camera carries them on.
"""

from __future__ import annotations

import numpy as np

from recon.tracking.mapping import SparseMap

MAX_SHIFT = 0.025
"""Of the image width: median shift of a feature over half the recording that tissue alone may explain."""
MAX_GROWTH = 1.8
"""Shift over half the recording relative to that over an eighth: 4 at constant speed, 2 for a random walk, 1 at rest."""
MIN_SHIFT = 0.002
"""Of the image width: shifts below this are noise whatever their growth."""
MIN_TRACKS = 20


def is_still(sparse: SparseMap) -> bool:
    """Whether features that last for half the recording stay around their place."""
    num = len(sparse.poses)
    if num < 4:
        return False
    early, late = feature_shifts(sparse, max(1, num // 8)), feature_shifts(sparse, num // 2)
    if len(late) < MIN_TRACKS:
        return False
    early_px, late_px, width_px = float(np.median(early)), float(np.median(late)), sparse.camera.width_px
    return late_px < MAX_SHIFT * width_px and late_px < max(MAX_GROWTH * early_px, MIN_SHIFT * width_px)


def feature_shifts(sparse: SparseMap, gap: int) -> np.ndarray:
    """How far (px) features move in the image over `gap` mapped frames, one value per pair of observations of a point."""
    frames, position = np.unique(sparse.obs_frame, return_inverse=True)
    key = sparse.obs_point * (len(frames) + gap) + position
    _, first, second = np.intersect1d(key + gap, key, return_indices=True)
    return np.linalg.norm(sparse.obs_px[second] - sparse.obs_px[first], axis=1)
