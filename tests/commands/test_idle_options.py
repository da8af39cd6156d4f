"""An option that nothing would read is refused, in words; none is silently ignored."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from exports import DATA

import vimdeploy
from vimdeploy.commands.engine_source import Request, in_precision, read_source
from vimdeploy.errors import ArtifactError, MissingDependencyError, UsageError
from vimdeploy.native.compile import build_plugin
from vimdeploy.progress import SILENT
from vimdeploy.tensorrt.options import BuildOptions

TINY = DATA / "cls_tiny.pth"


@pytest.fixture(scope="module")
def half(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return vimdeploy.convert(tiny, tmp_path_factory.mktemp("half") / "half.onnx").path


@pytest.fixture(scope="module")
def bare(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ONNX file without a manifest."""
    path = tmp_path_factory.mktemp("bare") / "bare.onnx"
    path.write_bytes(tiny.read_bytes())
    return path


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: vimdeploy.export(TINY, official_pos_resize=True), "--official-pos-resize"),
        (lambda: vimdeploy.export(arch="vim_tiny_patch16_224", weights="ema"), "--weights ema"),
        (lambda: vimdeploy.export(TINY, arch="a", recipe="b"), "--arch and --recipe"),
        (vimdeploy.export, "Name a checkpoint"),
        (lambda: vimdeploy.export(TINY, batch=0), "--batch 0"),
        (lambda: vimdeploy.verify("vim.onnx", bf16=True), "--bf16"),
        (lambda: vimdeploy.verify("vim.onnx", ladder=True, batch=[2]), "--batch"),
        (lambda: vimdeploy.verify("vim.onnx", ladder=True, atol=1.0), "--atol"),
        (lambda: vimdeploy.verify("vim.onnx", ladder=True, ops="body"), "--ops"),
        (lambda: vimdeploy.verify("vim.onnx", samples=3, images="photos"), "--samples"),
        (lambda: vimdeploy.convert("vim.onnx", max_error=1e-3, verify=False), "--max-error"),
        (lambda: vimdeploy.convert("vim.onnx", max_error=-1.0), "--max-error -1.0: must be at least 0"),
        (lambda: vimdeploy.convert("vim.onnx", max_error=float("nan")), "--max-error nan: must be at least 0"),
        (lambda: vimdeploy.verify("vim.onnx", samples=0), "--samples 0: must be at least 1"),
        (lambda: vimdeploy.verify("vim.onnx", batch=[1, 0]), "--batch 0: must be at least 1"),
        (lambda: vimdeploy.verify("vim.onnx", rtol=-1e-3), "--rtol -0.001: must be at least 0"),
        (lambda: build_plugin(tensorrt_include=Path("x"), kernels_only=True), "--tensorrt-include"),
        (lambda: vimdeploy.convert("vim.onnx", io_dtype="bf16"), "--io-dtype bf16"),
    ],
)
def test_before_any_work(call: Callable[[], object], words: str) -> None:
    with pytest.raises(UsageError) as caught:
        call()
    assert words in caught.value.message


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (Request(precision="fp32", keep=("x",)), "--keep is for converting to half precision, and the engine is built"),
        (Request(precision="fp32", max_error=1e-3), "--max-error is for converting"),
        (Request(precision="fp32", io_dtype="fp16"), "--io-dtype is for converting"),
        (Request(precision="fp32", images=Path("photos"), verify=False), "is neither converted nor verified"),
    ],
)
def test_of_a_float32_engine(tiny: Path, request_: Request, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        in_precision(read_source(tiny), request_, SILENT)


@pytest.mark.parametrize(
    "request_",
    [Request(keep=("x",)), Request(max_error=1e-3), Request(io_dtype="fp16"), Request(images=Path("photos"))],
    ids=["keep", "max_error", "io_dtype", "images"],
)
def test_of_a_file_that_is_in_half_precision_already(half: Path, request_: Request) -> None:
    with pytest.raises(UsageError, match="is in fp16 already"):
        in_precision(read_source(half), request_, SILENT)
    assert in_precision(read_source(half), Request(), SILENT).precision == "fp16"


def test_of_a_file_without_a_manifest(bare: Path) -> None:
    with pytest.raises(UsageError, match="has no manifest"):
        in_precision(read_source(bare), Request(precision="fp16", images=Path("photos")), SILENT)
    with pytest.raises(UsageError, match="without its manifest nothing can be measured"):
        in_precision(read_source(bare), Request(precision="fp16", max_error=1e-3), SILENT)


def test_a_timing_cache_for_a_runtime_that_times_nothing(tiny: Path, tmp_path: Path) -> None:
    from vimdeploy.tensorrt.api import Flavour

    options = BuildOptions(flavour=Flavour.RTX, compute_capabilities=("sm_89",))
    with pytest.raises(UsageError, match="--timing-cache does not exist for --runtime rtx"):
        vimdeploy.build_engine(tiny, tmp_path / "x.engine", timing_cache=tmp_path, options=options)


def test_a_checkpoint_named_for_random_weights(tmp_path: Path) -> None:
    made = vimdeploy.export(output=tmp_path / "r.onnx", arch="vim_tiny_patch16_224", img_size=32, verify=False)
    with pytest.raises(UsageError, match="was exported with random weights"):
        vimdeploy.verify(made.path, checkpoint=TINY)


def test_one_value_is_as_good_as_a_list_of_one(tiny: Path, tmp_path: Path) -> None:
    """A text is one pattern, one file: not the sequence of its letters."""
    one = vimdeploy.convert(tiny, tmp_path / "one.onnx", keep="*scan*", verify=False)
    several = vimdeploy.convert(tiny, tmp_path / "several.onnx", keep=["*scan*"], verify=False)
    assert one.path.read_bytes() == several.path.read_bytes()
    assert one.half.report.nodes > 0, "each letter alone, and so the star, would keep every node"
    found = vimdeploy.verify(tiny, checkpoint=TINY, batch=2, samples=2, ops="body")
    assert {result.batch for result in found.report.results} == {2}  # type: ignore[union-attr]
    with pytest.raises(ArtifactError, match=r"missing\.engine: there is no such file"):
        vimdeploy.verify(tiny, engine="missing.engine")


def test_an_engine_that_is_not_there(tiny: Path) -> None:
    with pytest.raises(ArtifactError, match=r"missing\.engine: there is no such file"):
        vimdeploy.verify(tiny, engine=["missing.engine"])


def test_an_engine_that_was_not_run_is_not_proven(tiny: Path, tmp_path: Path) -> None:
    from vimdeploy.runtime.cuda import CudaDevice
    from vimdeploy.tensorrt.api import Flavour

    try:
        CudaDevice()
    except MissingDependencyError:
        pass
    else:
        pytest.skip("a GPU is here: the engine would run")
    options = BuildOptions(flavour=Flavour.RTX, compute_capabilities=("sm_89",), optimization_level=0)
    built = vimdeploy.build_engine(tiny, tmp_path / "vim.engine", precision="fp32", options=options)
    found = vimdeploy.verify(tiny, checkpoint=TINY, engine=[built.path], samples=2)
    assert not found.passed
    assert not found.to_dict()["passed"]
    with pytest.raises(MissingDependencyError, match=r"vim\.engine: was not run: no NVIDIA GPU"):
        found.raise_unless_passed()
    with pytest.raises(UsageError, match="one rung for each precision"):
        vimdeploy.verify(tiny, engine=[built.path, built.path])
