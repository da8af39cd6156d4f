"""Verifying a module's file without its code: against the inputs and outputs that were stored when it was exported."""

from __future__ import annotations

from pathlib import Path

import onnx

from vimdeploy.artifacts.golden import Case, read_golden
from vimdeploy.artifacts.manifest import Manifest
from vimdeploy.artifacts.recipe import ParityContract
from vimdeploy.backends.onnxruntime import OnnxBackend, forms
from vimdeploy.commands.export_entry import ask
from vimdeploy.commands.module_worker import ModuleRequest
from vimdeploy.errors import UsageError
from vimdeploy.parity.compare import BatchResult, Report
from vimdeploy.parity.metrics import as_rows, compare


def verify_golden(
    model: Path | onnx.ModelProto, path: Path, manifest: Manifest, parity: ParityContract, ops: str = "auto"
) -> Report:
    """Compare a file in ONNX Runtime with its golden outputs.

    Raises:
        ArtifactError: the golden file is missing or another one; the file does not run or lacks an output.

    """
    assert manifest.module is not None
    cases = read_golden(path, manifest.module.golden_sha256)
    results: list[BatchResult] = []
    for name in forms(ops):
        backend = OnnxBackend(model, ops=name)
        results += (result for case in cases for result in _compare(backend, case, parity, name))
    departs = None if all(r.metrics.passed for r in results) else "at a place that is not known without the module"
    return Report("torch, as stored at export", "ONNX Runtime", parity, tuple(results), departs)


def _compare(backend: OnnxBackend, case: Case, parity: ParityContract, ops: str) -> list[BatchResult]:
    outputs, count = backend.run(case.inputs), len(case.inputs)
    results = []
    for name, expected in case.outputs.items():
        metrics = compare(as_rows(outputs[name]), as_rows(expected), parity, classes=False)
        results.append(BatchResult(count, name, metrics, ops))
    return results


def reproduce(path: Path, manifest: Manifest, checkpoint: Path | None) -> str:
    """Build the module again, by the entry its manifest names, and compare it with the golden outputs; in words.

    Runs code of the user's, so only where that was asked for.

    Raises:
        UsageError: no entry was recorded, or its checkpoint is not there.
        VimdeployError: the module cannot be built.

    """
    module = manifest.module
    if module is None or module.entry is None:
        raise UsageError(
            f"{path}: was exported from an object in Python; there is no entry point to build it again.",
            hint="Leave --trust out: the golden outputs are compared.",
        )
    if checkpoint is None and manifest.checkpoint.file:
        checkpoint = path.parent / manifest.checkpoint.file
    answer = ask(
        ModuleRequest(
            entry=module.entry,
            output=str(path),
            kwargs=module.kwargs,
            import_paths=tuple(str(path.parent / folder) for folder in module.import_paths),
            checkpoint=str(checkpoint) if checkpoint else None,
            key=manifest.checkpoint.weights if manifest.checkpoint.weights not in ("model", "own") else None,
            stubs=module.stubbed,
            reproduce=True,
        )
    )
    error = answer["relative_rms"]
    if manifest.checkpoint.weights == "own" and error > 1e-4:
        return (
            f"{module.entry} gives other outputs now (relative RMS {error:.1e}): its weights are drawn anew each time"
        )
    return f"{module.entry}, built again, gives the golden outputs up to relative RMS {error:.1e}"
