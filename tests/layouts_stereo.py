"""Tiny recordings in the exact layouts of the data sets that come as stacked stereo videos."""

import io
import json
import tarfile
from pathlib import Path

import av
import cv2
import numpy as np
import tifffile
from layouts import picture, poses, save

from recon.geometry import se3

WIDTH, HEIGHT = 64, 48
K = np.array([[60.0, 0, 30.5], [0, 61.0, 25.25], [0, 0, 1]])
K_RIGHT = np.array([[60.5, 0, 40.0], [0, 60.5, 24.0], [0, 0, 1]])
DISTORTION = (-0.02, 0.01, 0.001, -0.002)


def grey(number: int) -> int:
    """Brightness of the left view of frame `number`; the right view is dark."""
    return 60 + 20 * number


def write_stacked_video(path: Path, count: int, width: int = WIDTH, height: int = HEIGHT) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = width, 2 * height, "yuv420p"
        for number in range(count):
            image = np.zeros((2 * height, width, 3), np.uint8)
            image[:height] = grey(number)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))


# --- SCARED


def points_of(depth: np.ndarray, unknown: float) -> np.ndarray:
    """x y z of every pixel under `K`, all three `unknown` where depth is 0."""
    v, u = np.mgrid[: depth.shape[0], : depth.shape[1]]
    xyz = np.dstack([(u - K[0, 2]) / K[0, 0] * depth, (v - K[1, 2]) / K[1, 1] * depth, depth])
    return np.where(depth[..., None] > 0, xyz, unknown).astype(np.float32)


def frame_depth(number: int) -> np.ndarray:
    """100 + `number` mm with an unknown upper left corner."""
    depth = np.full((HEIGHT, WIDTH), 100.0 + number)
    depth[0, 0] = 0
    return depth


def write_points(path: Path, depth: np.ndarray, unknown: float, stacked: bool) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    left = points_of(depth, unknown)
    tifffile.imwrite(path, np.concatenate([left, np.full_like(left, 999)]) if stacked else left, photometric="rgb")


def opencv_yaml(matrices: dict[str, np.ndarray]) -> str:
    """As cv2.FileStorage writes it, lines of data wrapped."""
    storage = cv2.FileStorage("x.yaml", cv2.FILE_STORAGE_WRITE | cv2.FILE_STORAGE_MEMORY)
    for name, matrix in matrices.items():
        storage.write(name, np.asarray(matrix, np.float64))
    return storage.releaseAndGetString()


def write_keyframe(root: Path, calibrated: bool = True, K_name: str = "M1") -> Path:
    for name in ("Left_Image.png", "Right_Image.png"):
        save(root / name, picture(3, WIDTH, HEIGHT))
    write_points(root / "left_depth_map.tiff", frame_depth(0), np.nan, stacked=False)
    if calibrated:
        matrices = {K_name: K, "D1": np.array([[*DISTORTION, 0.0]]), "M2": K_RIGHT, "D2": np.zeros((1, 5)), "R": np.eye(3)}
        (root / "endoscope_calibration.yaml").write_text(opencv_yaml(matrices))
    return root


def frame_data(count: int) -> dict[str, str]:
    """Content of every `frame_dataNNNNNN.json`: the pose is world-to-camera."""
    calibration = {"KL": K.tolist(), "DL": [[*DISTORTION, 0.0]], "KR": K_RIGHT.tolist(), "DR": [[0.0] * 5]}
    T_camera_world = se3.inverse(poses(count))
    return {
        f"frame_data{k:06d}.json": json.dumps({"camera-pose": T.tolist(), "camera-calibration": calibration})
        for k, T in enumerate(T_camera_world)
    }


def write_archive(path: Path, contents: dict[str, str | bytes | None]) -> None:
    """None stands for a link out of the archive."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as tar:
        for name, content in contents.items():
            data = content.encode() if isinstance(content, str) else content or b""
            member = tarfile.TarInfo(name)
            member.size = len(data)
            if content is None:
                member.type, member.linkname = tarfile.SYMTYPE, "/etc/hosts"
            tar.addfile(member, io.BytesIO(data))


def write_scared(root: Path, count: int = 4, packed: bool = True, **keyframe) -> Path:
    """A keyframe folder with its video; frame data packed or not, points unpacked."""
    write_keyframe(root, **keyframe)
    write_stacked_video(root / "data" / "rgb.mp4", count)
    contents = frame_data(count)
    if packed:
        write_archive(root / "data" / "frame_data.tar.gz", {f"./{name}": text for name, text in contents.items()})
    else:
        (root / "data" / "frame_data").mkdir()
        for name, text in contents.items():
            (root / "data" / "frame_data" / name).write_text(text)
    for number in range(count):
        write_points(root / "data" / "scene_points" / f"scene_points{number:06d}.tiff", frame_depth(number), 0.0, stacked=True)
    return root


# --- StereoMIS

R_RIGHT = cv2.Rodrigues(np.array([0.01, -0.02, 0.015]))[0]
T_RIGHT_MM = np.array([-4.2, 0.03, 0.01])


def stereo_ini(terms: tuple[float, ...] = DISTORTION, K_right: np.ndarray = K_RIGHT, R: np.ndarray = R_RIGHT) -> str:
    lines = []
    for side, matrix in (("StereoLeft", K), ("StereoRight", K_right)):
        lines += [f"[{side}]", f"res_x={WIDTH}", f"res_y={HEIGHT}"]
        lines += [f"fc_x={matrix[0, 0]}", f"fc_y={matrix[1, 1]}", f"cc_x={matrix[0, 2]}", f"cc_y={matrix[1, 2]}"]
        lines += [f"kc_{i}={term}" for i, term in enumerate((*terms, *[0.0] * (8 - len(terms))))]
    lines += [f"R_{i}={value}" for i, value in enumerate(R.ravel())] + [f"T_{i}={value}" for i, value in enumerate(T_RIGHT_MM)]
    return "\n".join(lines) + "\n"


def write_stereomis(root: Path, count: int = 6, mask: np.ndarray | None = None, **calibration) -> Path:
    """Poses are `poses(count)` in metres; a mask (white = usable) for every second frame, numbered from 1."""
    write_stacked_video(root / "IFBS_ENDOSCOPE.mp4", count)
    (root / "StereoCalibration.ini").write_text(stereo_ini(**calibration))
    lines = []
    for number, T in enumerate(poses(count)):
        w, x, y, z = se3.quat_wxyz_from_matrix(T[:3, :3])
        lines.append(" ".join(f"{value:.12g}" for value in (number, *T[:3, 3] / 1000, x, y, z, w)))
    (root / "groundtruth.txt").write_text("\n".join(lines) + "\n")
    if mask is not None:
        for number in range(1, count + 1, 2):
            save(root / "masks" / f"{number:06d}l.png", mask)
    (root / "test_split.csv").write_text("start,end\n2,5\n")
    return root
