"""Camera: the lens of the recording at working resolution, and where it comes from."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from recon.data import open_source
from recon.geometry.cameras import angle_limit, resize, unproject
from recon.geometry.fit import default_camera
from recon.io.atomic import read_json
from recon.io.cameras import check_camera_size, write_camera
from recon.pipeline import Stage
from recon.types import Camera, bounded

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Config:
    """What is assumed of a lens that nobody calibrated."""

    default_fov_deg: float = bounded(75.0, 1.0, 179.0)
    """Horizontal field of view when neither a camera file nor the data set gives a lens. Laparoscopes and rhinoscopes show
    60 to 90 degrees across the image; flexible scopes show 120 to 170 and need a camera file for a true shape."""


def run(inputs: dict[str, Path], out: Path, config: Config) -> None:
    """Write `camera.json`. Raises ReconError (exit code 2) when a given lens is for images of another size."""
    frames = read_json(inputs["frames"] / "frames.json")
    source = read_json(inputs["source"] / "source.json")
    given_camera = open_source(inputs["source"]).camera
    if given_camera is None:
        intrinsics = "estimated"
        camera = default_camera(frames["source_width_px"], frames["source_height_px"], float(np.deg2rad(config.default_fov_deg)))
        log.warning("%s: no calibration, assuming a horizontal field of view of %g degrees", frames["name"], config.default_fov_deg)
    else:
        intrinsics = "given" if source.get("camera_file") else "dataset"
        camera = given_camera
        owner = source.get("camera_file") or f"the camera of data set {frames['dataset']}"
        check_camera_size(camera, frames["source_width_px"], frames["source_height_px"], owner, frames["name"])
    camera = resize(camera, frames["width_px"], frames["height_px"])
    write_camera(out / "camera.json", camera, intrinsics=intrinsics, fov_rad=horizontal_fov(camera))


def horizontal_fov(camera: Camera) -> float:
    """Angle between the rays of the left and right border in the middle row, rad; at most what the lens sees."""
    middle = 0.5 * (camera.height_px - 1)
    left, right = unproject(camera, np.array([[-0.5, middle], [camera.width_px - 0.5, middle]]))
    angle = float(np.arctan2(np.linalg.norm(left[:2]), left[2]) + np.arctan2(np.linalg.norm(right[:2]), right[2]))
    return min(angle, 2.0 * angle_limit(camera))


STAGE = Stage(config=Config, run=run, reads=("source", "frames"), writes=("camera.json",), version=1, bytes_per_frame=0.0)
