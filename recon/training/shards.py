"""Phantom renders on disk: shards of views that a training run draws batches from.

A shard is one .npz-free set of plain arrays (memory-mapped, never all in memory), written atomically, decided by its
seed alone; a killed run renders only what is missing. Shards of another recipe lie in another folder.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from recon.data.phantom import GENERATOR_VERSION
from recon.data.phantom.randomize import random_view
from recon.data.phantom.variety import TRAINING_KINDS, training_scene
from recon.geometry.cameras import ray_grid
from recon.io.atomic import atomic_path
from recon.losses.depth import masked_median
from recon.types import ReconError

KIND_SHARES = {"tube": 0.26, "nasal": 0.14, "cavity": 0.20, "relief": 0.12, "void": 0.16, "smooth": 0.12}
RAY_UNITS = 32767.0
FORMAT_VERSION = 1
"""Raised whenever the same seed would be rendered or stored differently; `GENERATOR_VERSION` speaks for the scenes of recordings."""


@dataclass(frozen=True)
class ShardShape:
    """How many views of what size one shard holds."""

    width_px: int
    height_px: int
    num_views: int
    views_per_scene: int

    @property
    def dtype(self) -> np.dtype:
        size = (self.height_px, self.width_px)
        return np.dtype(
            [("image", np.uint8, (*size, 3)), ("mask", bool, size), ("log_distance", np.float16, size), ("rays", np.int16, (2, *size))]
        )


def shards_folder(parent: Path, seed: int, views_per_shard: int, views_per_scene: int) -> Path:
    """Where below `parent` the shards of a recipe lie; what decides their views besides number and size is in the name."""
    facts = (FORMAT_VERSION, GENERATOR_VERSION, seed, views_per_shard, views_per_scene, TRAINING_KINDS, sorted(KIND_SHARES.items()))
    return parent / hashlib.sha256(repr(facts).encode()).hexdigest()[:12]


def render_shard(path: Path, shape: ShardShape, seed: int) -> None:
    """Render a shard; every view's scene, lens and light come from `seed`."""
    views = np.zeros(shape.num_views, shape.dtype)
    rng = np.random.default_rng(seed)
    count = 0
    while count < shape.num_views:
        kind = rng.choice(TRAINING_KINDS, p=[KIND_SHARES[k] for k in TRAINING_KINDS])
        scene = training_scene(str(kind), int(rng.integers(2**31)))
        for _ in range(min(shape.views_per_scene, shape.num_views - count)):
            view = random_view(scene, rng, shape.width_px, shape.height_px)
            if view is None:
                break
            rendering, camera = view
            views[count]["image"] = rendering.image
            views[count]["mask"] = rendering.mask
            views[count]["log_distance"] = np.log(np.maximum(rendering.distance_mm, 1e-3)) * (rendering.distance_mm > 0)
            views[count]["rays"] = np.round(ray_grid(camera)[..., :2].transpose(2, 0, 1) * RAY_UNITS)
            count += 1
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.save(file, views)


@dataclass(frozen=True)
class Batch:
    """Views as the network takes them."""

    image: Float[Tensor, "b 3 h w"]
    rays: Float[Tensor, "b 3 h w"]
    mask: Float[Tensor, "b 1 h w"]
    log_distance: Float[Tensor, "b h w"]
    """Relative to its own median over the image."""
    known: Bool[Tensor, "b h w"]
    """Where `log_distance` holds the truth."""


def to_batch(views: np.ndarray, device: str) -> Batch:
    """Turn stored views into tensors."""
    across = torch.from_numpy(views["rays"].astype(np.float32) / RAY_UNITS).to(device)
    forward = (1 - across.square().sum(1, keepdim=True)).clamp_min(0).sqrt()
    log_distance = torch.from_numpy(views["log_distance"].astype(np.float32)).to(device)
    known = log_distance != 0
    return Batch(
        image=torch.from_numpy(views["image"].transpose(0, 3, 1, 2).astype(np.float32) / 255).to(device),
        rays=torch.cat([across, forward], dim=1),
        mask=torch.from_numpy(views["mask"][:, None].astype(np.float32)).to(device),
        log_distance=torch.where(known, log_distance - masked_median(log_distance, known)[:, None, None], 0.0),
        known=known,
    )


class Batches:
    """Batches by step number, each from one shard (all of one size); the order depends on the seed and the step alone,
    so a resumed run sees what an unbroken one would have seen."""

    def __init__(self, paths: list[Path], batch_size: int, seed: int, device: str) -> None:
        self.shards = [np.load(path, mmap_mode="r") for path in paths]
        self.batch_size, self.seed, self.device = batch_size, seed, device
        self.places = [(s, b) for s, shard in enumerate(self.shards) for b in range(len(shard) // batch_size)]
        if not self.places:
            raise ReconError(f"no shard holds a batch of {batch_size} views: make batch_size smaller or shards larger")

    def __getitem__(self, step: int) -> Batch:
        epoch, position = divmod(step, len(self.places))
        rng = np.random.default_rng([self.seed, epoch])
        shard, block = self.places[rng.permutation(len(self.places))[position]]
        order = np.random.default_rng([self.seed, epoch, shard]).permutation(len(self.shards[shard]))
        chosen = np.sort(order[block * self.batch_size : (block + 1) * self.batch_size])
        return to_batch(self.shards[shard][chosen], self.device)
