"""Collect the facts: every slow or unsafe question is asked in its own process, all at the same time."""

from __future__ import annotations

import platform
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import Distribution, distributions
from pathlib import Path

from vimdeploy.doctor import tensorrt
from vimdeploy.doctor.machine import Machine, ask
from vimdeploy.doctor.report import Driver, Facts, Flavour, Gpu, Package
from vimdeploy.native import libraries as native
from vimdeploy.native import toolchain
from vimdeploy.version import __version__

_PACKAGES = (
    "numpy",
    "torch",
    "onnx",
    "onnxscript",
    "onnx-ir",
    "safetensors",
    "jinja2",
    "prometheus-client",
    "pyarrow",
    "starlette",
    "uvicorn",
    "mamba-ssm",
    "causal-conv1d",
    "cuda-bindings",
)
_ONNX_RUNTIMES = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino", "onnxruntime-migraphx", "onnxruntime-qnn")
_CUDAS = ("", "-cu13", "-cu12")
_FLAVOURS = {
    "tensorrt": ("TensorRT", tuple(f"tensorrt{cu}" for cu in _CUDAS)),
    "tensorrt_lean": ("TensorRT lean runtime", tuple(f"tensorrt-lean{cu}" for cu in _CUDAS)),
    "tensorrt_dispatch": ("TensorRT dispatch runtime", tuple(f"tensorrt-dispatch{cu}" for cu in _CUDAS)),
    "tensorrt_rtx": ("TensorRT for RTX", tuple(f"tensorrt-rtx{cu}" for cu in _CUDAS)),
}

_ASK_IMPORT = """
import importlib, json, os
sys.stdout.flush(); kept = os.dup(1); os.dup2(2, 1)  # what a library prints while it loads is not the answer
try:
    module = importlib.import_module(sys.argv[1])
    value = {"version": str(getattr(module, "__version__", "")), "providers": []}
    if hasattr(module, "get_available_providers"):
        value["providers"] = module.get_available_providers()
except Exception as error:
    value = {"problem": f"{type(error).__name__}: {error}"}
os.write(kept, (json.dumps(value) + "\\n").encode())
"""

_ASK_DRIVER = """
import ctypes, json
out = {"cuda": "", "version": "", "problem": "", "gpus": []}
def failed(code):
    text = ctypes.c_char_p()
    cuda.cuGetErrorString(code, ctypes.byref(text))
    return f"{(text.value or b'unknown error').decode()} (CUDA error {code})"
try:
    nvml = ctypes.CDLL("libnvidia-ml.so.1")
    text = ctypes.create_string_buffer(96)
    if nvml.nvmlInit_v2() == 0 and nvml.nvmlSystemGetDriverVersion(text, 96) == 0:
        out["version"] = text.value.decode()
except (OSError, AttributeError):
    pass  # a Jetson has none
try:
    cuda = ctypes.CDLL("libcuda.so.1")
except OSError as error:
    missing = "libcuda.so.1" in str(error) and "No such file" in str(error)
    out["problem"] = "libcuda.so.1 is not installed" if missing else str(error)
else:
    number = ctypes.c_int()
    if cuda.cuDriverGetVersion(ctypes.byref(number)) == 0 and number.value:
        out["cuda"] = f"{number.value // 1000}.{number.value % 1000 // 10}"
    code = cuda.cuInit(0)
    if code:
        out["problem"] = failed(code)
    else:
        cuda.cuDeviceGetCount(ctypes.byref(number))
        for index in range(number.value):
            name, size = ctypes.create_string_buffer(256), ctypes.c_size_t()
            major, minor, device = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
            cuda.cuDeviceGet(ctypes.byref(device), index)
            cuda.cuDeviceGetName(name, 256, device)
            cuda.cuDeviceGetAttribute(ctypes.byref(major), 75, device)
            cuda.cuDeviceGetAttribute(ctypes.byref(minor), 76, device)
            cuda.cuDeviceTotalMem_v2(ctypes.byref(size), device)
            gpu = (name.value.decode(errors="replace"), f"{major.value}.{minor.value}", size.value >> 20)
            out["gpus"].append(gpu)
print(json.dumps(out))
"""


def collect(machine: Machine) -> Facts:
    """Look at everything; takes about a second, most of it waiting for other processes."""
    found = tensorrt.find_libraries(machine)
    runtimes = [d for name in _ONNX_RUNTIMES for d in _installed(machine, name)]
    with ThreadPoolExecutor(max_workers=8) as pool:
        driver_job = pool.submit(_driver, machine)
        provider_job = pool.submit(_providers, machine) if runtimes else None
        flavour_jobs = [pool.submit(_flavour, machine, module, version) for module, version in _flavours(machine)]
        library_jobs = [pool.submit(tensorrt.examine_library, machine, *item) for item in found.items()]
        nvcc_job = pool.submit(lambda: tuple(toolchain.nvccs(machine)))
        compiler_job = pool.submit(lambda: list(toolchain.host_compilers(machine)))
        driver, gpus = driver_job.result()
        providers, broken_runtime = provider_job.result() if provider_job else ((), "")
        compilers = compiler_job.result()
        packages = [_package(machine, name) for name in _PACKAGES]
        # The first one is the package that holds the onnxruntime module's answer; without any, one line says so.
        packages += [_described(d, broken_runtime) for d in runtimes] or [Package("onnxruntime", "")]
        return Facts(
            vimdeploy=__version__,
            python=platform.python_version(),
            executable=machine.python,
            system=f"{platform.system()} {platform.machine()}",
            packages=tuple(packages),
            providers=tuple(providers),
            flavours=tuple(job.result() for job in flavour_jobs),
            libraries=tuple(job.result() for job in library_jobs),
            driver=driver,
            gpus=gpus,
            nvcc=nvcc_job.result(),
            compiler=next((c for c in compilers if not c.problem), next(iter(compilers), None)),
            headers=tuple(toolchain.headers(machine)),
            plugins=tuple(found for kind in native.KINDS for found in native.libraries(kind, machine)),
        )


def _installed(machine: Machine, name: str) -> list[Distribution]:
    """Return the distributions of this name on the import path, without importing anything."""
    return list(distributions(name=name, path=[str(site) for site in machine.sites]))[:1]


def _version(distribution: Distribution) -> str:
    return _metadata(distribution, "Version")


def _metadata(distribution: Distribution, name: str) -> str:
    # Read as text: an interrupted installation leaves a folder without METADATA, on which the parsed form raises.
    text = distribution.read_text("METADATA") or ""
    match = re.search(rf"^{name}: *(.+)$", text, flags=re.MULTILINE)
    return match[1].strip() if match else ""


def _package(machine: Machine, name: str) -> Package:
    for distribution in _installed(machine, name):
        detail = _torch_cuda(distribution) if name == "torch" else ""
        return Package(name, _version(distribution), detail, str(distribution.locate_file("")))
    return Package(name, "")


def _described(distribution: Distribution, problem: str) -> Package:
    name = _metadata(distribution, "Name") or "onnxruntime"
    return Package(name, _version(distribution), problem, str(distribution.locate_file("")))


def _torch_cuda(distribution: Distribution) -> str:
    """Read which CUDA torch was built for from the file that its build writes, without importing torch."""
    try:
        text = Path(str(distribution.locate_file("torch/version.py"))).read_text(errors="replace")
    except OSError:
        return ""
    match = re.search(r"^cuda\b[^=]*=\s*['\"]([\d.]+)['\"]", text, flags=re.MULTILINE)
    return f"CUDA {match[1]}" if match else "CPU only"


def _providers(machine: Machine) -> tuple[tuple[str, ...], str]:
    answer = ask(machine, _ASK_IMPORT, "onnxruntime")
    problem = answer.problem or answer.value.get("problem", "")
    return ((), f"does not import: {problem}") if problem else (tuple(answer.value["providers"]), "")


def _flavours(machine: Machine) -> Iterator[tuple[str, str]]:
    for module, (_, names) in _FLAVOURS.items():
        versions = [_version(d) for name in names for d in _installed(machine, name)]
        present = any((site / module / "__init__.py").is_file() for site in machine.sites)
        if versions or present:
            yield module, versions[0] if versions else ""


def _flavour(machine: Machine, module: str, version: str) -> Flavour:
    answer = ask(machine, _ASK_IMPORT, module)
    problem = answer.problem or answer.value.get("problem", "")
    version = version or ("" if problem else answer.value["version"]) or "unknown"
    return Flavour(_FLAVOURS[module][0], module, version, problem)


def _driver(machine: Machine) -> tuple[Driver, tuple[Gpu, ...]]:
    hardware = has_nvidia_hardware(machine)
    answer = ask(machine, _ASK_DRIVER)
    if answer.problem:
        return Driver("", "", f"asking libcuda.so.1 {answer.problem}", hardware), ()
    value = answer.value
    gpus = tuple(Gpu(*gpu) for gpu in value["gpus"])
    return Driver(value["version"], value["cuda"], value["problem"], hardware or bool(gpus)), gpus


def has_nvidia_hardware(machine: Machine) -> bool:
    """Say whether the PCI bus lists a display controller of NVIDIA's, whatever drivers are installed."""
    for device in machine.pci.glob("*"):
        try:
            vendor, kind = (device / "vendor").read_text().strip(), (device / "class").read_text().strip()
        except OSError:
            continue
        if vendor == "0x10de" and kind.startswith("0x03"):
            return True
    return False
