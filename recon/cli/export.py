"""The verb export: results in the formats of other programs."""

from __future__ import annotations

import argparse
from dataclasses import fields, replace
from functools import partial
from pathlib import Path

import numpy as np

from recon.cli.results import artifact, newest_report, stdout
from recon.io.atomic import read_json, write_bytes, write_text


def export(arguments: argparse.Namespace) -> int:
    """Write one kind of result into a folder, every file whole or not at all."""
    writers = {
        "depth": _depth,
        "trajectory": _trajectory,
        "mesh": _mesh,
        "colmap": _colmap,
        "nerfstudio": _nerfstudio,
        "splats": _splats,
    }
    newest_report(arguments.run)
    written = writers[arguments.what](arguments.run, arguments.to)
    stdout.print(f"{written} in {arguments.to}", soft_wrap=True)
    return 0


def _depth(run: Path, to: Path) -> str:
    """z-depth in the report's unit, on the source image's lens and aspect."""
    files = sorted((artifact(run, "scale") / "depth").glob("*.tiff"))
    for file in files:
        _copy(file, to / file.name)
    return f"{len(files)} depth maps"


def _trajectory(run: Path, to: Path) -> str:
    """KITTI lines carry no time, so the frames they belong to stand in a file beside."""
    from recon.io.kitti import write_kitti

    _copy(run / "results" / "trajectory.txt", to / "trajectory_tum.txt")
    posed = [frame for frame in read_json(artifact(run, "scale") / "trajectory.json")["frames"] if frame["T_world_camera"] is not None]
    write_kitti(to / "trajectory_kitti.txt", np.array([frame["T_world_camera"] for frame in posed], dtype=np.float64).reshape(-1, 4, 4))
    write_text(to / "trajectory_kitti_frames.txt", "".join(f"{frame['index']}\n" for frame in posed))
    return f"{len(posed)} poses (TUM and KITTI)"


def _mesh(run: Path, to: Path) -> str:
    import trimesh

    results = run / "results"
    for name in ("mesh.ply", "mesh.glb"):
        _copy(results / name, to / name)
    mesh = trimesh.load(results / "mesh.ply", process=False)
    write_text(to / "mesh.obj", mesh.export(file_type="obj", include_normals=True))
    write_bytes(to / "mesh.stl", mesh.export(file_type="stl"))
    return "mesh.ply, mesh.glb, mesh.obj, mesh.stl"


def _colmap(run: Path, to: Path) -> str:
    """A model that COLMAP opens: `sparse/0` in the report's unit, and the images it was made from."""
    from recon.io.cameras import read_camera
    from recon.io.colmap import SparsePoints, write_colmap

    trajectory, scaled = (artifact(run, stage) for stage in ("trajectory", "scale"))
    poses, files = _posed_images(run)
    with np.load(trajectory / "points.npz") as stored:
        points = SparsePoints(**{field.name: stored[field.name] for field in fields(SparsePoints)})
    points = replace(points, xyz=points.xyz * read_json(scaled / "scale.json")["value"])
    names = {index: file.name for index, file in files.items()}
    error_px = write_colmap(to / "sparse" / "0", read_camera(trajectory / "camera.json"), names, poses, points)
    for file in files.values():
        _copy(file, to / "images" / file.name)
    lens = f"; a fisheye stands in for the lens, off by {error_px:.2f} px at most" if error_px else ""
    return f"a COLMAP model of {len(poses)} images{lens}"


def _nerfstudio(run: Path, to: Path) -> str:
    """`transforms.json` with the images, the depth and the tissue masks of the posed frames, in the report's unit."""
    from recon.io.cameras import read_camera
    from recon.io.colmap_camera import colmap_lens
    from recon.io.nerfstudio import PosedFrame, write_nerfstudio

    scaled, masks = artifact(run, "scale"), artifact(run, "masks")
    poses, files = _posed_images(run)
    times_s = {f["index"]: f["timestamp_s"] for f in read_json(artifact(run, "frames") / "frames.json")["frames"]}
    lens = colmap_lens(read_camera(artifact(run, "trajectory") / "camera.json"))
    T_camera_lens = np.eye(4)
    T_camera_lens[:3, :3] = lens.R_camera_lens
    size = lens.camera.width_px, lens.camera.height_px
    frames = [
        PosedFrame(
            file.stem,
            times_s[index],
            poses[index] @ T_camera_lens,
            file,
            depth=partial(_depth_of_size, scaled / "depth" / f"{index:06d}.tiff", size),
            mask=partial(_mask_of_size, masks / "tissue" / f"{index:06d}.png", size),
        )
        for index, file in files.items()
    ]
    unit = read_json(scaled / "scale.json")["unit"]
    step = write_nerfstudio(to, lens.camera, frames, unit)
    stand_in = f"; a fisheye stands in for the lens, off by {lens.residual_px:.2f} px at most" if lens.residual_px else ""
    depth = (
        f"depth in steps of {step:g} {'world units' if unit == 'unitless' else unit} (nerfstudio-data --depth-unit-scale-factor {step:g})"
    )
    return f"a nerfstudio scene of {len(frames)} images, {depth}{stand_in}"


def _splats(run: Path, to: Path) -> str:
    """`splats.ply` as the run left it, and the same as `.splat`."""
    from recon.io.splats import read_splat_ply, write_splat

    source = artifact(run, "splats", hint="run with --set fuse=splats") / "splats.ply"
    cloud = read_splat_ply(source)
    _copy(source, to / "splats.ply")
    write_splat(to / "splats.splat", cloud)
    return f"{len(cloud)} Gaussians (splats.ply, splats.splat)"


def _posed_images(run: Path) -> tuple[dict[int, np.ndarray], dict[int, Path]]:
    """Scaled `T_world_camera` and image file of every posed frame, by index."""
    frames = artifact(run, "frames")
    listed = read_json(artifact(run, "scale") / "trajectory.json")["frames"]
    poses = {f["index"]: np.array(f["T_world_camera"]) for f in listed if f["T_world_camera"]}
    return poses, {f["index"]: frames / f["file"] for f in read_json(frames / "frames.json")["frames"] if f["index"] in poses}


def _depth_of_size(file: Path, size: tuple[int, int]) -> np.ndarray:
    import cv2

    from recon.io.depth import read_depth

    return cv2.resize(read_depth(file), size, interpolation=cv2.INTER_NEAREST)


def _mask_of_size(file: Path, size: tuple[int, int]) -> np.ndarray:
    import cv2

    from recon.io.masks import read_mask

    return cv2.resize(read_mask(file).astype(np.uint8), size, interpolation=cv2.INTER_NEAREST) > 0


def _copy(source: Path, target: Path) -> None:
    write_bytes(target, source.read_bytes())
