"""What the tests of predicting, serving and reports share: the digits model, its images, environments of their own."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from commandline import succeed
from PIL import Image
from trt_wheels import cache

ROOT = Path(__file__).parents[2]
DIGITS = ROOT / "examples" / "digits"
SITES = [path for path in sys.path if path.endswith("site-packages")]


def export_digits(folder: Path, *options: object) -> Path:
    """Export the trained example; returns the ONNX file."""
    path = folder / "digits.onnx"
    succeed("export", DIGITS / "vim_digits.pth", "-o", path, "--no-verify", *options)
    return path


def held_out(count: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Return the held-back digits (N, 8, 8) uint8 and their labels (N,)."""
    with np.load(DIGITS / "held_out.npz") as file:
        return file["images"][:count], file["labels"][:count]


def write_digits(folder: Path, count: int, *, by_class: bool = False) -> list[Path]:
    """Write held-back digits as PNG files, over and over up to ``count``, in folders per class where asked."""
    images, labels = held_out()
    paths = []
    for index in range(count):
        label = labels[index % len(labels)]
        path = folder / str(label) / f"{index:05d}.png" if by_class else folder / f"{index:05d}_is_{label}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(images[index % len(images)]).save(path)
        paths.append(path)
    return paths


def environment(name: str, requirements: Sequence[str], *, layered: bool) -> Path:
    """Return the Python of an environment of its own, made once and kept between runs.

    Args:
        name: of its folder.
        requirements: with exact versions; ``--no-deps X`` is installed without what it asks for.
        layered: whether it also sees the packages of the environment that runs the tests.

    """
    digest = hashlib.sha256("\n".join([*requirements, *SITES]).encode()).hexdigest()[:12]
    root = cache() / f"{name}-{sys.version_info.major}{sys.version_info.minor}-{digest}"
    python = root / "bin" / "python"
    if not (root / "complete").exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(root)], check=True)
        if layered:
            own = Path(f"{root}/lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages")
            (own / "tests_environment.pth").write_text("\n".join(SITES) + "\n")
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        alone = [r.removeprefix("--no-deps ") for r in requirements if r.startswith("--no-deps ")]
        others = [r for r in requirements if not r.startswith("--no-deps ")]
        for command in ([*pip, "--no-deps", *alone] if alone else None, [*pip, *others] if others else None):
            if command:
                subprocess.run(command, check=True)
        (root / "complete").touch()
    return python


def clean_environment(**more: str) -> dict[str, str]:
    """Return variables for a child process that imports this checkout."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1", **more}
