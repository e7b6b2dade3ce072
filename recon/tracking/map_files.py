"""Sparse maps on disk, as structure from motion left them, less its stray frames: each in a frame and unit of its own, the largest first.

`structure.json` lists the maps. Each has a folder with `camera.json`, the lens at working resolution (refined where it was
not known), and `map.npz`:

    frame_index     (n,)       frames of the recording
    T_world_camera  (n, 4, 4)  poses, camera to world, OpenCV axes
    xyz             (p, 3)     points in the world
    error_px        (p,)       mean reprojection error of each point
    obs_point       (m,)       row of xyz of each observation
    obs_frame       (m,)       frame index of each observation
    obs_px          (m, 2)     working pixels, centres at integers
    obs_feature     (m,)       the feature of that frame: the same (frame, feature) in two maps is the same thing
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from recon.io.atomic import atomic_path, read_json, write_json
from recon.io.cameras import read_camera, write_camera
from recon.tracking.mapping import SparseMap

ARRAYS = ("xyz", "error_px", "obs_point", "obs_frame", "obs_px", "obs_feature")


def write_maps(folder: Path, maps: Sequence[SparseMap], num_frames: int) -> None:
    """Write the maps and, last, `structure.json`; `num_frames` says how many frames could have been registered."""
    entries = []
    for number, sparse in enumerate(maps):
        home = folder / "maps" / str(number)
        write_camera(home / "camera.json", sparse.camera)
        poses = {"frame_index": np.array(list(sparse.poses), np.int64), "T_world_camera": np.array(list(sparse.poses.values()))}
        with atomic_path(home / "map.npz") as part, open(part, "wb") as file:
            np.savez(file, **poses, **{name: getattr(sparse, name) for name in ARRAYS})
        error_px = float(sparse.error_px.mean()) if len(sparse.error_px) else None
        counts = {"num_frames": len(sparse.poses), "num_points": len(sparse.xyz), "mean_error_px": error_px}
        entries.append({"folder": f"maps/{number}", **counts})
    write_json(folder / "structure.json", {"num_frames": num_frames, "maps": entries})


def read_maps(folder: Path) -> list[SparseMap]:
    """Read what `write_maps` wrote, bit for bit."""
    maps = []
    for entry in read_json(folder / "structure.json")["maps"]:
        home = folder / entry["folder"]
        with np.load(home / "map.npz") as file:
            poses = dict(zip(file["frame_index"].tolist(), file["T_world_camera"], strict=True))
            maps.append(SparseMap(read_camera(home / "camera.json"), poses, **{name: file[name] for name in ARRAYS}))
    return maps
