"""What a depth network says by itself, beside a constant depth and the falloff of the lamp: the tables of its model card.

`network.py [MODEL ...]` prints them: one scale per view, pixels of the truth, no truth on the network's side but the lens.
Phantoms are of seeds that no training draws; recordings lie beside the checkout and are left out where they are not there.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch

from recon.data import open_sequence
from recon.data.phantom.order import order_case
from recon.data.phantom.randomize import random_view
from recon.data.phantom.variety import TRAINING_KINDS, training_scene
from recon.geometry.cameras import ray_grid, resize
from recon.image.scope import find_scope_mask
from recon.models import DepthEstimate, DepthModel, load_depth_model
from recon.types import Camera

SHARED = Path(__file__).parents[3] / "shared"
ANGLES_DEG = (0, 20, 40, 60, 90)
NUM_SCENES = 24
VIEWS_PER_SCENE = 2
NUM_ORDER_CASES = 200
PIXELS_PER_VIEW = 3000
"""Drawn for the figures over pixels, so that every view counts alike."""


class View(NamedTuple):
    """A picture with its truth; `z` is 0 where unknown, on any grid of the picture's aspect."""

    image: np.ndarray
    camera: Camera
    mask: np.ndarray
    z: np.ndarray


class Constant:
    """One depth everywhere."""

    def infer(self, image: np.ndarray, camera: Camera, mask: np.ndarray) -> DepthEstimate:
        return DepthEstimate(mask.astype(np.float32), mask.astype(np.float32))


@dataclass(frozen=True)
class Errors:
    """Of one network over the views of one set."""

    abs_rel: float
    """Mean over views."""
    delta: float
    """Share of pixels within a factor of 1.25."""
    by_angle: tuple[float | None, ...]
    """Mean over pixels whose rays lie between two of ANGLES_DEG; None where no lens looks."""
    certain_half: float
    """Error of the half of all pixels that the network is surer of, over the error of all."""
    over_said: float
    """Mean error of the log-depth over the one that sigma stands for, sigma / sqrt(2) of a Laplace density; above 1 it is too sure."""


def errors(model: DepthModel, views: Iterator[View]) -> Errors:
    rng = np.random.default_rng(0)
    means, relative, ratios, angles, sigmas = [], [], [], [], []
    for view in views:
        estimate = model.infer(view.image, view.camera, view.mask)
        height, width = view.z.shape
        depth, sigma = (cv2.resize(m, (width, height), interpolation=cv2.INTER_NEAREST) for m in (estimate.depth, estimate.sigma))
        known = (view.z > 0) & (depth > 0)
        if not known.any():
            continue
        ratio = view.z[known] / depth[known]
        scaled = np.median(ratio) / ratio
        means.append(np.abs(scaled - 1).mean())
        drawn = rng.choice(len(scaled), min(PIXELS_PER_VIEW, len(scaled)), replace=False)
        relative.append(np.abs(scaled - 1)[drawn])
        ratios.append(np.maximum(scaled, 1 / scaled)[drawn])
        angles.append(np.degrees(np.arccos(np.clip(ray_grid(resize(view.camera, width, height))[..., 2][known], -1, 1)))[drawn])
        sigmas.append(sigma[known][drawn])
    error, angle, sigma = np.concatenate(relative), np.concatenate(angles), np.concatenate(sigmas)
    bins = [(angle >= low) & (angle < high) for low, high in pairwise(ANGLES_DEG)]
    return Errors(
        float(np.mean(means)),
        float((np.concatenate(ratios) < 1.25).mean()),
        tuple(float(error[b].mean()) if b.mean() > 0.001 else None for b in bins),
        float(error[np.argsort(sigma, kind="stable")[: len(sigma) // 2]].mean() / error.mean()),
        float(np.log(np.concatenate(ratios)).mean() / (sigma.mean() / np.sqrt(2))),
    )


def phantom_views(kind: str) -> Iterator[View]:
    """Of fresh scenes of one kind of the training's randomisation."""
    for number in range(NUM_SCENES):
        scene = training_scene(kind, 3_000_000_000 + number)
        rng = np.random.default_rng([777, number])
        for _ in range(VIEWS_PER_SCENE):
            drawn = random_view(scene, rng, 224, 192)
            if drawn is not None:
                rendering, camera = drawn
                yield View(rendering.image, camera, rendering.mask, rendering.distance_mm * ray_grid(camera)[..., 2])


def recorded_views(source: Path, step: int) -> Iterator[View]:
    """Every so many frames of a recording with true depth."""
    sequence = open_sequence(source)
    pictures = [sequence.frames[index].image() for index in range(0, len(sequence.frames), max(len(sequence.frames) // 12, 1))]
    scope = np.ones(pictures[0].shape[:2], bool) if sequence.is_unrelated else find_scope_mask(np.stack(pictures))
    for index in range(0, len(sequence.frames), step):
        truth = sequence.depth_gt(index)
        camera = sequence.camera if sequence.frame_camera is None else sequence.frame_camera(index)
        yield View(sequence.frames[index].image(), camera, scope, truth.depth * truth.valid)


def nasal_errors(model: DepthModel, source: Path, step: int) -> float:
    """Mean relative error at the reference's sparse points, by the reader of the independent scoring programs."""
    sys.path.insert(0, str(SHARED / "checks"))
    import truth

    sequence = open_sequence(source)
    camera, poses = sequence.camera, truth.jhu_poses(source)
    numbers = [int(Path(frame.name).stem) for frame in sequence.frames]
    pictures = [sequence.frames[index].image() for index in range(0, len(numbers), max(len(numbers) // 12, 1))]
    scope = find_scope_mask(np.stack(pictures))
    points_of: dict[int, list[np.ndarray]] = {}
    for point, seen in zip(*truth.jhu_points(source), strict=True):
        for number in set(seen) & set(numbers):
            points_of.setdefault(numbers.index(number), []).append(point)
    means = []
    for index in sorted(set(points_of) & set(poses))[::step]:
        depth = model.infer(sequence.frames[index].image(), camera, scope).depth
        points = np.linalg.inv(poses[index]) @ np.c_[np.array(points_of[index]), np.ones(len(points_of[index]))].T
        x, y, z = points[:3, points[2] > 0]
        fx, fy, cx, cy = camera.params
        column = (fx * x / z + cx) * depth.shape[1] / camera.width_px
        row = (fy * y / z + cy) * depth.shape[0] / camera.height_px
        inside = (column >= 0) & (column < depth.shape[1] - 1) & (row >= 0) & (row < depth.shape[0] - 1)
        said, z = depth[row[inside].astype(int), column[inside].astype(int)], z[inside]
        if (said > 0).sum() >= 15:
            said, z = said[said > 0], z[said > 0]
            means.append(np.mean(np.abs(np.median(z / said) * said - z) / z))
    return float(np.mean(means))


def order_share(model: DepthModel) -> tuple[float, float]:
    """How often the nearer of two organs is said to be nearer, dark before bright and bright before dark."""
    right: dict[bool, list[bool]] = {True: [], False: []}
    for number in range(NUM_ORDER_CASES):
        dark_in_front = number % 2 == 0
        case = order_case(number // 2, dark_in_front)
        picture = case.rendering
        depth = model.infer(picture.image, case.camera, picture.mask).depth
        depth = cv2.resize(depth, picture.image.shape[1::-1], interpolation=cv2.INTER_NEAREST)
        cosine = ray_grid(case.camera)[..., 2]
        near, far = (np.median((depth / cosine)[part & (depth > 0)]) for part in (case.near, case.far))
        right[dark_in_front].append(bool(near < far))
    return float(np.mean(right[True])), float(np.mean(right[False]))


def figures(model: DepthModel) -> dict[str, float]:
    """What `limits.toml` holds against the shipped network."""
    drawn = [errors(model, phantom_views(kind)) for kind in TRAINING_KINDS]
    dark, bright = order_share(model)
    found = {
        "phantom_abs_rel": float(np.mean([e.abs_rel for e in drawn])),
        "phantom_certain_half": float(np.mean([e.certain_half for e in drawn])),
        "order_share": (dark + bright) / 2,
    }
    if (SHARED / "data").is_dir():
        colon = errors(model, recorded_views(SHARED / "data" / "c3vd_like" / "colon_a", 1))
        found |= {
            "colon_abs_rel": colon.abs_rel,
            "colon_certain_half": colon.certain_half,
            "servct_abs_rel": errors(model, recorded_views(SHARED / "data" / "servct_like", 1)).abs_rel,
            "nasal_a_abs_rel": nasal_errors(model, SHARED / "data" / "nasal" / "seq_a", 1),
            "nasal_b_abs_rel": nasal_errors(model, SHARED / "data" / "nasal" / "seq_b", 2),
        }
    return found


def line(name: str, set_name: str, found: Errors) -> str:
    by_angle = ["-" if value is None else f"{value:.3f}" for value in found.by_angle]
    cells = [set_name, name, f"{found.abs_rel:.3f}", f"{found.delta:.3f}", *by_angle, f"{found.certain_half:.2f}", f"{found.over_said:.2f}"]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", default=["student"])
    parser.add_argument("--weights", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    models: dict[str, DepthModel] = {"constant": Constant(), "falloff": load_depth_model("falloff")}
    models |= {name: load_depth_model(name, weights=arguments.weights) for name in arguments.models}
    angles = " | ".join(f"{low}-{high} deg" for low, high in pairwise(ANGLES_DEG))
    print(f"| set | network | Abs Rel | delta < 1.25 | {angles} | certain half | error / said |\n|{'---|' * (6 + len(ANGLES_DEG))}")
    recordings = {"colon_a": SHARED / "data" / "c3vd_like" / "colon_a", "servct_like": SHARED / "data" / "servct_like"}
    for set_name in (*TRAINING_KINDS, *(name for name, path in recordings.items() if path.exists())):
        for name, model in models.items():
            views = recorded_views(recordings[set_name], 4) if set_name in recordings else phantom_views(set_name)
            print(line(name, set_name, errors(model, views)), flush=True)
    for name, model in models.items():
        if (SHARED / "data").is_dir():
            a, b = (nasal_errors(model, SHARED / "data" / "nasal" / seq, step) for seq, step in (("seq_a", 1), ("seq_b", 4)))
            print(f"{name}: nasal seq_a {a:.3f}, seq_b {b:.3f}", flush=True)
        if name != "constant":
            print(
                "{}: the order of two organs is right in {:.3f} of cases with the dark one in front, {:.3f} of the reverse".format(
                    name, *order_share(model)
                ),
                flush=True,
            )


if __name__ == "__main__":
    main()
