"""Clips for self-supervised training: a target frame and its neighbours, from many recordings, in an order known beforehand.

Which clips exist is decided by the recordings (`clip_store`), which of them a step sees by the seed and the step alone: a run
that goes on at step n reads nothing of the steps before, and the number of workers changes nothing. A clip never crosses a
recording, a cut, a skipped frame, or the border between training and validation.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.utils.data import DataLoader

from recon.data import open_sequence
from recon.data.collection import find_sequences
from recon.data.splits import SEEN_PARTS, Split
from recon.geometry.cameras import mirror, resize
from recon.training.clip_augment import apply_jitter, draw_jitter
from recon.training.clip_store import Recording, StoredRecording, store_recording
from recon.types import Camera, ReconError, bounded

SIZE_MULTIPLES = (32, 14)
"""Convolutional networks halve the picture five times; vision transformers cut it into patches of 14 pixels."""
STRETCH_FRAMES = 50
"""About how long a held-out stretch is: two seconds, enough for the picture to change."""

Part = Literal["train", "val", "all"]


@dataclass(frozen=True)
class ClipPlan:
    """How clips are cut and changed."""

    width_px: int = bounded(320, 14)
    height_px: int = bounded(256, 14)
    """Working size; both multiples of 32 or both of 14."""
    offsets: tuple[int, ...] = (0, -1, 1)
    """Frames of a clip relative to its target, which comes first; 0, 1 ... T-1 gives T consecutive frames."""
    val_share: float = bounded(0.1, 0.0, 0.5)
    """Share of each recording held out in whole stretches."""
    val_gap: int = bounded(5, 0)
    """Frames on either side of a held-out stretch that are not trained on either: they look like its first and last."""
    min_motion_px: float = bounded(0.25, 0.0)
    """Clips whose picture moves less from its first frame to its last are left out: a camera that stands still shows no parallax."""
    jitter_share: float = bounded(0.5, 0.0, 1.0)
    flip_share: float = bounded(0.5, 0.0, 1.0)
    """Share of clips that are mirrored left to right."""
    seed: int = bounded(0, 0)
    thinning: int = bounded(1, 1)
    """One clip in so many is seen in an epoch, others each time: long clips overlap, and an epoch should see each frame once."""

    def __post_init__(self) -> None:
        if not any(self.width_px % step == 0 and self.height_px % step == 0 for step in SIZE_MULTIPLES):
            raise ReconError(f"the working size must be a multiple of 32 or of 14 both ways, found {self.width_px}x{self.height_px}")
        if len(self.offsets) < 2 or self.offsets[0] != 0 or len(set(self.offsets)) < len(self.offsets):
            raise ReconError(f"offsets must be 0 (the target) and then at least one other frame, none twice, found {self.offsets}")


@dataclass(frozen=True)
class ClipBatch:
    """b clips of t frames; frame 0 of each is its target, the others are its sources in the order of `ClipPlan.offsets`."""

    color: Float[Tensor, "b t 3 h w"]
    """RGB, 0 to 1, mirrored where `flipped`: what pictures are compared by."""
    color_aug: Float[Tensor, "b t 3 h w"]
    """The same with one colour jitter per clip: what networks see."""
    mask: Bool[Tensor, "b t h w"]
    """True inside the scope's field and off the instruments. Which pixels the lens reaches is for `TorchLens` to say."""
    cameras: tuple[Camera | None, ...]
    """The lenses at the working size, after mirroring, for `recon.geometry.torch_cameras.TorchLens`; None where one is unknown."""
    recordings: tuple[str, ...]
    frame_indices: Int[Tensor, "b t"]
    """In the recording."""
    flipped: Bool[Tensor, " b"]

    def to(self, device: torch.device | str) -> ClipBatch:
        """The same clips with all tensors on a device."""
        tensors = {f.name: getattr(self, f.name) for f in fields(self) if isinstance(getattr(self, f.name), Tensor)}
        return replace(self, **{name: tensor.to(device, non_blocking=True) for name, tensor in tensors.items()})


class ClipSource:
    """All clips of some recordings, for one part of them.

    `part` is "train" (all but the held-out stretches and their margins), "val" (the held-out stretches) or "all", for recordings
    that a split has divided already. Clips to train on are drawn in random order and changed; those of "val", or without
    `augment`, come in order and unchanged. Raises ReconError when no clip is left, with the reasons.
    """

    def __init__(self, recordings: Sequence[Recording], folder: Path, plan: ClipPlan, part: Part = "train", augment: bool = True) -> None:
        self.plan = plan
        self.is_training = augment and part != "val"
        self.stored = tuple(store_recording(recording, plan.width_px, plan.height_px, folder) for recording in recordings)
        notes: list[str] = []
        clips: list[np.ndarray] = []
        for number, stored in enumerate(self.stored):
            places, num_static = _clips(stored, plan, part)
            clips.append(np.insert(places, 0, number, axis=1))
            notes += stored.notes()
            if num_static:
                notes.append(
                    f"{stored.name}: {num_static} of {num_static + len(places)} clips are left out: their picture moves less than "
                    f"{plan.min_motion_px:g} px, so the camera stands still and nothing can be learned from parallax"
                )
        self.clips = np.concatenate(clips) if clips else np.zeros((0, 1 + len(plan.offsets)), dtype=np.int64)
        """Number of the recording, then the places of the clip's frames in its store."""
        self.notes = tuple(notes)
        """What was skipped or left out of each recording and why, for the log of a training."""
        if not len(self.clips):
            why = "; ".join(notes) or "they are too short"
            raise ReconError(f"{len(self.stored)} recording(s) give no {part} clip with offsets {plan.offsets}: {why}")

    def __len__(self) -> int:
        """Number of clips of an epoch."""
        return -(-len(self.clips) // self.plan.thinning)

    def steps_per_epoch(self, batch_size: int) -> int:
        """Whole batches. In training what is left over sits out, another remainder each epoch; elsewhere a last smaller batch follows.

        Raises ReconError when training clips do not fill one batch.
        """
        if self.is_training and len(self) < batch_size:
            raise ReconError(f"{len(self)} clips do not fill a batch of {batch_size}: make the batch smaller or give more recordings")
        return len(self) // batch_size if self.is_training else -(-len(self) // batch_size)

    def batch(self, step: int, batch_size: int) -> ClipBatch:
        """The batch of a step, counted from 0 over all epochs; it depends on the seed, the step and the batch size alone."""
        epoch, block = divmod(step, self.steps_per_epoch(batch_size))
        return join([self.clip(epoch, place) for place in range(block * batch_size, min((block + 1) * batch_size, len(self)))])

    def clip(self, epoch: int, position: int) -> ClipBatch:
        """The one clip at a position of an epoch's order, with that epoch's changes."""
        chosen = _order(self.plan.seed, epoch, len(self.clips))[position] if self.is_training else position * self.plan.thinning
        number, *places = self.clips[chosen].tolist()
        stored, plan = self.stored[number], self.plan
        images = torch.from_numpy(stored.images(np.array(places))).permute(0, 3, 1, 2).float() / 255.0
        masks = torch.from_numpy(stored.masks(np.array(places)))
        camera = stored.cameras[places[0]]
        lens = None if camera is None else resize(camera, plan.width_px, plan.height_px)
        # Every random number is drawn whether used or not, so that one setting does not change what another one draws.
        rng = np.random.default_rng([2, plan.seed, epoch, position])
        wants_flip, wants_jitter = (rng.random(2) < (plan.flip_share, plan.jitter_share)).tolist()
        jitter = draw_jitter(rng)
        flipped = self.is_training and wants_flip
        if flipped:
            images, masks = images.flip(-1), masks.flip(-1)
            lens = None if lens is None else mirror(lens)
        return ClipBatch(
            color=images[None],
            color_aug=(apply_jitter(images, jitter) if self.is_training and wants_jitter else images)[None],
            mask=masks[None],
            cameras=(lens,),
            recordings=(stored.name,),
            frame_indices=torch.from_numpy(stored.frames[np.array(places)])[None],
            flipped=torch.tensor([flipped]),
        )


def join(clips: Sequence[ClipBatch]) -> ClipBatch:
    """One batch of several of equal size and length."""

    def joined(name: str) -> Tensor | tuple:
        parts = [getattr(clip, name) for clip in clips]
        return torch.cat(parts) if isinstance(parts[0], Tensor) else sum(parts, ())

    return ClipBatch(**{f.name: joined(f.name) for f in fields(ClipBatch)})


def clip_batches(source: ClipSource, batch_size: int, first_step: int, stop_step: int, num_workers: int = 0) -> Iterator[ClipBatch]:
    """Batches of the steps `first_step` to `stop_step - 1`, read ahead by `num_workers` processes.

    The batches and their order do not depend on the workers, and torch's global random state is left as it is.
    """
    loader = DataLoader(
        _Steps(source, batch_size),
        batch_size=None,
        sampler=range(first_step, stop_step),
        num_workers=num_workers,
        generator=torch.Generator(),
    )
    return iter(loader)


def split_recordings(split: Split, part: str, root: Path) -> list[Recording]:
    """The recordings below `root` that a part of a split names, each with its frames.

    Frames that the split also names in a part that is not for training or choosing (test, ...) are taken out, even if the lists
    name them in both; those of the val part are taken out of the train part too. Empty for the val part of a split that has
    none: then hold out stretches of its training recordings.
    Raises ReconError for another part, for a recording that is not below `root`, and as `Split.frames`.
    """
    if part not in SEEN_PARTS:
        raise ReconError(f"split {split.name}: a network is trained on its train part and chosen by its val part, never by {part!r}")
    if part == "val" and part not in split.parts:
        return []
    withheld = set(split.parts) - (set(SEEN_PARTS) if part == "val" else {part})
    found: list[Recording] = []
    present: set[str] = set()
    for _, path in find_sequences(root, split.dataset):
        name = split.recording(part, str(path.absolute()))
        if name is None:
            continue
        sequence = open_sequence(path, split.dataset)
        frames = split.frames(part, name, len(sequence.frames))
        for other in withheld:
            if name in split.parts[other]:
                frames = np.setdiff1d(frames, split.frames(other, name, len(sequence.frames)))
        present.add(name)
        if len(frames):
            found.append(Recording(str(path), sequence, frames))
    missing = sorted(set(split.parts[part]) - present)
    if missing:
        raise ReconError(f"{root} lacks {len(missing)} recordings of the {part} part of {split.name}: {', '.join(missing)}")
    return found


class _Steps:
    """Batches by step, as a DataLoader asks for them."""

    def __init__(self, source: ClipSource, batch_size: int) -> None:
        self._source, self._batch_size = source, batch_size

    def __getitem__(self, step: int) -> ClipBatch:
        return self._source.batch(step, self._batch_size)


@lru_cache(maxsize=4)
def _order(seed: int, epoch: int, num_clips: int) -> Int[np.ndarray, " n"]:
    return np.random.default_rng([1, seed, epoch]).permutation(num_clips)


def _clips(stored: StoredRecording, plan: ClipPlan, part: Part) -> tuple[Int[np.ndarray, "n t"], int]:
    """Places of the frames of all clips of a recording, and how many more stand still."""
    offsets = np.array(plan.offsets)
    low, high = int(offsets.min()), int(offsets.max())
    held_out = _held_out(len(stored.frames), plan.val_share, high - low + 1, plan.val_gap if part == "train" else 0)
    allowed = {"train": ~held_out, "val": held_out, "all": np.ones_like(held_out)}[part]
    found = [np.zeros((0, len(offsets)), dtype=np.int64)]
    num_static = 0
    for run in stored.runs(allowed):
        travelled = np.cumsum(stored.motion_px[run])
        targets = np.arange(-low, len(run) - high)
        moves = travelled[targets + high] - travelled[targets + low] >= plan.min_motion_px
        num_static += int((~moves).sum())
        found.append(run[targets[moves][:, None] + offsets])
    return np.concatenate(found), num_static


def _held_out(num_frames: int, share: float, min_length: int, margin: int) -> Bool[np.ndarray, " n"]:
    """True in stretches of about `STRETCH_FRAMES` and on a margin around them; all False for no share.

    The stretches are spread evenly; there is at least one, and none is shorter than a clip.
    """
    held_out = np.zeros(num_frames, dtype=bool)
    if share == 0.0:
        return held_out
    num_stretches = max(1, round(num_frames * share / STRETCH_FRAMES))
    length = max(min_length, round(num_frames * share / num_stretches))
    for centre in (np.arange(num_stretches) + 0.5) * num_frames / num_stretches:
        start = max(0, round(centre - length / 2))
        held_out[max(0, start - margin) : start + length + margin] = True
    return held_out
