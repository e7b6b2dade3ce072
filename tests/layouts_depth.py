"""Tiny recordings in the exact layouts of the data sets that come as folders of depth maps."""

import csv
from pathlib import Path

import cv2
import numpy as np
from layouts import HEIGHT, WIDTH, picture, poses, save

from recon.geometry import se3

MATRIX = [[30.0, 0.0, 19.0], [0.0, 31.0, 15.0], [0.0, 0.0, 1.0]]


def write_matrix(path: Path, K: list, separator: str = " ") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(separator.join(f"{v:.8e}" for v in row) for row in K) + "\n")


def write_hamlyn(root: Path, count: int = 4, nested: bool = False, columns: int = 3) -> Path:
    """Training pack. Depth of frame k is 50 + k mm; pixels (0, 0..2) hold a hole, 300 mm and 301 mm."""
    inner = root / root.name if nested else root
    for k in range(count):
        depth = np.full((HEIGHT, WIDTH), 50 + k, np.uint16)
        depth[0, :3] = 0, 300, 301
        for side in ("01", "02"):
            save(inner / f"image{side}" / f"{k + 8:010d}.jpg", picture(k))
            save(inner / f"depth{side}" / f"{k + 8:010d}.png", depth)
    write_matrix(inner / "intrinsics.txt", [row + [0.0] * (columns - 3) for row in MATRIX])
    return root


def write_hamlyn_tracking(root: Path, count: int = 4) -> Path:
    for k in range(count):
        depth = np.full((HEIGHT, WIDTH), 50 + k, np.uint16)
        depth[0, :3] = 0, 299, 300
        save(root / "color" / f"{k}.jpg", picture(k))
        save(root / "depth" / f"{k}.png", depth)
    write_matrix(root / "intrinsics.txt", MATRIX)
    return root


def quaternion_rows(T: np.ndarray) -> np.ndarray:
    """tx ty tz qx qy qz qw of each pose."""
    return np.c_[T[:, :3, 3], se3.quat_wxyz_from_matrix(T[:, :3, :3])[:, [1, 2, 3, 0]]]


def write_endoslam_unity(root: Path, count: int = 4, cut_short: bool = True) -> Path:
    """Depth level of frame k is 20 + k, with 0 and 255 at pixels (0, 0) and (0, 1). One whole pose fewer than frames."""
    for k in range(count):
        save(root / "Frames" / f"image_{k:04d}.png", picture(k))
        level = np.full((HEIGHT, WIDTH), 20 + k, np.uint8)
        level[0, :2] = 0, 255
        save(root / "Pixelwise Depths" / f"aov_image_{k:04d}.png", np.dstack([level] * 4))
    lines = ["tX,tY,tZ,rX,rY,rZ,rW,time(s)"]
    lines += [",".join(f"{v:.7g}" for v in (*row, k / 30)) for k, row in enumerate(quaternion_rows(poses(count - 1)))]
    (root / "Poses").mkdir()
    (root / "Poses" / "colon_position_rotation.csv").write_text("\n".join(lines) + ("\n0.66,8.98,-3.13,0.1" if cut_short else "\n"))
    write_matrix(root.parent / "Calibration" / "cam.txt", [[v for row in MATRIX for v in row]], ",")
    return root


def write_endoslam_robot(root: Path, first: int = 60, count: int = 4) -> Path:
    """Frame numbers are those of the video; a pose is missing for the second frame and one is there for no frame."""
    root.joinpath("Poses").mkdir(parents=True)
    numbers = [first + 3 * k for k in range(count)]
    for k, number in enumerate(numbers):
        save(root / "Frames" / f"frame_{number:06d}.jpg", picture(k))
    with (root / "Poses" / "colon_test_1_high_images.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["", "ImageFrame", "Pose_Index", "trans_x", "trans_y", "trans_z", "quot_x", "quot_y", "quot_z", "quot_w"])
        for k, row in enumerate(quaternion_rows(poses(count))):
            table.writerow([k, numbers[k] if k != 1 else first + 1, 7 * k, *row])
    return root


def write_endosynth(root: Path, count: int = 4, folder: str = "samples", first: int = 0) -> Path:
    """Depth of sample k is 0.1 * (k + 1) m, infinite, 65 m and 0 at pixels (0, 0..2); the last row is an instrument."""
    (root / folder).mkdir(parents=True)
    for k in range(count):
        depth = np.full((HEIGHT, WIDTH), 0.1 * (k + 1), np.float16)
        depth[0, :3] = np.inf, 65, 0
        seg = np.zeros((HEIGHT, WIDTH), np.uint8)
        seg[-1] = 1 + k % 6
        np.savez_compressed(root / folder / f"{first + k:06d}.npz", rgb=picture(k), depth=depth, seg=seg)
    return root


def write_simcol(root: Path, tag: str = "S1", count: int = 4, poses_unity: np.ndarray | None = None) -> Path:
    """`root/Frames_<tag>`: 16-bit RGBA pictures, depth 20 * (k + 1) levels of 256, its ends at pixels (0, 0) and (0, 1).

    `poses_unity` are left-handed camera-to-world matrices in centimetres.
    """
    frames = root / f"Frames_{tag}"
    frames.mkdir(parents=True)
    for k in range(count):
        bgra = np.dstack([picture(k)[:, :, ::-1], np.full((HEIGHT, WIDTH), 255, np.uint8)]).astype(np.uint16) * 256
        cv2.imwrite(str(frames / f"FrameBuffer_{k:04d}.png"), bgra)
        depth = np.full((HEIGHT, WIDTH), 20 * (k + 1) * 256, np.uint16)
        depth[0, :2] = 0, 255 * 256
        save(frames / f"Depth_{k:04d}.png", depth)
    rows = quaternion_rows(poses(count) if poses_unity is None else poses_unity)
    np.savetxt(root / f"SavedPosition_{tag}.txt", rows[:, :3])
    np.savetxt(root / f"SavedRotationQuaternion_{tag}.txt", rows[:, 3:])
    write_matrix(root / "cam.txt", MATRIX)
    return frames
