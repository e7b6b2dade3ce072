"""SERV-CT: stereo pairs of porcine torsos with depth from CT; the left image of every pair is a frame.

The data set's root (all experiments in a row), one Experiment folder, and one reference folder inside it all open; the last
chooses between the references of an experiment, where otherwise CT goes before structured light. Depth is in millimetres times
256 where a file has 16 bits (servcttk takes other files as they are), 0 unknown; blue in the occlusion picture marks pixels
without reference surface. Every pair has its own calibration, in pixels and millimetres. Frames are unrelated views.

The data set has no mesh: the reference surface is made of the depth maps. In that of both views the right one adds the
faces that the left one does not show, because they are hidden from it or outside its image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float

from recon.data.depth_files import depth_from_levels
from recon.data.folder import image_files, still_sequence
from recon.data.stereo import right_from_left
from recon.geometry.cameras import project
from recon.geometry.depth_surface import depth_surface
from recon.io.atomic import read_json
from recon.io.images import read_image, read_integers
from recon.types import Camera, DepthMap, FrameError, FrameSequence, Mesh, ReconError, SecondView

_REFERENCES = ("Ground_truth_CT", "Reference_CT", "Ground_truth_RGB", "Reference_RGB")
"""Spellings of the folder of the reference, in the order of preference: CT before structured light."""
_NO_SURFACE = (0, 0, 255)
_SEEN_ONCE = ((255, 255, 0), (255, 0, 0), (0, 255, 0))
"""Outside the other view, not visible in the right one, not visible in the left one; all colours are RGB."""

NOISE_FLOOR_MM = 2.0
"""Edwards et al., abstract of arXiv 2012.11779: repeated manual alignments to the CT agree to about 2 pixels and 2 mm."""


@dataclass(frozen=True)
class _Pair:
    """One stereo pair: its left image, the folder of its truth, its calibration file, and the left lens."""

    image: Path
    reference: Path | None
    calibration: Path
    left: Camera | None
    """None where there is no calibration."""


def matches(path: Path) -> bool:
    return bool(_experiments(path.absolute()))


def open_servct(path: Path) -> FrameSequence:
    """Raises ReconError naming what is missing, or the calibration file that is damaged."""
    path = path.absolute()  # "." has no name to recognise it by
    experiments = _experiments(path)
    if not experiments:
        raise ReconError(f"{path} is neither a SERV-CT root (Experiment_*/Left_rectified) nor one of its Experiment or reference folders")
    files = [file for experiment in experiments for file in image_files(experiment / "Left_rectified")]
    names = [f"{file.parent.parent.name}/{file.stem}" if path in {e.parent for e in experiments} else file.stem for file in files]
    stills = still_sequence(path, files, names)
    size_px = (stills.width_px, stills.height_px)
    pairs = [_pair(file, path, size_px) for file in files]
    return FrameSequence(
        path.resolve().name,
        "servct",
        stills.frames,
        camera=next((pair.left for pair in pairs if pair.left), None),
        frame_camera=partial(_left_camera, pairs),
        is_unrelated=True,
        unit="mm",
        depth_gt=partial(_left_depth, pairs, size_px),
        frame_mesh_gt=partial(_surface, pairs, size_px),
        noise_floor_mm=NOISE_FLOOR_MM,
        second_view=partial(_right_view, pairs, size_px),
        notes=(*stills.notes, *_notes(pairs)),
    )


def _experiments(path: Path) -> list[Path]:
    if (path / "Left_rectified").is_dir():
        return [path]
    if path.name in _REFERENCES and (path.parent / "Left_rectified").is_dir():
        return [path.parent]
    return sorted(folder.parent for folder in path.glob("Experiment_*/Left_rectified") if folder.is_dir()) if path.is_dir() else []


def _pair(image: Path, opened: Path, size_px: tuple[int, int]) -> _Pair:
    experiment = image.parent.parent
    candidates = [opened] if opened.name in _REFERENCES else [experiment / name for name in _REFERENCES]
    reference = next((folder for folder in candidates if folder.is_dir()), None)
    calibration = experiment / "Rectified_calibration" / f"{image.stem}.json"
    left = _lens(_projection(calibration, "P1"), size_px) if calibration.is_file() else None
    return _Pair(image, reference, calibration, left)


def _lens(P: Float[np.ndarray, "3 4"], size_px: tuple[int, int]) -> Camera:
    return Camera("PINHOLE", *size_px, (P[0, 0], P[1, 1], P[0, 2], P[1, 2]))


def _projection(path: Path, key: str) -> Float[np.ndarray, "3 4"]:
    """A rectified projection, pixel centres at integers as in OpenCV."""
    try:
        P = np.array(read_json(path)[key]["data"], dtype=np.float64).reshape(3, 4)
    except (KeyError, TypeError, ValueError) as error:
        raise ReconError(f"{path}: expected {key} with the 12 numbers of a 3x4 projection in `data`") from error
    if not np.all(np.isfinite(P)) or min(P[0, 0], P[1, 1]) <= 0 or not np.array_equal(P[2, :3], (0, 0, 1)):
        raise ReconError(f"{path}: {key} is not a projection with a positive focal length: {P.tolist()}")
    return P


def _notes(pairs: Sequence[_Pair]) -> tuple[str, ...]:
    lenses = np.array([pair.left.params for pair in pairs if pair.left])
    spread_px = np.abs(lenses - lenses[0]).max() if len(lenses) else 0.0
    used = sorted({pair.reference.name for pair in pairs if pair.reference})
    unused = sorted({name for pair in pairs for name in _REFERENCES if (pair.image.parent.parent / name).is_dir()} - set(used))
    notes = [f"the truth is {' and '.join(used)}"] if used else []
    if unused:
        notes.append(f"there is {' and '.join(unused)} too: open such a folder to use it as truth")
    if spread_px > 0.5:
        notes.append(f"calibrations differ by up to {spread_px:.1f} px: truth uses each pair's own, a reconstruction the first one")
    return (*notes, "frames are unrelated stereo pairs: no trajectory can be expected")


def _left_camera(pairs: Sequence[_Pair], index: int) -> Camera | None:
    return pairs[index].left


def _right_view(pairs: Sequence[_Pair], size_px: tuple[int, int], index: int) -> SecondView | None:
    pair = pairs[index]
    image = pair.image.parent.parent / "Right_rectified" / pair.image.name
    if pair.left is None or not image.is_file():
        return None
    P2 = _projection(pair.calibration, "P2")
    return SecondView(_lens(P2, size_px), right_from_left(np.eye(3), _offset(P2)), partial(read_image, image))


def _offset(P2: Float[np.ndarray, "3 4"]) -> Float[np.ndarray, " 3"]:
    """P2 maps points of the left camera: K (x_left + offset), where the offset is the baseline to the left."""
    return np.linalg.solve(P2[:, :3], P2[:, 3])


def _left_depth(pairs: Sequence[_Pair], size_px: tuple[int, int], index: int) -> DepthMap | None:
    return _read_depth(pairs[index], "L", size_px)


def _read_depth(pair: _Pair, side: str, size_px: tuple[int, int]) -> DepthMap | None:
    """Truth of the left ("L") or right ("R") view; None where the data set has none."""
    file = pair.reference / f"Depth{side}" / pair.image.name if pair.reference else None
    if file is None or not file.is_file():
        return None
    levels = read_integers(file)
    depth = depth_from_levels(file, levels, size_px, 1 / 256 if levels.dtype == np.uint16 else 1.0, 1, 65535)
    occlusion = file.parent.parent / f"Occlusion{side}" / file.name
    if not occlusion.is_file():
        return depth
    colors = read_image(occlusion)
    if colors.shape[:2] != levels.shape:
        raise FrameError(f"{occlusion} is {colors.shape[1]}x{colors.shape[0]} but its frame is {size_px[0]}x{size_px[1]}")
    has_surface = ~np.all(colors == _NO_SURFACE, axis=2)
    in_both = ~np.any([np.all(colors == color, axis=2) for color in _SEEN_ONCE], axis=0)
    return DepthMap(depth.depth * has_surface, depth.valid & has_surface, "metric", depth.valid & has_surface & in_both)


def _surface(pairs: Sequence[_Pair], size_px: tuple[int, int], index: int, both_views: bool) -> Mesh | None:
    """The reference surface in the left camera's axes; None without depth or calibration of the left view.

    Raises ReconError when both views are asked for and the right one has no depth.
    """
    pair, depth = pairs[index], _read_depth(pairs[index], "L", size_px)
    if depth is None or pair.left is None:
        return None
    surface = depth_surface(pair.left, depth.depth, depth.valid)
    if not both_views:
        return surface
    added = _right_surface(pair, size_px)
    hidden = added.faces[~_shown(added, pair.left, depth)]
    used, compact = np.unique(hidden, return_inverse=True)
    vertices = np.concatenate([surface.vertices, added.vertices[used]])
    return Mesh(vertices, np.concatenate([surface.faces, compact.reshape(-1, 3) + len(surface.vertices)]), unit="mm")


def _right_surface(pair: _Pair, size_px: tuple[int, int]) -> Mesh:
    """The right view's surface in the left camera's axes."""
    depth = _read_depth(pair, "R", size_px)
    if depth is None:
        raise ReconError(f"{pair.reference / 'DepthR' / pair.image.name} is missing: both views cannot be merged; use the left one alone")
    P2 = _projection(pair.calibration, "P2")
    surface = depth_surface(_lens(P2, size_px), depth.depth, depth.valid)
    return replace(surface, vertices=surface.vertices - _offset(P2))


def _shown(mesh: Mesh, camera: Camera, depth: DepthMap) -> Bool[np.ndarray, " f"]:
    """Faces whose centre falls between pixels of known depth and not behind the farthest of them.

    The margin of one pixel's footprint is for rounding: hidden surfaces are farther behind, by the limit on grazing angles.
    """
    centers = mesh.vertices[mesh.faces].mean(axis=1)
    pixels, in_front = project(camera, centers)
    low = np.clip(np.floor(pixels), 0, (camera.width_px - 2, camera.height_px - 2)).astype(np.int64)
    inside = in_front & np.all((pixels >= low) & (pixels <= low + 1), axis=1)
    corners = np.stack([depth.depth[low[:, 1] + v, low[:, 0] + u] for v in (0, 1) for u in (0, 1)])
    return inside & (corners.min(axis=0) > 0) & (centers[:, 2] <= corners.max(axis=0) + centers[:, 2] / camera.params[0])
