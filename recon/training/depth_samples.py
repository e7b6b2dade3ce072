"""Pictures with their true depth in metres, for supervised training: decoded once, kept on disk at the working size.

Depth is stored as float16 metres, EndoSynth's own format, in steps of 0.06 mm at 100 mm. Which sample a step sees is decided by the
seed and the step alone, so that a training goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from recon.data.phantom import GENERATOR_VERSION
from recon.io.atomic import atomic_path, read_json, write_json
from recon.models.inference import cubic
from recon.training.clip_store import Recording, file_stamps
from recon.types import FrameError, ReconError

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1
"""Raised whenever the same recording would be stored differently."""
MM_PER_METRE = 1000.0
MAX_STORED_METRES = 60_000.0
HELD_GAP = 5
"""Frames between what is learned from a recording and what is held out of it."""


@dataclass(frozen=True)
class DepthBatch:
    """b single pictures with their truth."""

    color: Float[Tensor, "b 3 h w"]
    """RGB, 0 to 1."""
    metres: Float[Tensor, "b h w"]
    """True z-depth; 0 where unknown."""

    def to(self, device: torch.device | str) -> DepthBatch:
        """The same on a device."""
        return replace(self, **{f.name: getattr(self, f.name).to(device, non_blocking=True) for f in fields(self)})

    def known(self, nearest: float, farthest: float) -> Bool[Tensor, "b h w"]:
        """Where the true depth lies between two bounds in metres."""
        return (self.metres > nearest) & (self.metres < farthest)


class DepthSamples:
    """The samples of some recordings at one size; those that cannot be read are left out, and `notes` says so."""

    def __init__(self, recordings: Sequence[Recording], folder: Path, size_px: tuple[int, int]) -> None:
        """Raises ReconError for a recording without true depth in a known unit, and when no sample is left."""
        stores = [(recording, *_stored(recording, folder, size_px)) for recording in recordings]
        self.paths = tuple(path for _, path, _ in stores)
        self.notes = tuple(_note(recording, damaged) for recording, _, damaged in stores if damaged)
        places = [
            (store, place)
            for store, (recording, _, damaged) in enumerate(stores)
            for place in range(len(recording.sequence.frames))
            if place not in damaged
        ]
        if not places:
            raise ReconError(f"{len(recordings)} recording(s) give no sample with true depth: {'; '.join(self.notes)}")
        self.places = np.array(places)
        """Number of the recording and place in it of every sample."""
        self.is_unrelated = tuple(recording.sequence.is_unrelated for recording in recordings)

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.places)

    def batch(self, places: Int[np.ndarray, " b"], flips: Bool[np.ndarray, " b"]) -> DepthBatch:
        """The samples at some places, mirrored left to right where `flips` says so."""
        rows = [np.load(self.paths[store], mmap_mode="r")[place] for store, place in self.places[places].tolist()]
        color = torch.stack([torch.from_numpy(np.array(row["image"])).permute(2, 0, 1).float() / 255.0 for row in rows])
        metres = torch.stack([torch.from_numpy(row["metres"].astype(np.float32)) for row in rows])
        turned = torch.from_numpy(flips)
        return DepthBatch(
            torch.where(turned[:, None, None, None], color.flip(-1), color), torch.where(turned[:, None, None], metres.flip(-1), metres)
        )


@dataclass(frozen=True)
class Schedule:
    """Which samples are trained on in which step."""

    places: Int[np.ndarray, " n"]
    batch_size: int
    flip_share: float
    seed: int

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches; another remainder sits out each epoch."""
        return len(self.places) // self.batch_size

    def draw(self, step: int) -> tuple[Int[np.ndarray, " b"], Bool[np.ndarray, " b"]]:
        """Places and flips of a step, counted from 0 over all epochs."""
        epoch, block = divmod(step, self.steps_per_epoch)
        order = np.random.default_rng([1, self.seed, epoch]).permutation(self.places)
        flips = np.random.default_rng([2, self.seed, step]).random(self.batch_size) < self.flip_share
        return order[block * self.batch_size : (block + 1) * self.batch_size], flips


def _note(recording: Recording, damaged: dict[int, str]) -> str:
    first = next(iter(damaged.values()))
    return f"{recording.source}: {len(damaged)} of {len(recording.sequence.frames)} samples are left out (first: {first})"


def held_out(samples: DepthSamples, share: float, gap: int = 0) -> Bool[np.ndarray, " n"]:
    """True on the samples that choose the best network: one in so many of unrelated views, the last stretch of a recording.

    `gap` adds so many frames before such a stretch, which look too much like it to be learned from; half of the rest at most.
    """
    chosen = np.zeros(len(samples), dtype=bool)
    if share == 0.0:
        return chosen
    for store, unrelated in enumerate(samples.is_unrelated):
        (own,) = np.nonzero(samples.places[:, 0] == store)
        rest = len(own) - max(round(share * len(own)), 1)
        chosen[own[:: max(round(1.0 / share), 2)] if unrelated else own[rest - min(gap, rest // 2) :]] = True
    return chosen


def _stored(recording: Recording, folder: Path, size_px: tuple[int, int]) -> tuple[Path, dict[int, str]]:
    """Where the samples of a recording lie, decoding them if they are not there yet, and why some of them cannot be used."""
    sequence = recording.sequence
    if sequence.depth_gt is None or sequence.unit != "mm":
        found = "no true depth" if sequence.depth_gt is None else f"true depth without a unit ({sequence.unit})"
        raise ReconError(f"{recording.source} has {found}: metric depth is learned from data sets with depth in millimetres or metres")
    path = folder / f"{_key(recording, folder, size_px)}.npy"
    verdicts = path.with_suffix(".json")
    if not verdicts.exists():
        logger.info("%s: decoding %d samples to %dx%d", recording.source, len(sequence.frames), *size_px)
        damaged = _write_samples(recording, size_px, path)
        write_json(verdicts, {str(place): reason for place, reason in damaged.items()})
    return path, {int(place): reason for place, reason in read_json(verdicts).items()}


def _write_samples(recording: Recording, size_px: tuple[int, int], path: Path) -> dict[int, str]:
    """Write all samples, one in memory at a time; returns why some of them are empty instead."""
    width, height = size_px
    dtype = np.dtype([("image", np.uint8, (height, width, 3)), ("metres", np.float16, (height, width))])
    number, damaged = len(recording.sequence.frames), {}
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as part, part.open("wb") as file:
        header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (number,)}
        np.lib.format.write_array_header_1_0(file, header)
        for place in range(number):
            record = np.zeros((), dtype)
            try:
                record["image"], record["metres"] = _sample(recording, place, size_px)
            except FrameError as error:
                damaged[place] = str(error)
            file.write(record.tobytes())
    return damaged


def _sample(recording: Recording, index: int, size_px: tuple[int, int]) -> tuple[UInt8[np.ndarray, "h w 3"], Float[np.ndarray, "h w"]]:
    """Picture and depth in metres. Raises FrameError for what cannot be read, and where the two differ in size."""
    sequence = recording.sequence
    image, truth = sequence.frames[index].image(), sequence.depth_gt(index)
    if truth is None:
        raise FrameError(f"frame {index} has no true depth")
    if truth.depth.shape != image.shape[:2]:
        shapes = [f"{shape[1]}x{shape[0]}" for shape in (image.shape, truth.depth.shape)]
        raise FrameError(f"frame {index} is {shapes[0]}, its true depth {shapes[1]}")
    metres = np.where(truth.valid, truth.depth_mm, 0.0).astype(np.float32) / MM_PER_METRE
    # float16 ends at 65 km, where no endoscope looks.
    metres = np.where(metres < MAX_STORED_METRES, metres, 0.0)
    colour = (cubic(image, size_px) * 255.0).round().clip(0, 255).astype(np.uint8)
    return colour, cv2.resize(metres, size_px, interpolation=cv2.INTER_NEAREST)


def _key(recording: Recording, folder: Path, size_px: tuple[int, int]) -> str:
    """Name in the store: another file or size gives another one."""
    source = Path(recording.source)
    stamps = (str(source.absolute()), file_stamps(source, folder)) if source.exists() else (recording.source, GENERATOR_VERSION)
    return hashlib.sha256(repr((FORMAT_VERSION, stamps, size_px)).encode()).hexdigest()[:20]
