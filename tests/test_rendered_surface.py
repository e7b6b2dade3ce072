"""The surface at one time: what rendered depth shows, and the NeRF's stage with renders that are known."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import trimesh
from moving_scenes import BREATH_MM, CAMERA, DEPTH_MM, SLOPE, wall_depth, wall_image, wall_scene

from recon.fields.nerf.training import Check
from recon.fields.rendered_surface import Rendering, fused_surface, poses_for_time, squared_error, still_surface
from recon.fields.scene import Scene
from recon.io.atomic import read_json
from recon.io.depth import read_depth, write_depth
from recon.io.images import write_png
from recon.io.meshes import read_mesh
from recon.types import ReconError
from stages import nerf


def unwatched(items: Iterable[int], total: int, description: str) -> Iterable[int]:
    return items


def render_wall(scene: Scene, pose_of: int, time_of: int) -> Rendering:
    T, time = scene.frames[pose_of].T_world_camera, scene.frames[time_of].time
    return Rendering(pose_of, wall_image(CAMERA, T, time), wall_depth(CAMERA, T, time).astype(np.float32))


def off_the_wall_mm(vertices: np.ndarray, time: float) -> np.ndarray:
    height = DEPTH_MM + BREATH_MM * np.sin(np.pi * time)
    return np.abs(vertices[:, 2] - height - SLOPE * vertices[:, 0]) / np.hypot(1, SLOPE)


def test_the_surface_of_a_still_camera_lies_on_the_wall_and_is_open_where_nothing_was_ever_seen(tmp_path):
    scene = wall_scene(tmp_path)
    off = 1.01 + 0 * np.mgrid[: CAMERA.height_px, : CAMERA.width_px][0]
    off[:, :12] = 1.0
    squared = squared_error(scene, lambda i: render_wall(scene, i, i).depth * off)
    assert np.isnan(squared[:3, :3]).all() and np.isnan(squared).sum() == 9
    mesh = still_surface(scene, render_wall(scene, 3, 3), 3, squared)
    assert mesh.unit == "mm"
    assert off_the_wall_mm(mesh.vertices, scene.frames[3].time).max() < 1e-4
    seen = scene.tissue[:].sum(axis=0)
    assert len(mesh.vertices) == np.count_nonzero(seen) == CAMERA.width_px * CAMERA.height_px - 9
    fx, fy, cx, cy = CAMERA.params
    u, v = (np.rint(mesh.vertices[:, i] / mesh.vertices[:, 2] * f + c).astype(int) for i, f, c in ((0, fx, cx), (1, fy, cy)))
    assert np.array_equal(mesh.observations, seen[v, u])
    assert np.all(mesh.confidence[u < 12] > 0.999)
    variance = squared[v, u] * (1 / seen[v, u] + 0.25)
    assert np.allclose(mesh.confidence[u >= 12], [math.erf(0.01 / math.sqrt(2 * x)) for x in variance[u >= 12]], atol=1e-6)
    was_hidden = ~scene.tissue[3][v, u]
    assert was_hidden.any()
    now = np.float32(scene.frames[3].timestamp_s)
    assert np.all(mesh.last_seen_s[~was_hidden] == now)
    assert np.all(mesh.last_seen_s[was_hidden] != now)
    assert np.array_equal(mesh.colors, render_wall(scene, 3, 3).image[v, u])


def test_the_surface_of_a_moving_camera_is_fused_from_frames_to_learn_from(tmp_path):
    scene = wall_scene(tmp_path, num_frames=5, step_mm=6.0, held_out=(2,))
    poses = poses_for_time(scene, 2, 4)
    assert 2 not in poses and len(poses) == len(set(poses)) == 4
    mesh = fused_surface(scene, lambda i: render_wall(scene, poses[i], 2), len(poses), unwatched)
    assert off_the_wall_mm(mesh.vertices, scene.frames[2].time).mean() < 0.1
    assert np.ptp(mesh.vertices[:, 0]) > 1.2 * DEPTH_MM * CAMERA.width_px / CAMERA.params[0] * 0.9
    assert mesh.unit == "mm"


def test_a_time_at_which_nothing_is_rendered_is_told(tmp_path):
    scene = wall_scene(tmp_path)
    nothing = Rendering(3, scene.images[3], np.zeros((CAMERA.height_px, CAMERA.width_px), np.float32))
    with pytest.raises(ReconError, match="no surface at the time of frame 30"):
        still_surface(scene, nothing, 3, np.zeros((CAMERA.height_px, CAMERA.width_px)))


def test_a_still_camera_needs_one_pose(tmp_path):
    assert poses_for_time(wall_scene(tmp_path, held_out=(2,)), 2, 8) == [1]


def stage_with_known_renders(folder: Path, monkeypatch: pytest.MonkeyPatch, **options: float) -> tuple[Scene, Path]:
    """Run the stage; the training gives what the wall looks like."""
    scene = wall_scene(folder / "scene", **options)

    def rendered(scene_folder, work, settings, views, device, num_threads, watch):
        assert len({(view.color, view.depth) for view in views}) == len(views)
        for view in views:
            shown = render_wall(scene, view.pose_of, view.time_of)
            write_png(view.color, shown.image)
            write_depth(view.depth, shown.depth)
        return [Check(20, 20.0, {"rgb_loss": 0.1})]

    monkeypatch.setattr(nerf, "check_installed", lambda: None)
    monkeypatch.setattr(nerf, "train_and_render", rendered)
    out = folder / "out"
    out.mkdir()
    nerf.run({"scene": scene.folder}, out, nerf.Config(max_meshes=3, views_per_mesh=3))
    for pattern in nerf.STAGE.writes:
        assert list(out.glob(pattern))
    return scene, out


@pytest.mark.parametrize("step_mm", (0.0, 6.0))
def test_the_stage_gives_renders_depth_and_surfaces_in_the_unit_of_the_scene(tmp_path, monkeypatch, step_mm):
    scene, out = stage_with_known_renders(tmp_path, monkeypatch, step_mm=step_mm, held_out=(1,))
    assert sorted(path.name for path in (out / "renders").iterdir()) == [f"{frame.index:06d}.png" for frame in scene.frames]
    assert np.allclose(read_depth(out / "depth/000010.tiff"), wall_depth(CAMERA, scene.frames[1].T_world_camera, scene.frames[1].time))
    told = read_json(out / "nerf.json")
    assert sorted(path.name for path in (out / "meshes").iterdir()) == ["000000.ply", "000010.ply", "000020.ply", "000050.ply"]
    reference = next(frame for frame in scene.frames if frame.index == told["reference_index"])
    for path, time in (("meshes/000020.ply", 0.4), ("surface.ply", reference.time)):
        mesh = read_mesh(out / path)
        assert mesh.unit == told["unit"] == "mm"
        assert off_the_wall_mm(mesh.vertices, time).mean() < 0.1
        assert mesh.confidence is not None and mesh.observations is not None
    assert trimesh.load(out / "animation.glb").metadata["times_s"] == [scene.frames[i].timestamp_s for i in (0, 1, 2, 5)]
    assert told["checks"] == [{"step": 20, "psnr": 20.0, "terms": {"rgb_loss": 0.1}}]


def test_the_stage_says_what_a_scene_lacks(tmp_path, monkeypatch):
    monkeypatch.setattr(nerf, "check_installed", lambda: None)
    with pytest.raises(ReconError, match="0 frame to train on"):
        nerf.run({"scene": wall_scene(tmp_path / "scene", num_frames=2, held_out=(0, 1)).folder}, tmp_path, nerf.Config())
