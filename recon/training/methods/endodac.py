"""EndoDAC (Cui et al., "EndoDAC: efficient adapting foundation model for self-supervised depth estimation from any endoscopic
camera", 2024): AF-SfMLearner's losses for a frozen Depth Anything with DV-LoRA, convolutional necks and heads, and a learned lens.

In the warm-up LoRA's matrices are trained and the vectors stand still; after it the vectors alone. The published code keeps the
learned lens of the second source only; here each source is warped through the lens that was learned from it. It also leaves the
vectors out of what its optimiser steps, so that they never move, and enlarges the maps of flow and appearance networks
bilinearly; here the vectors are trained, as the paper says, and those networks are AF-SfMLearner's own, which repeat pixels.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from recon.models.depth_anything import SIZES
from recon.models.endodac import GRID, EndoDAC, load_depth_anything
from recon.models.published import NATURAL
from recon.training.methods.af_sfm import AfSfmConfig, AfSfmMethod
from recon.types import ReconError, bounded

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EndoDacConfig(AfSfmConfig):
    """The published settings."""

    foundation_weights: Path | None = None
    """Weights of Depth Anything V1 of the same size (depth_anything_vitb14.pth)."""
    size: str = "base"
    """Of the foundation model: small, base or large."""
    grid_rows: int = bounded(GRID[0], 1)
    """Rows of patches that pictures are resized to for the depth network."""
    grid_columns: int = bounded(GRID[1], 1)
    """Columns of them."""
    warmup_steps: int = bounded(20_000, 0)
    """Steps before training goes over from LoRA's matrices to its vectors."""
    batch_size: int = bounded(8, 1)
    """Clips a step."""
    smoothness_weight: float = bounded(1e-3, 0.0)
    """Of the disparity's edge-aware smoothness at the finest scale; half of it at each coarser one."""
    learn_intrinsics: bool = True
    """Learn a pinhole lens instead of using the recordings' own; for recordings without a known lens."""


class EndoDacMethod(AfSfmMethod):
    """AF-SfMLearner's phases with another depth network."""

    name = "endodac"
    config_type = EndoDacConfig
    config: EndoDacConfig

    def depth_network(self) -> EndoDAC:
        config = self.config
        if config.size not in SIZES:
            raise ReconError(f"size must be one of {', '.join(SIZES)}, found {config.size!r}")
        network = EndoDAC(SIZES[config.size], (config.grid_rows, config.grid_columns))
        if config.foundation_weights is None:
            logger.warning("foundation_weights is not set: the frozen part of the depth network has random weights")
        else:
            load_depth_anything(network, config.foundation_weights)
            self.seen_before = (*self.seen_before, *NATURAL)
        return network

    def facts(self) -> dict[str, int]:
        config = self.config
        grid = {"grid_rows": config.grid_rows, "grid_columns": config.grid_columns}
        return {**super().facts(), **grid, "encoder_width": SIZES[config.size].vit.width}

    def begin_step(self, step: int) -> None:
        """Train LoRA's matrices in the warm-up and its vectors after it."""
        self.networks["depth"].train_part(warm_up=step < self.config.warmup_steps)
