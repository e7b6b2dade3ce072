"""Alignments recover what was applied, are optimal, and refuse what is not determined."""

import numpy as np
import pytest
from evo.core.geometry import umeyama_alignment
from hypothesis import given, settings
from hypothesis import strategies as st

from recon.geometry import se3
from recon.geometry.alignment import umeyama
from recon.geometry.similarity import Similarity
from recon.types import ReconError


@settings(max_examples=40)
@given(st.integers(0, 10_000), st.floats(0.01, 100.0), st.integers(3, 30))
def test_umeyama_recovers_a_similarity(seed, scale, num):
    rng = np.random.default_rng(seed)
    source = rng.normal(size=(num, 3)) * 10.0
    T = se3.exp(rng.normal(size=6))
    found = umeyama(source, scale * source @ T[:3, :3].T + T[:3, 3])
    assert found.scale == pytest.approx(scale, rel=1e-6)
    np.testing.assert_allclose(found.R, T[:3, :3], atol=1e-6)
    np.testing.assert_allclose(found.t, T[:3, 3], atol=1e-5 * max(1.0, scale))


@pytest.mark.parametrize("with_scale", [True, False])
def test_umeyama_agrees_with_evo_under_noise_and_for_mirrored_points(with_scale):
    rng = np.random.default_rng(1)
    for mirror in (1.0, -1.0):
        source = rng.normal(size=(40, 3))
        target = 2.0 * source * (mirror, 1.0, 1.0) + rng.normal(size=(40, 3)) * 0.1
        found = umeyama(source, target, with_scale)
        evo_R, evo_t, evo_scale = umeyama_alignment(source.T, target.T, with_scale)
        np.testing.assert_allclose(found.R, evo_R, atol=1e-9)
        np.testing.assert_allclose(found.t, evo_t, atol=1e-9)
        assert found.scale == pytest.approx(evo_scale)
        assert np.linalg.det(found.R) == pytest.approx(1.0)


def test_planar_points_are_enough():
    rng = np.random.default_rng(2)
    source = rng.normal(size=(10, 3)) * (1.0, 1.0, 0.0)
    T = se3.exp(rng.normal(size=6))
    found = umeyama(source, source @ T[:3, :3].T + T[:3, 3])
    np.testing.assert_allclose(found.R, T[:3, :3], atol=1e-9)


def test_undetermined_alignments_are_refused():
    line = np.arange(5.0)[:, None] * [1.0, 2.0, 3.0]
    with pytest.raises(ReconError, match="at least 3 points, found 2"):
        umeyama(line[:2], line[:2])
    with pytest.raises(ReconError, match="on one line"):
        umeyama(line, line)
    with pytest.raises(ReconError, match="one and the same"):
        umeyama(np.ones((4, 3)), np.ones((4, 3)))


def test_a_similarity_maps_points_cameras_and_back():
    T = se3.exp(np.array([1.0, -1.0, 0.5, 0.05, -0.08, 0.1]))
    some = Similarity(2.5, T[:3, :3], np.array([3.0, -2.0, 1.0]))
    points = np.random.default_rng(0).normal(size=(5, 3))
    assert some.map(points) == pytest.approx(2.5 * points @ T[:3, :3].T + [3, -2, 1])
    assert some.unmap(some.map(points)) == pytest.approx(points)
    assert np.column_stack([points, np.ones(5)]) @ some.matrix.T == pytest.approx(np.column_stack([some.map(points), np.ones(5)]))
    assert some.rotation_deg == pytest.approx(np.degrees(np.arccos((np.trace(T[:3, :3]) - 1) / 2)))
    poses = se3.exp(np.random.default_rng(1).normal(size=(4, 6)))
    moved = some.poses(poses)
    # What a camera sees keeps its direction and grows with the world.
    ahead = np.array([[0.3, -0.2, 1.0]])
    for pose, found in zip(poses, moved, strict=True):
        seen = ahead @ pose[:3, :3].T + pose[:3, 3]
        assert (some.map(seen) - found[:3, 3]) @ found[:3, :3] == pytest.approx(2.5 * ahead)
        assert some.poses(pose) == pytest.approx(found)
