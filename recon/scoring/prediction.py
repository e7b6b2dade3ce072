"""What is scored: a run's or anyone's depth, camera path or surface, in one form."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from recon.scoring.score import Inputs
from recon.types import Mesh, Trajectory, Unit


@dataclass(frozen=True)
class Prediction:
    """One method's result for one sequence. Parts that it does not have are None."""

    name: str
    """Of the method, as tables show it."""
    inputs: Inputs
    unit: Unit
    """Of depth, path and surface alike."""
    depth: Callable[[int], Float[np.ndarray, "h w"] | None] | None = None
    """From frame index to z-depth (or disparity), 0 unknown; None for a frame that has none."""
    is_disparity: bool = False
    """True when `depth` gives values proportional to 1 / z."""
    trajectory: Trajectory | None = None
    mesh: Mesh | None = None
    notes: tuple[str, ...] = ()
    late_notes: Callable[[], tuple[str, ...]] = tuple
    """What reading it has shown, to be asked for after scoring."""
