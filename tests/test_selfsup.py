"""Self-supervised training on phantom clips: what falls, what resumes to the same losses, what is refused."""

from __future__ import annotations

import dataclasses
import tomllib
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from layouts import write_c3vd
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_training import FLOW, SHORT, TUBE, VIT, abs_rel, config_of, rows, untrained

from recon.io.atomic import read_json
from recon.io.images import read_image
from recon.models.depth_anything import SIZES, DepthAnythingSize
from recon.models.vit import VitSize
from recon.pipeline.config import build_config
from recon.training import trainings
from recon.training.methods import METHODS
from recon.training.selfsup import TrainingState, open_clips, train_self_supervised
from recon.types import ReconError

ENDODAC = {"num_epochs": 6, "learning_rate": 5e-4, "warmup_steps": 60, "learn_intrinsics": False, **FLOW, **VIT}


@pytest.fixture(autouse=True)
def tiny_vit(monkeypatch):
    monkeypatch.setitem(SIZES, "tiny", DepthAnythingSize(VitSize(48, 4, 3, 70), 32, (16, 24, 32, 48), (0, 1, 2, 3)))


def photometric_by_epoch(folder, steps):
    """Mean photometric loss of the epochs of so many steps."""
    losses = rows(folder, "losses")
    (key,) = (key for key in losses[0] if key.endswith("/photometric"))
    return np.array([row[key] for row in losses]).reshape(-1, steps).mean(axis=1)


@pytest.mark.parametrize(
    ("name", "changes", "most"),
    [
        ("monodepth2", {"num_epochs": 6}, 0.8),
        ("af_sfm", {"num_epochs": 7, "batch_size": 4, **FLOW}, 0.8),
        ("endodac", ENDODAC, 0.95),
    ],
)
def test_photometric_and_depth_errors_fall(tmp_path, name, changes, most):
    """`most` is what may be left of the held-out depth error.

    A few minutes of a tiny transformer are a matter of chance: 0.93 here, 0.98 at half and at twice the rate and with another seed.
    """
    config = config_of(name, **changes)
    best = train_self_supervised(name, config, tmp_path)
    clips = open_clips(config, tmp_path / "clips")
    errors = [row["photometric"] for row in rows(tmp_path, "validation")]
    assert min(errors) < 0.95 * errors[0]
    if name != "endodac":  # at its rate the refined target, which is compared with, moves faster than depth follows
        by_epoch = photometric_by_epoch(tmp_path, clips.training.steps_per_epoch(config.batch_size))
        assert by_epoch[-1] < 0.95 * by_epoch[0]
    method = untrained(name, config)
    at_start = abs_rel(method, TUBE, clips.validation)
    method.networks["depth"].load_state_dict(safetensors.torch.load_file(best / "depth.safetensors"))
    assert abs_rel(method, TUBE, clips.validation) < most * at_start


def test_a_learned_lens_moves_towards_the_true_one(tmp_path):
    """Slowly: 65 steps take the focal lengths some percent of the way; the loss falls all the same."""
    config = config_of("monodepth2", num_epochs=5, learn_intrinsics=True)
    train_self_supervised("monodepth2", config, tmp_path)
    clips = open_clips(config, tmp_path / "clips")
    by_epoch = photometric_by_epoch(tmp_path, clips.training.steps_per_epoch(config.batch_size))
    assert by_epoch[-1] < 0.95 * by_epoch[0]
    method, batch = untrained("monodepth2", config), clips.training.batch(0, 8)
    at_start = focal_lengths(method, batch)
    method.networks.load_state_dict(torch.load(tmp_path / "checkpoint.pt", weights_only=True)["networks"])
    truth = np.array(clips.training.batch(0, 1).cameras[0].params[:2])
    share = (at_start - focal_lengths(method, batch)) / (at_start - truth)
    assert (share > 0.03).all() and (share < 1.0).all()


@torch.no_grad()
def focal_lengths(method, batch):
    """fx and fy in pixels, mean over clips and sources."""
    method.networks.eval()
    sources = range(1, batch.color.shape[1])
    found = [method.networks["pose"](batch.color_aug[:, source], batch.color_aug[:, 0]).intrinsics[:, :2] for source in sources]
    return torch.cat(found).mean(dim=0).numpy()


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unbroken")
    train_self_supervised("monodepth2", config_of("monodepth2", (SHORT,), num_epochs=2, validate_every=2), folder)
    return folder


def test_a_resumed_run_has_the_losses_of_an_unbroken_one(tmp_path, unbroken):
    config = config_of("monodepth2", (SHORT,), num_epochs=2, validate_every=2)
    train_self_supervised("monodepth2", config, tmp_path, stop_after=4)
    (tmp_path / "losses.csv").open("a").write("5,1,1,1,1,1\n")  # logged after the last checkpoint
    train_self_supervised("monodepth2", config, tmp_path)
    for name in ("losses.csv", "validation.csv", "best/depth.safetensors", "best/pose.safetensors"):
        assert (tmp_path / name).read_bytes() == (unbroken / name).read_bytes()
    assert [row["step"] for row in rows(tmp_path, "losses")] == [1, 2, 3, 4, 5, 6]


def test_every_phase_goes_on_from_its_own_optimizer(tmp_path):
    config = config_of("endodac", (SHORT,), warmup_steps=1, **FLOW, **VIT)
    clips = open_clips(config, tmp_path).training
    state = TrainingState(untrained("endodac", config), ())
    for step in range(2):
        state.train_step(clips.batch(step, 2), epoch=0)
    state.save(tmp_path / "checkpoint.pt")
    unbroken = state.train_step(clips.batch(2, 2), epoch=0)
    resumed = TrainingState(METHODS["endodac"](config), ())
    resumed.load(tmp_path / "checkpoint.pt")
    assert resumed.step == 2 and resumed.train_step(clips.batch(2, 2), epoch=0) == unbroken
    for old, new in zip(state.method.networks.parameters(), resumed.method.networks.parameters(), strict=True):
        assert torch.equal(old, new)


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_workers_change_no_loss(tmp_path, unbroken):
    train_self_supervised("monodepth2", config_of("monodepth2", (SHORT,), num_epochs=2, validate_every=2, num_workers=2), tmp_path)
    for name in ("losses.csv", "validation.csv"):
        assert (tmp_path / name).read_bytes() == (unbroken / name).read_bytes()


def test_the_best_networks_are_those_of_the_smallest_validation_error(tmp_path, unbroken):
    validation = rows(unbroken, "validation")
    best = min(validation, key=lambda row: row["photometric"])
    facts = read_json(unbroken / "best" / "training.json")
    assert facts["steps"] == best["step"] and facts["validation_error"] == pytest.approx(best["photometric"], rel=1e-5)
    config = config_of("monodepth2", (SHORT,))
    method, clips = untrained("monodepth2", config), open_clips(config, tmp_path).validation
    for name, network in method.networks.items():
        network.load_state_dict(safetensors.torch.load_file(unbroken / "best" / f"{name}.safetensors"))
    errors = [method.validation_error(clips.clip(0, place)) for place in range(len(clips))]
    assert np.mean(errors) == pytest.approx(facts["validation_error"], rel=1e-5)


def test_logs_and_pictures_of_a_training(unbroken, tmp_path):
    """CSV and TensorBoard tell the same; a picture of depth comes at the start and after every epoch of three steps."""
    events = EventAccumulator(str(unbroken / "tensorboard")).Reload()
    losses = rows(unbroken, "losses")
    assert set(losses[0]) == {"step", "decay", *(f"depth_pose/{key}" for key in ("total", "photometric", "smoothness", "kept"))}
    for key in set(losses[0]) - {"step"}:
        logged = events.Scalars(f"losses/{key}")
        assert [(event.step, pytest.approx(event.value, rel=1e-5)) for event in logged] == [(row["step"], row[key]) for row in losses]
    assert [event.step for event in events.Scalars("validation/photometric")] == [0, 2, 4, 6]
    assert [event.step for event in events.Images("depth")] == [0, 3, 6]
    pictures = sorted((unbroken / "pictures").glob("*.png"))
    assert [path.name for path in pictures] == ["0000000.png", "0000003.png", "0000006.png"]
    target = open_clips(config_of("monodepth2", (SHORT,)), tmp_path).validation.clip(0, 0).color[0, 0]
    for path in pictures:
        picture = read_image(path)
        assert picture.shape == (64, 2 * 96, 3)
        assert np.array_equal(picture[:, :96], (target.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8))
    assert not np.array_equal(read_image(pictures[0])[:, 96:], read_image(pictures[-1])[:, 96:])


def test_half_precision_is_for_cuda_alone(tmp_path, monkeypatch):
    config = config_of("af_sfm", (SHORT,))
    method, clip = untrained("af_sfm", config), open_clips(config, tmp_path).training.clip(0, 0)
    asked = []

    def autocast(device, dtype, enabled):
        asked.append((device, dtype, enabled))
        return nullcontext()

    monkeypatch.setattr(torch, "autocast", autocast)
    monkeypatch.setattr(torch.amp, "GradScaler", lambda device, enabled: (device, enabled))
    for device, mixed, half in (("cpu", True, False), ("cuda:1", True, True), ("cuda", False, False)):
        method.config = dataclasses.replace(config, device=device, mixed_precision=mixed)
        kind = device.partition(":")[0]
        assert TrainingState(method, ()).scalers == [(kind, half)] * 2
        asked.clear()
        with torch.no_grad():
            method.depth_losses(clip)
        assert asked == [(kind, torch.float16, half)] * 3  # depth once, appearance for either source


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", ["monodepth2", "af_sfm"])
def test_half_precision_trains_on_cuda(tmp_path, name):
    config = config_of(name, (SHORT,), device="cuda", num_epochs=1, **({} if name == "monodepth2" else FLOW))
    seen = []
    state = TrainingState(untrained(name, config), ())
    state.method.networks["depth"].encoder.encoder.conv1.register_forward_hook(lambda *call: seen.append(call[-1].dtype))
    batch = open_clips(config, tmp_path).training.batch(0, 2).to("cuda")
    half = state.train_step(batch, epoch=0)
    exact = TrainingState(untrained(name, dataclasses.replace(config, mixed_precision=False)), ()).train_step(batch, epoch=0)
    assert set(seen) == {torch.float16}
    assert half == pytest.approx(exact, rel=0.02, abs=1e-3)


def test_a_split_says_what_is_learned_from_and_what_chooses(tmp_path):
    for name in ("alpha", "beta", "gamma"):
        write_c3vd(tmp_path / "data" / name, count=30)
    split = tmp_path / "toy.toml"
    split.write_text(
        'title = "toy"\nsource = "none"\ndataset = "c3vd"\nleakage = []\n'
        "[group]\npattern = '[a-z]+'\nmeans = 'one clip'\n"
        '[parts.train]\n"alpha" = "0-25"\n[parts.val]\n"beta" = "2-7"\n[parts.test]\n"alpha" = "22-29"\n"gamma" = "0-"\n'
    )
    config = config_of("monodepth2", (str(tmp_path / "data"),), split=split, min_motion_px=0.0)
    clips = open_clips(config, tmp_path / "store")
    assert used_by(clips.training) == {("alpha", k) for k in range(22)}
    assert used_by(clips.validation) == {("beta", k) for k in range(2, 8)}
    assert clips.training.is_training and not clips.validation.is_training
    assert clips.datasets == ("c3vd/toy",)
    split.write_text(split.read_text().replace('[parts.val]\n"beta" = "2-7"\n', ""))
    clips = open_clips(config, tmp_path / "store")
    held_out = used_by(clips.validation)
    assert held_out and held_out < {("alpha", k) for k in range(22)} and not held_out & used_by(clips.training)
    for more in ({"sources": ("a", "b")}, {"validation_sources": ("a",)}):
        with pytest.raises(ReconError, match="with a split, sources is the one folder"):
            open_clips(dataclasses.replace(config, **more), tmp_path / "store")


def used_by(clips):
    batches = [clips.clip(0, place) for place in range(len(clips))]
    return {(batch.recordings[0], frame) for batch in batches for frame in batch.frame_indices[0].tolist()}


def test_a_checkpoint_of_another_recipe_or_a_cut_one_is_refused(tmp_path, unbroken):
    (tmp_path / "checkpoint.pt").write_bytes((unbroken / "checkpoint.pt").read_bytes())
    with pytest.raises(ReconError, match="another num_epochs, seed"):
        train_self_supervised("monodepth2", config_of("monodepth2", (SHORT,), seed=1, validate_every=2), tmp_path)
    (tmp_path / "checkpoint.pt").write_bytes((unbroken / "checkpoint.pt").read_bytes()[:1000])
    with pytest.raises(ReconError, match="cannot be read as a checkpoint"):
        train_self_supervised("monodepth2", config_of("monodepth2", (SHORT,), num_epochs=2), tmp_path)


def test_training_stops_when_validation_no_longer_improves(tmp_path):
    config = config_of("monodepth2", (SHORT,), num_epochs=9, validate_every=1, patience=2, learning_rate=0.0)
    train_self_supervised("monodepth2", config, tmp_path)
    errors = [row["photometric"] for row in rows(tmp_path, "validation")]
    since_best = len(errors) - 1 - int(np.argmin(errors))
    assert since_best == 2
    train_self_supervised("monodepth2", config, tmp_path)  # finished: nothing is trained or validated again
    assert [row["photometric"] for row in rows(tmp_path, "validation")] == errors
    assert len(rows(tmp_path, "losses")) == len(errors) - 1
    train_self_supervised("monodepth2", dataclasses.replace(config, patience=3), tmp_path)
    assert len(rows(tmp_path, "validation")) == len(errors) + 1


def test_a_run_killed_before_its_first_checkpoint_starts_its_logs_anew(tmp_path, unbroken):
    for name in ("losses", "validation"):
        (tmp_path / f"{name}.csv").write_bytes((unbroken / f"{name}.csv").read_bytes())
    train_self_supervised("monodepth2", config_of("monodepth2", (SHORT,), num_epochs=2, validate_every=2), tmp_path)
    for name in ("losses.csv", "validation.csv"):
        assert (tmp_path / name).read_bytes() == (unbroken / name).read_bytes()


@pytest.mark.parametrize("validation", [SHORT, SHORT.replace("frames=24", "frames=30")])
def test_what_is_learned_from_chooses_nothing(tmp_path, validation):
    """A phantom's kind and seed are its scene, however much of it is shown."""
    with pytest.raises(ReconError, match=r"validation_sources: phantom:tube\?seed=3.* is learned from as"):
        open_clips(config_of("monodepth2", (SHORT,), validation_sources=(validation,)), tmp_path)
    other = SHORT.replace("seed=3", "seed=4")
    clips = open_clips(config_of("monodepth2", (SHORT,), validation_sources=(other,)), tmp_path)
    assert {name for name, _ in used_by(clips.validation)} == {"phantom_tube_4"}


def test_stretches_are_held_out_of_a_recording_once(tmp_path):
    """Else another copy of it would teach what is held out."""
    longer = SHORT.replace("frames=24", "frames=30")
    with pytest.raises(ReconError, match=r"sources: phantom:tube\?seed=3.* and phantom:tube\?seed=3.* show the same"):
        open_clips(config_of("monodepth2", (SHORT, longer)), tmp_path)
    other = SHORT.replace("seed=3", "seed=4")
    assert len(open_clips(config_of("monodepth2", (SHORT, longer), validation_sources=(other,)), tmp_path).training.stored) == 2


def test_a_training_begun_on_a_cpu_goes_on_with_scaled_losses(tmp_path):
    """A scaler that scaled nothing leaves nothing to go on from."""
    config = config_of("monodepth2", (SHORT,))
    TrainingState(METHODS["monodepth2"](config), ("phantom",)).save(tmp_path / "checkpoint.pt")
    state = TrainingState(METHODS["monodepth2"](config), ("phantom",))
    state.scalers = [torch.amp.GradScaler("cpu", init_scale=8.0) for _ in state.scalers]
    state.load(tmp_path / "checkpoint.pt")
    assert [scaler.get_scale() for scaler in state.scalers] == [8.0]


def test_a_folder_and_what_lies_in_it_are_one_recording(tmp_path):
    write_c3vd(tmp_path / "data", count=6)
    (tmp_path / "link").symlink_to(tmp_path / "data")
    with pytest.raises(ReconError, match="is learned from as"):
        open_clips(config_of("monodepth2", (str(tmp_path / "data"),), validation_sources=(str(tmp_path / "link"),)), tmp_path / "store")


@pytest.mark.parametrize("name", ["monodepth2", "af_sfm", "endodac"])
def test_imagenet_weights_have_been_seen(tmp_path, name):
    file = tmp_path / "resnet18.pth"
    torch.save(untrained("monodepth2", config_of("monodepth2")).networks["depth"].encoder.encoder.state_dict(), file)
    changes = VIT if name == "endodac" else {}
    assert untrained(name, config_of(name, imagenet_weights=file, **changes)).seen_before == ("imagenet",)
    assert untrained(name, config_of(name, **changes)).seen_before == ()


def test_phases_train_their_own_networks_only(tmp_path):
    config = config_of("endodac", (SHORT,), warmup_steps=1, **FLOW, **VIT)
    clips = open_clips(config, tmp_path)
    state = TrainingState(untrained("endodac", config), ())
    flow, depth = state.method.phases
    assert flow.trained == ("flow",) and depth.trained == ("depth", "pose", "appearance")
    held = [{id(p) for group in phase.optimizer.param_groups for p in group["params"]} for phase in (flow, depth)]
    assert flow.optimizer is not depth.optimizer and not held[0] & held[1]
    assert (flow.base_rate, depth.base_rate) == (config.flow_learning_rate, config.learning_rate)
    for phase in (flow, depth):
        batch = clips.training.batch(0, 2)
        state.method.networks.zero_grad()
        phase.losses(batch)["total"].backward()
        assert {name for name, network in state.method.networks.items() if any(p.grad is not None for p in network.parameters())} == set(
            phase.trained
        )
    before = {name: p.detach().clone() for name, p in state.method.networks["depth"].named_parameters()}
    state.train_step(clips.training.batch(0, 2), epoch=0)
    assert moved(state, before) == {"lora_A", "lora_B", "residual_", "conv_depth"} - {"lora_A"}  # B is 0, so A has no gradient yet
    before = {name: p.detach().clone() for name, p in state.method.networks["depth"].named_parameters()}
    state.train_step(clips.training.batch(1, 2), epoch=0)
    assert moved(state, before) == {"lora_U", "lora_V", "residual_", "conv_depth"}


def moved(state, before):
    kinds = ("lora_A", "lora_B", "lora_U", "lora_V", "residual_", "conv_depth")
    changed = [name for name, p in state.method.networks["depth"].named_parameters() if not torch.equal(p, before[name])]
    return {next((kind for kind in kinds if kind in name), name) for name in changed}


def test_each_source_is_warped_through_the_lens_learned_from_it(tmp_path):
    config = config_of("endodac", (SHORT,), **FLOW, **VIT)
    batch = open_clips(config, tmp_path).training.batch(0, 2)
    method = untrained("endodac", config)
    torch.nn.init.normal_(method.networks["pose"].intrinsics_head.focal_length_conv.weight)
    method.depth_losses(batch)["photometric"].backward()
    first, second = (lens.rays for _, lens in method.poses(batch))
    assert not torch.equal(first, second)
    assert method.networks["pose"].intrinsics_head.focal_length_conv.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("name", METHODS)
def test_the_shipped_configs_build_and_name_their_method(name):
    text = (Path(__file__).parents[1] / "configs" / "train" / f"{name}.toml").read_text()
    table = tomllib.loads(text)
    assert table.pop("method") == name and f"depth.model={name}" in text
    build_config(trainings()[name].config, table, name)


def test_what_cannot_be_trained_is_refused(tmp_path):
    with pytest.raises(ReconError, match="no sources"):
        open_clips(config_of("af_sfm", ()), tmp_path)
    with pytest.raises(ReconError, match="size must be one of"):
        METHODS["endodac"](config_of("endodac", size="huge"))
    config = config_of("monodepth2", (SHORT,))
    clip = open_clips(config, tmp_path).training.clip(0, 0)
    with pytest.raises(ReconError, match="learn_intrinsics"):
        METHODS["monodepth2"](config).losses(dataclasses.replace(clip, cameras=(None,)))
