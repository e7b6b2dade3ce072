"""Which frames of a recording look alike: candidates for closing a loop, or for finding the way back after the camera was lost.

Frames are compared as small pictures of local contrast, which the travelling lamp and the exposure leave alone (the tiny
images of relocalisation in PTAM, Klein and Murray 2008). What looks alike is only a candidate: geometry decides.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import cv2
import numpy as np
from jaxtyping import Float

from recon.tracking.dense_frame import DenseFrame

BLUR_PX = 1.0
"""Of the small pictures: a few degrees of turn still look alike."""


@dataclass
class Gallery:
    """Small pictures of frames."""

    indices: list[int] = field(default_factory=list)
    pictures: list[Float[np.ndarray, " n"]] = field(default_factory=list)

    def add(self, index: int, frame: DenseFrame) -> None:
        """Keep a frame to be found again."""
        self.indices.append(index)
        self.pictures.append(small_picture(frame))

    def nearest(self, frame: DenseFrame, count: int, min_likeness: float) -> list[int]:
        """Indices of the kept frames that look most like this one, the best first; none below `min_likeness` (a correlation)."""
        if not self.pictures:
            return []
        likeness = np.stack(self.pictures) @ small_picture(frame)
        best = np.argsort(-likeness, kind="stable")[:count]
        return [self.indices[k] for k in best if likeness[k] >= min_likeness]


def small_picture(frame: DenseFrame) -> Float[np.ndarray, " n"]:
    """Contrast of the coarsest level as a vector of mean 0 and norm 1; zeros where there is none."""
    level = frame.levels[-1]
    blurred = cv2.GaussianBlur(np.where(level.valid, level.contrast, 0.0), (0, 0), BLUR_PX)
    centred = np.where(level.valid, blurred - (blurred[level.valid].mean() if level.valid.any() else 0.0), 0.0).reshape(-1)
    return centred / max(float(np.linalg.norm(centred)), 1e-12)
