"""What is proven about a module when it is exported: not random, not baked, equal in ONNX Runtime at several sizes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from vimdeploy import contract
from vimdeploy.artifacts.golden import Case, Samples
from vimdeploy.artifacts.recipe import ParityContract
from vimdeploy.backends.onnxruntime import OnnxBackend, forms
from vimdeploy.errors import ModelError, VerificationError, VimdeployError
from vimdeploy.graph.axes import other_sizes, sized, sizes_of
from vimdeploy.graph.symbolic import Baked, users_line
from vimdeploy.graph.trace import Axes, FlatModule, Signature, Tap, Traced
from vimdeploy.interop import calls
from vimdeploy.parity.compare import BatchResult, Report
from vimdeploy.parity.metrics import as_rows, compare, relative_rms
from vimdeploy.progress import SILENT, Reporter

_SCANS = tuple(name for name in contract.OPS if name.startswith("SelectiveScan"))


@dataclass(frozen=True)
class Observed:
    """What one run of a module in torch showed."""

    outputs: tuple[Tensor, ...]
    calls: Counter[str]
    taps: tuple[Tap, ...]
    """Blocks that call a scan, in the order in which they finish."""


def observe(flat: FlatModule, tensors: Sequence[Tensor]) -> Observed:
    """Run a flat module twice: it must give the same, and shows which kernels it calls from which blocks.

    Raises:
        ModelError: the two runs differ; names the module that is random. Or the module fails; names the line.

    """
    module = flat.module
    stack: list[str] = []
    blocks: set[str] = set()
    finished: list[str] = []
    counter: Counter[str] = Counter()

    def scanned(name: str) -> None:
        counter[name] += 1
        if name not in calls.CONVOLUTIONS:
            blocks.add(_block(stack))

    paths = {part: name for name, part in module.named_modules()}

    def enter(part: nn.Module, _inputs: Any) -> None:
        stack.append(paths[part])

    def leave(part: nn.Module, _inputs: Any, output: Any) -> None:
        stack.pop()
        first = output[0] if isinstance(output, (tuple, list)) and output else output
        if isinstance(first, Tensor):
            finished.append(paths[part])

    hooks: list[Any] = []
    for part in paths:
        hooks += [part.register_forward_pre_hook(enter), part.register_forward_hook(leave)]
    try:
        with calls.listening(scanned):
            first = run(flat, tensors)
    finally:
        for hook in hooks:
            hook.remove()
    second = run(flat, tensors)
    if any(not _same(a, b) for a, b in zip(first, second, strict=True)):
        raise ModelError(
            f"The model gives something else each time it is run{_random_part(flat, tensors)}.",
            hint="Exported files compute one function: take the random operator out of the forward path in eval mode.",
        )
    seen: Counter[str] = Counter()
    taps = []
    for path in finished:
        if path in blocks and path:
            taps.append(Tap(path, seen[path]))
            seen[path] += 1
    return Observed(first, counter, tuple(taps))


def run(flat: FlatModule, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Run a flat module without gradients; ModelError with the line of the user's that failed."""
    try:
        with torch.no_grad():
            result: tuple[Tensor, ...] = flat(*(t.clone() for t in tensors))
    except VimdeployError:
        raise
    except Exception as error:
        where = users_line(error)
        first = (str(error).splitlines() or [""])[0]
        raise ModelError(
            f"The model fails in PyTorch on inputs {', '.join(str(tuple(t.shape)) for t in tensors)}"
            f"{f' at {where}' if where else ''}: {type(error).__name__}: {first[:300]}",
            hint="Give example inputs that the model takes.",
        ) from error
    return result


def _block(stack: Sequence[str]) -> str:
    """Return the block a scan belongs to: the nearest element of a list of modules, else the module that calls it."""
    for path in reversed(stack):
        if path.rpartition(".")[2].isdigit():
            return path
    return stack[-1] if stack else ""


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.equal(torch.nan_to_num(a), torch.nan_to_num(b))


def _random_part(flat: FlatModule, tensors: Sequence[Tensor]) -> str:
    """Return the innermost module that first gave another output for the same input, in words."""
    runs: list[list[tuple[str, str, list[Tensor], list[Tensor]]]] = []
    for _ in range(2):
        seen: list[tuple[str, str, list[Tensor], list[Tensor]]] = []
        hooks = [
            part.register_forward_hook(
                lambda part, inputs, output, name=name, seen=seen: seen.append(
                    (name, type(part).__name__, _tensors(inputs), _tensors(output))
                )
            )
            for name, part in flat.module.named_modules()
        ]
        try:
            run(flat, tensors)
        finally:
            for hook in hooks:
                hook.remove()
        runs.append(seen)
    for (name, kind, inputs, outputs), (_, _, inputs_2, outputs_2) in zip(*runs, strict=False):
        if all(map(_same, inputs, inputs_2)) and not all(map(_same, outputs, outputs_2)):
            return f": the first module to do so is '{name or 'the model itself'}' ({kind})"
    return ""


def _tensors(value: Any) -> list[Tensor]:
    return [v.detach().clone() for v in torch.utils._pytree.tree_leaves(value) if isinstance(v, Tensor)]


def check_kernels(traced: Traced, observed: Observed) -> list[str]:
    """Compare the custom nodes of a traced model with the kernels that were called; returns notes.

    Raises:
        ModelError: nodes are missing, or there are more scans than calls.

    """
    names = Counter(node.op_type for node in traced.model.graph.node)
    scans = sum(names[name] for name in _SCANS)
    called = sum(n for name, n in observed.calls.items() if name not in calls.CONVOLUTIONS)
    convs = sum(observed.calls[name] for name in calls.CONVOLUTIONS)
    loops = names["Loop"] + names["Scan"]
    if scans != traced.kernels or scans > called or loops:
        what = f"{loops} loops" if loops else f"{scans} custom nodes for {called} kernel calls"
        raise ModelError(
            f"The exported graph has {what}: a scan was unrolled or lost.",
            hint="Please report it with --report FILE.",
        )
    notes = []
    if not called:
        notes.append(
            "no kernel of Mamba's was called: if the model scans with a loop of its own, its length is baked in and "
            "the file is large"
        )
    for what, there, asked in (("scans", scans, called), ("causal convolutions", names["CausalConv1d"], convs)):
        if there < asked:
            notes.append(f"{asked - there} of {asked} {what} do not reach the outputs and were left out")
    return notes


def check_symbolic(traced: Traced, axes: Sequence[Axes]) -> None:
    """Raise ModelError unless every dimension that was asked to be dynamic is symbolic in the file."""
    for value, own in zip(traced.model.graph.input, axes, strict=True):
        for dim, axis in own.items():
            shape = value.type.tensor_type.shape.dim[dim]
            if not shape.dim_param:
                raise ModelError(
                    f"Input '{value.name}': {axis.name} is fixed to {shape.dim_value} by the model"
                    f"{in_words(traced.baked)}.",
                    hint="Write sizes with // on x.shape, or export that size fixed.",
                )


def in_words(baked: Sequence[Baked]) -> str:
    """Return the lines that turned sizes into numbers, to follow a statement."""
    first = sorted(baked, key=lambda b: b.value is None)[:3]
    return f" ({'; '.join(b.in_words() for b in first)})" if first else ""


def prove(
    flat: FlatModule,
    traced: Traced,
    tensors: Sequence[Tensor],
    axes: Sequence[Axes],
    signature: Signature,
    parity: ParityContract,
    reporter: Reporter = SILENT,
) -> tuple[Report, list[Case]]:
    """Compare the file in ONNX Runtime with torch at the example's size, at batch 1, 2 and 3 and at a second size.

    Returns the report, and the cases with torch's outputs: the first is the example's.

    Raises:
        VerificationError: the file computes something else, or fails at a size that was asked to be dynamic; names the
            lines of the user's code that turned a size into a number.

    """
    cases = list(_cases(flat, tensors, axes, signature))
    backends = {ops: OnnxBackend(traced.model, ops=ops) for ops in forms("auto")}
    results = []
    for index, (case, (ops, backend)) in enumerate((c, form) for c in cases for form in backends.items()):
        shapes = ", ".join(str(a.shape) for a in case.inputs.arrays.values())
        fixed = f"The file does not serve inputs {shapes}, though they were asked for{in_words(traced.baked)}"
        try:
            outputs = backend.run(case.inputs)
        except VimdeployError as error:
            raise VerificationError(
                f"{fixed}: {error.message}",
                hint="A size is baked in: write sizes with // on x.shape, or export it fixed.",
            ) from error
        for name, reference in case.outputs.items():
            metrics = compare(as_rows(outputs[name]), as_rows(reference), parity, classes=False)
            if not metrics.passed and case is not cases[0] and any(b.value is not None for b in traced.baked):
                raise VerificationError(f"{fixed}: {'; '.join(metrics.violations)}.")
            results.append(BatchResult(len(case.inputs), name, metrics, ops))
        reporter.progress(index + 1, len(cases) * len(backends))
    departs = None
    if not all(result.metrics.passed for result in results):
        departs = "at a place that is not known"
    return Report("torch", "ONNX Runtime", parity, tuple(results), departs), cases


def _cases(flat: FlatModule, tensors: Sequence[Tensor], axes: Sequence[Axes], signature: Signature) -> Iterator[Case]:
    yield make_case(flat, tensors, signature)
    sizes = sizes_of(axes, tensors)
    for index, case in enumerate(other_sizes(axes, sizes)):
        try:
            yield make_case(flat, sized(tensors, axes, case, seed=index + 1), signature)
        except ModelError as error:
            square = {**case, "width": case["height"]} if {"height", "width"} <= set(case) else case
            if square == case:
                raise
            try:
                yield make_case(flat, sized(tensors, axes, square, seed=index + 1), signature)
            except ModelError:
                raise error from None


def make_case(flat: FlatModule, tensors: Sequence[Tensor], signature: Signature) -> Case:
    """Run torch and return inputs and outputs as arrays."""
    outputs = run(flat, tensors)
    inputs = {n: t.numpy() for n, t in zip(signature.inputs, tensors, strict=True)}
    return Case(
        Samples(inputs),
        {n: t.detach().cpu().contiguous().numpy() for n, t in zip(signature.outputs, outputs, strict=True)},
    )


def first_departure(
    model: onnx.ModelProto, tapped: FlatModule, tensors: Sequence[Tensor], case: Case, taps: Mapping[str, str]
) -> str:
    """Return the first block at which file and torch differ by more than rounding, in words that follow "they part"."""
    expected = run(tapped, tensors)[len(case.outputs) :]
    found = OnnxBackend(model, taps=list(taps)).run(case.inputs)
    for (name, path), value in zip(taps.items(), expected, strict=True):
        if name in found and not relative_rms(as_rows(found[name]), as_rows(value.numpy())) <= 1e-4:
            return f"in the block {path}"
    return "after the last block" if taps else "at a place that is not known: no block calls a scan"


@contextmanager
def in_eval_mode(module: nn.Module) -> Iterator[None]:
    """Put a module into eval mode inside the block, and each of its parts back into its own mode afterwards."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes.items():
            part.training = mode
