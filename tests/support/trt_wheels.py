"""The real Python bindings of TensorRT 10 and 11, made importable where TensorRT itself cannot be installed.

The bindings wheels hold every class, enum and signature, and link against three libraries for about ten C entry points.
Empty libraries of those names let them import, in a process of their own. Nothing can be built with them.
"""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

VERSIONS = {10: "10.16.1.11", 11: "11.4.0.106"}

_ENTRY_POINTS = (
    "createInferBuilder_INTERNAL",
    "createInferRuntime_INTERNAL",
    "createInferRefitter_INTERNAL",
    "createNvOnnxParser_INTERNAL",
    "createNvOnnxParserRefitter_INTERNAL",
    "getNvOnnxParserVersion",
    "initLibNvInferPlugins",
    "getPluginRegistry",
    "getBuilderPluginRegistry",
    "getLogger",
    "getInferLibVersion",
)


def cache() -> Path:
    """Folder that keeps the wheels between runs."""
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "vimdeploy-tests"


def environment(major: int) -> dict[str, str]:
    """Variables under which a child process can ``import tensorrt_bindings`` of this major version."""
    root = cache() / f"bindings-{VERSIONS[major]}-{sys.version_info.major}{sys.version_info.minor}"
    if not (root / "complete").exists():
        _prepare(root, major)
    paths = [str(root), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "LD_LIBRARY_PATH": str(root / "stubs"), "PYTHONPATH": os.pathsep.join(filter(None, paths))}


def _prepare(root: Path, major: int) -> None:
    root.mkdir(parents=True, exist_ok=True)
    wheel = f"tensorrt-cu13-bindings=={VERSIONS[major]}"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(root), wheel]
    subprocess.run(command, check=True)
    for path in root.glob("*.whl"):
        with zipfile.ZipFile(path) as archive:
            archive.extractall(root)
    stubs = root / "stubs"
    stubs.mkdir(exist_ok=True)
    source = stubs / "stubs.c"
    source.write_text("".join(f"void* {name}(void) {{ return 0; }}\n" for name in _ENTRY_POINTS))
    for library in ("nvinfer", "nvinfer_plugin", "nvonnxparser"):
        name = f"lib{library}.so.{major}"
        link = ["cc", "-shared", "-fPIC", f"-Wl,-soname,{name}", "-o", str(stubs / name), str(source)]
        subprocess.run(link, check=True)
    (root / "complete").touch()
