"""Trainings of a minute or two: phantoms, small settings, and the depth error of what came of them."""

from __future__ import annotations

import csv

import numpy as np
import torch

from recon.data import open_sequence
from recon.training import trainings
from recon.training.methods import METHODS
from recon.training.methods.method import depth_at

TUBE = "phantom:tube?seed=3&frames=40&width=96&height=64&lens=pinhole&fov_deg=80&round_mask=false&noise=0"
SHORT = "phantom:tube?seed=3&frames=24&width=96&height=64"
# No ImageNet weights and only some dozen steps: pose has to keep up with depth (motion_factor), and the appearance flow, which
# could explain everything before the optical flow has learned to, is held nearly constant over the picture by a weight 100,000 times
# the published one: these tests are of depth. What appearance flow does with its published weight, test_af_sfm.py says.
TINY = {
    "width_px": 96, "height_px": 64, "batch_size": 2, "learning_rate": 2e-4, "motion_factor": 0.03, "num_threads": 1,
}  # fmt: skip
FLOW = {"flow_learning_rate": 5e-4, "appearance_smoothness_weight": 1000.0}
VIT = {"size": "tiny", "grid_rows": 5, "grid_columns": 7}


def config_of(name, sources=(TUBE,), **changes):
    return trainings()[name].config(sources=sources, **{**TINY, **changes})


def rows(folder, name):
    with (folder / f"{name}.csv").open() as file:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]


def abs_rel(method, source, clips):
    """Mean of |d - t| / t over the held-out targets, d scaled by the median ratio of each frame."""
    sequence = open_sequence(source)
    method.networks.eval()
    errors = []
    for place in range(len(clips)):
        clip = clips.clip(0, place)
        truth = sequence.depth_gt(int(clip.frame_indices[0, 0]))
        with torch.no_grad():
            depth = depth_at(method.disparities(clip.color[:, 0])[0], clip.color[:, 0])[0].numpy()
        found, true = depth[truth.valid], truth.depth[truth.valid]
        errors.append(np.mean(np.abs(found * np.median(true / found) - true) / true))
    return float(np.mean(errors))


def untrained(name, config):
    torch.manual_seed(config.seed)
    return METHODS[name](config)
