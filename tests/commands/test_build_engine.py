"""TensorRT-RTX really builds plans here, ahead of time and without a GPU: figures, progress, cancelling, errors."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import onnx
import pytest

from vimdeploy import contract
from vimdeploy.artifacts.engine_manifest import read_engine_manifest
from vimdeploy.commands.build_engine import BuiltEngine, build_engine
from vimdeploy.commands.convert import convert
from vimdeploy.errors import ArtifactError, MissingDependencyError, UsageError, VimdeployError
from vimdeploy.graph import bodies
from vimdeploy.progress import Reporter
from vimdeploy.tensorrt import api as trt
from vimdeploy.tensorrt import builder as engine_build
from vimdeploy.tensorrt import plugin, proof
from vimdeploy.tensorrt.boundary import Config, Messages
from vimdeploy.tensorrt.options import BuildOptions
from vimdeploy.tensorrt.progress import Tracker
from vimdeploy.tensorrt.translate import parse_error, runtime_error

RTX = BuildOptions(flavour=trt.Flavour.RTX, compute_capabilities=("sm_89",), optimization_level=0)
CLI = [sys.executable, "-m", "vimdeploy"]


class Recorder(Reporter):
    def __init__(self) -> None:
        self.seen: list[float] = []
        self.stages: list[str] = []

    def stage(self, text: str) -> None:
        self.seen.clear()
        self.stages.append(text)

    def progress(self, done: int, total: int) -> None:
        self.seen.append(done / total)


def make(model: Path, output: Path, options: BuildOptions = RTX, **request: object) -> BuiltEngine:
    return build_engine(model, output, options=options, **request)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("precision", "compute", "weights"), [("fp32", 0.0, 0.0), ("fp16", 0.6, 0.75), ("bf16", 0.6, 0.75)]
)
def test_a_plan_for_three_gpus_with_a_dynamic_batch(
    tiny: Path, tmp_path: Path, precision: str, compute: float, weights: float
) -> None:
    told = Recorder()
    options = dataclasses.replace(RTX, compute_capabilities=("sm_80", "sm_89", "sm_120"), batch=(1, 16, 128))
    built = build_engine(tiny, tmp_path / "vim.engine", options=options, precision=precision, reporter=told)
    network = built.manifest.network
    assert network["plugin_layers"] == 0, "TensorRT-RTX takes no plugins: they are inlined"
    assert compute <= network["half_compute_share"] < max(compute + 0.2, 0.01)
    assert weights <= network["half_weight_share"] < max(weights + 0.2, 0.01)
    assert network["kinds"]["matrix_multiply"] == 4 * 4 + 2 * 4 + 1, "four per block, two inside each scan, the head"
    assert network["kinds"]["recurrence"] == 4
    manifest = read_engine_manifest(built.path)
    assert manifest == built.manifest
    assert manifest.target.compute_capabilities == ("sm_80", "sm_89", "sm_120")
    assert manifest.profiles == ({"images": ((1, 3, 64, 64), (16, 3, 64, 64), (128, 3, 64, 64))},)
    assert (manifest.precision, manifest.tensorrt.flavour, manifest.plugin) == (precision, "rtx", None)
    assert manifest.source is not None
    assert manifest.source.classes.count == 10
    assert (manifest.inspector, manifest.parity) == (None, None)
    assert "needs the GPU" in built.notes[-1]
    assert built.path.read_bytes()[:4] == b"vtrt", "nothing in front of the plan: Triton and trtexec would refuse it"
    assert told.seen == sorted(told.seen), "progress never falls"
    assert len(told.seen) > 50
    assert told.seen[-1] > 0.5
    assert told.stages[-1] == "Building for sm_80, sm_89, sm_120"


def test_vim_ti_in_fp16(vim_ti: Path, tmp_path: Path) -> None:
    # Random weights spread errors more than trained ones: the contract is the business of test_precision.py.
    built = make(vim_ti, tmp_path / "vim_ti.engine", precision="fp16", verify=False)
    network = built.manifest.network
    assert network["compute_layers"] == 24 * 6 + 2
    assert network["half_compute_share"] == pytest.approx(98 / 146)
    assert network["half_weight_share"] > 0.85
    assert built.manifest.kept_float32 == ()
    assert built.manifest.plan_bytes > 14_000_000
    print(f"Vim-Ti FP16 for sm_89: {built.seconds:.0f} s, {built.manifest.plan_bytes / 1e6:.0f} MB")


def test_a_converted_file_is_built_as_it_is(tiny: Path, tmp_path: Path) -> None:
    convert(tiny, tmp_path / "half.onnx", io_dtype="fp16")
    built = make(tmp_path / "half.onnx", tmp_path / "half.engine")
    assert built.manifest.precision == "fp16"
    assert [t.dtype for t in (*built.manifest.inputs, *built.manifest.outputs)] == ["float16", "float16"]
    with pytest.raises(UsageError, match="is in fp16 already, so it cannot be built as bf16"):
        make(tmp_path / "half.onnx", tmp_path / "other.engine", precision="bf16")


def test_a_build_that_would_not_be_half_fails_before_it_starts(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="this would not be a fp16 engine: only 0% of the weight bytes"):
        make(tiny, tmp_path / "vim.engine", precision="fp16", keep=("*",))
    assert not list(tmp_path.iterdir())


def test_a_tight_bound_is_built_with_the_blocks_it_keeps(tiny: Path, tmp_path: Path) -> None:
    built = make(tiny, tmp_path / "vim.engine", precision="fp16", max_error=1e-3)
    assert built.manifest.kept_float32
    assert all("alone in FP16 costs" in kept for kept in built.manifest.kept_float32)
    assert (
        0
        < built.manifest.network["half_weight_share"]
        < make(tiny, tmp_path / "plain.engine", precision="fp16").manifest.network["half_weight_share"]
    )
    assert built.manifest.source is not None
    assert built.manifest.source.contract.fp16.relative_rms == 1e-3


def test_half_a_share_is_too_little_unless_blocks_were_kept_for_it() -> None:
    summary = proof.NetworkSummary(10, 10, 0, half_compute_share=0.24, half_weight_share=0.4, kinds={})
    with pytest.raises(ArtifactError, match="this would not be a fp16 engine"):
        proof.require(summary, precision="fp16", plugins=0)
    proof.require(summary, precision="fp16", plugins=0, kept_blocks=True)
    nothing = dataclasses.replace(summary, half_weight_share=0.1)
    with pytest.raises(ArtifactError, match="this would not be a fp16 engine"):
        proof.require(nothing, precision="fp16", plugins=0, kept_blocks=True)


def test_cancelling_stops_the_build_and_leaves_nothing(tiny: Path, tmp_path: Path) -> None:
    class Impatient(Recorder):
        def progress(self, done: int, total: int) -> None:
            super().progress(done, total)
            if len(self.seen) == 20:
                tracker.cancel()

    owner = trt.load("rtx")
    parsed = engine_build.parse(onnx.load(tiny), owner, "vim.onnx", "fp32")
    profiles = engine_build.make_profiles(onnx.load(tiny), RTX, (1, 8, 64))
    told = Impatient()
    tracker = Tracker(told)
    with pytest.raises(KeyboardInterrupt):
        engine_build.build(parsed, RTX, profiles, "vim.onnx", tracker=tracker)
    assert 20 <= len(told.seen) < 60


def start_build(model: Path, output: Path, *options: str) -> subprocess.Popen[str]:
    command = [*CLI, "build-engine", str(model), "-o", str(output), "--runtime", "rtx"]
    command += ["--compute-capability", "sm_80,sm_86,sm_89,sm_120", "--fp32", *options]
    env = {**os.environ, "COLUMNS": "200"}
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=env, start_new_session=True)


def wait_for(process: subprocess.Popen[str], text: str) -> str:
    assert process.stderr is not None
    seen = ""
    while text not in seen:
        line = process.stderr.readline()
        assert line, f"ended without {text!r}: {seen}"
        seen += line
    return seen


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL], ids=["ctrl-c", "kill"])
def test_an_interrupted_build_leaves_the_old_plan(tiny: Path, tmp_path: Path, how: signal.Signals) -> None:
    output = tmp_path / "vim.engine"
    output.write_bytes(b"the old plan")
    process = start_build(tiny, output)
    wait_for(process, "Building for")
    time.sleep(0.3)
    process.send_signal(how)
    _, err = process.communicate(timeout=60)
    assert process.returncode == (130 if how == signal.SIGINT else -signal.SIGKILL), err
    assert "Traceback" not in err
    assert [p.name for p in tmp_path.iterdir()] == ["vim.engine"]
    assert output.read_bytes() == b"the old plan"


def test_a_full_disk_leaves_the_old_plan(tiny: Path, tmp_path: Path) -> None:
    """A limit on file sizes stands for the disk: the write fails half-way in the same place."""
    output = tmp_path / "vim.engine"
    output.write_bytes(b"the old plan")
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20));"
        "from vimdeploy.cli.app import main; sys.exit(main())"
    )
    arguments = ["build-engine", str(tiny), "-o", str(output), "--runtime", "rtx", "--compute-capability", "sm_89"]
    command = [sys.executable, "-c", code, *arguments, "--fp32", "--optimization-level", "0"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "COLUMNS": "300"})
    assert done.returncode == 2, done.stderr
    assert "cannot be written: File too large" in done.stderr
    assert "Traceback" not in done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["vim.engine"]
    assert output.read_bytes() == b"the old plan"


def changed(tiny: Path, folder: Path, change: object) -> Path:
    """An edited copy without a manifest, which would notice the edit first."""
    model = onnx.load(tiny)
    change(model)  # type: ignore[operator]
    path = folder / "edited.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def set_opset(domain: str, version: int) -> object:
    def change(model: onnx.ModelProto) -> None:
        for entry in model.opset_import:
            if entry.domain == domain:
                entry.version = version

    return change


def add_foreign(model: onnx.ModelProto) -> None:
    model.graph.node[5].domain = "org.pytorch.aten"
    model.graph.node[5].op_type = "aten_flip"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_opset("", 99), "uses opset 99; 18 to 23 can be built"),
        (set_opset("", 11), "uses opset 11"),
        (set_opset(contract.DOMAIN, 7), "uses version 7 of the custom ops; this vimdeploy builds version 1"),
        (add_foreign, "is org.pytorch.aten::aten_flip, which is neither ONNX nor one of"),
    ],
)
def test_models_that_cannot_be_built_are_refused_in_words(
    tiny: Path, tmp_path: Path, change: object, message: str
) -> None:
    with pytest.raises(ArtifactError) as caught:
        make(changed(tiny, tmp_path, change), tmp_path / "x.engine", precision="fp32")
    assert message in caught.value.message
    assert "edited.onnx" in caught.value.message
    assert caught.value.hint


def test_a_truncated_model_is_refused_by_us_and_in_words_by_tensorrt(tiny: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.onnx"
    cut.write_bytes(tiny.read_bytes()[: tiny.stat().st_size // 2])
    with pytest.raises(ArtifactError, match=r"cut\.onnx"):
        make(cut, tmp_path / "x.engine")
    network, problems = trt.load("rtx").parse(cut.read_bytes(), Messages())
    assert network is None
    assert "not an ONNX model, or a truncated one" in str(parse_error("cut.onnx", problems))


def test_a_node_that_tensorrt_does_not_know_is_named() -> None:
    from onnx import helper

    values = [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, ["n", 4]) for n in "xy"]
    graph = helper.make_graph([helper.make_node("SelectiveScam", ["x"], ["y"], "scan_7")], "g", values[:1], values[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    with pytest.raises(
        MissingDependencyError, match=r"node 'scan_7' \(SelectiveScam\): TensorRT does not know a plugin"
    ):
        engine_build.parse(model, trt.load("rtx"), "m.onnx", "fp32")


def one_node(op: str, domain: str = "", opset: int = 20) -> onnx.ModelProto:
    from onnx import helper

    values = [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, ["n", 4]) for n in "xy"]
    node = helper.make_node(op, ["x"], ["y"], "node_7", domain=domain)
    opsets = [helper.make_opsetid("", opset), *([helper.make_opsetid(domain, 1)] if domain else [])]
    return helper.make_model(
        helper.make_graph([node], "g", values[:1], values[1:]), opset_imports=opsets, ir_version=10
    )


def test_what_the_real_parser_says_of_operators_it_does_not_take() -> None:
    """The gate before it refuses foreign operators; should one get through, TensorRT's own words become ours."""
    owner = trt.load("rtx")
    for op, domain, said in (
        ("aten_flip", "org.pytorch.aten", r"node 'node_7' \(aten_flip\): TensorRT does not know a plugin"),
        ("StringConcat", "", r"node 'node_7' \(StringConcat\): TensorRT does not support this operator here$"),
    ):
        network, problems = owner.parse(one_node(op, domain).SerializeToString(), Messages())
        assert network is None
        error = parse_error("m.onnx", problems)
        assert re.search(said, error.message), error.message
        assert error.hint


def test_tensorrt_takes_any_opset_so_the_gate_must_not() -> None:
    """Its parser reads opset 99 by rules of an opset it knows; nobody could say what comes out."""
    owner = trt.load("rtx")
    for opset in (5, 99):
        model = one_node("Relu", opset=opset)
        network, _ = owner.parse(model.SerializeToString(), Messages())
        assert network is not None, "the real parser has learnt to refuse it: this test may go"
        with pytest.raises(ArtifactError, match=f"uses opset {opset}; 18 to 23 can be built"):
            engine_build.parse(model, owner, "m.onnx", "fp32")


def test_profiles_that_do_not_fit(tiny: Path, tmp_path: Path) -> None:
    for options, message in (
        ({"batch": (4, 2, 8)}, "4, 2, 8 is not 1 <= min <= opt <= max"),
        ({"profiles": ("images:1x3x32x32,1x3x32x32,1x3x32x32",)}, "the model takes Nx3x64x64"),
        ({"profiles": ("image:1x3x64x64,1x3x64x64,1x3x64x64",)}, "names input 'image'"),
        ({"profiles": ("images:8x3x64x64,4x3x64x64,9x3x64x64",)}, "does not rise"),
        ({"compute_capabilities": ("sm_88",)}, "unknown compute capability 'sm_88'"),
        ({"compute_capabilities": ("sm_87",)}, "TensorRT-RTX is not made for sm_87, the GPU of a Jetson"),
        ({"compute_capabilities": ()}, "has to know for which GPUs"),
        ({"version_compatible": True}, "--version-compatible does not exist for --runtime rtx"),
        ({"profiles": ("images:1x3x64x64,1x3x64x64,1x3x64x64",) * 2}, "--profile is given 2 times"),
        ({"same_compute_capability": True}, "--same-compute-capability does not exist for --runtime rtx"),
        ({"optimization_level": 9}, "not between 0 and 5"),
    ):
        with pytest.raises(UsageError) as caught:
            make(tiny, tmp_path / "x.engine", dataclasses.replace(RTX, **options), precision="fp32")  # type: ignore[arg-type]
        assert message in caught.value.message
    assert not list(tmp_path.iterdir())


def test_float32_means_float32_unless_tf32_is_allowed(tiny: Path, tmp_path: Path) -> None:
    """TensorRT rounds the inputs of float32 products to 10 bits by default. An RTX plan spells its setting out."""
    for allowed in (False, True):
        built = make(tiny, tmp_path / f"{allowed}.engine", dataclasses.replace(RTX, tf32=allowed), precision="fp16")
        plan = built.path.read_bytes()
        settings = {b"tf32=0": plan.count(b" tf32=0"), b"tf32=1": plan.count(b" tf32=1")}
        assert bool(settings[b"tf32=1"]) == allowed, settings
        assert bool(settings[b"tf32=0"]) == (not allowed), settings
        assert read_engine_manifest(built.path).tf32 == allowed


def test_what_tensorrt_says_of_a_wrong_profile_is_translated(tiny: Path) -> None:
    owner = trt.load("rtx")
    parsed = engine_build.parse(onnx.load(tiny), owner, "vim.onnx", "fp32")
    falling = {"images": ((4, 3, 64, 64), (2, 3, 64, 64), (8, 3, 64, 64))}
    assert parsed.network.build(Config(profiles=(falling,), compute_capabilities=("sm_89",))).bad_profile
    with pytest.raises(UsageError, match="TensorRT refuses the profile images 4x3x64x64"):
        engine_build.build(parsed, RTX, (falling,), "vim.onnx")
    wrong = {"images": ((1, 3, 32, 32), (2, 3, 32, 32), (8, 3, 32, 32))}
    with pytest.raises(UsageError, match="the batch profile does not fit the model"):
        engine_build.build(parsed, RTX, (wrong,), "vim.onnx")
    with pytest.raises(UsageError, match="the batch profile does not fit the model"):
        engine_build.build(parsed, RTX, (), "vim.onnx")


def test_turing_is_refused_in_words(tiny: Path, tmp_path: Path) -> None:
    turing = dataclasses.replace(RTX, compute_capabilities=("sm_75",))
    with pytest.raises(ArtifactError, match=r"no float32 matrix product for Turing \(sm_75\)"):
        make(tiny, tmp_path / "vim.engine", turing, precision="fp16")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("said", "kind", "understood"),
    [
        ("IRuntime::deserializeCudaEngine: Error Code 1: Version tag does not match", ArtifactError, "another version"),
        ("The engine plan file is generated on an incompatible device", ArtifactError, "another GPU"),
        ("Requested amount of GPU memory could not be allocated: OutOfMemory", VimdeployError, "ran out of memory"),
        ("getPluginCreator could not find plugin: SelectiveScan version: 1", MissingDependencyError, "build-plugin"),
        (
            "IPluginRegistry::getCreator: Error Code 4: API Usage Error (Cannot find plugin: SelectiveScan)",
            MissingDependencyError,
            "build-plugin",
        ),
        (
            "vimdeploy SelectiveScan (scan_3), enqueue: the launch of variant 1 failed at B = 1: CUDA driver version "
            "is insufficient for CUDA runtime version",
            MissingDependencyError,
            "update the driver",
        ),
        (
            "vimdeploy SelectiveScan (scan_3), createPlugin: the plan was built with other kernels (aa) than this "
            "library has (bb).",
            ArtifactError,
            "Build the engine again",
        ),
        ("[graph.cpp::removeEmptyProducersFromSubgraph::96] Error Code 2: Internal Error", ArtifactError, "--fp32"),
        ("no CUDA-capable device is detected (cudaError 100)", MissingDependencyError, "--runtime rtx"),
        ("could not find any supported formats consistent with input/output", ArtifactError, "no kernel"),
        ("[myelin_graph.h:1295] MyelinCheckException: mha_fusion.cpp:3156: CHECK failed", ArtifactError, "--bf16"),
        ("something nobody has seen before", ArtifactError, "something nobody has seen before"),
    ],
)
def test_tensorrts_errors_say_what_to_do(said: str, kind: type[VimdeployError], understood: str) -> None:
    error = runtime_error("vim.engine: loading", [said])
    assert type(error) is kind
    assert understood in str(error)
    assert error.message.startswith("vim.engine: loading: ")
    assert error.hint


def test_the_plugin_path_of_tensorrt(tiny_model: onnx.ModelProto) -> None:
    """With TensorRT the functions are gone and every custom node says which plugin it is."""
    owner = trt.TensorRt(trt.Flavour.TENSORRT, trt.load("rtx").api)
    bare = onnx.ModelProto()
    bare.CopyFrom(tiny_model)
    for node in bodies.custom_nodes(bare):
        for attribute in [a for a in node.attribute if a.name in contract.PLUGIN_ATTRIBUTES]:
            node.attribute.remove(attribute)
    prepared = onnx.load_from_string(engine_build.prepare(bare, owner, "vim.onnx"))
    assert len(prepared.functions) == 0
    nodes = bodies.custom_nodes(prepared)
    assert len(nodes) == 8
    for node in nodes:
        values = {a.name: a.s.decode() for a in node.attribute if a.name in contract.PLUGIN_ATTRIBUTES}
        assert values == {"plugin_version": "1", "plugin_namespace": "vimdeploy"}
    # TensorRT-RTX's parser stands for TensorRT's: it asks for the plugin by that name and finds none.
    with pytest.raises(MissingDependencyError, match=r"CausalConv1d\): TensorRT does not know a plugin"):
        engine_build.parse(tiny_model, owner, "vim.onnx", "fp32")


def test_tensorrt_is_missing_says_so_before_any_work(tmp_path: Path) -> None:
    if trt.installed_version("tensorrt"):
        pytest.skip("TensorRT is installed here: its absence cannot be shown")
    with pytest.raises(MissingDependencyError, match="the Python package 'tensorrt' is not installed"):
        make(tmp_path / "not_even_there.onnx", tmp_path / "x.engine", BuildOptions())


def test_a_stale_manifest_is_noticed(tiny: Path, tmp_path: Path) -> None:
    model = tmp_path / "vim.onnx"
    model.write_bytes(tiny.read_bytes())
    sidecar = json.loads(tiny.with_name("vim.onnx.json").read_text())
    sidecar["onnx"]["sha256"] = "0" * 64
    (tmp_path / "vim.onnx.json").write_text(json.dumps(sidecar))
    with pytest.raises(ArtifactError, match="is not the file that its manifest describes"):
        make(model, tmp_path / "x.engine")
    assert plugin.ENVIRONMENT == "VIMDEPLOY_PLUGIN"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 99}, "has manifest schema 99; this vimdeploy reads up to 1"),
        ({"schema_version": None}, "is not a vimdeploy manifest"),
        ({"contract": None}, "contract"),
    ],
)
def test_an_onnx_of_another_vimdeploy_ends_with_a_message(
    tiny: Path, tmp_path: Path, change: dict[str, object], message: str
) -> None:
    model = tmp_path / "vim.onnx"
    model.write_bytes(tiny.read_bytes())
    sidecar = json.loads(tiny.with_name("vim.onnx.json").read_text())
    (tmp_path / "vim.onnx.json").write_text(json.dumps({**sidecar, **change}))
    arguments = ["build-engine", str(model), "--runtime", "rtx", "--compute-capability", "sm_89"]
    done = subprocess.run(
        [*CLI, *arguments], capture_output=True, text=True, check=False, env={**os.environ, "COLUMNS": "300"}
    )
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert {p.name for p in tmp_path.iterdir()} == {"vim.onnx", "vim.onnx.json"}
