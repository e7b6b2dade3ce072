"""Tiny recordings in the exact layouts of the known data sets."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from recon.geometry import se3

WIDTH, HEIGHT = 40, 32


def picture(seed: int, width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (height, width, 3)).astype(np.uint8)


def save(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def poses(count: int) -> np.ndarray:
    return se3.exp(np.random.default_rng(1).normal(size=(count, 6)))


def write_folder(root: Path, count: int = 4, **size: int) -> Path:
    for k in range(count):
        save(root / f"{k + 8}.png", picture(k, **size))
    return root


def write_c3vd(root: Path, count: int = 4, version: int = 1, transposed: bool = True, padded: bool = True) -> Path:
    """Depth of frame k is 10 * (k + 1) mm with one unknown pixel at each end of the range."""
    for k in range(count):
        color = f"{k:04d}_color.png" if padded else f"{k}_color.png"
        save(root / (color if version == 1 else f"rgb/{k:04d}.png"), picture(k))
        depth = np.full((HEIGHT, WIDTH), round(10 * (k + 1) / 100 * 65535), np.uint16)
        depth[0, :2] = 0, 65535
        save(root / ("" if version == 1 else "depth") / f"{k:04d}_depth.tiff", depth)
    T = poses(count)
    rows = (T.transpose(0, 2, 1) if transposed else T).reshape(-1, 16)
    (root / "pose.txt").write_text("\n".join(",".join(f"{v:.9g}" for v in row) for row in rows) + "\n")
    (root / "coverage_mesh.obj").write_text(
        "v 0 0 0\nv 1 0 0\nv 0 1 0\nv 5 5 5\nv 6 5 5\nv 5 6 5\nvt 0.25 0.5\nvt 0.75 0.5\nf 4/2 5/2 6/2\nf 1/1 2/1 3/1\n"
    )
    return root


def write_servct(root: Path, reference: str = "Ground_truth_CT", first: int = 1, count: int = 2) -> Path:
    """One Experiment folder; depth is 64 mm, unknown at pixel (0, 0), without reference surface at (0, 1)."""
    for k in range(first, first + count):
        name = f"{k:03d}.png"
        for side in ("Left_rectified", "Right_rectified"):
            save(root / side / name, picture(k))
        depth = np.full((HEIGHT, WIDTH), 64 * 256, np.uint16)
        depth[0, 0] = 0
        occlusion = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
        occlusion[0, 1], occlusion[0, 2] = (0, 0, 255), (255, 0, 0)
        save(root / reference / "DepthL" / name, depth)
        save(root / reference / "OcclusionL" / name, occlusion)
        P1 = [30.0, 0, 19.5, 0, 0, 31.0, 15.25, 0, 0, 0, 1, 0]
        calibration = {"P1": {"rows": 3, "cols": 4, "dt": "d", "data": P1}}
        (root / "Rectified_calibration").mkdir(exist_ok=True)
        (root / "Rectified_calibration" / f"{k:03d}.json").write_text(json.dumps(calibration))
    return root


def write_endonerf(root: Path, count: int = 4, still: bool = True) -> Path:
    table = np.zeros((count, 17))
    for k in range(count):
        save(root / "images" / f"frame-{k:06d}.color.png", picture(k))
        mask = np.zeros((HEIGHT, WIDTH), np.uint8)
        mask[:, : 5 + k] = 255
        save(root / "masks" / f"frame-{k:06d}.mask.png", mask)
        depth = np.full((HEIGHT, WIDTH), 50 + k, np.uint8)
        depth[0, 0] = 0
        save(root / "depth" / f"frame-{k:06d}.depth.png", depth)
        T = np.eye(4) if still else poses(count)[k]
        table[k, :15] = np.c_[T[:3], [HEIGHT, WIDTH, 35.5]].ravel()
        table[k, 15:] = 40, 90
    np.save(root / "poses_bounds.npy", table)
    return root


def write_jhu(root: Path, count: int = 4, per_view: bool = False, first: int = 120, num_views: int | None = None) -> Path:
    num_views = num_views or count
    for k in range(count):
        root.mkdir(exist_ok=True)
        Image.fromarray(picture(k)).save(root / f"{first + k:08d}.jpg")
    lines = ["header: ", "  seq: 0", "  stamp: 0.000000000", "  frame_id: ", "poses[]:"]
    for k, T in enumerate(poses(num_views)):
        w, x, y, z = se3.quat_wxyz_from_matrix(T[:3, :3])
        lines += [f"  poses[{k}]: ", "    position: "] + [f"      {a}: {v:.9g}" for a, v in zip("xyz", T[:3, 3], strict=True)]
        lines += ["    orientation: "] + [f"      {a}: {v:.9g}" for a, v in zip("xyzw", (x, y, z, w), strict=True)]
    (root / "motion.yaml").write_text("\n".join(lines) + "\n")
    (root / "visible_view_indexes").write_text("".join(f"{first + k}\n" for k in range(num_views)))
    numbers = [28.5, 19.25, 15.75] * num_views if per_view else [28.5, 29.5, 19.25, 15.75]
    (root / "camera_intrinsics_per_view").write_text("".join(f"{v}\n" for v in numbers))
    return root
