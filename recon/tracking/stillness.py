"""Whether the camera moved at all: a fixed scope over breathing tissue must not become a moving scope over stiff tissue.

Both look alike to structure from motion when the motion is small. A moving camera sweeps its features over a good part of
the image and loses many of them; over a still one they last and stay where they are, give or take the tissue's motion.
"""

from __future__ import annotations

import numpy as np

from recon.tracking.mapping import SparseMap

MAX_SPREAD = 0.01
"""Of the image width: root mean square motion of a feature around its mean that tissue alone may explain."""
MIN_SPAN = 0.5
"""Share of the recording over which a feature must be followed to count."""
MIN_TRACKS = 20


def is_still(sparse: SparseMap, num_frames: int) -> bool:
    """Whether the features that last through the recording stay in their place (median over features)."""
    spreads = track_spreads(sparse, round(MIN_SPAN * num_frames))
    return len(spreads) >= MIN_TRACKS and float(np.median(spreads)) < MAX_SPREAD * sparse.camera.width_px


def track_spreads(sparse: SparseMap, min_observations: int) -> np.ndarray:
    """Root mean square distance (px) of each point's observations from their mean, for points seen often enough."""
    num = np.bincount(sparse.obs_point, minlength=len(sparse.xyz))
    mean = np.stack([np.bincount(sparse.obs_point, x, len(sparse.xyz)) for x in sparse.obs_px.T], axis=-1) / np.maximum(num, 1)[:, None]
    squared = ((sparse.obs_px - mean[sparse.obs_point]) ** 2).sum(axis=1)
    spread = np.sqrt(np.bincount(sparse.obs_point, squared, len(sparse.xyz)) / np.maximum(num, 1))
    return spread[num >= max(2, min_observations)]
