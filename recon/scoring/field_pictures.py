"""What a radiance field draws beside what the camera saw: a few frames as pictures, all of them as a film."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from recon.io.atomic import write_bytes
from recon.io.depth import read_depth
from recon.report.comparison_video import ComparedFrame, comparison_picture, depth_range, write_comparison_video
from recon.report.figures import encode
from recon.sampling import spread
from recon.scoring.field import FieldFiles

NUM_PICTURES = 3
MIN_WIDTH_PX = 300
"""Smaller frames are enlarged, their pixels kept as squares."""
VIDEO = "comparison.mp4"
MIN_FPS, MAX_FPS = 5.0, 30.0


def write_field_pictures(out: Path, files: FieldFiles) -> None:
    """Write `figures/field_NNNNNN.png` of a few frames, held-out ones where there are any, and `comparison.mp4` of all."""
    scene = files.scene
    depths = (read_depth(files.folder / "depth" / f"{frame.index:06d}.tiff") for frame in scene.frames)
    limits = depth_range(depths)
    for position in spread(scene.held_out or scene.kept, NUM_PICTURES):
        picture = comparison_picture(_compared(files, position), limits, scene.unit)
        write_bytes(out / "figures" / f"field_{scene.frames[position].index:06d}.png", encode(picture))
    times = np.array([frame.timestamp_s for frame in scene.frames])
    step = float(np.median(np.diff(times))) if len(times) > 1 else 0.0
    fps = float(np.clip(1.0 / step if step > 0 else MIN_FPS, MIN_FPS, MAX_FPS))
    write_comparison_video(out / VIDEO, _all(files), limits, scene.unit, fps)


def _all(files: FieldFiles) -> Iterator[ComparedFrame]:
    for position in range(len(files.scene.frames)):
        yield _compared(files, position)


def _compared(files: FieldFiles, position: int) -> ComparedFrame:
    view, frame = files.scene.view(position), files.scene.frames[position]
    factor = -(-MIN_WIDTH_PX // view.image.shape[1])
    depth = read_depth(files.folder / "depth" / f"{frame.index:06d}.tiff")
    picture, render, depth, tissue = (
        cv2.resize(part, None, fx=factor, fy=factor, interpolation=cv2.INTER_NEAREST)
        for part in (view.image, files.render(frame.index), depth, view.tissue.astype(np.uint8))
    )
    return ComparedFrame(picture, render, depth, tissue > 0, f"{frame.index} {'held out' if frame.is_held_out else 'learned'}")
