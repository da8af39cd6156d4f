"""An ONNX file, or a model in memory, in ONNX Runtime as a backend, with its inner values where they are asked for."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vimdeploy.artifacts.onnx_file import read_onnx
from vimdeploy.backends.session import SessionBackend
from vimdeploy.runtime.onnx_session import OnnxSession
from vimdeploy.runtime.ort import import_onnxruntime, native_ops

if TYPE_CHECKING:
    import onnx


class OnnxBackend(SessionBackend):
    """An ONNX model in ONNX Runtime on the CPU.

    Args:
        model: a file, or a model in memory.
        taps: names of inner values to return as well, as far as the model has them.
        ops: what computes the custom ops; see :func:`vimdeploy.runtime.ort.open_session`.

    Raises:
        MissingDependencyError: onnxruntime is not installed.
        ArtifactError: the file is missing, corrupt or not runnable.

    """

    def __init__(self, model: Path | onnx.ModelProto, *, taps: Sequence[str] = (), ops: str = "auto") -> None:
        source = str(model) if isinstance(model, Path) else "the exported model"
        if not isinstance(model, Path) or taps:
            model = read_onnx(model) if isinstance(model, Path) else model
            content: Path | bytes = (_with_outputs(model, taps) if taps else model).SerializeToString()
        else:
            content = model
        # Inner values need not have the batch first, so nothing may be split behind the caller's back.
        super().__init__(OnnxSession(content, batch=None, source=source, ops=ops), "onnxruntime")


def forms(ops: str) -> tuple[str, ...]:
    """Return what is to be compared for ``ops``: both forms where there is a choice and the native ops are here.

    Raises:
        UsageError: ``ops`` is no choice.
        MissingDependencyError: native ops are asked for and not here.

    """
    library = native_ops(ops)
    if ops == "auto":
        return ("body", "native") if library else ("body",)
    return (ops,)


def profiled(path: Path, inputs: Mapping[str, Any], runs: int) -> list[dict[str, Any]]:
    """Run a file under ONNX Runtime's profiler, the bodies of the custom ops computing; return its events.

    Args:
        path: ONNX file.
        inputs: by name, in the file's own types.
        runs: after one that warms up, whose events are there as well.

    Raises:
        MissingDependencyError: onnxruntime is not installed.

    """
    ort = import_onnxruntime()
    with tempfile.TemporaryDirectory() as folder:
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        for _ in range(1 + runs):
            session.run(None, dict(inputs))
        events: list[dict[str, Any]] = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    return events


def _with_outputs(model: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """Return a copy with inner values as outputs, as far as the model has them."""
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    known = {name for node in copy.graph.node for name in node.output} - {o.name for o in copy.graph.output}
    # Without a type, ONNX Runtime takes the one it infers: float16 inside a converted model.
    copy.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names if name in known)
    return copy
