"""Training: batches in a fixed order, mirrors that keep the lens true, losses that fall, resume without a trace."""

from __future__ import annotations

import csv
import dataclasses

import numpy as np
import pytest
import torch

from recon.models.student import Student
from recon.training.augment import jitter, mirror
from recon.training.shards import Batches, ShardShape, render_shard, to_batch
from recon.training.student import StudentConfig, train_student
from recon.types import ReconError

TINY = StudentConfig(
    num_shards=2, views_per_shard=8, views_per_scene=4, sizes_px=("64x64", "96x64"), batch_size=4, num_steps=12, warmup_steps=2,
    validate_every=6, bfloat16=False, num_threads=1, learning_rate=2e-3,
)  # fmt: skip


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    out = tmp_path_factory.mktemp("training")
    train_student(dataclasses.replace(TINY, num_steps=1), out)
    return out / "shards"


def read(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def train_in(folder, shards, **changes):
    folder.mkdir(exist_ok=True)
    if not (folder / "shards").exists():
        (folder / "shards").symlink_to(shards)
    stop_after = changes.pop("stop_after", None)
    return train_student(dataclasses.replace(TINY, **changes), folder, stop_after)


def test_a_resumed_run_leaves_the_same_weights(tmp_path, shards):
    unbroken = train_in(tmp_path / "unbroken", shards)
    train_in(tmp_path / "broken", shards, stop_after=5)
    resumed = train_in(tmp_path / "broken", shards)
    assert unbroken.read_bytes() == resumed.read_bytes()


def test_a_checkpoint_of_another_recipe_is_refused(tmp_path, shards):
    train_in(tmp_path / "run", shards, stop_after=1)
    with pytest.raises(ReconError, match="another learning_rate"):
        train_in(tmp_path / "run", shards, learning_rate=1.0)


def test_the_loss_falls_on_what_it_sees(tmp_path, shards):
    train_in(tmp_path / "run", shards, num_steps=60, num_shards=1, validate_every=60)
    rows = read(tmp_path / "run" / "losses.csv")
    assert float(rows[-1]["depth"]) < 0.8 * float(rows[0]["depth"])
    assert (tmp_path / "run" / "student.json").exists()


def test_one_seed_one_shard(tmp_path):
    shape = ShardShape(64, 32, 3, 2)
    for name in ("a", "b"):
        render_shard(tmp_path / name, shape, seed=5)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_batches_visit_every_view_once_an_epoch(shards):
    batches = Batches(sorted(shards.glob("*.npy")), 4, seed=0, device="cpu")
    seen = [batches[step].log_distance.sum(dim=(1, 2)) for step in range(len(batches.places))]
    assert len(torch.unique(torch.cat(seen))) == 4 * len(batches.places)
    batch = batches[1]
    assert torch.allclose(batch.rays.norm(dim=1), torch.ones_like(batch.rays[:, 0]), atol=1e-3)
    assert (batch.log_distance[batch.known].abs() < 6).all()


def test_mirrors_turn_rays_with_the_picture(shards):
    batch = Batches(sorted(shards.glob("*.npy")), 4, seed=0, device="cpu")[0]
    turned = mirror(batch, sideways=True, upside_down=False)
    assert torch.equal(turned.rays[:, 0], -batch.rays[:, 0].flip(-1))
    assert torch.equal(turned.rays[:, 1:], batch.rays[:, 1:].flip(-1))
    again = mirror(turned, sideways=True, upside_down=False)
    assert all(torch.equal(getattr(again, f.name), getattr(batch, f.name)) for f in dataclasses.fields(batch))


def test_a_batch_larger_than_its_shards_is_refused(shards):
    with pytest.raises(ReconError, match="batch of 100 views"):
        Batches(sorted(shards.glob("*.npy")), 100, seed=0, device="cpu")


def test_sizes_that_the_network_cannot_take_are_refused(tmp_path):
    with pytest.raises(ReconError, match="multiples of 32"):
        train_student(dataclasses.replace(TINY, sizes_px=("100x64",)), tmp_path)


def test_the_student_is_light_and_takes_every_size():
    network = Student().eval()
    assert 2_000_000 < sum(p.numel() for p in network.parameters()) < 3_000_000
    for height, width in ((64, 96), (160, 192)):
        log_distance, log_scale = network(torch.zeros(1, 7, height, width))
        assert log_distance.shape == log_scale.shape == (1, height, width)
    assert np.isfinite(log_distance.detach().numpy()).all()


def test_a_void_is_seen_but_not_known():
    """Black background stays part of the picture, without a distance to learn."""
    views = np.zeros(1, ShardShape(8, 4, 1, 1).dtype)
    views["mask"] = True
    views["log_distance"][0, :, :4] = np.log([10.0, 20.0, 20.0, 40.0])
    batch = to_batch(views, "cpu")
    assert batch.mask.all() and batch.known[0, :, :4].all() and not batch.known[0, :, 4:].any()
    assert torch.allclose(batch.log_distance[0, 0, :4], torch.log(torch.tensor([0.5, 1.0, 1.0, 2.0])), atol=2e-3)
    assert not batch.log_distance[0, :, 4:].any()


def test_jitter_repeats_with_its_seed_and_stays_a_picture():
    image = torch.rand(16, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    first, again = (jitter(image, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, again) and first.min() >= 0 and first.max() <= 1
    assert not torch.equal(first, jitter(image, torch.Generator().manual_seed(4)))
