"""Whether the depth of neighbouring frames agrees under the true camera motion, at the prediction's own resolution."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import cv2
import numpy as np

from recon.eval.depth import DepthPair, DepthScore, aligned_depth
from recon.eval.protocols import PROTOCOLS
from recon.eval.temporal import TemporalScore, endodav_carry, nearest_carry, score_temporal
from recon.geometry.cameras import resize
from recon.scoring.prediction import Prediction
from recon.types import FrameSequence

ENDODAV = "scared-video"
"""The protocol whose authors report TAE; their own carrying is replayed for it."""


def temporal_agreement(
    sequence: FrameSequence, prediction: Prediction, indices: Sequence[int], own: DepthScore, num_workers: int, seed: int
) -> TemporalScore | None:
    """TAE and TAS with one scale for the sequence, so that a scale that wanders counts; None where the truth has no moving camera.

    Depth is scaled like the sequence as a whole and not frame by frame: per-frame scaling would hide what is measured. Only
    pixels whose true depth is known count, so that neither the scope's border nor what no truth covers adds agreement.
    """
    path, depth_gt, scale = sequence.trajectory_gt, sequence.depth_gt, own.fits.get("scale_sequence")
    if path is None or depth_gt is None or sequence.camera is None or scale is None or sequence.unit != "mm" or sequence.is_unrelated:
        return None
    first = next((depth for index in indices if (depth := prediction.z_depth(index)) is not None), None)
    if first is None:
        return None
    carry = nearest_carry(resize(sequence.camera, first.shape[1], first.shape[0]))

    def scaled(index: int) -> np.ndarray | None:
        depth, truth = prediction.z_depth(index), depth_gt(index)
        if depth is None or truth is None:
            return None
        valid = cv2.resize(truth.valid.astype(np.uint8), depth.shape[::-1], interpolation=cv2.INTER_NEAREST_EXACT) > 0
        return np.where(valid, scale * depth, 0)

    poses = dict(zip(path.frame_indices.tolist(), path.T_world_camera, strict=True))
    return score_temporal(indices, scaled, poses, carry, alignment="scale_sequence", num_workers=num_workers, seed=seed)


def endodav_agreement(
    sequence: FrameSequence,
    pair_of: Callable[[int], DepthPair | None],
    indices: Sequence[int],
    scored: DepthScore,
    num_workers: int,
    seed: int,
) -> TemporalScore | None:
    """TAE and TAS as EndoDAV's authors compute them; None without true poses or without a fit."""
    path = sequence.trajectory_gt
    if path is None or not scored.fits:
        return None

    def aligned(index: int) -> np.ndarray | None:
        pair = pair_of(index)
        return None if pair is None else aligned_depth(pair, PROTOCOLS[ENDODAV], "scale_shift", scored.fits)

    poses = dict(zip(path.frame_indices.tolist(), path.T_world_camera, strict=True))
    return score_temporal(
        indices, aligned, poses, endodav_carry, alignment="scale_shift", protocol=ENDODAV, num_workers=num_workers, seed=seed
    )
