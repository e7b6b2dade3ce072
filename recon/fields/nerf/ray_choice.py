"""Which pixels a training step looks at: tissue only, and every place of the picture equally often over the recording.

EndoNeRF (Wang et al. 2022, arXiv 2206.15255, section 2.3) draws pixels outside the instruments' masks and weights those that are
seldom free. Here the weight is the inverse of how often a place is free, so that tissue behind an instrument that moves away for a
moment is looked at as often as any other.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Int

from recon.types import ReconError


class TissueRays:
    """Draws (frame, row, column) of tissue: first a place of the picture, then one of the frames in which it is tissue.

    Raises ReconError when no pixel of any frame is tissue.
    """

    def __init__(self, tissue: Bool[np.ndarray, "n h w"]) -> None:
        num_frames, height, width = tissue.shape
        by_place = np.ascontiguousarray(tissue.reshape(num_frames, height * width).T)
        self.width_px = width
        self.places = np.flatnonzero(by_place.any(axis=1))
        if not len(self.places):
            raise ReconError(f"the masks cover all of the {num_frames} frames, so no tissue is left: check what white means in them")
        self.free = by_place[self.places]
        self.num_free = np.count_nonzero(self.free, axis=1)

    def draw(self, num: int, random: np.random.Generator) -> Int[np.ndarray, "num 3"]:
        """Frame (position in what was given), row and column of `num` pixels, with repetition."""
        chosen = random.integers(len(self.places), size=num)
        rank = random.integers(self.num_free[chosen])
        frame = np.argmax(np.cumsum(self.free[chosen], axis=1) > rank[:, None], axis=1)
        row, column = np.divmod(self.places[chosen], self.width_px)
        return np.stack([frame, row, column], axis=-1)
