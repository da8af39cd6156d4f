"""Build the plugin library from its sources with nvcc, into a cache that knows what it was built from.

``plugins/CMakeLists.txt`` builds the same files for those who prefer CMake; nvcc alone is used here so that a user
needs neither CMake nor Ninja.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path

from vimdeploy.errors import MissingDependencyError, UsageError
from vimdeploy.native.locate import KERNELS, PLUGIN, PRELOAD, cache_folder, plugin_sources, source_files, source_hash
from vimdeploy.native.toolchain import (
    Headers,
    Tool,
    check_sources,
    find_host_compiler,
    find_nvcc,
    find_tensorrt_headers,
    parse_architectures,
)
from vimdeploy.progress import SILENT, Reporter
from vimdeploy.version import __version__

_Library = tuple[str, str, list[str]]
"""Name of a library, its export map, the sources whose objects it is linked from."""

_ERROR_LINES = 20


@dataclass(frozen=True)
class BuildPlan:
    """Everything that decides what a build yields."""

    sources: Path
    nvcc: Tool
    headers: Headers | None
    """None builds only the kernels, which need nothing of TensorRT."""
    architectures: tuple[int, ...]
    digest: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "digest", source_hash(self.sources))

    @property
    def key(self) -> str:
        """Name of the build's folder in the cache."""
        architectures = "-".join(str(number) for number in self.architectures)
        kind = f"trt{self.headers.major}" if self.headers else "kernels"
        return f"{self.digest}-{kind}-cuda{self.nvcc.release}-sm{architectures}"

    @property
    def product(self) -> str:
        """Name of the library that the build is asked for."""
        return PLUGIN if self.headers else KERNELS

    def definitions(self) -> list[str]:
        """Return the macros that ``tensorrt/version.cpp`` states in the library."""
        architectures = ",".join([*(str(n) for n in self.architectures), f"{self.architectures[-1]}+PTX"])
        values = {
            "VIMDEPLOY_VERSION": __version__,
            "VIMDEPLOY_SOURCE_HASH": self.digest,
            "VIMDEPLOY_CUDA_VERSION": self.nvcc.release,
            "VIMDEPLOY_ARCHITECTURES": architectures,
        }
        return [f'-D{name}="{value}"' for name, value in values.items()]


def plan_build(
    architectures: Sequence[str] = (), tensorrt_include: Path | None = None, *, kernels_only: bool = False
) -> BuildPlan:
    """Find compiler, headers and sources.

    Args:
        architectures: ``sm_89``, ``8.9`` or ``native``; empty for every GPU since Turing.
        tensorrt_include: folder with ``NvInferRuntime.h``; None searches TENSORRT_ROOT and the system.
        kernels_only: leave TensorRT out and build only the kernels for PyTorch.

    Raises:
        MissingDependencyError: nvcc, a host compiler or the headers are missing.
        UsageError: an argument does not fit.
    """
    if kernels_only and tensorrt_include is not None:
        raise UsageError("--tensorrt-include would not be used: --kernels-only needs nothing of TensorRT.")
    sources = plugin_sources()
    check_sources(sources)
    headers = None if kernels_only else find_tensorrt_headers(tensorrt_include)
    nvcc = find_nvcc()
    find_host_compiler()
    return BuildPlan(sources, nvcc, headers, parse_architectures(architectures, nvcc))


def build_plugin(
    architectures: Sequence[str] = (),
    tensorrt_include: Path | None = None,
    *,
    kernels_only: bool = False,
    cache: Path | None = None,
    jobs: int | None = None,
    force: bool = False,
    reporter: Reporter = SILENT,
) -> Path:
    """Build the three libraries, or return the ones built before from the same sources, headers and compiler.

    The folder appears in the cache complete or not at all: it is built under a temporary name and renamed.

    Args:
        architectures: as :func:`plan_build`.
        tensorrt_include: as :func:`plan_build`.
        kernels_only: as :func:`plan_build`.
        cache: folder of the builds; :func:`cache_folder` by default.
        jobs: compilers at work at once; one per core by default.
        force: build even if the cache has it.
        reporter: told after each step.

    Returns:
        The path of ``libvimdeploy_plugin.so``, the preload flavour and the kernels beside it; with ``kernels_only``
        the path of ``libvimdeploy_kernels.so``, alone.

    Raises:
        MissingDependencyError: a tool is missing, or the compiler failed (its last lines are in the message).
        UsageError: an argument does not fit.
    """
    plan = plan_build(architectures, tensorrt_include, kernels_only=kernels_only)
    cache = cache or cache_folder()
    target = cache / plan.key
    if (target / plan.product).is_file() and not force:
        return target / plan.product
    cache.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=".build-", dir=cache))
    try:
        _Build(plan, work, jobs or os.cpu_count() or 1, reporter).run()
        _publish(work / "out", target, plan.product)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return target / plan.product


def _publish(built: Path, target: Path, product: str) -> None:
    """Move ``built`` to ``target``; of two builders of the same thing the last one wins, readers see either whole."""
    old = Path(tempfile.mkdtemp(prefix=".old-", dir=target.parent))
    try:
        if target.exists():
            target.rename(old / "replaced")
        built.rename(target)
    except OSError:
        # Another builder of the same key was faster: its files are the same.
        if not (target / product).is_file():
            raise
    finally:
        shutil.rmtree(old, ignore_errors=True)


class _Build:
    """One run of the compiler over all sources, then of the linker over the three libraries."""

    def __init__(self, plan: BuildPlan, work: Path, jobs: int, reporter: Reporter) -> None:
        self._plan = plan
        self._work = work
        self._jobs = jobs
        self._reporter = reporter
        self._done = 0
        # The slow ones first, so that no core waits for the last of them.
        files = [name for name in source_files(plan.sources) if name.endswith((".cu", ".cpp"))]
        if plan.headers is None:
            files = [name for name in files if not name.startswith("tensorrt/")]
        self._files = sorted(files, key=lambda name: (not name.endswith(".cu"), -(plan.sources / name).stat().st_size))

    def run(self) -> None:
        (self._work / "out").mkdir()
        libraries = self._libraries()
        with ThreadPoolExecutor(self._jobs) as pool:
            tasks = [pool.submit(self._compile, name) for name in self._files]
            try:
                for task in as_completed(tasks):
                    task.result()
                    self._step(libraries)
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        for library, map_file, names in libraries:
            self._link(library, map_file, names)
            self._step(libraries)

    def _libraries(self) -> list[_Library]:
        kernels = [n for n in self._files if n.startswith("kernels/")]
        preload = [n for n in self._files if n.startswith("tensorrt/")]
        plugin = [n for n in preload if n != "tensorrt/preload.cpp"]
        api = [n for n in self._files if n.startswith("c_api/")]
        for_pytorch = (KERNELS, "c_api/kernels.map", kernels + api)
        if self._plan.headers is None:
            return [for_pytorch]
        return [
            (PLUGIN, "tensorrt/plugin.map", kernels + plugin),
            (PRELOAD, "tensorrt/preload.map", kernels + preload),
            for_pytorch,
        ]

    def _object(self, name: str) -> Path:
        return self._work / (name.replace("/", "_") + ".o")

    def _compile(self, name: str) -> None:
        plan = self._plan
        command = [str(plan.nvcc.path), "-c", "-std=c++17", "-O3", "-I", str(plan.sources)]
        if plan.headers is not None:
            command += ["-isystem", str(plan.headers.path)]
        command += ["-Xcompiler=-fPIC,-fvisibility=hidden,-fvisibility-inlines-hidden"]
        if name.endswith(".cu"):
            for number in plan.architectures:
                command += ["-gencode", f"arch=compute_{number},code=sm_{number}"]
            newest = plan.architectures[-1]
            command += ["-gencode", f"arch=compute_{newest},code=compute_{newest}"]
        if name == "tensorrt/version.cpp":
            command += plan.definitions()
        self._call([*command, str(plan.sources / name), "-o", str(self._object(name))], name)

    def _link(self, library: str, map_file: str, names: list[str]) -> None:
        plan = self._plan
        flags = [f"--version-script={plan.sources / map_file}", "--no-undefined", "--as-needed", "--exclude-libs=ALL"]
        if library == PRELOAD:
            flags.append("-z,nodelete")
        command = [str(plan.nvcc.path), "-shared", "-cudart=static", "-o", str(self._work / "out" / library)]
        command += [str(self._object(name)) for name in names]
        # nvcc splits -Xlinker at commas, which keeps "-z,nodelete" one option of two words.
        self._call([*command, *(f"-Xlinker={flag}" for flag in flags)], library)

    def _call(self, command: list[str], name: str) -> None:
        # TMPDIR keeps nvcc's intermediate files inside the folder that is removed whatever happens.
        environment = {**os.environ, "TMPDIR": str(self._work)}
        try:
            result = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        except OSError as error:
            raise MissingDependencyError(f"{command[0]} does not run: {error}") from error
        if result.returncode == 0:
            return
        lines = (result.stderr + result.stdout).strip().splitlines()
        shown = [line for line in lines if "error" in line.lower()] or lines
        raise MissingDependencyError(
            f"nvcc {self._plan.nvcc.release} could not build {name} of the plugin:\n" + "\n".join(shown[:_ERROR_LINES]),
            hint=f"Compiler: {self._plan.nvcc.path}. Headers: {self._plan.headers or 'none'}.",
        )

    def _step(self, libraries: list[_Library]) -> None:
        self._done += 1
        self._reporter.progress(self._done, len(self._files) + len(libraries))
