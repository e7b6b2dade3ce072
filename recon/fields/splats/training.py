"""Fit Gaussians to the kept frames of a scene: draw one frame, compare, step; now and then split, prune and save."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor, nn

from recon.fields.scene import Scene
from recon.fields.splats.density import Demand, split_and_prune
from recon.fields.splats.model import SplatModel, model_from_state
from recon.fields.splats.objective import Setting, Weights, terms
from recon.fields.splats.projection import Pinhole
from recon.fields.splats.rasterize import Backend, rasterize
from recon.fields.splats.views import TrainingView, TrainingViews
from recon.fusion.view import rays
from recon.geometry.torch_se3 import motion
from recon.io.atomic import atomic_path
from recon.types import ReconError

NUM_NEIGHBOURS = 6
CHECKPOINT = "checkpoint.pt"


@dataclass(frozen=True)
class Recipe:
    """How Gaussians are fitted; lengths in median depths."""

    num_steps: int = 1800
    max_gaussians: int = 50_000
    weights: Weights = field(default_factory=Weights)
    rates: tuple[tuple[str, float], ...] = (
        ("means", 1e-4),
        ("quaternions", 1e-3),
        ("log_scales", 3e-3),
        ("opacity_logits", 2e-2),
        ("colors", 2.5e-3),
        ("motion", 1e-4),
        ("color", 2.5e-3),
        ("planes", 2e-2),
        ("network", 2e-4),
        ("poses", 1e-4),
    )
    """Learning rates of Adam by parameter."""
    final_share: float = 0.03
    """Of the rates, reached exponentially at the last step."""
    split_every: int = 200
    split_until: float = 0.5
    """Share of the steps after which no Gaussian is split or dropped."""
    split_threshold: float = 4e-4
    refine_poses: bool = False
    save_every: int = 500
    backend: Backend = "auto"
    seed: int = 0


class Trainer:
    """A model on its way, with what a killed run needs to go on; `begin` makes one where no checkpoint lies in `folder`."""

    def __init__(self, begin: Callable[[], SplatModel], views: TrainingViews, recipe: Recipe, folder: Path) -> None:
        self.views, self.recipe, self.folder = views, recipe, folder
        self.camera = Pinhole.of(views.scene.camera)
        self.kept = views.scene.kept
        self.poses = nn.Parameter(torch.zeros(len(views.scene.frames), 6, device=views.device))
        self.step, self.order, self.last_terms = 0, [], {}
        self.generator = torch.Generator().manual_seed(recipe.seed)
        if (folder / CHECKPOINT).exists():
            self._resume()
        else:
            self._take(begin().to(views.device))

    def _take(self, model: SplatModel) -> None:
        self.model = model
        groups = [{"params": [parameter], "name": name} for name, parameter in model.per_gaussian().items() if parameter.numel()]
        groups += [{"params": parameters, "name": name} for name, parameters in model.deformation.shared().items()]
        if self.recipe.refine_poses:
            groups.append({"params": [self.poses], "name": "poses"})
        self.rates = dict(self.recipe.rates)
        self.optimizer = torch.optim.Adam(groups, lr=1e-3, eps=1e-15, fused=True)
        self._restructured()

    def _restructured(self) -> None:
        """What follows the rows of the model."""
        means = self.model.means.detach().cpu().numpy()
        distance, nearest = cKDTree(means).query(means, k=min(NUM_NEIGHBOURS + 1, len(means)))
        device = self.model.means.device
        neighbours = torch.from_numpy(nearest[:, 1:]).to(device)
        directions = torch.from_numpy(rays(self.views.scene.camera)).to(device)
        spacing = float(np.sqrt((distance[:, 1:] ** 2).mean()))
        self.setting = Setting(neighbours, max(spacing, 1e-6), directions, self.views.scene.depth_kind, self.recipe.weights)
        self.demand = Demand.none(len(means), device)

    def run(self, watch: Callable[[Iterable[int], int, str], Iterable[int]]) -> SplatModel:
        """Train to the last step. Raises ReconError (exit code 1) naming step and term when the loss is no longer finite."""
        left = range(self.step, self.recipe.num_steps)
        for _ in watch(left, len(left), "fitting splats"):
            self._one_step()
            if self.step % self.recipe.save_every == 0 or self.step == self.recipe.num_steps:
                self.save()
        return self.model

    def pose(self, position: int) -> Tensor:
        """T_camera_world of a view, refined where that is asked for; lengths in median depths."""
        T = self.views.view(position).T_camera_world
        if not self.recipe.refine_poses:
            return T
        twist = self.poses[position : position + 1]
        return motion(twist[:, :3], twist[:, 3:])[0] @ T

    def _one_step(self) -> None:
        position = self._next()
        view: TrainingView = self.views.view(position)
        share = self.step / self.recipe.num_steps
        for group in self.optimizer.param_groups:
            group["lr"] = self.rates[group["name"]] * self.recipe.final_share**share
        T_camera_world = self.pose(position)
        drawn = rasterize(self.model.at(view.time, self._extra(T_camera_world)), T_camera_world, self.camera, self.recipe.backend)
        losses = terms(drawn, view, self.model, self.setting, self.step)
        self._check(losses)
        self.optimizer.zero_grad(set_to_none=True)
        sum(losses.values()).backward()
        if self.poses.grad is not None:
            # One pose stands still, or model and poses drift away together from the trajectory that others use.
            self.poses.grad[self.kept[0]] = 0
        if self._splits():
            self.demand.add(drawn.tracked.grad.reshape(-1, 2), self.camera.width_px)
        self.optimizer.step()
        self.step += 1
        self.last_terms = {name: float(value.detach()) for name, value in losses.items()}
        if self._splits() and self.step % self.recipe.split_every == 0:
            split_and_prune(self.model, self.optimizer, self.demand, self.recipe.split_threshold, self.recipe.max_gaussians)
            self._restructured()

    def _extra(self, T_camera_world: Tensor) -> Tensor:
        """Features beside colour: whether a place was ever seen, and where surfels face, in camera axes."""
        seen = self.model.is_seen[:, None].float()
        if not self.model.are_surfels:
            return seen
        return torch.cat([seen, self.model.normals() @ T_camera_world[:3, :3].detach().T], dim=1)

    def _splits(self) -> bool:
        return self.step < self.recipe.split_until * self.recipe.num_steps

    def _next(self) -> int:
        """Every kept frame once, in random order, then again."""
        if not self.order:
            self.order = [self.kept[i] for i in torch.randperm(len(self.kept), generator=self.generator)]
        return self.order.pop()

    def _check(self, losses: dict[str, Tensor]) -> None:
        broken = [name for name, value in losses.items() if not torch.isfinite(value)]
        if not broken:
            return
        raise ReconError(
            f"fitting splats: the loss {broken[0]!r} is {float(losses[broken[0]].detach())} at step {self.step}; {self._saved()}. "
            "Look at the depth and the masks of the frames",
            exit_code=1,
        )

    def _saved(self) -> str:
        file = self.folder / CHECKPOINT
        return f"the checkpoint before it is kept in {file}" if file.exists() else "no checkpoint was saved before it"

    def refined_scene(self) -> Scene:
        """The scene with the poses that were fitted; a held-out frame takes the correction of the learned one nearest to it in time."""
        scene = self.views.scene
        if not self.recipe.refine_poses:
            return scene
        corrected, change = {}, {}
        for i in self.kept:
            with torch.no_grad():
                T = np.linalg.inv(self.pose(i).double().cpu().numpy())
            T[:3, 3] *= scene.median_depth
            corrected[i], change[i] = T, T @ np.linalg.inv(scene.frames[i].T_world_camera)
        for i in scene.held_out:
            nearest = min(self.kept, key=lambda k: abs(scene.frames[k].time - scene.frames[i].time))
            corrected[i] = change[nearest] @ scene.frames[i].T_world_camera
        return replace(scene, frames=tuple(replace(frame, T_world_camera=corrected[i]) for i, frame in enumerate(scene.frames)))

    def save(self) -> None:
        """Everything that going on needs, deformation and optimiser included.

        Raises ReconError (exit code 1) instead when a parameter is no longer finite: what was saved before stays.
        """
        for name, parameter in self.model.named_parameters():
            if not torch.isfinite(parameter).all():
                raise ReconError(f"fitting splats: {name} is no longer finite at step {self.step}; {self._saved()}", exit_code=1)
        state = {
            "model": self.model.state_dict(),
            "are_surfels": self.model.are_surfels,
            "optimizer": self.optimizer.state_dict(),
            "poses": self.poses.detach(),
            "step": self.step,
            "order": self.order,
            "generator": self.generator.get_state(),
            "demand": asdict(self.demand),
            "neighbours": self.setting.neighbours,
            "spacing": self.setting.spacing,
            "last_terms": self.last_terms,
            "median_depth": self.views.scene.median_depth,
            "unit": self.views.scene.unit,
        }
        with atomic_path(self.folder / CHECKPOINT) as part:
            torch.save(state, part)

    def _resume(self) -> None:
        state = torch.load(self.folder / CHECKPOINT, map_location=self.views.device, weights_only=True)
        with torch.no_grad():
            self.poses.copy_(state["poses"])
        self._take(model_from_state(state["model"], state["are_surfels"]).to(self.views.device))
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.order = state["step"], state["order"]
        self.generator.set_state(state["generator"].cpu())
        self.demand = Demand(**state["demand"])
        self.setting = replace(self.setting, neighbours=state["neighbours"], spacing=state["spacing"])
        self.last_terms = state["last_terms"]
