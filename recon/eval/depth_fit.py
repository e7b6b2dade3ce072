"""How a predicted depth is brought to the truth's scale: the fits behind the four alignments.

Of one frame: `none`; `median_of_ratios`, the median of true over predicted depth; `ratio_of_medians`, as Zhou et al.,
"Unsupervised learning of depth and ego-motion from video" (2017) and all who follow their code; `least_squares`, scale and shift
in depth, or in disparity for a predicted disparity as Ranftl et al., "Towards robust monocular depth estimation" (2020);
`least_median_squares`, PPSNet's scale. Of a whole sequence: `sequence_median_of_ratios` and `sequence_deviation`, EndoDAV's
shift by medians and scale by mean absolute deviations.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.optimize
from jaxtyping import Float

from recon.eval.depth_frames import Pixels
from recon.eval.medians import median

FITTED_RANGE = (1e-3, 10.0)
"""Times the frame's mean true depth: a fitted shift may push depth through zero, or disparity to infinity, and is stopped there."""


@dataclass(frozen=True)
class Fit:
    """Aligned depth = `scale` x depth + `shift`, or the inverse of that of the disparity, kept within `limits`."""

    scale: float = 1.0
    shift: float = 0.0
    in_disparity: bool = False
    limits: tuple[float, float] | None = None

    def __call__(self, pred: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
        """Align positive depths of any shape."""
        scale, shift = pred.dtype.type(self.scale), pred.dtype.type(self.shift)
        if self.in_disparity:
            aligned = 1 / np.maximum(scale / pred + shift, np.finfo(pred.dtype).tiny)
        else:
            aligned = scale * pred if self.shift == 0 else scale * pred + shift
        return aligned if self.limits is None else np.clip(aligned, *self.limits)


def median_of_ratios(pixels: Pixels) -> float:
    """Return the median of true over predicted depth."""
    return median(pixels.gt / pixels.pred)


def ratio_of_medians(pixels: Pixels) -> float:
    """Return the median true over the median predicted depth."""
    return median(pixels.gt) / median(pixels.pred)


def least_squares(pixels: Pixels) -> Fit:
    """Return the scale and shift of least squared error: in depth, or in disparity where that was predicted."""
    mean_gt = float(pixels.gt.mean(dtype=np.float64))
    limits = (FITTED_RANGE[0] * mean_gt, FITTED_RANGE[1] * mean_gt)
    source, target = (1 / pixels.pred, 1 / pixels.gt) if pixels.is_disparity else (pixels.pred, pixels.gt)
    mean, mean_target = float(source.mean(dtype=np.float64)), float(target.mean(dtype=np.float64))
    x, y = source - source.dtype.type(mean), target - target.dtype.type(mean_target)
    variance = float(np.mean(x * x, dtype=np.float64))
    scale = float(np.mean(x * y, dtype=np.float64)) / variance if variance > 0 else 0.0
    return Fit(scale, mean_target - scale * mean, pixels.is_disparity, limits)


def least_median_squares(pixels: Pixels) -> float:
    """Return PPSNet's scale: Levenberg-Marquardt from 1 on the median squared error, where that stops."""
    gt, pred = pixels.gt, pixels.pred
    found, _ = scipy.optimize.leastsq(lambda scale: np.median((gt - scale * pred) ** 2), 1.0)
    return float(found[0])
