"""The student adapted to one recording: better on held-out frames and never worse in depth, or left as it was, with a reason."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from recon import cli
from recon.cli import job
from recon.data import open_sequence
from recon.geometry import se3
from recon.geometry.cameras import project, ray_grid
from recon.geometry.surface import with_lens
from recon.io.atomic import read_json, write_json
from recon.io.images import write_jpeg
from recon.io.masks import read_mask, write_mask
from recon.losses.exposure import match_exposure
from recon.models import load_depth_model
from recon.models.student import Student, StudentDepth, Window
from recon.models.weights import read_checkpoint, save_halved, training_facts
from recon.pipeline.config import build_config
from recon.sampling import spread
from recon.tracking.mapping import SparseMap
from recon.training import adaptation
from recon.training.adaptation import Evidence, Recipe, adapt, described
from recon.training.adaptation_losses import inlier_mean, predict, stack_views
from recon.training.adaptation_views import MIN_GROUPS, common_window, find_groups, frames_of, load_views
from recon.types import FrameSequence, ReconError
from stages import depth

SPEC = "phantom:tube?seed=33&frames=27&width=192&height=192&step_mm=1.2&noise=0"
POINTS_PER_FRAME = 60
UNIT = 0.1
"""Map units per millimetre: structure from motion knows no millimetres."""


def seen_points(sequence: FrameSequence, rng: np.random.Generator) -> SparseMap:
    """What structure from motion would find: points of the true surface, where frames see them, to a third of a pixel."""
    depths = [sequence.depth_gt(frame.index) for frame in sequence.frames]
    poses = sequence.trajectory_gt.T_world_camera
    rays = ray_grid(sequence.camera)
    world = []
    for truth, T in zip(depths, poses, strict=True):
        v, u = np.nonzero(truth.valid)
        chosen = rng.choice(len(v), POINTS_PER_FRAME, replace=False)
        direction = rays[v[chosen], u[chosen]]
        world.append(truth.depth[v[chosen], u[chosen], None] / direction[:, 2:] * direction @ T[:3, :3].T + T[:3, 3])
    xyz = np.concatenate(world)
    rows = [observed(sequence, truth, T, xyz, rng, frame) for frame, (truth, T) in enumerate(zip(depths, poses, strict=True))]
    obs_point, obs_frame, obs_px = (np.concatenate(part) for part in zip(*rows, strict=True))
    scaled = {i: np.block([[T[:3, :3], UNIT * T[:3, 3:]], [np.zeros((1, 3)), 1]]) for i, T in enumerate(poses)}
    return SparseMap(sequence.camera, scaled, UNIT * xyz, np.full(len(xyz), 0.3), obs_point, obs_frame, obs_px, np.arange(len(obs_point)))


def observed(sequence, truth, T, xyz, rng, frame) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    points = (xyz - T[:3, 3]) @ T[:3, :3]
    pixels, is_seen = project(sequence.camera, points)
    column, row = np.rint(pixels).astype(int).T
    height, width = truth.depth.shape
    is_seen &= (column >= 0) & (column < width) & (row >= 0) & (row < height)
    at = truth.depth[np.clip(row, 0, height - 1), np.clip(column, 0, width - 1)]
    found = np.flatnonzero(is_seen & (np.abs(points[:, 2] / np.maximum(at, 1e-3) - 1) < 0.02))
    return found, np.full(len(found), frame), pixels[found] + rng.normal(scale=0.3, size=(len(found), 2))


@pytest.fixture(scope="module")
def recording(tmp_path_factory) -> tuple[FrameSequence, Evidence]:
    folder, sequence = tmp_path_factory.mktemp("recording"), open_sequence(SPEC)
    for frame in sequence.frames:
        write_jpeg(folder / "images" / f"{frame.index:06d}.jpg", frame.image())
        write_mask(folder / "masks" / f"{frame.index:06d}.png", sequence.depth_gt(frame.index).valid)
    sparse = seen_points(sequence, np.random.default_rng(0))
    return sequence, Evidence([sparse], folder / "images", folder / "masks", folder / "masks", sequence.camera)


@pytest.fixture
def student() -> StudentDepth:
    return load_depth_model("student")


@pytest.fixture
def eager(monkeypatch):
    """Keeps whatever was learnt last, so that one step is enough to see what changed."""
    monkeypatch.setattr(adaptation._Judge, "is_better", lambda judge, score: True)


def abs_rel(model: StudentDepth, sequence: FrameSequence) -> float:
    errors = []
    for frame in sequence.frames[1::6]:
        truth = sequence.depth_gt(frame.index)
        estimate = model.infer(frame.image(), sequence.camera, truth.valid)
        known = truth.valid & (estimate.depth > 0)
        ratio = estimate.depth[known] / truth.depth[known]
        errors.append(np.abs(ratio / np.median(ratio) - 1).mean())
    return float(np.mean(errors))


def doubt(model: StudentDepth, sequence: FrameSequence) -> np.ndarray:
    truth = sequence.depth_gt(3)
    return model.infer(sequence.frames[3].image(), sequence.camera, truth.valid).sigma[truth.valid]


def weights_of(model: StudentDepth) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.network.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_held_out_frames_are_explained_better_and_depth_gets_no_worse(recording, student):
    sequence, evidence = recording
    before, sigma = abs_rel(student, sequence), doubt(student, sequence)
    found = adapt(student, evidence, Recipe(num_steps=6))
    assert found.reason is None and found.step == 6
    assert found.best.photometric < 0.98 * found.start.photometric
    assert found.best.points < found.start.points
    assert found.num_learnt + found.num_held_out <= len(sequence.frames) and found.num_held_out == 3
    assert abs_rel(student, sequence) < before
    change = np.abs(np.log(doubt(student, sequence) / sigma))
    assert np.median(change) < 0.1, "how unsure the network is was not learnt"


def test_the_same_recipe_gives_the_same_weights(recording, eager):
    def adapted() -> dict[str, torch.Tensor]:
        model = load_depth_model("student")
        adapt(model, recording[1], Recipe(num_steps=1))
        return weights_of(model)

    assert same(adapted(), adapted())
    groups = find_groups([recording[1].maps[0]])
    first, again, other = (next(adaptation._batches(groups, seed)) for seed in (0, 0, 1))
    assert first == again != other


def test_adapters_change_norms_and_linear_layers_alone_and_leave_no_trace(recording, student, eager):
    before = weights_of(student)
    assert adapt(student, recording[1], Recipe("adapters", num_steps=1)).reason is None
    after = weights_of(student)
    assert list(after) == list(Student().state_dict())
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    norms = {
        f"{name}.{kind}"
        for name, module in student.network.named_modules()
        if "Norm" in type(module).__name__
        for kind in ("weight", "bias")
    }
    linears = {f"{name}.weight" for name, module in student.network.named_modules() if type(module) is torch.nn.Linear}
    assert changed <= norms | linears and changed & norms and changed & linears
    assert not any("running" in name for name in changed)


@pytest.mark.parametrize("parts", ["all", "adapters"])
def test_poses_that_do_not_fit_leave_the_network_as_it_was(recording, student, parts):
    before, evidence = weights_of(student), recording[1]
    sparse = evidence.maps[0]
    order = np.random.default_rng(3).permutation(len(sparse.poses))
    shuffled = replace(sparse, poses={i: sparse.poses[int(order[i])] for i in sparse.poses})
    found = adapt(student, replace(evidence, maps=[shuffled]), Recipe(parts))
    assert "do not fit the pictures" in found.reason and found.step == 0
    assert same(before, weights_of(student))


def test_an_interruption_leaves_the_network_as_it_was(recording, student):
    def interrupted(steps, total, description):
        yield 1
        raise KeyboardInterrupt

    before = weights_of(student)
    with pytest.raises(KeyboardInterrupt):
        adapt(student, recording[1], Recipe("adapters"), interrupted)
    assert same(before, weights_of(student))


def test_a_still_camera_leaves_the_network_as_it_was(recording, student):
    before, evidence = weights_of(student), recording[1]
    sparse, frames = evidence.maps[0], range(27)
    point = np.flatnonzero(sparse.obs_frame == 0)
    still = replace(
        sparse,
        poses={i: np.eye(4) for i in frames},
        obs_point=np.tile(sparse.obs_point[point], 27),
        obs_frame=np.repeat(frames, len(point)),
        obs_px=np.tile(sparse.obs_px[point], (27, 1)),
        obs_feature=np.tile(point, 27),
    )
    assert "stands still" in adapt(student, replace(evidence, maps=[still]), Recipe()).reason
    assert same(before, weights_of(student))


def test_too_little_to_learn_from_is_said(recording, student):
    evidence = recording[1]
    assert "registered no frame" in adapt(student, replace(evidence, maps=[]), Recipe()).reason
    sparse = evidence.maps[0]
    few = replace(sparse, poses={i: sparse.poses[i] for i in range(20)})
    found = adapt(student, replace(evidence, maps=[few]), Recipe())
    assert (
        "20 frames are seen" in found.reason
        and f"fewer than {MIN_GROUPS}" in found.reason
        and described(found, Recipe())["adapted"] is False
    )


def test_the_best_is_better_by_a_margin_and_leaves_points_where_they_are():
    judge = object.__new__(adaptation._Judge)
    judge.start = judge.best = adaptation.Score(0.1, 0.05)
    assert judge.is_better(adaptation.Score(0.0994, 0.05))
    assert not judge.is_better(adaptation.Score(0.0996, 0.01)), "within the margin"
    assert not judge.is_better(adaptation.Score(0.09, 0.051)), "at the expense of the points"
    judge.best = adaptation.Score(0.08, 0.05)
    assert not judge.is_better(adaptation.Score(0.09, 0.05)), "worse than the best"


def test_partners_are_chosen_by_parallax_on_both_sides(recording):
    sparse = recording[1].maps[0]
    groups = find_groups([sparse])
    assert [group.target for group in groups] == sorted({group.target for group in groups}) and len(groups) >= 12
    inner = [group for group in groups if 3 <= group.target <= 22]
    assert all((group.sources[0] - group.target) * (group.sources[1] - group.target) < 0 for group in inner)
    slow = replace(sparse, poses={i: se3.exp(0.02 * se3.log(T)) for i, T in sparse.poses.items()})
    assert find_groups([slow]) == [], "a camera that hardly moves sees nothing from two sides"
    assert [group.target for group in spread(groups, 3)] == [groups[k].target for k in (0, len(groups) // 2, len(groups) - 1)]
    assert all({3, 4}.isdisjoint(group.frames) for group in find_groups([sparse], {3, 4}))


def test_views_show_the_window_of_all_tissue_with_its_lens_and_points(recording, tmp_path):
    """A round view in a black frame is learnt from as large as it is inferred; what projects where in the picture still does."""
    _, evidence = recording
    sparse, groups = evidence.maps[0], find_groups(evidence.maps)[4:6]
    column, row = np.meshgrid(np.arange(192), np.arange(160))
    for index in frames_of(groups):
        write_mask(tmp_path / f"{index:06d}.png", np.hypot(column - 110, row - 80) < 50 + index % 3)
    window = common_window(groups, tmp_path)
    assert window == Window(56, 27, 108, 105)
    views = load_views(groups, [sparse], evidence.images, tmp_path, tmp_path, window)
    assert set(views) == set(frames_of(groups))
    for index, view in views.items():
        assert view.tissue.mean() > 0.65 > 0.3 > read_mask(tmp_path / f"{index:06d}.png").mean()
        mine = sparse.obs_frame == index
        inside = (np.abs(sparse.obs_px[mine] - (109.5, 79.0)) <= (54, 52.5)).all(axis=1)
        mine = sparse.obs_point[mine][inside]
        points = (sparse.xyz[mine] - view.T_world_camera[:3, 3]) @ view.T_world_camera[:3, :3]
        away = project(view.camera, points)[0] - view.points_px
        assert len(view.points_px) == len(mine) > 20 and 0.1 < np.abs(away).mean() < 0.5, "the noise of a third of a pixel"


def test_distance_becomes_z_as_it_does_for_the_result(recording, student, tmp_path, monkeypatch):
    """The network is told another focal length than the map has: adaptation must see the depth that `scale` makes of `infer`'s."""
    sequence, evidence = recording
    monkeypatch.setattr(student, "in_bfloat16", False)
    told = sequence.camera
    refined_params = (1.3 * told.params[0], 1.3 * told.params[1], *told.params[2:])
    sparse = replace(evidence.maps[0], camera=replace(told, params=refined_params))
    group = find_groups([sparse])[5]
    for index in group.frames:
        write_mask(tmp_path / f"{index:06d}.png", np.ones((192, 192), bool))
    view = load_views([group], [sparse], evidence.images, tmp_path, tmp_path, Window(0, 0, 192, 192))[group.target]
    with torch.no_grad():
        learnt = predict(student.network, stack_views([view], told, "cpu")).z[0].numpy()
    emitted = student.infer(view.image, told, view.tissue).depth
    refined = with_lens(emitted, told, sparse.camera)

    def spread_of_ratio(z: np.ndarray) -> float:
        return float(np.log(learnt[view.tissue] / z[view.tissue]).std())

    assert spread_of_ratio(refined) < 1e-3 < 0.02 < spread_of_ratio(emitted)


def test_exposure_is_matched_where_it_changes_slowly():
    rng = np.random.default_rng(0)
    target = torch.from_numpy(0.3 + 0.1 * rng.random((1, 3, 48, 60))).float()
    lamp = torch.linspace(0.6, 1.5, 60)
    source = (target / lamp).requires_grad_()
    mask = torch.ones(1, 48, 60, dtype=torch.bool)
    matched = match_exposure(source, target, mask)
    assert (matched - target).abs().mean() < 0.02 < (source - target).abs().mean()
    texture = torch.from_numpy(rng.random((1, 3, 48, 60))).float()
    assert (match_exposure(texture, target, mask) - target).abs().mean() > 0.1, "texture is no exposure"
    matched.sum().backward()
    assert torch.allclose(source.grad, (matched / source).detach(), atol=1e-5), "the gain takes no gradient"


def test_the_factor_of_a_frame_is_a_mean_without_outliers():
    values = torch.tensor([[1.0, 1.1, 0.9, 1.05, 9.0, 77.0], [0.0, 0.0, 0.0, 0.0, 0.0, 0.0]], requires_grad=True)
    mask = torch.tensor([[True] * 5 + [False], [False] * 6])
    mean = inlier_mean(values, mask)
    assert mean.tolist() == pytest.approx([1.0125, 0.0])
    mean.sum().backward()
    assert values.grad[0].tolist() == pytest.approx([0.25] * 4 + [0.0, 0.0]) and values.grad.isfinite().all()


def test_weights_are_of_use_later(recording, student, tmp_path):
    sequence = recording[0]
    with torch.no_grad():
        student.network.head[1].bias += 0.1
    save_halved(student.network, tmp_path / "w.safetensors", {"method": "student", "trained_on": ["phantom"]})
    assert (tmp_path / "w.safetensors").stat().st_size < 8e6
    assert training_facts(tmp_path / "w.safetensors")["method"] == "student"
    assert read_checkpoint(tmp_path / "w.safetensors").keys() == student.network.state_dict().keys()
    again = load_depth_model("student", weights=tmp_path / "w.safetensors")
    image, mask = sequence.frames[0].image(), sequence.depth_gt(0).valid
    a, b = (model.infer(image, sequence.camera, mask).depth for model in (student, again))
    assert np.allclose(a, b, rtol=0.02)


def test_only_networks_that_know_the_lens_can_be_adapted():
    with pytest.raises(ReconError, match=r"\[depth\] adapt = true .*student.*found 'falloff'"):
        build_config(depth.Config, {"adapt": True, "model": "falloff"}, "[depth]")
    assert depth.STAGE.all_reads(depth.Config()) == ("frames", "camera", "masks")
    assert depth.STAGE.all_reads(depth.Config(adapt=True)) == ("frames", "camera", "masks", "structure")


def test_the_command_says_what_came_of_it_and_a_run_goes_on_from_there(capsys, tmp_path):
    spec, run = "phantom:tube?seed=1&frames=8&width=240&height=200", ("--out", str(tmp_path / "run"))
    assert cli.main(["adapt", spec, *run, "--set", "depth.adapt_steps=2"]) == 3, "the network stays as it was"
    out, err = capsys.readouterr()
    assert "stays as it was" in out and "fewer than 26" in out and "depth        done" in err
    assert out.splitlines()[-1] == f"goes on with recon run '{spec}' --out {run[1]} --set depth.adapt_steps=2 depth.adapt=true"
    words = ["run", spec, *run, "--set", "depth.adapt_steps=2", "depth.adapt=true", "--until", "trajectory"]
    assert cli.main(words) == 0
    err = capsys.readouterr().err
    assert err.count("reused") == 5 and "trajectory   done" in err
    [folder] = (tmp_path / "run" / "depth").iterdir()
    assert read_json(folder / "depth.json")["adapted"] is False
    assert read_json(folder / "adaptation.json")["reason"]
    assert cli.main(["plan", spec, *run]) == 0
    assert "structure" in capsys.readouterr().out


def test_the_command_to_go_on_repeats_what_says_how_to_read_the_recording(capsys, monkeypatch, tmp_path):
    """Without the lens, the masks and the settings, the run would begin anew."""
    write_json(tmp_path / "adaptation.json", {"adapted": False, "reason": "too short"})
    monkeypatch.setattr(job, "_made", lambda _: [SimpleNamespace(folder=tmp_path)])
    monkeypatch.setattr(job, "_job_from", lambda _: None)
    given = ["--camera", "lens.json", "--masks", "tools", "--dataset", "folder", "--config", "own.toml"]
    assert cli.main(["adapt", "video.mp4", "--out", "run", *given]) == 3
    again = "goes on with recon run video.mp4 --out run --dataset folder --camera lens.json --masks tools --config own.toml"
    assert capsys.readouterr().out.splitlines()[-1] == f"{again} --set depth.adapt=true"


def test_the_held_out_error_is_printed_before_and_after():
    scores = {"start": adaptation.Score(0.04, 0.1), "best": adaptation.Score(0.026, 0.03)}
    found = described(adaptation.Adaptation(None, 34, 6, 150, **scores), Recipe())
    lines = job._adaptation_lines(json.loads(json.dumps(found)), Path("run/adapted.safetensors"))
    assert lines[0] == "34 frames learnt from, 6 held out; step 150 of 150"
    assert lines[1:] == [
        "held-out photometric error 0.0400 before, 0.0260 after",
        "held-out points error 0.1000 before, 0.0300 after",
        "weights run/adapted.safetensors",
    ]


def test_a_killed_stage_does_not_adapt_twice(recording, tmp_path, monkeypatch):
    done = {"adapted": False}
    Path(tmp_path / "adaptation.json").write_text(json.dumps(done))
    monkeypatch.setattr(adaptation, "adapt", lambda *arguments: pytest.fail("it was done already"))
    assert depth._adapted({}, tmp_path, depth.Config(adapt=True)) is None
    Path(tmp_path / "adaptation.json").write_text(json.dumps({"adapted": True}))
    assert depth._adapted({}, tmp_path, depth.Config(adapt=True)) == tmp_path / "adapted.safetensors"
