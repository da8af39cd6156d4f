"""From a Vision Mamba checkpoint to a fast, verified TensorRT engine: the Python API.

Each name is imported when it is first used: ``import vimdeploy`` itself brings in neither torch nor onnx nor numpy.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from vimdeploy.version import __version__

if TYPE_CHECKING:
    from vimdeploy.commands.benchmark import benchmark as benchmark
    from vimdeploy.commands.build_engine import build_engine as build_engine
    from vimdeploy.commands.convert import convert as convert
    from vimdeploy.commands.export import export as export
    from vimdeploy.commands.export_module import export_module as export_module
    from vimdeploy.commands.inspect import inspect as inspect
    from vimdeploy.commands.ops_library import ops_library as ops_library
    from vimdeploy.commands.predict import predict as predict
    from vimdeploy.commands.report import report as report
    from vimdeploy.commands.serve_repo import serve_repo as serve_repo
    from vimdeploy.commands.verify import verify as verify
    from vimdeploy.errors import VimdeployError as VimdeployError
    from vimdeploy.interop import substitute_mamba_ssm as substitute_mamba_ssm
    from vimdeploy.progress import Reporter as Reporter
    from vimdeploy.runtime.session import load as load
    from vimdeploy.tensorrt.options import BuildOptions as BuildOptions

_HOME = {
    "BuildOptions": "vimdeploy.tensorrt.options",
    "Reporter": "vimdeploy.progress",
    "VimdeployError": "vimdeploy.errors",
    "benchmark": "vimdeploy.commands.benchmark",
    "build_engine": "vimdeploy.commands.build_engine",
    "convert": "vimdeploy.commands.convert",
    "export": "vimdeploy.commands.export",
    "export_module": "vimdeploy.commands.export_module",
    "inspect": "vimdeploy.commands.inspect",
    "load": "vimdeploy.runtime.session",
    "ops_library": "vimdeploy.commands.ops_library",
    "predict": "vimdeploy.commands.predict",
    "report": "vimdeploy.commands.report",
    "serve_repo": "vimdeploy.commands.serve_repo",
    "substitute_mamba_ssm": "vimdeploy.interop",
    "verify": "vimdeploy.commands.verify",
}
"""Where each name lives. A new one is a line here and, for type checkers, one above: a test compares them."""

__all__ = ["__version__", *_HOME]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'vimdeploy' has no attribute '{name}'")
    from vimdeploy.needs import in_words

    with in_words(name.replace("_", "-")):
        value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
