"""What the tests of precision and engines share beside fixtures."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np

import vimdeploy

DATA = Path(__file__).parents[1] / "data"


def export(checkpoint: Path, output: Path, **request: object) -> Path:
    return vimdeploy.export(checkpoint, output, verify=False, **request).path  # type: ignore[arg-type]


def relative_rms(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.sqrt(np.mean((a.astype(np.float64) - b) ** 2) / np.mean(b.astype(np.float64) ** 2)))


def cli(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "vimdeploy", *arguments]
    env = {**os.environ, "COLUMNS": "220"}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=env)
