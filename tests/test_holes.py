"""Missed area against shapes whose holes are known."""

from __future__ import annotations

import numpy as np
import pytest
import trimesh
from fusion_scenes import CAMERA, fused, tube_depth, view_of

from recon.fusion.view import rays
from recon.io.meshes import vertex_normals
from recon.mesh.clean import CleanSettings, clean, keep_faces
from recon.mesh.holes import border_loops, coverage_summary, estimate_coverage
from recon.types import Mesh

RADIUS, LENGTH = 12.0, 80.0


def with_normals(mesh: Mesh) -> Mesh:
    return Mesh(mesh.vertices, mesh.faces, normals=vertex_normals(mesh.vertices, mesh.faces), unit="mm")


def tube(columns=240, rows=320) -> tuple[Mesh, np.ndarray, np.ndarray]:
    """An open tube along z whose faces turn inwards, and the angle and z of the middle of each face."""
    phi, z = np.meshgrid(2 * np.pi * np.arange(columns) / columns, np.linspace(0, LENGTH, rows))
    vertices = np.stack([RADIUS * np.cos(phi), RADIUS * np.sin(phi), z], axis=-1).reshape(-1, 3)
    i, j = np.meshgrid(np.arange(rows - 1), np.arange(columns), indexing="ij")
    a, b = i * columns + j, i * columns + (j + 1) % columns
    faces = np.concatenate([np.stack([a, a + columns, b], -1).reshape(-1, 3), np.stack([b, a + columns, b + columns], -1).reshape(-1, 3)])
    # Both triangles of a cell have its middle, so that patches are cut along cells.
    middle = np.concatenate([vertices[np.stack([a, a + columns, b, b + columns], -1).reshape(-1, 4)].mean(axis=1)] * 2)
    return Mesh(vertices, faces), np.arctan2(middle[:, 1], middle[:, 0]), middle[:, 2]


def patched(*patches) -> Mesh:
    """The tube without patches (angle, half angle, z, half length)."""
    mesh, phi, z = tube()
    missing = np.zeros(len(mesh.faces), bool)
    for angle, half_angle, at, half_length in patches:
        ragged = 1 + 0.05 * np.sin(9 * phi + z)
        missing |= (np.abs(np.angle(np.exp(1j * (phi - angle)))) < half_angle * ragged) & (np.abs(z - at) < half_length * ragged)
    return with_normals(keep_faces(mesh, ~missing))


def test_a_whole_tube_misses_nothing_although_its_ends_are_open():
    found = estimate_coverage(patched())
    assert found.holes == () and found.coverage_estimate == 1
    assert found.observed_area == pytest.approx(2 * np.pi * RADIUS * LENGTH, rel=0.005)


@pytest.mark.parametrize("half_angle", [0.15, 0.4, 0.7])
def test_the_area_of_a_patch_is_found_within_a_tenth(half_angle):
    mesh = patched((1.0, half_angle, 30.0, 7.0))
    found = estimate_coverage(mesh)
    whole = 2 * np.pi * RADIUS * LENGTH
    truth = whole - found.observed_area
    assert len(found.holes) == 1
    assert found.missed_area_estimate == pytest.approx(truth, rel=0.1)
    assert found.coverage_estimate == pytest.approx(found.observed_area / whole, abs=0.01)
    assert found.holes[0].center == pytest.approx([RADIUS * np.cos(1.0), RADIUS * np.sin(1.0), 30.0], abs=0.25 * RADIUS)


def test_holes_come_largest_first_each_at_its_place():
    found = estimate_coverage(patched((0.0, 0.2, 20.0, 3.0), (2.0, 0.4, 60.0, 6.0), (-2.0, 0.1, 40.0, 2.0)))
    assert [round(hole.center[2]) for hole in found.holes] == [60, 20, 40]
    assert np.all(np.diff([hole.area for hole in found.holes]) < 0)


def test_a_bite_out_of_an_end_is_the_end():
    assert estimate_coverage(patched((1.0, 0.5, 0.0, 8.0))).holes == ()


def test_slanted_and_ragged_ends_are_no_holes():
    mesh, phi, z = tube()
    rng = np.random.default_rng(0)
    end = 60 + 10 * np.cos(phi) + 3 * np.sin(7 * phi) + rng.uniform(0, 1, len(phi))
    ragged = with_normals(keep_faces(mesh, (z > 5) & (z < end)))
    assert estimate_coverage(ragged).missed_area_estimate < 0.002 * estimate_coverage(ragged).observed_area


def test_the_rim_of_a_sheet_is_no_hole_and_a_hole_in_it_is():
    sheet = trimesh.creation.icosphere(5, 10.0)
    mesh = Mesh(np.array(sheet.vertices), np.array(sheet.faces, np.int64))
    middle = mesh.vertices[mesh.faces].mean(axis=1)
    cap = middle[:, 2] > 6
    hole = np.linalg.norm(middle[:, :2], axis=1) < 2
    assert estimate_coverage(with_normals(keep_faces(mesh, cap))).holes == ()
    found = estimate_coverage(with_normals(keep_faces(mesh, cap & ~hole)))
    assert len(found.holes) == 1 and found.missed_area_estimate == pytest.approx(np.pi * 4, rel=0.1)


def test_loops_that_touch_are_parted_and_every_border_edge_is_walked_once():
    n = 12
    grid = np.arange(n * n).reshape(n, n)
    quads = np.stack([grid[:-1, :-1], grid[1:, :-1], grid[1:, 1:], grid[:-1, 1:]], -1)
    keep = np.ones((n - 1, n - 1), bool)
    keep[4, 4] = keep[5, 5] = False
    quads = quads[keep]
    faces = np.concatenate([quads[:, [0, 1, 2]], quads[:, [0, 2, 3]]])
    loops = border_loops(faces)
    assert sorted(len(loop) for loop in loops) == [4, 4, 4 * (n - 1)]


def test_a_closed_surface_has_no_border():
    assert border_loops(np.array(trimesh.creation.box().faces)) == []


def test_a_hole_is_told_with_the_frame_that_was_nearest():
    centers = np.array([[0.0, 0.0, z] for z in (0.0, 25.0, 50.0)])
    told = coverage_summary(estimate_coverage(patched((1.0, 0.4, 30.0, 7.0))), "mm", [4, 9, 12], centers)
    assert told["area_unit"] == "mm^2" and told["num_holes"] == 1
    assert [hole["nearest_frame"] for hole in told["largest_holes"]] == [9]


def fused_tube(half_angle: float, half_length: float, at: float):
    """Coverage of a tube fused from views of which none knows a patch around angle 0."""
    views = []
    for k in range(6):
        T = np.eye(4)
        T[:3, 3] = [2 * np.sin(k), 2 * np.cos(k), 3 * k - 6]
        depth = tube_depth(T)
        points = rays(CAMERA) * depth[..., None] + T[:3, 3]
        missing = (np.abs(np.arctan2(points[..., 1], points[..., 0])) < half_angle) & (np.abs(points[..., 2] - at) < half_length)
        views.append(view_of(depth, T, k, usable=(depth > 0) & (depth < 30) & ~missing))
    return estimate_coverage(clean(fused(views, voxel=0.3, truncation=1.0), CleanSettings(min_confidence=0.0)))


def test_a_patch_that_no_frame_knows_is_missed_in_a_fused_tube():
    whole, lacking = fused_tube(0.0, 0.0, 22.0), fused_tube(0.5, 5.0, 22.0)
    truth = 2 * 0.5 * 12.0 * 2 * 5.0
    assert lacking.holes[0].area == pytest.approx(truth, rel=0.15)
    assert lacking.holes[0].center == pytest.approx([12.0, 0.0, 22.0], abs=1.5)
    # Where pixels are sparser than voxels, far down the tube, there are small holes in both.
    assert lacking.missed_area_estimate - whole.missed_area_estimate == pytest.approx(truth, rel=0.15)
    assert whole.observed_area - lacking.observed_area == pytest.approx(truth, rel=0.15)
