"""The precision pass: what goes down, what stays, what it costs, and what it refuses."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from exports import DATA, cli, relative_rms
from onnx import helper, numpy_helper

from vimdeploy import contract
from vimdeploy.artifacts.manifest import read_manifest
from vimdeploy.backends.onnxruntime import OnnxBackend
from vimdeploy.commands.convert import HalfOptions, convert, to_half
from vimdeploy.errors import ArtifactError, UsageError, VerificationError
from vimdeploy.graph.check import check_model
from vimdeploy.graph.emulate import emulate
from vimdeploy.graph.policy import BF16, FP16, POLICY, Policy, Precision, Rule, policy_table
from vimdeploy.graph.precision import convert as lower
from vimdeploy.graph.precision import convert_model
from vimdeploy.parity.ranges import measure


def images(size: int = 64, batch: int = 2, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(batch, 3, size, size)).astype(np.float32)


def run(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    return next(iter(OnnxBackend(model).run(x).values()))


def types(model: onnx.ModelProto) -> dict[str, int]:
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    graph = inferred.graph
    known = {v.name: v.type.tensor_type.elem_type for v in (*graph.value_info, *graph.input, *graph.output)}
    return known | {t.name: t.data_type for t in graph.initializer}


@pytest.mark.parametrize("precision", [FP16, BF16], ids=lambda p: p.name)
def test_vim_ti_takes_at_most_60_casts_and_every_type_agrees(vim_ti: Path, precision: object) -> None:
    model = onnx.load(vim_ti)
    converted, report = convert_model(model, precision)  # type: ignore[arg-type]
    casts = sum(node.op_type == "Cast" for node in converted.graph.node)
    assert casts == report.casts <= 60
    assert report.kept == []
    check_model(converted, "vim_ti.onnx")  # the full checker, strict shape inference and the bodies of the custom ops
    share = report.half_weight_bytes / (report.half_weight_bytes + report.float_weight_bytes)
    assert share > 0.85
    half = precision.dtype.value  # type: ignore[attr-defined]
    known = types(converted)
    for node in converted.graph.node:
        if (node.domain, node.op_type) in POLICY:
            op = contract.OPS.get(node.op_type)
            for index, name in enumerate(node.input):
                wanted = half if op is None or op.inputs[index].dtype == "T" else onnx.TensorProto.FLOAT
                assert known[name] == wanted, (node.name, name)
        if node.op_type in ("ReduceMean", "Sqrt", "Reciprocal"):
            assert {known[n] for n in node.output} == {onnx.TensorProto.FLOAT}, node.name
    assert {known[f"block.{i}.residual"] for i in range(24)} == {onnx.TensorProto.FLOAT}


def test_the_policy_table_is_the_contract() -> None:
    rows = {op: (inputs, output) for op, inputs, output, _ in policy_table()}
    assert rows["SelectiveScan"] == ("u, x_dbl, dt_weight, z", "half")
    assert rows["SelectiveScanNoGate"] == ("u, x_dbl, dt_weight", "float32")
    assert rows["CausalConv1d"] == ("x, weight, bias", "half")
    assert rows["everything else"][0] == "none"


def test_fp16_costs_little_more_than_its_weights_do(vim_ti: Path) -> None:
    """Rounding the weights alone sets a floor that no policy can go below; the activations may not double it."""
    golden = np.load(DATA / "full_tiny224.npz")
    model = onnx.load(vim_ti)
    converted, _ = convert_model(model, FP16)
    rounded = onnx.ModelProto()
    rounded.CopyFrom(model)
    lowered = {t.name.removesuffix("_fp16") for t in converted.graph.initializer if t.data_type == FP16.dtype.value}
    for tensor in rounded.graph.initializer:
        if tensor.name in lowered:
            value = numpy_helper.to_array(tensor).astype(np.float16).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
    floor = relative_rms(run(rounded, golden["images"]), golden["logits"])
    error = relative_rms(run(emulate(converted), golden["images"]), golden["logits"])
    print(f"relative RMS of the logits: FP16 {error:.2e}, weights alone {floor:.2e}")
    assert floor < error <= 2 * floor
    assert error <= 8e-3
    assert run(converted, golden["images"]).argmax() == golden["logits"].argmax()


def test_a_golden_model_keeps_the_contract_in_fp16(tiny: Path, tmp_path: Path) -> None:
    converted = convert(tiny, tmp_path / "half.onnx").half
    assert converted.metrics is not None
    assert converted.metrics.passed
    manifest = read_manifest(tmp_path / "half.onnx")
    assert manifest.conversion is not None
    assert manifest.conversion["precision"] == "fp16"
    assert manifest.conversion["source_sha256"] == read_manifest(tiny).onnx.sha256
    assert manifest.parity is None
    assert (tmp_path / "half.onnx").stat().st_size < 0.7 * tiny.stat().st_size
    golden = np.load(DATA / "cls_tiny.npz")
    np.testing.assert_allclose(run(converted.model, golden["images"]), golden["logits"], atol=2e-2)


@pytest.mark.parametrize(("precision", "bound"), [(FP16, 3e-3), (BF16, 3e-2)], ids=lambda p: getattr(p, "name", ""))
def test_emulation_rounds_every_half_value_and_nothing_else(
    tiny_model: onnx.ModelProto, precision: Precision, bound: float
) -> None:
    converted, _ = convert_model(tiny_model, precision)
    emulated = emulate(converted)
    check_model(emulated, "emulated")
    known = {v.name: v for v in (*emulated.graph.input, *emulated.graph.output)}
    assert all(v.type.tensor_type.elem_type == onnx.TensorProto.FLOAT for v in known.values())
    names = ["block.1.hidden", "block.1.residual", "causal_conv1d_1", "selective_scan_2"]
    values = OnnxBackend(emulated, taps=names).run(images())
    for name in names:
        array = values[name].astype(np.float32)
        rounded = array.astype(precision.dtype.numpy()).astype(np.float32)
        assert np.array_equal(array, rounded) == (name != "block.1.residual"), name
    assert 1e-5 < relative_rms(values["logits"], run(tiny_model, images())) < bound


def test_half_inputs_and_outputs_on_request(tiny_model: onnx.ModelProto) -> None:
    converted, report = convert_model(tiny_model, FP16, half_io=True)
    plain, plain_report = convert_model(tiny_model, FP16)
    check_model(converted, "half_io")
    for value in (converted.graph.input[0], converted.graph.output[0]):
        assert value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT16
    assert converted.graph.output[0].name == plain.graph.output[0].name == "logits"
    assert report.casts == plain_report.casts - 2
    assert relative_rms(run(converted, images()), run(plain, images())) < 5e-3


def test_nodes_are_kept_by_pattern(tiny_model: onnx.ModelProto) -> None:
    converted, report = convert_model(tiny_model, FP16, Policy(keep=("node_linear", "node_selective_scan*")))
    known = types(converted)
    scans = [n for n in converted.graph.node if n.op_type == "SelectiveScan"]
    assert {known[n.input[0]] for n in scans} == {onnx.TensorProto.FLOAT}
    _, plain = convert_model(tiny_model, FP16)
    assert report.nodes == plain.nodes - len(scans) - 1
    with pytest.raises(UsageError, match="no node is named like"):
        convert_model(tiny_model, FP16, Policy(keep=("blocks.*",)))


def edited(model: onnx.ModelProto, name: str, change: object) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    (tensor,) = [t for t in copy.graph.initializer if t.name == name]
    tensor.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(tensor).copy()), name))  # type: ignore[operator]
    return copy


@pytest.mark.parametrize(
    ("value", "precision", "reason"),
    [
        (1e5, FP16, "beyond FP16's 65504"),
        (float("nan"), FP16, "reaches nan"),
        (1e5, BF16, ""),
    ],
)
def test_weights_out_of_range_keep_their_node(
    tiny_model: onnx.ModelProto, value: float, precision: object, reason: str
) -> None:
    def plant(weight: np.ndarray) -> np.ndarray:
        weight.flat[7] = value
        return weight

    converted, report = convert_model(
        edited(tiny_model, "model.layers.1.mixer.in_z", plant),
        precision,  # type: ignore[arg-type]
    )
    if not reason:
        assert report.kept == []
        return
    (kept,) = report.kept
    assert kept.op == "MatMul"
    assert "model.layers.1.mixer.in_z" in kept.reason
    assert reason in kept.reason
    check_model(converted, "kept")


def test_weights_too_small_for_fp16_keep_their_node(tiny_model: onnx.ModelProto) -> None:
    _, report = convert_model(edited(tiny_model, "model.layers.0.mixer.out", lambda w: w * 1e-7), FP16)
    assert ["no precision left" in k.reason for k in report.kept] == [True]


def test_activations_out_of_range_are_found_on_samples(tiny_model: onnx.ModelProto) -> None:
    loud = edited(tiny_model, "model.layers.2.mixer.out", lambda w: w * 5e4)
    converted, report = convert_model(loud, FP16, ranges=measure(loud, images()))
    assert {k.op for k in report.kept} == {"MatMul"}
    assert "output block.2.hidden reaches" in report.kept[0].reason
    assert np.isfinite(run(emulate(converted), images())).all()
    blind, _ = convert_model(loud, FP16)
    assert not np.isfinite(run(emulate(blind), images())).all(), "without the measurement this overflows on a GPU"


def test_what_cannot_be_converted_is_refused(tiny_model: onnx.ModelProto) -> None:
    half, _ = convert_model(tiny_model, FP16)
    with pytest.raises(UsageError, match="half precision already"):
        convert_model(half, FP16)
    with pytest.raises(UsageError, match="no precision 'fp8'"):
        to_half(tiny_model, None, HalfOptions(precision="fp8"), "x")


def test_bf16_declares_the_opset_it_needs(tiny_model: onnx.ModelProto) -> None:
    converted, _ = convert_model(tiny_model, BF16)
    assert {e.domain: e.version for e in converted.opset_import} == {"": 22, contract.DOMAIN: contract.OP_VERSION}
    assert all(e.version == 22 for f in converted.functions for e in f.opset_import if not e.domain)


def test_a_in_fp16_is_refused_by_the_type_gate(tiny_model: onnx.ModelProto) -> None:
    """mamba #72: an A that is rounded towards 0 accumulates for ever."""
    rules = dict(POLICY) | {(contract.DOMAIN, "SelectiveScan"): Rule((0, 1, 2, 4, 6), True, "planted")}
    converted, _ = convert_model(tiny_model, FP16, Policy(rules=rules))
    with pytest.raises(ArtifactError, match="SelectiveScan"):
        check_model(converted, "planted.onnx")


def test_a_chain_of_one_type_is_cast_at_its_ends_only() -> None:
    array = np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32)
    weights = [numpy_helper.from_array(array, f"w{i}") for i in range(94)]
    nodes = [helper.make_node("MatMul", [f"x{i}", f"w{i}"], [f"x{i + 1}"], name=f"n{i}") for i in range(94)]
    values = [helper.make_tensor_value_info(f"x{i}", onnx.TensorProto.FLOAT, ["n", 64]) for i in (0, 94)]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    _, report = convert_model(model, FP16)
    assert (report.nodes, report.casts) == (94, 2)


def test_a_broken_contract_writes_nothing(tiny: Path, tmp_path: Path) -> None:
    source = tmp_path / "vim.onnx"
    source.write_bytes(tiny.read_bytes())
    sidecar = json.loads(tiny.with_name("vim.onnx.json").read_text())
    sidecar["contract"]["fp16"]["relative_rms"] = 1e-9
    source.with_name("vim.onnx.json").write_text(json.dumps(sidecar))
    with pytest.raises(VerificationError, match="relative RMS"):
        convert(source, tmp_path / "half.onnx")
    assert not list(tmp_path.glob("half*"))
    with pytest.raises(UsageError, match="is the file to convert"):
        convert(source, source)


def test_control_flow_in_the_main_graph_is_refused(tiny_model: onnx.ModelProto) -> None:
    inlined = onnx.inliner.inline_local_functions(tiny_model)
    assert Counter(n.op_type for n in inlined.graph.node)["Scan"]
    with pytest.raises(UsageError, match="control flow"):
        lower(ir.from_proto(inlined), FP16)


def test_the_command_converts_and_names_what_it_keeps(tiny: Path, tmp_path: Path) -> None:
    source = tmp_path / "vim.onnx"
    for suffix in ("", ".json"):
        (tmp_path / f"vim.onnx{suffix}").write_bytes(tiny.with_name(f"vim.onnx{suffix}").read_bytes())
    done = cli("convert", str(source), "--bf16", "--keep", "node_linear", "--json")
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts["path"] == str(tmp_path / "vim.bf16.onnx")
    assert facts["metrics"]["passed"]
    assert facts["casts"] == convert_model(onnx.load(tiny), BF16, Policy(keep=("node_linear",)))[1].casts
    for arguments, message in (
        (["--fp16", "--bf16"], "--fp16 and --bf16 exclude each other"),
        (["--io-dtype", "fp8"], "'fp8' is not one of 'fp32', 'fp16', 'bf16'"),
        (["--keep", "nothing*"], "no node is named like 'nothing*'"),
        (["-o", str(tmp_path / "absent" / "x.onnx")], "its folder does not exist"),
    ):
        refused = cli("convert", str(source), *arguments)
        assert refused.returncode == 2
        assert message in refused.stderr
        assert "Traceback" not in refused.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "vim.bf16.onnx",
        "vim.bf16.onnx.json",
        "vim.onnx",
        "vim.onnx.json",
    ]


def test_a_quantised_model_is_not_rounded_on_top(tiny_model: onnx.ModelProto) -> None:
    quantised = onnx.ModelProto()
    quantised.CopyFrom(tiny_model)
    node = helper.make_node("DequantizeLinear", ["q", "scale"], ["w"], "dequantise_w")
    quantised.graph.node.insert(0, node)
    for precision in ("fp16", "bf16"):
        with pytest.raises(ArtifactError, match=r"m\.onnx: is quantised already \(node 'dequantise_w'") as caught:
            to_half(quantised, None, HalfOptions(precision), "m.onnx")
        assert "--fp32" in str(caught.value)
