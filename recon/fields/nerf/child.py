"""The other end of `recon.fields.nerf.training`: trains a scene and renders views of it, in a process that does nothing else.

A line of JSON on standard output for every step that is worth telling; whatever nerfstudio prints goes to standard error.
"""

from __future__ import annotations

import json
import math
import os
import sys
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch

from recon.fields.nerf.settings import NerfSettings
from recon.fields.nerf.torchvision_operators import import_torchvision
from recon.io.atomic import read_json
from recon.io.depth import write_depth
from recon.io.images import write_png
from recon.types import ReconError

CHECKED_STEP = 20
"""The error is told here first, so that the rise from there can be."""
NUM_CHECKS = 20
MIN_ACCUMULATION = 0.5
"""Rays that end in the scene with less than this probability show no surface."""


def main(task: str) -> int:
    """Carry out a task file. A foreseen failure is one line with the exit code that it asks for."""
    tell = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    try:
        run(read_json(task), tell)
    except ReconError as error:
        print(json.dumps({"error": str(error), "exit_code": error.exit_code}), file=tell)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    return 0


def run(task: dict[str, Any], tell: TextIO) -> None:
    """Train what is missing of a scene and render what is missing of the views, as `recon.fields.nerf.training` writes the task."""
    import_torchvision()
    if task["threads"]:
        torch.set_num_threads(task["threads"])
    trainer = _trainer(task)
    _train(trainer, NerfSettings(**task["settings"]), tell)
    _render(trainer, task["views"], tell)


def _trainer(task: dict[str, Any]) -> Any:
    from recon.fields.nerf.method import trainer_config
    from recon.fields.nerf.trainer import latest_checkpoint, steps_done

    settings, folder = NerfSettings(**task["settings"]), Path(task["folder"])
    device, _, index = task["device"].partition(":")
    config = trainer_config(settings, device)
    config.data = config.pipeline.datamanager.data = Path(task["scene"])
    config.output_dir, config.experiment_name, config.timestamp = folder, "nerfstudio", "run"
    checkpoint = latest_checkpoint(config.get_checkpoint_dir())
    if checkpoint is not None:
        config.load_dir = config.get_checkpoint_dir()
        config.max_num_iterations = settings.num_steps - steps_done(checkpoint)
    torch.manual_seed(settings.seed)
    trainer = config.setup(local_rank=int(index or 0), world_size=1)
    trainer.setup()
    return trainer


def _train(trainer: Any, settings: NerfSettings, tell: TextIO) -> None:
    parent, every = os.getppid(), max(1, settings.num_steps // NUM_CHECKS)

    def after_step(done: int, terms: dict[str, float]) -> None:
        if os.getppid() != parent:
            raise SystemExit(1)  # nobody waits for the rest, and the next call may be training already
        line: dict[str, Any] = {"step": done, "loss": sum(terms.values())}
        if done == CHECKED_STEP or done % every == 0 or done == settings.num_steps:
            line |= {"psnr": tissue_psnr(trainer.pipeline), "terms": terms}
        print(json.dumps(line), file=tell)

    trainer.after_step = after_step
    if trainer.config.max_num_iterations > 0:
        trainer.train()


def tissue_psnr(pipeline: Any) -> float:
    """In dB, over pixels of tissue in the frames that judge, the same ones every time."""
    pipeline.eval()
    with torch.no_grad():
        rays, batch = pipeline.datamanager.next_eval(0)
        error = float(((pipeline.model(rays)["rgb"] - batch["image"]) ** 2).mean())
    pipeline.train()
    return -10 * math.log10(max(error, 1e-10))


def _render(trainer: Any, views: list[dict[str, Any]], tell: TextIO) -> None:
    from recon.fields.nerf.scene_parser import cameras_of

    manager = trainer.pipeline.datamanager
    trainer.pipeline.eval()
    for view in views:
        missing = [name for name in ("color", "depth") if view[name] and not Path(view[name]).exists()]
        if missing:
            camera = cameras_of(manager.scene, manager.box, [view["pose_of"]], [view["time_of"]])
            torch.manual_seed(0)
            outputs = trainer.pipeline.model.get_outputs_for_camera(camera.to(trainer.device))
            found = {name: outputs[name].cpu().numpy() for name in ("rgb", "expected_depth", "accumulation")}
            if "color" in missing:
                write_png(view["color"], np.clip(np.rint(255 * found["rgb"]), 0, 255).astype(np.uint8))
            if "depth" in missing:
                is_surface = found["accumulation"][..., 0] >= MIN_ACCUMULATION
                depth = np.where(is_surface, manager.box.depth_to_world(found["expected_depth"][..., 0]), 0.0)
                write_depth(view["depth"], depth.astype(np.float32))
        print(json.dumps({"rendered": view["time_of"]}), file=tell)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
