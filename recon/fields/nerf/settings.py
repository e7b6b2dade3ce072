"""What decides how a NeRF comes out, for both sides of the process border."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class NerfSettings:
    """Lengths are in median depths, so that none depends on the unit of the scene."""

    num_steps: int = 2000
    rays_per_step: int = 512
    learning_rate: float = 1e-2
    """Of Adam at the start, for the fields; it decays to a tenth, and the deformation has a tenth of it."""
    depth_sigma: float = 0.01
    """Standard deviation of trusted depth."""
    deformation_width: int = 64
    deformation_layers: int = 4
    """0: a scene that stands still."""
    num_proposal_samples: int = 48
    """Along a ray, to find where the surface is."""
    num_samples: int = 24
    """Along a ray, about the surface."""
    num_levels: int = 8
    """Of the hash grid."""
    log2_hashmap_size: int = 15
    max_resolution: int = 256
    """Cells of the finest grid along the box."""
    steps_per_save: int = 200
    seed: int = 0
