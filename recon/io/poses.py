"""Anyone's camera poses: which format a file or folder is in (TUM, KITTI or COLMAP), read into one form."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from recon.io.colmap_poses import find_model, read_colmap_poses
from recon.io.kitti import read_kitti
from recon.io.trajectory import pose_lines, read_tum
from recon.types import ReconError, Trajectory, Unit

PoseFormat = Literal["tum", "kitti", "colmap"]
COLUMNS: dict[int, PoseFormat] = {8: "tum", 12: "kitti"}
"""Numbers a line by which a text file is recognised."""


def read_poses(path: str | Path, unit: Unit = "unitless", fmt: PoseFormat | None = None, frame_names: Sequence[str] = ()) -> Trajectory:
    """Camera-to-world poses, recognised by content unless `fmt` names the format.

    `frame_indices` are positions in TUM, line numbers (or those of the file beside) in KITTI, and come from image names in COLMAP
    (`frame_names` as in `read_colmap_poses`). Only TUM has times; elsewhere they are NaN. `recon.eval.association.on_frames_of`
    brings them to the frames of the truth. Raises ReconError naming the file.
    """
    path = Path(path)
    if not path.exists():
        raise ReconError(f"{path} does not exist; expected a TUM or KITTI file or a COLMAP model folder")
    fmt = fmt or _recognised(path)
    if fmt == "colmap":
        return read_colmap_poses(path, unit, frame_names)
    return read_tum(path, unit) if fmt == "tum" else read_kitti(path, unit)


def _recognised(path: Path) -> PoseFormat:
    if find_model(path) is not None:
        return "colmap"
    if path.is_dir():
        raise ReconError(f"{path} holds no COLMAP model (images.bin or images.txt, also in sparse/0); give a TUM or KITTI file by its name")
    lines = pose_lines(path)
    columns = len(lines[0][1].split()) if lines else 0
    if columns not in COLUMNS:
        raise ReconError(f"{path}: its first line has {columns} words, expected 8 numbers (TUM) or 12 (KITTI)")
    return COLUMNS[columns]
