"""Local features and their matches along a recording, in a COLMAP database.

Mucosa has little contrast, so the detector's threshold is lower than COLMAP's default, and
frames are matched with their successors at linear and at doubling distances, and where the camera seems to have come back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pycolmap

from recon.io.atomic import write_text
from recon.io.images import write_png
from recon.io.masks import read_mask
from recon.tracking.loop_pairs import loop_pairs
from recon.tracking.sift import FeatureDatabase, detect_all
from recon.types import Camera

MASK_MARGIN_PX = 5
"""Features this close to a masked region describe its border and not the tissue."""


@dataclass(frozen=True)
class FeatureOptions:
    """What to detect and which frames to match."""

    max_num_features: int = 3072
    """Per frame."""
    peak_threshold: float = 0.0015
    """Contrast (of 1) below which SIFT drops a corner."""
    overlap: int = 10
    """Each frame is matched with this many successors, and with those 2^k frames ahead for k below this."""
    seed: int = 0
    num_threads: int = 1


def feature_masks(masks: Path, frames: Sequence[int], out: Path) -> Path:
    """Masks for COLMAP of frames whose own are `masks/NNNNNN.png`: named after the image, shrunk by a margin; returns `out`."""
    margin = np.ones((2 * MASK_MARGIN_PX + 1,) * 2, np.uint8)
    for index in frames:
        path = out / f"{index:06d}.jpg.png"
        if not path.exists():
            mask = read_mask(masks / f"{index:06d}.png")
            write_png(path, cv2.erode(mask.astype(np.uint8) * 255, margin, borderValue=255))
    return out


def match_frames(database: Path, images: Path, masks: Path | None, names: Sequence[str], camera: Camera, options: FeatureOptions) -> None:
    """Detect features in `images/name` where `masks/name.png` is not black, match neighbours, verify by epipolar geometry.

    `camera` must be a model that COLMAP knows. Everything is written to the database file, which must not exist.
    """
    pycolmap.set_random_seed(options.seed)
    with FeatureDatabase(database, camera) as opened:
        for name, found in detect_all(images, masks, names, options.max_num_features, options.peak_threshold, options.num_threads):
            opened.add(name, found)
    pycolmap.match_sequential(
        database_path=database,
        matching_options=_matching(options),
        pairing_options=_pairing(options),
        verification_options=_verification(options),
        device=pycolmap.Device.cpu,
    )
    _match_loops(database, names, options)


def _match_loops(database: Path, names: Sequence[str], options: FeatureOptions) -> None:
    """Match frames far apart in time that look alike: there the camera may have come back."""
    pairs = loop_pairs(database, names, options.overlap, options.seed)
    if not pairs:
        return
    listed = database.with_suffix(".pairs")
    write_text(listed, "".join(f"{a} {b}\n" for a, b in pairs))
    pairing = pycolmap.ImportedPairingOptions()
    pairing.match_list_path = listed
    pycolmap.match_image_pairs(
        database_path=database,
        matching_options=_matching(options),
        pairing_options=pairing,
        verification_options=_verification(options),
        device=pycolmap.Device.cpu,
    )


def _matching(options: FeatureOptions) -> pycolmap.FeatureMatchingOptions:
    matching = pycolmap.FeatureMatchingOptions()
    matching.num_threads = options.num_threads
    return matching


def _pairing(options: FeatureOptions) -> pycolmap.SequentialPairingOptions:
    pairing = pycolmap.SequentialPairingOptions()
    pairing.overlap = options.overlap
    pairing.quadratic_overlap = True
    pairing.num_threads = options.num_threads
    return pairing


def _verification(options: FeatureOptions) -> pycolmap.TwoViewGeometryOptions:
    """The round edge of the picture is no watermark: it is masked already, so COLMAP's test for one is off."""
    verification = pycolmap.TwoViewGeometryOptions()
    verification.detect_watermark = False
    verification.ransac.random_seed = options.seed
    return verification
