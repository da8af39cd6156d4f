"""Run every line of vimdeploy/tensorrt/api.py against the double of one TensorRT; started by test_trt_api.py.

Prints JSON: the functions of it with a line that no call reached, and the members of the API that were used.
"""

from __future__ import annotations

import dataclasses
import importlib
import itertools
import json
import sys
import types
from pathlib import Path

import pytest
import trt_double
from onnx import helper

from vimdeploy import contract
from vimdeploy.artifacts.tensors import Profile
from vimdeploy.errors import ArtifactError, VimdeployError
from vimdeploy.tensorrt import api as trt
from vimdeploy.tensorrt import boundary, options, plugin
from vimdeploy.tensorrt import builder as build


class _Weights:
    nbytes = 8


def _functions(path: Path) -> dict[str, set[int]]:
    """Lines of every function of a module, by qualified name."""
    found: dict[str, set[int]] = {}

    def visit(code: types.CodeType, prefix: str) -> None:
        for inner in code.co_consts:
            if isinstance(inner, types.CodeType):
                if inner.co_flags & 0x2:  # a function: class bodies have no fast locals
                    found[prefix + inner.co_name] = {n for _, _, n in inner.co_lines() if n} - {inner.co_firstlineno}
                visit(inner, f"{prefix}{inner.co_name}.")

    visit(compile(path.read_text(), str(path), "exec"), "")
    return found


def walk(api: types.ModuleType, flavour: trt.Flavour) -> None:
    tensorrt = trt.TensorRt(flavour, api)
    messages = boundary.Messages()
    assert isinstance(tensorrt.known_compute_capabilities, tuple)
    network, problems = tensorrt.parse(b"onnx", messages)
    assert network is not None
    assert problems == []
    assert network.tensors()
    assert [layer.kind for layer in network.layers()] == [k.lower() for k in KINDS]
    plugins = flavour is not trt.Flavour.RTX
    shapes: Profile = {"images": ((1, 3), (2, 3), (4, 3))}
    config = boundary.Config(
        profiles=(shapes,),
        compute_capabilities=() if plugins else ("sm_89", "sm_120"),
        workspace=1 << 30,
        optimization_level=3,
        version_compatible=plugins,
        hardware_compatible=plugins,
        embed_plugins=("libplugin.so",) if plugins else (),
        timing_cache=b"" if plugins else None,
    )
    built = network.build(config, Recorder())
    assert built.plan is not None
    assert (built.timing_cache is not None) == plugins
    if built.timing_cache is not None:
        assert not built.timing_cache.refused
        assert isinstance(built.timing_cache.merged(b"stored"), bytes)
    network.build(dataclasses.replace(config, tf32=True), Recorder())
    assert tensorrt.knows_same_compute_capability
    if plugins:
        network.build(dataclasses.replace(config, hardware_compatible=False, same_compute_capability=True), Recorder())
    walk_refusals(tensorrt, network, config)
    if plugins:
        walk_plugins(tensorrt, [creator(api, name) for name in contract.PLUGIN_OPS])
    walk_runtime(tensorrt, messages, plugins)
    trt.log_of(api).heard_by(messages).log(api.ILogger.Severity.ERROR, "told")
    assert messages.errors()[-1] == "told"
    monitor = trt._monitor(api, Recorder())
    monitor.phase_start("phase", None, 3)
    assert monitor.step_complete("phase", 1)
    monitor.phase_finish("phase")


def walk_refusals(tensorrt: trt.TensorRt, network: trt.Network, config: boundary.Config) -> None:
    if tensorrt.takes_plugins:
        walk_build(tensorrt)
    RESULTS["IBuilderConfig.set_timing_cache"] = lambda _: False
    if config.timing_cache is not None:
        refused = network.build(dataclasses.replace(config, timing_cache=b"old"), Recorder()).timing_cache
        assert refused is not None
        assert refused.refused
    RESULTS["IBuilderConfig.add_optimization_profile"] = lambda _: -1
    assert network.build(dataclasses.replace(config, compute_capabilities=())).bad_profile
    RESULTS["OnnxParser.parse"] = lambda _: False
    nothing, problems = tensorrt.parse(b"onnx", boundary.Messages())
    assert nothing is None
    assert problems[0].code == "SUCCESS"


def walk_build(tensorrt: trt.TensorRt) -> None:
    """The builder above it, which TensorRT-RTX runs for real in test_build_engine.py, takes this API as well."""
    inputs = [helper.make_tensor_value_info("x", 1, ["batch", 5, 8])]
    weights = [helper.make_tensor("w", 1, (2, 8, 4), [0.0] * 64), helper.make_tensor("b", 1, (2, 8), [0.0] * 16)]
    node = helper.make_node(
        "CausalConv1d", ["x", "w", "b"], ["u"], "conv", domain="vimdeploy", directions=[1, -1], activation="silu"
    )
    outputs = [helper.make_tensor_value_info("u", 1, [2, "batch", 5, 8])]
    graph = helper.make_graph([node], "g", inputs, outputs, weights)
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("vimdeploy", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    parsed = build.parse(model, tensorrt, "m.onnx", "fp32")
    assert parsed.summary.plugin_layers == 1
    chosen = options.BuildOptions(batch=(1, 2, 4), version_compatible=True, embed_plugin=True, workspace=1 << 20)
    options.check_options(chosen, tensorrt)
    profiles = build.make_profiles(model, chosen, (1, 8, 64))
    plan = build.build(parsed, chosen, profiles, "m.onnx", plugin=Path("libplugin.so"), timing_cache=b"")
    assert plan.profiles == ({"x": ((1, 5, 8), (2, 5, 8), (4, 5, 8))},)
    node.op_type, node.domain = "Relu", ""
    del node.input[1:], node.attribute[:]
    plain = helper.make_model(helper.make_graph([node], "g", inputs, outputs), opset_imports=opsets, ir_version=10)
    with pytest.raises(ArtifactError, match="has 0 custom ops but TensorRT made 1 plugin layers"):
        build.parse(plain, tensorrt, "m.onnx", "fp32")


def walk_plugins(tensorrt: trt.TensorRt, creators: list[object]) -> None:
    """plugin.py gets the API from tensorrt/api.py: what it does with the registry is held to the bindings as well."""
    info = plugin.BuildInfo("1", "hash", tensorrt.version, "13.0", ("89",))
    library = plugin.PluginLibrary(Path("libvimdeploy_plugin.so"), plugin.Origin.ARGUMENT, info, is_current=True)
    plugin.find_library = lambda *_, **__: library
    loads = iter([[], creators])
    RESULTS["IPluginRegistry.all_creators"] = lambda _: next(loads)
    assert plugin.load_library(tensorrt.api) is library


def walk_runtime(tensorrt: trt.TensorRt, messages: boundary.Messages, plugins: bool) -> None:
    engine = tensorrt.runtime(messages, host_code=plugins).engine(b"plan")
    assert engine is not None
    assert engine.tensors()
    assert engine.profiles()
    assert engine.inspect() == {}
    RESULTS["ICudaEngine.create_execution_context"] = lambda _: None
    with pytest.raises(VimdeployError, match="creating an execution context"):
        engine.context(0)
    del RESULTS["ICudaEngine.create_execution_context"]
    assert engine.context_bytes() == 1
    context = engine.context(4096)
    assert context.set_shape("images", (1, 3))
    assert context.bind("images", 4096)
    assert context.enqueue(7)
    assert context.complaints() == []


def creator(api: types.ModuleType, name: str) -> object:
    made = api.IPluginCreatorV3One.__new__(api.IPluginCreatorV3One)
    vars(made).update(_name=name, _plugin_version=contract.PLUGIN_VERSION, _plugin_namespace=contract.PLUGIN_NAMESPACE)
    return made


class Recorder:
    def start(self, phase: str, parent: str | None, steps: int) -> None:
        pass

    def step(self, phase: str, step: int) -> bool:
        return True

    def finish(self, phase: str) -> None:
        pass


KINDS = ("CONSTANT", "CONVOLUTION", "DECONVOLUTION", "MATRIX_MULTIPLY", "PLUGIN_V3")
RESULTS: dict[str, object] = {}


def main(package: str, flavour: str) -> None:
    bindings = importlib.import_module(package)
    kinds = itertools.cycle(KINDS)
    weights = {f"{c}.{m}": lambda _: _Weights() for c, m in _WEIGHTS}
    RESULTS.update(weights)
    RESULTS["INetworkDefinition.num_layers"] = lambda _: len(KINDS)
    RESULTS["ILayer.type"] = lambda _: bindings.LayerType.__members__[next(kinds)]
    RESULTS["IOptimizationProfile.set_shape"] = lambda _: None
    RESULTS["ICudaEngine.get_tensor_mode"] = lambda _: bindings.TensorIOMode.INPUT
    RESULTS["ICudaEngine.get_tensor_profile_shape"] = lambda _: [(1, 2)] * 3
    api = trt_double.double(bindings, RESULTS)  # type: ignore[arg-type]
    RESULTS["get_plugin_registry"] = lambda: api.IPluginRegistry.__new__(api.IPluginRegistry)
    path = Path(trt.__file__)
    reached: set[int] = set()

    def local(frame: types.FrameType, event: str, _: object) -> object:
        if event == "line":
            reached.add(frame.f_lineno)
        return local

    def enter(frame: types.FrameType, event: str, _: object) -> object:
        return local if frame.f_code.co_filename == str(path) else None

    sys.settrace(enter)  # type: ignore[arg-type]
    walk(api, trt.Flavour(flavour))
    sys.settrace(None)
    missing = sorted(name for name, lines in _functions(path).items() if lines - reached)
    print(json.dumps({"version": bindings.__version__, "missing": missing, "called": sorted(api.called)}))


_WEIGHTS = (("IConstantLayer", "weights"), ("IConvolutionLayer", "kernel"), ("IDeconvolutionLayer", "kernel"))

if __name__ == "__main__":
    main(*sys.argv[1:])
