"""What each command needs, in one table: commands read it before they start, ``vimdeploy doctor`` judges by it."""

from __future__ import annotations

import importlib.util
import shlex
import shutil
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from vimdeploy.errors import MissingDependencyError

REQUIREMENTS = {
    "torch": "torch>=2.11",
    "onnx": "onnx>=1.18",
    "onnxscript": "onnxscript>=0.5",
    "onnx-ir": "onnx-ir>=0.1.12",
    "safetensors": "safetensors>=0.5",
    "onnxruntime": "onnxruntime>=1.19.2",
    "cuda-bindings": "cuda-bindings>=12.6.1",
    "tensorrt": "tensorrt>=10.3",
    "tensorrt-rtx": "tensorrt-rtx>=1.2",
    "jinja2": "jinja2>=3.1",
    "prometheus-client": "prometheus-client>=0.20",
    "pyarrow": "pyarrow>=17",
    "starlette": "starlette>=0.40",
    "uvicorn": "uvicorn>=0.30",
}
"""Packages as the extras of pyproject.toml ask for them: a test compares."""

MODULES = {
    "torch": "torch",
    "onnx": "onnx",
    "onnxscript": "onnxscript",
    "onnx-ir": "onnx_ir",
    "safetensors": "safetensors",
    "onnxruntime": "onnxruntime",
    "cuda-bindings": "cuda",
    "tensorrt": "tensorrt",
    "tensorrt-rtx": "tensorrt_rtx",
    "jinja2": "jinja2",
    "prometheus-client": "prometheus_client",
    "pyarrow": "pyarrow",
    "starlette": "starlette",
    "uvicorn": "uvicorn",
}
"""What each package is imported as. What has no module (driver, nvcc, ...) only the doctor looks for."""

_CHECKPOINT = ("torch", "safetensors")
_EXPORT = ("torch", "onnx", "onnxscript", "onnx-ir", "safetensors")
_ENGINE = ("driver", "tensorrt", "cuda-bindings")
COMMANDS: dict[str, tuple[str, ...]] = {
    "doctor": (),
    "recipes": (),
    "export": (*_EXPORT, "onnxruntime"),
    "verify": ("torch", "onnx", "safetensors", "onnxruntime"),
    "inspect": ("onnx",),
    "inspect CHECKPOINT": _CHECKPOINT,
    "predict": ("onnxruntime",),
    "predict -o": ("onnxruntime", "pyarrow"),
    "demo": (*_EXPORT, "onnxruntime"),
    "convert": ("onnx", "onnx-ir", "onnxruntime"),
    "build-plugin": ("nvcc", "compiler", "headers"),
    "build-engine": (*_ENGINE, "onnx", "onnx-ir", "plugin"),
    "build-engine --runtime rtx": ("tensorrt-rtx", "onnx", "onnx-ir"),
    "predict ENGINE": (*_ENGINE, "plugin"),
    "benchmark": ("onnxruntime",),
    "report": ("onnx", "onnxruntime", "jinja2"),
    "serve": ("onnxruntime", "prometheus-client", "starlette", "uvicorn"),
    "serve-repo": (),
}
"""What each command needs. ``export`` verifies by default, so it needs ONNX Runtime."""

PART_OF = {"predict ENGINE": "build-engine", "inspect CHECKPOINT": "export"}
"""A use of a command that exists only together with another one."""


def require(command: str, *, unless: Collection[str] = ()) -> None:
    """Raise MissingDependencyError, naming everything to install, where a Python package of a command is missing.

    Args:
        command: a key of :data:`COMMANDS`.
        unless: packages that this use of the command does without.

    """
    missing = [name for name in COMMANDS[command] if name in MODULES and name not in unless and not is_installed(name)]
    if missing:
        raise _lacking(command, missing)


@contextmanager
def in_words(command: str) -> Iterator[None]:
    """Turn the import error of a package that is not installed into words: what ``command`` needs.

    Raises:
        MissingDependencyError: in place of the import error.

    """
    try:
        yield
    except ModuleNotFoundError as error:
        if (explained := explain(error, command)) is None:
            raise
        raise explained from error


def explain(error: ModuleNotFoundError, command: str = "") -> MissingDependencyError | None:
    """Return what to install, or None where the error is not about a package that commands may lack."""
    module = (error.name or "").partition(".")[0]
    package = next((name for name, imported in MODULES.items() if imported == module), None)
    if package is None:
        return None
    uses = [set(wanted) for name, wanted in COMMANDS.items() if name == command or name.startswith(f"{command} ")]
    always = set.intersection(*uses) if uses else set()
    missing = [name for name in MODULES if name in always and not is_installed(name)]
    return _lacking(command, missing if package in missing else [package])


def pip_install(*requirements: str, python: str = sys.executable, options: str = "") -> str:
    """Return the command that installs packages into the very Python that runs vimdeploy."""
    found = shutil.which("python")
    # A short name where it means the same interpreter.
    name = "python" if found is not None and Path(found) == Path(python) else shlex.quote(python)
    return " ".join([name, "-m pip install", *([options] if options else []), *map(shlex.quote, requirements)])


def install(*packages: str) -> str:
    """Return the command that installs packages of :data:`REQUIREMENTS`, for a hint."""
    return pip_install(*(REQUIREMENTS[name] for name in packages))


def _lacking(command: str, packages: list[str]) -> MissingDependencyError:
    names = ", ".join(packages)
    return MissingDependencyError(
        f"{f'vimdeploy {command}'.strip()} needs {names}, which {'is' if len(packages) == 1 else 'are'} not installed.",
        hint=install(*packages),
    )


def is_installed(package: str) -> bool:
    """Return whether a package of :data:`MODULES` can be imported here."""
    try:
        return importlib.util.find_spec(MODULES[package]) is not None
    except (ImportError, ValueError):
        return False
