"""The unit from a model of the organ: right where the shape decides, and refused where it does not."""

from __future__ import annotations

from functools import cache

import cv2
import numpy as np
import open3d as o3d
import open3d.core as o3c
import pytest
from bodies import ellipsoid, sphere, tube

from recon.geometry import se3
from recon.geometry.cameras import ray_grid
from recon.tracking.scale_model import ModelView, scale_from_model
from recon.types import Camera, Mesh, ReconError

CAMERA = Camera("PINHOLE", 48, 40, (24.0, 24.0, 23.5, 19.5))
TRUE_MM = 12.5
TURN = se3.exp(np.array([5.0, -3.0, 2.0, 0.9, -0.7, 1.1]))


@cache
def organ() -> Mesh:
    """A cavity about 60 mm long with bulges that no turn repeats."""
    body = sphere(1.0, 5)
    x, y, z = body.vertices.T
    radius = 25 * (1 + 0.3 * x + 0.25 * x * y + 0.2 * np.sin(2.5 * z + 0.4) + 0.12 * np.cos(3 * y + x))
    return Mesh(body.vertices * radius[:, None] * (1.3, 1.0, 0.8), body.faces, unit="mm")


def looking(directions: np.ndarray) -> list[np.ndarray]:
    """Cameras near the middle that look in these directions, camera-to-world, mm."""
    poses = []
    for z in directions / np.linalg.norm(directions, axis=1, keepdims=True):
        x = np.cross(z, (0.3, 0.9, 0.1))
        x /= np.linalg.norm(x)
        T = np.eye(4)
        T[:3, :3], T[:3, 3] = np.stack([x, np.cross(z, x), z], axis=1), -3 * z
        poses.append(T)
    return poses


ROUND_ABOUT = np.array([[1, 0, 0.2], [-1, 0.3, 0], [0, 1, 0], [0, -1, 0.3], [0.2, 0, 1], [0, 0.2, -1], [1, 1, 1], [-1, -1, 0.5]], float)


def views(mesh: Mesh, directions: np.ndarray = ROUND_ABOUT, noise_seed: int | None = None, error: float = 0.03) -> list[ModelView]:
    """The mesh seen by the run, in a world that is turned and smaller; with a seed, the depth of every view bends smoothly."""
    scene = o3d.t.geometry.RaycastingScene()
    scene.add_triangles(o3c.Tensor(mesh.vertices.astype(np.float32)), o3c.Tensor(mesh.faces.astype(np.uint32)))
    seen = []
    for index, T in enumerate(looking(directions)):
        rays = ray_grid(CAMERA).reshape(-1, 3)
        cast = np.concatenate([np.broadcast_to(T[:3, 3], rays.shape), rays @ T[:3, :3].T], axis=1).astype(np.float32)
        hit = scene.cast_rays(o3c.Tensor(cast))["t_hit"].numpy()
        depth = np.where(np.isfinite(hit), hit * rays[:, 2], 0).reshape(CAMERA.height_px, CAMERA.width_px) / TRUE_MM
        if noise_seed is not None:
            smooth = cv2.GaussianBlur(np.random.default_rng([noise_seed, index]).normal(size=depth.shape), (0, 0), 8)
            depth = depth * np.exp(error * smooth / smooth.std())
        world = TURN @ T
        world[:3, 3] /= TRUE_MM
        seen.append(ModelView(index, CAMERA, world, depth.astype(np.float32)))
    return seen


def test_the_unit_is_found_from_any_turn():
    found = scale_from_model(views(organ()), organ())
    assert found.scale.source == "model" and found.scale.unit == "mm"
    assert found.scale.value == pytest.approx(TRUE_MM, rel=0.01)
    assert abs(found.scale.value - TRUE_MM) < 3 * found.scale.sigma < 0.1 * TRUE_MM
    assert [window.factor_mm for window in found.windows] == pytest.approx([TRUE_MM] * 5, rel=0.03)


@pytest.mark.parametrize("seed", range(4))
def test_its_sigma_covers_depth_that_bends(seed):
    found = scale_from_model(views(organ(), noise_seed=seed), organ())
    assert abs(found.scale.value - TRUE_MM) < 3 * found.scale.sigma < 0.3 * TRUE_MM


@pytest.mark.parametrize(
    ("seen", "model", "says"),
    [
        (tube(20.0, 80.0), tube(20.0, 80.0), "the shape does not decide .*rotation about"),
        (sphere(25.0, 4), sphere(25.0, 4), "the shape does not decide"),
        (ellipsoid(40.0, 25.0, 15.0), organ(), "the shape does not decide|the best fit lies|fits the model nowhere|as good"),
    ],
)
def test_what_the_shape_does_not_say_is_refused(seen, model, says):
    with pytest.raises(ReconError, match=says):
        scale_from_model(views(seen), model)


def test_a_run_without_depth_is_refused():
    blind = [ModelView(view.index, CAMERA, view.T_world_camera, 0 * view.depth) for view in views(organ())[:2]]
    with pytest.raises(ReconError, match="none of 2 posed frames has depth"):
        scale_from_model(blind, organ())
