"""Rays of tissue and what was seen along them: nerfstudio's data manager of a scene folder.

Pictures stay memory-mapped: a step reads the pixels that it draws.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.data.datamanagers.base_datamanager import DataManager, DataManagerConfig
from nerfstudio.data.dataparsers.base_dataparser import DataparserOutputs
from nerfstudio.data.datasets.base_dataset import InputDataset

from recon.fields.nerf.normalisation import normalise
from recon.fields.nerf.ray_choice import TissueRays
from recon.fields.nerf.scene_parser import SceneParserConfig, frames_of
from recon.fields.scene import Scene, read_scene

CHECK_SEED = 7
"""Of the pixels by which the error is watched, the same in every training."""


class SceneDataset(InputDataset):
    """Pictures from the scene's memory-mapped array."""

    def __init__(self, outputs: DataparserOutputs, scene: Scene, positions: list[int]) -> None:
        super().__init__(outputs)
        self.scene, self.positions = scene, positions

    def get_numpy_image(self, image_idx: int) -> np.ndarray:
        return np.array(self.scene.images[self.positions[image_idx]])


@dataclass
class SceneDataManagerConfig(DataManagerConfig):
    """Draws rays of tissue."""

    _target: type = field(default_factory=lambda: SceneDataManager)
    dataparser: SceneParserConfig = field(default_factory=SceneParserConfig)
    rays_per_step: int = 1024
    """Rays of one training step."""
    seed: int = 0
    """Of the choice of rays."""


class SceneDataManager(DataManager):
    """Rays and pixels of a scene. What a step draws depends on the seed and the step alone, so that a continued training goes on as if
    it had not been stopped. Depth comes in box units, 0 unknown."""

    def __init__(self, config: SceneDataManagerConfig, device: str = "cpu", **kwargs: Any) -> None:
        super().__init__()
        self.config, self.device = config, device
        if config.data is not None:
            config.dataparser.data = Path(config.data)
        parser = config.dataparser.setup()
        self.scene = read_scene(config.dataparser.data)
        self.box = normalise(self.scene)
        self.train_dataparser_outputs = parser.get_dataparser_outputs("train")
        self.trained, self.judging = frames_of(self.scene, True), frames_of(self.scene, False)
        self.train_dataset = SceneDataset(self.train_dataparser_outputs, self.scene, self.trained)
        self.eval_dataset = SceneDataset(parser.get_dataparser_outputs("val"), self.scene, self.judging)
        self.train_rays = TissueRays(np.asarray(self.scene.tissue[self.trained]))
        self.eval_rays = TissueRays(np.asarray(self.scene.tissue[self.judging]))

    def next_train(self, step: int) -> tuple[RayBundle, dict[str, torch.Tensor]]:
        pixels = self.train_rays.draw(self.config.rays_per_step, np.random.default_rng((self.config.seed, step)))
        return self._batch(self.train_dataset, pixels)

    def next_eval(self, step: int) -> tuple[RayBundle, dict[str, torch.Tensor]]:
        pixels = self.eval_rays.draw(self.get_eval_rays_per_batch(), np.random.default_rng(CHECK_SEED))
        return self._batch(self.eval_dataset, pixels)

    def next_eval_image(self, step: int) -> tuple[Cameras, dict[str, torch.Tensor]]:
        return self._image(step % len(self.judging))

    @property
    def fixed_indices_eval_dataloader(self) -> list[tuple[Cameras, dict[str, torch.Tensor]]]:
        """Every judging frame; nerfstudio asks for its length."""
        return [self._image(i) for i in range(len(self.judging))]

    def get_train_rays_per_batch(self) -> int:
        return self.config.rays_per_step

    def get_eval_rays_per_batch(self) -> int:
        return 4 * self.config.rays_per_step

    def get_datapath(self) -> Path:
        return self.config.dataparser.data

    def get_param_groups(self) -> dict[str, list[torch.nn.Parameter]]:
        return {}

    def _batch(self, dataset: SceneDataset, pixels: np.ndarray) -> tuple[RayBundle, dict[str, torch.Tensor]]:
        frame, row, column = pixels.T
        position = np.asarray(dataset.positions)[frame]
        order = np.argsort(position)  # memory-mapped files are read front to back
        frame, row, column, position = frame[order], row[order], column[order], position[order]
        color = torch.from_numpy(self.scene.images[position, row, column].astype(np.float32) / 255)
        depth = torch.from_numpy(self.scene.depth[position, row, column].astype(np.float32) / np.float32(self.box.length))
        coords = torch.from_numpy(np.stack([row, column], axis=-1).astype(np.float32) + 0.5)
        rays = dataset.cameras.generate_rays(camera_indices=torch.from_numpy(frame)[:, None], coords=coords)
        return rays.to(self.device), {"image": color.to(self.device), "depth": depth.to(self.device), "frame": torch.from_numpy(position)}

    def _image(self, i: int) -> tuple[Cameras, dict[str, torch.Tensor]]:
        position = self.judging[i]
        image = torch.from_numpy(np.array(self.scene.images[position])).float() / 255
        tissue = torch.from_numpy(np.array(self.scene.tissue[position]))
        return self.eval_dataset.cameras[i : i + 1].to(self.device), {"image": image.to(self.device), "tissue": tissue.to(self.device)}
