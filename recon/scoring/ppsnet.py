"""PPSNet scores C3VD on undistorted frames; depth behind the data set's own lens is brought to that pinhole first."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

from recon.eval.depth import DepthPair
from recon.geometry.cameras import resize
from recon.geometry.undistort import remap, remap_grid
from recon.types import Camera, ReconError

PPSNET = "c3vd-ppsnet"
PINHOLE = Camera("PINHOLE", 1350, 1080, (770.66, 770.44, 674.76, 549.18))
"""As its authors state it (Roni-Lab/PPSNet, discussion of issue 5)."""


def undistorted(camera: Camera | None, pair_of: Callable[[int], DepthPair | None]) -> Callable[[int], DepthPair | None]:
    """The same pairs behind the pinhole. z-depth stays as it is, for both lenses share centre and axes; nearest pixel, so that no
    depth is invented across edges. Raises ReconError without a calibration.
    """
    if camera is None:
        raise ReconError(f"{PPSNET} compares undistorted frames and the recording has no calibration")
    target = resize(PINHOLE, camera.width_px, camera.height_px)
    grid = remap_grid(camera, target)

    def pair(index: int) -> DepthPair | None:
        found = pair_of(index)
        if found is None:
            return None
        size_px = (camera.width_px, camera.height_px)
        pred = cv2.resize(found.pred, size_px, interpolation=cv2.INTER_NEAREST_EXACT)
        gt, pred = (remap(depth.astype(np.float32), *grid, interpolation="nearest") for depth in (found.gt, pred))
        return DepthPair(pred, gt, found.is_disparity)

    return pair
