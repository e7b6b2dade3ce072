"""A scene folder of the pipeline as nerfstudio's dataparser reads it, under the name `endo-scene`.

Poses go into the box of `normalisation` and from OpenCV's axes to OpenGL's; nerfstudio counts pixels from their corner, so that the
principal point moves by half a pixel. Nerfstudio asks for dataparsers while its data managers are still being imported, so that
none may be imported here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nerfstudio.cameras.cameras import Cameras, CameraType
from nerfstudio.data.dataparsers.base_dataparser import DataParser, DataParserConfig, DataparserOutputs
from nerfstudio.data.scene_box import SceneBox
from nerfstudio.plugins.registry_dataparser import DataParserSpecification

from recon.fields.nerf.normalisation import Normalisation, normalise
from recon.fields.scene import Scene, read_scene


@dataclass
class SceneParserConfig(DataParserConfig):
    """Reads a scene folder."""

    _target: type = field(default_factory=lambda: SceneParser)
    data: Path = Path()
    """The folder that holds the scene, as the pipeline wrote it."""


@dataclass
class SceneParser(DataParser):
    """Splits: train is what is not held out; the rest, or all where nothing is held out, judges."""

    config: SceneParserConfig
    includes_time: bool = True

    def _generate_dataparser_outputs(self, split: str = "train", **kwargs: Any) -> DataparserOutputs:
        scene = read_scene(self.config.data)
        box = normalise(scene)
        positions = frames_of(scene, is_training=split == "train")
        half = box.half_side
        transform = torch.eye(4)[:3]
        transform[:, 3] = torch.from_numpy(-box.center)
        return DataparserOutputs(
            image_filenames=[self.config.data / f"{scene.frames[p].index:06d}" for p in positions],
            cameras=cameras_of(scene, box, positions, positions),
            scene_box=SceneBox(torch.tensor([[-half] * 3, [half] * 3], dtype=torch.float32)),
            metadata={
                "near": box.near,
                "far": box.far,
                "half_side": half,
                "num_frames": len(scene.frames),
                "is_trusted": scene.depth_kind == "trusted",
            },
            dataparser_transform=transform,
            dataparser_scale=1.0 / box.length,
        )


def frames_of(scene: Scene, is_training: bool) -> list[int]:
    """Positions of the frames to train on, or of those that judge: the held-out ones, or all where none is."""
    return scene.kept if is_training else scene.held_out or scene.kept


def cameras_of(scene: Scene, box: Normalisation, poses_of: list[int], times_of: list[int]) -> Cameras:
    """Nerfstudio's cameras at the poses of some frames and the times of others."""
    poses = np.stack([box.pose_to_box(scene.frames[p].T_world_camera)[:3] for p in poses_of])
    poses[:, :, 1:3] *= -1  # OpenGL's cameras look along -z, y up
    fx, fy, cx, cy = scene.camera.params
    return Cameras(
        camera_to_worlds=torch.from_numpy(poses).float(),
        fx=fx,
        fy=fy,
        cx=cx + 0.5,
        cy=cy + 0.5,
        width=scene.camera.width_px,
        height=scene.camera.height_px,
        camera_type=CameraType.PERSPECTIVE,
        times=torch.tensor([[scene.frames[p].time] for p in times_of], dtype=torch.float32),
    )


DATAPARSER = DataParserSpecification(config=SceneParserConfig(), description="A scene folder of the endorecon pipeline.")
