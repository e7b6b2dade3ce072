"""A picture cut into segments by SAM without any prompt (Kirillov et al. 2023): masks around a grid of points, the sure and stable
ones kept, small ones painted over large ones. Minutes a picture on a CPU.

Numbers are those of SAM's automatic generator. Weights are Hugging Face's (`model.safetensors` of facebook/sam-vit-base).
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from recon.models.sam_promptable import as_sam_sees, promptable_sam

POINTS_PER_SIDE = 32
POINTS_AT_ONCE = 64
MIN_CONFIDENCE = 0.88
"""Of SAM's own guess how well a mask overlaps the true one."""
MIN_STABILITY = 0.95
STABILITY_OFFSET = 1.0
"""Of the logit by which a mask is grown and shrunk to see how stable it is."""
MAX_OVERLAP = 0.7
"""Of the boxes of two masks (intersection over union); the less sure one goes."""
MAX_LABEL = 255


class SamSegmenter:
    """SAM as a function from pictures to labels. `config` is transformers' SamConfig of another size than ViT-B."""

    def __init__(self, weights: Path, device: str = "cpu", config: object | None = None) -> None:
        self.model = promptable_sam(weights, config).to(device)
        self.device, self.side_px = device, self.model.config.vision_config.image_size

    @torch.inference_mode()
    def __call__(self, image: UInt8[np.ndarray, "h w 3"]) -> Int[np.ndarray, "h w"]:
        """Labels of an RGB picture: 0 where SAM is sure of nothing, then one a segment, the largest first."""
        height, width = image.shape[:2]
        square, size = as_sam_sees(image, self.side_px)
        embedding = self.model.get_image_embeddings(square.to(self.device))
        masks, scores = [], []
        for points in point_grid(size).split(POINTS_AT_ONCE):
            found = self.model(image_embeddings=embedding, input_points=points[None, :, None].to(self.device), multimask_output=True)
            logits, confidence = found.pred_masks[0].flatten(0, 1).cpu(), found.iou_scores[0].flatten().cpu()
            sure = (confidence > MIN_CONFIDENCE) & (stability(logits) >= MIN_STABILITY)
            masks.append(logits[sure] > 0)
            scores.append(confidence[sure])
        kept = distinct(torch.cat(masks), torch.cat(scores))
        rows, columns = (max(round(side * kept.shape[-1] / self.side_px), 1) for side in (size[1], size[0]))
        small = painted(kept[:, :rows, :columns])
        return cv2.resize(small, (width, height), interpolation=cv2.INTER_NEAREST).astype(int)


def point_grid(size_px: tuple[int, int], per_side: int = POINTS_PER_SIDE) -> Float[Tensor, "n 2"]:
    """Points (u, v), px, spread evenly over (width, height)."""
    steps = (torch.arange(per_side) + 0.5) / per_side
    return torch.cartesian_prod(steps, steps).flip(1) * torch.tensor(size_px, dtype=torch.float32)


def stability(logits: Float[Tensor, "n h w"]) -> Float[Tensor, " n"]:
    """Area of each mask when it is shrunk, over its area when it is grown; 0 for empty ones."""
    shrunk, grown = ((logits > offset).flatten(1).sum(dim=1) for offset in (STABILITY_OFFSET, -STABILITY_OFFSET))
    return shrunk / grown.clamp(min=1)


def distinct(masks: Bool[Tensor, "n h w"], scores: Float[Tensor, " n"]) -> Bool[Tensor, "m h w"]:
    """The masks whose boxes are not nearly the box of a surer one, the surest first; empty ones go."""
    some = masks.flatten(1).any(dim=1)
    masks, order = masks[some], scores[some].argsort(descending=True, stable=True)
    boxes = _boxes(masks)
    kept: list[int] = []
    for index in order.tolist():
        if all(_overlap(boxes[index], boxes[other]) <= MAX_OVERLAP for other in kept):
            kept.append(index)
    return masks[kept]


def painted(masks: Bool[Tensor, "n h w"]) -> UInt8[np.ndarray, "h w"]:
    """Labels 1, 2, ... from the largest mask to the smallest, which lies on top; 0 elsewhere. Those beyond MAX_LABEL are left out."""
    labels = np.zeros(masks.shape[1:], dtype=np.uint8)
    areas = masks.flatten(1).sum(dim=1)
    for label, index in enumerate(areas.argsort(descending=True, stable=True).tolist()[:MAX_LABEL], start=1):
        labels[masks[index].numpy()] = label
    return labels


def _boxes(masks: Bool[Tensor, "n h w"]) -> Int[Tensor, "n 4"]:
    """Left, top, right, bottom (ends excluded) of masks that are not empty."""
    ends = []
    for taken in (masks.any(dim=1), masks.any(dim=2)):
        length = taken.shape[1]
        ends.append((taken.int().argmax(dim=1), length - taken.flip(1).int().argmax(dim=1)))
    (left, right), (top, bottom) = ends
    return torch.stack([left, top, right, bottom], dim=1)


def _overlap(a: Int[Tensor, " 4"], b: Int[Tensor, " 4"]) -> float:
    shared = (torch.minimum(a[2:], b[2:]) - torch.maximum(a[:2], b[:2])).clamp(min=0).prod()
    return float(shared / ((a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - shared))
