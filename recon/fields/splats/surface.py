"""The surface that Gaussians show, at one time, and where its vertices are at others."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy.special import erf

from recon.fields.rendered_surface import TOLERANCE, Rendering, fused_surface
from recon.fields.scene import Scene
from recon.fields.splats.model import SplatModel
from recon.fields.splats.projection import Pinhole
from recon.fields.splats.rasterize import Backend, rasterize
from recon.fusion.sightings import nearest_of
from recon.fusion.tsdf import SHARED_ERROR
from recon.geometry.cameras import crop
from recon.geometry.carrying import Carried
from recon.geometry.depth_surface import depth_surface
from recon.io.meshes import vertex_normals
from recon.sampling import spread
from recon.types import Camera, Mesh

MIN_ALPHA = 0.5
"""Pixels that stop less light show no surface."""
MARGIN_SHARE = 0.08
"""Of the picture's size on each side of a still camera's view: what moves into it is beside it at the reference time."""
MAX_FUSED = 60
"""Views of a moving camera from which the surface is fused."""


@dataclass(frozen=True)
class Drawn:
    """One drawn view, lengths in the scene's unit."""

    color: Float[np.ndarray, "h w 3"]
    """0 to 1."""
    depth: Float[np.ndarray, "h w"]
    """z-depth; 0 where nothing stops the light."""
    is_seen: Bool[np.ndarray, "h w"]
    """True where what is shown was seen by some frame."""


def draw(model: SplatModel, scene: Scene, T_world_camera: np.ndarray, time: float, camera: Camera, backend: Backend = "auto") -> Drawn:
    """Draw Gaussians at a time from a pose in the scene's unit."""
    T = np.linalg.inv(T_world_camera)
    T[:3, 3] /= scene.median_depth
    with torch.no_grad():
        pose = torch.tensor(T, dtype=torch.float32, device=model.means.device)
        drawn = rasterize(model.at(time, model.is_seen[:, None].float()), pose, Pinhole.of(camera), backend)
        depth = torch.where(drawn.alpha > MIN_ALPHA, drawn.mean_depth() * scene.median_depth, 0.0).clamp_min(0.0)
        seen = drawn.features[..., 3] > 0.5 * drawn.alpha
    return Drawn(drawn.features[..., :3].clamp(0, 1).cpu().numpy(), depth.cpu().numpy(), seen.cpu().numpy())


def reference_surface(
    model: SplatModel, scene: Scene, position: int, fills_unseen: bool, backend: Backend = "auto", num_threads: int = 0
) -> Mesh:
    """The surface at the time of one frame, with colours, normals, observations and confidence.

    Places that no frame ever saw are holes, or with `fills_unseen` carry no observation and a confidence of 0.
    """
    if scene.is_still:
        mesh = _from_one_view(model, scene, position, fills_unseen, backend)
    else:
        mesh = _fused(model, scene, position, backend, num_threads)
    return _reviewed(replace(mesh, unit=scene.unit, normals=vertex_normals(mesh.vertices, mesh.faces)), model, scene, position)


def _from_one_view(model: SplatModel, scene: Scene, position: int, fills_unseen: bool, backend: Backend) -> Mesh:
    frame = scene.frames[position]
    width, height = scene.camera.width_px, scene.camera.height_px
    right, down = round(MARGIN_SHARE * width), round(MARGIN_SHARE * height)
    camera = crop(scene.camera, -right, -down, width + 2 * right, height + 2 * down)
    drawn = draw(model, scene, frame.T_world_camera, frame.time, camera, backend)
    mesh = depth_surface(camera, drawn.depth, (drawn.depth > 0) & (fills_unseen | drawn.is_seen))
    fx, fy, cx, cy = camera.params
    x = np.rint(mesh.vertices[:, 0] / mesh.vertices[:, 2] * fx + cx).astype(int).clip(0, camera.width_px - 1)
    y = np.rint(mesh.vertices[:, 1] / mesh.vertices[:, 2] * fy + cy).astype(int).clip(0, camera.height_px - 1)
    T = frame.T_world_camera
    colors = np.rint(255 * drawn.color[y, x]).astype(np.uint8)
    return replace(mesh, vertices=mesh.vertices @ T[:3, :3].T + T[:3, 3], colors=colors)


def _fused(model: SplatModel, scene: Scene, position: int, backend: Backend, num_threads: int) -> Mesh:
    """A TSDF of what the poses of the kept frames would see at the time of one of them."""
    chosen = spread(scene.kept, MAX_FUSED)
    time = scene.frames[position].time

    def load(k: int) -> Rendering:
        drawn = draw(model, scene, scene.frames[chosen[k]].T_world_camera, time, scene.camera, backend)
        return Rendering(chosen[k], np.rint(255 * drawn.color).astype(np.uint8), np.where(drawn.is_seen, drawn.depth, 0))

    return fused_surface(scene, load, len(chosen), lambda items, *_: items, num_threads=num_threads)


def carry(
    points: Float[np.ndarray, "v 3"], model: SplatModel, scene: Scene, time: float, times: Iterable[float]
) -> Iterator[Float[np.ndarray, "v 3"]]:
    """Where points of the surface at `time` are at other times: each moves with the Gaussians around it. Scene units."""

    def means(t: float) -> np.ndarray:
        with torch.no_grad():
            return model.at(t).means.cpu().numpy().astype(np.float64) * scene.median_depth

    carried = Carried(points, means(time))
    for t in times:
        yield carried.to(means(t))


def _reviewed(mesh: Mesh, model: SplatModel, scene: Scene, position: int) -> Mesh:
    """Observations, last sighting and confidence by what the kept frames' own depth says of every vertex, carried to their times."""
    count, square, last = np.zeros(len(mesh.vertices)), np.zeros(len(mesh.vertices)), np.full(len(mesh.vertices), np.nan)
    times = [scene.frames[i].time for i in scene.kept]
    fx, fy, cx, cy = scene.camera.params
    for i, points in zip(scene.kept, carry(mesh.vertices, model, scene, scene.frames[position].time, times), strict=True):
        view, frame = scene.view(i), scene.frames[i]
        local = (points - frame.T_world_camera[:3, 3]) @ frame.T_world_camera[:3, :3]
        z = np.where(local[:, 2] > 0, local[:, 2], np.inf)
        x, y = np.rint(local[:, 0] / z * fx + cx).astype(int), np.rint(local[:, 1] / z * fy + cy).astype(int)
        inside = (x >= 0) & (y >= 0) & (x < scene.camera.width_px) & (y < scene.camera.height_px) & np.isfinite(z)
        x, y = np.where(inside, x, 0), np.where(inside, y, 0)
        measured = view.depth[y, x]
        off = (z - measured) / scene.median_depth
        seen = inside & view.tissue[y, x] & (measured > 0) & (np.abs(off) < 5 * TOLERANCE)
        count += seen
        square += np.where(seen, off**2, 0)
        last = np.where(seen, frame.timestamp_s, last)
    variance = square / np.maximum(count, 1) * (1 / np.maximum(count, 1) + SHARED_ERROR)
    confidence = np.where(count > 0, erf(TOLERANCE / np.sqrt(2 * np.maximum(variance, 1e-12))), 0)
    if np.isfinite(last).any():
        last = last[nearest_of(mesh.vertices, np.isfinite(last))]
    last = np.nan_to_num(last, nan=scene.frames[position].timestamp_s)
    return replace(
        mesh,
        observations=count.astype(np.float32),
        confidence=confidence.astype(np.float32),
        last_seen_s=last.astype(np.float32),
        matched=np.zeros(len(count), np.float32),
    )
