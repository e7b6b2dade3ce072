"""`camera.json`: a lens with the size of the images it belongs to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from recon.io.atomic import read_json, write_json
from recon.types import CAMERA_PARAMS, Camera, ReconError


def write_camera(path: str | Path, camera: Camera, **extra: Any) -> None:
    """`extra` adds keys beside the lens, such as where it came from; readers ignore what they do not know."""
    lens = {"model": camera.model, "width_px": camera.width_px, "height_px": camera.height_px, "params": [float(p) for p in camera.params]}
    write_json(path, lens | extra)


def read_camera(path: str | Path) -> Camera:
    """Raises ReconError naming the file and what is wrong with it."""
    value = read_json(path)
    if not isinstance(value, dict):
        raise ReconError(f"{path} should hold one JSON object with model, width_px, height_px and params")
    missing = [key for key in ("model", "width_px", "height_px", "params") if key not in value]
    if missing:
        raise ReconError(f"{path} lacks {', '.join(missing)}; a camera has model, width_px, height_px and params")
    if value["model"] not in list(CAMERA_PARAMS):
        raise ReconError(f"{path}: camera model {value['model']!r} is not known; known: {', '.join(CAMERA_PARAMS)}")
    for key in ("width_px", "height_px"):
        if type(value[key]) is not int or not 1 <= value[key] <= 100_000:
            raise ReconError(f"{path}: {key} should be a whole number of pixels, found {value[key]!r}")
    if not isinstance(value["params"], list) or not all(type(p) in (int, float) and abs(p) < 1e30 for p in value["params"]):
        raise ReconError(f"{path}: params should be a list of finite numbers, found {str(value['params'])[:80]}")
    try:
        camera = Camera(value["model"], value["width_px"], value["height_px"], tuple(float(p) for p in value["params"]))
    except ReconError as error:
        raise ReconError(f"{path}: {error}") from error
    _check_lens(path, camera)
    return camera


def check_camera_size(camera: Camera, width_px: int, height_px: int, camera_file: str | Path, source: str | Path) -> None:
    """Raises ReconError unless the camera belongs to images of this size."""
    if (camera.width_px, camera.height_px) != (width_px, height_px):
        raise ReconError(
            f"{camera_file} is for images of {camera.width_px}x{camera.height_px}, but {source} has {width_px}x{height_px}; "
            "give a camera file for this image size"
        )


def _check_lens(path: str | Path, camera: Camera) -> None:
    lens = dict(zip(CAMERA_PARAMS[camera.model], camera.params, strict=True))
    for name in ("f", "fx", "fy", "a0"):
        if name in lens and lens[name] <= 0:
            raise ReconError(f"{path}: {name} of {camera.model} should be positive pixels, found {lens[name]:g}")
    for name, size in (("cx", camera.width_px), ("cy", camera.height_px)):
        if not -size < lens[name] < 2 * size:
            raise ReconError(f"{path}: {name} = {lens[name]:g} lies far outside an image of {camera.width_px}x{camera.height_px}")
