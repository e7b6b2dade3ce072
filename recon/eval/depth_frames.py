"""Which pixels of a frame are compared: both maps on one grid, what is unknown, and what a protocol leaves out."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Bool, Float

from recon.eval.protocols import Crop, Protocol
from recon.types import ReconError

MAX_ASPECT_DIFFERENCE = 0.02
"""A prediction whose aspect is further from the truth's does not show the same part of the scene."""

PPSNET_INPUT_PX, PPSNET_SCORED_PX = 518, 384
PPSNET_FULL_M = 65535.0 * 0.000001525
"""Depth in metres of the largest value of C3VD's 16-bit maps, in the script's own rounding of 0.1."""
C3VD_FULL_MM = 100.0


SMALLEST, LARGEST = 1e-12, 1e12
"""Values beyond are no depth in any unit but marks of a renderer or damage, and their squares leave single precision."""


@dataclass(frozen=True)
class DepthPair:
    """What is predicted and what is true of one frame; 0, negative, NaN, infinite and absurdly large or small are unknown in both."""

    pred: Float[np.ndarray, "h2 w2"]
    """z-depth, or its inverse, of the same view as the truth (or of what a protocol leaves of it), at any resolution."""
    gt: Float[np.ndarray, "h w"]
    is_disparity: bool = False
    """Whether `pred` is an inverse depth."""


@dataclass(frozen=True)
class Pixels:
    """The pixels of one frame that are compared."""

    pred: Float[np.ndarray, " n"]
    """Depth, whatever was predicted."""
    gt: Float[np.ndarray, " n"]
    missing: Float[np.ndarray, " k"]
    """True depth where nothing is predicted."""
    num_true: int
    """Pixels whose true depth counts."""
    is_disparity: bool
    num_unreadable: int
    """Predicted pixels that are negative, NaN, infinite or absurd."""

    @property
    def coverage(self) -> float:
        """Predicted share of the true pixels."""
        return 1 - len(self.missing) / self.num_true


def is_known(depth: Float[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """Whether there is a depth in the sane range: NaN compares as false."""
    return (depth > SMALLEST) & (depth < LARGEST)


def in_range(gt: Float[np.ndarray, "h w"], protocol: Protocol) -> Bool[np.ndarray, "h w"]:
    """Whether true depth counts."""
    return (gt > max(protocol.min_truth, SMALLEST)) & (gt < (LARGEST if protocol.max_truth is None else protocol.max_truth))


def on_truth_grid(pair: DepthPair, protocol: Protocol, name: str) -> Float[np.ndarray, "h w"]:
    """Return predicted depth of the whole image on the truth's grid, float32, 0 unknown.

    Raises ReconError when the prediction has another aspect.
    """
    depth = _depth(pair)
    if not _has_aspect_of(depth.shape, pair.gt.shape):
        raise ReconError(
            f"{name}: predicted depth is {_size(depth.shape)} and true depth {_size(pair.gt.shape)}, expected the same aspect within "
            f"{MAX_ASPECT_DIFFERENCE:.0%}; predict on the whole image, or undo the crop or the padding"
        )
    return _resized(depth, pair.gt.shape, protocol)


def compared_pixels(pair: DepthPair, protocol: Protocol, sequence: str, name: str) -> Pixels | None:
    """Return the pixels that the protocol compares, or None when no true depth counts.

    Args:
        pair: of the frame.
        protocol: that chooses.
        sequence: name of the recording: some protocols cut some of them only.
        name: of the frame in error messages.

    Raises ReconError when the prediction does not fit the truth or the truth does not fit the protocol's crop.
    """
    unreadable = int(np.count_nonzero(~((pair.pred == 0) | is_known(pair.pred))))
    if protocol.resize == "square":
        return _square_pixels(pair, unreadable, name)
    crop = protocol.crop if protocol.crop is not None and protocol.crop.applies_to(sequence) else None
    gt = pair.gt if crop is None else _cropped(pair.gt, crop, protocol, name)
    if crop is not None and not _has_aspect_of(pair.pred.shape, pair.gt.shape) and _has_aspect_of(pair.pred.shape, gt.shape):
        pred = _resized(_depth(pair), gt.shape, protocol)
    else:
        pred = on_truth_grid(pair, protocol, name)
        pred = pred if crop is None else _cropped(pred, crop, protocol, name)
    gt = gt.astype(np.float32, copy=False)
    counts, known = in_range(gt, protocol), pred > 0
    if not counts.any():
        return None
    both, num_true = counts & known, int(np.count_nonzero(counts))
    return Pixels(pred[both], gt[both], gt[counts & ~known], num_true, pair.is_disparity, unreadable)


def _depth(pair: DepthPair) -> np.ndarray:
    """Predicted depth at its own resolution; 0 where unknown, and where its inverse is too large for float32."""
    pred = pair.pred.astype(np.float32, copy=False)
    depth = np.where(is_known(pred), pred, np.float32(0))
    return _inverse(depth) if pair.is_disparity else depth


def _inverse(depth: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        inverse = np.divide(1, depth, out=np.zeros_like(depth), where=depth > 0)
    return np.where(np.isfinite(inverse), inverse, np.float32(0))


def _resized(depth: np.ndarray, shape: tuple[int, int], protocol: Protocol) -> np.ndarray:
    if depth.shape == shape:
        return depth
    if protocol.resize == "nearest":
        return cv2.resize(depth, shape[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
    # NaN spreads to every pixel that an unknown one would have gone into.
    disparity = np.where(depth > 0, _inverse(depth), np.float32(np.nan))
    disparity = cv2.resize(disparity, shape[::-1], interpolation=cv2.INTER_LINEAR)
    return _inverse(np.where(np.isnan(disparity), np.float32(0), disparity))


def _cropped(depth: np.ndarray, crop: Crop, protocol: Protocol, name: str) -> np.ndarray:
    height, width = crop.bottom or depth.shape[0], crop.right or depth.shape[1]
    if height > depth.shape[0] or width > depth.shape[1]:
        raise ReconError(
            f"{name}: protocol {protocol.name} cuts {width}x{height} pixels from the corner on, but the true depth is "
            f"{_size(depth.shape)}; give truth at the data set's own resolution"
        )
    return depth[crop.top : crop.bottom, crop.left : crop.right]


def _has_aspect_of(shape: tuple[int, ...], other: tuple[int, ...]) -> bool:
    return abs(shape[1] * other[0] / (shape[0] * other[1]) - 1) <= MAX_ASPECT_DIFFERENCE


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[1]}x{shape[0]}"


def _square_pixels(pair: DepthPair, unreadable: int, name: str) -> Pixels | None:
    """Both maps as Roni-Lab/PPSNet test_ppsnet.py compares them, in metres; every pixel counts, unknown ones as depth 0.

    A square prediction is one of the central square. cv2's bilinear and bicubic weights are torch's without antialiasing.
    """
    if pair.pred.shape[0] != pair.pred.shape[1] and not _has_aspect_of(pair.pred.shape, pair.gt.shape):
        raise ReconError(f"{name}: predicted depth is {_size(pair.pred.shape)}, expected a square or the aspect of {_size(pair.gt.shape)}")
    known = is_known(pair.gt)
    if not known.any():
        return None
    fraction = np.where(known, pair.gt / C3VD_FULL_MM, 0).astype(np.float32)
    gt = _scored_square(np.clip(_central_square(fraction), 0, 1))
    depth = _depth(pair)
    if pair.is_disparity:
        depth = np.minimum(depth, np.float32(1))
    square = _central_square(depth)
    pred = _scored_square(square / max(float(square.max()), float(np.finfo(np.float32).tiny)))
    missing = gt[(gt > 0) & (pred <= 0)]
    return Pixels(pred.ravel(), gt.ravel(), missing, int(np.count_nonzero(gt)), pair.is_disparity, unreadable)


def _central_square(depth: np.ndarray) -> np.ndarray:
    """The shorter side brought to PPSNet's input size, and the middle of the longer one."""
    height, width = depth.shape
    shorter = min(height, width)
    size = (int(PPSNET_INPUT_PX * width / shorter), int(PPSNET_INPUT_PX * height / shorter))
    resized = depth if depth.shape == size[::-1] else cv2.resize(depth, size, interpolation=cv2.INTER_LINEAR)
    left, top = (round((length - PPSNET_INPUT_PX) / 2) for length in size)
    return resized[top : top + PPSNET_INPUT_PX, left : left + PPSNET_INPUT_PX]


def _scored_square(fraction: np.ndarray) -> np.ndarray:
    small = cv2.resize(fraction, (PPSNET_SCORED_PX, PPSNET_SCORED_PX), interpolation=cv2.INTER_CUBIC)
    return np.clip(small, 0, 1) * np.float32(PPSNET_FULL_M)
