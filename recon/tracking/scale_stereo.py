"""Millimetres per world unit from the second view of a stereo endoscope: features matched across the baseline, in millimetres.

SIFT features (Lowe 2004) of the left picture are found again in the right one. Where their rays pass close to each other they give
a depth in millimetres, and the run's own depth at that pixel gives the same in world units. The ratios of one part of one picture
are summed up by their median, and the parts by `scale_of_parts`. No dense matching and no rectification: any two lenses will do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8

from recon.geometry import se3
from recon.geometry.cameras import project, unproject
from recon.io.colmap_camera import PIXEL_CENTRE_SHIFT
from recon.sampling import spread
from recon.tracking.scale_field import sample_nearest
from recon.tracking.scale_sources import MeasuredScale, scale_of_parts
from recon.tracking.sift import detect
from recon.types import Camera, ReconError

MAX_PAIRS = 24
"""Frames, spread over the recording, whose second view is looked at."""
NUM_FEATURES = 4000
CONTRAST = 0.0033
"""Of SIFT's detector: mucosa has little."""
MAX_RATIO = 0.85
"""Of the distances to the best and the second best descriptor (Lowe's test)."""
MAX_ERROR_PX = 1.5
"""Between a feature and the triangulated point in either picture."""
MIN_PARALLAX_PX = 4.0
"""A point whose rays meet at a smaller angle than this many pixels has a depth of no use."""
TILES = (3, 4)
"""Rows and columns of parts that a picture is cut into."""
MIN_TILE_POINTS = 4
MIN_TILES = 3
MIN_BASELINE_MM, MAX_BASELINE_MM = 0.1, 100.0
"""Between the lenses of any endoscope; outside it, the numbers are hardly millimetres."""


@dataclass(frozen=True)
class StereoPair:
    """Two pictures taken at once, and what the run knows of the left one."""

    left_image: UInt8[np.ndarray, "h w 3"]
    left_mask: Bool[np.ndarray, "h w"]
    left: Camera
    right_image: UInt8[np.ndarray, "H W 3"]
    right: Camera
    T_right_left_mm: Float[np.ndarray, "4 4"]
    """Maps points of the left camera (mm) to the right one."""
    depth: Float[np.ndarray, "rows columns"]
    """The run's z-depth of the left view in world units, on any grid of its aspect; 0 unknown."""


class Matches(NamedTuple):
    """Points that both pictures of a pair show."""

    pixels: Float[np.ndarray, "n 2"]
    """In the left picture."""
    depth_mm: Float[np.ndarray, " n"]
    across_px: Float[np.ndarray, " n"]
    """Signed distance between the rays, seen from the left camera: what calibration and matching get wrong across the epipolar line."""
    parallax_px: Float[np.ndarray, " n"]
    """Angle at which the rays meet."""


def scale_from_stereo(indices: Sequence[int], pair_of: Callable[[int], StereoPair | None]) -> MeasuredScale:
    """Look at some frames' second views. One sigma holds the scatter over pictures and their parts, and a share for calibration:
    along the epipolar line, where nothing shows it, the systematic error is taken to be what it is across.

    Args:
        indices: posed frames in order; MAX_PAIRS of them are asked for.
        pair_of: from such a frame to its pair; None where it has no second view.

    Raises ReconError when there is no second view, no believable baseline or too little that both pictures show.
    """
    chosen = spread(indices, MAX_PAIRS)
    frames, factors, across, parallax = [], [], [], []
    num_pairs = num_matches = 0
    for index in chosen:
        pair = pair_of(index)
        if pair is None:
            continue
        num_pairs += 1
        found = match_pair(pair)
        num_matches += len(found.pixels)
        of_tiles = tile_factors(pair, found)
        frames += [index] * len(of_tiles)
        factors += of_tiles
        across.append(found.across_px)
        parallax.append(found.parallax_px)
    if not num_pairs:
        raise ReconError(f"scale.stereo: none of {len(chosen)} posed frames has a second view; give a folder that has them, named alike")
    if len(factors) < MIN_TILES:
        raise ReconError(
            f"scale.stereo: {num_matches} features met in {num_pairs} stereo pairs, in {len(factors)} parts of the pictures that have "
            f"depth, expected {MIN_TILES} parts with {MIN_TILE_POINTS} features or more: is the right view of the same time, and are its "
            "lens and T_right_left_mm right?",
            1,
        )
    bias_px, typical_px = float(np.median(np.concatenate(across))), float(np.median(np.concatenate(parallax)))
    figures = {"num_pairs": num_pairs, "num_matches": num_matches, "epipolar_bias_px": bias_px, "parallax_px": typical_px}
    return scale_of_parts("stereo", np.array(frames, dtype=np.int64), np.array(factors), abs(bias_px) / typical_px, **figures)


def match_pair(pair: StereoPair) -> Matches:
    """Raises ReconError for a baseline that no endoscope has."""
    baseline = float(np.linalg.norm(pair.T_right_left_mm[:3, 3]))
    if not MIN_BASELINE_MM <= baseline <= MAX_BASELINE_MM:
        raise ReconError(
            f"scale.stereo: the two lenses are {baseline:.3g} mm apart, expected {MIN_BASELINE_MM:g} to {MAX_BASELINE_MM:g} mm: "
            "is the calibration in millimetres?"
        )
    in_left, in_right = _matched(pair)
    return triangulated(pair.left, pair.right, pair.T_right_left_mm, in_left, in_right)


def tile_factors(pair: StereoPair, found: Matches) -> list[float]:
    """Median of millimetres over world units in each part of the left picture that has enough matches."""
    size = np.array([pair.left.width_px, pair.left.height_px])
    depth = sample_nearest(pair.depth, (found.pixels + 0.5) / size[0])
    row, column = np.clip(((found.pixels[:, ::-1] + 0.5) / size[::-1] * TILES).astype(int), 0, np.array(TILES) - 1).T
    tile = np.where(depth > 0, row * TILES[1] + column, -1)
    ratio = found.depth_mm / np.where(depth > 0, depth, 1.0)
    return [float(np.median(ratio[tile == k])) for k in range(TILES[0] * TILES[1]) if np.sum(tile == k) >= MIN_TILE_POINTS]


def triangulated(
    left: Camera,
    right: Camera,
    T_right_left_mm: Float[np.ndarray, "4 4"],
    in_left: Float[np.ndarray, "n 2"],
    in_right: Float[np.ndarray, "n 2"],
) -> Matches:
    """Points halfway between the rays where they are closest; those that are far from a ray or from the cameras' front are dropped."""
    a = unproject(left, in_left)
    T_left_right = se3.inverse(T_right_left_mm)
    b = unproject(right, in_right) @ T_left_right[:3, :3].T
    c = T_left_right[:3, 3]
    # The shortest line between o + s a and c + u b is at right angles to both.
    ab, ac, bc = np.sum(a * b, axis=1), a @ c, b @ c
    sine = np.sqrt(np.maximum(1 - ab**2, 1e-12))
    s, u = (ac - ab * bc) / sine**2, (ab * ac - bc) / sine**2
    points = (s[:, None] * a + c + u[:, None] * b) / 2
    in_front = (s > 0) & (u > 0) & (points[:, 2] > 0)
    pixel_rad = _pixel_rad(left)
    parallax_px = np.arcsin(np.minimum(sine, 1.0)) / pixel_rad
    normal = np.cross(np.broadcast_to(c, a.shape), a)
    normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-12)
    across_px = np.sum(b * normal, axis=1) / pixel_rad
    errors = []
    for camera, seen, at in ((left, in_left, points), (right, in_right, points @ T_right_left_mm[:3, :3].T + T_right_left_mm[:3, 3])):
        pixels, valid = project(camera, at)
        errors.append(np.where(valid, np.linalg.norm(pixels - seen, axis=1), np.inf))
    good = in_front & (np.maximum(*errors) <= MAX_ERROR_PX) & (parallax_px >= MIN_PARALLAX_PX)
    return Matches(in_left[good], points[good, 2], across_px[good], parallax_px[good])


def _pixel_rad(camera: Camera) -> float:
    """Angle between two neighbouring pixels in the middle of the picture."""
    middle = np.array([camera.width_px / 2, camera.height_px / 2])
    one, other = unproject(camera, np.stack([middle, middle + np.array([1.0, 0.0])]))
    return float(np.linalg.norm(one - other))


def _matched(pair: StereoPair) -> tuple[np.ndarray, np.ndarray]:
    """Pixels of features that are each other's best match."""
    left = detect(pair.left_image, pair.left_mask, NUM_FEATURES, CONTRAST)
    right = detect(pair.right_image, None, NUM_FEATURES, CONTRAST)
    if min(len(left.keypoints), len(right.keypoints)) < 2:
        return np.zeros((0, 2)), np.zeros((0, 2))
    left_words, right_words = (found.descriptors.astype(np.float32) for found in (left, right))
    there = cv2.BFMatcher(cv2.NORM_L2).knnMatch(left_words, right_words, k=2)
    back = {m.queryIdx: m.trainIdx for m in cv2.BFMatcher(cv2.NORM_L2).match(right_words, left_words)}
    kept = [m for m, second in there if m.distance < MAX_RATIO * second.distance and back[m.trainIdx] == m.queryIdx]
    rows, columns = np.array([m.queryIdx for m in kept], np.int64), np.array([m.trainIdx for m in kept], np.int64)
    in_left, in_right = left.keypoints[rows, :2] - PIXEL_CENTRE_SHIFT, right.keypoints[columns, :2] - PIXEL_CENTRE_SHIFT
    return in_left.astype(np.float64), in_right.astype(np.float64)
