"""The coefficients that the CPU kernels use are those that the script fits."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

PLUGINS = Path(__file__).parents[2] / "plugins"
HEADER = (PLUGINS / "cpu" / "coefficients.h").read_text()


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fit_polynomials", PLUGINS / "tools" / "fit_polynomials.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def committed(name: str) -> np.ndarray:
    match = re.search(rf"{name}\[\] = \{{([^}}]*)\}}", HEADER)
    assert match is not None
    return np.array([float(value.strip().rstrip("F")) for value in match[1].split(",")])


def largest_error(name: str, coefficients: np.ndarray) -> float:
    if name == "exp2":
        x = np.linspace(-0.5, 0.5, 100_001)
        return float(np.abs(np.polyval(coefficients[::-1], x) * 2.0**-x - 1).max())
    x = np.linspace(1e-6, 1, 100_001)
    return float(np.abs(np.polyval(coefficients[::-1], x) * x / np.log1p(x) - 1).max())


@pytest.mark.parametrize(("name", "array"), [("exp2", "kEXP2"), ("log1p", "kLOG1P")])
def test_the_header_holds_the_best_polynomial(tool: ModuleType, name: str, array: str) -> None:
    fitted, error = getattr(tool, name)()
    held = committed(array)
    assert held == pytest.approx(fitted, rel=1e-5)
    assert largest_error(name, held) <= 1.1 * error + 2.0**-24  # rounding the coefficients to float32 costs a little
    spoilt = held.copy()
    spoilt[2] *= 1.0001
    assert largest_error(name, spoilt) > 1.1 * error + 2.0**-24
