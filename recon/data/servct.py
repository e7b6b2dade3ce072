"""SERV-CT: stereo pairs of a porcine torso with depth from CT; the left image of every pair is a frame.

Depth is uint16 millimetres times 256, 0 unknown; blue in the occlusion picture marks pixels without reference surface. The
data set's root (all experiments in a row) and one Experiment folder both open. The frames are unrelated views.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Float

from recon.data.folder import image_files, still_sequence
from recon.io.atomic import read_json
from recon.io.images import read_image, read_integers
from recon.types import Camera, DepthMap, FrameSequence, ReconError

_REFERENCES = ("Ground_truth_CT", "Reference_CT", "Ground_truth_RGB", "Reference_RGB")
"""Spellings of the folder of the reference, the first that exists is used: CT before structured light."""

_UNRELATED = "frames are unrelated stereo pairs: no trajectory can be expected"


def matches(path: Path) -> bool:
    return bool(_experiments(path))


def open_servct(path: Path) -> FrameSequence:
    """Raises ReconError naming what is missing, or the calibration file that is damaged."""
    experiments = _experiments(path)
    if not experiments:
        raise ReconError(f"{path} is neither a SERV-CT root (Experiment_*/Left_rectified) nor one of its Experiment folders")
    files = [file for experiment in experiments for file in image_files(experiment / "Left_rectified")]
    names = [file.stem if experiments == [path] else f"{file.parent.parent.name}/{file.stem}" for file in files]
    stills = still_sequence(path, files, names)
    camera, notes = _common_camera(files, stills.width_px, stills.height_px)
    return FrameSequence(
        path.resolve().name,
        "servct",
        stills.frames,
        camera=camera,
        unit="mm",
        depth_gt=partial(_depth, files),
        notes=(*stills.notes, *notes, _UNRELATED),
    )


def _experiments(path: Path) -> list[Path]:
    if (path / "Left_rectified").is_dir():
        return [path]
    return sorted(folder.parent for folder in path.glob("Experiment_*/Left_rectified") if folder.is_dir()) if path.is_dir() else []


def _common_camera(files: Sequence[Path], width_px: int, height_px: int) -> tuple[Camera | None, tuple[str, ...]]:
    """The left camera of the first pair, and a note when other pairs were calibrated differently."""
    calibrations = [file.parent.parent / "Rectified_calibration" / f"{file.stem}.json" for file in files]
    lenses = np.array([_left_lens(calibration) for calibration in calibrations if calibration.is_file()])
    if not len(lenses):
        return None, ()
    spread_px = np.abs(lenses - lenses[0]).max()
    notes = (f"calibrations differ by up to {spread_px:.1f} px: open one Experiment folder at a time",) if spread_px > 0.5 else ()
    return Camera("PINHOLE", width_px, height_px, tuple(lenses[0].tolist())), notes


def _left_lens(path: Path) -> Float[np.ndarray, " 4"]:
    """fx fy cx cy of the left rectified camera, pixel centres at integers as in OpenCV."""
    try:
        P1 = np.array(read_json(path)["P1"]["data"], dtype=np.float64).reshape(3, 4)
    except (KeyError, TypeError, ValueError) as error:
        raise ReconError(f"{path}: expected P1 with the 12 numbers of a 3x4 projection in `data`") from error
    lens = np.array([P1[0, 0], P1[1, 1], P1[0, 2], P1[1, 2]])
    if not np.all(np.isfinite(lens)) or lens[:2].min() <= 0:
        raise ReconError(f"{path}: P1 holds no valid focal length: {lens.tolist()}")
    return lens


def _depth(files: Sequence[Path], index: int) -> DepthMap | None:
    image = files[index]
    reference = next((image.parent.parent / name for name in _REFERENCES if (image.parent.parent / name).is_dir()), None)
    if reference is None or not (reference / "DepthL" / image.name).is_file():
        return None
    depth_mm = read_integers(reference / "DepthL" / image.name) / 256.0
    valid = depth_mm > 0
    occlusion = reference / "OcclusionL" / image.name
    if occlusion.is_file():
        valid &= ~np.all(read_image(occlusion) == (0, 0, 255), axis=2)
    return DepthMap(np.where(valid, depth_mm, 0).astype(np.float32), valid, "metric")
