"""The right pictures of a stereo endoscope that a user brings: a folder of images with one file that says how they were seen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Float

from recon.data.masks import files_of_frames
from recon.data.truth import check_rigid
from recon.io.atomic import read_json
from recon.io.cameras import check_camera_size, read_camera
from recon.io.images import read_image, read_info
from recon.types import Camera, Frame, ReconError, SecondView

CALIBRATION = "stereo.json"
"""In the folder: the right lens with the keys of `camera.json`, and beside them KEY."""
KEY = "T_right_left_mm"
"""Four rows of four numbers that map points of the left camera to the right one; rectified views have -baseline in the first row."""


def second_views(folder: Path, frames: Sequence[Frame]) -> Callable[[int], SecondView | None]:
    """From frame index to its right view. Raises ReconError naming the file that is missing or damaged."""
    camera, T_right_left_mm = read_calibration(folder)
    file_of = files_of_frames(folder, frames)
    first = next(iter(file_of.values()))
    info = read_info(first)
    check_camera_size(camera, info.width_px, info.height_px, folder / CALIBRATION, first)

    def view(index: int) -> SecondView | None:
        return SecondView(camera, T_right_left_mm, partial(read_image, file_of[index])) if index in file_of else None

    return view


def read_calibration(folder: Path) -> tuple[Camera, Float[np.ndarray, "4 4"]]:
    """The right lens, and right from left in mm. Raises ReconError naming what is wrong with the folder's file."""
    file = folder / CALIBRATION
    if not file.is_file():
        raise ReconError(f"{file} does not exist: expected the lens of the right pictures (as in camera.json) with {KEY}, beside them")
    camera = read_camera(file)
    try:
        T = np.array(read_json(file)[KEY], dtype=np.float64).reshape(4, 4)
    except (KeyError, TypeError, ValueError) as error:
        raise ReconError(
            f"{file}: expected {KEY}, four rows of four numbers that map left camera points (mm) to the right camera"
        ) from error
    check_rigid(file, T[None])
    return camera, T
