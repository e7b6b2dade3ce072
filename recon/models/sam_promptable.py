"""Whole SAM (Kirillov et al. 2023) or MedSAM (Ma et al. 2024) from local weights, and pictures as it sees them.

Weights are Hugging Face's folder (`config.json` says the size) or one file, theirs or the authors' own `.pth` of ViT-B. Nothing is
ever downloaded.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from recon.models.depth_anything import imagenet_normalised
from recon.models.sam import transformers_package
from recon.models.weights import check_kind, load_weights
from recon.types import ReconError

STORED_AS = ("model.safetensors", "pytorch_model.bin")
"""What a folder's weights are called."""
SHARED = ("prompt_encoder.shared_embedding.*", "shared_image_embedding.*")
"""Stored once or twice, by version: one matrix of random frequencies serves both places."""
ORIGINAL = {
    r"image_encoder\.": "vision_encoder.",
    r"(vision_encoder\.patch_embed\.)proj\.": r"\1projection.",
    r"vision_encoder\.blocks\.": "vision_encoder.layers.",
    r"(vision_encoder\.layers\.\d+\.)norm([12])\.": r"\1layer_norm\2.",
    r"(vision_encoder\.neck\.)0\.": r"\1conv1.",
    r"(vision_encoder\.neck\.)1\.": r"\1layer_norm1.",
    r"(vision_encoder\.neck\.)2\.": r"\1conv2.",
    r"(vision_encoder\.neck\.)3\.": r"\1layer_norm2.",
    r"prompt_encoder\.pe_layer\.positional_encoding_gaussian_matrix": "shared_image_embedding.positional_embedding",
    r"prompt_encoder\.point_embeddings\.": "prompt_encoder.point_embed.",
    r"prompt_encoder\.mask_downscaling\.0\.": "prompt_encoder.mask_embed.conv1.",
    r"prompt_encoder\.mask_downscaling\.1\.": "prompt_encoder.mask_embed.layer_norm1.",
    r"prompt_encoder\.mask_downscaling\.3\.": "prompt_encoder.mask_embed.conv2.",
    r"prompt_encoder\.mask_downscaling\.4\.": "prompt_encoder.mask_embed.layer_norm2.",
    r"prompt_encoder\.mask_downscaling\.6\.": "prompt_encoder.mask_embed.conv3.",
    r"mask_decoder\.output_upscaling\.0\.": "mask_decoder.upscale_conv1.",
    r"mask_decoder\.output_upscaling\.1\.": "mask_decoder.upscale_layer_norm.",
    r"mask_decoder\.output_upscaling\.3\.": "mask_decoder.upscale_conv2.",
    r"(mask_decoder\.transformer\.layers\.\d+\.)norm(\d)\.": r"\1layer_norm\2.",
    r"mask_decoder\.transformer\.norm_final_attn\.": "mask_decoder.transformer.layer_norm_final_attn.",
    r"(mask_decoder\.(?:output_hypernetworks_mlps\.\d+|iou_prediction_head)\.)layers\.0\.": r"\1proj_in.",
    r"(mask_decoder\.(?:output_hypernetworks_mlps\.\d+|iou_prediction_head)\.)layers\.1\.": r"\1layers.0.",
    r"(mask_decoder\.(?:output_hypernetworks_mlps\.\d+|iou_prediction_head)\.)layers\.2\.": r"\1proj_out.",
}
"""From how the authors' names begin to how those of `transformers` do, one rule after the other."""


def weights_file(weights: Path) -> Path:
    """The file of a local folder or file of weights. Raises ReconError where there is none, or a damaged one."""
    if weights.is_dir():
        stored = [weights / name for name in STORED_AS if (weights / name).is_file()]
        if not stored:
            raise ReconError(f"{weights} holds neither {' nor '.join(STORED_AS)}: give the folder of one model, as Hugging Face stores it")
        weights = stored[0]
    if not weights.is_file():
        raise ReconError(f"{weights} does not exist: give a folder or file with SAM's weights")
    check_kind(weights)
    return weights


def promptable_sam(weights: Path, config: object | None = None) -> nn.Module:
    """Whole SAM, frozen. `config` is transformers' SamConfig; without one, `config.json` of the folder, or ViT-B.

    Raises ReconError where the package or the weights are missing, or do not fit.
    """
    package = transformers_package()
    file = weights_file(weights)
    if config is None:
        described = weights / "config.json"
        config = package.SamConfig.from_json_file(described) if described.is_file() else package.SamConfig()
    model = package.SamModel(config)
    load_weights(model, file, whole_names, may_miss=SHARED)
    return model.eval().requires_grad_(False)


def whole_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The authors' state dict of all of SAM under the names of `transformers`; theirs as it is."""
    if not any(name.startswith("image_encoder.") for name in state):
        return dict(state)
    renamed = {}
    for name, value in state.items():
        for pattern, replacement in ORIGINAL.items():
            name = re.sub(f"^{pattern}", replacement, name)
        renamed[name] = value
    return renamed


def as_sam_sees(image: UInt8[np.ndarray, "h w 3"], side_px: int) -> tuple[Float[Tensor, "1 3 s s"], tuple[int, int]]:
    """An RGB picture in the upper left of a square, and its (width, height) there."""
    height, width = image.shape[:2]
    scale = side_px / max(height, width)
    size = round(width * scale), round(height * scale)
    square = torch.zeros(1, 3, side_px, side_px)
    square[..., : size[1], : size[0]] = imagenet_normalised(_resized(image, size))
    return square, size


def as_medsam_sees(image: UInt8[np.ndarray, "h w 3"], side_px: int) -> tuple[Float[Tensor, "1 3 s s"], tuple[int, int]]:
    """An RGB picture stretched to a square and to [0, 1] from its darkest to its brightest value, as MedSAM was trained."""
    square = _resized(image, (side_px, side_px))
    return (square - square.min()) / (square.max() - square.min()).clamp(min=1e-8), (side_px, side_px)


def _resized(image: np.ndarray, size_px: tuple[int, int]) -> Float[Tensor, "1 3 h w"]:
    shown = cv2.resize(image, size_px, interpolation=cv2.INTER_LINEAR)
    return torch.from_numpy(shown).permute(2, 0, 1)[None].float() / 255.0
