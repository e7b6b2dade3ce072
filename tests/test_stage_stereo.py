"""The stereo stage on a small phantom with true poses: depth of a network that is bent comes out straight, and a killed stage goes on."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from recon.data import open_sequence
from recon.geometry import se3
from recon.io.atomic import write_json
from recon.io.cameras import write_camera
from recon.io.depth import read_depth, write_depth
from recon.io.images import write_jpeg
from recon.io.masks import read_mask, write_mask
from stages import stereo

SPEC = "phantom:tube?seed=2&frames=12&width=200&height=168&noise=0.005"
SMALL = {"width_px": 200, "num_planes": 64, "keyframe_angle_rad": 0.02}
BEND = 0.2
"""Largest log error of the network's depth."""


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """What the stages before leave: true poses, and depth that is wrong by a smooth factor."""
    folder = tmp_path_factory.mktemp("run")
    found = {name: folder / name for name in ("frames", "masks", "trajectory", "scale")}
    sequence = open_sequence(SPEC)
    frames = []
    for frame in sequence.frames:
        name, truth = f"{frame.index:06d}", sequence.depth_gt(frame.index)
        write_jpeg(found["frames"] / f"images/{name}.jpg", frame.image())
        write_mask(found["masks"] / f"masks/{name}.png", truth.valid)
        across = np.linspace(-1, 1, truth.depth.shape[1])[None]
        bent = truth.depth * np.exp(BEND * np.sin(2.5 * across + frame.index)) * truth.valid
        write_depth(found["scale"] / f"depth/{name}.tiff", bent.astype(np.float32))
        write_depth(found["scale"] / f"sigma/{name}.tiff", (0.15 * truth.valid).astype(np.float32))
        T = se3.inverse(sequence.trajectory_gt.T_world_camera[0]) @ sequence.trajectory_gt.T_world_camera[frame.index]
        frames.append({"index": frame.index, "T_world_camera": T.tolist()})
    write_json(found["scale"] / "trajectory.json", {"frames": frames})
    write_camera(found["trajectory"] / "camera.json", sequence.camera)
    return found


def run(inputs, out, **changes) -> list[dict]:
    out.mkdir(exist_ok=True)
    stereo.run(inputs, out, stereo.Config(**{**SMALL, **changes}))
    return json.loads((out / "stereo.json").read_text())["keyframes"]


@pytest.fixture(scope="module")
def finished(inputs, tmp_path_factory):
    out = tmp_path_factory.mktemp("stereo")
    return out, run(inputs, out)


def test_bent_depth_comes_out_straight(inputs, finished):
    out, keyframes = finished
    sequence = open_sequence(SPEC)
    assert len(keyframes) >= 4 and not (out / stereo.WORK).exists()
    before, after, matched = [], [], []
    for keyframe in keyframes:
        name, truth = f"{keyframe['index']:06d}", sequence.depth_gt(keyframe["index"])
        depth, network = read_depth(out / f"depth/{name}.tiff"), read_depth(inputs["scale"] / f"depth/{name}.tiff")
        assert depth.shape == truth.depth.shape
        known = truth.valid & (depth > 0)
        assert known.sum() > 0.95 * truth.valid.sum()
        is_matched = read_mask(out / f"matched/{name}.png")
        assert keyframe["matched_share"] == pytest.approx(is_matched[depth > 0].mean(), abs=1e-3)
        before.append(np.abs(network[known] / truth.depth[known] - 1))
        after.append(np.abs(depth[known] / truth.depth[known] - 1))
        matched.append(is_matched[known])
        sigma = read_depth(out / f"sigma/{name}.tiff")
        assert np.median(sigma[known & is_matched]) < 0.5 * np.median(sigma[known & ~is_matched])
    before, after, matched = (np.concatenate(part) for part in (before, after, matched))
    assert matched.mean() > 0.5
    assert np.median(after[matched]) < 0.2 * np.median(before[matched])
    assert after[~matched].mean() < before[~matched].mean()


def test_a_killed_stage_goes_on_to_the_same_bytes(inputs, finished, tmp_path, monkeypatch):
    done, _ = finished
    first = stereo._Matcher._match
    calls: list[int] = []

    def dies_at_the_third(self, position):
        calls.append(position)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return first(self, position)

    monkeypatch.setattr(stereo._Matcher, "_match", dies_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        run(inputs, tmp_path / "out")
    left, called = len(list((tmp_path / "out" / stereo.WORK).glob("*.npz"))), len(calls)
    keyframes = run(inputs, tmp_path / "out")
    assert 0 < left < len(keyframes)
    assert len(calls) - called == len(keyframes) - left
    for path in done.rglob("*.tiff"):
        assert path.read_bytes() == (tmp_path / "out" / path.relative_to(done)).read_bytes()


def test_switched_off_or_with_one_frame_nothing_is_matched(inputs, tmp_path):
    assert run(inputs, tmp_path / "off", enabled=False) == []
    lonely = {**inputs, "scale": tmp_path / "scale"}
    shutil.copytree(inputs["scale"], lonely["scale"])
    frames = json.loads((inputs["scale"] / "trajectory.json").read_text())["frames"]
    write_json(lonely["scale"] / "trajectory.json", {"frames": [frames[0], *({**f, "T_world_camera": None} for f in frames[1:])]})
    assert run(lonely, tmp_path / "one") == []


def test_a_camera_that_stands_still_keeps_the_networks_word(inputs, tmp_path):
    still = {**inputs, "scale": tmp_path / "scale"}
    shutil.copytree(inputs["scale"], still["scale"])
    frames = json.loads((inputs["scale"] / "trajectory.json").read_text())["frames"]
    write_json(still["scale"] / "trajectory.json", {"frames": [{**f, "T_world_camera": np.eye(4).tolist()} for f in frames]})
    keyframes = run(still, tmp_path / "out")
    assert [k["matched_share"] for k in keyframes] == [0.0] * len(keyframes)
    network = read_depth(inputs["scale"] / "depth/000000.tiff")
    assert np.allclose(read_depth(tmp_path / "out/depth/000000.tiff"), network, rtol=1e-4)
