"""What the facts mean: which commands can run here, what is wrong, and the command that mends it."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from vimdeploy import needs
from vimdeploy.doctor.report import Command, Facts, Finding, Report, RuntimeLibrary
from vimdeploy.doctor.tensorrt import RUNTIMES
from vimdeploy.native import libraries as native
from vimdeploy.native.libraries import PLUGIN_KIND
from vimdeploy.needs import COMMANDS, PART_OF, REQUIREMENTS


@dataclass(frozen=True)
class _Need:
    """One thing that commands need: empty ``lack`` where it is there, else a remedy or the packages to install."""

    lack: str = ""
    remedy: str = ""
    packages: tuple[str, ...] = ()


def judge(facts: Facts, available: Collection[str] | None = None) -> Report:
    """Turn facts into a report.

    Args:
        facts: what was found.
        available: the commands that the command line has; None stands for all that this module knows.

    """
    found = _needs(facts)
    known = {n: w for n, w in COMMANDS.items() if available is None or PART_OF.get(n, n).split()[0] in available}
    commands = []
    for name, wanted in known.items():
        lacks = tuple(found[key].lack for key in wanted if found[key].lack)
        commands.append(Command(name, not lacks, lacks))
    problems = (*_library_findings(facts), *_package_findings(facts), *_cuda_findings(facts), *_build_findings(facts))
    return Report(facts, (*problems, *_missing(facts, found, known)), tuple(commands))


def _missing(facts: Facts, found: dict[str, _Need], commands: dict[str, tuple[str, ...]]) -> Iterator[Finding]:
    """Yield what is missing, with one pip command for all packages that the same commands wait for."""
    packages: dict[str, list[_Need]] = {}
    for key, need in found.items():
        needed_by = ", ".join(name for name, wanted in commands.items() if key in wanted)
        if not needed_by:
            continue
        if need.packages:
            packages.setdefault(needed_by, []).append(need)
        elif need.lack:
            yield Finding("note", f"{need.lack} (needed by {needed_by})", need.remedy)
    for needed_by, group in packages.items():
        lacks = ", ".join(need.lack for need in group)
        remedy = pip_install(facts, *(package for need in group for package in need.packages))
        yield Finding("note", f"{lacks} (needed by {needed_by})", remedy)


def pip_install(facts: Facts, *specifiers: str, options: str = "") -> str:
    """Return the command that installs into the Python that was examined."""
    return needs.pip_install(*specifiers, python=facts.executable, options=options)


_PLAIN_PACKAGES = (
    *("torch", "onnx", "onnxscript", "onnx-ir", "safetensors"),
    *("jinja2", "prometheus-client", "pyarrow", "starlette", "uvicorn"),
)


def _needs(facts: Facts) -> dict[str, _Need]:
    found = {}
    for name in _PLAIN_PACKAGES:
        absent = not facts.package(name).version
        found[name] = _Need(f"{name} is not installed", packages=(REQUIREMENTS[name],)) if absent else _Need()
    found["onnxruntime"] = _onnxruntime_need(facts)
    cuda_bindings = _Need("cuda-bindings is not installed", packages=(_for_driver(facts, "cuda-bindings"),))
    found["cuda-bindings"] = _Need() if facts.package("cuda-bindings").version else cuda_bindings
    found["driver"] = _driver_need(facts)
    found["tensorrt"] = _flavour_need(facts, "tensorrt", _for_driver(facts, "tensorrt"))
    found["tensorrt-rtx"] = _flavour_need(facts, "tensorrt_rtx", REQUIREMENTS["tensorrt-rtx"])
    found.update(_plugin_needs(facts))
    return found


def _onnxruntime_need(facts: Facts) -> _Need:
    runtimes = [p for p in facts.packages if p.name.startswith("onnxruntime") and p.version]
    if not runtimes:
        return _Need("onnxruntime is not installed", packages=(REQUIREMENTS["onnxruntime"],))
    if not facts.providers:
        names = [p.name for p in runtimes]
        remedy = pip_install(facts, *names, options="--force-reinstall --no-deps")
        return _Need(f"{runtimes[0].name} {runtimes[0].version} {runtimes[0].detail}", remedy)
    return _Need()


def _driver_need(facts: Facts) -> _Need:
    if facts.gpus:
        return _Need()
    if not facts.driver.hardware:
        return _Need(
            "no NVIDIA GPU is visible",
            "run on a machine with one, or start the container with `docker run --gpus all`; without a GPU, "
            "`vimdeploy build-engine --runtime rtx` builds ahead of time",
        )
    problem = facts.driver.problem or "it lists no device"
    return _Need(
        f"the NVIDIA driver does not answer: {problem}",
        "install the driver (Ubuntu: `sudo ubuntu-drivers install`) and restart; "
        "in a container: `docker run --gpus all`",
    )


def _for_driver(facts: Facts, package: str) -> str:
    """Return the form of a package that the driver's CUDA can serve; the default forms are for CUDA 13."""
    if not facts.driver.cuda.startswith("12."):
        return REQUIREMENTS[package]
    if package == "tensorrt":
        return REQUIREMENTS[package].replace("tensorrt", "tensorrt-cu12")
    return f"{REQUIREMENTS[package]},<13"


def _flavour_need(facts: Facts, module: str, package: str) -> _Need:
    flavour = facts.flavour(module)
    if flavour is None:
        return _Need(f"{module} is not installed", packages=(package,))
    if flavour.problem:
        remedy = pip_install(facts, package, options="--force-reinstall")
        return _Need(f"{module} {flavour.version} does not import: {flavour.problem}", remedy)
    return _Need()


def _plugin_needs(facts: Facts) -> dict[str, _Need]:
    nvcc = any(not tool.problem for tool in facts.nvcc)
    compiler = facts.compiler is not None and not facts.compiler.problem
    headers = any(not h.problem for h in facts.headers)
    plugin = any(not p.problem and p.kind is PLUGIN_KIND for p in facts.plugins)
    return {
        "nvcc": _Need() if nvcc else _Need("nvcc was not found", _nvcc_remedy(facts)),
        "compiler": _Need() if compiler else _Need("no C++ compiler was found", "sudo apt-get install g++"),
        "headers": _Need() if headers else _Need("TensorRT's headers were not found", _headers_remedy(facts)),
        "plugin": _Need() if plugin else _Need("the plugin library is not built", "vimdeploy build-plugin"),
    }


def _nvcc_remedy(facts: Facts) -> str:
    # Code of a CUDA 13 toolkit does not run on a driver of CUDA 12, and the wheels for CUDA 12 carry no nvcc.
    if facts.driver.cuda.startswith("12."):
        package = f"cuda-toolkit-{facts.driver.cuda.replace('.', '-')}"
        return (
            f"sudo apt-get install {package} (from NVIDIA's repository), or: conda install -c nvidia 'cuda-nvcc=12.*'"
        )
    return pip_install(facts, *(f"nvidia-cuda-{name}" for name in ("nvcc", "runtime", "crt", "cccl")))


def _headers_remedy(facts: Facts) -> str:
    version = next((f.version for f in facts.flavours if f.module == "tensorrt"), "") or next(
        (lib.version for lib in facts.libraries if lib.family == "nvinfer" and not lib.problem), ""
    )
    branch = ".".join(version.split(".")[:2])
    option = f"--branch release/{branch} " if branch.count(".") == 1 else ""
    return (
        f"git clone --depth 1 {option}https://github.com/NVIDIA/TensorRT && "
        "vimdeploy build-plugin --tensorrt-include TensorRT/include"
    )


def _library_findings(facts: Facts) -> Iterator[Finding]:
    runtimes = [lib for lib in facts.libraries if lib.family in RUNTIMES and lib.family != "tensorrt_rtx"]
    yield from _several(runtimes)
    for library in facts.libraries:
        if library.problem:
            again = pip_install(facts, library.package, options="--force-reinstall --no-deps")
            remedy = again if library.package else f"remove it, or install it again (found by: {_where(library)})"
            yield Finding("warning", f"{library.path}: {library.problem}", remedy)


def _several(runtimes: list[RuntimeLibrary]) -> Iterator[Finding]:
    """Warn where processes on this machine may meet different TensorRTs."""
    known = [lib for lib in runtimes if lib.version and not lib.problem]
    versions = sorted({lib.version for lib in known}, key=lambda v: [int(n) for n in v.split(".") if n.isdigit()])
    if len(versions) < 2:
        return
    listed = "; ".join(f"{lib.version} at {lib.path} ({_where(lib)})" for lib in known)
    majors = len({lib.major for lib in known}) > 1
    effect = "a plan or plugin made with one does not load in another" if majors else "plans are tied to their version"
    kind = "of different majors " if majors else ""
    remedy = (
        "keep one: uninstall the others, or take their folders out of LD_LIBRARY_PATH and the loader's configuration"
    )
    yield Finding("warning", f"{len(versions)} TensorRT versions {kind}are visible, and {effect}: {listed}", remedy)


def _where(library: RuntimeLibrary) -> str:
    return ", ".join(library.sources)


def _package_findings(facts: Facts) -> Iterator[Finding]:
    runtimes = [p for p in facts.packages if p.name.startswith("onnxruntime") and p.version]
    if len(runtimes) > 1:
        names = " ".join(p.name for p in runtimes)
        python = pip_install(facts).removesuffix(" install")
        yield Finding(
            "warning",
            f"{len(runtimes)} ONNX Runtime packages share one folder and overwrite each other: {names}",
            f"{python} uninstall -y {names} && {pip_install(facts, runtimes[-1].name)}",
        )
    for flavour in facts.flavours:
        if flavour.problem:
            yield Finding(
                "warning",
                f"{flavour.module} {flavour.version} does not import: {flavour.problem}",
                pip_install(facts, flavour.module.replace("_", "-"), options="--force-reinstall"),
            )


def _cuda_findings(facts: Facts) -> Iterator[Finding]:
    torch, driver = facts.package("torch"), facts.driver
    if not facts.gpus:
        return
    if torch.detail == "CPU only":
        yield Finding(
            "note", f"torch {torch.version} cannot use the GPU", "install a CUDA build: https://pytorch.org/get-started"
        )
    elif torch.detail and driver.cuda and _number(torch.detail.removeprefix("CUDA ")) > _number(driver.cuda):
        yield Finding(
            "warning" if torch.detail.removeprefix("CUDA ").split(".")[0] != driver.cuda.split(".")[0] else "note",
            f"torch {torch.version} is built for {torch.detail}, the driver serves CUDA {driver.cuda}",
            "update the NVIDIA driver, or install a torch for the driver's CUDA: https://pytorch.org/get-started",
        )
    if facts.providers and "CUDAExecutionProvider" not in facts.providers:
        yield Finding(
            "note",
            "ONNX Runtime has no CUDAExecutionProvider and runs on the CPU",
            pip_install(facts, "onnxruntime-gpu") + " (after uninstalling onnxruntime)",
        )


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())


def _build_findings(facts: Facts) -> Iterator[Finding]:
    for tool in facts.nvcc:
        if tool.problem:
            yield Finding("warning", f"{tool.path}: {tool.problem}", f"reinstall it, or take it out of {tool.source}")
    for headers in facts.headers:
        if headers.problem:
            yield Finding(
                "warning", f"{headers.path}: {headers.problem}", "install the headers of one TensorRT completely"
            )
    for plugin in facts.plugins:
        if plugin.problem:
            yield Finding("warning", f"{plugin.kind.title} {plugin.path}: {plugin.problem}", _mend(facts, plugin))
    tensorrt = facts.flavour("tensorrt")
    first = next((p for p in facts.plugins if p.kind is PLUGIN_KIND and not p.problem), None)
    if tensorrt and first and first.info and _majors_differ(tensorrt.version, first.info.tensorrt):
        yield Finding(
            "warning",
            f"plugin library {first.path} is built for TensorRT {first.info.tensorrt}, the installed runtime is "
            f"{tensorrt.version}",
            "vimdeploy build-plugin",
        )
    found = next((h for h in facts.headers if not h.problem), None)
    if tensorrt and found and _majors_differ(tensorrt.version, found.version):
        yield Finding(
            "warning",
            f"the headers at {found.path} are TensorRT {found.version}, the installed runtime is {tensorrt.version}: "
            "a plugin should be built with the headers of its runtime's major",
            _headers_remedy(facts),
        )


def _mend(facts: Facts, library: native.Library) -> str:
    if library.source == native.PACKAGE:
        return pip_install(facts, "vimdeploy", options="--force-reinstall --no-deps")
    if library.source != native.CACHE:
        return f"correct {library.source}, or unset it"
    build = next((p for p in library.path.parents if p.parent.name == library.kind.folder), library.path)
    again = "" if library.kind is native.OPS_KIND else " && vimdeploy build-plugin"  # those are built when first used
    return f"rm -r {shlex.quote(str(build))}{again}"


def _majors_differ(first: str, second: str) -> bool:
    """Whether two versions are known to be of different majors."""
    a, b = (version.partition(".")[0] for version in (first, second))
    return a.isdigit() and b.isdigit() and a != b
