"""Poses given as a position and a quaternion, and how those of game engines leave their left-handed world."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float

from recon.data.truth import check_rigid
from recon.geometry.se3 import matrix_from_quat_wxyz
from recon.types import ReconError

Axis = Literal["x", "y", "z"]


def poses_from_quaternions(
    path: Path, positions: Float[np.ndarray, "n 3"], quats_xyzw: Float[np.ndarray, "n 4"], mirrored: Axis | None = None
) -> Float[np.ndarray, "n 4 4"]:
    """Camera-to-world matrices in the unit of `positions`.

    `mirrored` names the axis of the camera that points the other way in the file. Turning one axis of the camera alone would
    leave a reflection, so the world is mirrored in the same axis: T = M P M, a rigid motion with the relative motion of P M.
    Raises ReconError naming `path` and the pose whose quaternion is not of length 1.
    """
    bad = np.flatnonzero(~(np.abs(np.linalg.norm(quats_xyzw, axis=1) - 1) < 0.05))
    if len(bad):
        raise ReconError(f"{path}: the quaternion of pose {bad[0]} should have length 1, found {quats_xyzw[bad[0]].tolist()}")
    T = np.tile(np.eye(4), (len(positions), 1, 1))
    T[:, :3, :3], T[:, :3, 3] = matrix_from_quat_wxyz(quats_xyzw[:, [3, 0, 1, 2]]), positions
    if mirrored is not None:
        signs = np.where(np.array(["x", "y", "z", ""]) == mirrored, -1.0, 1.0)
        T = signs[:, None] * T * signs
    check_rigid(path, T)
    return T
