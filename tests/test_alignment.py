"""Alignments recover what was applied, are optimal, and refuse what is not determined."""

import numpy as np
import pytest
from evo.core.geometry import umeyama_alignment
from hypothesis import given, settings
from hypothesis import strategies as st

from recon.geometry import se3
from recon.geometry.alignment import umeyama
from recon.types import ReconError


@settings(max_examples=40)
@given(st.integers(0, 10_000), st.floats(0.01, 100.0), st.integers(3, 30))
def test_umeyama_recovers_a_similarity(seed, scale, num):
    rng = np.random.default_rng(seed)
    source = rng.normal(size=(num, 3)) * 10.0
    T = se3.exp(rng.normal(size=6))
    found_scale, R, t = umeyama(source, scale * source @ T[:3, :3].T + T[:3, 3])
    assert found_scale == pytest.approx(scale, rel=1e-6)
    np.testing.assert_allclose(R, T[:3, :3], atol=1e-6)
    np.testing.assert_allclose(t, T[:3, 3], atol=1e-5 * max(1.0, scale))


@pytest.mark.parametrize("with_scale", [True, False])
def test_umeyama_agrees_with_evo_under_noise_and_for_mirrored_points(with_scale):
    rng = np.random.default_rng(1)
    for mirror in (1.0, -1.0):
        source = rng.normal(size=(40, 3))
        target = 2.0 * source * (mirror, 1.0, 1.0) + rng.normal(size=(40, 3)) * 0.1
        scale, R, t = umeyama(source, target, with_scale)
        evo_R, evo_t, evo_scale = umeyama_alignment(source.T, target.T, with_scale)
        np.testing.assert_allclose(R, evo_R, atol=1e-9)
        np.testing.assert_allclose(t, evo_t, atol=1e-9)
        assert scale == pytest.approx(evo_scale)
        assert np.linalg.det(R) == pytest.approx(1.0)


def test_planar_points_are_enough():
    rng = np.random.default_rng(2)
    source = rng.normal(size=(10, 3)) * (1.0, 1.0, 0.0)
    T = se3.exp(rng.normal(size=6))
    _, R, _ = umeyama(source, source @ T[:3, :3].T + T[:3, 3])
    np.testing.assert_allclose(R, T[:3, :3], atol=1e-9)


def test_undetermined_alignments_are_refused():
    line = np.arange(5.0)[:, None] * [1.0, 2.0, 3.0]
    with pytest.raises(ReconError, match="at least 3 points, found 2"):
        umeyama(line[:2], line[:2])
    with pytest.raises(ReconError, match="on one line"):
        umeyama(line, line)
    with pytest.raises(ReconError, match="on one line"):
        umeyama(np.ones((4, 3)), np.ones((4, 3)))
