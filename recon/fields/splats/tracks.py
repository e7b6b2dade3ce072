"""Where the places of one picture are at other times, when the camera stands still: a start for motion.

Optical flow (Kroeger et al. 2016) says where a place of the reference picture is seen in every other one, and the depth there how
far away it is. What an instrument hides is filled from its rim, flow and depth of each frame for itself: tissue under an
instrument is being pulled, and what it looked like when it was free says less than what surrounds it.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Bool, Float

from recon.fields.scene import Scene
from recon.image.filling import membrane

MAX_ROUND_TRIP_PX = 1.0
"""Flow there and back that ends farther from where it began is not believed."""
MAX_MARGIN_SHARE = 0.15
"""Of the picture's width."""


@dataclass(frozen=True)
class Tracks:
    """Places of the reference picture, and of a margin around it, at the times of the kept frames, in the scene's unit.

    What moves into the picture later lies beside it at the time of the reference.
    """

    reference: int
    """Position of the reference frame among the scene's frames."""
    positions: Float[np.ndarray, "t h w 3"]
    """World points."""
    is_measured: Bool[np.ndarray, "t h w"]
    """True where a frame's own depth gave the point; elsewhere it was filled."""
    colors: Float[np.ndarray, "h w 3"]
    """0 to 1."""
    is_seen: Bool[np.ndarray, "h w"]
    """False where no kept frame ever saw the place."""
    is_shown: Bool[np.ndarray, "h w"]
    """False where the place is outside of every kept frame."""
    margin_px: int
    """Width of the margin: pixel (0, 0) of the reference is at [margin, margin]."""


def reference_frame(scene: Scene) -> int:
    """Position of a kept frame in the middle of the recording that shows much tissue."""
    kept = scene.kept
    middle = kept[len(kept) // 4 : max(3 * len(kept) // 4, len(kept) // 4 + 1)]
    return max(middle, key=lambda i: float(scene.tissue[i].mean()))


def follow(scene: Scene, filled: Float[np.ndarray, "n h w"]) -> Tracks:
    """Follow every pixel of the reference frame through the kept frames of a still camera; `filled` is their depth without gaps."""
    reference = reference_frame(scene)
    kept = scene.kept
    greys = _without_instruments(scene, kept)
    flows = _flows(greys, kept.index(reference))
    margin = _margin(flows)
    grid = _grid(*scene.tissue.shape[1:], margin)
    reached = [grid + cv2.copyMakeBorder(flow, margin, margin, margin, margin, cv2.BORDER_REPLICATE) for flow in flows]
    del flows
    positions = np.empty((len(kept), *grid.shape[:2], 3), np.float32)
    is_measured = np.empty(positions.shape[:3], bool)
    fx, fy, cx, cy = scene.camera.params
    T = scene.frames[reference].T_world_camera
    for k, (pixels, position) in enumerate(zip(reached, kept, strict=True)):
        is_measured[k] = _shown(scene.tissue[position] & (scene.depth[position] > 0), pixels)
        rays = np.stack([(pixels[..., 0] - cx) / fx, (pixels[..., 1] - cy) / fy, np.ones(grid.shape[:2])], axis=-1)
        positions[k] = (rays * _sampled(filled[position], pixels)[..., None]) @ T[:3, :3].T + T[:3, 3]
    colors, is_seen = _colors(scene, kept, reached, reference)
    return Tracks(
        reference,
        positions,
        is_measured,
        colors,
        is_seen,
        _enter(reached, scene.tissue.shape[1:]),
        margin,
    )


def _colors(scene: Scene, kept: list[int], reached: list[np.ndarray], reference: int) -> tuple[np.ndarray, np.ndarray]:
    """Of every place as the frame nearest in time to the reference shows it, and whether any does."""
    shape = reached[0].shape[:2]
    colors, seen = np.zeros((*shape, 3), np.float32), np.zeros(shape, bool)
    nearest_first = sorted(range(len(kept)), key=lambda k: abs(scene.frames[kept[k]].time - scene.frames[reference].time))
    for k in nearest_first:
        visible = _shown(scene.tissue[kept[k]], reached[k]) & ~seen
        if visible.any():
            colors[visible] = _sampled(np.array(scene.images[kept[k]]), reached[k])[visible] / np.float32(255)
            seen |= visible
        if seen.all():
            break
    return np.stack([membrane(colors[..., c], seen) for c in range(3)], axis=-1), seen


def _without_instruments(scene: Scene, kept: list[int]) -> list[np.ndarray]:
    """Grey pictures in which instruments are painted over with what other frames show there, so that flow is the tissue's."""
    typical, count = np.zeros(scene.tissue.shape[1:], np.float32), np.zeros(scene.tissue.shape[1:], np.float32)
    for position in kept:
        grey = cv2.cvtColor(np.array(scene.images[position]), cv2.COLOR_RGB2GRAY)
        typical += np.where(scene.tissue[position], grey, 0)
        count += scene.tissue[position]
    typical = membrane(typical / np.maximum(count, 1), count > 0)
    greys = []
    for position in kept:
        grey, tissue = cv2.cvtColor(np.array(scene.images[position]), cv2.COLOR_RGB2GRAY).astype(np.float32), scene.tissue[position]
        # Only the level differs at the rim: a membrane of the difference hides the seam.
        greys.append(np.clip(np.where(tissue, grey, typical + membrane(grey - typical, tissue)), 0, 255).astype(np.uint8))
    return greys


def _flows(greys: list[np.ndarray], reference: int) -> list[np.ndarray]:
    """Flow from the reference to every picture, each begun with that of its neighbour in time."""
    finder = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    finder.setFinestScale(0)
    flows: list[np.ndarray | None] = [None] * len(greys)
    flows[reference] = np.zeros((*greys[reference].shape, 2), np.float32)
    for order in (range(reference + 1, len(greys)), range(reference - 1, -1, -1)):
        before = flows[reference]
        for k in order:
            there = finder.calc(greys[reference], greys[k], before.copy())
            back = finder.calc(greys[k], greys[reference], -before)
            before = flows[k] = _believed(there, back)
    return flows


def _believed(there: np.ndarray, back: np.ndarray) -> np.ndarray:
    """Flow whose way back leads home, filled smoothly elsewhere."""
    height, width = there.shape[:2]
    error = np.linalg.norm(there + _sampled(back, _grid(height, width) + there), axis=-1)
    good = error < MAX_ROUND_TRIP_PX
    return np.stack([membrane(there[..., k], good) for k in range(2)], axis=-1)


def _margin(flows: list[np.ndarray]) -> int:
    """How far places move between pictures, but for a few, px."""
    far = max(float(np.percentile(np.abs(flow), 99)) for flow in flows)
    return 1 + min(int(np.ceil(far)), int(MAX_MARGIN_SHARE * flows[0].shape[1]))


def _grid(height: int, width: int, margin: int = 0) -> np.ndarray:
    """Pixels (x, y) of a picture and a margin around it."""
    return np.stack(np.meshgrid(np.arange(-margin, width + margin), np.arange(-margin, height + margin)), axis=-1).astype(np.float32)


def _shown(mask: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """Where a pixel lies inside the picture and all around it the mask is True."""
    height, width = mask.shape
    inside = np.all((pixels >= 0) & (pixels <= (width - 1, height - 1)), axis=-1)
    return inside & (_sampled(mask.astype(np.float32), pixels) > 0.999)


def _enter(reached: list[np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
    """Places that are inside the picture, or a pixel beside it, at some time."""
    return np.any([np.all((pixels > -1.5) & (pixels < (shape[1] + 0.5, shape[0] + 0.5)), axis=-1) for pixels in reached], axis=0)


def _sampled(picture: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    return cv2.remap(picture, pixels.astype(np.float32), None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
