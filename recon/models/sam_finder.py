"""Instruments outlined by SAM or MedSAM around what the finder of metal finds: a better outline, and no instrument that it misses.

SAM is shown a box and points for each part, MedSAM, which learned from boxes alone, only the box.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import tee
from pathlib import Path

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from recon.models.metal_finder import MetalFinder
from recon.models.sam_promptable import as_medsam_sees, as_sam_sees, promptable_sam

NUM_POINTS = 3
"""Along a part, each where it is widest."""

MIN_SHARED = 0.5
"""Of a part; an outline that leaves out more has taken something else."""

MAX_GROWTH = 3.0
"""Of a part's area; a larger outline has taken tissue too."""


class SamFinder:
    """`recon.models.instruments.InstrumentFinder` around a promptable network. `config` is transformers' SamConfig of another size."""

    def __init__(self, weights: Path, device: str = "cpu", is_medsam: bool = False, config: object | None = None) -> None:
        self.model = promptable_sam(weights, config).to(device)
        self.device, self.is_medsam, self.side_px = device, is_medsam, self.model.config.vision_config.image_size

    def find(
        self,
        frames: Iterable[UInt8[np.ndarray, "h w 3"]],
        scope: Bool[np.ndarray, "h w"],
        samples: Iterable[UInt8[np.ndarray, "h w 3"]],
    ) -> Iterator[Bool[np.ndarray, "h w"]]:
        """True on instruments, a mask a frame, in order; see `InstrumentFinder.find`."""
        shown, looked_at = tee(frames)
        for image, found in zip(shown, MetalFinder().parts(looked_at, scope, samples), strict=True):
            yield self.outlined(image, [one.mask for one in found]) & scope

    def outlined(self, image: UInt8[np.ndarray, "h w 3"], parts: list[Bool[np.ndarray, "hs ws"]]) -> Bool[np.ndarray, "h w"]:
        """The outlines of parts that are roughly known, in any size of the picture's aspect; a part stays where its outline is absurd."""
        size = image.shape[1], image.shape[0]
        known = [cv2.resize(part.astype(np.float32), size, interpolation=cv2.INTER_LINEAR) >= 0.5 for part in parts]
        known = [part for part in known if part.any()]
        covered = np.zeros(image.shape[:2], dtype=bool)
        if known:
            for part, outline in zip(known, self.masks(image, known), strict=True):
                fits = (outline & part).sum() >= MIN_SHARED * part.sum() and outline.sum() <= MAX_GROWTH * part.sum()
                covered |= outline if fits else part
        return covered

    @torch.inference_mode()
    def masks(self, image: UInt8[np.ndarray, "h w 3"], parts: list[Bool[np.ndarray, "h w"]]) -> Bool[np.ndarray, "n h w"]:
        """What the network outlines for a prompt a part; no part is empty."""
        height, width = image.shape[:2]
        square, size = (as_medsam_sees if self.is_medsam else as_sam_sees)(image, self.side_px)
        scale = torch.tensor([size[0] / width, size[1] / height])
        boxes = torch.stack([box_around(part) for part in parts]) * scale.repeat(2)
        prompts = {"input_boxes": boxes[None].to(self.device)}
        if not self.is_medsam:
            points = torch.stack([points_in(part) for part in parts]) * scale
            labels = torch.ones(points.shape[:2], dtype=torch.long)
            prompts |= {"input_points": points[None].to(self.device), "input_labels": labels[None].to(self.device)}
        embedding = self.model.get_image_embeddings(square.to(self.device))
        logits = self.model(image_embeddings=embedding, multimask_output=False, **prompts).pred_masks[0].cpu()
        whole = torch.nn.functional.interpolate(logits, (self.side_px, self.side_px), mode="bilinear", align_corners=False)
        shown = whole[..., : size[1], : size[0]]
        return (torch.nn.functional.interpolate(shown, (height, width), mode="bilinear", align_corners=False)[:, 0] > 0).numpy()


def box_around(mask: Bool[np.ndarray, "h w"]) -> Float[Tensor, " 4"]:
    """Left, top, right, bottom, px, of a mask that is not empty; pixels are squares around their centres, so ends lie between them."""
    u, v = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    return torch.tensor([u[0], v[0], u[-1] + 1, v[-1] + 1], dtype=torch.float32)


def points_in(mask: Bool[np.ndarray, "h w"], num: int = NUM_POINTS) -> Float[Tensor, "n 2"]:
    """Points (u, v), px, well inside a mask that is not empty, one in each of `num` stretches along it."""
    v, u = np.nonzero(mask)
    places = np.stack([u, v], axis=1).astype(np.float64)
    # Outside the picture counts as outside the mask: a point at the very edge says little.
    depth = cv2.distanceTransform(np.pad(mask.astype(np.uint8), 1), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[1:-1, 1:-1][v, u]
    centred = places - places.mean(axis=0)
    along = centred @ np.linalg.eigh(centred.T @ centred)[1][:, -1]
    stretches = np.array_split(np.argsort(along, kind="stable"), num)
    chosen = [places[part[np.argmax(depth[part])]] if len(part) else places[np.argmax(depth)] for part in stretches]
    return torch.tensor(np.array(chosen), dtype=torch.float32) + 0.5
