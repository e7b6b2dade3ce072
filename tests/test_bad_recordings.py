"""Recordings that break assumptions, through the whole pipeline: a result, or a partial one that says why."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
import pytest

from recon.cli import main
from recon.data.phantom.render import render
from recon.data.phantom.sequence import PhantomSpec, open_phantom, phantom_camera, phantom_path, phantom_scene
from recon.data.phantom.shading import Imaging
from recon.geometry import se3
from recon.io.cameras import write_camera
from recon.io.images import write_png
from recon.io.trajectory import read_tum

pytestmark = pytest.mark.slow

SPEC = PhantomSpec(seed=7, frames=24, width=240, height=192, step_mm=1.6)
OTHER = "phantom:cavity?seed=5&frames=16&width=240&height=192"


@lru_cache
def seen_from(pose: bytes) -> np.ndarray:
    T = np.frombuffer(pose).reshape(4, 4)
    return render(phantom_scene(SPEC), phantom_camera(SPEC), T, Imaging(scope_radius=1.0), np.random.default_rng(0)).image


def pictures(poses: list[np.ndarray]) -> list[np.ndarray]:
    return [seen_from(np.ascontiguousarray(pose, np.float64).tobytes()) for pose in poses]


def reconstruct(folder: Path, images: list[np.ndarray]) -> tuple[dict, list[dict]]:
    """report.json and frames.json of a run on images as files, with the phantom's lens."""
    for index, image in enumerate(images):
        write_png(folder / "images" / f"{index:04d}.png", image)
    write_camera(folder / "camera.json", phantom_camera(SPEC))
    words = ["run", str(folder / "images"), "--camera", str(folder / "camera.json"), "--out", str(folder / "run")]
    assert main([*words, "--set", "report.num_frames_shown=2"]) in (0, 3)
    results = folder / "run" / "results"
    return json.loads((results / "report.json").read_text()), json.loads((results / "frames.json").read_text())


def path_error(folder: Path, truth: dict[int, np.ndarray], frames: list[dict]) -> float:
    """Root mean square error of camera centres over the length of the true path, from the first posed camera, up to scale.

    No rotation is fitted: that of a straight path is not determined.
    """
    posed = [f["index"] for f in frames if f["status"] in ("keyframe", "posed")]
    found = read_tum(folder / "run" / "results" / "trajectory.txt", "unitless").T_world_camera[:, :3, 3]
    true = np.array([se3.inverse(truth[posed[0]]) @ truth[index] for index in posed])[:, :3, 3]
    scale = (found * true).sum() / (found**2).sum()
    apart = np.linalg.norm(scale * found - true, axis=1)
    return float(np.sqrt((apart**2).mean()) / np.linalg.norm(np.diff(true, axis=0), axis=1).sum())


@pytest.fixture(scope="module")
def path() -> list[np.ndarray]:
    return list(phantom_path(SPEC))


def test_a_still_camera_gives_one_view_and_the_report_says_so(tmp_path, path):
    report, _ = reconstruct(tmp_path, [image + np.uint8(k % 2) * (image > 20) for k, image in enumerate(pictures([path[6]] * 12))])
    assert report["still"] and report["frames"]["posed"] == 12
    assert "did not move" in (tmp_path / "run" / "results" / "report.html").read_text()


def test_pure_rotation_is_posed_without_inventing_a_path(tmp_path, path):
    turns = [se3.exp(np.array([0, 0, 0, 0.2 * np.sin(0.4 * k), 0.35 * np.sin(0.3 * k), 0])) for k in range(20)]
    report, _ = reconstruct(tmp_path, pictures([path[6] @ turn for turn in turns]))
    assert report["frames"]["posed"] >= 18
    assert report["still"]


def test_forward_motion_alone(tmp_path, path):
    ahead = path[6][:3, 2]
    poses = [np.vstack([np.column_stack([path[6][:3, :3], path[6][:3, 3] + 0.8 * k * ahead]), [0, 0, 0, 1]]) for k in range(20)]
    report, frames = reconstruct(tmp_path, pictures(poses))
    assert report["frames"]["posed"] >= 19
    assert path_error(tmp_path, dict(enumerate(poses)), frames) < 0.02


def test_every_frame_twice(tmp_path, path):
    poses = [pose for pose in path for _ in range(2)]
    report, frames = reconstruct(tmp_path, pictures(poses))
    assert report["frames"]["posed"] >= len(poses) - 2
    assert path_error(tmp_path, dict(enumerate(poses)), frames) < 0.02


def test_thirty_black_frames_in_the_middle(tmp_path, path):
    seen = pictures(path)
    report, frames = reconstruct(tmp_path, [*seen[:12], *[np.zeros_like(seen[0])] * 30, *seen[12:]])
    assert report["frames"]["rejected"] == 30 and report["frames"]["posed"] == 24
    assert report["cuts"] == [] and report["pieces"] == []
    truth = dict(enumerate(path[:12])) | {42 + k: pose for k, pose in enumerate(path[12:])}
    assert path_error(tmp_path, truth, frames) < 0.02


def test_a_smear_on_the_lens(tmp_path, path):
    smeared = []
    for image in pictures(path):
        image = image.copy()
        image[40:130, 70:170] = cv2.GaussianBlur(image[40:130, 70:170], (0, 0), 9)
        smeared.append(image)
    report, frames = reconstruct(tmp_path, smeared)
    assert report["frames"]["posed"] >= 20
    assert path_error(tmp_path, dict(enumerate(path)), frames) < 0.03


def test_backwards_is_as_good_as_forwards(tmp_path, path):
    report, frames = reconstruct(tmp_path, pictures(path[::-1]))
    assert report["frames"]["posed"] >= 23
    assert path_error(tmp_path, dict(enumerate(path[::-1])), frames) < 0.02


def test_two_scenes_are_two_pieces(tmp_path, path):
    others = open_phantom(OTHER).frames
    report, frames = reconstruct(tmp_path, [*pictures(path), *[frame.image() for frame in others]])
    assert report["cuts"] == [24]
    posed = {f["index"] for f in frames if f["status"] in ("keyframe", "posed")}
    assert posed <= set(range(24)) or posed <= set(range(24, 40))
    assert len(report["pieces"]) == 1 and report["pieces"][0]["num_frames"] + len(posed) >= 36
    assert (tmp_path / "run" / "results" / "trajectory_2.txt").exists()
    assert "belongs to piece 2" in report["partial"][0]
