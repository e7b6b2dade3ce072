"""What a radiance field is trained on: the frames of one recording on one pinhole, in a folder that is read a frame at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, UInt8

from recon.io.atomic import atomic_path, read_json, write_json
from recon.io.cameras import read_camera, write_camera
from recon.types import Camera, ReconError, Unit

DepthKind = Literal["trusted", "untrusted", "none"]
"""trusted: its level holds to the precision of the fit; untrusted: only its shape does, up to scale and shift; none: there is none."""
_DESCRIPTION = "scene.json"


@dataclass(frozen=True)
class SceneFrame:
    """One training view."""

    index: int
    """Position in the source, from 0."""
    timestamp_s: float
    time: float
    """0 at the first and 1 at the last frame of the scene."""
    T_world_camera: Float[np.ndarray, "4 4"]
    """In the scene's unit."""
    is_held_out: bool
    """True where nothing but the scores may look."""


@dataclass(frozen=True)
class View:
    """The pictures of one training view."""

    image: UInt8[np.ndarray, "h w 3"]
    tissue: Bool[np.ndarray, "h w"]
    """True where tissue is seen: inside the scope's field, and no instrument."""
    depth: Float[np.ndarray, "h w"]
    """z-depth in the scene's unit; 0 where unknown."""


@dataclass(frozen=True)
class Scene:
    """A folder of training views. The arrays are mapped from disk: a view is in memory while it is used."""

    folder: Path
    camera: Camera
    """PINHOLE, pixel centres at integers."""
    unit: Unit
    frames: tuple[SceneFrame, ...]
    median_depth: float
    """Over known pixels of tissue in the frames to learn from, in the scene's unit."""
    depth_kind: DepthKind
    images: UInt8[np.ndarray, "n h w 3"]
    tissue: Bool[np.ndarray, "n h w"]
    depth: Float[np.ndarray, "n h w"]

    def view(self, position: int) -> View:
        """The view at `position` in `frames`."""
        return View(np.array(self.images[position]), np.array(self.tissue[position]), np.array(self.depth[position]))

    @property
    def kept(self) -> list[int]:
        """Positions of the frames to learn from."""
        return [i for i, frame in enumerate(self.frames) if not frame.is_held_out]

    @property
    def held_out(self) -> list[int]:
        """Positions of the frames that are only scored."""
        return [i for i, frame in enumerate(self.frames) if frame.is_held_out]

    @property
    def is_still(self) -> bool:
        """Whether the camera stood still."""
        poses = np.array([frame.T_world_camera for frame in self.frames])
        return bool(np.abs(poses - poses[0]).max() < 1e-9)


def write_scene(
    folder: Path,
    camera: Camera,
    unit: Unit,
    frames: Sequence[SceneFrame],
    depth_kind: DepthKind,
    load: Callable[[int], View],
    positions: Iterable[int] | None = None,
) -> Scene:
    """Write the views that `load` gives by position, one at a time; the description comes last and says that all are there.

    `positions` are 0, 1, ... as a progress bar wraps them. Raises ReconError (exit code 1) when depth is promised and no pixel of
    tissue has any.
    """
    shape = (len(frames), camera.height_px, camera.width_px)
    samples = []
    kinds = {"images": ((*shape, 3), np.uint8), "tissue": (shape, np.bool_), "depth": (shape, np.float32)}
    with (
        atomic_path(folder / "images.npy") as images,
        atomic_path(folder / "tissue.npy") as tissue,
        atomic_path(folder / "depth.npy") as depth,
    ):
        files = {"images": images, "tissue": tissue, "depth": depth}
        arrays = {name: np.lib.format.open_memmap(files[name], mode="w+", dtype=dtype, shape=size) for name, (size, dtype) in kinds.items()}
        for position in positions or range(len(frames)):
            view = load(position)
            arrays["images"][position], arrays["tissue"][position], arrays["depth"][position] = view.image, view.tissue, view.depth
            if not frames[position].is_held_out:
                samples.append(view.depth[view.tissue & (view.depth > 0)][::7])
        for array in arrays.values():
            array.flush()
    known = np.concatenate([np.zeros(0), *samples])
    if len(known) == 0 and depth_kind != "none" and not all(frame.is_held_out for frame in frames):
        raise ReconError(f"no frame to learn from of {len(frames)} has depth on tissue: look at the depth and the masks stage", exit_code=1)
    write_camera(folder / "camera.json", camera, intrinsics="given")
    description = {
        "unit": unit,
        "depth_kind": depth_kind,
        "median_depth": float(np.median(known)) if len(known) else 0.0,
        "frames": [
            {
                "index": frame.index,
                "timestamp_s": frame.timestamp_s,
                "time": frame.time,
                "T_world_camera": np.asarray(frame.T_world_camera).tolist(),
                "is_held_out": frame.is_held_out,
            }
            for frame in frames
        ],
    }
    write_json(folder / _DESCRIPTION, description)
    return read_scene(folder)


def read_scene(folder: Path) -> Scene:
    """Raises ReconError when the folder holds no whole scene."""
    if not (folder / _DESCRIPTION).is_file():
        raise ReconError(f"{folder} is no scene: it has no {_DESCRIPTION}; the scene stage writes one")
    stored = read_json(folder / _DESCRIPTION)
    frames = tuple(SceneFrame(**{**frame, "T_world_camera": np.array(frame["T_world_camera"])}) for frame in stored["frames"])
    arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in ("images", "tissue", "depth")}
    camera = read_camera(folder / "camera.json")
    wrong = [name for name, array in arrays.items() if array.shape[:3] != (len(frames), camera.height_px, camera.width_px)]
    if wrong:
        raise ReconError(f"{folder}: {', '.join(wrong)}.npy do not hold {len(frames)} frames of {camera.width_px}x{camera.height_px}")
    return Scene(folder, camera, stored["unit"], frames, stored["median_depth"], stored["depth_kind"], **arrays)
