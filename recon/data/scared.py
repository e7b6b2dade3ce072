"""SCARED: porcine cadavers under a da Vinci stereo endoscope, structured light for one keyframe a recording.

A keyframe folder with `rgb.mp4` is a recording of left views (they lie over the right ones) in the world of its keyframe's
camera; without a video it is the keyframe alone. A dataset folder opens as its keyframes, which are unrelated views; it is
recognised by itself only when none of them has a video, since otherwise its recordings are the keyframe folders.

Truth is in millimetres, as a point for every pixel: NaN marks unknown ones in keyframes, zeros do in the frames, whose files
hold the left view over the right one. A frame's `camera-pose` takes keyframe points to the camera. Its truth is the
keyframe's surface moved by that pose, so only the keyframe itself is measured. The authors state no error for it.
Layout and pose direction: dimitrisPs/scared_toolkit and the authors' README.
"""

from __future__ import annotations

import json
import re
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from jaxtyping import Float

from recon.data.folder import Stills, frame_number, image_files, still_sequence
from recon.data.stereo import open_left_view, opencv_camera, read_opencv_matrices, right_from_left, right_views
from recon.data.truth import check_rigid, frame_trajectory
from recon.geometry import se3
from recon.geometry.depth_surface import depth_surface
from recon.io.images import MAX_PIXELS, read_image, read_info
from recon.io.names import natural_key
from recon.types import Camera, DepthMap, Frame, FrameError, FrameSequence, Mesh, ReconError, SecondView

MAX_FRAME_DATA_BYTES = 1 << 28
"""Of all frame data of a recording, unpacked: a frame has about 3 kB, so more than this is a damaged or hostile archive."""

_IMAGE, _RIGHT_IMAGE, _DEPTH = "Left_Image.png", "Right_Image.png", "left_depth_map.tiff"
_CALIBRATIONS = ("endoscope_calibration.yaml", "camera_calibration.yaml")
_INTERPOLATED = (
    "only the keyframe is measured: depth and poses of the other frames follow from robot kinematics, with an error that grows "
    "with the frame number"
)
_FIRST_VIEW = (
    "the measured surface is that of the first view alone, so a mesh of the whole recording has no truth here; depth maps can be "
    "scored as surfaces"
)
_PACKED = (
    "no true depth: scene_points.tar.gz is not unpacked; in its folder run: mkdir scene_points && tar -xzf scene_points.tar.gz "
    "-C scene_points"
)


def matches(path: Path) -> bool:
    return path.is_dir() and (_is_keyframe(path) or (bool(keyframes := _keyframes(path)) and not any(map(_video, keyframes))))


def open_scared(path: Path) -> FrameSequence:
    """A keyframe folder or a dataset folder. Raises ReconError naming the file that is missing or damaged."""
    if _is_keyframe(path):
        return _open_video(path, _video(path)) if _video(path) else _open_keyframes(path, [path])
    keyframes = _keyframes(path)
    if not keyframes:
        raise ReconError(f"{path} is neither a SCARED keyframe (data/rgb.mp4 or {_IMAGE}, with its calibration) nor a folder of keyframes")
    return _open_keyframes(path, keyframes)


def read_point_depth(path: Path, width_px: int, height_px: int) -> DepthMap:
    """z of a TIFF of points, one for every pixel of the left image, alone or over those of the right one.

    Raises FrameError when the file does not decode and ReconError when it holds anything else.
    """
    try:
        with tifffile.TiffFile(path) as tiff:
            page = tiff.pages[0]
            shape = tuple(page.shape)
            if (
                shape not in ((height_px, width_px, 3), (2 * height_px, width_px, 3))
                or page.dtype.kind != "f"
                or page.size > 6 * MAX_PIXELS
            ):
                raise ReconError(
                    f"{path} holds {page.dtype} of shape {shape}; expected x y z for {width_px}x{height_px} pixels, or for two such views"
                )
            points = page.asarray()
    except ReconError:
        raise
    except Exception as error:  # tifffile and its decoders raise many unrelated types on damaged files.
        raise FrameError(f"{path} cannot be decoded as a TIFF of points: {type(error).__name__}: {error}") from error
    depth = np.array(points[:height_px, :, 2], dtype=np.float32)
    valid = np.isfinite(depth) & (depth > 0)
    return DepthMap(np.where(valid, depth, np.float32(0)), valid, "metric")


def _is_keyframe(path: Path) -> bool:
    beside = (*_CALIBRATIONS, _DEPTH, "data/frame_data", "data/frame_data.tar.gz")
    return bool(_video(path) or (path / _IMAGE).is_file()) and any((path / name).exists() for name in beside)


def _keyframes(path: Path) -> list[Path]:
    """Keyframe folders with an image, in the order of their numbers."""
    folders = [p for p in path.iterdir() if re.fullmatch(r"keyframe_?\d+", p.name)] if path.is_dir() else []
    return sorted((p for p in folders if (p / _IMAGE).is_file()), key=lambda p: natural_key(p.name))


def _video(keyframe: Path) -> Path | None:
    return next((file for file in (keyframe / "data" / "rgb.mp4", keyframe / "rgb.mp4") if file.is_file()), None)


def _open_video(path: Path, video: Path) -> FrameSequence:
    recording = open_left_view(video)
    width_px, height_px = recording.width_px, recording.height_px
    frame_data = dict(_frame_data(path))
    camera, lens_notes = _lens(path, frame_data, width_px, height_px)
    poses = _poses(path, frame_data)
    points = _scene_points(path)
    notes = [_INTERPOLATED] if points or poses else []
    if (path / _DEPTH).is_file():
        notes.append(_FIRST_VIEW)
    if not points and (path / "data" / "scene_points.tar.gz").is_file():
        notes.append(_PACKED)
    if poses and len(poses) != len(recording.frames):
        notes.append(f"frame_data has {len(poses)} poses for {len(recording.frames)} frames of rgb.mp4; they belong together by number")
    return FrameSequence(
        _name(path),
        "scared",
        recording.frames,
        camera=camera,
        unit="mm",
        trajectory_gt=frame_trajectory(recording.frames, range(len(recording.frames)), poses, "mm"),
        depth_gt=partial(_numbered_depth, points, width_px, height_px) if points else None,
        second_view=None if (right := _right_lens(path, frame_data, width_px, height_px)) is None else right_views(recording, *right),
        incomplete=recording.incomplete,
        notes=(*recording.notes, *lens_notes, *notes, *_warnings(path)),
    )


def _open_keyframes(path: Path, keyframes: Sequence[Path]) -> FrameSequence:
    """Single views: keyframes have nothing in common but the animal."""
    files = [keyframe / _IMAGE for keyframe in keyframes]
    stills = still_sequence(path, files, [keyframe.name for keyframe in keyframes]) if len(files) > 1 else _one_still(files[0])
    size = stills.width_px, stills.height_px
    lenses = [_lens(keyframe, dict(_frame_data(keyframe)), *size) for keyframe in keyframes]
    cameras = [camera for camera, _ in lenses]
    depths = {index: keyframe / _DEPTH for index, keyframe in enumerate(keyframes) if (keyframe / _DEPTH).is_file()}
    return FrameSequence(
        _name(path),
        "scared",
        stills.frames,
        camera=next((camera for camera in cameras if camera), None),
        frame_camera=cameras.__getitem__,
        is_unrelated=True,
        unit="mm",
        depth_gt=partial(_numbered_depth, depths, *size),
        frame_mesh_gt=partial(_keyframe_surface, depths, cameras),
        second_view=partial(_right_still, keyframes, size),
        notes=tuple(dict.fromkeys((*stills.notes, *(note for _, notes in lenses for note in notes), *_warnings(keyframes[0])))),
    )


def _one_still(file: Path) -> Stills:
    info = read_info(file)
    return Stills((Frame(0, file.parent.name, 0.0, partial(read_image, file)),), info.width_px, info.height_px, ())


def _numbered_depth(file_of: dict[int, Path], width_px: int, height_px: int, index: int) -> DepthMap | None:
    return read_point_depth(file_of[index], width_px, height_px) if index in file_of else None


def _surface(points: Path, camera: Camera) -> Mesh:
    depth = read_point_depth(points, camera.width_px, camera.height_px)
    return depth_surface(camera, depth.depth, depth.valid)


def _keyframe_surface(depths: dict[int, Path], cameras: Sequence[Camera | None], index: int, both_views: bool) -> Mesh | None:
    camera = cameras[index]
    if camera is None or index not in depths:
        return None
    if both_views:
        raise ReconError(f"{depths[index]}: the surface of both views is not available for SCARED; ask for that of the left one")
    return _surface(depths[index], camera)


def _scene_points(path: Path) -> dict[int, Path]:
    """Files of unpacked truth by frame number, wherever unpacking put them."""
    data = path / "data"
    folders = [folder for folder in (data / "scene_points", data / "scene_points" / "scene_points", data) if folder.is_dir()]
    found = (image_files(folder, r"scene_points\d+\.tiff?") for folder in folders)
    return {frame_number(file.name): file for file in next((files for files in found if files), [])}


def _frame_data(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Frame number and content of every `frame_dataNNNNNN.json`, unpacked or inside the archive."""
    unpacked = path / "data" / "frame_data"
    archive = path / "data" / "frame_data.tar.gz"
    if unpacked.is_dir():
        contents = ((file, file.read_bytes()) for file in sorted(unpacked.rglob("frame_data*.json")))
    elif archive.is_file():
        contents = _archived(archive)
    else:
        return
    for file, content in contents:
        try:
            value = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise ReconError(f"{file} is not valid JSON: {error}") from error
        if not isinstance(value, dict):
            raise ReconError(f"{file} should hold one JSON object with camera-pose and camera-calibration")
        yield frame_number(file.name), value


def _archived(archive: Path) -> Iterator[tuple[Path, bytes]]:
    """Regular files of that name only, read in passing: nothing is written and no path inside is trusted."""
    total = 0
    try:
        with tarfile.open(archive, "r|gz") as tar:
            for member in tar:
                total += member.size
                if total > MAX_FRAME_DATA_BYTES:
                    raise ReconError(
                        f"{archive} unpacks to more than {MAX_FRAME_DATA_BYTES >> 20} MB; frame data of a recording is far smaller"
                    )
                name = Path(member.name).name
                if member.isreg() and re.fullmatch(r"frame_data\d+\.json", name):
                    yield archive / name, tar.extractfile(member).read()
    except (tarfile.TarError, zlib.error, OSError, EOFError) as error:
        raise ReconError(f"{archive} cannot be unpacked: {error}; download it again or unpack it into data/frame_data") from error


def _poses(path: Path, frame_data: dict[int, dict[str, Any]]) -> dict[int, Float[np.ndarray, "4 4"]]:
    """Camera-to-keyframe by frame number."""
    posed = {number: value["camera-pose"] for number, value in sorted(frame_data.items()) if "camera-pose" in value}
    if not posed:
        return {}
    source = path / "data" / "frame_data"
    try:
        T_camera_keyframe = np.array(list(posed.values()), dtype=np.float64).reshape(-1, 4, 4)
    except (TypeError, ValueError) as error:
        raise ReconError(f"{source}: expected 4x4 numbers as camera-pose of every frame ({error})") from error
    check_rigid(source, T_camera_keyframe)
    return dict(zip(posed, se3.inverse(T_camera_keyframe), strict=True))


def _lens(path: Path, frame_data: dict[int, dict[str, Any]], width_px: int, height_px: int) -> tuple[Camera | None, tuple[str, ...]]:
    """The left camera from the keyframe's calibration, or from its first frame's; None without either."""
    for file in (path / name for name in _CALIBRATIONS):
        if file.is_file():
            matrices = read_opencv_matrices(file)
            K = matrices.get("M1", matrices.get("K1"))
            if K is None or K.shape != (3, 3) or "D1" not in matrices:
                raise ReconError(f"{file}: expected a 3x3 matrix M1 (or K1) and D1, found {', '.join(matrices) or 'no matrix'}")
            return opencv_camera(file, K, matrices["D1"].ravel(), width_px, height_px)
    for number, value in sorted(frame_data.items()):
        file = path / "data" / "frame_data" / f"frame_data{number:06d}.json"
        try:
            calibration = value["camera-calibration"]
            K = np.array(calibration["KL"], dtype=np.float64).reshape(3, 3)
            distortion = np.array(calibration["DL"], dtype=np.float64).ravel()
        except (KeyError, TypeError, ValueError) as error:
            raise ReconError(f"{file}: expected KL (3x3) and DL in camera-calibration") from error
        return opencv_camera(file, K, distortion, width_px, height_px)
    return None, ()


def _right_lens(
    path: Path, frame_data: dict[int, dict[str, Any]], width_px: int, height_px: int
) -> tuple[Camera, Float[np.ndarray, "4 4"]] | None:
    """The right camera and right from left (mm), from the file that gave the left lens; None where that says nothing of it."""
    file = next((path / name for name in _CALIBRATIONS if (path / name).is_file()), path / "data" / "frame_data")
    if file.is_file():
        found: dict[str, Any] = read_opencv_matrices(file)
        K, D = found.get("M2", found.get("K2")), found.get("D2")
    else:
        found = next((value.get("camera-calibration", {}) for _, value in sorted(frame_data.items())), {})
        K, D = found.get("KR"), found.get("DR")
    if any(part is None for part in (K, D, found.get("R"), found.get("T"))):
        return None
    try:
        K, D, R, T = (np.array(part, dtype=np.float64) for part in (K, D, found["R"], found["T"]))
        T_right_left_mm = right_from_left(R.reshape(3, 3), T.reshape(3))
        camera, _ = opencv_camera(file, K.reshape(3, 3), D.ravel(), width_px, height_px)
    except (TypeError, ValueError) as error:
        raise ReconError(f"{file}: expected a 3x3 right camera matrix and R (3x3) and T (3) from left to right ({error})") from error
    check_rigid(file, T_right_left_mm[None])
    return camera, T_right_left_mm


def _right_still(keyframes: Sequence[Path], size_px: tuple[int, int], index: int) -> SecondView | None:
    keyframe = keyframes[index]
    right = _right_lens(keyframe, dict(_frame_data(keyframe)), *size_px)
    if right is None or not (keyframe / _RIGHT_IMAGE).is_file():
        return None
    return SecondView(*right, partial(read_image, keyframe / _RIGHT_IMAGE))


def _name(path: Path) -> str:
    place = path.resolve()
    return f"{place.parent.name}_{place.name}" if place.parent.name.startswith("dataset") else place.name


def _warnings(keyframe: Path) -> list[str]:
    """What is known to be wrong or renamed, by the numbers in the names of the folders."""
    place = keyframe.resolve()
    numbers = re.search(r"dataset_?(\d+)[/_]keyframe_?(\d+)", f"{place.parent.name}/{place.name}")
    dataset, number = (int(n) for n in numbers.groups()) if numbers else (0, 0)
    if dataset in (4, 5):
        return [f"the calibration of dataset {dataset} is known to be wrong: leave it out of comparisons"]
    if dataset not in (8, 9):
        return []
    siblings = {frame_number(p.name) for p in place.parent.glob("*keyframe*") if re.search(r"\d$", p.name)}
    if 5 in siblings and 0 not in siblings:
        return [
            f"keyframes of dataset {dataset} are numbered 1 to 5 as by AF-SfMLearner; the release and this project's splits count 0 to 4"
        ]
    return [f"AF-SfMLearner's lists call keyframe {number} of dataset {dataset} keyframe {number + 1}"]
