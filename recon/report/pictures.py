"""Which pictures the page shows, made from the artifacts of the stages."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from recon.io.depth import read_depth
from recon.io.images import read_image
from recon.io.masks import read_mask
from recon.io.meshes import vertex_normals
from recon.report import figures
from recon.report.page import PagePictures, Picture
from recon.report.preview import MeshRenderer, viewpoints
from recon.sampling import spread
from recon.types import Mesh, Trajectory

THUMBNAIL_PX = 340
MAX_FILM_BYTES = 20_000_000
PREVIEW_ASPECT = 0.73
FLAT_COLOR = np.array([222, 184, 170], np.uint8)
MATCHED_COLOR, NETWORK_COLOR = np.array([92, 158, 118], np.uint8), np.array([226, 144, 74], np.uint8)


@dataclass(frozen=True)
class PictureSources:
    """Where the pictures come from."""

    inputs: dict[str, Path]
    frames: list[dict[str, Any]]
    """As in frames.json."""
    trajectory: Trajectory
    mesh: Mesh

    @cached_property
    def decoded(self) -> list[dict[str, Any]]:
        return [frame for frame in self.frames if (self.inputs["frames"] / "images" / f"{frame['index']:06d}.jpg").exists()]

    @cached_property
    def posed(self) -> list[dict[str, Any]]:
        return [f for f in self.decoded if (self.inputs["scale"] / "depth" / f"{f['index']:06d}.tiff").exists()]

    def image(self, index: int) -> np.ndarray:
        return read_image(self.inputs["frames"] / "images" / f"{index:06d}.jpg")

    def mask(self, index: int) -> np.ndarray | None:
        path = self.inputs["masks"] / "masks" / f"{index:06d}.png"
        return read_mask(path) if path.exists() else None

    def depth(self, index: int) -> np.ndarray:
        return read_depth(self.inputs["scale"] / "depth" / f"{index:06d}.tiff")


def page_pictures(sources: PictureSources, num_frames: int, preview_width_px: int, seconds: dict[str, float]) -> PagePictures:
    """Make every picture of the page."""
    depth, legend = _depth_pictures(sources, num_frames)
    return PagePictures(
        mesh=_mesh_pictures(sources, preview_width_px),
        frames=[_frame_picture(sources, frame) for frame in spread(sources.decoded, num_frames)],
        depth=depth,
        trajectory=_trajectory_pictures(sources),
        errors=_error_pictures(sources.inputs["evaluation"] / "figures"),
        times=Picture("seconds per stage", figures.times_figure(seconds)),
        depth_legend=legend,
        confidence_stops=figures.color_stops(figures.CONFIDENCE_COLORS),
        film=_film(sources.inputs["evaluation"] / "comparison.mp4"),
    )


def _film(file: Path) -> str | None:
    """The video as a data address, where there is one and it is small enough for a page."""
    if not file.exists() or file.stat().st_size > MAX_FILM_BYTES:
        return None
    return "data:video/mp4;base64," + base64.b64encode(file.read_bytes()).decode()


def _mesh_pictures(sources: PictureSources, width_px: int) -> list[Picture]:
    mesh, size = sources.mesh, (width_px, round(PREVIEW_ASPECT * width_px))
    normals = mesh.normals if mesh.normals is not None else vertex_normals(mesh.vertices, mesh.faces)
    renderer = MeshRenderer(mesh, normals)
    views = viewpoints(mesh, sources.trajectory.T_world_camera)
    colors = mesh.colors if mesh.colors is not None else np.tile(FLAT_COLOR, (len(mesh.vertices), 1))
    pictures = [(f"{view.name}", renderer.render(colors, view, *size)) for view in views]
    shape = np.tile(FLAT_COLOR, (len(mesh.vertices), 1))
    pictures.insert(1, (f"shape alone, {views[0].name}", renderer.render(shape, views[0], *size)))
    if mesh.confidence is not None:
        confidence = figures.colorize(mesh.confidence, 0.0, 1.0, figures.CONFIDENCE_COLORS)
        pictures.append((f"confidence, {views[1].name}", renderer.render(confidence, views[1], *size)))
    if mesh.matched is not None and mesh.matched.any():
        sources_of = np.where(mesh.matched[:, None] > 0.5, MATCHED_COLOR, NETWORK_COLOR).astype(np.uint8)
        caption = f"matched between views ({(mesh.matched > 0.5).mean():.0%}, green) or the network's word (orange), {views[1].name}"
        pictures.append((caption, renderer.render(sources_of, views[1], *size)))
    return [Picture(caption, figures.encode(picture)) for caption, picture in pictures]


def _frame_picture(sources: PictureSources, frame: dict[str, Any]) -> Picture:
    image, mask = sources.image(frame["index"]), sources.mask(frame["index"])
    shown = image if mask is None else figures.masked(image, mask)
    caption = f"{frame['index']} \u00b7 {frame['name']} \u00b7 {frame['timestamp_s']:.2f} s \u00b7 {frame['status']}"
    return Picture(caption, figures.encode(figures.thumbnail(shown, THUMBNAIL_PX), "JPEG"))


def _depth_pictures(sources: PictureSources, num_frames: int) -> tuple[list[Picture], tuple[list[str], str, str]]:
    """Return picture and depth side by side, all in one range of colours, and the legend."""
    chosen = spread(sources.posed, num_frames)
    depths = [sources.depth(frame["index"]) for frame in chosen]
    known = np.concatenate([depth[depth > 0] for depth in depths]) if depths else np.zeros(0)
    low, high = np.percentile(known, [2, 98]) if len(known) else (0.0, 1.0)
    unit = "world units" if sources.trajectory.unit == "unitless" else sources.trajectory.unit
    pictures = []
    for frame, depth in zip(chosen, depths, strict=True):
        image = figures.thumbnail(sources.image(frame["index"]), THUMBNAIL_PX)
        depth = cv2.resize(depth, image.shape[1::-1], interpolation=cv2.INTER_NEAREST)
        colors = figures.colorize(depth, float(low), float(high), figures.DEPTH_COLORS, depth > 0)
        pictures.append(Picture(f"{frame['index']} \u00b7 {frame['name']}", figures.encode(np.hstack([image, colors]), "JPEG")))
    return pictures, (figures.color_stops(figures.DEPTH_COLORS), f"{low:.3g} {unit}", f"{high:.3g} {unit}")


def _trajectory_pictures(sources: PictureSources) -> list[Picture]:
    trajectory = sources.trajectory
    if len(trajectory) == 0:
        return []
    keyframes = [frame["index"] for frame in sources.frames if frame["status"] == "keyframe"]
    is_keyframe = np.isin(trajectory.frame_indices, keyframes)
    drawn = figures.trajectory_figure(trajectory.T_world_camera[:, :3, 3], is_keyframe, trajectory.unit)
    return [Picture("camera centres along the three axes of the world", drawn)]


def _error_pictures(folder: Path) -> list[Picture]:
    captions = {
        "trajectory": "camera path and truth, similarity-aligned",
        "surface_error": "distance of the surface to the truth",
        "curves": "share of the surface that is right, and of the truth that is found, over the distance that counts as right",
    }
    return [Picture(captions.get(file.stem, _caption(file.stem)), file.read_bytes()) for file in sorted(folder.glob("*.png"), reverse=True)]


def _caption(stem: str) -> str:
    """Of a picture of one frame."""
    number = stem[-6:].lstrip("0") or "0"
    return f"frame {number}, what the field draws, its depth" if stem.startswith("field_") else f"depth of frame {number} against the truth"
