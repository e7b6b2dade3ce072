"""EndoNeRF: a still stereo endoscope over deforming tissue, with instrument masks and a stereo network's depth.

`poses_bounds.npy` holds a 3x5 matrix [R | t | height, width, focal] and two depth bounds a frame, with OpenCV axes (no LLFF axis
flip). The published loaders put the principal point at (width / 2, height / 2) counted from the first pixel's centre, and so
does this one. When all poses are the same the camera stood still: no trajectory is offered as truth, since none can be scored.
Depth is given as it is stored: the percentiles to which those loaders clip it are their training's, not the truth's.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Float

from recon.data.depth_files import depth_from_levels
from recon.data.folder import image_files, still_sequence
from recon.data.masks import masks_from_files
from recon.data.truth import check_rigid, frame_trajectory
from recon.io.images import read_integers
from recon.types import Camera, DepthMap, FrameSequence, Mesh, ReconError

TRUE_DEPTHS, TRUE_MESHES = "truth_depth", "truth_mesh"
"""Folders that rendered scenes in this layout add: `NNNNNN.npz` by frame index with `depth` (h, w), mm and 0 unknown, and for some
frames `vertices` (v, 3), mm, and `faces` of the true surface in camera axes, whose vertices keep their identity over time."""
STEP_MM = 1.0
"""Of the published depth, whole millimetres; how wrong the stereo network is nobody says."""


def matches(path: Path) -> bool:
    return (path / "poses_bounds.npy").is_file() and (path / "images").is_dir()


def open_endonerf(path: Path) -> FrameSequence:
    """Raises ReconError naming the file that is missing or damaged, or a folder with fewer files than there are images."""
    if not (path / "images").is_dir():
        raise ReconError(f"{path} has no folder `images`; expected the EndoNeRF layout")
    stills = still_sequence(path, image_files(path / "images"))
    table = read_poses_bounds(path / "poses_bounds.npy")
    if len(table) < len(stills.frames):
        raise ReconError(f"{path / 'poses_bounds.npy'} holds {len(table)} poses for {len(stills.frames)} images")
    masks = _beside(path / "masks", len(stills.frames))
    depths = _beside(path / "depth", len(stills.frames))
    poses = table[: len(stills.frames), :15].reshape(-1, 3, 5)
    still = bool(np.all(np.abs(poses[:, :, :4] - poses[0, :, :4]) < 1e-9))
    estimate = partial(_depth, depths, (stills.width_px, stills.height_px)) if depths else None
    truth = partial(_true_depth, path / TRUE_DEPTHS, (stills.width_px, stills.height_px)) if (path / TRUE_DEPTHS).is_dir() else None
    return FrameSequence(
        path.resolve().name,
        "endonerf",
        stills.frames,
        camera=_camera(poses[0, :, 4], stills.width_px, stills.height_px),
        unit="mm",
        noise_floor_mm=STEP_MM if depths and truth is None else None,
        trajectory_gt=None
        if still
        else frame_trajectory(stills.frames, range(len(poses)), dict(enumerate(_rigid(path / "poses_bounds.npy", poses))), "mm"),
        depth_gt=truth or estimate,
        depth_estimate=estimate,
        is_still=still,
        frame_mesh_gt=partial(_timed_mesh, path / TRUE_MESHES) if (path / TRUE_MESHES).is_dir() else None,
        instrument_mask=masks_from_files(dict(enumerate(masks))) if masks else None,
        notes=stills.notes + _notes(path, still, bool(depths), truth is not None),
    )


def read_poses_bounds(path: Path) -> Float[np.ndarray, "n 17"]:
    try:
        table = np.load(path, allow_pickle=False)
    except Exception as error:  # numpy raises many unrelated types on damaged files.
        raise ReconError(f"{path} cannot be read as a numpy array: {error}") from error
    if not isinstance(table, np.ndarray) or table.ndim != 2 or table.shape[1] != 17 or table.dtype.kind != "f":
        raise ReconError(f"{path} should be a table of 17 numbers a frame, found {getattr(table, 'shape', type(table).__name__)}")
    if not np.all(np.isfinite(table)):
        raise ReconError(f"{path} holds numbers that are not finite")
    return table.astype(np.float64)


def _notes(path: Path, still: bool, has_depth: bool, has_truth: bool) -> tuple[str, ...]:
    notes = ["the camera stands still: no trajectory is scored"] if still else []
    if not still:
        notes.append("the poses are read with OpenCV axes, as EndoNeRF's loaders do; a LLFF file of another program has other axes")
    if has_truth:
        notes.append(f"`{TRUE_DEPTHS}` and `{TRUE_MESHES}` of a rendered scene are its truth; `depth` is an estimate beside it")
    elif has_depth:
        notes.append("the depth that comes with the data is a stereo network's estimate in whole millimetres, not a measurement")
    if (path / "gt_masks").is_dir():
        notes.append("instruments are masked by `masks`; the published image scores use `gt_masks`, which differ")
    return tuple(notes)


def _camera(size_and_focal: Float[np.ndarray, " 3"], width_px: int, height_px: int) -> Camera:
    """The focal length is for the stored size; images may be smaller."""
    height, width, focal_px = size_and_focal
    if min(height, width, focal_px) <= 0:
        raise ReconError(f"poses_bounds.npy claims images of {width:g}x{height:g} with focal length {focal_px:g}")
    return Camera("PINHOLE", width_px, height_px, (focal_px * width_px / width, focal_px * height_px / height, width_px / 2, height_px / 2))


def _rigid(path: Path, poses: Float[np.ndarray, "n 3 5"]) -> Float[np.ndarray, "n 4 4"]:
    T = np.tile(np.eye(4), (len(poses), 1, 1))
    T[:, :3] = poses[:, :, :4]
    check_rigid(path, T)
    return T


def _beside(folder: Path, num_frames: int) -> list[Path]:
    """Files that belong to the images by their order; none when the folder is absent."""
    if not folder.is_dir():
        return []
    files = image_files(folder)
    if len(files) != num_frames:
        raise ReconError(f"{folder} holds {len(files)} files for {num_frames} images; they belong together by order")
    return files


def _depth(files: Sequence[Path], size_px: tuple[int, int], index: int) -> DepthMap:
    return depth_from_levels(files[index], read_integers(files[index]), size_px, 1.0, 1, 65535)


def _true_depth(folder: Path, size_px: tuple[int, int], index: int) -> DepthMap | None:
    file = folder / f"{index:06d}.npz"
    if not file.is_file():
        return None
    depth = _arrays(file, "depth")["depth"].astype(np.float32)
    if depth.shape != size_px[::-1]:
        raise ReconError(f"{file}: depth of shape {depth.shape} for images of {size_px[0]}x{size_px[1]}")
    valid = np.isfinite(depth) & (depth > 0)
    return DepthMap(np.where(valid, depth, 0), valid, "metric")


def _timed_mesh(folder: Path, index: int, both_views: bool) -> Mesh | None:
    """The true surface at the time of a frame, in camera axes; None where none is published. There is no second view to add."""
    file = folder / f"{index:06d}.npz"
    if not file.is_file():
        return None
    stored = _arrays(file, "vertices", "faces")
    return Mesh(stored["vertices"].astype(np.float64), stored["faces"].astype(np.int64), unit="mm")


def _arrays(file: Path, *names: str) -> dict[str, np.ndarray]:
    try:
        with np.load(file, allow_pickle=False) as stored:
            return {name: stored[name] for name in names}
    except Exception as error:  # numpy and zipfile raise many unrelated types on damaged files.
        raise ReconError(f"{file} should hold {' and '.join(names)}: {type(error).__name__}: {error}") from error
