"""The NeRF as far as it needs no nerfstudio: the box and its inverse, the choice of rays, depth terms, the child's tale."""

from __future__ import annotations

import math
import stat
import sys
from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import pytest
import torch
from moving_scenes import wall_scene

from recon.fields.nerf import training
from recon.fields.nerf.deformation import Deformation, num_time_frequencies
from recon.fields.nerf.depth_terms import huber_depth_loss, mean_where_known, termination_loss
from recon.fields.nerf.normalisation import normalise
from recon.fields.nerf.ray_choice import TissueRays
from recon.fields.nerf.settings import NerfSettings
from recon.fields.nerf.training import Check, Render, train_and_render
from recon.geometry.surface import backproject
from recon.io.atomic import write_json
from recon.types import ReconError

SETTINGS = NerfSettings(num_steps=4)


def unwatched(items: Iterable[int], total: int, description: str) -> Iterable[int]:
    return items


# The box


def test_the_box_holds_all_tissue_and_gives_it_back(tmp_path):
    scene = wall_scene(tmp_path, step_mm=3.0)
    box = normalise(scene)
    assert box.length == pytest.approx(scene.median_depth)
    for position, frame in enumerate(scene.frames):
        world = backproject(scene.camera, scene.depth[position].astype(np.float64)).reshape(-1, 3) + frame.T_world_camera[:3, 3]
        inside = box.points_to_box(world[scene.tissue[position].ravel()])
        assert np.abs(inside).max() < box.half_side
        assert np.allclose(box.points_to_world(box.points_to_box(world)), world)
        depth = scene.depth[position][scene.tissue[position]] / box.length
        assert box.near < depth.min() and depth.max() < box.far
        assert np.allclose(box.depth_to_world(depth) / box.length, depth)


def test_a_pose_and_a_point_go_into_the_box_together(tmp_path):
    box = normalise(wall_scene(tmp_path, step_mm=3.0))
    T = np.eye(4)
    T[:3, :3] = np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])
    T[:3, 3] = (5, -2, 7)
    in_camera = np.array([1.0, 2, 50])
    world = T[:3, :3] @ in_camera + T[:3, 3]
    in_box = box.pose_to_box(T)
    assert np.allclose(in_box[:3, :3] @ (in_camera / box.length) + in_box[:3, 3], box.points_to_box(world))
    assert np.allclose(in_box[:3, :3], T[:3, :3])


@pytest.mark.parametrize("step_mm", (0.0, 3.0))
def test_the_box_does_not_know_the_unit(tmp_path, step_mm):
    """Nor does it depend on the spread of the cameras, which is nothing when one stands still."""
    mm, metres = (normalise(wall_scene(tmp_path / name, step_mm=step_mm, unit_mm=unit)) for name, unit in (("mm", 1.0), ("m", 1000.0)))
    assert mm.length == pytest.approx(1000 * metres.length, rel=1e-5)
    for name in ("half_side", "near", "far"):
        assert getattr(mm, name) == pytest.approx(getattr(metres, name), rel=1e-5)


def test_no_box_without_depth_or_without_frames(tmp_path):
    with pytest.raises(ReconError, match="no depth"):
        normalise(wall_scene(tmp_path / "blind", depth_kind="none"))
    with pytest.raises(ReconError, match="held out"):
        normalise(wall_scene(tmp_path / "held", num_frames=2, held_out=(0, 1)))


# The choice of rays


def test_places_are_looked_at_equally_often_and_only_where_tissue_is():
    random = np.random.default_rng(0)
    tissue = random.random((7, 4, 5)) < 0.5
    tissue[:, 0, 0], tissue[:, 1, 1] = False, False
    tissue[3, 1, 1] = True
    frame, row, column = TissueRays(tissue).draw(200_000, random).T
    assert tissue[frame, row, column].all()
    counts = np.zeros(tissue.shape)
    np.add.at(counts, (frame, row, column), 1)
    num_places = tissue.any(axis=0).sum()
    free = np.maximum(tissue.sum(axis=0), 1)
    expected = 200_000 / num_places * tissue / free  # a place once, however seldom it is free; then its frames alike
    assert np.all(np.abs(counts - expected) < 6 * np.sqrt(expected) + 1e-9)


def test_no_ray_where_masks_cover_everything():
    with pytest.raises(ReconError, match="cover all of the 3 frames"):
        TissueRays(np.zeros((3, 4, 5), bool))


# Deformation and depth


def test_the_scene_stands_still_before_training():
    torch.manual_seed(0)
    moved = Deformation(1.5, width=16, num_layers=2, num_frequencies=3)(torch.rand(10, 4, 3), torch.rand(10, 4, 1))
    assert moved.shape == (10, 4, 3)
    assert torch.all(moved == 0)


def test_the_deformation_can_learn_a_motion():
    torch.manual_seed(0)
    deformation = Deformation(1.0, width=32, num_layers=2, num_frequencies=3)
    optimizer = torch.optim.Adam(deformation.parameters(), 5e-3)
    positions, times = 2 * torch.rand(512, 3) - 1, torch.rand(512, 1)
    motion = torch.cat([0.1 * torch.sin(2 * math.pi * times), 0.05 * positions[:, :1], 0 * times], dim=-1)
    for _ in range(300):
        loss = ((deformation(positions, times) - motion) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.02 * float((motion**2).mean())


def test_the_fastest_wave_of_time_spans_eight_frames_at_least():
    assert [num_time_frequencies(n) for n in (2, 8, 16, 40, 64, 1000)] == [2, 2, 3, 4, 5, 8]
    for n in (16, 40, 64, 1000):
        periods = 2.0 ** (num_time_frequencies(n) - 2)
        assert 8 <= n / periods < 16


def samples(unit: float = 1.0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    edges = torch.linspace(0.5, 1.5, 4001, dtype=torch.float64)[None] * unit
    middles, lengths = (edges[:, 1:] + edges[:, :-1]) / 2, edges.diff(dim=1)
    return middles, lengths, torch.tensor([1.0], dtype=torch.float64) * unit


def test_the_termination_loss_is_the_entropy_of_the_depth_where_rays_end_like_it():
    middles, lengths, depth = samples()
    sigma = 0.02
    like_it = lengths * torch.exp(-0.5 * ((middles - depth) / sigma) ** 2) / (sigma * math.sqrt(2 * math.pi))
    loss = termination_loss(like_it, middles, lengths, depth, sigma)
    entropy = 0.5 * math.log(2 * math.pi * math.e * sigma**2) - math.log(float(lengths[0, 0]))
    assert float(loss) == pytest.approx(entropy, rel=0.02)  # the least weight that the logarithm sees is added
    for shift in (-0.01, 0.01, 0.05):
        assert float(termination_loss(torch.roll(like_it, int(shift * 4000), 1), middles, lengths, depth, sigma)) > float(loss) + 0.05


def test_depth_terms_do_not_know_the_unit_and_pass_over_what_is_unknown():
    losses = []
    for unit in (1.0, 1000.0):
        middles, lengths, depth = samples(unit)
        weights = torch.softmax(-(((middles / unit - 1.02) / 0.05) ** 2), dim=1)
        losses.append(float(termination_loss(weights, middles, lengths, depth, 0.02 * unit)))
        losses.append(float(huber_depth_loss(depth * 1.05, depth, 0.02 * unit)))
    assert losses[:2] == pytest.approx(losses[2:])
    unknown = torch.zeros(1, dtype=torch.float64)
    assert float(termination_loss(weights, middles, lengths, unknown, 20.0)) == 0
    assert float(huber_depth_loss(depth, unknown, 20.0)) == 0
    assert float(mean_where_known(torch.tensor([0.0, 4.0, 2.0]), torch.tensor([0.0, 1.0, 1.0]))) == 3
    assert float(mean_where_known(torch.zeros(2), torch.zeros(2))) == 0


# The other process


def test_without_nerfstudio_the_way_to_it_is_said(tmp_path, monkeypatch):
    scene = wall_scene(tmp_path / "scene")
    monkeypatch.setattr(training, "find_spec", lambda name: None)
    with pytest.raises(ReconError, match=r"nerfstudio and torchvision, which is not installed: pip install 'endorecon\[nerf\]'"):
        train_and_render(scene.folder, tmp_path / "training", SETTINGS, [], "cpu", 1, unwatched)


@pytest.fixture
def told(tmp_path, monkeypatch):
    """Let a shell script stand for the child; gives a function from its text to what comes of it, in the same folder each time."""
    monkeypatch.setattr(training, "find_spec", lambda name: object())
    scene = wall_scene(tmp_path / "scene").folder
    steps = []

    def run(script: str, settings: NerfSettings = SETTINGS, folder: str = "training") -> list[Check]:
        program = tmp_path / "python"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setattr(sys, "executable", str(program))
        steps.clear()

        def watch(items: Iterable[int], total: int, description: str) -> Iterable[int]:
            for item in items:
                steps.append(item)
                yield item

        return train_and_render(scene, tmp_path / folder, settings, [Render(0, 0, None, None)], "cpu", 1, watch)

    run.steps = steps
    return run


def line(step: int, psnr: float) -> str:
    return f"""echo '{{"step": {step}, "loss": 1.0, "psnr": {psnr}, "terms": {{"rgb_loss": 0.5}}}}'"""


def test_progress_and_checks_come_from_the_child_and_outlive_a_kill(told):
    with pytest.raises(ReconError, match=r"SIGKILL.*goes on from there") as failure:
        told(line(1, 12.5) + "\n" + line(2, 14.0) + "\nkill -9 $$")
    assert failure.value.exit_code == 1
    assert told.steps == [0, 1]
    checks = told(line(3, 15.0) + """\necho '{"step": 4, "loss": 0.5}'\necho '{"rendered": 0}'""")
    assert told.steps == [0, 1, 2, 3, 4]
    assert [(check.step, check.psnr) for check in checks] == [(1, 12.5), (2, 14.0), (3, 15.0)]
    assert checks[0].terms == {"rgb_loss": 0.5}


def test_what_the_child_foresaw_is_its_error_and_what_it_did_not_points_to_its_log(told, tmp_path):
    with pytest.raises(ReconError, match="term depth_loss of the loss became nan") as failure:
        told("""echo '{"error": "step 7: the term depth_loss of the loss became nan", "exit_code": 1}'\nexit 1""")
    assert failure.value.exit_code == 1
    with pytest.raises(ReconError, match=r"some library is broken.*nerfstudio.log"):
        told("echo some library is broken >&2\nexit 1")
    with pytest.raises(KeyboardInterrupt):
        told("exit 130")


def test_only_a_folder_of_ours_and_of_the_same_recipe_is_gone_on_with(told, tmp_path):
    told("exit 0")
    told("exit 0", replace(SETTINGS, steps_per_save=7))  # how often is no part of what comes out
    with pytest.raises(ReconError, match="another scene or of other settings"):
        told("exit 0", NerfSettings(num_steps=5))
    (tmp_path / "foreign/nerfstudio_models").mkdir(parents=True)
    (tmp_path / "foreign/config.yml").write_text("!!python/object/apply:os.system ['touch canary']")
    with pytest.raises(ReconError, match="did not write"):
        told("exit 0", folder="foreign")
    write_json(tmp_path / "foreign/made_by.json", {"program": "another"})
    with pytest.raises(ReconError, match="another scene"):
        told("exit 0", folder="foreign")


@pytest.mark.parametrize(
    "scene, message",
    (
        ({"num_frames": 1}, "1 frame to train on"),
        ({"num_frames": 3, "held_out": (0, 2)}, "1 frame to train on"),
        ({"depth_kind": "none"}, "no depth"),
    ),
)
def test_scenes_of_which_nothing_can_be_learnt_are_refused(tmp_path, monkeypatch, scene, message):
    monkeypatch.setattr(training, "find_spec", lambda name: object())
    folder = wall_scene(tmp_path / "scene", **scene).folder
    with pytest.raises(ReconError, match=message):
        train_and_render(folder, tmp_path / "training", SETTINGS, [], "cpu", 1, unwatched)
    assert not (tmp_path / "training").exists()


def test_a_scene_whose_masks_cover_everything_is_refused(tmp_path):
    folder = wall_scene(tmp_path / "scene", depth_kind="none", covered=True).folder
    with pytest.raises(ReconError, match=r"masks of .* cover all of every frame"):
        training.trainable_scene(folder)
