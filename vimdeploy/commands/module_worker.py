"""The process in which a module of the user's is imported, built and exported: ``python -m``, a request on stdin.

It is a process of its own because substituting mamba_ssm changes what can be imported, and because code of the user's
may print, change global state or crash. What it prints goes to stderr; the answer is one line of JSON on stdout.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import traceback
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, Any

from vimdeploy.errors import UsageError, VimdeployError
from vimdeploy.progress import Reporter

_VERSIONS = ("vimdeploy", "torch", "onnx", "onnxscript", "onnxruntime", "timm", "einops", "numpy")
_TYPES = ("float32", "float16", "bfloat16", "float64", "int64", "int32", "bool")


@dataclass(frozen=True)
class ModuleRequest:
    """What is exported, or built again to be compared with golden outputs."""

    entry: str
    output: str
    inputs: tuple[str, ...] = ()
    """``[NAME=]1x3x224x224[:int64]`` each."""
    kwargs: dict[str, Any] = field(default_factory=dict)
    import_paths: tuple[str, ...] = ()
    dynamic: dict[str, Any] = field(default_factory=dict)
    checkpoint: str | None = None
    key: str | None = None
    opset: int = 20
    verify: bool = True
    rewrites: tuple[str, ...] | None = None
    stubs: tuple[str, ...] = ()
    report: str | None = None
    reproduce: bool = False
    """Build the module and run it on the golden inputs of ``output`` instead of exporting it."""

    def to_json(self) -> str:
        """Return one line."""
        return json.dumps(asdict(self))


def main() -> None:
    """Answer the request on stdin."""
    answer_to = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the user's code prints is no answer
    data: dict[str, Any] = json.loads(sys.stdin.readline())
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
    request = ModuleRequest(**values)
    stages: list[str] = []
    try:
        answer = _reproduce(request) if request.reproduce else _export(request, stages)
    except VimdeployError as error:
        answer = {"error": {"message": error.message, "hint": error.hint, "exit_code": error.exit_code}}
        _write_report(request, stages, error)
    except KeyboardInterrupt:
        answer = {"interrupted": True}
    except Exception as error:
        text = traceback.format_exception_only(error)[-1].strip()
        answer = {"internal": {"summary": text, "traceback": traceback.format_exc()}}
        _write_report(request, stages, error)
    _say(answer_to, answer)


class _Stages(Reporter):
    """Prints stages to stderr and keeps them for a report."""

    def __init__(self, stages: list[str]) -> None:
        self._stages = stages

    def stage(self, text: str) -> None:
        self._stages.append(text)
        print(f"{text} ...", file=sys.stderr, flush=True)


def _say(stream: IO[str], answer: Mapping[str, Any]) -> None:
    stream.write(json.dumps(answer) + "\n")
    stream.flush()


def _export(request: ModuleRequest, stages: list[str]) -> dict[str, Any]:
    from vimdeploy.commands.export_module import export_module
    from vimdeploy.commands.module_source import build_module, on_path
    from vimdeploy.interop.context import substitute_mamba_ssm

    folders = [Path(p) for p in request.import_paths]

    told = _Stages(stages)
    with substitute_mamba_ssm(stubs=request.stubs), on_path(folders):
        told.stage(f"Importing {request.entry}")
        module = build_module(request.entry, request.kwargs)
        args, kwargs = _inputs(request.inputs)
        made = export_module(
            module,
            args,
            request.output,
            example_kwargs=kwargs,
            dynamic=request.dynamic or None,
            checkpoint=request.checkpoint,
            key=request.key,
            opset=request.opset,
            verify=request.verify,
            rewrites=request.rewrites,
            stubs=request.stubs,
            entry=request.entry,
            entry_kwargs=request.kwargs,
            import_paths=folders,
            reporter=told,
        )
    notes = [made.substitution.in_words(), *made.notes]
    _write_report(request, stages, None, notes)
    return {"path": str(made.path), "notes": notes, "traced_nodes": made.traced_nodes}


def _reproduce(request: ModuleRequest) -> dict[str, Any]:
    """Build the module again and compare it with the golden outputs of its file."""
    import torch

    from vimdeploy.artifacts.golden import read_golden
    from vimdeploy.artifacts.manifest import read_manifest
    from vimdeploy.commands import module_proof as proof
    from vimdeploy.commands.module_source import build_module, load_weights, on_path
    from vimdeploy.graph.trace import FlatModule
    from vimdeploy.interop.context import substitute_mamba_ssm
    from vimdeploy.parity.metrics import relative_rms

    path = Path(request.output)
    manifest = read_manifest(path)
    assert manifest.module is not None
    worst = 0.0
    with substitute_mamba_ssm(stubs=request.stubs), on_path([Path(p) for p in request.import_paths]):
        module = build_module(request.entry, request.kwargs)
        if request.checkpoint:
            load_weights(module, Path(request.checkpoint), request.key)
        module.eval()
        for case in read_golden(path, manifest.module.golden_sha256):
            tensors = [torch.from_numpy(array) for array in case.inputs.arrays.values()]
            outputs = proof.run(FlatModule(module, tensors, {}), tensors)
            for (name, expected), output in zip(case.outputs.items(), outputs, strict=True):
                found = output.numpy()
                if found.shape != expected.shape:
                    raise UsageError(f"{request.entry}: {name} is {found.shape} now, {expected.shape} when exported.")
                worst = max(worst, relative_rms(found, expected))
    return {"relative_rms": worst}


def _inputs(texts: tuple[str, ...]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return random example inputs: positional ones, and those that have a name."""
    import torch

    torch.manual_seed(0)
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    for text in texts:
        name, shape, dtype = parse_input(text)
        kind = getattr(torch, dtype)
        tensor = torch.randn(shape).to(kind) if kind.is_floating_point else torch.randint(0, 2, shape).to(kind)
        if name:
            kwargs[name] = tensor
        else:
            args.append(tensor)
    return tuple(args), kwargs


def parse_input(text: str) -> tuple[str, tuple[int, ...], str]:
    """Return name (or nothing), shape and dtype of ``[NAME=]1x3x224x224[:int64]``."""
    name, _, rest = text.rpartition("=")
    shape, _, dtype = rest.partition(":")
    sizes = shape.lower().split("x")
    if not all(size.isdecimal() and 0 < int(size) < 1 << 20 for size in sizes) or (dtype or "float32") not in _TYPES:
        raise UsageError(
            f"--input {text}: must be [NAME=]SIZExSIZE...[:TYPE].",
            hint=f"For example --input 1x3x224x224 or --input ids=1x16:int64; types: {', '.join(_TYPES)}.",
        )
    return name, tuple(map(int, sizes)), dtype or "float32"


def _write_report(
    request: ModuleRequest, stages: list[str], error: BaseException | None, notes: list[str] | None = None
) -> None:
    """Write what is needed to look into a failure: versions, entry, stages, the failing line; no weights."""
    if request.report is None:
        return
    from vimdeploy.graph.symbolic import users_line

    versions = {}
    for name in _VERSIONS:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    report = {
        "entry": request.entry,
        "kwargs": request.kwargs,
        "inputs": request.inputs,
        "dynamic": request.dynamic,
        "python": platform.python_version(),
        "versions": versions,
        "stages": stages,
        "notes": notes or [],
        "error": None if error is None else {"type": type(error).__name__, "message": str(error)},
        "line": users_line(error) if error else "",
        "traceback": traceback.format_exception(error) if error else [],
    }
    Path(request.report).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
