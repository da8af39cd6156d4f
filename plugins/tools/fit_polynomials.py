"""Fit the polynomials of ``plugins/cpu/coefficients.h``.

    python plugins/tools/fit_polynomials.py

Both are minimax in the relative error of the function that the kernels compute, found by Lawson's iteration: a least
squares fit whose weights grow where the error is largest, until it is the same everywhere.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from numpy.polynomial import Polynomial

Array = npt.NDArray[np.float64]
Function = Callable[[Array], Array]

POINTS = 4000
ROUNDS = 400


def minimax(function: Function, scale: Function, low: float, high: float, degree: int) -> tuple[Array, float]:
    """Return the coefficients of the best polynomial, lowest first, and its largest error.

    Args:
        function: to approximate.
        scale: what an error at a point is multiplied by.
        low: lower end of the interval.
        high: upper end of the interval.
        degree: of the polynomial.

    """
    angles = np.pi * (np.arange(POINTS) + 0.5) / POINTS
    x = 0.5 * (low + high) + 0.5 * (high - low) * np.cos(angles)
    wanted, scaled = function(x), scale(x)
    weights = np.full(POINTS, 1.0 / POINTS)
    for _ in range(ROUNDS):
        fitted = Polynomial.fit(x, wanted, degree, w=np.sqrt(weights) * scaled)
        error = np.abs((fitted(x) - wanted) * scaled)
        weights *= error + np.finfo(float).tiny
        weights /= weights.sum()
    return fitted.convert().coef, float(error.max())


def exp2() -> tuple[Array, float]:
    """2^f on [-0.5, 0.5] as 1 + f q(f): a step of size zero decays nothing."""
    q, error = minimax(lambda f: np.expm1(f * np.log(2.0)) / f, lambda f: f * 2.0**-f, -0.5, 0.5, 4)
    return np.concatenate([[1.0], q]), error


def log1p() -> tuple[Array, float]:
    """The logarithm of the softplus: log1p of e, divided by e, on [0, 1]."""

    def ratio(e: Array) -> Array:
        return np.log1p(e) / e

    return minimax(ratio, lambda e: 1.0 / ratio(e), 0.0, 1.0, 9)


def main() -> None:
    """Print both as the header holds them, rounded to float32 by the compiler."""
    for name, fit in (("kEXP2", exp2), ("kLOG1P", log1p)):
        coefficients, error = fit()
        values = ", ".join(f"{np.float32(value)}F" for value in coefficients)
        print(f"// largest relative error {error * 2**24:.2f} * 2^-24\nconstexpr float {name}[] = {{{values}}};")


if __name__ == "__main__":
    main()
