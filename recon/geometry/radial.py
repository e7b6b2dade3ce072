"""Where a radial lens polynomial stops being one to one, and a table to start its inversion from."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

MIN_SLOPE = 0.05
"""A lens ends where an image radius grows slower than this share of its growth on the axis: from there on a pixel
spans twenty times the angle, the polynomial is an extrapolation, and soon it folds back on itself."""

TABLE_SIZE = 1024


def first_crossing(coefficients: np.ndarray) -> float:
    """Smallest positive real root of a polynomial (lowest order first); infinity when it has none."""
    roots = np.polynomial.Polynomial(coefficients).trim().roots()
    real = roots.real[np.abs(roots.imag) <= 1e-9 * np.maximum(1.0, np.abs(roots.real))]
    return float(np.min(real[real > 0.0], initial=np.inf))


def inverse_table(curve: Callable[[np.ndarray], np.ndarray], limit: float) -> tuple[np.ndarray, np.ndarray]:
    """Arguments and values of an increasing curve over 0..limit, for `np.interp(value, values, arguments)`."""
    arguments = np.linspace(0.0, limit, TABLE_SIZE)
    return arguments, curve(arguments)
