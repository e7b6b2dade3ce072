"""A student that goes on learning and keeps what it knew: what it is held to, and how far the written weights go."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from student_training import TINY, kinds_of, train_in, views_of

from recon.data.phantom.variety import TRAINING_KINDS
from recon.models.weights import read_checkpoint
from recon.training.relight import relight
from recon.training.shards import Batch, to_views
from recon.training.student import (
    TrainingState,
    backward,
    compute_losses,
    predict,
    taught,
    train_student,
    training_step,
    truth,
)
from recon.types import ReconError


def test_kept_kinds_are_held_to_the_initial_weights_and_the_rest_to_the_truth(tmp_path, shards):
    """At the first step the network still says what it is held to; later it may not have moved there, and has elsewhere."""
    first = train_in(tmp_path / "first", shards)
    config = dataclasses.replace(TINY, initial_weights=first, kept_kinds=kinds_of(shards, "*_64x64.npy")[:1], num_parts=1)
    state, stored = TrainingState(config), np.concatenate([np.load(path) for path in sorted(shards.glob("*_64x64.npy"))])
    views = to_views(stored, "cpu")
    assert [TRAINING_KINDS[kind] for kind in stored["kind"]] == views.kinds
    batch = relight(views, np.random.default_rng(0))
    kept = torch.tensor([kind in config.kept_kinds for kind in views.kinds])
    numbers = kept.nonzero().flatten().tolist()
    target, expected = taught(batch, numbers, state)
    assert kept.any() and not kept.all()
    said, log_scale = predict(state.network.eval(), batch, config)
    assert torch.allclose(target[kept], said[kept], atol=1e-4) and torch.equal(target[~kept], batch.log_distance[~kept])
    assert torch.allclose(expected[kept], log_scale[kept].exp(), atol=1e-4) and expected[~kept].isnan().all()
    only_kept = Batch(**{f.name: getattr(batch, f.name)[kept] for f in dataclasses.fields(batch)})
    with torch.no_grad():
        said = predict(state.network, only_kept, config)
        held, true = (
            float(compute_losses(said, only_kept, *lesson)["depth"]) for lesson in ((target[kept], expected[kept]), truth(only_kept))
        )
    assert held < 1e-4 < 0.02 < true
    statistics = {name: value.clone() for name, value in state.network.named_buffers()}
    for _ in range(3):
        training_step(state, views_of(shards), config)
    assert all(torch.equal(value, statistics[name]) for name, value in state.network.named_buffers())
    assert torch.equal(taught(batch, numbers, state)[0], target)
    everything = dataclasses.replace(config, kept_kinds=TRAINING_KINDS)
    assert backward(TrainingState(everything), 0, views, everything)["depth"] < 1e-4 < 0.02 < backward(state, 0, views, config)["depth"]


def test_the_uncertainty_that_initial_weights_say_is_the_best_to_say_of_kept_kinds(tmp_path, shards):
    """More and less of it cost more, whatever the truth is; of the rest the truth decides."""
    first = train_in(tmp_path / "first", shards, num_steps=1)
    state = TrainingState(dataclasses.replace(TINY, initial_weights=first, kept_kinds=kinds_of(shards)[:1], num_parts=1))
    batch = relight(to_views(np.load(sorted(shards.glob("*_64x64.npy"))[0]), "cpu"), np.random.default_rng(0))
    log_distance, log_scale = (layer.detach() for layer in predict(state.network.eval(), batch, state.config))

    def cost(kept, shift):
        lesson = taught(batch, kept, state)
        return float(compute_losses((log_distance, log_scale + shift), batch, *lesson)["uncertainty"])

    kept = list(range(len(batch.image)))
    assert cost(kept, 0.0) < min(cost(kept, -0.2), cost(kept, 0.2))
    noise = torch.from_numpy(np.random.default_rng(0).laplace(size=log_scale.shape)).float()
    batch.log_distance[:] = log_distance + 3 * log_scale.exp() * noise
    assert cost(kept, 0.0) < min(cost(kept, -0.2), cost(kept, 0.2))
    assert cost([], np.log(3)) < min(cost([], 0.0), cost([], 2.0))


def test_only_pictures_of_kept_kinds_are_made_strange_for_teacher_and_network_alike(tmp_path, shards, monkeypatch):
    first = train_in(tmp_path / "first", shards, num_steps=1)
    config = dataclasses.replace(TINY, initial_weights=first, kept_kinds=kinds_of(shards, "*_64x64.npy")[:1], num_parts=1, coarse_steps=0)
    views = to_views(np.concatenate([np.load(path) for path in sorted(shards.glob("*_64x64.npy"))]), "cpu")
    kept = torch.tensor([kind in config.kept_kinds for kind in views.kinds])
    asked = []

    def remember(network, batch, config):
        asked.append(batch.image.clone())
        return predict(network, batch, config)

    monkeypatch.setattr("recon.training.student.predict", remember)
    monkeypatch.setattr("recon.training.student.estrange", lambda image, generator: torch.full_like(image, 0.25))
    backward(TrainingState(config), 0, views, config)
    network, teacher = asked
    assert (teacher == 0.25).all() and len(teacher) == kept.sum()
    assert (network[kept] == 0.25).all() and not (network[~kept] == 0.25).all(dim=(1, 2, 3)).any()
    monkeypatch.setattr("recon.training.student.estrange", lambda image, generator: image)
    asked.clear()
    backward(TrainingState(config), 0, views, config)
    assert torch.equal(asked[0][~kept], network[~kept])


def test_written_weights_lie_on_the_way_from_the_initial_ones(tmp_path, shards):
    start = train_in(tmp_path / "start", shards, num_steps=1)
    kept = {"initial_weights": start, "kept_kinds": kinds_of(shards)[:1]}
    run = tmp_path / "run"
    written = {1.0: read_checkpoint(train_in(run, shards, **kept))}
    (run / "shards").unlink()
    for share in (0.0, 0.25):
        written[share] = read_checkpoint(train_student(dataclasses.replace(TINY, moved_share=share, **kept), run))
    assert not (run / "shards").exists(), "another share needs no views"
    assert json.loads((run / "student.json").read_text())["moved_share"] == 0.25
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
