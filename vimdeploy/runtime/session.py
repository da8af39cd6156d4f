"""Open a plan or an ONNX file: :func:`load`, and what every session shares (:class:`Session`). Never imports torch.

:class:`vimdeploy.runtime.plan_session.PlanSession` runs TensorRT plans and copies nothing that is on the device
already; :class:`vimdeploy.runtime.onnx_session.OnnxSession` runs ONNX files through ONNX Runtime. Code that is written
against one runs on the other.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from typing_extensions import Self

from vimdeploy.artifacts.manifest import PLAN_SUFFIXES, refuse_modified_file
from vimdeploy.artifacts.tensors import Profile, Tensor
from vimdeploy.errors import ArtifactError, UsageError
from vimdeploy.runtime.arrays import View, validate, view

Arrays = Mapping[str, Any]

GRAPHS = 8
"""CUDA graphs that a context keeps unless told otherwise."""


class Session:
    """An open model: named inputs and outputs, validation, and running synchronously on top of ``submit``.

    Thread-safe; use it as a context manager or call :meth:`close`.
    """

    def __init__(self, tensors: list[Tensor], profile: Profile) -> None:
        self._tensors = tensors
        self._profile = profile
        self.inputs = [t for t in tensors if t.is_input]
        self.outputs = [t for t in tensors if not t.is_input]

    @property
    def largest_batch(self) -> int:
        """The largest batch that is run in one piece."""
        return min(most[0] for _, _, most in self._profile.values())

    @property
    def smallest_batch(self) -> int:
        """The smallest batch the profile admits; smaller ones are padded."""
        return max(least[0] for least, _, _ in self._profile.values())

    @property
    def fixed_batch(self) -> int | None:
        """The only batch that the model takes; None where it takes several. Other batches are padded and split."""
        return self.largest_batch if self.smallest_batch == self.largest_batch else None

    def look(self, inputs: Arrays, stream: int | None = None) -> tuple[dict[str, View], int]:
        """Validate inputs; returns their views and the batch size."""
        names = {t.name for t in self.inputs}
        if set(inputs) != names:
            given, wanted = ", ".join(sorted(map(str, inputs))) or "none", ", ".join(sorted(names))
            raise UsageError(f"inputs given: {given}; the model takes: {wanted}", hint="Name every input once.")
        views = {}
        for tensor in self.inputs:
            found = view(tensor.name, inputs[tensor.name], stream=stream)
            least, _, most = self._profile[tensor.name]
            validate(tensor.name, found, dtype=tensor.dtype, shape=tensor.shape, least=least, most=most)
            views[tensor.name] = found
        batches = {v.shape[0] for v in views.values()}
        if len(batches) != 1:
            raise UsageError(f"the inputs have different batch sizes: {sorted(batches)}", hint="Make them equal.")
        return views, batches.pop()

    def look_out(self, out: Arrays | None, batch: int, stream: int | None = None) -> dict[str, View]:
        """Validate preallocated outputs; returns their views."""
        views = {}
        names = [t.name for t in self.outputs]
        if unknown := [str(name) for name in out or () if name not in names]:
            raise UsageError(f"out names '{unknown[0]}'; the model gives: {', '.join(names)}", hint="Name an output.")
        for tensor in self.outputs:
            if out is None or tensor.name not in out:
                continue
            found = views[tensor.name] = view(tensor.name, out[tensor.name], stream=stream, role="output")
            wanted = (batch, *tensor.shape[1:])
            fits = found.dtype == tensor.dtype or (tensor.dtype == "bfloat16" and found.dtype == "uint16")
            if found.shape != wanted or not fits or not found.contiguous or found.read_only:
                kind = "read-only " * found.read_only + found.dtype
                raise UsageError(
                    f"out['{tensor.name}'] is {kind} {found.shape}, the result is {tensor.dtype} {wanted}",
                    hint="Pass a contiguous, writable array of that shape and dtype, or leave it out.",
                )
        return views

    def run(self, inputs: Arrays, out: Arrays | None = None) -> dict[str, Any]:
        """Run a batch of any size and wait for it.

        Args:
            inputs: by name: numpy, torch or anything with DLPack, on the host or the device, contiguous.
            out: optional preallocated outputs by name, on the host or the device.

        Returns:
            Outputs by name: ``out`` where given; else on the device where every input is, else numpy.

        Raises:
            UsageError: an input or ``out`` does not fit; the message names it.

        """
        result: dict[str, Any] = self.submit(inputs, out).result()
        return result

    def submit(self, inputs: Arrays, out: Arrays | None = None) -> Any:
        """Start a batch; the subclass says how."""
        raise NotImplementedError

    def close(self) -> None:
        """Give everything back; the subclass says how."""

    def __call__(self, images: Any) -> Any:
        """Run a model of one input and one output on an array; returns an array."""
        if len(self.inputs) != 1 or len(self.outputs) != 1:
            raise UsageError("this model has several inputs or outputs", hint="Use run({'name': array, ...}).")
        return self.run({self.inputs[0].name: images})[self.outputs[0].name]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def load(
    path: str | Path,
    *,
    contexts: int = 1,
    graphs: int = GRAPHS,
    plugin: str | Path | None = None,
    threads: int | None = None,
    ops: str = "auto",
    device: int | None = None,
    allow_modified: bool = False,
    allow_host_code: bool = False,
) -> Session:
    """Open a plan or an ONNX file for running: by its content.

    Args:
        path: plan or ONNX file, its manifest beside it.
        contexts: how many calls may run at the same time; each context of a plan has memory of its own.
        graphs: how many CUDA graphs each context of a plan keeps; 0 turns them off. An ONNX file has none.
        plugin: plugin library of a plan, where it is not found by itself.
        threads: of ONNX Runtime; None lets it choose.
        ops: what computes the custom ops of an ONNX file: native, body, or auto (native where it is here).
        device: index of the GPU that runs a plan; None takes the current one.
        allow_modified: take a file that its manifest does not describe.
        allow_host_code: let a version-compatible plan, or one with a plugin library in it, run the code it brings. An
            ONNX file brings none.

    Returns:
        A :class:`vimdeploy.runtime.plan_session.PlanSession` or a
        :class:`vimdeploy.runtime.onnx_session.OnnxSession`.

    Raises:
        ArtifactError: the file is missing, neither, or not the one that its manifest describes; or this machine cannot
            load it, and why.
        UsageError: an option that this kind of file does not have.
        MissingDependencyError: what runs this kind of file is not installed, or there is no GPU.

    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            start = file.read(8)
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read: {error.strerror}", hint="Check the path.") from error
    if start[:4] in _PLAN_MAGIC or path.suffix in PLAN_SUFFIXES:
        from vimdeploy.runtime.plan_session import PlanSession

        _refuse(path, "a TensorRT plan", threads=threads is not None, ops=ops != "auto")
        allowed = {"allow_modified": allow_modified, "allow_host_code": allow_host_code}
        return PlanSession(path, contexts=contexts, graphs=graphs, plugin=plugin, device=device, **allowed)
    if start[:1] == b"\x08" or path.suffix == ".onnx":
        from vimdeploy.runtime.onnx_session import OnnxSession

        of_plans = {"plugin": plugin is not None, "device": device is not None, "graphs": graphs not in (0, GRAPHS)}
        _refuse(path, "an ONNX file", **of_plans)
        refuse_modified_file(path, allow_modified=allow_modified)
        return OnnxSession(path, contexts=contexts, threads=threads, ops=ops)
    raise ArtifactError(f"{path}: is neither a TensorRT plan nor an ONNX model", hint="See 'vimdeploy inspect'.")


def _refuse(path: Path, kind: str, **given: bool) -> None:
    """Raise UsageError for an option that was given and that this kind of file does not have."""
    if name := next((name for name, is_given in given.items() if is_given), None):
        raise UsageError(f"{path}: is {kind}, which has no option '{name}'.", hint="Leave it out.")


_PLAN_MAGIC = (b"vtrt", b"ftrt", b"ptrt")
"""First bytes of plans of TensorRT-RTX and TensorRT. An ONNX file starts with its IR version (field 1, varint)."""
