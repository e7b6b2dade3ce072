"""Training: batches in a fixed order, mirrors that keep the lens true, losses that fall, resume without a trace."""

from __future__ import annotations

import csv
import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest
import safetensors.torch
import torch
from student_training import TINY, kinds_of, train_in, views_of

from recon.data.phantom.randomize import random_lamp, random_viewpoint
from recon.data.phantom.render import render
from recon.data.phantom.shading import Imaging, expose, looks_of, shade
from recon.data.phantom.variety import TRAINING_KINDS, training_scene
from recon.models import UNSTATED, model_info
from recon.models.student import INPUTS, WEIGHTS, Student
from recon.models.weights import read_checkpoint, save_halved, training_facts
from recon.pipeline.config import build_config
from recon.training import shards as shards_module
from recon.training.augment import mirror
from recon.training.checkpoints import Log, load_checkpoint, recipe
from recon.training.relight import relight, to_batch
from recon.training.shards import KIND_SHARES, ShardShape, Shuffled, cast_shard, to_views
from recon.training.student import (
    StudentConfig,
    TrainingState,
    backward,
    cast_shards,
    learning_rate,
    train_student,
    training_step,
)
from recon.types import ReconError


def read(path):
    with path.open() as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("keeps", [False, True])
def test_a_resumed_run_leaves_the_same_weights(tmp_path, shards, keeps):
    start = train_in(tmp_path / "start", shards, num_steps=1) if keeps else None
    changes = {"num_parts": 2, "kept_kinds": kinds_of(shards)[:1] if keeps else (), "initial_weights": start}
    unbroken = train_in(tmp_path / "unbroken", shards, **changes)
    train_in(tmp_path / "broken", shards, stop_after=5, **changes)
    resumed = train_in(tmp_path / "broken", shards, **changes)
    assert unbroken.read_bytes() == resumed.read_bytes()


def test_a_checkpoint_of_another_recipe_is_refused(tmp_path, shards):
    train_in(tmp_path / "run", shards, stop_after=1)
    with pytest.raises(ReconError, match="another learning_rate"):
        train_in(tmp_path / "run", shards, learning_rate=1.0)


def test_a_checkpoint_of_code_that_trained_otherwise_is_refused(tmp_path, shards, monkeypatch):
    train_in(tmp_path / "run", shards, stop_after=1)
    monkeypatch.setattr(StudentConfig, "VERSION", StudentConfig.VERSION + 1)
    with pytest.raises(ReconError, match="another version"):
        train_in(tmp_path / "run", shards)


def test_the_rate_rises_stands_and_falls_and_the_plateau_knows_no_end():
    config = dataclasses.replace(TINY, num_steps=1000, warmup_steps=10)
    rates = np.array([learning_rate(step, config) for step in range(1000)]) / config.learning_rate
    assert rates[0] == pytest.approx(0.1) and (rates[9:701] == 1).all()
    assert (np.diff(rates[701:]) <= 0).all() and rates[775] == pytest.approx(0.5) and rates[-1] == pytest.approx(0.01)
    longer = dataclasses.replace(config, num_steps=2000)
    assert all(learning_rate(step, longer) == learning_rate(step, config) for step in range(700))


def test_the_loss_falls_on_what_it_sees(tmp_path, shards):
    train_in(tmp_path / "run", shards, num_steps=60, num_shards=1, validate_every=60)
    rows = read(tmp_path / "run" / "losses.csv")
    assert float(rows[-1]["depth"]) < 0.8 * float(rows[0]["depth"])
    assert (tmp_path / "run" / "student.json").exists()


def test_shards_of_another_recipe_are_cast_anew(tmp_path, monkeypatch):
    cast = []
    monkeypatch.setattr("recon.training.student.cast_shard", lambda path, shape, seed: cast.append((path, shape, seed)))
    first = cast_shards(TINY, tmp_path)
    for changes in ({"seed": 1}, {"views_per_shard": 4}, {"views_per_scene": 2}):
        assert not set(first) & set(cast_shards(dataclasses.replace(TINY, **changes), tmp_path))
    assert cast_shards(dataclasses.replace(TINY, learning_rate=1.0, num_shards=1), tmp_path) == first[:3]
    monkeypatch.setitem(shards_module.KIND_SHARES, "tube", 0.5)
    assert not set(first) & set(cast_shards(TINY, tmp_path))
    assert len(cast) == 4 * 5 + 3


def test_other_weights_under_the_same_name_are_another_recipe(tmp_path, shards):
    """What a resumed training begins from, and is held to, is the file that it began with."""
    start = tmp_path / "start.safetensors"
    start.write_bytes(train_in(tmp_path / "first", shards, num_steps=1).read_bytes())
    train_in(tmp_path / "run", shards, stop_after=1, initial_weights=start)
    start.write_bytes(train_in(tmp_path / "second", shards, num_steps=2).read_bytes())
    with pytest.raises(ReconError, match="began with another file of initial_weights: give it again"):
        train_in(tmp_path / "run", shards, initial_weights=start)


def test_a_loss_that_is_not_finite_ends_the_training_and_spoils_no_checkpoint(tmp_path, shards):
    train_in(tmp_path / "run", shards, stop_after=2)
    checkpoint = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)
    checkpoint["network"]["head.1.bias"][0] = torch.nan
    torch.save(checkpoint, tmp_path / "run" / "checkpoint.pt")
    spoiled = (tmp_path / "run" / "checkpoint.pt").read_bytes()
    with pytest.raises(ReconError, match="not finite at step 2: lower learning_rate"):
        train_in(tmp_path / "run", shards)
    assert (tmp_path / "run" / "checkpoint.pt").read_bytes() == spoiled


def test_shards_that_the_disk_cannot_hold_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("recon.training.student.shutil.disk_usage", lambda _: SimpleNamespace(free=1_000_000))
    with pytest.raises(ReconError, match=r"4 shards of views take [0-9.]+ GB, but .* has 0\.0 GB left"):
        cast_shards(dataclasses.replace(TINY, views_per_shard=8000), tmp_path)


def test_a_recipe_is_judged_before_its_shards_are_cast(tmp_path):
    strange = tmp_path / "strange.safetensors"
    safetensors.torch.save_file({"other": torch.zeros(1)}, strange)
    with pytest.raises(ReconError, match="strange"):
        train_student(dataclasses.replace(TINY, initial_weights=strange), tmp_path / "run")
    with pytest.raises(ReconError, match="batch_size is 9, expected at most 8"):
        train_student(dataclasses.replace(TINY, batch_size=9), tmp_path / "run")
    assert not list(tmp_path.rglob("*.npy"))


def test_the_weights_say_what_they_have_seen(tmp_path, shards):
    weights = train_in(tmp_path / "run", shards, num_steps=1)
    assert training_facts(weights) == {"method": "student", "trained_on": ["phantom"]}
    assert model_info("student").seen(weights) == ("phantom",)
    silent = tmp_path / "silent.safetensors"
    silent.write_bytes(safetensors.torch.save(read_checkpoint(weights)))
    assert model_info("student").seen(silent) == UNSTATED
    copied = tmp_path / "copied.safetensors"
    copied.write_bytes(WEIGHTS.read_bytes())
    assert model_info("student").seen(copied) == ("phantom",), "the packaged file under another name"
    exported = tmp_path / "own.pt2"
    torch.save({}, exported)  # an archive, as torch.export.save writes one
    assert model_info(str(exported)).seen() == UNSTATED


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"", "cannot be read as a checkpoint"),
        (b"no checkpoint", "cannot be read as a checkpoint"),
        (b"\x80\x02cos\nsystem\n.", "cannot be read as a checkpoint"),
        ({"state_dict": {}}, "is no checkpoint of a training"),
        ([1, 2], "is no checkpoint of a training"),
    ],
)
def test_a_foreign_checkpoint_is_named(tmp_path, content, found):
    path = tmp_path / "checkpoint.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(ReconError, match=rf"checkpoint\.pt {found}.*delete it to start anew"):
        load_checkpoint(path, recipe(TINY))


def test_a_log_keeps_what_the_last_checkpoint_has_done_and_nothing_without_one(tmp_path):
    (tmp_path / "patients.csv").write_text("2024-01-01,7\n")
    for num_done, kept in ((0, []), (2, ["step,error", "0,1", "2,1"])):
        (tmp_path / "validation.csv").write_text("step,error\n0,1\n2,1\n4,1\n5,")
        log = Log(tmp_path, num_done)
        assert (tmp_path / "validation.csv").read_text().splitlines() == kept
        log.add("validation", 3, {"error": 0.5})
        log.close()
        assert (tmp_path / "validation.csv").read_text().splitlines() == [*(kept or ["step,error"]), "3,0.5"]
    assert (tmp_path / "patients.csv").read_text() == "2024-01-01,7\n", "files of others stay as they are"


def test_one_seed_one_shard(tmp_path):
    shape = ShardShape(64, 32, 3, 2)
    for name in ("a", "b"):
        cast_shard(tmp_path / name, shape, seed=5)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_batches_visit_every_view_once_an_epoch(shards):
    drawn = views_of(shards)
    seen = [drawn[step].buffers.distance.sum(dim=(1, 2)) for step in range(len(drawn.places))]
    assert len(torch.unique(torch.cat(seen))) == 4 * len(drawn.places)
    batch = relight(drawn[1], np.random.default_rng(0))
    assert torch.allclose(batch.rays.norm(dim=1), torch.ones_like(batch.rays[:, 0]), atol=1e-3)
    assert (batch.log_distance[batch.known].abs() < 6).all()


def test_mirrors_turn_rays_with_the_picture(shards):
    batch = relight(views_of(shards)[0], np.random.default_rng(0))
    turned = mirror(batch, sideways=True, upside_down=False)
    assert torch.equal(turned.rays[:, 0], -batch.rays[:, 0].flip(-1))
    assert torch.equal(turned.rays[:, 1:], batch.rays[:, 1:].flip(-1))
    again = mirror(turned, sideways=True, upside_down=False)
    assert all(torch.equal(getattr(again, f.name), getattr(batch, f.name)) for f in dataclasses.fields(batch))


def test_parts_of_a_batch_make_one_step(shards, monkeypatch):
    """Threads share parameters, deal the views out among them, and leave the mean of their gradients; a step repeats itself."""
    views, config = views_of(shards), dataclasses.replace(TINY, num_parts=2)
    whole, parts = views[0].buffers.distance, [part.buffers.distance for part in views.parts(0, 2)]
    assert torch.equal(torch.cat(parts), whole)
    after = []
    for _ in range(2):
        torch.manual_seed(0)
        state = TrainingState(config)
        gradients = []
        for part, own_views in enumerate(views.parts(0, 2)):
            backward(state, part, own_views, config)
            gradients.append(state.replicas[part].head[1].bias.grad.clone())
        monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda *_: None)
        training_step(state, views, config)
        own, other = (dict(network.named_parameters()) for network in state.replicas)
        assert all(torch.equal(own[name], other[name]) for name in own)
        assert not torch.equal(*(network.stages[0][0][1].running_mean for network in state.replicas))
        assert torch.equal(own["head.1.bias"].grad, (gradients[0] + gradients[1]) / 2) and not torch.equal(*gradients)
        after.append(state.network.state_dict())
    assert all(torch.equal(after[0][name], after[1][name]) for name in after[0])


@pytest.mark.parametrize("num_parts", [0, 5])
def test_a_part_without_views_is_refused(tmp_path, num_parts):
    with pytest.raises(ReconError, match="expected 1 to 4"):
        train_student(dataclasses.replace(TINY, num_parts=num_parts), tmp_path)


def test_training_begins_from_given_weights(tmp_path, shards):
    first = train_in(tmp_path / "first", shards, num_steps=1)
    state = TrainingState(dataclasses.replace(TINY, initial_weights=first))
    given = read_checkpoint(first)
    assert all(torch.equal(value, given[name].to(value.dtype)) for name, value in state.network.state_dict().items())
    train_in(tmp_path / "second", shards, num_steps=1, initial_weights=first)
    assert json.loads((tmp_path / "second" / "student.json").read_text())["config"]["initial_weights"] == str(first)


def test_weights_say_what_those_they_began_from_had_seen(tmp_path, shards):
    start = tmp_path / "adapted.safetensors"
    save_halved(Student(), start, {"method": "student", "trained_on": ["phantom", "c3vd/c1"]})
    assert training_facts(train_in(tmp_path / "run", shards, num_steps=1, initial_weights=start))["trained_on"] == ["phantom", "c3vd/c1"]


def test_a_batch_larger_than_its_shards_is_refused(shards):
    with pytest.raises(ReconError, match="batch of 100 views"):
        Shuffled(sorted(shards.glob("*.npy")), 100, seed=0, device="cpu")


@pytest.mark.parametrize("size", ["100x64", "abc", "64x64x64", "0x64", "-64x64"])
def test_sizes_that_the_network_cannot_take_are_refused(tmp_path, size):
    with pytest.raises(ReconError, match="multiples of 64"):
        train_student(dataclasses.replace(TINY, sizes_px=("64x64", size)), tmp_path)


@pytest.mark.parametrize("setting", ["validate_every", "views_per_scene", "num_steps"])
def test_numbers_that_no_training_can_use_are_refused(setting):
    with pytest.raises(ReconError, match=f"{setting}.*at least 1"):
        build_config(StudentConfig, {setting: 0}, "student")


def test_the_student_is_light_and_takes_every_size():
    network = Student().eval()
    assert 2_000_000 < sum(p.numel() for p in network.parameters()) < 3_000_000
    for height, width in ((64, 96), (160, 192)):
        log_distance, log_scale = network(torch.zeros(1, INPUTS, height, width))
        assert log_distance.shape == log_scale.shape == (1, height, width)
    assert np.isfinite(log_distance.detach().numpy()).all()


def test_a_void_is_seen_but_not_known():
    """Black background stays part of the picture, without a distance to learn."""
    stored = np.zeros(1, ShardShape(8, 4, 1, 1).dtype)
    stored["distance"][0, :, :4] = [10.0, 20.0, 20.0, 40.0]
    views = to_views(stored, "cpu")
    batch = to_batch(torch.zeros(1, 3, 4, 8), views.buffers, torch.ones(1, 4, 8, dtype=torch.bool))
    assert batch.mask.all() and batch.known[0, :, :4].all() and not batch.known[0, :, 4:].any()
    assert torch.allclose(batch.log_distance[0, 0, :4], torch.log(torch.tensor([0.5, 1.0, 1.0, 2.0])), atol=1e-6)
    assert not batch.log_distance[0, :, 4:].any()


def test_light_changes_and_shape_stays(shards):
    views = views_of(shards)[0]
    first, again, other = (relight(views, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert torch.equal(first.image, again.image)
    assert (first.image - other.image).abs().mean() > 0.03
    both = first.known & other.known
    assert both.any()
    # Each is relative to the median of what its own mask leaves.
    per_view = [(first.log_distance - other.log_distance)[k][both[k]] for k in range(len(both)) if both[k].any()]
    assert max(float(values.std(correction=0)) for values in per_view) < 1e-5


def test_every_second_pixel_keeps_its_ray_and_its_distance(shards):
    views = views_of(shards)[0]
    half = views.every_second()
    assert half.on_tool.shape[1:] == tuple(side // 2 for side in views.on_tool.shape[1:])
    for row, column in ((0, 0), (5, 9), (31, 31)):
        assert torch.equal(half.buffers.rays[:, row, column], views.buffers.rays[:, 2 * row, 2 * column])
        assert torch.equal(half.buffers.distance[:, row, column], views.buffers.distance[:, 2 * row, 2 * column])
    assert torch.equal(half.buffers.lamp_mm, views.buffers.lamp_mm)


def test_a_stored_view_is_lit_as_a_rendered_one(tmp_path):
    """What is stored in whole numbers gives the picture that the renderer makes of the same view."""
    cast_shard(tmp_path / "one.npy", ShardShape(64, 64, 1, 1), seed=11)
    stored = np.load(tmp_path / "one.npy")
    views = to_views(stored, "cpu")
    rng = np.random.default_rng(11)
    kind = str(rng.choice(TRAINING_KINDS, p=[KIND_SHARES[k] for k in TRAINING_KINDS]))
    scene = training_scene(kind, int(rng.integers(2**31)))
    point = next(point for _ in range(6) if (point := random_viewpoint(scene, rng, 64, 64)) is not None)
    imaging = Imaging(lamp_offset_mm=random_lamp(rng), noise=0.0)
    rendering = render(scene, point.camera, point.T_world_camera, imaging, rng, point.tool)
    materials = [*scene.materials, *(point.tool.scene.materials if point.tool else ())]
    light, highlight = shade(views.buffers, looks_of(materials)[None], [imaging])
    picture = expose(light, highlight, views.buffers.distance > 0, [imaging], torch.Generator())[0]
    assert np.percentile(np.abs(picture.numpy().astype(int) - rendering.image), 99) <= 6
