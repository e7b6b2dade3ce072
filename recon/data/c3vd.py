"""C3VD v1 and v2: a real colonoscope in a silicone colon, with depth, poses and the surface it saw.

Poses are camera-to-world in millimetres; current files hold each matrix transposed, older ones do not, and which it is shows
in the bottom row. Depth is z-depth, 16 bit over 0 to 100 mm, both ends meaning unknown (8 bit where a preprocessing script
has reduced it). The lens is Scaramuzza's model with the published constants, rescaled when the images are. Screening and
deformation videos have poses only.
"""

from __future__ import annotations

import re
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
from jaxtyping import Float

from recon.data.depth_files import depth_files, depth_from_levels
from recon.data.folder import frame_number, image_files, still_sequence
from recon.data.truth import check_rigid, frame_trajectory, read_number_rows
from recon.geometry.cameras import resize
from recon.io.images import read_integers
from recon.io.obj import read_obj
from recon.types import Camera, DepthMap, FrameSequence, Mesh, ReconError

CAMERA = Camera(
    "SCARAMUZZA",
    1350,
    1080,
    (
        678.544839263292,
        542.975887548343,
        769.243600037458,
        0.0,
        -0.000812770624150226,
        6.25674244578925e-07,
        -1.19662182144280e-09,
        0.999986882249990,
        0.00288273829525059,
        -0.00296316513429569,
    ),
)
"""The Olympus CF-HQ190L as calibrated by the data set's authors, pixel centres at integers."""

POSE_TOLERANCE = 1e-6
"""Of the zeros in the row or column that ends a pose; text files round."""
MAX_DEPTH_MM = 100.0
NOISE_FLOOR_MM = 0.321
"""Bobrow et al. 2023: mean translation error of the registration of video to model, in simulation (with 0.159 degrees)."""
_KEYS = ("cx", "cy", "a0", "a1", "a2", "a3", "a4", "c", "d", "e")


def matches(path: Path) -> bool:
    return (path / "pose.txt").is_file() and bool(_color_files(path))


def open_c3vd(path: Path) -> FrameSequence:
    """One sequence of either layout. Raises ReconError naming the file that is missing or damaged."""
    files = _color_files(path)
    if not files:
        raise ReconError(f"{path} holds no colour images of C3VD (NNNN_color.png, or rgb/NNNN.png)")
    stills = still_sequence(path, files)
    numbers = [frame_number(file.name) for file in files]
    camera, notes = _camera(path, stills.width_px, stills.height_px)
    depths = depth_files(path / "depth" if (path / "depth").is_dir() else path, numbers, r"\d+_depth\.tiff?")
    mesh_file = path / "coverage_mesh.obj"
    return FrameSequence(
        path.resolve().name,
        "c3vd",
        stills.frames,
        camera=camera,
        unit="mm",
        trajectory_gt=frame_trajectory(stills.frames, numbers, dict(enumerate(read_poses(path / "pose.txt"))), "mm"),
        depth_gt=partial(_depth, depths, (stills.width_px, stills.height_px)) if depths else None,
        mesh_gt=partial(_covered_mesh, mesh_file) if mesh_file.is_file() else None,
        whole_mesh_gt=partial(_whole_mesh, mesh_file) if mesh_file.is_file() else None,
        noise_floor_mm=NOISE_FLOOR_MM,
        notes=stills.notes + notes,
    )


def read_poses(path: Path) -> Float[np.ndarray, "n 4 4"]:
    """Camera-to-world matrices of a `pose.txt`, transposed or not. Raises ReconError when they are not rigid motions."""
    T = read_number_rows(path, 16, separator=",").reshape(-1, 4, 4)
    bottom, right = np.abs(T[:, 3, :3]).max(), np.abs(T[:, :3, 3]).max()
    if bottom > POSE_TOLERANCE and right > POSE_TOLERANCE:
        raise ReconError(f"{path}: neither the last row nor the last column of the poses is 0 0 0 1")
    if bottom > POSE_TOLERANCE:
        T = T.transpose(0, 2, 1)
    check_rigid(path, T)
    return np.ascontiguousarray(T)


def _color_files(path: Path) -> list[Path]:
    flat = image_files(path, r"\d+_color\.png")
    return flat or (image_files(path / "rgb", r"\d+(_color)?\.png") if (path / "rgb").is_dir() else [])


def _depth(file_of: dict[int, Path], size_px: tuple[int, int], index: int) -> DepthMap | None:
    if index not in file_of:
        return None
    levels = read_integers(file_of[index])
    clipped = int(np.iinfo(levels.dtype).max)
    return depth_from_levels(file_of[index], levels, size_px, MAX_DEPTH_MM / clipped, 1, clipped - 1)


@lru_cache(maxsize=1)
def _parsed(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Of the last sequence: seen part and whole are asked for one after the other, and the text takes seconds to read."""
    return read_obj(path)


def _whole_mesh(path: Path) -> Mesh:
    vertices, faces, _ = _parsed(path)
    return Mesh(vertices, faces, unit="mm")


def _covered_mesh(path: Path) -> Mesh:
    """The faces that the camera saw: texture index 1 (2 marks the others)."""
    vertices, faces, texture_idx = _parsed(path)
    if texture_idx is None:
        raise ReconError(f"{path}: faces carry no texture index, which says whether the camera saw them")
    seen = faces[(texture_idx == 0).all(axis=1)]
    if not len(seen):
        raise ReconError(f"{path}: no face is marked as seen (texture index 1)")
    used, compact = np.unique(seen, return_inverse=True)
    return Mesh(vertices[used], compact.reshape(-1, 3), unit="mm")


def _camera(path: Path, width_px: int, height_px: int) -> tuple[Camera | None, tuple[str, ...]]:
    camera, notes = CAMERA, ()
    for file in (path / "camera_intrinsics.txt", path.parent / "camera_intrinsics.txt"):
        if file.is_file():
            own = _parse_intrinsics(file)
            camera = own or CAMERA
            notes = () if own else (f"{file.name} is not understood; the published constants of the lens are used",)
            break
    if abs(width_px / height_px / (camera.width_px / camera.height_px) - 1) > 0.01:
        return None, (f"images of {width_px}x{height_px} do not have the aspect of C3VD's lens: its calibration is not used",)
    return resize(camera, width_px, height_px), notes


def _parse_intrinsics(file: Path) -> Camera | None:
    """Ten named numbers of Scaramuzza's model (and the image size), in whichever order and punctuation."""
    number = r"[-+]?\d+(?:\.\d*)?(?:[eE][-+]?\d+)?"
    found = dict(re.findall(rf"\b([A-Za-z]\w*)\b\"?\s*[=:,\s]\s*({number})", file.read_text(encoding="utf-8", errors="replace")))
    lens = {name.lower(): float(value) for name, value in found.items()}
    if "a1" not in lens:
        lens["a1"] = 0.0
    if any(key not in lens for key in _KEYS) or lens["a0"] <= 0:
        return None
    width = int(lens.get("width", lens.get("w", CAMERA.width_px)))
    height = int(lens.get("height", lens.get("h", CAMERA.height_px)))
    return Camera("SCARAMUZZA", width, height, tuple(lens[key] for key in _KEYS))
