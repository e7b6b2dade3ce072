"""Scene: the posed frames with their depth and masks on one pinhole, as radiance fields learn from them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import cv2
import numpy as np

from recon.data.masks import scaled_mask
from recon.fields.scene import DepthKind, SceneFrame, View, write_scene
from recon.geometry.cameras import ray_grid, resize
from recon.geometry.shrink import shrunk_depth
from recon.geometry.undistort import pinhole_for, remap, remap_grid
from recon.io.atomic import read_json
from recon.io.cameras import read_camera
from recon.io.depth import read_depth
from recon.io.images import read_image
from recon.io.masks import read_mask
from recon.pipeline import Stage, track
from recon.sampling import spread
from recon.stereo.matching import relative_difference
from recon.types import Camera, ReconError, bounded

HELD_OUT_EVERY, HELD_OUT_RUN, HELD_OUT_PERIOD = 8, 5, 15
NUM_PAIRS = 12
"""Pairs of neighbouring frames whose depth is compared."""
MAX_INCONSISTENCY = 0.02
"""Median difference of log-depth between neighbouring frames above which depth is trusted for its shape only."""


@dataclass(frozen=True)
class Config:
    """What a field sees of the recording."""

    width_px: int = bounded(320, 16, 4096)
    """Width of the pictures that are learned, at most the frames' own."""
    pinhole_fov_rad: float = bounded(2.08, 0.1, 2.9)
    """Horizontal field of view of the undistorted pictures, less where the lens sees less; a pinhole stays what it is."""
    held_out: Literal["every_eighth", "runs", "none"] = "every_eighth"
    """Frames that are kept back for scores: 1, 9, 17, ... as EndoSurf and the splats after it do; or 5 in a row of every 15, which
    copies of neighbours do not answer; or none, and then nothing is scored on views that were not learned."""
    max_frames: int = bounded(400, 2, 10_000)
    """At most this many frames, spread over the recording."""
    depth: Literal["auto", "trusted", "untrusted"] = "auto"
    """"trusted": depth is learned as it is; "untrusted": up to scale and shift; "auto": trusted where the depth of neighbouring frames
    agrees within 2 %."""


def run(inputs: dict[str, Path], out: Path, config: Config) -> None:
    """Write a scene (`recon.fields.scene`). Raises ReconError when fewer than 2 frames are posed or none is left to learn from."""
    tracked = [f for f in read_json(inputs["scale"] / "trajectory.json")["frames"] if f["T_world_camera"] is not None]
    if len(tracked) < 2:
        raise ReconError(f"a field needs 2 posed frames, found {len(tracked)}: trajectory.json says why frames are lost", exit_code=1)
    tracked = [tracked[i] for i in spread(range(len(tracked)), config.max_frames)]
    source = read_json(inputs["frames"] / "frames.json")
    times_s = {f["index"]: f["timestamp_s"] for f in source["frames"]}
    frames = _frames(tracked, times_s, config)
    if all(frame.is_held_out for frame in frames):
        raise ReconError(f"scene.held_out={config.held_out} keeps back all {len(frames)} frames: set it to none")
    reader = _Reader(inputs, config)
    kind = reader.depth_kind(frames) if config.depth == "auto" else config.depth
    progress = track(range(len(frames)), len(frames), "gathering frames")
    write_scene(
        out,
        reader.camera,
        read_json(inputs["scale"] / "scale.json")["unit"],
        frames,
        kind,
        lambda i: reader.view(frames[i].index),
        progress,
    )


def _frames(tracked: list[dict], times_s: dict[int, float], config: Config) -> list[SceneFrame]:
    first, last = (times_s[tracked[k]["index"]] for k in (0, -1))
    return [
        SceneFrame(
            index=frame["index"],
            timestamp_s=times_s[frame["index"]],
            time=(times_s[frame["index"]] - first) / max(last - first, 1e-9),
            T_world_camera=np.array(frame["T_world_camera"], dtype=np.float64),
            is_held_out=is_held_out(number, len(tracked), config.held_out),
        )
        for number, frame in enumerate(tracked)
    ]


def is_held_out(number: int, total: int, way: str) -> bool:
    """Whether a frame, by its position among `total`, is kept back; the first and the last frame never are in runs."""
    if way == "every_eighth":
        return (number - 1) % HELD_OUT_EVERY == 0
    if way == "runs":
        begin = number - number % HELD_OUT_PERIOD + (HELD_OUT_PERIOD - HELD_OUT_RUN)
        return begin <= number and begin + HELD_OUT_RUN < total
    return False


class _Reader:
    """Reads views from the files of earlier stages."""

    def __init__(self, inputs: dict[str, Path], config: Config) -> None:
        self.inputs = inputs
        self.lens = read_camera(inputs["trajectory"] / "camera.json")
        width = min(config.width_px, self.lens.width_px)
        height = round(width * self.lens.height_px / self.lens.width_px)
        # At the size of the pinhole first, so that pixels are averaged rather than skipped.
        self.small = resize(self.lens, width, height)
        self.camera: Camera = self.small if self.lens.model == "PINHOLE" else pinhole_for(self.lens, config.pinhole_fov_rad, width)
        self.grid = None if self.camera is self.small else remap_grid(self.small, self.camera)

    def view(self, index: int) -> View:
        """One frame on the pinhole; only pixels that are tissue all over count as tissue."""
        size = self.small.width_px, self.small.height_px
        image = cv2.resize(read_image(self.inputs["frames"] / "images" / f"{index:06d}.jpg"), size, interpolation=cv2.INTER_AREA)
        wanted = read_mask(self.inputs["masks"] / "tissue" / f"{index:06d}.png")
        tissue = ~scaled_mask(~wanted, image.shape[:2]) & scaled_mask(wanted, image.shape[:2])
        depth = self._depth(index, wanted)
        if self.grid is None:
            return View(image, tissue, depth)
        return View(*(remap(part, *self.grid, way) for part, way in ((image, "linear"), (tissue, "nearest"), (depth, "nearest"))))

    def _depth(self, index: int, tissue: np.ndarray) -> np.ndarray:
        depth = read_depth(self.inputs["scale"] / "depth" / f"{index:06d}.tiff")
        on_tissue = cv2.resize(tissue.astype(np.uint8), depth.shape[::-1], interpolation=cv2.INTER_NEAREST) > 0
        shape = (self.small.height_px, self.small.width_px)
        if depth.shape[0] < shape[0]:
            return cv2.resize(np.where(on_tissue, depth, 0), shape[::-1], interpolation=cv2.INTER_NEAREST)
        return shrunk_depth(depth, on_tissue, shape)

    def depth_kind(self, frames: list[SceneFrame]) -> DepthKind:
        """Whether the depth of neighbouring frames agrees, as their poses carry it over."""
        differences = []
        stretch = np.linalg.norm(ray_grid(self.camera) / ray_grid(self.camera)[..., 2:], axis=-1)
        frames = [frame for frame in frames if not frame.is_held_out]
        for k in spread(range(len(frames) - 1), NUM_PAIRS):
            a, b = (np.where((view := self.view(frames[i].index)).tissue, view.depth, 0) * stretch for i in (k, k + 1))
            apart = relative_difference(self.camera, a, frames[k].T_world_camera, b, frames[k + 1].T_world_camera)
            differences.append(np.abs(apart[np.isfinite(apart)]))
        values = np.concatenate([np.zeros(0), *differences])
        if len(values) == 0:
            return "untrusted"
        return "trusted" if np.median(values) <= MAX_INCONSISTENCY else "untrusted"


STAGE = Stage(
    config=Config,
    run=run,
    version=2,
    reads=("frames", "masks", "trajectory", "scale"),
    writes=("scene.json", "camera.json", "images.npy", "tissue.npy", "depth.npy"),
    seconds_per_frame=0.1,
    bytes_per_frame=650_000,
)
