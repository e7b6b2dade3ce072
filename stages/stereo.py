"""Stereo: the depth of keyframes by matching them with their neighbours, completed by the network where matching is silent."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache, partial
from pathlib import Path

import cv2
import numpy as np

from recon.geometry.cameras import ray_grid, resize
from recon.io.atomic import atomic_path, read_json, write_json
from recon.io.cameras import read_camera
from recon.io.depth import read_depth, write_depth
from recon.io.images import read_image
from recon.io.masks import read_mask, write_mask
from recon.parallel import in_order
from recon.pipeline import Stage, track
from recon.stereo.blend import Blend, blend
from recon.stereo.matching import Match, MatchOptions, match, relative_difference
from recon.stereo.neighbours import PairOptions, choose_keyframes, choose_partners, sample_points
from recon.stereo.sweep import COARSE, Picture, inverse_distances, sweep
from recon.types import MAX_THREADS, Camera, bounded

WORK = "work"
"""Folder of matches that a killed run can use again; gone when the stage is done."""
CACHED = 24
"""Pictures, and matches of other keyframes, in memory at a time."""
JUDGES = PairOptions(num=4, best_angle_rad=0.06, max_angle_rad=0.5, min_overlap=0.3)
"""Which other keyframes judge a keyframe's matches: from farther aside than the frames it was matched with."""
RANGE_PERCENTILES, RANGE_MARGIN = (2.0, 98.0), 2.0
"""Hypotheses reach from the network's nearest to its farthest distance and this factor beyond: it weighs, it does not cut."""
MIN_FORWARD = 0.05
"""z over distance of the flattest ray that carries a z-depth."""


@dataclass(frozen=True)
class Config:
    """Which keyframes are matched, and how."""

    enabled: bool = True
    """False fuses the network's depth alone."""
    width_px: int = bounded(360, 64, 2048)
    """Width of the pictures that are matched."""
    max_keyframes: int = bounded(400, 1)
    """Of a longer recording, groups of neighbouring keyframes spread over it: a second or two each."""
    keyframe_angle_rad: float = bounded(0.03, 0.001, 1.0)
    """A new keyframe where the last one's points are seen from this far aside (median over the picture)."""
    keyframe_overlap: float = bounded(0.85, 0.0, 1.0)
    """Or where less than this share of them is still in view."""
    num_partners: int = bounded(6, 1, 32)
    """Frames that each keyframe is matched with."""
    num_planes: int = bounded(72, 8, 512)
    """Hypotheses along each ray."""
    window_px: int = bounded(7, 3, 31)
    """Side of the window that is compared."""
    min_likeness: float = bounded(0.3, 0.0, 1.0)
    """Correlation below which nothing matches."""
    max_deviation: float = bounded(0.02, 0.0005, 0.5)
    """Relative difference of distance at which two keyframes agree."""
    min_agreeing: int = bounded(2, 0, JUDGES.num)
    """Other keyframes that must agree with a match."""
    num_threads: int = bounded(0, 0, MAX_THREADS, keyed=False)
    """Keyframes matched at once; 0 means as many as there are processors. A match takes about 100 MB."""


def run(inputs: dict[str, Path], out: Path, config: Config) -> None:
    """Write `depth/`, `sigma/` and `matched/` (where depth is from stereo) of the keyframes, and `stereo.json`."""
    posed = [f for f in read_json(inputs["scale"] / "trajectory.json")["frames"] if f["T_world_camera"] is not None]
    posed = [f for f in posed if (inputs["scale"] / "depth" / f"{f['index']:06d}.tiff").exists()]
    keyframes: list[dict] = []
    if config.enabled and len(posed) > 1:
        keyframes = _Matcher(inputs, out, config, posed).run()
    write_json(out / "stereo.json", {"enabled": config.enabled, "keyframes": keyframes})
    shutil.rmtree(out / WORK, ignore_errors=True)


class _Matcher:
    """The posed frames of a recording on the working grid of its lens."""

    def __init__(self, inputs: dict[str, Path], out: Path, config: Config, posed: Sequence[dict]) -> None:
        self.inputs, self.out, self.config = inputs, out, config
        self.indices = [frame["index"] for frame in posed]
        self.poses = np.array([frame["T_world_camera"] for frame in posed], dtype=np.float64)
        self.full_camera = read_camera(inputs["trajectory"] / "camera.json")
        # More pixels than the recording has would only seem to be sharper.
        width = max(min(config.width_px, self.full_camera.width_px) // COARSE, 1) * COARSE
        height = max(round(width * self.full_camera.height_px / self.full_camera.width_px / COARSE), 1) * COARSE
        self.camera: Camera = resize(self.full_camera, width, height)
        self.picture = lru_cache(CACHED)(self._picture)
        self.matched = lru_cache(CACHED)(self._read_match)
        self.options = MatchOptions(window_px=config.window_px, min_likeness=config.min_likeness)

    @cached_property
    def forward(self) -> np.ndarray:
        """z over distance of every pixel's ray."""
        return ray_grid(self.camera)[..., 2]

    def run(self) -> list[dict]:
        """Match every keyframe, then keep what others confirm; one line per keyframe for `stereo.json`."""
        config = self.config
        keyframes = choose_keyframes(
            self.full_camera, self.indices, self.poses, self._scaled_depth,
            config.keyframe_angle_rad, config.keyframe_overlap, config.max_keyframes,
        )  # fmt: skip
        done = in_order(self._write_match, keyframes, config.num_threads)
        for _ in track(done, len(keyframes), "matching keyframes"):
            pass
        finished = in_order(partial(self._finish, keyframes=keyframes), keyframes, config.num_threads)
        return list(track(finished, len(keyframes), "completing depth"))

    def _match(self, position: int) -> Match:
        points = sample_points(self.full_camera, self._scaled_depth(self.indices[position]))
        options = PairOptions(num=self.config.num_partners)
        distances = np.linalg.norm(points, axis=1)
        partners = choose_partners(self.full_camera, points, position, self.poses, self._nearby(position, distances), options)
        reference = self.picture(position)
        if not partners:
            nothing = np.zeros(reference.grey.shape, np.float32)
            return Match(nothing, nothing)
        near, far = np.percentile(distances, RANGE_PERCENTILES)
        planes = inverse_distances(near / RANGE_MARGIN, far * RANGE_MARGIN, self.config.num_planes)
        alike = sweep(self.camera, reference, [self.picture(partner) for partner in partners], planes, self.config.window_px)
        return match(alike, planes, reference.usable, self.options)

    def _nearby(self, position: int, distances: np.ndarray) -> list[int]:
        """Frames that have not left the place behind: nearer than what is seen. Of these alone it is looked at what they see."""
        if len(distances) == 0:
            return []
        away = np.linalg.norm(self.poses[:, :3, 3] - self.poses[position, :3, 3], axis=1)
        return np.flatnonzero(away < np.median(distances)).tolist()

    def _finish(self, position: int, keyframes: Sequence[int]) -> dict:
        """Blend stereo and network of one keyframe and write them."""
        index = self.indices[position]
        own = self.matched(position)
        points = sample_points(self.full_camera, self._scaled_depth(index))
        judges = choose_partners(self.full_camera, points, position, self.poses, keyframes, JUDGES)
        agreeing = np.zeros(own.distance.shape, int)
        for judge in judges:
            apart = relative_difference(self.camera, own.distance, self.poses[position], self.matched(judge).distance, self.poses[judge])
            agreeing += np.abs(apart) < self.config.max_deviation
        trusted = (own.distance > 0) & (agreeing >= self.config.min_agreeing)
        blended = self._blended(index, own, trusted)
        write_mask(self.out / "matched" / f"{index:06d}.png", blended.from_stereo)
        write_depth(self.out / "sigma" / f"{index:06d}.tiff", blended.sigma)
        write_depth(self.out / "depth" / f"{index:06d}.tiff", np.where(blended.distance > 0, blended.distance * self.forward, 0))
        known = blended.distance > 0
        return {
            "index": index,
            "judges": [self.indices[j] for j in judges],
            "matched_share": float(blended.from_stereo[known].mean()) if known.any() else 0.0,
        }

    def _blended(self, index: int, own: Match, trusted: np.ndarray) -> Blend:
        size = (self.camera.width_px, self.camera.height_px)
        depth, sigma = (
            cv2.resize(read_depth(self.inputs["scale"] / kind / f"{index:06d}.tiff"), size, interpolation=cv2.INTER_NEAREST)
            for kind in ("depth", "sigma")
        )
        forward = self.forward > MIN_FORWARD
        network = np.where(forward, depth / np.where(forward, self.forward, 1.0), 0.0)
        return blend(own.distance, own.sigma, trusted & forward, network, sigma)

    def _scaled_depth(self, index: int) -> np.ndarray:
        return read_depth(self.inputs["scale"] / "depth" / f"{index:06d}.tiff")

    def _picture(self, position: int) -> Picture:
        name = f"{self.indices[position]:06d}"
        size = (self.camera.width_px, self.camera.height_px)
        image = cv2.resize(read_image(self.inputs["frames"] / "images" / f"{name}.jpg"), size, interpolation=cv2.INTER_AREA)
        mask = read_mask(self.inputs["masks"] / "masks" / f"{name}.png")
        usable = cv2.resize(mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST) > 0
        return Picture(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32) / 255, usable, self.poses[position])

    def _match_file(self, position: int) -> Path:
        return self.out / WORK / f"{self.indices[position]:06d}.npz"

    def _write_match(self, position: int) -> None:
        """Unless a killed run has left it."""
        if self._match_file(position).exists():
            return
        found = self._match(position)
        with atomic_path(self._match_file(position)) as part, open(part, "wb") as file:
            np.savez(file, **asdict(found))

    def _read_match(self, position: int) -> Match:
        with np.load(self._match_file(position)) as file:
            return Match(**{name: file[name] for name in file.files})


STAGE = Stage(
    config=Config,
    run=run,
    reads=("frames", "masks", "trajectory", "scale"),
    writes=("stereo.json",),
    seconds_per_frame=0.6,
    bytes_per_frame=150_000,
)
