"""Frames: the recording, decoded once and scaled down to the size that every later stage works at."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from recon.data import DATASETS, open_source
from recon.data.folder import DEFAULT_FRAME_RATE_HZ
from recon.io.atomic import write_json
from recon.io.images import write_jpeg
from recon.pipeline import Stage, track
from recon.types import Frame, FrameError, FrameSequence, ReconError, bounded

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Config:
    """Which frames are used, and how large."""

    max_side_px: int = bounded(960, 32)
    """Images are scaled down, never up, until their longer side has this many pixels."""
    stride: int = bounded(1, 1)
    """Use every n-th frame."""
    start_s: float = bounded(0.0, 0.0)
    """Leave out frames before this time."""
    end_s: float = bounded(0.0, 0.0)
    """Leave out frames after this time; 0 means to the end."""
    frame_rate_hz: float = bounded(DEFAULT_FRAME_RATE_HZ, 0.001, 1e6)
    """Frame rate of sources that carry no times (all but videos and phantoms)."""

    def __post_init__(self) -> None:
        if self.end_s and self.end_s <= self.start_s:
            raise ValueError(f"end_s must be 0 or after start_s, found {self.end_s:g} and {self.start_s:g}")


def run(inputs: dict[str, Path], out: Path, config: Config) -> None:
    """Write `images/NNNNNN.jpg` and `frames.json`. Raises ReconError (exit code 2) when fewer than 2 frames decode."""
    sequence = open_source(inputs["source"])
    for note in (*sequence.notes, *([f"the source is incomplete: {sequence.incomplete}"] if sequence.incomplete else [])):
        log.warning("%s: %s", sequence.name, note)
    source_width_px, source_height_px = _source_size(sequence)
    size = working_size(source_width_px, source_height_px, config.max_side_px)
    entries = list(_entries(sequence, out, config, size))
    decoded = [entry for entry in entries if entry["file"]]
    if len(decoded) < 2:
        reason = next((entry["reason"] for entry in entries if not entry["file"]), "")
        raise ReconError(f"{sequence.name} has {len(decoded)} usable frame{'s' if len(decoded) != 1 else ''}, 2 are needed; {reason}")
    write_json(
        out / "frames.json",
        {
            "name": sequence.name,
            "dataset": sequence.dataset,
            "is_unrelated": sequence.is_unrelated,
            "source_width_px": source_width_px,
            "source_height_px": source_height_px,
            "width_px": size[0],
            "height_px": size[1],
            "incomplete": sequence.incomplete,
            "notes": list(sequence.notes),
            "frames": entries,
        },
    )


def working_size(width_px: int, height_px: int, max_side_px: int) -> tuple[int, int]:
    """Width and height after scaling down to `max_side_px`, aspect kept."""
    factor = min(1.0, max_side_px / max(width_px, height_px))
    return max(1, round(width_px * factor)), max(1, round(height_px * factor))


def _entries(sequence: FrameSequence, out: Path, config: Config, size: tuple[int, int]) -> Iterator[dict[str, Any]]:
    """One entry per source frame; images that a killed run left are kept as they are."""
    timed = DATASETS[sequence.dataset].timed
    for frame in track(sequence.frames, len(sequence.frames), "reading frames"):
        timestamp_s = frame.timestamp_s if timed else frame.index / config.frame_rate_hz
        file = f"images/{frame.index:06d}.jpg"
        reason = _left_out(frame.index, timestamp_s, config)
        if reason is None and not (out / file).exists():
            try:
                write_jpeg(out / file, scale_down(frame.image(), size))
            except FrameError as error:
                reason = f"cannot be decoded: {str(error).rpartition('cannot be decoded: ')[2]}"
                log.warning("frame %d %s", frame.index, reason)
        yield {
            "index": frame.index,
            "name": frame.name,
            "timestamp_s": round(timestamp_s, 4),
            "file": None if reason else file,
            "reason": reason,
        }


def scale_down(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Average over source pixels; an image that already has this size keeps its pixels."""
    if image.shape[1::-1] == size:
        return image
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def _left_out(index: int, timestamp_s: float, config: Config) -> str | None:
    if index % config.stride:
        return f"left out by frames.stride = {config.stride}"
    if timestamp_s < config.start_s or (config.end_s and timestamp_s > config.end_s):
        return f"left out by frames.start_s = {config.start_s:g} and frames.end_s = {config.end_s:g}"
    return None


def _source_size(sequence: FrameSequence) -> tuple[int, int]:
    """Width and height of the first frame that decodes."""
    reason = "it has no frame"
    for frame in sequence.frames:
        shape, problem = _shape(frame)
        if shape is not None:
            return shape[1], shape[0]
        reason = problem if frame.index == 0 else reason
    raise ReconError(f"no frame of {sequence.name} can be decoded; the first: {reason}")


def _shape(frame: Frame) -> tuple[tuple[int, ...] | None, str]:
    try:
        return frame.image().shape, ""
    except FrameError as error:
        return None, str(error)


STAGE = Stage(
    config=Config,
    run=run,
    version=2,
    reads=("source",),
    writes=("frames.json", "images/*.jpg"),
    seconds_per_frame=0.05,
    bytes_per_frame=150_000,
)
