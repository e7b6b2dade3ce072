"""Phantom geometry on disk: shards of views that a training run lights anew and draws batches from.

A shard is a plain array (memory-mapped, never all in memory), written atomically, decided by its seed alone; a killed
run casts only what is missing. Shards of another recipe lie in another folder.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from recon.data.phantom import GENERATOR_VERSION
from recon.data.phantom.randomize import MIN_TISSUE, TRIES, random_lamp, random_viewpoint
from recon.data.phantom.render import Trace, trace
from recon.data.phantom.scene import Scene
from recon.data.phantom.shading import NUM_NOISES, Buffers
from recon.data.phantom.variety import TRAINING_KINDS, training_scene
from recon.io.atomic import atomic_path
from recon.types import ReconError

KIND_SHARES = {"tube": 0.12, "nasal": 0.10, "cavity": 0.24, "relief": 0.05, "void": 0.24, "smooth": 0.06, "turbinate": 0.19}
UNITS = 32767.0
"""Of the stored components of unit vectors."""
NOISE_UNITS = 30.0
FORMAT_VERSION = 3
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
            [
                ("distance", np.float32, size), ("rays", np.int16, (*size, 2)), ("normal", np.int16, (*size, 3)),
                ("object", np.uint8, size), ("noise", np.int8, (*size, NUM_NOISES)), ("unlit", bool, size), ("on_tool", bool, size),
                ("lamp_mm", np.float32, 3), ("num_tissues", np.uint8), ("num_objects", np.uint8), ("kind", np.uint8),
            ]
        )  # fmt: skip


def shards_folder(parent: Path, seed: int, views_per_shard: int, views_per_scene: int) -> Path:
    """Where below `parent` the shards of a recipe lie; what decides their views besides number and size is in the name."""
    facts = (FORMAT_VERSION, GENERATOR_VERSION, seed, views_per_shard, views_per_scene, TRAINING_KINDS, sorted(KIND_SHARES.items()))
    return parent / hashlib.sha256(repr(facts).encode()).hexdigest()[:12]


def cast_shard(path: Path, shape: ShardShape, seed: int) -> None:
    """Cast the rays of a shard's views; every scene, lens and lamp comes from `seed`."""
    views = np.zeros(shape.num_views, shape.dtype)
    rng = np.random.default_rng(seed)
    count = 0
    while count < shape.num_views:
        kind = str(rng.choice(TRAINING_KINDS, p=[KIND_SHARES[k] for k in TRAINING_KINDS]))
        scene = training_scene(kind, int(rng.integers(2**31)))
        for _ in range(min(shape.views_per_scene, shape.num_views - count)):
            if not _cast_view(views[count], scene, rng, shape):
                break
            views[count]["kind"] = TRAINING_KINDS.index(kind)
            count += 1
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.save(file, views)


def _cast_view(view: np.void, scene: Scene, rng: np.random.Generator, shape: ShardShape) -> bool:
    for _ in range(TRIES):
        point = random_viewpoint(scene, rng, shape.width_px, shape.height_px)
        if point is None:
            continue
        traced = trace(scene, point.camera, point.T_world_camera, random_lamp(rng), bool(rng.random() < 0.6), point.tool)
        if (traced.faces >= 0).mean() > MIN_TISSUE:
            num_tissues = len(scene.materials)
            _store(view, traced, num_tissues, num_tissues + (len(point.tool.scene.materials) if point.tool else 0))
            return True
    return False


def _store(view: np.void, traced: Trace, num_tissues: int, num_objects: int) -> None:
    buffers = traced.buffers
    view["distance"], view["object"], view["on_tool"] = buffers.distance[0], buffers.object[0], traced.on_tool
    view["rays"] = np.round(buffers.rays[0, ..., :2].numpy() * UNITS)
    view["normal"] = np.round(torch.nn.functional.normalize(buffers.normal[0], dim=-1).numpy() * UNITS)
    view["noise"] = np.round(buffers.noise[0].numpy() * NOISE_UNITS).clip(-127, 127)
    view["unlit"], view["lamp_mm"] = buffers.unlit[0] > 0.5, buffers.lamp_mm[0]
    view["num_tissues"], view["num_objects"] = num_tissues, num_objects


@dataclass(frozen=True)
class Views:
    """Geometry of some views, before any light."""

    buffers: Buffers
    on_tool: Bool[Tensor, "b h w"]
    num_tissues: list[int]
    """Per view; objects from this number on are parts of an instrument."""
    num_objects: list[int]
    kinds: list[str]
    """Per view, of TRAINING_KINDS."""

    def every_second(self) -> Views:
        """Half the size: every second pixel of every second row, with its own ray."""
        layers = {f.name: getattr(self.buffers, f.name) for f in fields(Buffers)}
        thinned = {name: layer if name == "lamp_mm" else layer[:, ::2, ::2] for name, layer in layers.items()}
        return replace(self, buffers=Buffers(**thinned), on_tool=self.on_tool[:, ::2, ::2])


def to_views(stored: np.ndarray, device: str) -> Views:
    """Turn stored views into tensors."""

    def tensor(name: str, units: float | None = None) -> Tensor:
        values = torch.from_numpy(stored[name].copy()).to(device)
        return values if units is None else values.float() / units

    across = tensor("rays", UNITS)
    forward = (1 - across.square().sum(-1, keepdim=True)).clamp_min(0).sqrt()
    buffers = Buffers(
        distance=tensor("distance"),
        rays=torch.cat([across, forward], dim=-1),
        normal=tensor("normal", UNITS),
        object=tensor("object").long(),
        noise=tensor("noise", NOISE_UNITS),
        unlit=tensor("unlit").float(),
        lamp_mm=tensor("lamp_mm"),
    )
    kinds = [TRAINING_KINDS[index] for index in stored["kind"]]
    return Views(buffers, tensor("on_tool"), stored["num_tissues"].tolist(), stored["num_objects"].tolist(), kinds)


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


class Shuffled:
    """Views by step number, each from one shard (all of one size); the order depends on the seed and the step alone,
    so a resumed run sees what an unbroken one would have seen."""

    def __init__(self, paths: list[Path], batch_size: int, seed: int, device: str) -> None:
        self.shards = [np.load(path, mmap_mode="r") for path in paths]
        self.batch_size, self.seed, self.device = batch_size, seed, device
        self.places = [(s, b) for s, shard in enumerate(self.shards) for b in range(len(shard) // batch_size)]
        if not self.places:
            raise ReconError(f"no shard holds a batch of {batch_size} views: make batch_size smaller or shards larger")

    def __getitem__(self, step: int) -> Views:
        return self.parts(step, 1)[0]

    def parts(self, step: int, num: int) -> list[Views]:
        """The views of a step, dealt out to `num` workers."""
        epoch, position = divmod(step, len(self.places))
        rng = np.random.default_rng([self.seed, epoch])
        shard, block = self.places[rng.permutation(len(self.places))[position]]
        order = np.random.default_rng([self.seed, epoch, shard]).permutation(len(self.shards[shard]))
        chosen = np.sort(order[block * self.batch_size : (block + 1) * self.batch_size])
        return [to_views(self.shards[shard][part], self.device) for part in np.array_split(chosen, num)]
