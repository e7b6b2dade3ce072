"""A change of world: turned, shifted and in another unit."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float


@dataclass(frozen=True)
class Similarity:
    """`target = scale * R @ source + t`."""

    scale: float
    R: Float[np.ndarray, "3 3"]
    t: Float[np.ndarray, " 3"]

    def map(self, points: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n 3"]:
        return self.scale * points @ self.R.T + self.t

    def unmap(self, points: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n 3"]:
        """The inverse of `map`."""
        return (points - self.t) @ self.R / self.scale

    def poses(self, T_source_camera: Float[np.ndarray, "*n 4 4"]) -> Float[np.ndarray, "*n 4 4"]:
        """Cameras in the target's world; their axes stay unit length."""
        T_target_camera = T_source_camera.copy()
        T_target_camera[..., :3, :3] = self.R @ T_source_camera[..., :3, :3]
        T_target_camera[..., :3, 3] = self.scale * T_source_camera[..., :3, 3] @ self.R.T + self.t
        return T_target_camera

    @property
    def matrix(self) -> Float[np.ndarray, "4 4"]:
        """Of homogeneous points."""
        result = np.eye(4)
        result[:3, :3], result[:3, 3] = self.scale * self.R, self.t
        return result

    @property
    def rotation_deg(self) -> float:
        """Angle of the rotation, from its sine and cosine: either alone loses digits somewhere."""
        R = self.R
        sine = np.linalg.norm([R[2, 1] - R[1, 2], R[0, 2] - R[2, 0], R[1, 0] - R[0, 1]])
        return float(np.degrees(np.arctan2(sine, np.trace(R) - 1)))
