"""The NeRF where nerfstudio is installed: `make test-nerf` makes an environment of its own for it and runs these."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from moving_scenes import CAMERA, SLOPE, wall_depth, wall_scene

import recon
from recon.fields.nerf.settings import NerfSettings
from recon.fields.nerf.training import Check, Render, train_and_render
from recon.fields.scene import Scene, read_scene
from recon.geometry.cameras import ray_grid
from recon.io.depth import read_depth
from recon.types import ReconError

if find_spec("nerfstudio") is None:
    pytest.skip("nerfstudio is not installed: pip install 'endorecon[nerf]'", allow_module_level=True)

from recon.fields.nerf.torchvision_operators import import_torchvision

import_torchvision()

SETTINGS = NerfSettings(
    num_steps=40, rays_per_step=256, num_proposal_samples=24, num_samples=12, log2_hashmap_size=12, num_levels=4, max_resolution=32,
    deformation_width=32, deformation_layers=2, steps_per_save=10,
)  # fmt: skip


def train(scene: Path, out: Path, settings: NerfSettings = SETTINGS) -> list[Check]:
    views = [Render(0, 0, out / "color.png", out / "depth.tiff")]
    return train_and_render(scene, out / "training", settings, views, "cpu", 1, lambda items, *_: items)


def manager_of(scene: Scene):
    from recon.fields.nerf.scene_data import SceneDataManagerConfig

    return SceneDataManagerConfig(data=scene.folder, rays_per_step=200).setup()


def test_rays_leave_nerfstudio_where_they_left_the_scene(tmp_path):
    """Pixel centres, axes, times, colours and depth: unprojecting a ray to its depth meets the wall in world coordinates."""
    scene = wall_scene(tmp_path, step_mm=4.0, held_out=(2,))
    manager = manager_of(scene)
    rays, batch = manager.next_train(3)
    z = batch["depth"][:, None] * rays.metadata["directions_norm"]
    world = manager.box.points_to_world((rays.origins + rays.directions * z).double().numpy())
    height = 60 + 4 * np.sin(np.pi * rays.times[:, 0].double().numpy())
    assert np.abs(world[:, 2] - height - SLOPE * world[:, 0]).max() < 1e-3
    for i in range(200):
        position = int(batch["frame"][i])
        frame = scene.frames[position]
        assert position != 2 and rays.times[i, 0] == pytest.approx(frame.time)
        offsets = (world[i] - frame.T_world_camera[:3, 3]) @ frame.T_world_camera[:3, :3]
        angles = ray_grid(CAMERA) @ (offsets / np.linalg.norm(offsets))
        row, column = np.unravel_index(np.argmax(angles), angles.shape)
        assert angles[row, column] > 1 - 1e-7
        assert scene.tissue[position, row, column]
        assert np.allclose(batch["image"][i], scene.images[position, row, column] / 255)
    told = manager.train_dataparser_outputs
    rotation, shift = told.dataparser_transform[:, :3].numpy(), told.dataparser_transform[:, 3].numpy()
    assert np.allclose((world @ rotation.T + shift) * told.dataparser_scale, manager.box.points_to_box(world), atol=1e-5)


def test_the_held_out_frames_judge_and_steps_repeat_themselves(tmp_path):
    manager = manager_of(wall_scene(tmp_path, held_out=(2, 4)))
    assert set(manager.next_eval(0)[1]["frame"].tolist()) == {2, 4}
    assert torch.equal(manager.next_train(5)[0].directions, manager.next_train(5)[0].directions)
    assert not torch.equal(manager.next_train(5)[1]["image"], manager.next_train(6)[1]["image"])
    assert len(manager.fixed_indices_eval_dataloader) == 2


def test_nerfstudio_finds_the_method_and_the_dataparser():
    from nerfstudio.plugins.registry import discover_methods
    from nerfstudio.plugins.registry_dataparser import discover_dataparsers

    from recon.fields.nerf.scene_parser import SceneParserConfig
    from recon.fields.nerf.trainer import EndoTrainerConfig

    assert type(discover_methods()[0]["endo-nerf"]).__name__ == EndoTrainerConfig.__name__
    assert type(discover_dataparsers()[0]["endo-scene"]).__name__ == SceneParserConfig.__name__


def test_no_weights_are_asked_for_and_nothing_moves_at_first(tmp_path):
    from recon.fields.nerf.method import trainer_config
    from recon.fields.nerf.model import NoLpips

    config = trainer_config(SETTINGS, "cpu")
    config.pipeline.datamanager.data = wall_scene(tmp_path).folder
    model = config.pipeline.setup(device="cpu").model
    assert isinstance(model.lpips, NoLpips)
    points = torch.rand(5, 3, 3)
    assert torch.all(model._displacement(points, torch.rand(5, 1)) == 0)


@pytest.mark.slow
def test_a_scene_is_learnt_in_its_unit(tmp_path):
    """The wall to 3 % of its depth after a few steps, in millimetres and in metres alike."""
    settings, psnr = replace(SETTINGS, num_steps=200, rays_per_step=512, num_samples=16, log2_hashmap_size=14, max_resolution=64), {}
    for name, unit_mm in (("mm", 1.0), ("m", 1000.0)):
        scene = wall_scene(tmp_path / name / "scene", unit_mm=unit_mm)
        checks = train(scene.folder, tmp_path / name, settings)
        psnr[name] = checks[-1].psnr
        assert checks[-1].psnr > next(check for check in checks if check.step == 20).psnr + 3
        depth, truth = read_depth(tmp_path / name / "depth.tiff"), wall_depth(CAMERA, np.eye(4), 0.0, unit_mm)
        seen = scene.tissue[0]
        assert np.abs(depth / truth - 1)[seen].mean() < 0.03
    # Only rounding differs, which a training of so few steps blows up; a length that does not follow the unit costs 5 dB and more.
    assert psnr["mm"] == pytest.approx(psnr["m"], abs=0.6)


@pytest.mark.slow
def test_depth_that_nobody_vouches_for_still_gives_the_level_and_a_surface_everywhere(tmp_path):
    """Factors and shifts of single frames are free, their mean is not; and no ray of tissue goes through it."""
    scene = wall_scene(tmp_path / "scene", depth_kind="untrusted")
    train(scene.folder, tmp_path, replace(SETTINGS, num_steps=120))
    depth, truth = read_depth(tmp_path / "depth.tiff"), wall_depth(CAMERA, np.eye(4), 0.0)
    seen = scene.tissue[0]
    assert np.all(depth[seen] > 0)
    assert np.abs(depth / truth - 1)[seen].mean() < 0.08


@pytest.mark.slow
def test_a_killed_training_goes_on_to_the_same_weights(tmp_path):
    scene = wall_scene(tmp_path / "scene").folder
    train(scene, tmp_path / "whole")
    script = "import sys; from test_nerf_nerfstudio import *; train(Path(sys.argv[1]), Path(sys.argv[2]))"
    paths = os.pathsep.join([str(Path(recon.__file__).parents[1]), str(Path(__file__).parent)])
    parent = subprocess.Popen([sys.executable, "-c", script, str(scene), str(tmp_path / "killed")], env=os.environ | {"PYTHONPATH": paths})
    models = tmp_path / "killed/training/nerfstudio/endo-nerf/run/nerfstudio_models"
    while not any(models.glob("step-*.ckpt")):
        assert parent.poll() is None
        time.sleep(0.05)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    time.sleep(2)  # the orphan ends at its next step
    step = max(models.glob("step-*.ckpt")).stem
    checks = train(scene, tmp_path / "killed")
    assert step < max(models.glob("step-*.ckpt")).stem == "step-000000039"
    whole, broken = (
        torch.load(tmp_path / name / "training/nerfstudio/endo-nerf/run/nerfstudio_models/step-000000039.ckpt")
        for name in ("whole", "killed")
    )
    for name, value in whole["pipeline"].items():
        assert torch.equal(value, broken["pipeline"][name]), name
    assert np.array_equal(read_depth(tmp_path / "whole/depth.tiff"), read_depth(tmp_path / "killed/depth.tiff"))
    assert checks[-1].step == 40


class Payload:
    """What a foreign checkpoint might hold."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple:
        return Path.touch, (self.canary,)


@pytest.mark.slow
def test_a_checkpoint_with_code_in_it_is_refused_and_not_run(tmp_path):
    scene, settings = wall_scene(tmp_path / "scene").folder, replace(SETTINGS, num_steps=3)
    train(scene, tmp_path, settings)
    path = next((tmp_path / "training").rglob("step-*.ckpt"))
    torch.save({"step": 1, "sampler": Payload(tmp_path / "canary")}, path)
    with pytest.raises(ReconError, match=r"step-000000002.ckpt cannot be read as a checkpoint of this method .*: delete it"):
        train(scene, tmp_path, settings)
    assert not (tmp_path / "canary").exists()


@pytest.mark.slow
def test_a_loss_that_is_no_number_stops_with_its_step_and_term_and_keeps_the_checkpoint(tmp_path):
    folder = wall_scene(tmp_path / "scene").folder
    with pytest.raises(
        ReconError, match=r"stopped at step \d+: the (term \w+ of the loss became nan|weights \S+ are not finite).*learning rate"
    ) as failure:
        train(folder, tmp_path, replace(SETTINGS, learning_rate=1e30))
    assert failure.value.exit_code == 1


@pytest.mark.slow
def test_ns_train_runs_the_method_on_a_scene(tmp_path):
    scene = read_scene(wall_scene(tmp_path / "scene").folder)
    words = ["endo-nerf", "--data", str(scene.folder), "--output-dir", str(tmp_path / "out"), "--max-num-iterations", "3"]
    words += ["--machine.device-type", "cpu"]
    environment = os.environ | {"PYTHONPATH": str(Path(recon.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-m", "recon.fields.nerf.ns_train", *words], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert list((tmp_path / "out").rglob("step-000000002.ckpt"))
