"""Gaussians that move: their start, their training, what comes out of it, and bad input."""

from __future__ import annotations

from dataclasses import replace

import moving_sheet
import numpy as np
import pytest
import torch

from recon.eval.image import psnr
from recon.fields.scene import read_scene
from recon.fields.splats.density import Demand, split_and_prune
from recon.fields.splats.hexplane import HexPlane
from recon.fields.splats.initialise import make_model, start_from_scene
from recon.fields.splats.model import model_from_state
from recon.fields.splats.surface import carry, draw, reference_surface
from recon.fields.splats.time_basis import TimeBasis, bumps, fit_motion
from recon.fields.splats.tracks import follow, reference_frame
from recon.fields.splats.training import CHECKPOINT, Recipe, Trainer
from recon.fields.splats.views import TrainingViews, filled_depth
from recon.image.filling import bridge, membrane
from recon.types import ReconError

NO_WATCH = lambda items, total, text: items  # noqa: E731
RECIPE = Recipe(num_steps=120, max_gaussians=1800, save_every=1000, split_every=50)


@pytest.fixture(scope="module")
def sheet(tmp_path_factory):
    return moving_sheet.write_sheet(tmp_path_factory.mktemp("sheet"))


def trained(scene, folder, recipe=RECIPE, deformation="time_basis", kind="gaussians", num=1500):
    torch.manual_seed(0)
    folder.mkdir(parents=True, exist_ok=True)
    filled = filled_depth(scene, folder / "filled.npy")

    def begin():
        return make_model(start_from_scene(scene, filled, num), scene, deformation, kind == "surfels")

    return Trainer(begin, TrainingViews(scene, filled, "cpu"), recipe, folder)


@pytest.fixture(scope="module")
def fitted(sheet, tmp_path_factory):
    return trained(sheet, tmp_path_factory.mktemp("fit")).run(NO_WATCH)


def held_out_errors(model, scene) -> tuple[float, float]:
    """Mean PSNR on tissue and mean relative depth error there, of the held-out frames."""
    values, errors = [], []
    for position in scene.held_out:
        frame = scene.frames[position]
        drawn = draw(model, scene, frame.T_world_camera, frame.time, scene.camera)
        tissue = scene.tissue[position]
        values.append(psnr(drawn.color, scene.images[position] / 255, tissue))
        errors.append(np.abs(drawn.depth[tissue] / scene.depth[position][tissue] - 1).mean())
    return float(np.mean(values)), float(np.mean(errors))


def test_a_membrane_over_a_hole_is_harmonic():
    y, x = np.mgrid[:40, :50].astype(np.float32)
    surface = 3 + 0.2 * x - 0.1 * y + 0.01 * x * y
    known = ~((x > 10) & (x < 30) & (y > 12) & (y < 25))
    assert np.abs(membrane(surface, known) - surface).max() < 0.05
    assert (membrane(surface, np.zeros_like(known)) == 0).all()


def test_a_bridge_keeps_slopes_better_than_a_membrane_and_stays_in_range():
    y, x = np.mgrid[:40, :60].astype(np.float32)
    dome = 60 - 0.01 * ((x - 30) ** 2 + (y - 20) ** 2)
    known = ~((np.abs(x - 30) < 9) & (np.abs(y - 20) < 7))
    errors = [np.abs(fill(dome, known) - dome)[~known].mean() for fill in (membrane, bridge)]
    assert errors[1] < 0.7 * errors[0]
    noisy = dome + np.random.default_rng(0).normal(0, 0.3, dome.shape).astype(np.float32)
    bridged = bridge(noisy, known)
    rim = noisy[known]
    assert bridged.min() > rim.min() - np.ptp(rim) and bridged.max() < rim.max() + np.ptp(rim)
    assert (bridged[known] == noisy[known]).all()
    assert (bridge(dome, np.zeros_like(known)) == 0).all()


def test_motion_in_the_span_of_the_bumps_is_found_from_a_part_of_the_times():
    times = torch.linspace(0, 1, 30)
    coefficients = torch.randn(20, 8, 3, generator=torch.Generator().manual_seed(0))
    centres = torch.randn(20, 1, 3, generator=torch.Generator().manual_seed(1))
    tracks = centres + torch.einsum("tb,nbc->ntc", bumps(times, 8), coefficients)
    weights = (torch.rand(20, 30, generator=torch.Generator().manual_seed(2)) > 0.3).float()
    means, motion = fit_motion(times, tracks, weights, 8, ridge=1e-6)
    found = means[:, None] + torch.einsum("tb,nbc->ntc", bumps(times, 8), motion)
    assert (found - tracks).abs().max() < 0.05


def test_a_gap_in_time_is_bridged_smoothly():
    times = torch.linspace(0, 1, 40)
    tracks = torch.stack([times, times**2, 0 * times], dim=1)[None]
    weights = torch.ones(1, 40)
    weights[:, 15:22] = 0
    means, motion = fit_motion(times, tracks, weights, 14)
    found = means[:, None] + torch.einsum("tb,nbc->ntc", bumps(times, 14), motion)
    assert (found - tracks)[:, 15:22].abs().max() < 0.05


def test_places_are_followed_where_the_sheet_goes(sheet, tmp_path):
    tracks = follow(sheet, filled_depth(sheet, tmp_path / "filled.npy"))
    reference = sheet.frames[tracks.reference].time
    for k, position in enumerate(sheet.kept):
        moved = moving_sheet.offset(sheet.frames[position].time) - moving_sheet.offset(reference)
        inner = tracks.is_measured[k]
        error = np.linalg.norm(tracks.positions[k] - tracks.positions[sheet.kept.index(tracks.reference)] - moved, axis=-1)[inner]
        assert np.median(error) < 0.3, position


@pytest.mark.parametrize(("deformation", "least"), [("time_basis", 30.0), ("hexplane", 28.0)])
def test_frames_that_were_held_out_are_drawn(sheet, tmp_path, deformation, least):
    model = trained(sheet, tmp_path, replace(RECIPE, num_steps=250), deformation).run(NO_WATCH)
    value, depth_error = held_out_errors(model, sheet)
    assert value > least and depth_error < 0.01


def test_without_motion_it_is_much_worse(sheet, fitted, tmp_path):
    static = trained(sheet, tmp_path, deformation="static").run(NO_WATCH)
    assert held_out_errors(static, sheet)[0] < held_out_errors(fitted, sheet)[0] - 6


def test_surfels_face_the_sheet(sheet, tmp_path):
    model = trained(sheet, tmp_path, kind="surfels").run(NO_WATCH)
    assert held_out_errors(model, sheet)[0] > 28
    assert model.normals().detach()[:, 2].abs().median() > 0.95
    assert (model.scales().min(dim=1).values < 0.01 * model.scales().max(dim=1).values).all()


def test_the_unit_of_the_scene_does_not_matter(sheet, tmp_path):
    """A power of two changes no digit, so everything must come out the same but for the order in which threads add. By metres the
    last digit differs, on which hangs which way Adam takes a step where nothing pulls: a scene this small then ends a tenth of a dB
    aside, whatever the factor."""
    recipe = replace(RECIPE, split_until=0.0)
    mm = held_out_errors(trained(sheet, tmp_path / "mm", recipe).run(NO_WATCH), sheet)
    for units_per_mm, decibels in ((2.0**-10, 0.01), (1e-3, 0.3)):
        other = moving_sheet.write_sheet(tmp_path / f"scene{units_per_mm}", units_per_mm)
        same = held_out_errors(trained(other, tmp_path / f"fit{units_per_mm}", recipe).run(NO_WATCH), other)
        assert abs(mm[0] - same[0]) < decibels and abs(mm[1] - same[1]) < 0.01


def test_depth_of_unknown_scale_still_gives_shape(tmp_path):
    scene = moving_sheet.write_sheet(tmp_path / "scene", depth_kind="untrusted")
    trainer = trained(scene, tmp_path / "fit")
    trainer.run(NO_WATCH)
    assert "shape" in trainer.last_terms and "depth" not in trainer.last_terms
    assert held_out_errors(trainer.model, scene)[0] > 28


def test_the_surface_is_where_the_sheet_is_and_moves_with_it(sheet, fitted):
    position = reference_frame(sheet)
    time = sheet.frames[position].time
    mesh = reference_surface(fitted, sheet, position, False)
    plane = moving_sheet.MEAN_DEPTH + moving_sheet.offset(time)[2]
    assert np.abs(mesh.vertices[:, 2] - plane).mean() < 0.3
    assert mesh.observations.max() <= len(sheet.kept) and (mesh.confidence[mesh.observations == 0] == 0).all()
    later = [0.0, 0.25, 0.8]
    middle = np.linalg.norm(mesh.vertices[:, :2], axis=1) < 15
    for t, points in zip(later, carry(mesh.vertices, fitted, sheet, time, later), strict=True):
        moved = moving_sheet.offset(t) - moving_sheet.offset(time)
        error = np.linalg.norm(points - mesh.vertices - moved, axis=1)[middle]
        assert error.mean() < 1.0


def test_what_was_never_seen_stays_a_hole_unless_asked(sheet, tmp_path):
    model = trained(sheet, tmp_path, replace(RECIPE, num_steps=10)).run(NO_WATCH)
    with torch.no_grad():
        inside = model.means[:, :2].norm(dim=1) < 0.08
        model.is_seen[inside] = False
    position = reference_frame(sheet)
    open_mesh, closed = (reference_surface(model, sheet, position, fills) for fills in (False, True))
    assert len(open_mesh.vertices) < len(closed.vertices) - 50
    assert len(closed.vertices) > 0.9 * moving_sheet.WIDTH * moving_sheet.HEIGHT


def test_a_still_camera_may_stand_anywhere(sheet, tmp_path):
    """Points and normals are the world's: turned with the camera, they are turned and nothing else."""
    T = np.array([[0.0, 0.0, 1.0, 5.0], [0.0, 1.0, 0.0, -3.0], [-1.0, 0.0, 0.0, 2.0], [0.0, 0.0, 0.0, 1.0]])
    turned = replace(sheet, frames=tuple(replace(frame, T_world_camera=T) for frame in sheet.frames))
    filled = filled_depth(sheet, tmp_path / "filled.npy")
    a, b = (start_from_scene(scene, filled, 500) for scene in (sheet, turned))
    assert np.allclose(a.points @ T[:3, :3].T + T[:3, 3] / sheet.median_depth, b.points, atol=1e-4)
    assert np.allclose(a.normals @ T[:3, :3].T, b.normals, atol=1e-3)
    assert np.allclose(a.spacing, b.spacing, rtol=1e-4)


def test_a_killed_training_ends_like_an_unbroken_one(sheet, tmp_path):
    recipe = replace(RECIPE, num_steps=24, save_every=10, split_every=8)
    whole = trained(sheet, tmp_path / "whole", recipe).run(NO_WATCH)
    broken = trained(sheet, tmp_path / "broken", recipe)
    for _ in range(13):
        broken._one_step()
        if broken.step == 10:
            broken.save()
    again = trained(sheet, tmp_path / "broken", recipe)
    assert again.step == 10
    resumed = again.run(NO_WATCH)
    for (name, a), (_, b) in zip(whole.state_dict().items(), resumed.state_dict().items(), strict=True):
        # Places in memory decide in which order sums of a few numbers run.
        assert torch.allclose(a.float(), b.float(), atol=1e-5), name


@pytest.mark.parametrize("deformation", ["time_basis", "hexplane"])
def test_a_checkpoint_holds_everything_deformation_included(sheet, tmp_path, deformation):
    trainer = trained(sheet, tmp_path, replace(RECIPE, num_steps=3), deformation)
    model = trainer.run(NO_WATCH)
    state = torch.load(tmp_path / CHECKPOINT, weights_only=True)
    back = model_from_state(state["model"], state["are_surfels"])
    for time in (0.1, 0.7):
        a, b = model.at(time), back.at(time)
        assert torch.allclose(a.means, b.means, atol=1e-6) and torch.allclose(a.features, b.features, atol=1e-6)


def test_splitting_and_dropping_keep_rows_together(sheet, tmp_path):
    trainer = trained(sheet, tmp_path, num=400)
    trainer._one_step()
    model, optimizer = trainer.model, trainer.optimizer
    with torch.no_grad():
        model.opacity_logits[:10] = -9.0
        model.colors[:, 0] = torch.arange(len(model)).float()
    demand = Demand.none(len(model), model.means.device)
    demand.add(torch.zeros(len(model), 2), 10)
    demand.total[20:25], demand.count[20:25] = 1.0, 1.0
    moments = optimizer.state[model.colors]["exp_avg"].clone()
    before = len(model)
    rows = split_and_prune(model, optimizer, demand, 0.5, before)
    assert len(model) == before - 10 + 5 == len(rows) == len(model.deformation.motion)
    assert torch.equal(model.colors[:, 0], rows.float())
    assert torch.equal(optimizer.state[model.colors]["exp_avg"], moments[rows])
    trainer._restructured()
    trainer._one_step()


def test_a_loss_that_is_no_number_stops_with_step_and_term(sheet, tmp_path):
    trainer = trained(sheet, tmp_path, replace(RECIPE, save_every=2))
    for _ in range(2):
        trainer._one_step()
    trainer.save()
    good = (tmp_path / CHECKPOINT).read_bytes()
    with torch.no_grad():
        trainer.model.colors[5] = torch.nan
    with pytest.raises(ReconError, match=r"the loss 'color' is nan at step 2; the checkpoint before it is kept"):
        trainer.run(NO_WATCH)
    assert (tmp_path / CHECKPOINT).read_bytes() == good


def test_a_still_camera_without_depth_is_refused(tmp_path):
    scene = moving_sheet.write_sheet(tmp_path, depth_kind="none")
    with pytest.raises(ReconError, match="splats need depth to begin with"):
        start_from_scene(scene, scene.depth, 100)


def test_a_scene_that_is_not_there_or_damaged_is_told(sheet, tmp_path):
    with pytest.raises(ReconError, match=r"is no scene: it has no scene\.json"):
        read_scene(tmp_path)
    scene = moving_sheet.write_sheet(tmp_path, num_frames=5)
    np.save(scene.folder / "depth.npy", np.zeros((4, 3, 3), np.float32))
    with pytest.raises(ReconError, match="depth"):
        read_scene(scene.folder)


def test_both_deformations_begin_still_without_tracks():
    means = torch.rand(30, 3)
    for model in (TimeBasis(30, 5, 3), HexPlane(means, 5, 3, None)):
        deformed = model(means, 0.3)
        assert deformed.offsets.abs().max() == 0 and deformed.colors.abs().max() == 0


def test_no_term_of_the_loss_is_idle(sheet, tmp_path):
    trainer = trained(sheet, tmp_path)
    with torch.no_grad():
        trainer.model.deformation.motion += 0.01 * torch.randn_like(trainer.model.deformation.motion)
        trainer.model.deformation.color += 0.1
        trainer.model.opacity_logits -= 1.0
        trainer.model.is_seen[:] = False
    trainer._one_step()
    expected = {"color", "depth", "filled depth", "opacity", "rigidity", "color change", "unseen"}
    assert expected <= set(trainer.last_terms) and all(trainer.last_terms[name] > 0 for name in expected)
