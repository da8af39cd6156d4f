"""The native ops for a CPU: ``libvimdeploy_ops.so``, found in the installed package or built from its sources.

ONNX Runtime loads it as a custom-op library, :mod:`vimdeploy.ops.cpu_kernels` calls its plain C entry points. It needs
a C++ compiler and nothing else, and is built in seconds; a wheel that was built where a compiler is carries it.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

from vimdeploy.errors import MissingDependencyError
from vimdeploy.native.libraries import OPS_KIND
from vimdeploy.native.places import Places
from vimdeploy.native.toolchain import host_compilers

OPS = OPS_KIND.file
VARIABLE = OPS_KIND.environment
"""Environment variable with the path of a library to use in place of any other; empty for none at all."""

_FOLDERS = ("cpu", "onnxruntime")
_ERROR_LINES = 20
_FLAGS = (
    *("-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-fvisibility-inlines-hidden", "-Wall", "-Wextra"),
    # Products and sums contract to one rounding on every target; no one asks these kernels for errno or traps.
    *("-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math"),
)
# plugins/cpu/dispatch.cpp asks the processor for every feature named here.
_UNITS: dict[str, dict[str, tuple[str, ...]]] = {
    "x86_64": {
        "cpu/isa_avx512.cpp": ("-fno-exceptions", "-mavx512f", "-mavx2", "-mfma"),
        "cpu/isa_avx2.cpp": ("-fno-exceptions", "-mavx2", "-mfma"),
    },
    "aarch64": {"cpu/isa_neon.cpp": ("-fno-exceptions",)},
}


def carried_library() -> Path | None:
    """Return the library that the installed package carries; None where it was built without a compiler."""
    path = Path(__file__).resolve().parents[1] / "_lib" / OPS
    return path if path.is_file() else None


def ops_sources() -> Path | None:
    """Return the folder of the sources: in the installed package, or beside it in a checkout; None without either."""
    package = Path(__file__).resolve().parents[1]
    folders = (package / "_plugins", package.parent / "plugins")
    return next((folder for folder in folders if (folder / "cpu" / "ops.cpp").is_file()), None)


def compile_ops(
    sources: Path, target: Path, *, compiler: str | None = None, machine: str | None = None, flags: tuple[str, ...] = ()
) -> None:
    """Compile the library, whole or not at all.

    Args:
        sources: folder with ``cpu`` and ``onnxruntime``.
        target: file to write.
        compiler: C++ compiler; found by :func:`find_compiler` by default.
        machine: ``x86_64`` or ``aarch64``, what the compiler compiles for; this machine by default.
        flags: further options, for tests.

    Raises:
        MissingDependencyError: there is no compiler, or it fails; its first errors are in the message.

    """
    compiler = compiler or find_compiler()
    if compiler is None:
        raise MissingDependencyError("the native ops need a C++ compiler", hint=_COMPILER_HINT)
    special = _UNITS.get(machine or platform.machine(), {})
    units = {path.relative_to(sources).as_posix() for folder in _FOLDERS for path in (sources / folder).glob("*.cpp")}
    units = {u for u in units if not u.startswith(("cpu/isa_", "onnxruntime/cuda_"))} | {"cpu/isa_base.cpp", *special}
    target.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=".build-", dir=target.parent))
    try:

        def compile_unit(unit: str) -> str:
            made = str(work / (unit.replace("/", "_") + ".o"))
            options = [*_FLAGS, *special.get(unit, ()), *flags, "-I", str(sources), "-c", str(sources / unit)]
            _call([compiler, *options, "-o", made], work)
            return made

        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            objects = list(pool.map(compile_unit, sorted(units)))
        linked = work / target.name
        exports = f"-Wl,--version-script={sources / 'onnxruntime' / 'ops.map'}"
        # Linked in, so that a wheel runs where another compiler's run-time library is installed, or none.
        static = ("-static-libstdc++", "-static-libgcc", "-Wl,--exclude-libs,ALL")
        _call([compiler, "-shared", *flags, *objects, "-o", str(linked), "-pthread", exports, *static], work)
        linked.replace(target)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def find_compiler() -> str | None:
    """Return the first C++ compiler of :func:`vimdeploy.native.toolchain.host_compilers` that runs, None without."""
    return next((str(tool.path) for tool in host_compilers() if not tool.problem), None)


def built_path(sources: Path) -> Path:
    """Return where the library built from ``sources`` is kept in the user's cache: one folder per state of them."""
    digest = hashlib.sha256(f"{platform.machine()} {_FLAGS} {_UNITS}".encode())
    for folder in _FOLDERS:
        for path in sorted(p for p in (sources / folder).iterdir() if p.is_file()):
            digest.update(f"{path.name} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return Places().cache / OPS_KIND.folder / digest.hexdigest()[:16] / OPS


@cache
def ops_library(say: Callable[[str], None] | None = None) -> Path | None:
    """Return the library of the native ops, building it if need be; None where it cannot be had.

    In this order: ``VIMDEPLOY_OPS_LIBRARY``, the one in the installed package, one in the cache, a build. Where none is
    to be had, ``say`` is told once why and how to mend it.

    Args:
        say: told in one line; writes to standard error by default.

    """
    say = say or (lambda line: print(line, file=sys.stderr))
    if (named := os.environ.get(VARIABLE)) is not None:
        return _named(Path(named)) if named else None
    try:
        found, problem, hint = _find_or_build()
    except MissingDependencyError as error:
        found, problem, hint = None, error.message.splitlines()[0], error.hint
    if found is None:
        say(f"native ops are not here, models run slower: {problem}. {hint}")
    return found


def _named(path: Path) -> Path:
    if not path.is_file():
        raise MissingDependencyError(f"{path}: there is no such library ({VARIABLE}).", hint=f"Unset {VARIABLE}.")
    return path


def why_missing() -> tuple[str, str]:
    """Return (what keeps the library from being here, how to mend it), without building it; empty where it is here."""
    if os.environ.get(VARIABLE) == "":
        return f"{VARIABLE} is empty, which turns them off", f"Unset {VARIABLE}."
    if carried_library():
        return "", ""
    sources = ops_sources()
    if sources is None:
        return "this installation carries neither the library nor its sources", "Reinstall vimdeploy."
    if built_path(sources).is_file() or find_compiler():
        return "", ""
    return "there is no C++ compiler to build them with", _COMPILER_HINT


def _find_or_build() -> tuple[Path | None, str, str]:
    if carried := carried_library():
        return carried, "", ""
    problem, hint = why_missing()
    sources = ops_sources()
    if problem or sources is None:
        return None, problem, hint
    target = built_path(sources)
    if not target.is_file():
        compile_ops(sources, target)
    return target, "", ""


def _call(command: list[str], work: Path) -> None:
    # TMPDIR keeps the compiler's intermediate files inside the folder that is removed whatever happens.
    result = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "TMPDIR": str(work)}
    )
    if result.returncode:
        lines = [line for line in result.stderr.splitlines() if "error" in line.lower()] or result.stderr.splitlines()
        raise MissingDependencyError(
            f"{command[0]} could not build the native ops:\n" + "\n".join(lines[:_ERROR_LINES]), hint=_COMPILER_HINT
        )


_COMPILER_HINT = "Install a C++17 compiler (apt-get install g++), or a wheel of vimdeploy that carries the library."
