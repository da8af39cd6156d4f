"""A machine with no CUDA, no TensorRT and an empty cache, and shell scripts that stand for compilers."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from vimdeploy.native import places
from vimdeploy.native.libraries import KINDS

NVCC = """\
#!/bin/sh
case "$1" in
--version) echo "Cuda compilation tools, release 13.0, V13.0.88"; exit 0 ;;
--list-gpu-arch) printf 'compute_75\\ncompute_89\\ncompute_90\\n'; exit 0 ;;
esac
echo "$@" >> "$NVCC_LOG"
while [ $# -gt 0 ]; do
    if [ "$1" = -o ]; then out=$2; fi
    shift
done
case "$out" in
*"$NVCC_FAILS"*) test -n "$NVCC_FAILS" && { echo "kernel.cuh(7): error: expected a semicolon" >&2; exit 2; } ;;
esac
printf 'built' > "$out"
"""


def executable(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


def headers(folder: Path, major: int = 10, minor: int = 14) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "NvInferRuntime.h").write_text("")
    text = f"#define TRT_MAJOR_ENTERPRISE {major}\n#define TRT_MINOR_ENTERPRISE {minor}\n"
    (folder / "NvInferVersion.h").write_text(text)
    return folder


def make_bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Take everything away that a search could find; a C++ compiler stays."""
    for name in (
        "CUDA_HOME",
        "CUDA_PATH",
        "TENSORRT_ROOT",
        "TENSORRT_INCLUDE_DIR",
        "CXX",
        *(kind.environment for kind in KINDS if kind.environment),
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("NVCC_LOG", str(tmp_path / "nvcc.log"))
    monkeypatch.setenv("NVCC_FAILS", "")
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(places, "SYSTEM_CUDA", (tmp_path / "no",))
    monkeypatch.setattr(places, "SYSTEM_INCLUDES", (tmp_path / "usr" / "include",))
    monkeypatch.setattr(places, "python_folders", lambda: [tmp_path / "site-packages"])
    compiler = executable(tmp_path / "g++", "#!/bin/sh\necho 13\n")
    monkeypatch.setattr(shutil, "which", lambda name, path=None: str(compiler) if name == "g++" else None)
