"""A file against the inputs and outputs that PyTorch gave when it was exported: needs neither torch nor onnx."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

from vimdeploy.artifacts.golden import read_golden
from vimdeploy.artifacts.recipe import ParityContract
from vimdeploy.backends.onnxruntime import OnnxBackend
from vimdeploy.parity.compare import BatchResult, Report
from vimdeploy.parity.metrics import as_rows, compare


def compare_stored(path: Path, sha256: str, parity: ParityContract, *, classes: bool, ops: str = "auto") -> Report:
    """Compare a file in ONNX Runtime with its stored outputs.

    Args:
        path: ONNX file, its golden file beside it.
        sha256: of the golden file, from the manifest.
        parity: contract to keep.
        classes: the output is logits.
        ops: what computes the custom ops.

    Raises:
        ArtifactError: the golden file is missing or another one, or the file does not run.

    """
    results: list[BatchResult] = []
    with closing(OnnxBackend(path, ops=ops)) as backend:
        for case in read_golden(path, sha256):
            outputs = backend.run(case.inputs)
            for name, expected in case.outputs.items():
                metrics = compare(as_rows(outputs[name]), as_rows(expected), parity, classes=classes)
                results.append(BatchResult(len(case.inputs), name, metrics, ops))
    departs = None if all(r.metrics.passed for r in results) else "at a place that is not known without torch"
    return Report("torch, as stored at export", "ONNX Runtime", parity, tuple(results), departs)
