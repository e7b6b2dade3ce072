"""Rigid motions: group axioms, bijections, and scipy as an independent oracle."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import expm
from scipy.spatial.transform import Rotation

from recon.geometry import se3

finite = st.floats(-3.0, 3.0)
twists = st.lists(finite, min_size=6, max_size=6).map(np.array).filter(lambda xi: np.linalg.norm(xi[3:]) < np.pi - 1e-3)


def random_motions(num: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return se3.exp(np.concatenate([rng.normal(size=(num, 3)), rng.normal(size=(num, 3))], axis=1))


@given(twists)
def test_log_inverts_exp(xi):
    np.testing.assert_allclose(se3.log(se3.exp(xi)), xi, atol=1e-9)


@settings(max_examples=30)
@given(twists)
def test_exp_is_the_matrix_exponential(xi):
    A = np.zeros((4, 4))
    A[:3, :3] = np.cross(np.eye(3), xi[3:])
    A[:3, 3] = xi[:3]
    np.testing.assert_allclose(se3.exp(xi), expm(A), atol=1e-9)


@pytest.mark.parametrize("angle", [0.0, 1e-12, 1e-8, 9e-5, 1.1e-4, 1e-2, 3.14, np.pi - 1e-9, np.pi])
def test_round_trip_near_identity_and_half_turn(angle):
    axis = np.array([0.6, -0.48, 0.64])
    xi = np.concatenate([[1.0, -2.0, 0.5], angle * axis])
    T = se3.exp(xi)
    np.testing.assert_allclose(se3.exp(se3.log(T)), T, atol=1e-12)
    np.testing.assert_allclose(np.linalg.norm(se3.log(T)[3:]), angle, atol=1e-9)


def test_inverse_and_composition():
    A, B = random_motions(50, 1), random_motions(50, 2)
    identity = np.broadcast_to(np.eye(4), A.shape)
    np.testing.assert_allclose(A @ se3.inverse(A), identity, atol=1e-12)
    np.testing.assert_allclose(se3.inverse(A @ B), se3.inverse(B) @ se3.inverse(A), atol=1e-12)


def test_quaternions_agree_with_scipy():
    rng = np.random.default_rng(3)
    q_xyzw = rng.normal(size=(500, 4))
    q_xyzw[:4] = np.eye(4)  # half turns about each axis, and none
    q_xyzw[np.arange(4, 20), rng.integers(0, 4, 16)] = 0.0
    R = Rotation.from_quat(q_xyzw).as_matrix()
    q_wxyz = np.roll(q_xyzw, 1, axis=1)
    np.testing.assert_allclose(se3.matrix_from_quat_wxyz(q_wxyz), R, atol=1e-12)
    found = se3.quat_wxyz_from_matrix(R)
    assert (found[:, 0] >= 0).all()
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1.0, atol=1e-12)
    np.testing.assert_allclose(se3.matrix_from_quat_wxyz(found), R, atol=1e-12)


def test_interpolation_is_a_constant_screw():
    A, B = random_motions(20, 4), random_motions(20, 5)
    np.testing.assert_allclose(se3.interpolate(A, B, 0.0), A, atol=1e-12)
    np.testing.assert_allclose(se3.interpolate(A, B, 1.0), B, atol=1e-9)
    half = se3.interpolate(A, B, 0.5)
    np.testing.assert_allclose(se3.inverse(A) @ half, se3.inverse(half) @ B, atol=1e-9)
    alphas = np.linspace(0.0, 1.0, 20)
    np.testing.assert_allclose(se3.interpolate(A, B, alphas)[7], se3.interpolate(A[7], B[7], float(alphas[7])), atol=1e-12)
