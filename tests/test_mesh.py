"""Cleaning keeps what is supported and connected, and every attribute stays with its vertex."""

from __future__ import annotations

import numpy as np
import pytest
import trimesh

from recon.mesh.clean import CleanSettings, clean, confident_faces, degenerate_faces, keep_faces, large_components, smooth
from recon.types import Mesh, ReconError


def sphere(subdivisions=3, center=(0.0, 0.0, 0.0), radius=10.0) -> Mesh:
    body = trimesh.creation.icosphere(subdivisions, radius)
    vertices = np.array(body.vertices) + center
    n = len(vertices)
    tag = np.arange(n, dtype=np.float64)
    return Mesh(vertices, np.array(body.faces, np.int64), np.full((n, 3), 9, np.uint8), None, np.full(n, 0.8), tag, "mm")


def joined(first: Mesh, second: Mesh) -> Mesh:
    faces = np.concatenate([first.faces, second.faces + len(first.vertices)])
    rows = {
        name: np.concatenate([getattr(first, name), getattr(second, name)]) for name in ("vertices", "colors", "confidence", "observations")
    }
    return Mesh(faces=faces, unit="mm", **rows)


def test_small_floating_pieces_go_and_attributes_stay_aligned():
    mesh = joined(sphere(1, (40.0, 0, 0), 0.5), sphere(4))
    mesh.observations[:] = mesh.vertices[:, 0]
    cleaned = clean(mesh, CleanSettings(min_component_share=0.05, smoothing_steps=0))
    assert cleaned.vertices[:, 0].max() < 11
    assert np.array_equal(cleaned.observations, cleaned.vertices[:, 0])
    assert cleaned.colors.shape == (len(cleaned.vertices), 3) and cleaned.unit == "mm"
    assert np.array_equal(np.unique(cleaned.faces), np.arange(len(cleaned.vertices)))


def test_normals_agree_with_trimesh():
    cleaned = clean(sphere(3), CleanSettings(smoothing_steps=0))
    radial = cleaned.vertices / np.linalg.norm(cleaned.vertices, axis=1, keepdims=True)
    assert np.sum(cleaned.normals * radial, axis=1).min() > 0.999


def test_degenerate_and_repeated_faces_go():
    vertices = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [2, 0, 0]], float)
    faces = np.array([[0, 1, 2], [1, 2, 0], [0, 0, 1], [0, 1, 3]])
    assert degenerate_faces(Mesh(vertices, faces)).tolist() == [False, True, True, True]


def test_unsupported_surface_goes_but_never_more_than_the_share():
    mesh = sphere()
    mesh.confidence[:] = np.where(mesh.vertices[:, 2] > 5, 0.05, 0.8)
    kept = confident_faces(mesh, 0.15, 0.5)
    assert mesh.vertices[mesh.faces[kept], 2].max() <= 5
    mesh.confidence[:] = np.linspace(0, 0.1, len(mesh.vertices))
    assert 0.45 < confident_faces(mesh, 0.15, 0.5).mean() < 0.55
    mesh.confidence[:] = 0.01
    assert confident_faces(mesh, 0.15, 0.5).all()


def test_smoothing_removes_noise_without_shrinking():
    mesh = sphere(4)
    noisy = Mesh(mesh.vertices + np.random.default_rng(0).normal(0, 0.1, mesh.vertices.shape), mesh.faces)
    radius = np.linalg.norm(smooth(noisy, 3).vertices, axis=1)
    assert radius.std() < 0.6 * np.linalg.norm(noisy.vertices, axis=1).std()
    assert radius.mean() == pytest.approx(10, abs=0.02)


def test_smoothing_leaves_the_border_where_it_is():
    mesh = sphere(3)
    half = keep_faces(mesh, mesh.vertices[mesh.faces][:, :, 2].min(axis=1) > -1e-9)
    border = np.abs(half.vertices[:, 2]) < 1e-9
    assert border.any()
    assert np.array_equal(smooth(half, 5).vertices[border], half.vertices[border])


def test_components_are_counted_in_faces():
    mesh = joined(sphere(1), sphere(2, (30.0, 0, 0)))
    assert large_components(mesh, 0.1).all()
    assert large_components(mesh, 0.5).sum() == 320


def test_nothing_left_is_an_error():
    with pytest.raises(ReconError, match="no face") as raised:
        clean(Mesh(np.zeros((3, 3)), np.array([[0, 1, 2]])), CleanSettings())
    assert raised.value.exit_code == 1
