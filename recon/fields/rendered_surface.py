"""The surface at one time from depth that a radiance field rendered at that time: what no frame ever saw stays a hole.

A camera that stands still sees one side of the tissue, and its depth map is the surface, pixel by pixel. A camera that moves sees more
from its other places, and the depth of several is fused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Float, UInt8
from scipy.special import erf

from recon.fields.scene import Scene
from recon.fusion.fuse import FusionSettings, fuse
from recon.fusion.selection import select_neighbours
from recon.fusion.tsdf import SHARED_ERROR
from recon.fusion.view import View, rays
from recon.geometry.cameras import project
from recon.geometry.depth_surface import depth_surface
from recon.geometry.surface import edge_mask, normals_from_depth
from recon.io.meshes import vertex_normals
from recon.sampling import spread
from recon.types import Mesh, ReconError

MAX_JUMP = 0.1
"""Relative step of depth between neighbouring pixels that counts as an occlusion edge."""
TOLERANCE = 0.01
"""Error that confidence asks about, in median depths."""


@dataclass(frozen=True)
class Rendering:
    """What a field shows from the pose of one frame of a scene, at a time of its own."""

    pose_of: int
    """Position in `Scene.frames`."""
    image: UInt8[np.ndarray, "h w 3"]
    depth: Float[np.ndarray, "h w"]
    """z-depth in the scene's unit; 0 where nothing is."""


def squared_error(scene: Scene, load: Callable[[int], np.ndarray]) -> Float[np.ndarray, "h w"]:
    """Mean square over the frames to learn from of rendered minus known depth, in median depths; NaN where no frame knew any.

    For a camera that stands still. `load` gives the depth rendered for a frame, by its position.
    """
    total, count = (np.zeros(scene.depth.shape[1:]) for _ in range(2))
    for position in scene.kept:
        view = scene.view(position)
        known = view.tissue & (view.depth > 0)
        total += np.where(known, ((load(position) - view.depth) / scene.median_depth) ** 2, 0)
        count += known
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def still_surface(scene: Scene, rendering: Rendering, time_of: int, squared: Float[np.ndarray, "h w"]) -> Mesh:
    """Triangulate one depth map, world axes and the scene's unit, where any frame to learn from saw tissue in that pixel.

    `observations` counts those frames, and `last_seen_s` is the time of the one nearest to the frame `time_of`: where it is another
    time than that frame's own, an instrument was in the way and the field filled the place in. Confidence comes from `squared`, of
    `squared_error`. Raises ReconError (exit code 1) when nothing is left.
    """
    seen = np.array([scene.tissue[position] for position in scene.kept])
    mesh = depth_surface(scene.camera, rendering.depth.astype(np.float64), seen.any(axis=0))
    if len(mesh.faces) == 0:
        index = scene.frames[time_of].index
        raise ReconError(f"the field shows no surface at the time of frame {index}: look at its render, and at the masks", exit_code=1)
    pixels, _ = project(scene.camera, mesh.vertices)
    column, row = np.rint(pixels).astype(int).T
    times = np.array([scene.frames[position].timestamp_s for position in scene.kept])
    nearest_first = np.argsort(np.abs(times - scene.frames[time_of].timestamp_s), kind="stable")
    seen_at = seen[:, row, column]
    variance = squared[row, column] * (1 / seen_at.sum(axis=0) + SHARED_ERROR)
    confidence = np.where(np.isfinite(variance), erf(TOLERANCE / np.sqrt(2 * np.maximum(variance, 1e-12))), 0)
    T = scene.frames[rendering.pose_of].T_world_camera
    vertices = mesh.vertices @ T[:3, :3].T + T[:3, 3]
    return Mesh(
        vertices,
        mesh.faces,
        colors=rendering.image[row, column],
        normals=vertex_normals(vertices, mesh.faces),
        confidence=confidence.astype(np.float32),
        observations=seen_at.sum(axis=0).astype(np.float32),
        last_seen_s=times[nearest_first][seen_at[nearest_first].argmax(axis=0)].astype(np.float32),
        matched=np.zeros(len(vertices), np.float32),
        unit=scene.unit,
    )


def fused_surface(
    scene: Scene,
    load: Callable[[int], Rendering],
    num_views: int,
    watch: Callable[[Iterable[int], int, str], Iterable[int]],
    voxels_per_depth: float = 96.0,
    num_threads: int = 0,
) -> Mesh:
    """Fuse `num_views` depth maps of one time, each where its own frame saw tissue.

    Args:
        load: from 0 to `num_views` - 1 to a rendering.
        watch: wraps a loop for progress: (items, total, description).
        num_threads: of the processor; 0 means all.

    Raises ReconError (exit code 1) when no surface comes out.
    """

    @lru_cache(num_views)  # fusion asks for each several times, and a rendering costs more than its memory
    def view(i: int) -> View:
        found = load(i)
        position, depth = found.pose_of, found.depth.astype(np.float32)
        return View(
            scene.frames[position].index,
            scene.camera,
            scene.frames[position].T_world_camera,
            depth,
            normals_from_depth(depth, rays(scene.camera)).astype(np.float32),
            (np.array(scene.tissue[position]) & edge_mask(depth, depth > 0, MAX_JUMP)).astype(np.float32),
            found.image,
            np.zeros(depth.shape, bool),
        )

    alone = [np.zeros(0, np.int64)] * num_views  # one field drew them all, so that their agreement says nothing
    settings = FusionSettings(voxels_per_depth=voxels_per_depth, num_threads=num_threads)
    return fuse(view, alone, scene.median_depth, TOLERANCE, scene.unit, settings, watch)[0]


def meshed_positions(scene: Scene, most: int) -> list[int]:
    """Positions of the frames at whose times surfaces are written: `most`, spread over the recording, and all that are held out."""
    return sorted({*spread(range(len(scene.frames)), most), *scene.held_out})


def poses_for_time(scene: Scene, time_of: int, num: int) -> list[int]:
    """Positions of at most `num` frames from whose poses the surface at the time of one is seen, frames to learn from alone.

    One where the camera stands still; else the frame itself, or the one to learn from that is nearest in time, and those that see the
    same place from elsewhere.
    """
    kept = np.array(scene.kept)
    anchor = int(np.argmin(np.abs(kept - time_of)))
    if scene.is_still:
        return [int(kept[anchor])]
    poses = np.array([scene.frames[position].T_world_camera for position in kept])
    return [int(kept[i]) for i in (anchor, *select_neighbours(poses, anchor, scene.median_depth, num - 1))]
