"""Score a radiance field: pictures of frames it never saw, depth in sight and behind instruments, surfaces and tracks over time.

Neighbouring frames stand beside the pictures: a field that is not better than the mean of the frames before and after has only
interpolated in time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from recon.eval.distances import Surface, sample_surface
from recon.eval.image import (
    IMAGE_PROTOCOLS,
    PerceptualDistance,
    nearest_kept,
    neighbour_average,
    protocol_scores,
    psnr,
    score_frame,
    scored_frames,
    ssim,
)
from recon.fields.scene import Scene
from recon.geometry.cameras import resize
from recon.geometry.carrying import Carried
from recon.geometry.shrink import shrunk_depth
from recon.geometry.undistort import remap, remap_grid
from recon.io.depth import read_depth
from recon.io.images import read_image
from recon.io.meshes import read_mesh
from recon.scoring.score import Inputs, Score
from recon.types import Camera, FrameSequence, Mesh, Metric

RIM_PX = 2
"""Tracks are scored where the vertex is farther from the rim of the picture."""


@dataclass(frozen=True)
class FieldFiles:
    """What a field left: `renders/NNNNNN.png`, `depth/NNNNNN.tiff` and, at some times, `meshes/NNNNNN.ply`, by frame index."""

    folder: Path
    scene: Scene
    inputs: Inputs
    lens: Camera
    """Of the frames' sources, at the source's size."""

    def render(self, index: int) -> np.ndarray:
        return read_image(self.folder / "renders" / f"{index:06d}.png") / np.float32(255)


@dataclass(frozen=True)
class FieldOptions:
    """How much is compared."""

    num_samples: int = 20_000
    seed: int = 0
    lpips: PerceptualDistance | None = None


def score_field(sequence: FrameSequence, files: FieldFiles, options: FieldOptions) -> Score:
    """Compare with the recording's own pictures, and with its truth where it has any.

    Depth and surfaces are compared as they are, without alignment, where the scene claims millimetres and so does the truth.
    """
    metrics, rows, notes = _pictures(files, options)
    is_metric = files.scene.unit == "mm" and sequence.unit == "mm"
    has_depth = sequence.depth_gt is not None and is_metric
    if has_depth:
        found, depth_rows = _depth(sequence, files)
        metrics += found
        for index, row in depth_rows.items():
            rows.setdefault(index, {"index": index}).update(row)
    has_mesh = sequence.frame_mesh_gt is not None and is_metric
    if has_mesh:
        timed = _surfaces(sequence, files, options)
        metrics += timed
        if not timed:
            notes.append("no surface was scored over time: none was written at a time of which the truth is known")
    used = {"depth": has_depth, "trajectory": False, "mesh": has_mesh}
    frames = [rows[index] for index in sorted(rows)]
    return Score("this run", sequence.name, sequence.dataset, metrics, files.inputs, used, frames=frames, notes=notes)


def _pictures(files: FieldFiles, options: FieldOptions) -> tuple[list[Metric], dict[int, dict], list[str]]:
    scene = files.scene
    rows: dict[int, dict] = {}
    if not scene.held_out:
        return (
            _protocols(files, options),
            rows,
            ["no frame was held out of the field (scene.held_out=none): nothing says how it looks where it did not learn"],
        )
    times = np.array([frame.timestamp_s for frame in scene.frames])
    picture = lru_cache(8)(lambda position: np.array(scene.images[position]) / np.float32(255))
    values: dict[str, list[float]] = {}
    for position in scene.held_out:
        truth, tissue, index = picture(position), scene.tissue[position], scene.frames[position].index
        if not tissue.any():
            continue
        guesses = {
            "": files.render(index),
            "_nearest_frame": nearest_kept(picture, scene.kept, times, position),
            "_neighbour_average": neighbour_average(picture, scene.kept, times, position),
        }
        row = {f"psnr_visible{name}": psnr(guess, truth, tissue) for name, guess in guesses.items()}
        row |= {f"ssim_visible{name}": ssim(guess, truth, tissue) for name, guess in guesses.items()}
        if options.lpips is not None:
            row["lpips_visible"] = options.lpips(np.where(tissue[..., None], guesses[""], truth), truth, True)
        rows[index] = {"index": index, **row}
        for name, value in row.items():
            values.setdefault(name, []).append(value)
    metrics = [_picture_metric(name, float(np.mean(found))) for name, found in values.items()]
    return metrics + _protocols(files, options), rows, []


def _picture_metric(name: str, value: float, protocol: str | None = None) -> Metric:
    unit = "dB" if name.startswith("psnr") else "1"
    return Metric("image", name, value, unit, lower_is_better=name.startswith("lpips"), protocol=protocol)


def _protocols(files: FieldFiles, options: FieldOptions) -> list[Metric]:
    """The published protocols, of scenes whose kept and held-out frames are theirs: EndoNeRF's learns from all that it scores."""
    scene, metrics = files.scene, []
    numbers = list(range(len(scene.frames)))
    for name, protocol in IMAGE_PROTOCOLS.items():
        scored = scored_frames(name, numbers)
        if not scored or (scored if protocol.held_out else []) != scene.held_out:
            continue
        scores = []
        for position in scored:
            truth = np.array(scene.images[position]) / np.float32(255)
            scores.append(score_frame(name, files.render(scene.frames[position].index), truth, scene.tissue[position], options.lpips))
        for figure, value in protocol_scores(name, scores).items():
            metrics.append(_picture_metric(figure, value, name))
    return metrics


def _depth(sequence: FrameSequence, files: FieldFiles) -> tuple[list[Metric], dict[int, dict]]:
    """Mean absolute error of drawn z-depth where tissue is seen, and where an instrument covers it, over held-out frames or all.

    Beside each, the share of its true pixels that the field shows at all: what it leaves out has no error.
    """
    scene, metrics = files.scene, []
    positions = scene.held_out or list(range(len(scene.frames)))
    errors: dict[str, list[np.ndarray]] = {"visible": [], "hidden": []}
    shown: dict[str, list[np.ndarray]] = {"visible": [], "hidden": []}
    rows: dict[int, dict] = {}
    for position in positions:
        index = scene.frames[position].index
        truth = true_depth(sequence, files, index)
        if truth is None:
            continue
        depth = read_depth(files.folder / "depth" / f"{index:06d}.tiff")
        error, known = np.abs(depth - truth), truth > 0
        parts = {"visible": known & scene.tissue[position], "hidden": known & ~scene.tissue[position]}
        for name, part in parts.items():
            shown[name].append(depth[part] > 0)
        parts = {name: part & (depth > 0) for name, part in parts.items()}
        rows[index] = {f"depth_error_{name}": float(error[part].mean()) for name, part in parts.items() if part.any()}
        for name, part in parts.items():
            errors[name].append(error[part])
    for name, found in errors.items():
        values = np.concatenate(found) if found else np.zeros(0)
        if len(values):
            metrics.append(Metric("depth", f"field_depth_error_{name}", float(values.mean()), "mm"))
        values = np.concatenate(shown[name]) if shown[name] else np.zeros(0)
        if len(values):
            metrics.append(Metric("depth", f"field_depth_coverage_{name}", float(values.mean()), "1", lower_is_better=False))
    return metrics, rows


def true_depth(sequence: FrameSequence, files: FieldFiles, index: int) -> np.ndarray | None:
    """True z-depth of a frame on the scene's pinhole; 0 where unknown."""
    truth = sequence.depth_gt(index) if sequence.depth_gt else None
    if truth is None:
        return None
    camera = files.scene.camera
    depth = np.where(truth.valid, truth.depth, 0).astype(np.float32)
    if files.lens.model == "PINHOLE":
        return shrunk_depth(depth, truth.valid, (camera.height_px, camera.width_px))
    height, width = depth.shape
    return remap(depth, *remap_grid(resize(files.lens, width, height), camera), "nearest")


def _surfaces(sequence: FrameSequence, files: FieldFiles, options: FieldOptions) -> list[Metric]:
    """Distance of the field's surface from the true one at the same time, of the true one's visible vertices from the field's, and how far
    vertices of the truth are lost over time."""
    meshes: dict[int, tuple[Mesh, Mesh]] = {}
    position_of = {frame.index: i for i, frame in enumerate(files.scene.frames)}
    for file in sorted((files.folder / "meshes").glob("*.ply")):
        index = int(file.stem)
        truth = sequence.frame_mesh_gt(index, False) if sequence.frame_mesh_gt else None
        if truth is not None and index in position_of:
            mesh = read_mesh(file)
            T = files.scene.frames[position_of[index]].T_world_camera
            meshes[index] = (_moved(mesh, (mesh.vertices - T[:3, 3]) @ T[:3, :3]), truth)
    if not meshes:
        return []
    samples = [sample_surface(mesh, options.num_samples, options.seed).points for mesh, _ in meshes.values()]
    distances = [Surface(truth).distances(points) for points, (_, truth) in zip(samples, meshes.values(), strict=True)]
    metrics = [
        Metric("surface", "timed_accuracy_mean", float(np.mean([d.mean() for d in distances])), "mm"),
        Metric("surface", "timed_accuracy_p95", float(np.mean([np.percentile(d, 95) for d in distances])), "mm"),
    ]
    missed = []
    for index, (mesh, truth) in meshes.items():
        in_sight = truth.vertices[_visible(files, position_of[index])(truth.vertices)]
        if len(in_sight):
            missed.append(Surface(mesh).distances(in_sight))
    if missed:
        metrics.append(Metric("surface", "timed_completeness_mean", float(np.mean([d.mean() for d in missed])), "mm"))
    tracks = track_errors(meshes, lambda index: _visible(files, position_of[index]))
    if len(tracks):
        metrics.append(Metric("surface", "track_error_mean", float(tracks.mean()), "mm"))
        metrics.append(Metric("surface", "track_error_p95", float(np.percentile(tracks, 95)), "mm"))
    return metrics


def track_errors(meshes: dict[int, tuple[Mesh, Mesh]], visible_at: Callable[[int], Callable[[np.ndarray], np.ndarray]]) -> np.ndarray:
    """How far true vertices, carried by the surface from one time to another, end from where they are, mm.

    Only where the vertex is visible at both times, over all pairs of times; empty where the surfaces or the truths do not keep their
    vertices. Args: `meshes` are the field's and the true surface by time, in camera axes.
    """
    errors = [np.zeros(0)]
    for begin, (mesh, truth) in meshes.items():
        sees = visible_at(begin)(truth.vertices)
        if not sees.any():
            continue
        carried = Carried(truth.vertices[sees], mesh.vertices)
        for end, (other, true_other) in meshes.items():
            if end == begin or other.faces.shape != mesh.faces.shape or not np.array_equal(other.faces, mesh.faces):
                continue
            if true_other.vertices.shape != truth.vertices.shape:
                continue
            target = true_other.vertices[sees]
            still_seen = visible_at(end)(target)
            errors.append(np.linalg.norm(carried.to(other.vertices) - target, axis=1)[still_seen])
    return np.concatenate(errors)


def _visible(files: FieldFiles, position: int) -> Callable[[np.ndarray], np.ndarray]:
    """Whether points in camera axes fall on visible tissue of a frame."""
    fx, fy, cx, cy = files.scene.camera.params
    tissue = files.scene.tissue[position]
    height, width = tissue.shape

    def visible(points: np.ndarray) -> np.ndarray:
        x = np.rint(points[:, 0] / points[:, 2] * fx + cx).astype(int)
        y = np.rint(points[:, 1] / points[:, 2] * fy + cy).astype(int)
        inside = (x > RIM_PX) & (y > RIM_PX) & (x < width - 1 - RIM_PX) & (y < height - 1 - RIM_PX)
        return inside & tissue[y.clip(0, height - 1), x.clip(0, width - 1)]

    return visible


def _moved(mesh: Mesh, vertices: np.ndarray) -> Mesh:
    return Mesh(vertices, mesh.faces, unit=mesh.unit)
