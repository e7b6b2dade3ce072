"""Which segment each pixel of a training frame lies in: label PNGs of any segmenter, or labels made here.

Files are LABELS/<recording>/NNNNNN.png (or LABELS/NNNNNN.png where there is one recording), single-channel, any size of the picture's
aspect, named by the frame's place in its recording from 0. Without files, superpixels are made from the pictures at the working size.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from recon.image.superpixels import superpixels
from recon.io.images import read_integers, write_png
from recon.training.clips import ClipBatch
from recon.types import FrameError, ReconError

MAX_KEPT = 2000
"""Label maps kept in memory, 80 kB each at 320x256."""

Segmenter = Callable[[UInt8[np.ndarray, "h w 3"]], Int[np.ndarray, "h w"]]


class SegmentLabels:
    """Labels by recording and frame.

    With a folder, its files; those that it lacks are made by `segmenter` and kept there, or are an error where there is none.
    Without a folder, superpixels.
    """

    def __init__(self, folder: Path | None, segmenter: Segmenter | None = None) -> None:
        if folder is None and segmenter is not None:
            raise ReconError("a segmenter takes long, and its labels are kept: set labels=FOLDER for them")
        if folder is not None and segmenter is None and not folder.is_dir():
            raise ReconError(f"labels {folder} is no folder: give the folder of label PNGs, or leave it out to have superpixels")
        self.folder, self.segmenter = folder, segmenter
        self.is_flat_allowed = True
        """Whether files may lie in the folder itself."""
        self.kept: dict[str, np.ndarray] = {}
        self.sizes: dict[str, tuple[int, int]] = {}

    def begin(self, recordings: Sequence[str]) -> None:
        """Learn the names of the recordings that are learned from.

        Raises ReconError where two share one, for then the folder would mix them up.
        """
        twice = sorted(name for name, count in Counter(recordings).items() if count > 1)
        if self.folder is not None and twice:
            raise ReconError(f"labels {self.folder}: several recordings are called {', '.join(twice)}; rename them, or leave labels out")
        self.is_flat_allowed = len(recordings) < 2

    def of_targets(self, clips: ClipBatch) -> Int[Tensor, "b h w"]:
        """Labels of the clips' first frames, mirrored as they are, on their pixels. Raises ReconError as the class says."""
        found = []
        for place, (recording, frame) in enumerate(zip(clips.recordings, clips.frame_indices[:, 0].tolist(), strict=True)):
            image, flipped = clips.color[place, 0], bool(clips.flipped[place])
            labels = self.labels(recording, frame, image.flip(-1) if flipped else image)
            found.append(labels.flip(-1) if flipped else labels)
        return torch.stack(found).to(clips.color.device)

    def labels(self, recording: str, frame: int, image: Float[Tensor, "3 h w"]) -> Int[Tensor, "h w"]:
        """Labels of one frame of RGB in [0, 1], at its size."""
        height, width = image.shape[-2:]
        picture = (image.permute(1, 2, 0).cpu().numpy() * 255.0).round().astype(np.uint8)
        # What is made from a picture belongs to it, whatever recordings are called.
        key = f"{recording}/{frame:06d}" if self.folder is not None else str(zlib.crc32(picture.tobytes()))
        if key not in self.kept:
            if len(self.kept) >= MAX_KEPT:
                self.kept.pop(next(iter(self.kept)))
            found = superpixels(picture) if self.folder is None else self._from_folder(self.folder, recording, frame, picture)
            self.kept[key] = found.astype(np.int32)
        return torch.from_numpy(cv2.resize(self.kept[key], (width, height), interpolation=cv2.INTER_NEAREST)).long()

    def _from_folder(
        self, folder: Path, recording: str, frame: int, picture: UInt8[np.ndarray, "h w 3"]
    ) -> Int[np.ndarray, "rows columns"]:
        file, flat = folder / recording / f"{frame:06d}.png", folder / f"{frame:06d}.png"
        if self.is_flat_allowed and not file.is_file() and flat.is_file():
            file = flat
        if not file.is_file():
            if flat.is_file():
                raise ReconError(f"labels {flat} could be of several recordings: move it into {file.parent}, or where it belongs")
            if self.segmenter is None:
                remedy = f"give a label PNG for every frame of {recording}, or leave labels out to have superpixels"
                raise ReconError(f"labels {file} does not exist: {remedy}")
            file.parent.mkdir(parents=True, exist_ok=True)
            write_png(file, self.segmenter(picture).astype(np.uint8))
        try:
            labels = read_integers(file).astype(int)
        except FrameError as error:
            raise ReconError(f"labels cannot be used: {error}; expected one channel of 8 or 16 bit") from error
        expected = self.sizes.setdefault(recording, labels.shape)
        if labels.shape != expected:
            sizes = [f"{shape[1]}x{shape[0]}" for shape in (labels.shape, expected)]
            raise ReconError(f"labels {file} are {sizes[0]}, others of {recording} are {sizes[1]}: make them all of one size")
        return labels
