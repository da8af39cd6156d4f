"""The built library inside the real TensorRT 11 runtime (``tensorrt-lean-cu13``), which needs no GPU for its registry.

The library is compiled with TensorRT 10 headers here, so this also proves that one file works in both majors as far as
registries and plugins go. Each script runs in its own process: a registry is for life, and a crash must be seen as one.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from vimdeploy import contract
from vimdeploy.native.locate import PRELOAD
from vimdeploy.tensorrt.plugin import read_info

COMMON = """
import ctypes, gc, json, sys
import numpy as np
import tensorrt_lean as trt

path = sys.argv[1]
registry = trt.get_plugin_registry()
said = {}

def ours():
    return [c.name for c in registry.all_creators if (c.plugin_namespace, c.plugin_version) == ("vimdeploy", "1")]

def fields(op, directions=(1, -1), kernels=None):
    i32, f32, char = trt.PluginFieldType.INT32, trt.PluginFieldType.FLOAT32, trt.PluginFieldType.CHAR
    one = [trt.PluginField("directions", np.array(directions, np.int32), i32)]
    if op.startswith("SelectiveScanDelta"):
        flags = {"delta_softplus": 1, "reverse": int(directions[1] > 1) * 5}
        one = [trt.PluginField(name, np.array([value], np.int32), i32) for name, value in flags.items()]
    elif op == "CausalConv1d":
        one.append(trt.PluginField("activation", b"silu", char))
    else:
        one.append(trt.PluginField("column_major", np.zeros(len(directions), np.int32), i32))
        one.append(trt.PluginField("height", np.array([1], np.int32), i32))
        one.append(trt.PluginField("scale", np.array([0.5], np.float32), f32))
    if kernels is not None:  # what a plan says besides, and only a plan
        one.append(trt.PluginField("sm_count", np.array([58], np.int32), i32))
        one.append(trt.PluginField("kernels", kernels.encode(), char))
    return trt.PluginFieldCollection(one)
"""

LOAD = """
KERNELS = sys.argv[2]

def visit(op, phase):
    creator = registry.get_creator(op, "1", "vimdeploy")
    is_plan = phase == trt.TensorRTPhase.RUNTIME
    plugin = creator.create_plugin("a layer", fields(op, kernels=KERNELS if is_plan else None), phase)
    if is_plan:
        said["other kernels"] = creator.create_plugin("a layer", fields(op, kernels="0123456789ab"), phase) is None
        said["no plan"] = creator.create_plugin("a layer", fields(op), phase) is None
    kinds = {}
    for kind in ("CORE", "BUILD", "RUNTIME"):
        capability = plugin.get_capability_interface(getattr(trt.PluginCapabilityType, kind))
        info = capability.interface_info
        kinds[kind] = [info.kind, info.major]
    core = plugin.get_capability_interface(trt.PluginCapabilityType.CORE)
    build = plugin.get_capability_interface(trt.PluginCapabilityType.BUILD)
    answer = {
        "fields": [field.name for field in creator.field_names],
        "kinds": kinds,
        "core": [core.plugin_name, core.plugin_version, core.plugin_namespace],
        "outputs": build.num_outputs,
        "timing_cache_id": build.timing_cache_id,
        "metadata": build.metadata_string,
        "refused": creator.create_plugin("a layer", fields(op, (1, 5)), phase) is None,
    }
    return answer

said["rounds"] = []
for _ in range(2):
    handle = registry.load_library(path)
    assert handle is not None
    names = ours()
    phases = trt.TensorRTPhase.__members__.values()
    visits = {f"{op} {phase.name}": visit(op, phase) for op in names for phase in phases}
    second = registry.load_library(path)
    gc.collect()  # plugins must be gone before the code they point into
    registry.deregister_library(handle)
    mapped = "libvimdeploy_plugin" in open("/proc/self/maps").read()
    said["rounds"].append(
        {"names": names, "visits": visits, "second": second is None, "after": ours(), "mapped": mapped}
    )
"""

PRELOADED = """
ctypes.CDLL(path)
said["names"] = ours()
said["again"] = registry.load_library(sys.argv[2]) is None
creator = registry.get_creator("SelectiveScanNoGate", "1", "vimdeploy")
plugin = creator.create_plugin("x", fields("SelectiveScanNoGate"), trt.TensorRTPhase.BUILD)
said["created"] = plugin is not None
del plugin
gc.collect()
import _ctypes
_ctypes.dlclose(ctypes.CDLL(path)._handle)
said["names_after_dlclose"] = ours()
"""


def play(script: str, *arguments: object) -> tuple[dict[str, Any], str]:
    """Run a script after COMMON in its own process; returns what it said and what it wrote to stderr."""
    code = COMMON + script + "\nprint(json.dumps(said))\n"
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-4000:]
    return json.loads(result.stdout.splitlines()[-1]), result.stderr


@pytest.fixture(scope="module")
def loaded(library: Path) -> tuple[dict[str, Any], str]:
    return play(LOAD, library, read_info(library).source_hash)


def test_lists_the_ops_and_leaves_no_trace_when_unloaded(loaded: tuple[dict[str, Any], str]) -> None:
    for visit in loaded[0]["rounds"]:
        assert sorted(visit["names"]) == sorted(contract.PLUGIN_OPS)
        assert visit["after"] == []
        assert not visit["mapped"], "dlclose left the library in the process"
        assert visit["second"], "a second load of registered creators must be refused, not crash"


def test_creates_plugins_in_both_phases_and_answers_capabilities(loaded: tuple[dict[str, Any], str]) -> None:
    for visit in loaded[0]["rounds"]:
        assert set(visit["visits"]) == {f"{op} {phase}" for op in contract.PLUGIN_OPS for phase in ("BUILD", "RUNTIME")}
        for name, answer in visit["visits"].items():
            op = name.split()[0]
            assert answer["fields"] == [attribute.name for attribute in contract.OPS[op].attributes]
            assert answer["kinds"]["CORE"] == ["PLUGIN_V3ONE_CORE", 1]
            assert answer["kinds"]["BUILD"][0] == "PLUGIN_V3ONE_BUILD"
            assert answer["kinds"]["RUNTIME"] == ["PLUGIN_V3ONE_RUNTIME", 1]
            assert answer["core"] == [op, contract.PLUGIN_VERSION, contract.PLUGIN_NAMESPACE]
            assert answer["outputs"] == 1
            said = "delta_softplus=1;reverse=0" if "Delta" in op else "directions=1,-1;"
            assert answer["timing_cache_id"].startswith(said)
            assert answer["metadata"].startswith(f"vimdeploy::{op};version=1;{said}")


def test_refuses_a_plan_of_other_kernels_in_words(loaded: tuple[dict[str, Any], str]) -> None:
    said, errors = loaded
    assert said["other kernels"]
    assert said["no plan"]
    assert "createPlugin: the plan was built with other kernels (0123456789ab) than this library has (" in errors
    assert "an older library wrote it" in errors


def test_refuses_wrong_attributes_in_words(loaded: tuple[dict[str, Any], str]) -> None:
    said, errors = loaded
    assert all(answer["refused"] for visit in said["rounds"] for answer in visit["visits"].values())
    wanted = (
        "vimdeploy SelectiveScan (a layer), createPlugin: attribute 'directions' has 5 for group 1, expected 1 or -1"
    )
    assert wanted in errors


def test_the_preload_flavour_registers_itself(library: Path) -> None:
    said, _ = play(PRELOADED, library.with_name(PRELOAD), library)
    assert sorted(said["names"]) == sorted(contract.PLUGIN_OPS)
    assert said["created"]
    assert said["again"], "load_library() of the same creators must be refused"
    assert sorted(said["names_after_dlclose"]) == sorted(contract.PLUGIN_OPS)


EARLY = """
ctypes.CDLL(path)  # as polygraphy --plugins and ONNX Runtime do: before any TensorRT
import tensorrt_lean as trt
said = {"names": [c.name for c in trt.get_plugin_registry().all_creators if c.plugin_namespace == "vimdeploy"]}
"""


def test_the_preload_flavour_loads_tensorrt_where_it_comes_first(library: Path, tmp_path: Path) -> None:
    import tensorrt_lean_libs  # the full TensorRT cannot be installed here: the lean one stands under its name

    (lean,) = Path(tensorrt_lean_libs.__path__[0]).glob("libnvinfer_lean.so.11*")
    (tmp_path / "libnvinfer.so.11").symlink_to(lean)
    code = "import ctypes, json, sys\npath = sys.argv[1]\n" + EARLY + "print(json.dumps(said))\n"
    done = subprocess.run(
        [sys.executable, "-c", code, str(library.with_name(PRELOAD))],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "LD_LIBRARY_PATH": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "no TensorRT was loaded in this process yet, so libnvinfer.so.11 was" in done.stderr
    assert sorted(json.loads(done.stdout)["names"]) == sorted(contract.PLUGIN_OPS)


def test_the_preload_flavour_says_when_there_is_no_tensorrt(library: Path) -> None:
    preload = library.with_name(PRELOAD)
    code = f"import ctypes; ctypes.CDLL({str(preload)!r})"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert "no TensorRT is loaded in this process" in result.stderr
    # With LD_PRELOAD every child of a shell comes through there: not a word.
    result = subprocess.run(
        ["/bin/true"], capture_output=True, text=True, timeout=60, check=True, env={"LD_PRELOAD": str(preload)}
    )
    assert result.stderr == ""


LOADER = """
from pathlib import Path
from vimdeploy.tensorrt.plugin import load_library, read_info, registered_ops
from vimdeploy.errors import VimdeployError

said["major"] = int(trt.__version__.split(".")[0])
try:
    library = load_library(trt, Path(path))
    said["path"] = str(library.path)
    said["same"] = load_library(trt) is library
except VimdeployError as error:
    said["error"] = error.message
said["ops"] = registered_ops(registry)
"""


def test_our_loader_loads_it_or_says_that_it_is_for_another_tensorrt(library: Path) -> None:
    said, _ = play(LOADER, library)
    info = read_info(library)
    if info.tensorrt_major == said["major"]:
        assert said["path"] == str(library)
        assert said["same"]
        assert sorted(said["ops"]) == sorted(contract.PLUGIN_OPS)
    else:
        assert f"was built with the headers of TensorRT {info.tensorrt}, but TensorRT {said['major']}." in said["error"]
        assert said["ops"] == []
