"""Pictures of a scene as an endoscope takes them, with exact depth.

Rays are cast by Embree through Open3D, which runs on the CPU: on a GPU Open3D's caster needs SYCL, so a training run
there casts ahead. Shading is torch and runs on any device.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import open3d as o3d
import torch
from jaxtyping import Bool, Float, Int, UInt8

from recon.data.phantom.scene import Scene
from recon.data.phantom.shading import NUM_NOISES, Buffers, Imaging, expose, looks_of, scope_mask, shade, surface_noise
from recon.geometry.cameras import ray_grid
from recon.types import Camera


@dataclass(frozen=True)
class Rendering:
    """One picture and its truth."""

    image: UInt8[np.ndarray, "h w 3"]
    distance_mm: Float[np.ndarray, "h w"]
    """Along the ray; 0 where nothing was hit or the mask covers."""
    mask: Bool[np.ndarray, "h w"]
    """False outside the scope's mask and on instruments that are masked."""
    faces: Int[np.ndarray, "h w"]
    """Index of the face of the scene seen, -1 where none."""


@dataclass(frozen=True)
class Tool:
    """An instrument in front of the lens."""

    scene: Scene
    """In camera coordinates."""
    masked: bool
    """Whether its pixels are marked as no tissue; else it is part of the picture and has its distance."""


@dataclass(frozen=True)
class Trace:
    """What the rays of one view met, before any light."""

    buffers: Buffers
    """Of this one view; objects of a tool are numbered on from those of the scene."""
    faces: Int[np.ndarray, "h w"]
    on_tool: Bool[np.ndarray, "h w"]


def render(
    scene: Scene,
    camera: Camera,
    T_world_camera: Float[np.ndarray, "4 4"],
    imaging: Imaging,
    rng: np.random.Generator,
    tool: Tool | None = None,
) -> Rendering:
    """Render one view. `rng` decides the sensor's noise."""
    traced = trace(scene, camera, T_world_camera, imaging.lamp_offset_mm, imaging.shadow > 0, tool)
    looks = looks_of([*scene.materials, *(tool.scene.materials if tool else ())])
    light, highlight = shade(traced.buffers, looks[None], [imaging])
    distance = traced.buffers.distance[0].numpy()
    mask = scope_mask(distance.shape, imaging)
    hidden = traced.on_tool & (tool is not None and tool.masked)
    generator = torch.Generator().manual_seed(int(rng.integers(2**63)))
    image = expose(light, highlight, torch.from_numpy(mask & (distance > 0))[None], [imaging], generator)[0].numpy()
    return Rendering(
        image=image * mask[..., None],
        distance_mm=np.where(mask & ~hidden, distance, 0),
        mask=mask & ~hidden,
        faces=np.where(mask, traced.faces, -1),
    )


def trace(
    scene: Scene,
    camera: Camera,
    T_world_camera: Float[np.ndarray, "4 4"],
    lamp_offset_mm: tuple[float, float, float],
    with_shadows: bool,
    tool: Tool | None = None,
) -> Trace:
    """Cast the rays of one view; a tool covers the scene and casts its shadow on it."""
    rays = ray_grid(camera).astype(np.float32)
    size, flat = rays.shape[:2], rays.reshape(-1, 3)
    lamp = np.asarray(lamp_offset_mm, np.float32)
    met = _meet(scene, flat, T_world_camera, lamp, with_shadows, tool)
    faces, on_tool = met.pop("face"), np.zeros(len(flat), bool)
    if tool is not None:
        over = _meet(tool.scene, flat, np.eye(4), lamp, False, None)
        over["object"] = over["object"] + len(scene.materials)
        on_tool = (over["distance"] > 0) & ((met["distance"] == 0) | (over["distance"] < met["distance"]))
        met = {name: np.where(on_tool.reshape(-1, *[1] * (value.ndim - 1)), over[name], value) for name, value in met.items()}
        faces = np.where(on_tool, -1, faces)
    layers = {name: torch.from_numpy(value.reshape(1, *size, *value.shape[1:])) for name, value in met.items()}
    buffers = Buffers(rays=torch.from_numpy(rays[None]), lamp_mm=torch.from_numpy(lamp[None]), **layers)
    return Trace(buffers, faces.reshape(size), on_tool.reshape(size))


def _meet(
    scene: Scene, rays: np.ndarray, T_world_camera: np.ndarray, lamp_mm: np.ndarray, with_shadows: bool, tool: Tool | None
) -> dict[str, np.ndarray]:
    """First hits of one scene along rays of the camera, per ray, with the fields of `Buffers` and the face (-1 where none)."""
    R, centre = T_world_camera[:3, :3].astype(np.float32), T_world_camera[:3, 3].astype(np.float32)
    hits = scene.cast(centre, rays @ R.T)
    hit = np.isfinite(hits["distance"])
    face, bary, distance = hits["face"][hit], hits["barycentric"][hit], hits["distance"][hit]
    weights = np.stack([1 - bary.sum(1), bary[:, 0], bary[:, 1]], -1)
    normal = np.einsum("nk,nkc->nc", weights, scene.vertex_normals[scene.faces[face]]) @ R
    seen = distance[:, None] * rays[hit]
    points, objects = torch.from_numpy(seen @ R.T + centre), scene.object_of_face[face]
    noise = torch.zeros((len(points), NUM_NOISES))
    for index in np.unique(objects).tolist():
        here = torch.from_numpy(objects == index)
        noise[here] = surface_noise(scene.volume, points[here], scene.materials[index])
    noise[:, 6:9] = noise[:, 6:9] @ torch.from_numpy(R)
    unlit = np.zeros(len(seen), np.float32)
    if with_shadows:
        facing = -np.sign((normal * rays[hit]).sum(1, keepdims=True)) * normal
        lifted = seen + 2e-3 * distance[:, None] * facing
        unlit = in_shadow(scene, lifted @ R.T + centre, lamp_mm @ R.T + centre)
        if tool is not None:
            unlit = np.maximum(unlit, in_shadow(tool.scene, lifted, lamp_mm))
    found = {"distance": distance, "normal": normal, "object": objects, "noise": noise.numpy(), "unlit": unlit, "face": face}
    empty = {"object": 0, "face": -1}
    return {name: _scatter(value, hit, empty.get(name, 0)) for name, value in found.items()}


def _scatter(values: np.ndarray, where: np.ndarray, empty: int) -> np.ndarray:
    dtype = np.int64 if np.issubdtype(values.dtype, np.integer) else np.float32
    spread = np.full((len(where), *values.shape[1:]), empty, dtype)
    spread[where] = values
    return spread


def in_shadow(scene: Scene, points: Float[np.ndarray, "n 3"], lamp: Float[np.ndarray, " 3"]) -> Float[np.ndarray, " n"]:
    """1 where something of the scene stands between a point and the lamp, else 0."""
    rays = np.concatenate([points, lamp - points], axis=1).astype(np.float32)
    return scene.caster.test_occlusions(o3d.core.Tensor(rays), tnear=0.0, tfar=0.98).numpy().astype(np.float32)
