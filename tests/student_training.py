"""A training of the student in seconds, and its shards."""

from __future__ import annotations

import dataclasses

import numpy as np

from recon.data.phantom.variety import TRAINING_KINDS
from recon.training.shards import Shuffled
from recon.training.student import StudentConfig, train_student

TINY = StudentConfig(
    num_shards=2, views_per_shard=8, views_per_scene=4, sizes_px=("64x64", "128x64"), batch_size=4, num_steps=12, warmup_steps=2,
    validate_every=6, bfloat16=False, num_threads=1, num_workers=0, learning_rate=2e-3, coarse_steps=4,
)  # fmt: skip


def cast_tiny_shards(out):
    """Folder of the shards of TINY."""
    train_student(dataclasses.replace(TINY, num_steps=1), out)
    (folder,) = (out / "shards").iterdir()
    return folder


def views_of(shards):
    return Shuffled(sorted(shards.glob("*.npy")), 4, seed=0, device="cpu")


def kinds_of(shards, pattern="*.npy"):
    """Kinds of the scenes that are trained on, not those of the two shards for validation, in their order."""
    stored = [np.load(path)["kind"] for path in sorted(shards.glob(pattern)) if int(path.name[:4]) >= 2]
    return tuple(dict.fromkeys(TRAINING_KINDS[kind] for kind in np.concatenate(stored)))


def train_in(folder, shards, **changes):
    folder.mkdir(exist_ok=True)
    if not (folder / "shards").exists():
        (folder / "shards").symlink_to(shards.parent)
    stop_after = changes.pop("stop_after", None)
    return train_student(dataclasses.replace(TINY, **changes), folder, stop_after)
