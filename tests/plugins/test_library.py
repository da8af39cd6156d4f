"""The built libraries as files: what they export and import, and which GPUs they serve."""

from __future__ import annotations

import ctypes
import json
import re
import struct
from collections import Counter
from pathlib import Path

import pytest
from native import architectures, needed, run

from vimdeploy import __version__
from vimdeploy.native.locate import KERNELS, PLUGIN, PRELOAD, plugin_sources, source_hash
from vimdeploy.native.toolchain import find_nvcc
from vimdeploy.tensorrt.plugin import read_info

EXPORTS = {
    PLUGIN: {"getCreators", "setLoggerFinder"},
    PRELOAD: set(),
    KERNELS: {
        "vimdeploy_conv",
        "vimdeploy_kernels_abi",
        "vimdeploy_kernels_backend",
        "vimdeploy_last_error",
        "vimdeploy_scan",
        "vimdeploy_scan_delta",
        "vimdeploy_scan_delta_variants",
        "vimdeploy_scan_delta_workspace_size",
        "vimdeploy_scan_plan_query",
        "vimdeploy_scan_variants",
        "vimdeploy_scan_workspace_size",
    },
}
FATBIN_MAGIC = b"\x50\xed\x55\xba"
SYSTEM_LIBRARIES = re.compile(r"lib(stdc\+\+|gcc_s|c|m|dl|rt|pthread)\.so\.\d+|ld-linux.*|linux-vdso.*")


def symbols(path: Path, kind: str) -> set[str]:
    lines = run(needed("nm", "binutils"), "-D", f"--{kind}-only", "--format=posix", path).stdout.splitlines()
    return {line.split()[0].split("@")[0] for line in lines}


@pytest.mark.parametrize("name", EXPORTS)
def test_exports_are_the_intended_ones(library: Path, name: str) -> None:
    assert symbols(library.with_name(name), "defined") == EXPORTS[name]


@pytest.mark.parametrize("name", EXPORTS)
def test_nothing_of_tensorrt_cuda_or_torch_is_imported(library: Path, name: str) -> None:
    path = library.with_name(name)
    imported = symbols(path, "undefined")
    assert not {s for s in imported if re.search(r"nvinfer|^cuda|^cu[A-Z]|c10|at::|getPluginRegistry|getLogger", s)}
    dynamic = run(needed("readelf", "binutils"), "-d", path).stdout
    libraries = re.findall(r"\(NEEDED\).*\[(.*)\]", dynamic)
    assert libraries
    assert [library for library in libraries if not SYSTEM_LIBRARIES.fullmatch(library)] == []
    assert "TEXTREL" not in dynamic


def test_only_the_preload_flavour_stays_for_good(library: Path) -> None:
    def flags(name: str) -> str:
        return run("readelf", "-d", library.with_name(name)).stdout

    assert "NODELETE" in flags(PRELOAD)
    assert "NODELETE" not in flags(PLUGIN)
    # A unique symbol would make dlclose() a no-op, and a second load_library() would meet the old creators.
    assert " u " not in run("nm", "-D", library).stdout


@pytest.mark.parametrize("name", [PLUGIN, PRELOAD])
def test_the_file_says_what_it_is(library: Path, name: str) -> None:
    info = read_info(library.with_name(name))
    known = [str(number) for number in architectures()]
    assert info.version == __version__
    assert info.source_hash == source_hash(plugin_sources())
    assert info.tensorrt_major in (10, 11)
    assert info.cuda == find_nvcc().release
    assert info.architectures == (*known, f"{known[-1]}+PTX")


PTX, CUBIN = 1, 2


def device_code(path: Path) -> Counter[tuple[int, int]]:
    """Count the images in the library's fat binaries by (kind, architecture), as their headers state them."""
    data = path.read_bytes()
    found: Counter[tuple[int, int]] = Counter()
    position = data.find(FATBIN_MAGIC)
    while position >= 0:
        _, version, header, size = struct.unpack_from("<IHHQ", data, position)
        if version == 1 and header == 16:
            entry, end = position + header, position + header + size
            while entry < end:
                kind, _, entry_header, entry_size = struct.unpack_from("<HHIQ", data, entry)
                (architecture,) = struct.unpack_from("<I", data, entry + 28)
                found[kind, architecture] += 1
                entry += entry_header + entry_size
        position = data.find(FATBIN_MAGIC, position + 4)
    return found


@pytest.mark.parametrize("name", EXPORTS)
def test_every_architecture_has_machine_code_and_the_newest_has_ptx(library: Path, name: str) -> None:
    known = set(architectures())
    code = device_code(library.with_name(name))
    units = len(list(plugin_sources().glob("kernels/*/*.cu")))
    # Every .cu file has code for every architecture; the CUDA runtime, linked statically, brings an image of its own.
    assert {number for (kind, number), count in code.items() if kind == CUBIN and count >= units} == known
    assert {number for kind, number in code if kind == PTX} == {max(known)}


def test_kernels_answer_without_a_gpu(library: Path) -> None:
    kernels = ctypes.CDLL(str(library.with_name(KERNELS)))
    kernels.vimdeploy_kernels_backend.restype = ctypes.c_char_p
    kernels.vimdeploy_last_error.restype = ctypes.c_char_p
    assert kernels.vimdeploy_kernels_backend() == b"cuda"
    assert kernels.vimdeploy_kernels_abi() == 2
    assert kernels.vimdeploy_scan(None) < 0
    assert b"null" in kernels.vimdeploy_last_error()


def test_cmake_computes_the_same_hash(host_build: Path) -> None:
    # One digest, two programs: a library built with CMake is recognised as built from these sources.
    commands = json.loads((host_build / "compile_commands.json").read_text())
    (version,) = [entry["command"] for entry in commands if entry["file"].endswith("tensorrt/version.cpp")]
    assert source_hash(plugin_sources()) in version
