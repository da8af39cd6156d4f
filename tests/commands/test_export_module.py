"""``export_module``: every way of calling Mamba's kernels, and what is refused, detected and left behind."""

import importlib
import json
import shutil
import sys

import numpy as np
import onnx
import onnx.inliner
import onnxruntime
import pytest
import torch
from torch import nn

import vimdeploy
from vimdeploy import contract
from vimdeploy.artifacts.golden import golden_path, read_golden
from vimdeploy.artifacts.manifest import manifest_path, read_manifest
from vimdeploy.commands.convert import convert
from vimdeploy.commands.export_module import export_module
from vimdeploy.commands.verify import verify
from vimdeploy.errors import ArtifactError, CheckpointError, ModelError, UsageError, VerificationError
from vimdeploy.interop.refusal import UnsupportedCallError
from vimdeploy.parity.metrics import as_rows, relative_rms
from vimdeploy.tensorrt.options import BuildOptions, Flavour

STYLE_NAMES = (
    "KernelWithGate", "KernelCore", "KernelOflex", "KernelWithoutC", "KernelOfOneState", "ScanFn", "ScanFnWithGroups",
    "ScanFnWithoutSoftplus", "InnerFn", "TwoDirections", "BimambaInnerFn", "ConvKernel", "ConvFn", "ConvFunction",
    "PlainConv", "ModuleMamba", "ModuleMamba2", "ChunkScan", "SplitScan", "TritonNorms", "GatedNorm", "LocalScan",
)  # fmt: skip


def make(name):
    with vimdeploy.substitute_mamba_ssm():
        theirs = importlib.import_module("their_modules")
        assert {style.__name__ for style in theirs.STYLES} == set(STYLE_NAMES)
        return theirs.make(name), theirs.KERNELS.get(name, 1)


def tokens(batch=2, length=16):
    torch.manual_seed(1)
    return torch.randn(batch, length, 8)


@pytest.fixture(scope="module", params=STYLE_NAMES)
def style(request, tmp_path_factory):
    """Return an exported style, for any batch and any length."""
    module, kernels = make(request.param)
    path = tmp_path_factory.mktemp("styles") / f"{request.param}.onnx"
    length = 8 if request.param == "LocalScan" else True
    return export_module(module, tokens(), path, dynamic={"batch": True, "length": length}), kernels


def test_every_style_exports_for_any_batch_and_length(style):
    made, kernels = style
    scans = sum(n for name, n in made.manifest.onnx.custom_ops.items() if name.startswith("SelectiveScan"))
    assert scans <= kernels
    assert made.report.passed
    assert {(r.batch, r.output) for r in made.report.results} == {(b, "output") for b in (1, 2, 3)}
    assert max(r.metrics.relative_rms for r in made.report.results) < 1e-5
    model = onnx.load(made.path)
    assert [d.dim_param or d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim] == [
        "batch",
        "length",
        8,
    ]
    assert {node.domain for node in model.graph.node} <= {"", contract.DOMAIN}
    assert not {"Loop", "Scan"} & {node.op_type for node in model.graph.node}


def test_every_style_runs_portably_without_functions(style):
    made, _ = style
    inlined = onnx.inliner.inline_local_functions(onnx.load(made.path))
    session = onnxruntime.InferenceSession(inlined.SerializeToString(), providers=["CPUExecutionProvider"])
    for case in read_golden(made.path, made.manifest.module.golden_sha256):
        outputs = session.run(list(case.outputs), case.inputs.arrays)
        for found, expected in zip(outputs, case.outputs.values(), strict=True):
            assert relative_rms(as_rows(found), as_rows(expected)) < 1e-5


def test_every_style_converts_to_fp16_and_is_verified_by_its_golden_outputs(style, tmp_path):
    made, _ = style
    half = tmp_path / "half.onnx"
    converted = convert(made.path, half, max_error=2e-2)
    assert converted.half.metrics.passed
    assert verify(half, atol=0.05, rtol=0.05).passed
    assert verify(made.path).passed


@pytest.mark.parametrize("name", ["ModuleMamba", "ModuleMamba2", "TwoDirections"])
def test_tensorrt_rtx_builds_it_for_any_batch_and_length(name, tmp_path):
    module, _ = make(name)
    made = export_module(module, tokens(), tmp_path / "m.onnx", dynamic={"batch": True, "length": True})
    options = BuildOptions(flavour=Flavour.RTX, compute_capabilities=("sm_89",))
    built = vimdeploy.build_engine(made.path, precision="fp32", options=options)
    assert built.manifest.profiles == (made.manifest.module.profile,)


@pytest.mark.parametrize("name", ["KernelOflex", "ModuleMamba2", "TwoDirections"])
def test_a_fixed_batch_is_fixed(name, tmp_path):
    module, _ = make(name)
    made = export_module(module, tokens(3), tmp_path / "fixed.onnx")
    assert made.manifest.module.inputs[0].shape == (3, 16, 8)
    assert made.manifest.batch.min == made.manifest.batch.max == 3
    with vimdeploy.load(made.path) as session:
        assert session(tokens(3).numpy()).shape == (3, 16, 8)


class Containers(nn.Module):
    """Takes and gives nested containers, named arguments and None."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, pair, options=None, *, scale=None):
        a, b = pair["a"], pair["b"]
        y = self.linear(a) + b + (0 if scale is None else scale)
        return {"sum": y, "parts": [a * 2, None, (b.mean(1),)]}


def test_containers_of_inputs_and_outputs(tmp_path):
    module, pair = Containers(), {"a": torch.randn(2, 4), "b": torch.randn(2, 4)}
    made = export_module(
        module, (pair, None), tmp_path / "m.onnx", example_kwargs={"scale": torch.ones(2, 4)}, dynamic={"batch": True}
    )
    assert [t.name for t in made.manifest.module.inputs] == ["pair_a", "pair_b", "scale"]
    assert [t.name for t in made.manifest.outputs] == ["sum", "parts_0", "parts_2_0"]
    assert made.manifest.preprocessing is None
    with vimdeploy.load(made.path) as session:
        feed = {"pair_a": np.ones((3, 4), "f4"), "pair_b": np.zeros((3, 4), "f4"), "scale": np.ones((3, 4), "f4")}
        assert session.run(feed)["parts_0"].tolist() == (2 * np.ones((3, 4))).tolist()
    convert(made.path, tmp_path / "half.onnx")
    with pytest.raises(UsageError, match="takes no images"):
        made.manifest.image_input()


def test_names_of_blocks_come_from_the_module_tree_and_serve_the_conversion(tmp_path):
    with vimdeploy.substitute_mamba_ssm():
        from mamba_ssm import Mamba

        torch.manual_seed(0)
        module = nn.Sequential(nn.Linear(8, 8), nn.ModuleDict({"layers": nn.Sequential(Mamba(8), Mamba(8))})["layers"])
    made = export_module(module, tokens(), tmp_path / "m.onnx", dynamic={"batch": True})
    assert made.manifest.module.blocks == ("1.0", "1.1")
    names = {output for node in onnx.load(made.path).graph.node for output in node.output}
    assert "block.0.output" in names


def test_the_module_is_left_as_it_was(tmp_path):
    module, _ = make("ModuleMamba")
    module.train()
    module.conv1d.eval()
    before = {n: p.training for n, p in module.named_modules()}
    export_module(module, tokens(), tmp_path / "m.onnx")
    assert {n: p.training for n, p in module.named_modules()} == before
    assert not any(p._forward_hooks or p._forward_pre_hooks for p in module.modules())
    assert "int" not in sys.modules[__name__].__dict__


# ---- what is refused and detected ------------------------------------------------------------------------------------


class BakedBatch(nn.Module):
    def forward(self, x):
        count = round(x.shape[0] / 1.0)
        return x.reshape(count, -1)


class UnrolledBatch(nn.Module):
    def forward(self, x):
        return torch.stack([x[i] * 2 for i in range(x.shape[0])])


class BakedSize(nn.Module):
    def forward(self, x):
        return x.mean(1) * x.shape[1:].numel()


class SafeInt(nn.Module):
    """What MambaVision writes: symbolic in spite of int()."""

    def forward(self, x):
        return x.reshape(int(x.shape[0] * x.shape[1] / 4 / 2), -1)


class Random(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.noise = nn.Linear(8, 8), Noise()

    def forward(self, x):
        return self.noise(self.first(x))


class Noise(nn.Module):
    def forward(self, x):
        return x + torch.rand_like(x)


class ByValue(nn.Module):
    def forward(self, x):
        return x.reshape(int(x.abs().max()) + 1, -1)


class Branch(nn.Module):
    def forward(self, x):
        return x * 2 if x.sum() > 0 else x


class States(nn.Module):
    def forward(self, x):
        from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

        u = x.transpose(1, 2)
        y, last = selective_scan_fn(u, u, -torch.ones(8, 2), u[:, :2], u[:, :2], return_last_state=True)
        return y, last


class Broken(nn.Module):
    def forward(self, x):
        return x @ x


REFUSED = {
    "a baked batch": (BakedBatch, {"batch": True}, (ModelError, VerificationError), r"return x\.reshape\(count, -1\)"),
    "an unrolled batch": (UnrolledBatch, {"batch": True}, (ModelError, VerificationError), r"range\(x\.shape\[0\]\)"),
    "a baked size": (BakedSize, {"length": True}, (ModelError, VerificationError), r"x\.shape\[1:\]\.numel\(\)"),
    "a random operator": (Random, {"batch": True}, ModelError, r"'noise' \(Noise\)"),
    "a shape by value": (ByValue, None, ModelError, r"x\.reshape\(int"),
    "a branch by value": (Branch, None, ModelError, r"if x\.sum\(\) > 0"),
    "carried states": (States, None, (ModelError, UnsupportedCallError), "last state"),
    "a module that fails": (Broken, None, ModelError, r"return x @ x"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_planted_faults_are_named_with_their_line_and_nothing_is_written(case, tmp_path):
    cls, dynamic, kind, pattern = REFUSED[case]
    with pytest.raises(kind, match=pattern):
        export_module(cls(), tokens(), tmp_path / "m.onnx", dynamic=dynamic)
    assert list(tmp_path.iterdir()) == []


def test_a_quotient_of_sizes_stays_symbolic(tmp_path):
    made = export_module(SafeInt(), tokens(), tmp_path / "m.onnx", dynamic={"batch": True})
    assert {r.batch for r in made.report.results} == {1, 2, 3}


def test_a_stub_that_is_called_is_named(tmp_path, monkeypatch):
    (tmp_path / "calls_a_stub.py").write_text(
        "import torchaudio\nfrom torch import nn\nclass Model(nn.Module):\n"
        "    def forward(self, x):\n        return torchaudio.functional.gain(x)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    with vimdeploy.substitute_mamba_ssm():
        model = importlib.import_module("calls_a_stub").Model()
    with pytest.raises(UnsupportedCallError, match=r"torchaudio\.functional\.gain was called"):
        export_module(model, tokens(), tmp_path / "m.onnx")


@pytest.mark.parametrize("fault", ["swapped B and C", "dropped delta bias"])
def test_a_substitute_that_computes_something_else_is_seen_by_the_golden_outputs(fault, tmp_path):
    module, _ = make("ScanFn")
    made = export_module(module, tokens(), tmp_path / "m.onnx", dynamic={"batch": True})
    model = onnx.load(made.path)
    (scan,) = [node for node in model.graph.node if node.domain == contract.DOMAIN]
    if fault == "swapped B and C":
        scan.input[3], scan.input[4] = scan.input[4], scan.input[3]
    else:
        bias = next(t for t in model.graph.initializer if t.name == scan.input[6])
        bias.CopyFrom(onnx.numpy_helper.from_array(np.zeros(8, "f4"), bias.name))
    onnx.save(model, made.path)
    assert not verify(made.path).passed


def test_golden_outputs_that_are_missing_or_others_are_named(tmp_path):
    module, _ = make("ScanFn")
    made = export_module(module, tokens(), tmp_path / "m.onnx")
    golden = golden_path(made.path)
    content = golden.read_bytes()
    golden.write_bytes(content[:-10])
    with pytest.raises(ArtifactError, match="SHA-256 differs"):
        verify(made.path)
    golden.unlink()
    with pytest.raises(ArtifactError, match="are missing"):
        verify(made.path)


def test_a_checkpoint_is_loaded_strictly_and_the_difference_is_listed(tmp_path):
    module, _ = make("ScanFn")
    good, bad = tmp_path / "good.pth", tmp_path / "bad.pth"
    state = {k: v + 0.1 for k, v in module.state_dict().items()}
    torch.save({"weights": state, "epoch": 3}, good)
    made = export_module(module, tokens(), tmp_path / "m.onnx", checkpoint=good, key="weights")
    assert made.manifest.checkpoint.file == "good.pth"
    torch.testing.assert_close(module.state_dict()["D"], state["D"])
    torch.save({"D": torch.zeros(3), "extra": torch.zeros(1)}, bad)
    with pytest.raises(CheckpointError, match=r"missing.*1 unexpected \(extra\).*1 of another shape \(D: \(3,\)"):
        export_module(module, tokens(), tmp_path / "n.onnx", checkpoint=bad)
    with pytest.raises(CheckpointError, match="no entry 'nothing'") as caught:
        export_module(module, tokens(), tmp_path / "n.onnx", checkpoint=good, key="nothing")
    assert "epoch" in caught.value.hint


@pytest.mark.parametrize(
    ("dynamic", "pattern"),
    [
        ({"sise": 8}, "'sise' is neither"),
        ({"size": 8}, "no input has it"),
        ({"length": "x"}, "positive number"),
        ({"length": 5}, "no multiple of 5"),
        ({"x": {7: "far"}}, "there is no 7"),
    ],
)
def test_a_dynamic_size_that_does_not_exist_is_explained(dynamic, pattern, tmp_path):
    module, _ = make("ScanFn")
    with pytest.raises(UsageError, match=pattern):
        export_module(module, tokens(), tmp_path / "m.onnx", dynamic=dynamic)


def test_other_bad_arguments_are_explained(tmp_path):
    module, _ = make("ScanFn")
    with pytest.raises(UsageError, match=r"an \.onnx file"):
        export_module(module, tokens(), tmp_path / "m.engine")
    with pytest.raises(UsageError, match="hold no tensor"):
        export_module(module, (3,), tmp_path / "m.onnx")
    with pytest.raises(UsageError, match="1 output tensors, 2 names"):
        export_module(module, tokens(), tmp_path / "m.onnx", names={"outputs": ["a", "b"]})
    with pytest.raises(UsageError, match="opset 3"):
        export_module(module, tokens(), tmp_path / "m.onnx", opset=3)


def test_two_exports_give_the_same_files(tmp_path):
    module, _ = make("TritonNorms")
    first = export_module(module, tokens(), tmp_path / "a.onnx", dynamic={"batch": True})
    second = export_module(module, tokens(), tmp_path / "b.onnx", dynamic={"batch": True})
    assert first.path.read_bytes() == second.path.read_bytes()
    assert golden_path(first.path).read_bytes() == golden_path(second.path).read_bytes()
    for path in (first.path, second.path):
        manifest = read_manifest(path)
        assert manifest.module.substituted
        assert str(tmp_path) not in json.dumps(json.loads(manifest_path(path).read_text()))
    shutil.rmtree(tmp_path)
