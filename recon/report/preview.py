"""Pictures of a mesh without a display: rays cast on the CPU, vertex colours, a lamp on the camera as in the recording."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import open3d as o3d
import open3d.core as o3c
from jaxtyping import Float, UInt8

from recon.types import Mesh

BACKGROUND = np.array([246, 245, 242], np.float32)
GHOST = np.array([96, 118, 140], np.float32)
GHOST_SHARE = 0.22
"""Walls seen from behind, where no camera was, are a bluish veil: what matters of a hollow organ is its inside."""
MAX_LAYERS = 6
AMBIENT = 0.35
SUPERSAMPLING = 2


@dataclass(frozen=True)
class Viewpoint:
    """Where a preview is taken from."""

    name: str
    T_world_camera: Float[np.ndarray, "4 4"]
    fov_rad: float
    """Horizontal."""


class MeshRenderer:
    """Renders one mesh from any viewpoint."""

    def __init__(self, mesh: Mesh, normals: Float[np.ndarray, "v 3"]) -> None:
        self.center = mesh.vertices.mean(axis=0)
        self.faces, self.normals = mesh.faces, normals
        self.step = 1e-5 * float(np.ptp(mesh.vertices, axis=0).max())
        self.scene = o3d.t.geometry.RaycastingScene()
        vertices = (mesh.vertices - self.center).astype(np.float32)
        self.scene.add_triangles(o3c.Tensor(vertices), o3c.Tensor(mesh.faces.astype(np.uint32)))

    def render(self, colors: UInt8[np.ndarray, "v 3"], view: Viewpoint, width_px: int, height_px: int) -> UInt8[np.ndarray, "h w 3"]:
        """Return the picture of the mesh in these vertex colours."""
        w, h = width_px * SUPERSAMPLING, height_px * SUPERSAMPLING
        rays = self._rays(view, w, h).reshape(-1, 6)
        picture = np.tile(BACKGROUND, (w * h, 1))
        veil = np.ones((w * h, 1), np.float32)
        open_rays = np.arange(w * h)
        for _ in range(MAX_LAYERS):
            color, is_front, depth, struck = self._cast(rays[open_rays], colors)
            open_rays = open_rays[struck]
            picture[open_rays[is_front]] = color[is_front]
            open_rays, depth = open_rays[~is_front], depth[~is_front]
            veil[open_rays] *= 1 - GHOST_SHARE
            rays[open_rays, :3] += rays[open_rays, 3:] * (depth[:, None] + self.step)
            if len(open_rays) == 0:
                break
        picture = picture * veil + GHOST * (1 - veil)
        picture = picture.reshape(height_px, SUPERSAMPLING, width_px, SUPERSAMPLING, 3).mean(axis=(1, 3))
        return np.clip(np.rint(picture), 0, 255).astype(np.uint8)

    def _cast(self, rays: np.ndarray, colors: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Return lit colour, whether the front was hit, and depth for the rays that hit anything; and which those are."""
        hit = self.scene.cast_rays(o3c.Tensor(rays))
        face = hit["primitive_ids"].numpy()
        struck = np.flatnonzero(face != o3d.t.geometry.RaycastingScene.INVALID_ID)
        u, v = hit["primitive_uvs"].numpy()[struck].T
        corners, share = self.faces[face[struck]], np.stack([1 - u - v, u, v], axis=-1)[..., None]
        color = np.sum(colors[corners] * share, axis=1)
        normal = np.sum(self.normals[corners] * share, axis=1)
        normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-9)
        cosine = np.abs(np.sum(normal * rays[struck, 3:], axis=1, keepdims=True))
        is_front = np.sum(hit["primitive_normals"].numpy()[struck] * rays[struck, 3:], axis=1) < 0
        return color * (AMBIENT + (1 - AMBIENT) * cosine), is_front, hit["t_hit"].numpy()[struck], struck

    def _rays(self, view: Viewpoint, w: int, h: int) -> np.ndarray:
        """Return origins and unit directions (h, w, 6), relative to the centre of the mesh."""
        focal = 0.5 * w / np.tan(0.5 * view.fov_rad)
        u, v = np.meshgrid(np.arange(w) - 0.5 * (w - 1), np.arange(h) - 0.5 * (h - 1))
        directions = np.stack([u / focal, v / focal, np.ones_like(u)], axis=-1) @ view.T_world_camera[:3, :3].T
        directions /= np.linalg.norm(directions, axis=-1, keepdims=True)
        origins = np.broadcast_to(view.T_world_camera[:3, 3] - self.center, directions.shape)
        return np.concatenate([origins, directions], axis=-1).astype(np.float32)


def viewpoints(mesh: Mesh, T_world_camera: Float[np.ndarray, "n 4 4"]) -> list[Viewpoint]:
    """Return views from a camera of the recording, and from outside on the camera's side and across."""
    middle = mesh.vertices.mean(axis=0)
    _, _, axes = np.linalg.svd((mesh.vertices - middle)[:: max(1, len(mesh.vertices) // 5000)], full_matrices=False)
    along = (mesh.vertices - middle) @ axes.T
    center = middle + (0.5 * (along.min(axis=0) + along.max(axis=0))) @ axes
    length, width, thickness = np.ptp(along, axis=0)
    # Far enough for the nearest part to fill the picture, which is wider than high.
    distance = 1.25 * float(max(length, 1.4 * width)) + 0.5 * float(thickness)
    towards_camera = T_world_camera[:, :3, 3].mean(axis=0) - center
    across, side = (axis if towards_camera @ axis >= 0 else -axis for axis in (axes[2], axes[1]))
    return [
        Viewpoint("from a camera of the recording", T_world_camera[len(T_world_camera) // 2], float(np.deg2rad(90))),
        Viewpoint("from the cameras' side", _look_at(center + distance * across, center, axes[0]), float(np.deg2rad(50))),
        Viewpoint("from the other side", _look_at(center - distance * across, center, axes[0]), float(np.deg2rad(50))),
        Viewpoint("across", _look_at(center + distance * side, center, axes[0]), float(np.deg2rad(50))),
    ]


def _look_at(eye: np.ndarray, target: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Return T_world_camera that looks from `eye` to `target` with `right` about along the image's x axis."""
    z = (target - eye) / np.linalg.norm(target - eye)
    x = right - (right @ z) * z
    x /= np.linalg.norm(x)
    T = np.eye(4)
    T[:3, :3] = np.stack([x, np.cross(z, x), z], axis=-1)
    T[:3, 3] = eye
    return T
