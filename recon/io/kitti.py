"""Trajectories as KITTI text: the upper three rows of each pose in one line, without times."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import Float

from recon.io.atomic import write_text


def write_kitti(path: str | Path, T_world_camera: Float[np.ndarray, "n 4 4"]) -> None:
    """Camera-to-world, OpenCV axes, row by row."""
    write_text(path, "".join(" ".join(f"{v:.9g}" for v in T[:3].reshape(-1)) + "\n" for T in T_world_camera))
