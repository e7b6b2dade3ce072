"""SAM's image encoder (Kirillov et al. 2023) with MedSAM's weights (Ma et al. 2024), as EndoUFM adapts it for training.

The encoder itself is that of the package `transformers` (the extra "foundation"), for it serves training alone. Its last blocks are
read as they are, without a norm; the layers behind them are left out. Files of SAM and MedSAM load, and Hugging Face's.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

from jaxtyping import Float
from torch import Tensor, nn

from recon.models.adapters import attach, train_adapters
from recon.models.dpt import resized
from recon.models.vit import PATCH_PX
from recon.models.weights import LoadedWeights, load_weights
from recon.types import ReconError

RANK = 4
NUM_ADAPTED = 3
"""Of the last blocks, those with RVLoRA."""
NUM_TAPPED = 4
"""Of the last blocks, those that are read."""
NOT_IN_SAM = ("*.lora_?",)
UNUSED = ("neck.*", "prompt_encoder.*", "mask_decoder.*", "shared_image_embedding.*", "pixel_*", "image_encoder.neck.*")
"""What files of SAM hold beside the encoder's blocks."""
ORIGINAL = {
    r"(?:vision_encoder|image_encoder)\.(.*)": r"\1",
    r"patch_embed\.proj\.(.*)": r"patch_embed.projection.\1",
    r"blocks\.(.*)": r"layers.\1",
    r"layers\.(\d+)\.norm([12])\.(.*)": r"layers.\1.layer_norm\2.\3",
}
"""From the authors' names to those of `transformers`, one rule after the other."""


@dataclass(frozen=True)
class SamSize:
    """How large an encoder is."""

    width: int
    num_blocks: int
    num_heads: int
    picture_px: int
    """Side of the square picture that it sees, whatever the picture's aspect."""
    window: int
    """Patches along the side of a window that most blocks attend in."""
    global_blocks: tuple[int, ...]
    """Blocks (0-based) that attend to the whole picture."""


SAM_SIZES = {"base": SamSize(768, 12, 12, 1024, 14, (2, 5, 8, 11))}


def transformers_package() -> ModuleType:
    """The package with SAM in it. Raises ReconError saying how to install it."""
    if find_spec("transformers") is None:
        raise ReconError("SAM needs the package transformers, which is not installed: pip install 'endorecon[foundation]'")
    return importlib.import_module("transformers")


class SamFeatures(nn.Module):
    """The frozen encoder with RVLoRA on the perceptrons of its last three blocks; its last four blocks' patches on any grid."""

    def __init__(self, size: SamSize = SAM_SIZES["base"]) -> None:
        super().__init__()
        self.size = size
        package = transformers_package()
        config = package.SamVisionConfig(
            hidden_size=size.width,
            num_hidden_layers=size.num_blocks,
            num_attention_heads=size.num_heads,
            mlp_dim=4 * size.width,
            image_size=size.picture_px,
            window_size=size.window,
            global_attn_indexes=list(size.global_blocks),
        )
        encoder = package.SamVisionModel(config).vision_encoder
        self.patch_embed, self.pos_embed, self.layers = encoder.patch_embed, encoder.pos_embed, encoder.layers
        for index in range(size.num_blocks - NUM_ADAPTED, size.num_blocks):
            attach(self, f"layers.{index}.mlp.lin[12]", "rvlora", RANK)
        train_adapters(self, warm_up=True)

    def forward(self, image: Float[Tensor, "b 3 h w"], grid: tuple[int, int]) -> list[Float[Tensor, "b c rows columns"]]:
        """Features of RGB in [0, 1] on a (rows, columns) grid.

        As published, the picture is brought to that grid's size in patches of 14 px, and then to the encoder's square.
        """
        rows, columns = grid
        small = resized(image, (rows * PATCH_PX, columns * PATCH_PX))
        tokens = self.patch_embed(resized(small, (self.size.picture_px, self.size.picture_px))) + self.pos_embed
        tapped = []
        for index, layer in enumerate(self.layers):
            tokens = layer(tokens)
            if index >= len(self.layers) - NUM_TAPPED:
                tapped.append(resized(tokens.permute(0, 3, 1, 2), grid))
        return tapped


def load_sam(network: SamFeatures, path: Path) -> LoadedWeights:
    """Give the encoder SAM's or MedSAM's weights; the adapters keep their values. Raises ReconError as `load_weights`."""
    return load_weights(network, path, transformers_names, NOT_IN_SAM, UNUSED)


def transformers_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of SAM under the names that `transformers` uses for its encoder; other names as they are."""
    renamed = {}
    for name, value in state.items():
        for pattern, replacement in ORIGINAL.items():
            name = re.sub(f"^{pattern}$", replacement, name)
        renamed[name] = value
    return renamed
