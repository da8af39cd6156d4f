"""`vimdeploy doctor` on planted machines: what it must see, say and survive."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from vimdeploy.doctor import Machine, Report, examine, render
from vimdeploy.doctor.machine import ask
from vimdeploy.doctor.report import SCHEMA, Command, Finding
from vimdeploy.doctor.tensorrt import decode_version
from vimdeploy.native.elf import elf_problem
from vimdeploy.native.libraries import KINDS
from vimdeploy.native.toolchain import HEADER, header_version
from vimdeploy.needs import COMMANDS, REQUIREMENTS

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
Compile = Callable[[Path, str], Path]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """A machine with nothing on it but Python."""
    (tmp_path / "site").mkdir()
    return Machine(
        sites=(tmp_path / "site",),
        env={"HOME": str(tmp_path / "home"), "PATH": ""},
        library_folders=(),
        include_folders=(),
        cuda_folders=(),
        pci=tmp_path / "pci",
        ldconfig=(sys.executable, "-c", ""),
    )


@pytest.fixture(scope="session")
def compile_library(tmp_path_factory: pytest.TempPathFactory) -> Compile:
    """Compile C text into a shared library; equal texts are compiled once."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler on this machine to plant libraries with")
    built: dict[str, Path] = {}

    def build(path: Path, text: str) -> Path:
        if text not in built:
            folder = tmp_path_factory.mktemp("built")
            (folder / "library.c").write_text(text)
            subprocess.run([compiler, "-shared", "-fPIC", "-o", "library.so", "library.c"], cwd=folder, check=True)
            built[text] = folder / "library.so"
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(built[text], path)
        return path

    return build


def tensorrt(version: int) -> str:
    return f"int getInferLibVersion(void) {{ return {version}; }}"


def distribution(machine: Machine, name: str, version: str, files: tuple[str, ...] = ()) -> None:
    folder = machine.sites[0] / f"{name.replace('-', '_')}-{version}.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (folder / "RECORD").write_text("".join(f"{file},,\n" for file in files))


def module(machine: Machine, name: str, text: str) -> None:
    folder = machine.sites[0] / name
    folder.mkdir(exist_ok=True)
    (folder / "__init__.py").write_text(textwrap.dedent(text))


def executable(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!{sys.executable}\n{textwrap.dedent(text)}")
    path.chmod(0o755)
    return path


def command(report: Report, name: str) -> Command:
    return next(c for c in report.commands if c.name == name)


def finding(report: Report, words: str) -> Finding:
    """Return the one finding that says these words."""
    matching = [f for f in report.findings if words in f.message]
    assert len(matching) == 1, f"{words!r} in {len(matching)} of {[f.message for f in report.findings]}"
    return matching[0]


# ---- a bare machine


def test_a_bare_machine_can_only_list_and_says_what_to_install(machine: Machine) -> None:
    report = examine(machine)
    assert [c.name for c in report.commands if c.ready] == ["doctor", "recipes", "serve-repo"]
    assert command(report, "verify").missing == (
        "torch is not installed",
        "onnx is not installed",
        "safetensors is not installed",
        "onnxruntime is not installed",
    )
    remedies = " ".join(f.remedy for f in report.findings)
    for specifier in REQUIREMENTS.values():
        assert specifier in remedies


def test_every_lack_has_a_remedy(machine: Machine) -> None:
    report = examine(machine)
    lacks = {lack for c in report.commands for lack in c.missing}
    for lack in lacks:
        assert any(lack in f.message and f.remedy for f in report.findings), lack


def test_requirements_are_those_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = {spec for extra in project["optional-dependencies"].values() for spec in extra}
    assert set(REQUIREMENTS.values()) <= extras
    assert {spec for spec in extras if spec.split(">")[0] in REQUIREMENTS} == set(REQUIREMENTS.values())


def test_pip_commands_name_the_python_that_runs_vimdeploy(machine: Machine, tmp_path: Path) -> None:
    python = tmp_path / "a folder" / "python3"
    python.parent.mkdir()
    python.symlink_to(sys.executable)
    report = examine(replace(machine, python=str(python)))
    assert finding(report, "torch is not installed").remedy.startswith(f"'{python}' -m pip install ")


# ---- TensorRT libraries


def test_two_majors_on_one_machine_are_both_listed_with_a_warning(
    machine: Machine, tmp_path: Path, compile_library: Compile
) -> None:
    older = compile_library(tmp_path / "opt" / "libnvinfer.so.10.13.1", tensorrt(101301))
    newer = compile_library(machine.sites[0] / "tensorrt_libs" / "libnvinfer.so.11", tensorrt(110400))
    env = {**machine.env, "LD_LIBRARY_PATH": str(older.parent)}
    report = examine(replace(machine, env=env))
    found = {lib.path: (lib.version, lib.major, lib.sources) for lib in report.facts.libraries}
    assert found == {
        str(older): ("10.13.1", 10, ("LD_LIBRARY_PATH",)),
        str(newer): ("11.4.0", 11, ("Python package tensorrt_libs",)),
    }
    warning = finding(report, "2 TensorRT versions of different majors")
    assert warning.severity == "warning"
    assert str(older) in warning.message
    assert str(newer) in warning.message
    assert "LD_LIBRARY_PATH" in warning.remedy


def test_two_versions_of_one_major_are_a_warning_too(
    machine: Machine, tmp_path: Path, compile_library: Compile
) -> None:
    folders = (tmp_path / "a", tmp_path / "b")
    compile_library(folders[0] / "libnvinfer.so.10.3.0", tensorrt(100300))
    compile_library(folders[1] / "libnvinfer_lean.so.10.13.1", tensorrt(101301))
    report = examine(replace(machine, library_folders=folders))
    assert "10.3.0" in finding(report, "2 TensorRT versions are visible").message


def test_one_library_behind_links_is_listed_once(machine: Machine, tmp_path: Path, compile_library: Compile) -> None:
    real = compile_library(tmp_path / "lib" / "libnvinfer.so.10.3.0", tensorrt(100300))
    (real.parent / "libnvinfer.so.10").symlink_to(real.name)
    (real.parent / "libnvinfer.so").symlink_to("libnvinfer.so.10")
    (tmp_path / "lib64").symlink_to("lib")
    env = {**machine.env, "LD_LIBRARY_PATH": f"{tmp_path / 'lib64'}:{tmp_path / 'nowhere'}"}
    cache = f"\\tlibnvinfer.so.10 (libc6,x86-64) => {real.parent}/libnvinfer.so.10"
    ldconfig = (sys.executable, "-c", f"print('2 libs found in cache\\n{cache}')")
    report = examine(replace(machine, env=env, library_folders=(tmp_path / "lib",), ldconfig=ldconfig))
    (library,) = report.facts.libraries
    assert library.path == str(real)
    assert library.sources == ("LD_LIBRARY_PATH", "system folder", "ldconfig")
    assert not [f for f in report.findings if f.severity == "warning"]


def test_the_rtx_flavour_beside_tensorrt_is_no_conflict(machine: Machine, compile_library: Compile) -> None:
    compile_library(machine.sites[0] / "tensorrt_libs" / "libnvinfer.so.10", tensorrt(101301))
    compile_library(machine.sites[0] / "tensorrt_rtx_libs" / "libtensorrt_rtx.so.1", tensorrt(10700))
    report = examine(machine)
    assert sorted(lib.version for lib in report.facts.libraries) == ["1.7.0", "10.13.1"]
    assert not [f for f in report.findings if f.severity == "warning"]


def test_tensorrt_root_is_searched(machine: Machine, tmp_path: Path, compile_library: Compile) -> None:
    compile_library(tmp_path / "TensorRT" / "lib" / "libnvinfer.so.10.9.0", tensorrt(100900))
    report = examine(replace(machine, env={**machine.env, "TENSORRT_ROOT": str(tmp_path / "TensorRT")}))
    assert [lib.sources for lib in report.facts.libraries] == [("TENSORRT_ROOT",)]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "an empty file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer"),
        (b"<html>404</html>", "not a shared library"),
        (b"\x7fELF\x02\x01", "not a shared library"),
    ],
)
def test_a_broken_library_is_named_with_what_is_wrong(machine: Machine, content: bytes, words: str) -> None:
    path = machine.sites[0] / "tensorrt_libs" / "libnvinfer.so.10"
    path.parent.mkdir()
    path.write_bytes(content)
    report = examine(machine)
    warning = finding(report, str(path))
    assert words in warning.message
    assert warning.severity == "warning"
    assert warning.remedy


def test_truncated_and_foreign_libraries_are_seen_in_the_header(tmp_path: Path, compile_library: Compile) -> None:
    whole = compile_library(tmp_path / "libnvinfer.so.10", tensorrt(101301))
    assert elf_problem(whole) == ""
    other = "aarch64" if os.uname().machine == "x86_64" else "x86_64"
    assert "another processor" in elf_problem(whole, machine=other)
    for size in (whole.stat().st_size - 1, 4096, 64):
        short = tmp_path / "short.so"
        short.write_bytes(whole.read_bytes()[:size])
        assert "truncated" in elf_problem(short), size


def test_a_link_that_leads_nowhere_is_listed(machine: Machine, tmp_path: Path) -> None:
    link = tmp_path / "lib" / "libnvinfer.so.10"
    link.parent.mkdir()
    link.symlink_to("libnvinfer.so.10.13.1")
    report = examine(replace(machine, library_folders=(link.parent,)))
    assert "leads nowhere" in finding(report, str(link)).message


def test_a_broken_library_of_a_wheel_is_mended_by_reinstalling_its_package(machine: Machine) -> None:
    path = machine.sites[0] / "tensorrt_libs" / "libnvinfer.so.10"
    path.parent.mkdir()
    path.write_bytes(b"")
    distribution(machine, "tensorrt-cu12-libs", "10.13.1", ("tensorrt_libs/libnvinfer.so.10",))
    remedy = finding(examine(machine), str(path)).remedy
    assert remedy.endswith("pip install --force-reinstall --no-deps tensorrt-cu12-libs")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("#include <stdlib.h>\n__attribute__((constructor)) void start(void) { abort(); }", "crashed with SIGABRT"),
        ("int unrelated(void) { return 0; }", "not a TensorRT library"),
        ("int missing_function(void); int getInferLibVersion(void) { return missing_function(); }", "missing_function"),
    ],
)
def test_a_library_that_fails_to_load_does_not_take_the_doctor_along(
    machine: Machine, compile_library: Compile, text: str, words: str
) -> None:
    path = compile_library(machine.sites[0] / "tensorrt_libs" / "libnvinfer.so.10", text)
    report = examine(replace(machine, env={**machine.env, "LD_BIND_NOW": "1"}))
    assert words in finding(report, str(path)).message


@pytest.mark.parametrize(("number", "version"), [(8601, "8.6.1"), (101301, "10.13.1"), (110400, "11.4.0")])
def test_library_versions_are_decoded(number: int, version: str) -> None:
    assert decode_version(number) == version


def test_a_probe_that_hangs_is_given_up(machine: Machine) -> None:
    answer = ask(machine, "import time; time.sleep(60)", seconds=0.5)
    assert answer.problem == "gave no answer within 0.5 s"


# ---- Python packages


def test_versions_are_read_without_importing(machine: Machine, tmp_path: Path) -> None:
    marker = tmp_path / "imported"
    for name in ("torch", "onnx", "onnxscript"):
        distribution(machine, name, "2.13.0+cu130" if name == "torch" else "1.0")
        module(machine, name, f"open({str(marker)!r}, 'w')")
    (machine.sites[0] / "torch" / "version.py").write_text(
        "from typing import Optional\ncuda: Optional[str] = '13.0'\n"
    )
    report = examine(machine)
    assert report.facts.package("torch").version == "2.13.0+cu130"
    assert report.facts.package("torch").detail == "CUDA 13.0"
    assert not marker.exists()


def test_a_half_removed_package_counts_as_missing(machine: Machine) -> None:
    (machine.sites[0] / "torch-2.13.0.dist-info").mkdir()
    assert "torch is not installed" in command(examine(machine), "export").missing


def test_execution_providers_are_asked_for_even_if_the_package_chatters(machine: Machine) -> None:
    distribution(machine, "onnxruntime-gpu", "1.22.0")
    module(
        machine,
        "onnxruntime",
        """
        import os
        print("hello"); os.write(1, b"from C")
        def get_available_providers():
            return ["CUDAExecutionProvider", "CPUExecutionProvider"]
        """,
    )
    report = examine(machine)
    assert report.facts.providers == ("CUDAExecutionProvider", "CPUExecutionProvider")
    assert command(report, "predict").ready


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("import os; os.abort()", "crashed with SIGABRT"),
        ("raise ImportError('libfoo.so.1')", "ImportError: libfoo.so.1"),
    ],
)
def test_an_onnxruntime_that_does_not_import_is_missing_with_its_reason(
    machine: Machine, text: str, words: str
) -> None:
    distribution(machine, "onnxruntime", "1.22.0")
    module(machine, "onnxruntime", text)
    report = examine(machine)
    assert any(words in lack for lack in command(report, "predict").missing)
    assert "--force-reinstall --no-deps onnxruntime" in finding(report, words).remedy


def test_two_onnxruntime_packages_are_a_warning(machine: Machine) -> None:
    distribution(machine, "onnxruntime", "1.22.0")
    distribution(machine, "onnxruntime-gpu", "1.22.0")
    module(machine, "onnxruntime", "def get_available_providers(): return ['CPUExecutionProvider']")
    remedy = finding(examine(machine), "overwrite each other").remedy
    assert "pip uninstall -y onnxruntime onnxruntime-gpu && " in remedy


def test_a_tensorrt_that_does_not_import_is_not_counted_as_there(machine: Machine) -> None:
    distribution(machine, "tensorrt-cu12", "10.13.1")
    module(machine, "tensorrt", "raise ImportError('libnvinfer.so.10: cannot open shared object file')")
    report = examine(machine)
    assert any("libnvinfer.so.10: cannot open" in lack for lack in command(report, "build-engine").missing)
    flavour = report.facts.flavour("tensorrt")
    assert flavour is not None
    assert (flavour.version, flavour.usable) == ("10.13.1", False)


def test_rtx_builds_need_no_gpu(machine: Machine) -> None:
    for name in ("tensorrt-rtx", "onnx", "onnx-ir"):
        distribution(machine, name, "1.7.0")
    module(machine, "tensorrt_rtx", "__version__ = '1.7.0'")
    report = examine(machine)
    assert command(report, "build-engine --runtime rtx").ready
    assert not command(report, "build-engine").ready


# ---- driver and GPU

LIBCUDA = """
#include <string.h>
#include <stddef.h>
int cuInit(unsigned flags) {{ return {init}; }}
int cuDriverGetVersion(int* v) {{ *v = {version}; return 0; }}
int cuDeviceGetCount(int* n) {{ *n = 1; return 0; }}
int cuDeviceGet(int* d, int i) {{ *d = i; return 0; }}
int cuDeviceGetName(char* s, int n, int d) {{ strncpy(s, "Planted GPU", n); return 0; }}
int cuDeviceGetAttribute(int* v, int a, int d) {{ *v = a == 75 ? 8 : 9; return 0; }}
int cuDeviceTotalMem_v2(size_t* s, int d) {{ *s = 24ull << 30; return 0; }}
int cuGetErrorString(int e, char const** s) {{ *s = "no CUDA-capable device is detected"; return 0; }}
"""


def with_driver(machine: Machine, folder: Path, compile_library: Compile, init: str, version: int) -> Machine:
    compile_library(folder / "libcuda.so.1", LIBCUDA.format(init=init, version=version))
    return replace(machine, env={**machine.env, "LD_LIBRARY_PATH": str(folder)})


def test_a_gpu_is_described_by_its_driver(machine: Machine, tmp_path: Path, compile_library: Compile) -> None:
    report = examine(with_driver(machine, tmp_path / "driver", compile_library, "0", 12080))
    (gpu,) = report.facts.gpus
    assert (gpu.name, gpu.compute_capability, gpu.memory_mib) == ("Planted GPU", "8.9", 24576)
    assert report.facts.driver.cuda == "12.8"
    # A driver of CUDA 12 cannot run the packages for CUDA 13, which are the default.
    remedy = finding(report, "tensorrt is not installed").remedy
    assert "'tensorrt-cu12>=10.3'" in remedy
    assert "'cuda-bindings>=12.6.1,<13'" in remedy
    assert "cuda-toolkit-12-8 " in finding(report, "nvcc was not found").remedy


def test_a_newer_driver_gets_the_default_packages(machine: Machine, tmp_path: Path, compile_library: Compile) -> None:
    report = examine(with_driver(machine, tmp_path / "driver", compile_library, "0", 13000))
    assert "'tensorrt>=10.3'" in finding(report, "tensorrt is not installed").remedy


def test_a_cpu_torch_beside_a_gpu_is_named(machine: Machine, tmp_path: Path, compile_library: Compile) -> None:
    distribution(machine, "torch", "2.13.0+cpu")
    module(machine, "torch", "")
    (machine.sites[0] / "torch" / "version.py").write_text("cuda = None\n")
    report = examine(with_driver(machine, tmp_path / "driver", compile_library, "0", 13000))
    assert "pytorch.org" in finding(report, "torch 2.13.0+cpu cannot use the GPU").remedy


def test_a_torch_newer_than_the_driver_is_a_warning(machine: Machine, tmp_path: Path, compile_library: Compile) -> None:
    distribution(machine, "torch", "2.13.0")
    module(machine, "torch", "")
    (machine.sites[0] / "torch" / "version.py").write_text("cuda: Optional[str] = '13.0'\n")
    report = examine(with_driver(machine, tmp_path / "driver", compile_library, "0", 12080))
    assert finding(report, "built for CUDA 13.0, the driver serves CUDA 12.8").severity == "warning"


def pci_device(machine: Machine, vendor: str, kind: str) -> None:
    device = machine.pci / "0000:01:00.0"
    device.mkdir(parents=True)
    (device / "vendor").write_text(vendor + "\n")
    (device / "class").write_text(kind + "\n")


def test_a_gpu_without_a_driver_is_told_apart_from_no_gpu(machine: Machine) -> None:
    assert "no NVIDIA GPU is visible" in command(examine(machine), "build-engine").missing
    pci_device(machine, "0x10de", "0x030200")
    report = examine(machine)
    assert "libcuda.so.1 is not installed" in command(report, "build-engine").missing[0]
    assert "install the driver" in finding(report, "driver does not answer").remedy


def test_another_makers_gpu_does_not_count(machine: Machine) -> None:
    pci_device(machine, "0x1002", "0x030000")
    assert not examine(machine).facts.driver.hardware


def test_a_failing_driver_is_quoted(machine: Machine, tmp_path: Path, compile_library: Compile) -> None:
    pci_device(machine, "0x10de", "0x030000")
    report = examine(with_driver(machine, tmp_path / "driver", compile_library, "100", 13000))
    assert "no CUDA-capable device is detected (CUDA error 100)" in finding(report, "driver does not answer").message


def test_a_crashing_driver_is_survived(machine: Machine, tmp_path: Path, compile_library: Compile) -> None:
    report = examine(with_driver(machine, tmp_path / "driver", compile_library, "*(volatile int*)0", 13000))
    assert "crashed with SIGSEGV" in report.facts.driver.problem


# ---- building the plugin library

NVCC = """
print("nvcc: NVIDIA (R) Cuda compiler driver")
print("Cuda compilation tools, release 13.0, V13.0.88")
"""


@pytest.mark.parametrize("place", ["PATH", "CUDA_HOME", "wheel"])
def test_nvcc_is_found_where_it_is_installed(machine: Machine, tmp_path: Path, place: str) -> None:
    folder = machine.sites[0] / "nvidia" / "cu13" / "bin" if place == "wheel" else tmp_path / "cuda" / "bin"
    executable(folder / "nvcc", NVCC)
    env = {"PATH": {"PATH": str(folder)}, "CUDA_HOME": {"CUDA_HOME": str(folder.parent)}, "wheel": {}}[place]
    (tool,) = examine(replace(machine, env={**machine.env, **env})).facts.nvcc
    assert (tool.version, tool.path, tool.problem) == ("13.0.88", folder / "nvcc", "")


def test_a_missing_nvcc_is_named_with_the_packages_that_bring_it(machine: Machine) -> None:
    report = examine(machine)
    assert "nvcc was not found" in command(report, "build-plugin").missing
    assert "pip install nvidia-cuda-nvcc" in finding(report, "nvcc was not found").remedy


def test_an_nvcc_that_fails_is_no_nvcc(machine: Machine, tmp_path: Path) -> None:
    path = executable(tmp_path / "bin" / "nvcc", "raise SystemExit('nvcc fatal: no cicc')")
    report = examine(replace(machine, env={**machine.env, "PATH": str(path.parent)}))
    assert "nvcc fatal: no cicc" in finding(report, str(path)).message
    assert "nvcc was not found" in command(report, "build-plugin").missing


def headers(folder: Path, major: int) -> Path:
    folder.mkdir(parents=True)
    (folder / HEADER).write_text("")
    (folder / "NvInferVersion.h").write_text(
        f"#define TRT_MAJOR_ENTERPRISE {major}\n#define NV_TENSORRT_MAJOR TRT_MAJOR_ENTERPRISE //!< major\n"
        "#define NV_TENSORRT_MINOR 14 //!< minor\n#define NV_TENSORRT_PATCH 1\n"
    )
    return folder


def test_headers_are_found_and_their_version_read(machine: Machine, tmp_path: Path) -> None:
    folder = headers(tmp_path / "TensorRT" / "include", 10)
    env = {**machine.env, "TENSORRT_ROOT": str(tmp_path / "TensorRT")}
    (found,) = examine(replace(machine, env=env, include_folders=(folder,))).facts.headers
    assert (found.version, found.major, found.source) == ("10.14.1", 10, "TENSORRT_ROOT")


def test_headers_of_another_major_than_the_runtime_are_a_warning(machine: Machine, tmp_path: Path) -> None:
    distribution(machine, "tensorrt", "11.4.0")
    module(machine, "tensorrt", "__version__ = '11.4.0'")
    folder = headers(tmp_path / "include", 10)
    warning = finding(examine(replace(machine, include_folders=(folder,))), "headers of its runtime's major")
    assert "--branch release/11.4 " in warning.remedy


def test_incomplete_headers_are_no_headers(machine: Machine, tmp_path: Path) -> None:
    folder = headers(tmp_path / "include", 10)
    (folder / "NvInferVersion.h").unlink()
    report = examine(replace(machine, include_folders=(folder,)))
    assert "NvInferVersion.h is missing" in finding(report, str(folder)).message
    assert "TensorRT's headers were not found" in command(report, "build-plugin").missing


def test_circular_macros_end(tmp_path: Path) -> None:
    path = tmp_path / "NvInferVersion.h"
    path.write_text("#define NV_TENSORRT_MAJOR NV_TENSORRT_MINOR\n#define NV_TENSORRT_MINOR NV_TENSORRT_MAJOR\n")
    assert header_version(path) == ""


INFO = (
    'vimdeploy-plugin-info{"version": "0.1.0", "source_hash": "0123456789ab", "tensorrt": "10.14", "cuda": "13.0", '
    '"architectures": "80,89,89+PTX"}'
)
PLUGIN = f"__attribute__((used)) static char const kINFO[] = {json.dumps(INFO)};"


@pytest.mark.parametrize("place", ["environment", "cache"])
def test_a_built_plugin_library_is_found_and_says_what_it_is(
    machine: Machine, tmp_path: Path, compile_library: Compile, place: str
) -> None:
    folder = tmp_path / "home" / ".cache" / "vimdeploy" / "plugins" / "key" if place == "cache" else tmp_path
    path = compile_library(folder / "libvimdeploy_plugin.so", PLUGIN)
    env = {**machine.env, "VIMDEPLOY_PLUGIN": str(path)} if place == "environment" else machine.env
    report = examine(replace(machine, env=env))
    (found,) = report.facts.plugins
    assert (found.path, found.problem) == (path, "")
    assert found.info is not None
    assert (found.info.tensorrt, found.info.cuda, found.architectures) == ("10.14", "13.0", ("80", "89", "89+PTX"))
    assert "the plugin library is not built" not in command(report, "build-engine").missing


def test_the_kernels_for_pytorch_are_no_plugin(machine: Machine, tmp_path: Path, compile_library: Compile) -> None:
    cache = tmp_path / "home" / ".cache" / "vimdeploy" / "plugins" / "key"
    compile_library(cache / "libvimdeploy_kernels.so", "int vimdeploy_abi_version(void) { return 1; }")
    report = examine(machine)
    assert [(p.kind.serves, p.problem) for p in report.facts.plugins] == [("PyTorch", "")]
    assert "the plugin library is not built" in command(report, "build-engine").missing


def test_a_plugin_for_another_major_than_the_runtime_is_a_warning(
    machine: Machine, tmp_path: Path, compile_library: Compile
) -> None:
    distribution(machine, "tensorrt", "11.4.0")
    module(machine, "tensorrt", "__version__ = '11.4.0'")
    path = compile_library(tmp_path / "libvimdeploy_plugin.so", PLUGIN)
    report = examine(replace(machine, env={**machine.env, "VIMDEPLOY_PLUGIN": str(path)}))
    assert "built for TensorRT 10.14, the installed runtime is 11.4.0" in finding(report, str(path)).message


def test_a_foreign_library_is_no_plugin(machine: Machine, tmp_path: Path, compile_library: Compile) -> None:
    path = compile_library(tmp_path / "libother.so", tensorrt(101301))
    report = examine(replace(machine, env={**machine.env, "VIMDEPLOY_PLUGIN": str(path)}))
    assert "is not a vimdeploy plugin library" in finding(report, f"plugin library {path}").message
    assert "the plugin library is not built" in command(report, "build-engine").missing


def test_a_plugin_variable_that_names_no_file_is_told(machine: Machine, tmp_path: Path) -> None:
    env = {**machine.env, "VIMDEPLOY_PLUGIN": str(tmp_path / "gone.so")}
    report = examine(replace(machine, env=env))
    assert "No such file" in finding(report, "gone.so").message


@pytest.mark.parametrize("file", ["libvimdeploy_plugin.so", "libvimdeploy_kernels.so"])
def test_a_build_that_was_broken_off_is_listed_and_not_counted(
    machine: Machine, tmp_path: Path, compile_library: Compile, file: str
) -> None:
    build = tmp_path / "home" / ".cache" / "vimdeploy" / "plugins" / ".build-abc"
    compile_library(build / "out" / file, PLUGIN)
    report = examine(machine)
    assert "the plugin library is not built" in command(report, "build-engine").missing
    broken = finding(report, "under way or was broken off")
    assert str(build / "out" / file) in broken.message
    assert f"rm -r {build} &&" in broken.remedy


def test_every_kind_of_library_is_found_in_its_folder_of_the_cache(
    machine: Machine, tmp_path: Path, compile_library: Compile
) -> None:
    cache = tmp_path / "home" / ".cache" / "vimdeploy"
    planted = {kind.file: compile_library(cache / kind.folder / "key" / kind.file, PLUGIN) for kind in KINDS}
    found = examine(machine).facts.plugins
    assert {library.kind.file: library.path for library in found} == planted
    assert {library.kind.serves for library in found} == {"TensorRT", "PyTorch", "ONNX Runtime"}
    assert not any(library.problem for library in found)


def test_the_variable_for_the_kernels_is_read(machine: Machine, tmp_path: Path, compile_library: Compile) -> None:
    path = compile_library(tmp_path / "mine.so", "int vimdeploy_abi_version(void) { return 1; }")
    (found,) = examine(replace(machine, env={**machine.env, "VIMDEPLOY_KERNELS": str(path)})).facts.plugins
    assert (found.path, found.source, found.problem) == (path, "VIMDEPLOY_KERNELS", "")
    wrong = examine(replace(machine, env={**machine.env, "VIMDEPLOY_KERNELS": str(tmp_path / "gone.so")}))
    assert "correct VIMDEPLOY_KERNELS" in finding(wrong, "gone.so").remedy


# ---- what is printed


def test_json_has_a_schema_version_and_every_section(machine: Machine) -> None:
    data = json.loads(json.dumps(examine(machine).to_dict()))
    assert next(iter(data)) == "schema"
    assert data["schema"] == SCHEMA == 1
    assert set(data) == {
        "schema", "vimdeploy", "python", "executable", "system", "packages", "providers", "flavours", "libraries",
        "driver", "gpus", "nvcc", "compiler", "headers", "plugins", "findings", "commands",
    }  # fmt: skip
    assert {c["name"] for c in data["commands"]} == set(COMMANDS)


def test_tables_fit_eighty_columns_and_remedies_stay_on_one_line(machine: Machine) -> None:
    module(machine, "tensorrt", "raise ImportError('[red]not markup[/blue]')")
    report = examine(machine)
    out = StringIO()
    render(report, Console(file=out, width=80))
    text = out.getvalue()
    tables, _, remedies = text.partition("To know and to mend")
    assert all(len(line.rstrip()) <= 80 for line in tables.splitlines())
    for f in report.findings:
        assert f.message in remedies
        assert any(line == f"    {f.remedy}" for line in remedies.splitlines())
    for name in COMMANDS:
        assert name in tables


def test_this_very_machine_is_examined_without_importing_torch() -> None:
    script = (
        "import json, sys; from vimdeploy.doctor import examine; data = examine().to_dict(); "
        "assert not {'torch', 'onnxruntime', 'onnx'} & set(sys.modules); print(json.dumps(data))"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, check=True)
    data = json.loads(done.stdout)
    versions = {p["name"]: p["version"] for p in data["packages"]}
    import torch

    assert versions["torch"] == torch.__version__
    assert "CPUExecutionProvider" in data["providers"]
    assert next(c for c in data["commands"] if c["name"] == "export")["ready"]


def test_only_commands_that_exist_are_spoken_of(machine: Machine) -> None:
    report = examine(machine, available={"doctor", "predict"})
    assert [c.name for c in report.commands] == ["doctor", "predict", "predict -o"]
    assert [f.message for f in report.findings] == [
        "pyarrow is not installed (needed by predict -o)",
        "onnxruntime is not installed (needed by predict, predict -o)",
    ]


def test_every_command_of_the_command_line_is_judged() -> None:
    from vimdeploy.cli.app import app

    commands = {c.name or getattr(c.callback, "__name__", "") for c in app.registered_commands}
    assert commands <= {name.split()[0] for name in COMMANDS}


def test_the_command_prints_tables_or_json() -> None:
    for option in ([], ["--json"]):
        command_line = [sys.executable, "-m", "vimdeploy", "doctor", *option]
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command_line, env=env, capture_output=True, text=True, check=True)
        if option:
            assert json.loads(done.stdout)["schema"] == SCHEMA
        else:
            assert "Commands on this machine" in done.stdout
