"""The Gaussians that training begins with: places of a still picture with their motion, points of all frames, or a fused surface."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy.spatial import cKDTree

from recon.fields.scene import Scene
from recon.fields.splats.hexplane import HexPlane
from recon.fields.splats.model import SplatModel
from recon.fields.splats.time_basis import TimeBasis, fit_motion
from recon.fields.splats.tracks import Tracks, follow
from recon.fusion.view import rays
from recon.geometry.cameras import crop
from recon.geometry.surface import normals_from_depth
from recon.types import Mesh, ReconError

DeformationName = Literal["time_basis", "hexplane", "static"]
FILLED_WEIGHT = 0.1
"""Of a filled position beside a measured one."""
FRAMES_PER_BUMP, FRAMES_PER_COLOR_BUMP = 3, 5
MIN_BUMPS, MAX_BUMPS = 8, 48
SPREAD = 0.6
"""Standard deviation of a Gaussian over the distance to its neighbours."""
FLATNESS = 0.3
"""Thickness of a Gaussian on a surface over its spread."""
START_OPACITY = 0.8


@dataclass(frozen=True)
class Start:
    """Points to put Gaussians on, in normalised units."""

    points: Float[np.ndarray, "n 3"]
    normals: Float[np.ndarray, "n 3"]
    colors: Float[np.ndarray, "n 3"]
    spacing: Float[np.ndarray, " n"]
    is_seen: Bool[np.ndarray, " n"]
    """False where the point was filled: no frame ever saw the place."""
    tracks: Float[np.ndarray, "n t 3"] | None = None
    """Positions at the times of the kept frames, where motion is known."""
    is_measured: Bool[np.ndarray, "n t"] | None = None


def start_from_scene(scene: Scene, filled: Float[np.ndarray, "n h w"], max_gaussians: int) -> Start:
    """Places of the reference picture with their motion for a still camera; else points of all kept frames, thinned by a grid.

    `filled` is what `views.filled_depth` gives. Raises ReconError for a scene without depth.
    """
    if scene.depth_kind == "none":
        raise ReconError(
            "splats need depth to begin with, and this scene has none: from a single point of view nothing else gives it. "
            "Choose a depth network (depth.model), or depth.model=dataset where the recording brings depth"
        )
    return _from_tracks(scene, follow(scene, filled), max_gaussians) if scene.is_still else _from_points(scene, max_gaussians)


def start_from_surface(mesh: Mesh, scene: Scene, max_gaussians: int) -> Start:
    """Vertices of a fused surface, with its normals."""
    if mesh.normals is None or mesh.colors is None or len(mesh.vertices) == 0:
        raise ReconError("splats cannot begin with a surface that has no vertices, normals or colours: use splats.start=depth")
    chosen = np.linspace(0, len(mesh.vertices) - 1, min(len(mesh.vertices), max_gaussians)).round().astype(int)
    points = mesh.vertices[chosen] / scene.median_depth
    return Start(points, mesh.normals[chosen], mesh.colors[chosen] / 255.0, _spacing(points), np.ones(len(points), bool))


def _from_tracks(scene: Scene, tracks: Tracks, max_gaussians: int) -> Start:
    height, width = tracks.is_seen.shape
    step = np.sqrt(max(tracks.is_shown.sum() / max_gaussians, 1.0))
    rows = np.unique(np.round(np.arange(0, height, step)).astype(int).clip(0, height - 1))
    columns = np.unique(np.round(np.arange(0, width, step)).astype(int).clip(0, width - 1))
    chosen = np.zeros((height, width), bool)
    chosen[np.ix_(rows, columns)] = True
    chosen &= tracks.is_shown
    reference = scene.kept.index(tracks.reference)
    T = scene.frames[tracks.reference].T_world_camera
    depth = (tracks.positions[reference] - T[:3, 3]) @ T[:3, 2]
    m = tracks.margin_px
    around = crop(scene.camera, -m, -m, scene.camera.width_px + 2 * m, scene.camera.height_px + 2 * m)
    positions = np.stack([points[chosen] for points in tracks.positions], axis=1) / scene.median_depth
    return Start(
        points=positions[:, reference],
        normals=normals_from_depth(depth, rays(around))[chosen] @ T[:3, :3].T,
        colors=tracks.colors[chosen],
        spacing=step * depth[chosen] / scene.camera.params[0] / scene.median_depth,
        is_seen=tracks.is_seen[chosen],
        tracks=positions,
        is_measured=np.stack([measured[chosen] for measured in tracks.is_measured], axis=1),
    )


def _from_points(scene: Scene, max_gaussians: int) -> Start:
    """Unproject every kept frame and keep one point a cell: the first that was seen."""
    cell = 1.0 / scene.camera.params[0]
    while len(table := _one_a_cell(scene, cell)) > max_gaussians:
        cell *= max(np.sqrt(len(table) / max_gaussians), 1.05)
    return Start(table[:, :3], table[:, 3:6], table[:, 6:9], _spacing(table[:, :3]), np.ones(len(table), bool))


def _one_a_cell(scene: Scene, cell: float) -> np.ndarray:
    """Point, normal and colour (n, 9) of the first that was seen in every cell, in normalised units."""
    directions = rays(scene.camera)
    parts: list[np.ndarray] = []
    taken: set[bytes] = set()
    for position in scene.kept:
        view, T = scene.view(position), scene.frames[position].T_world_camera
        depth = view.depth / scene.median_depth
        known = view.tissue & (depth > 0)
        normals = normals_from_depth(depth, directions)[known] @ T[:3, :3].T
        points = (directions * depth[..., None])[known] @ T[:3, :3].T + T[:3, 3] / scene.median_depth
        keys = np.floor(points / cell).astype(np.int32)
        _, first = np.unique(keys, axis=0, return_index=True)
        new = np.array([i for i in first if keys[i].tobytes() not in taken], dtype=int)
        taken.update(keys[i].tobytes() for i in new)
        parts.append(np.concatenate([points[new], normals[new], view.image[known][new] / 255.0], axis=1))
    return np.concatenate(parts)


def _spacing(points: np.ndarray) -> np.ndarray:
    """Distance to the third nearest neighbour: about that of a square grid."""
    distances, _ = cKDTree(points).query(points, k=min(4, len(points)))
    return np.maximum(distances[:, -1], 1e-6)


def make_model(start: Start, scene: Scene, deformation: DeformationName, are_surfels: bool) -> SplatModel:
    """Gaussians on the points, flat along their normals, moving as far as the tracks say."""
    times = torch.tensor([scene.frames[i].time for i in scene.kept], dtype=torch.float32)
    num = len(start.points)
    num_motion, num_color = (_num_bumps(len(scene.frames), each) for each in (FRAMES_PER_BUMP, FRAMES_PER_COLOR_BUMP))
    means = torch.tensor(start.points, dtype=torch.float32)
    motion = None
    if start.tracks is not None and start.is_measured is not None and deformation != "static":
        weights = torch.tensor(np.where(start.is_measured, 1.0, FILLED_WEIGHT), dtype=torch.float32)
        means, motion = fit_motion(times, torch.tensor(start.tracks, dtype=torch.float32), weights, num_motion)
    model: torch.nn.Module
    if deformation == "hexplane":
        model = HexPlane(means, num_motion, num_color, motion)
    else:
        model = TimeBasis(num, num_motion if deformation == "time_basis" else 0, num_color if deformation == "time_basis" else 0)
        if motion is not None:
            model.motion.data = motion
    spread = torch.tensor(SPREAD * start.spacing, dtype=torch.float32)
    scales = torch.stack([spread, spread, FLATNESS * spread], dim=1)
    colors = torch.tensor(start.colors, dtype=torch.float32)
    opacities = torch.full((num,), START_OPACITY)
    turned, seen = _facing(torch.tensor(start.normals, dtype=torch.float32)), torch.tensor(start.is_seen)
    return SplatModel(means, turned, scales, opacities, colors, model, are_surfels, seen)


def _num_bumps(num_frames: int, frames_each: int) -> int:
    """One bump every few frames; in a short recording nearly as many as frames."""
    return int(np.clip(num_frames // frames_each + 1, min(MIN_BUMPS, num_frames), MAX_BUMPS))


def _facing(normals: torch.Tensor) -> torch.Tensor:
    """Quaternions (wxyz) that turn the third axis to the normals."""
    normals = torch.where(normals.norm(dim=1, keepdim=True) > 0.5, normals, torch.tensor([0.0, 0.0, -1.0]))
    # Half way between the axis and the normal; turning half a circle about x where they are opposite.
    w = 1.0 + normals[:, 2]
    turned = torch.stack([w, -normals[:, 1], normals[:, 0], torch.zeros_like(w)], dim=1)
    opposite = torch.tensor([0.0, 1.0, 0.0, 0.0]).expand_as(turned)
    return torch.nn.functional.normalize(torch.where(w[:, None] < 1e-4, opposite, turned), dim=1)
