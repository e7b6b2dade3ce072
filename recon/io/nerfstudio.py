"""Scenes for nerfstudio: `transforms.json` with images, 16-bit depth and masks beside it.

nerfstudio's cameras look along -z with y up (OpenGL) where ours look along z with y down, and its pixel coordinates start at the
corner of the first pixel, so principal points are half a pixel larger. World axes and unit stay the run's. Its masks are non-zero
where a pixel is used. Depth is in steps of `depth_unit_scale_factor` run units, 0 where unknown: nerfstudio takes that number from
the command line (`--depth-unit-scale-factor`), not from the file. `time` runs from 0 to 1, as its cameras' times do.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from recon.io.atomic import read_json, write_bytes, write_json
from recon.io.images import read_integers, write_png
from recon.io.masks import read_mask
from recon.types import CAMERA_PARAMS, Camera, ReconError, Unit

TRANSFORMS = "transforms.json"
PIXEL_CENTRE_SHIFT = 0.5
"""nerfstudio's pixel coordinates minus ours."""
CAMERA_AXES = np.diag([1.0, -1.0, -1.0, 1.0])
"""From OpenGL's camera axes to OpenCV's, and back."""
MODELS = {"PINHOLE": "PINHOLE", "OPENCV": "OPENCV", "OPENCV_FISHEYE": "OPENCV_FISHEYE"}
MODELS |= {"SIMPLE_PINHOLE": "PINHOLE", "SIMPLE_RADIAL": "OPENCV", "RADIAL": "OPENCV"}
"""What a lens is called in the file; models of one focal length are written with two equal ones."""
MAX_LEVEL = 65535

_KEYS = {"fx": "fl_x", "fy": "fl_y", "cx": "cx", "cy": "cy"} | {name: name for name in ("k1", "k2", "k3", "k4", "p1", "p2")}


@dataclass(frozen=True)
class PosedFrame:
    """One picture with its pose; depth and mask, of the picture's size, are read when asked for."""

    name: str
    """Of its files, without a suffix; nerfstudio takes frames in the order of their names."""
    timestamp_s: float
    T_world_camera: Float[np.ndarray, "4 4"]
    image: Path
    depth: Callable[[], Float[np.ndarray, "h w"]] | None = field(default=None, repr=False)
    """z-depth in the scene's unit, 0 where unknown."""
    mask: Callable[[], Bool[np.ndarray, "h w"]] | None = field(default=None, repr=False)
    """True where the pixel is used."""


@dataclass(frozen=True)
class NerfstudioScene:
    """What a `transforms.json` holds."""

    camera: Camera
    frames: tuple[PosedFrame, ...]
    unit: Unit
    depth_step: float | None
    """One level of the depth images in `unit`; None without depth."""


def write_nerfstudio(folder: str | Path, camera: Camera, frames: Sequence[PosedFrame], unit: Unit) -> float | None:
    """Write `transforms.json`, `images/`, and `depths/` and `masks/` where every frame has them.

    Returns one level of the depth images in `unit`, which nerfstudio must be told: the least of 1, 2 or 5 times a power of ten
    with which the farthest depth fits 16 bits. None without depth.
    Raises ReconError for a lens that nerfstudio does not know, no frame, two of one name, and depth or masks of some frames only.
    """
    folder, lens = Path(folder), _lens_keys(camera)
    _check_frames(frames)
    step = depth_step(max(float(frame.depth().max()) for frame in frames)) if frames[0].depth else None
    start_s = min(frame.timestamp_s for frame in frames)
    duration_s = max(frame.timestamp_s for frame in frames) - start_s
    entries = []
    for frame in sorted(frames, key=lambda frame: frame.name):
        files = _write_frame(folder, camera, frame, step)
        pose = np.asarray(frame.T_world_camera, dtype=np.float64) @ CAMERA_AXES
        time = (frame.timestamp_s - start_s) / duration_s if duration_s > 0 else 0.0
        entries.append(files | {"transform_matrix": pose.tolist(), "time": time, "timestamp_s": float(frame.timestamp_s)})
    depth_keys = {} if step is None else {"depth_unit_scale_factor": step}
    write_json(folder / TRANSFORMS, lens | {"unit": unit} | depth_keys | {"frames": entries})
    return step


def depth_step(farthest: float) -> float:
    """The least of 1, 2 or 5 times a power of ten of which 65535 reach the farthest depth; 0.001 where there is no depth."""
    if farthest <= 0:
        return 0.001
    finest = farthest / MAX_LEVEL
    decade = math.floor(math.log10(finest))
    candidates = [float(f"{digit}e{power}") for power in (decade, decade + 1) for digit in (1, 2, 5)]
    return next(step for step in candidates if round(farthest / step) <= MAX_LEVEL)


def read_nerfstudio(folder: str | Path) -> NerfstudioScene:
    """A scene of this program or another's with one lens for all frames.

    Depth is read where the file says its step, and the unit is "unitless" unless it says so; frames without a time get NaN.
    Raises ReconError naming the file and what is missing or damaged.
    """
    folder = Path(folder)
    path = folder / TRANSFORMS
    tree = read_json(path)
    if not isinstance(tree, dict) or not isinstance(tree.get("frames"), list) or not tree["frames"]:
        raise ReconError(f"{path} should hold one JSON object with a list of frames")
    step = tree.get("depth_unit_scale_factor")
    if step is not None and not (type(step) in (int, float) and 0 < step < math.inf):
        raise ReconError(f"{path}: depth_unit_scale_factor should be a positive number, found {step!r}")
    camera = _camera(path, tree)
    frames = tuple(_frame(path, number, entry, step) for number, entry in enumerate(tree["frames"]))
    return NerfstudioScene(camera, frames, "mm" if tree.get("unit") == "mm" else "unitless", step)


def _lens_keys(camera: Camera) -> dict[str, Any]:
    if camera.model not in MODELS:
        known = ", ".join(MODELS)
        raise ReconError(f"nerfstudio knows no lens of model {camera.model} (it knows {known}): give the fisheye that stands in for it")
    values = dict(zip(CAMERA_PARAMS[camera.model], camera.params, strict=True))
    f, k = values.pop("f", None), values.pop("k", None)
    values |= ({} if f is None else {"fx": f, "fy": f}) | ({} if k is None else {"k1": k})
    name = MODELS[camera.model]
    size = {"camera_model": name, "w": camera.width_px, "h": camera.height_px}
    shifts = {"cx": PIXEL_CENTRE_SHIFT, "cy": PIXEL_CENTRE_SHIFT}
    return size | {_KEYS[key]: float(values.get(key, 0.0)) + shifts.get(key, 0.0) for key in CAMERA_PARAMS[name]}


def _check_frames(frames: Sequence[PosedFrame]) -> None:
    if not frames:
        raise ReconError("no frame is posed: there is nothing to write for nerfstudio", exit_code=1)
    if len({frame.name for frame in frames}) < len(frames):
        raise ReconError("two frames for nerfstudio have one name: expected a name of its own for each")
    for what in ("depth", "mask"):
        num = sum(getattr(frame, what) is not None for frame in frames)
        if num not in (0, len(frames)):
            raise ReconError(f"nerfstudio wants a {what} for every frame or for none, found {num} for {len(frames)}: leave the others out")


def _write_frame(folder: Path, camera: Camera, frame: PosedFrame, step: float | None) -> dict[str, str]:
    """Write the files of a frame; returns their keys in its entry."""
    files = {"file_path": f"images/{frame.name}{frame.image.suffix}"}
    try:
        write_bytes(folder / files["file_path"], frame.image.read_bytes())
    except OSError as error:
        raise ReconError(f"{frame.image} cannot be read: {error.strerror}") from error
    if frame.depth is not None:
        files["depth_file_path"] = f"depths/{frame.name}.png"
        depth = _of_size(camera, frame.name, "depth", frame.depth())
        write_png(folder / files["depth_file_path"], np.round(depth.astype(np.float64) / step).astype(np.uint16))
    if frame.mask is not None:
        files["mask_path"] = f"masks/{frame.name}.png"
        write_png(folder / files["mask_path"], _of_size(camera, frame.name, "mask", frame.mask()).astype(np.uint8) * np.uint8(255))
    return files


def _of_size(camera: Camera, name: str, what: str, values: np.ndarray) -> np.ndarray:
    if values.shape != (camera.height_px, camera.width_px):
        found = f"{values.shape[1]}x{values.shape[0]}"
        raise ReconError(f"{what} of frame {name} is {found}, but the camera is {camera.width_px}x{camera.height_px}: resize it first")
    return values


def _camera(path: Path, tree: dict[str, Any]) -> Camera:
    model = tree.get("camera_model", "OPENCV")
    if model not in set(MODELS.values()):
        raise ReconError(f"{path}: camera_model {str(model)[:40]!r} is not read; known: {', '.join(sorted(set(MODELS.values())))}")
    keys = [_KEYS[name] for name in CAMERA_PARAMS[model]]
    terms = ("k1", "k2", "k3", "k4", "p1", "p2")
    values = dict.fromkeys(terms, 0.0) | {key: tree[key] for key in (*terms, *keys, "w", "h") if key in tree}
    unread = [key for key in terms if key not in keys and values[key]]
    if unread:
        raise ReconError(f"{path}: {', '.join(unread)} of a lens {model} is not read: undistort the images first")
    wrong = [key for key in (*keys, "w", "h") if type(values.get(key)) not in (int, float)]
    if wrong:
        raise ReconError(f"{path} lacks {', '.join(wrong)}, or they are no numbers; expected one lens for all frames")
    shifts = {"cx": PIXEL_CENTRE_SHIFT, "cy": PIXEL_CENTRE_SHIFT}
    try:
        return Camera(model, int(values["w"]), int(values["h"]), tuple(float(values[key]) - shifts.get(key, 0.0) for key in keys))
    except (ReconError, ValueError, OverflowError) as error:
        raise ReconError(f"{path}: {error}") from error


def _frame(path: Path, number: int, entry: Any, step: float | None) -> PosedFrame:
    try:
        image = _beside(path, entry["file_path"])
        pose = np.array(entry["transform_matrix"], dtype=np.float64)
        depth = _beside(path, entry["depth_file_path"]) if "depth_file_path" in entry else None
        mask = _beside(path, entry["mask_path"]) if "mask_path" in entry else None
        timestamp_s = float(entry.get("timestamp_s", math.nan))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ReconError(f"{path}: frame {number} is damaged ({type(error).__name__}: {error})") from error
    if pose.shape != (4, 4) or not np.all(np.isfinite(pose)):
        raise ReconError(f"{path}: frame {number} should have a transform_matrix of 4x4 finite numbers, found shape {pose.shape}")
    return PosedFrame(
        image.stem,
        timestamp_s,
        pose @ CAMERA_AXES,
        image,
        None if depth is None or step is None else partial(_read_depth, depth, step),
        None if mask is None else partial(read_mask, mask),
    )


def _beside(path: Path, name: str) -> Path:
    """A file of the scene; names that lead out of its folder are refused."""
    relative = PurePosixPath(name)
    if relative.is_absolute() or ".." in relative.parts:
        raise ReconError(f"{path}: file {name[:80]!r} lies outside the scene's folder")
    return path.parent / relative


def _read_depth(path: Path, step: float) -> Float[np.ndarray, "h w"]:
    return read_integers(path) * np.float64(step)
