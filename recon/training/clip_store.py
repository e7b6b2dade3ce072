"""Recordings made ready for training: decoded once, forwards, to the working size, and every frame judged.

Training draws frames in random order, and seeking in a video for each would cost more than the network. So the frames lie as
plain arrays on disk, read piecewise and never held in memory, beside a file that says which of them are unusable and why.
Both are decided by the recording alone, so the clips are known before the first step and no frame is decoded while training.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from PIL import Image

from recon.data.phantom import GENERATOR_VERSION
from recon.image.channels import brightest, darkest
from recon.image.cuts import CutFinder
from recon.image.quality import DARK_LEVEL, SATURATED_LEVEL, GateLimits
from recon.image.scope import NUM_FRAMES, find_scope_mask
from recon.io.atomic import atomic_path, read_json, write_json
from recon.types import Camera, FrameError, FrameSequence, ReconError

logger = logging.getLogger(__name__)

FORMAT_VERSION = 2
"""Raised whenever the same recording would be stored or judged differently."""
LISTED_CUTS = 8
"""How many cuts a note names."""
UNDECODABLE = "cannot be decoded"
REPEAT_LEVELS = 0.25
"""Mean grey levels (of 255) by which a frame must differ from the last one kept. Coding noise of a repeated picture is below."""
MAX_REPEATS = 4
"""Repeated pictures that are passed over, as frame rate conversion leaves them; after more, the picture was frozen and the frames
before and after are not neighbours."""
MOTION_TILES = 4
"""Tiles across and down the picture in which motion is measured."""
MOTION_RIDGE = 0.05
"""Of a tile's gradient energy: holds the motion along an edge, which cannot be seen, near zero."""
MIN_GRADIENT_ENERGY = 0.25
"""(grey levels per pixel) squared: tiles with less structure say nothing about motion."""


@dataclass(frozen=True)
class Recording:
    """What is trained on: a recording, or some of its frames."""

    source: str
    """Path or phantom spec that the sequence was opened from; tells recordings of one name apart."""
    sequence: FrameSequence
    frames: Int[np.ndarray, " n"] | None = None
    """Ascending indices of the frames that may be used; None = all."""


@dataclass(frozen=True)
class StoredRecording:
    """A recording on disk at the working size. Places count the stored frames from 0."""

    name: str
    path: Path
    frames: Int[np.ndarray, " n"]
    """Index in the recording of every stored frame."""
    cameras: tuple[Camera | None, ...]
    """Of every stored frame, at the source's resolution."""
    skipped: dict[int, str]
    """From place to the reason why that frame is not used."""
    motion_px: Float[np.ndarray, " n"]
    """Of the picture since the last usable frame before, working pixels; 0 where a frame is not used."""
    cuts: frozenset[int]
    """Places of frames that begin another shot of an edited recording."""
    scope: Bool[np.ndarray, "h w"]
    """True where the scope shows the patient."""

    def images(self, places: Int[np.ndarray, " t"]) -> UInt8[np.ndarray, "t h w 3"]:
        """RGB frames, read from disk."""
        return _opened(self.path)["image"][places]

    def masks(self, places: Int[np.ndarray, " t"]) -> Bool[np.ndarray, "t h w"]:
        """True inside the scope's field and off the instruments."""
        return _opened(self.path)["usable"][places] & self.scope

    def runs(self, allowed: Bool[np.ndarray, " n"]) -> list[Int[np.ndarray, " m"]]:
        """Places of usable allowed frames, divided wherever two that follow one another are no neighbours in time or in lens,
        or lie on either side of a cut."""
        runs: list[list[int]] = [[]]
        repeats = 0
        for place in range(len(self.frames)):
            reason = self.skipped.get(place)
            follows = place > 0 and self.frames[place] == self.frames[place - 1] + 1
            repeats = repeats + 1 if reason == "repeated" else 0
            if not (follows and allowed[place]) or repeats > MAX_REPEATS or reason not in (None, "repeated"):
                runs.append([])
            if reason is None and allowed[place]:
                if runs[-1] and (self.cameras[runs[-1][-1]] != self.cameras[place] or place in self.cuts):
                    runs.append([])
                runs[-1].append(place)
        return [np.array(run) for run in runs if run]

    def notes(self) -> list[str]:
        """A sentence with the number of skipped frames by reason and the first error of a decoder in full, and one with the cuts."""
        found = []
        if self.skipped:
            counts = Counter(reason.partition(":")[0] for reason in self.skipped.values())
            listed = ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items()))
            detail = next((f" (first: {reason.partition(': ')[2]})" for reason in self.skipped.values() if ": " in reason), "")
            found.append(f"{self.name}: {len(self.skipped)} of {len(self.frames)} frames are skipped: {listed}{detail}")
        if self.cuts:
            frames = ", ".join(str(self.frames[place]) for place in sorted(self.cuts)[:LISTED_CUTS])
            more = f" and {len(self.cuts) - LISTED_CUTS} more" if len(self.cuts) > LISTED_CUTS else ""
            found.append(f"{self.name}: clips do not cross its cuts before frames {frames}{more}")
        return found


def store_recording(recording: Recording, width_px: int, height_px: int, folder: Path) -> StoredRecording:
    """Decode and judge a recording unless `folder` has it already.

    Takes `width_px * height_px * 4` bytes a frame on disk. After a change to any file of the recording it is decoded anew.
    Frames of another size than the camera's (or than the first one's) count as undecodable.
    Raises ReconError when the frames do not follow one another and when the disk is too small.
    """
    sequence = recording.sequence
    if sequence.is_unrelated:
        raise ReconError(
            f"{recording.source} holds single views that do not follow one another; training needs recordings of a moving camera"
        )
    indices = np.arange(len(sequence.frames)) if recording.frames is None else recording.frames
    path = folder / f"{_key(recording, indices, (width_px, height_px), folder)}.npy"
    verdicts = path.with_suffix(".json")
    if not verdicts.exists():
        logger.info("%s: decoding %d frames to %dx%d", recording.source, len(indices), width_px, height_px)
        undecodable = _write_frames(recording, indices, (height_px, width_px), path)
        skipped, motion, cuts = _judge(path, undecodable)
        named = {str(place): reason for place, reason in sorted(skipped.items())}
        write_json(verdicts, {"source": recording.source, "skipped": named, "motion_px": motion.round(4).tolist(), "cuts": cuts})
    found = read_json(verdicts)
    skipped = {int(place): reason for place, reason in found["skipped"].items()}
    cameras = tuple(sequence.camera if sequence.frame_camera is None else sequence.frame_camera(int(index)) for index in indices)
    scope = _scope(path, {place for place, reason in skipped.items() if reason.startswith(UNDECODABLE)})
    return StoredRecording(sequence.name, path, indices, cameras, skipped, np.array(found["motion_px"]), frozenset(found["cuts"]), scope)


def picture_motion(first: UInt8[np.ndarray, "h w 3"], second: UInt8[np.ndarray, "h w 3"], valid: Bool[np.ndarray, "h w"]) -> float:
    """Median length (px) of the shifts of a picture's tiles, by one Gauss-Newton step with gain and offset of the brightness.

    Lucas & Kanade (1981) per tile. Large shifts are underestimated; noise averages out over a tile, so a picture that stands still
    has under a few hundredths of a pixel. 0 where nothing has structure.
    """
    before, after = (cv2.GaussianBlur(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32), (0, 0), 1.5) for image in (first, second))
    gradient_v, gradient_u = np.gradient((before + after) / 2.0)
    columns = np.stack([-gradient_u, -gradient_v, before, np.ones_like(before)], axis=-1) * valid[..., None]
    tiles = _tiles(columns).astype(np.float64)
    change = _tiles(((after - before) * valid)[..., None]).astype(np.float64)
    energy = (tiles[..., :2] ** 2).sum(axis=(1, 2))
    num_valid = tiles[..., 3].sum(axis=1)
    tells = (num_valid > tiles.shape[1] / 2) & (energy > MIN_GRADIENT_ENERGY * num_valid)
    if not tells.any():
        return 0.0
    tiles, change, energy = tiles[tells], change[tells], energy[tells]
    ridge = np.zeros((len(tiles), 4, 4))
    ridge[:, [0, 1], [0, 1]] = MOTION_RIDGE * energy[:, None]
    ridge[:, [2, 3], [2, 3]] = 1e-3
    normal = tiles.transpose(0, 2, 1) @ tiles + ridge
    shifts = np.linalg.solve(normal, tiles.transpose(0, 2, 1) @ change)[:, :2, 0]
    return float(np.median(np.linalg.norm(shifts, axis=1)))


def _tiles(values: np.ndarray) -> np.ndarray:
    """(h, w, c) as (tiles, pixels, c); what does not fill a tile at the right and the bottom is left out."""
    height, width = (length // MOTION_TILES for length in values.shape[:2])
    values = values[: MOTION_TILES * height, : MOTION_TILES * width]
    tiles = values.reshape(MOTION_TILES, height, MOTION_TILES, width, -1).swapaxes(1, 2)
    return tiles.reshape(MOTION_TILES**2, height * width, -1)


def _opened(path: Path) -> np.ndarray:
    # Opened anew for every read: pages of a closed file do not count as this process' memory, and workers share no state.
    return np.load(path, mmap_mode="r")


def _key(recording: Recording, indices: np.ndarray, size: tuple[int, int], folder: Path) -> str:
    """Name in the store: another file, frame choice, size or mask gives another one."""
    sequence, source = recording.sequence, Path(recording.source)
    facts = (
        FORMAT_VERSION,
        # A phantom spec is no path: it says everything by itself.
        (os.path.abspath(source), file_stamps(source, folder)) if source.exists() else recording.source,
        (sequence.dataset, GENERATOR_VERSION if sequence.dataset == "phantom" else None),
        len(sequence.frames),
        sequence.instrument_mask is not None,
        size,
    )
    return hashlib.sha256(repr(facts).encode() + np.asarray(indices, dtype="<i8").tobytes()).hexdigest()[:20]


def file_stamps(source: Path, store: Path) -> list[tuple[str, int, int]]:
    """Name, size and time of change of a file, or of all visible files in a folder: frames, masks and whatever else says how to read it.

    A training may write into its recording's folder: the store and what lies beside it there are none of its files.
    """
    passed = {store.resolve(), store.resolve().parent} - {source.resolve()}
    files = [] if source.is_dir() else [source]
    for parent, children, names in os.walk(source, followlinks=True):
        real = Path(parent).resolve()
        children[:] = [name for name in children if not name.startswith(".") and real not in passed]
        if real in passed:
            continue
        passed.add(real)
        files += [Path(parent) / name for name in names if not name.startswith(".")]
    stats = ((file, file.stat()) for file in sorted(files) if file.is_file())
    return [(file.relative_to(source).as_posix(), stat.st_size, stat.st_mtime_ns) for file, stat in stats]


def _write_frames(recording: Recording, indices: np.ndarray, size: tuple[int, int], path: Path) -> dict[int, str]:
    """Write all frames in order, one in memory at a time; returns why some of them are all black instead."""
    dtype = np.dtype([("image", np.uint8, (*size, 3)), ("usable", bool, size)])
    path.parent.mkdir(parents=True, exist_ok=True)
    needed, free = dtype.itemsize * len(indices), shutil.disk_usage(path.parent).free
    if needed > free:
        raise ReconError(
            f"{recording.source}: {len(indices)} frames at the working size take {needed / 1e9:.1f} GB, but {path.parent} has "
            f"{free / 1e9:.1f} GB left; choose a smaller size, fewer recordings or another folder"
        )
    camera = recording.sequence.camera
    source_size = (camera.height_px, camera.width_px) if camera is not None else None
    undecodable: dict[int, str] = {}
    with atomic_path(path) as part, open(part, "wb") as file:
        header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (len(indices),)}
        np.lib.format.write_array_header_1_0(file, header)
        for place, index in enumerate(indices.tolist()):
            record = np.zeros((), dtype)
            try:
                image = recording.sequence.frames[index].image()
                source_size = source_size or image.shape[:2]
                if image.shape[:2] != source_size:
                    found, expected = (f"{width}x{height}" for height, width in (image.shape[:2], source_size))
                    raise FrameError(f"frame {index} is {found}, but the camera or the frames before are {expected}")
                record["usable"] = _resized_mask(recording, index, source_size, size)
                record["image"] = Image.fromarray(image).resize(size[::-1], Image.Resampling.LANCZOS)
            except FrameError as error:
                undecodable[place] = f"{UNDECODABLE}: {error}"
            file.write(record.tobytes())
    return undecodable


def _resized_mask(recording: Recording, index: int, source_size: tuple[int, int], size: tuple[int, int]) -> Bool[np.ndarray, "h w"]:
    """False on every working pixel that an instrument reaches into."""
    mask = recording.sequence.instrument_mask(index) if recording.sequence.instrument_mask is not None else None
    if mask is None:
        return np.ones(size, dtype=bool)
    if mask.shape != source_size:
        raise FrameError(f"the mask of frame {index} is {mask.shape[1]}x{mask.shape[0]}, its image {source_size[1]}x{source_size[0]}")
    return cv2.resize(mask.astype(np.float32), size[::-1], interpolation=cv2.INTER_AREA) > 0.999


def _scope(path: Path, undecodable: set[int]) -> Bool[np.ndarray, "h w"]:
    stored = _opened(path)
    decoded = np.array([place for place in range(len(stored)) if place not in undecodable])
    if not len(decoded):
        return np.ones(stored.dtype["usable"].shape, dtype=bool)
    spread = np.unique(np.linspace(0, len(decoded) - 1, NUM_FRAMES).round().astype(int))
    return find_scope_mask(stored["image"][decoded[spread]])


def _judge(path: Path, undecodable: dict[int, str]) -> tuple[dict[int, str], Float[np.ndarray, " n"], list[int]]:
    """Why frames are not used, by place, the motion since the last usable frame, and the places where another shot begins."""
    skipped = dict(undecodable)
    scope = _scope(path, set(undecodable))
    last: np.ndarray | None = None
    motion, finder = np.zeros(len(_opened(path))), CutFinder()
    for place, image in _images(path):
        if place in undecodable:
            continue
        reason = _unusable(image, last, scope)
        if reason is not None:
            skipped[place] = reason
            continue
        if last is not None:
            motion[place] = picture_motion(last, image, scope)
        finder.add(place, image, scope)
        last = image
    return skipped, motion, finder.cuts()


def _images(path: Path) -> Iterator[tuple[int, np.ndarray]]:
    for place in range(len(_opened(path))):
        yield place, np.array(_opened(path)[place]["image"])


def _unusable(image: np.ndarray, last: np.ndarray | None, scope: np.ndarray) -> str | None:
    limits = GateLimits()
    if (brightest(image)[scope] < DARK_LEVEL).mean() > limits.dark_share_max:
        return "black"
    if (darkest(image)[scope] >= SATURATED_LEVEL).mean() > limits.saturated_share_max:
        return "overexposed"
    if last is not None and cv2.absdiff(image, last)[scope].mean() < REPEAT_LEVELS:
        return "repeated"
    return None
