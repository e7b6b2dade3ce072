"""A trained network of any kind as a teacher: what it says of the targets of a batch, as disparity."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from recon.models import DepthModel, load_depth_model, model_info
from recon.training.clips import ClipBatch
from recon.types import Camera, ReconError

NOMINAL_FOCAL = (0.82, 1.02)
"""Focal lengths over width and height that stand in for an unknown lens: SCARED's, as the endoscopic family takes them."""


def load_teacher(name: str, weights: Path | None, device: str) -> tuple[DepthModel, tuple[str, ...], str]:
    """A network of `recon models`, what it was trained on, and its weights' SHA-256. Raises ReconError as they do, naming `teacher`."""
    try:
        info = model_info(name)
        return load_depth_model(name, device, weights), info.seen(weights), info.checksum(weights)
    except ReconError as error:
        raise ReconError(f"teacher = {name!r} (its weights are given by teacher_path, here called depth.weights): {error}") from error


@torch.no_grad()
def teacher_disparity(teacher: DepthModel, clips: ClipBatch) -> tuple[Float[Tensor, "b h w"], Bool[Tensor, "b h w"]]:
    """Inverse z-depth of the targets, each up to a factor and, of affine-invariant networks, a shift; and where it is known.

    Every registered network gives z-depth, so its inverse is a disparity whatever the network speaks of itself. The teacher sees
    the colours as they are; what the student sees is jittered.
    """
    height, width = clips.color.shape[-2:]
    images = (clips.color[:, 0] * 255.0).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    found = []
    for image, mask, camera in zip(images, clips.mask[:, 0].cpu().numpy(), clips.cameras, strict=True):
        depth = teacher.infer(image, camera or _nominal(width, height), mask).depth
        inverse = np.divide(1.0, depth, out=np.zeros_like(depth), where=depth > 0)
        layers = torch.from_numpy(np.stack([inverse, depth > 0]).astype(np.float32))
        found.append(functional.interpolate(layers[None], (height, width), mode="bilinear"))
    disparity, known = torch.cat(found).to(clips.color.device).unbind(dim=1)
    return disparity, (known > 0.999) & clips.mask[:, 0]


def _nominal(width: int, height: int) -> Camera:
    focal = (NOMINAL_FOCAL[0] * width, NOMINAL_FOCAL[1] * height)
    return Camera("PINHOLE", width, height, (*focal, (width - 1) / 2, (height - 1) / 2))
