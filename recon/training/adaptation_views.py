"""What adaptation learns from: frames that structure from motion posed, each beside others that see the same tissue from elsewhere.

Frames of a recording differ in how far the camera moved between them, so partners are chosen by parallax, the angle at which two
views see the points they share, and not by their distance in time. Stretches of frames are held out to judge by. What was learnt
from a frame holds for its neighbours too, which look almost alike, so frames beside a stretch are neither learnt from nor judged.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8

from recon.geometry.cameras import resize
from recon.io.images import read_image
from recon.io.masks import read_mask
from recon.models.student import Window, input_size, seen_window
from recon.sampling import spread
from recon.tracking.mapping import SparseMap
from recon.types import Camera

MAX_POINT_ERROR_PX = 2.0
"""Points that reproject worse than this say nothing."""
MIN_POINTS = 30
"""That a frame must see, and share with a partner."""
PARALLAX_RAD = (np.deg2rad(1.0), np.deg2rad(12.0))
"""Median angle at which two partners see their points: less says little of depth, more looks at another side of the tissue."""
BEST_PARALLAX_RAD = float(np.deg2rad(4.0))
REACH = 24
"""Partners lie at most this many posed frames apart."""
NUM_STRETCHES = 3
HELD_OUT_SHARE = 0.2
MARGIN = 5
"""Posed frames on either side of a held-out stretch that nothing is learnt from."""
MIN_STRETCH = 3
"""Frames with partners in a held-out stretch."""
MIN_GROUPS = 2 * (MIN_STRETCH + 2 * MARGIN)
"""Frames with partners for one stretch, where half of them are to be learnt from."""


@dataclass(frozen=True)
class Group:
    """A frame and the partners that it is seen from."""

    target: int
    sources: tuple[int, int]

    @property
    def frames(self) -> tuple[int, int, int]:
        """All of them."""
        return self.target, *self.sources


@dataclass(frozen=True)
class View:
    """What a window shows of one posed frame, at the network's size."""

    image: UInt8[np.ndarray, "h w 3"]
    tissue: Bool[np.ndarray, "h w"]
    """What the network is told to look at."""
    matte: Bool[np.ndarray, "h w"]
    """Tissue without highlights: what another view shows too."""
    camera: Camera
    """Of its map."""
    T_world_camera: Float[np.ndarray, "4 4"]
    points_px: Float[np.ndarray, "n 2"]
    log_distance: Float[np.ndarray, " n"]
    """Of the sparse points along their rays, in the unit of the map."""


def find_groups(maps: Sequence[SparseMap], leave_out: Container[int] = ()) -> list[Group]:
    """Every frame with two partners, in the order of time; no frame of `leave_out` is among them or their partners."""
    home = _largest_maps(maps)
    frames = [sorted(i for i in sparse.poses if home[i] is sparse and i not in leave_out) for sparse in maps]
    found = [group for sparse, own in zip(maps, frames, strict=True) for group in _groups(sparse, own)]
    return sorted(found, key=lambda group: group.target)


def hold_out(maps: Sequence[SparseMap], max_groups: int) -> tuple[list[Group], set[int]]:
    """Groups to judge by, at most `max_groups`, in stretches spread over the recording; and the frames not to learn from.

    These are the stretches and MARGIN posed frames on either side. Partners are of the same frames where they offer two, else they
    are learnt from, too. A recording with fewer than MIN_GROUPS frames with partners is too short: nothing is held out.
    """
    groups, posed = find_groups(maps), sorted(_largest_maps(maps))
    stretches = _stretches(groups, min(NUM_STRETCHES, len(groups) // MIN_GROUPS))
    kept_back: set[int] = set()
    for stretch in stretches:
        first, last = (bisect_left(posed, group.target) for group in (stretch[0], stretch[-1]))
        kept_back.update(posed[max(0, first - MARGIN) : last + 1 + MARGIN])
    among_them = {group.target: group for group in find_groups(maps, set(posed) - kept_back)}
    chosen = [group for stretch in stretches for group in spread(stretch, max_groups // len(stretches))]
    return [among_them.get(group.target, group) for group in chosen], kept_back


def _stretches(groups: Sequence[Group], num: int) -> list[Sequence[Group]]:
    """As many runs of groups as asked for, HELD_OUT_SHARE of all, or less where margins leave less than half to learn from."""
    if num == 0:
        return []
    size = max(MIN_STRETCH, min(round(HELD_OUT_SHARE * len(groups) / num), len(groups) // (2 * num) - 2 * MARGIN))
    firsts = [round((k + 0.5) * len(groups) / num) - size // 2 for k in range(num)]
    return [groups[first : first + size] for first in firsts]


def load_views(
    groups: Sequence[Group], maps: Sequence[SparseMap], images: Path, tissue: Path, masks: Path, window: Window
) -> dict[int, View]:
    """Every frame of the groups, by its index: what the window shows of it, at the network's size."""
    home = _largest_maps(maps)
    return {index: _view(index, home[index], images, tissue, masks, window) for index in frames_of(groups)}


def frames_of(groups: Iterable[Group]) -> list[int]:
    """All frames that occur in any of the groups."""
    return sorted({index for group in groups for index in group.frames})


def common_window(groups: Iterable[Group], tissue: Path) -> Window:
    """The window of everything that is tissue in any frame of the groups: one lens serves for all.

    Where an instrument hides the edge of a frame, inference sees the rest of that frame larger than it was learnt from.
    """
    masks = (read_mask(tissue / f"{index:06d}.png") for index in frames_of(groups))
    return seen_window(reduce(np.logical_or, masks))


def _largest_maps(maps: Sequence[SparseMap]) -> dict[int, SparseMap]:
    """Maps may share frames; each counts in the largest that has it."""
    return {index: sparse for sparse in reversed(maps) for index in sparse.poses}


def _view(index: int, sparse: SparseMap, images: Path, tissue: Path, masks: Path, window: Window) -> View:
    size, camera = input_size(window.width, window.height), window.lens(sparse.camera)
    rows = _good_rows(sparse, index)
    points_px = sparse.obs_px[rows] - (window.left, window.top)
    inside = ((points_px >= -0.5) & (points_px <= np.array([window.width, window.height]) - 0.5)).all(axis=1)
    rows, points_px = rows[inside], points_px[inside]
    away = sparse.xyz[sparse.obs_point[rows]] - sparse.poses[index][:3, 3]
    scale = np.array(size) / (window.width, window.height)
    kept = [_shrunk(window.cut(read_mask(folder / f"{index:06d}.png")), size) for folder in (tissue, masks)]
    return View(
        image=cv2.resize(window.cut(read_image(images / f"{index:06d}.jpg")), size, interpolation=cv2.INTER_AREA),
        tissue=kept[0],
        # The windows of SSIM reach one pixel beyond a mask.
        matte=cv2.erode(kept[1].astype(np.uint8), np.ones((3, 3), np.uint8)) > 0,
        camera=resize(camera, *size),
        T_world_camera=sparse.poses[index],
        points_px=(points_px + 0.5) * scale - 0.5,
        log_distance=np.log(np.linalg.norm(away, axis=1)),
    )


def _shrunk(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return cv2.resize(mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST) > 0


def _good_rows(sparse: SparseMap, index: int) -> np.ndarray:
    return np.flatnonzero((sparse.obs_frame == index) & (sparse.error_px[sparse.obs_point] <= MAX_POINT_ERROR_PX))


def _groups(sparse: SparseMap, frames: Sequence[int]) -> list[Group]:
    """For each of a map's frames the best partner on either side in time, else the two best."""
    seen = {index: np.unique(sparse.obs_point[_good_rows(sparse, index)]) for index in frames}
    groups = []
    for at, target in enumerate(frames):
        near = [*frames[max(0, at - REACH) : at], *frames[at + 1 : at + 1 + REACH]]
        quality = {other: q for other in near if (q := _partnership(sparse, seen, target, other)) is not None}
        best = sorted(quality, key=lambda other: quality[other])
        # The best, then the best on its other side.
        pair = [*best[:1], *[other for other in best[1:] if (other > target) != (best[0] > target)][:1], *best[1:2]][:2]
        if len(pair) == 2:
            groups.append(Group(target, (pair[0], pair[1])))
    return groups


def _partnership(sparse: SparseMap, seen: Mapping[int, np.ndarray], a: int, b: int) -> float | None:
    """How far, as a log ratio, the parallax of two frames is from the best; None where they are no partners."""
    shared = np.intersect1d(seen[a], seen[b], assume_unique=True)
    if len(shared) < MIN_POINTS:
        return None
    to_a, to_b = (sparse.xyz[shared] - sparse.poses[index][:3, 3] for index in (a, b))
    cosine = (to_a * to_b).sum(axis=1) / (np.linalg.norm(to_a, axis=1) * np.linalg.norm(to_b, axis=1))
    parallax = float(np.median(np.arccos(np.clip(cosine, -1.0, 1.0))))
    if not PARALLAX_RAD[0] <= parallax <= PARALLAX_RAD[1]:
        return None
    return abs(float(np.log(parallax / BEST_PARALLAX_RAD)))
