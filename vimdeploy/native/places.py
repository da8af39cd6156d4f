"""Where a build of the plugin library looks for nvcc and TensorRT's headers, in order, for build and doctor alike."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

SYSTEM_CUDA = (Path("/usr/local/cuda"),)
SYSTEM_INCLUDES = (
    Path(f"/usr/include/{os.uname().machine}-linux-gnu"),
    Path("/usr/include"),
    Path("/usr/local/include"),
    Path("/usr/local/cuda/include"),
    Path("/usr/local/tensorrt/include"),
    Path("/opt/tensorrt/include"),
)
HEADER = "NvInferRuntime.h"
"""The header that plugins are compiled against; a folder that has it holds TensorRT's."""


def nvcc_candidates(
    env: Mapping[str, str], sites: Sequence[Path], cuda_folders: Sequence[Path] = SYSTEM_CUDA
) -> Iterator[tuple[str, Path]]:
    """Yield (what leads there, path) of every nvcc that may exist.

    Args:
        env: environment with PATH, CUDA_HOME and CUDA_PATH.
        sites: folders of Python packages, where the wheel ``nvidia-cuda-nvcc`` may be.
        cuda_folders: where the system installs CUDA.

    """
    for folder in filter(None, env.get("PATH", "").split(os.pathsep)):
        yield "PATH", Path(folder) / "nvcc"
    for variable in ("CUDA_HOME", "CUDA_PATH"):
        if env.get(variable):
            yield variable, Path(env[variable]) / "bin" / "nvcc"
    for cuda in cuda_folders:
        yield "system folder", cuda / "bin" / "nvcc"
    for site in sites:
        for path in sorted(site.glob("nvidia/*/bin/nvcc")):
            yield "Python package nvidia", path


def header_candidates(
    env: Mapping[str, str], include_folders: Sequence[Path] = SYSTEM_INCLUDES
) -> Iterator[tuple[str, Path]]:
    """Yield (what leads there, folder) of every folder that may hold TensorRT's headers.

    Args:
        env: environment with TENSORRT_INCLUDE_DIR and TENSORRT_ROOT.
        include_folders: where the system installs headers.

    """
    if env.get("TENSORRT_INCLUDE_DIR"):
        yield "TENSORRT_INCLUDE_DIR", Path(env["TENSORRT_INCLUDE_DIR"])
    if env.get("TENSORRT_ROOT"):
        root = Path(env["TENSORRT_ROOT"])
        for folder in (root / "include", *sorted(root.glob("targets/*/include"))):
            yield "TENSORRT_ROOT", folder
    for folder in include_folders:
        yield "system folder", folder
