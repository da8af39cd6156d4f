"""TensorRT's own errors in words: what is wrong and what to do next."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from vimdeploy.errors import ArtifactError, MissingDependencyError, UsageError, VimdeployError
from vimdeploy.tensorrt.boundary import ParseProblem


@dataclass(frozen=True)
class _Known:
    pattern: str
    kind: type[VimdeployError]
    message: str
    hint: str


_KNOWN = (
    _Known(
        r"vimdeploy \w+.*CUDA driver version is insufficient",
        MissingDependencyError,
        "the plugin library was built with a newer CUDA than this driver serves",
        "Build it again with a CUDA toolkit of the driver's major version ('nvidia-smi' shows it): "
        "vimdeploy build-plugin. Or update the driver.",
    ),
    _Known(
        r"vimdeploy \w+.*(built with other kernels|an older library wrote it)",
        ArtifactError,
        "the plan needs the plugin library that it was built with",
        "Build the engine again with 'vimdeploy build-engine', or name that library with --plugin PATH.",
    ),
    _Known(
        r"optimization profile|Dimension mismatch for tensor|MIN<=OPT<=MAX",
        UsageError,
        "the batch profile does not fit the model",
        "Give --min-batch <= --opt-batch <= --max-batch, or with --profile the model's own input name and image size "
        "('vimdeploy inspect' shows them).",
    ),
    _Known(
        r"Plugin not found|(could not|cannot) find plugin|IPluginCreator not found|getPluginCreator",
        MissingDependencyError,
        "TensorRT does not know a plugin that the model needs",
        "Build it with 'vimdeploy build-plugin' or name it with --plugin PATH; 'vimdeploy doctor' shows what is found.",
    ),
    _Known(
        r"out of memory|OutOfMemory|bad_alloc|FAILED_ALLOCATION|insufficient memory|cudaError 2\b",
        VimdeployError,
        "TensorRT ran out of memory",
        "Lower --workspace or --max-batch, or free the GPU ('nvidia-smi' shows who uses it).",
    ),
    _Known(
        r"Version tag does not match|version mismatch|plan file.*version|stdVersionRead|incompatible version",
        ArtifactError,
        "the plan was built by another version of TensorRT",
        "Build it again here with 'vimdeploy build-engine', or build it with --version-compatible.",
    ),
    _Known(
        r"incompatible device|different (GPU|device)|compute capability|[Uu]nsupported SM",
        ArtifactError,
        "the plan is for another GPU",
        "Build it again on this GPU, or build it with --hardware-compatible (Ampere and later).",
    ),
    _Known(
        r"supportsFormatCombination|could not find any supported formats|Could not find any implementation",
        ArtifactError,
        "TensorRT found no kernel for a layer in the types that the model asks for",
        "Try --fp32, a higher --optimization-level or more --workspace; if the layer is a plugin, rebuild it with "
        "'vimdeploy build-plugin'.",
    ),
    _Known(
        r"driver version is insufficient|no CUDA-capable device|cudaError (35|100)\b|CUDA initialization failure",
        MissingDependencyError,
        "TensorRT needs an NVIDIA GPU with a driver, and this machine shows none",
        "Build ahead of time with '--runtime rtx --compute-capability sm_89', or run the ONNX file in ONNX Runtime.",
    ),
    _Known(
        r"timing cache",
        ArtifactError,
        "the timing cache cannot be used",
        "Delete it, or name another with --timing-cache.",
    ),
    _Known(
        r"check_turing_op_compatibility",
        ArtifactError,
        "TensorRT-RTX has no float32 matrix product for Turing (sm_75), and the scan needs one",
        "Build for sm_80 or later; on Turing use TensorRT with the plugin, or run the ONNX file in ONNX Runtime.",
    ),
    _Known(
        r"Myelin|removeEmptyProducersFromSubgraph",
        ArtifactError,
        "TensorRT's compiler failed on this graph",
        "Try another precision (--bf16, --fp32) or --optimization-level, or another version of TensorRT; ONNX Runtime "
        "runs the ONNX file as it is.",
    ),
)
_NOISE = re.compile(r"catchCudaError")
"""Logged by TensorRT-RTX on every machine without a driver, whatever really went wrong."""


def parse_error(path: str, problems: Sequence[ParseProblem]) -> VimdeployError:
    """Translate what the ONNX parser said about ``path``."""
    if not problems:
        return ArtifactError(f"{path}: TensorRT cannot parse this file and does not say why", hint=_EXPORT_AGAIN)
    problem = problems[0]
    if problem.code == "MODEL_DESERIALIZE_FAILED":
        return ArtifactError(f"{path}: not an ONNX model, or a truncated one", hint=_EXPORT_AGAIN)
    where = f"{path}: node '{problem.node}' ({problem.op})"
    known = _match([problem.text])
    if known:
        return known.kind(f"{where}: {known.message}", hint=known.hint)
    if problem.code.startswith("UNSUPPORTED_NODE"):  # the text is a condition of TensorRT's source, often just "false"
        reason = f" ({_brief(problem.text)})" if problem.text != "false" else ""
        return ArtifactError(f"{where}: TensorRT does not support this operator here{reason}", hint=_EXPORT_AGAIN)
    return ArtifactError(f"{where}: TensorRT cannot take it: {_brief(problem.text)}", hint=_EXPORT_AGAIN)


_EXPORT_AGAIN = "Export the model again with 'vimdeploy export'."


def runtime_error(what: str, errors: Sequence[str]) -> VimdeployError:
    """Translate the errors that TensorRT logged while it did ``what`` (``vim.onnx: building``)."""
    told = [text for text in errors if not _NOISE.search(text)] or list(errors)
    known = _match(told)
    if known:
        return known.kind(f"{what}: {known.message}: {_brief(told[-1])}", hint=known.hint)
    said = "; ".join(_brief(text) for text in told[-2:]) or "it gave no reason"
    return ArtifactError(f"{what}: TensorRT failed: {said}", hint="'vimdeploy doctor' shows what this machine can do.")


def _match(texts: Sequence[str]) -> _Known | None:
    return next((k for k in _KNOWN if any(re.search(k.pattern, text, re.IGNORECASE) for text in texts)), None)


def _brief(text: str) -> str:
    """Drop source paths and call names that say nothing to a user."""
    text = re.sub(r"\.? ?\(?In \w+ at /\S+?:\d+\)?", "", text)
    text = re.sub(r"^\w+::\w+: ", "", text)
    return " ".join(text.split())[:300]
