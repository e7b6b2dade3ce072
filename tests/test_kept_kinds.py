"""A student that goes on learning and keeps what it knew: what it is held to, and how far the written weights go."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from student_training import TINY, train_in, views_of

from recon.data.phantom.variety import TRAINING_KINDS
from recon.models.weights import read_checkpoint
from recon.training.relight import relight
from recon.training.shards import Batch, to_views
from recon.training.student import TrainingState, backward, compute_losses, predict, taught, train_student, training_step
from recon.types import ReconError


def test_kept_kinds_are_held_to_the_initial_weights_and_the_rest_to_the_truth(tmp_path, shards):
    """At the first step the network still says what it is held to; later it may not have moved there, and has elsewhere."""
    first = train_in(tmp_path / "first", shards)
    config = dataclasses.replace(TINY, initial_weights=first, kept_kinds=("tube", "nasal"), num_parts=1)
    state, stored = TrainingState(config), np.concatenate([np.load(path) for path in sorted(shards.glob("*_64x64.npy"))])
    views = to_views(stored, "cpu")
    assert [TRAINING_KINDS[kind] for kind in stored["kind"]] == views.kinds
    batch = relight(views, np.random.default_rng(0))
    kept = torch.tensor([kind in config.kept_kinds for kind in views.kinds])
    numbers = kept.nonzero().flatten().tolist()
    target = taught(batch, numbers, state)
    assert kept.any() and not kept.all()
    said = predict(state.network.eval(), batch, config)[0]
    assert torch.allclose(target[kept], said[kept], atol=1e-4) and torch.equal(target[~kept], batch.log_distance[~kept])
    only_kept = Batch(**{f.name: getattr(batch, f.name)[kept] for f in dataclasses.fields(batch)})
    with torch.no_grad():
        said = predict(state.network, only_kept, config)
        held, true = (float(compute_losses(said, only_kept, t[kept])["depth"]) for t in (target, batch.log_distance))
    assert held < 1e-4 < 0.02 < true
    statistics = {name: value.clone() for name, value in state.network.named_buffers()}
    for _ in range(3):
        training_step(state, views_of(shards), config)
    assert all(torch.equal(value, statistics[name]) for name, value in state.network.named_buffers())
    assert torch.equal(taught(batch, numbers, state), target)
    everything = dataclasses.replace(config, kept_kinds=TRAINING_KINDS)
    assert backward(TrainingState(everything), 0, views, everything)["depth"] < 1e-4 < 0.02 < backward(state, 0, views, config)["depth"]


def test_written_weights_lie_on_the_way_from_the_initial_ones(tmp_path, shards):
    start = train_in(tmp_path / "start", shards, num_steps=1)
    kept = {"initial_weights": start, "kept_kinds": ("nasal",)}
    written = {s: read_checkpoint(train_in(tmp_path / "run", shards, moved_share=s, **kept)) for s in (1.0, 0.0, 0.25)}
    assert json.loads((tmp_path / "run" / "student.json").read_text())["moved_share"] == 0.25
    for name, given in read_checkpoint(start).items():
        none, some, all_ = (written[share][name].float() for share in (0.0, 0.25, 1.0))
        assert torch.equal(none, given.float())
        torch.testing.assert_close(some, given + 0.25 * (all_ - given), rtol=2e-3, atol=1e-5)
    with pytest.raises(ReconError, match="moved_share below 1 goes with kept_kinds"):
        train_student(dataclasses.replace(TINY, moved_share=0.5), tmp_path)


def test_keeping_what_nobody_has_learnt_is_refused(tmp_path):
    with pytest.raises(ReconError, match="give initial_weights"):
        train_student(dataclasses.replace(TINY, kept_kinds=("nasal",)), tmp_path)
    with pytest.raises(ReconError, match="names stomach, expected some of tube"):
        train_student(dataclasses.replace(TINY, kept_kinds=("stomach",)), tmp_path)
