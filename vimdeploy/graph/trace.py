"""Any torch module -> ONNX: its inputs and outputs flattened, its sizes symbolic where asked, its blocks named."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import onnx
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from vimdeploy import contract
from vimdeploy.errors import ModelError, UsageError
from vimdeploy.graph.export import finish, quiet_exporter, translations
from vimdeploy.graph.schema import register_schemas
from vimdeploy.graph.symbolic import Baked, sizes_stay_symbolic, users_line, watch_baking

LAST_STATE = "vimdeploy.selective_scan_last_state"


@dataclass(frozen=True)
class Axis:
    """One symbolic dimension of an input: its name, and what its size is a multiple of."""

    name: str
    multiple: int = 1


Axes = Mapping[int, Axis]


@dataclass(frozen=True)
class Tap:
    """A block of the module tree, and which call of it."""

    path: str
    call: int = 0


@dataclass(frozen=True)
class Signature:
    """Names of a module's tensors, in the order they are flattened."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass
class Traced:
    """An exported module."""

    model: onnx.ModelProto
    baked: list[Baked]
    kernels: int
    """Scans in the traced program."""
    notes: list[str] = field(default_factory=list)


class FlatModule(nn.Module):
    """A module whose inputs and outputs are flat lists of tensors; what else it takes or gives is kept aside.

    Args:
        module: any module.
        args: positional arguments, containers of tensors and of other values.
        kwargs: named arguments.
        taps: blocks whose outputs follow the module's own.

    """

    def __init__(self, module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], taps: Sequence[Tap] = ()):
        super().__init__()
        self.module = module
        self._taps = tuple(taps)
        leaves, self._spec = pytree.tree_flatten((tuple(args), dict(kwargs)))
        self._positions = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
        self._constants = [None if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        self.output_names: list[str] = []
        """Of the output tensors, after the keys and positions they were found under; known after a run."""

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Return the output tensors, then those of the taps."""
        leaves = list(self._constants)
        for position, tensor in zip(self._positions, tensors, strict=True):
            leaves[position] = tensor
        args, kwargs = pytree.tree_unflatten(leaves, self._spec)
        seen: dict[str, list[Tensor]] = {}
        hooks = [self._hook(path, seen) for path in {tap.path for tap in self._taps}]
        try:
            result = self.module(*args, **kwargs)
        finally:
            for hook in hooks:
                hook.remove()
        names, leaves = name_leaves(result, "output")
        found = [(name, leaf) for name, leaf in zip(names, leaves, strict=True) if isinstance(leaf, Tensor)]
        self.output_names = [name for name, _ in found]
        tensors_out = [leaf for _, leaf in found]
        return (*tensors_out, *(seen[tap.path][tap.call] for tap in self._taps))

    def _hook(self, path: str, seen: dict[str, list[Tensor]]) -> Any:
        def note(_module: nn.Module, _inputs: Any, output: Any) -> None:
            first = output if isinstance(output, Tensor) else output[0]
            seen.setdefault(path, []).append(first)

        return self.module.get_submodule(path).register_forward_hook(note)


def _plain(result: Any) -> Any:
    """Turn output objects that behave like dictionaries (transformers' and others) into dictionaries."""
    if isinstance(result, Mapping) and not isinstance(result, dict):
        return dict(result)
    return result


def name_leaves(tree: Any, default: str) -> tuple[list[str], list[Any]]:
    """Return names for the leaves of nested containers, from their keys and positions, and the leaves."""
    with_paths, _ = pytree.tree_flatten_with_path(_plain(tree))
    names, leaves = [], []
    for path, leaf in with_paths:
        parts = [str(getattr(key, "key", getattr(key, "idx", getattr(key, "name", "")))) for key in path]
        text = "_".join(parts)
        names.append(text if text and not text[0].isdigit() else f"{default}_{text}" if text else default)
        leaves.append(leaf)
    return names, leaves


def trace(
    flat: FlatModule,
    tensors: Sequence[Tensor],
    axes: Sequence[Axes],
    signature: Signature,
    taps: Sequence[str],
    opset: int = contract.DEFAULT_OPSET,
) -> Traced:
    """Export a flat module.

    Args:
        flat: the module, in eval mode on the CPU.
        tensors: example inputs.
        axes: per input its symbolic dimensions.
        signature: names of inputs and outputs.
        taps: names of the values that the taps give.
        opset: of the standard ONNX operators.

    Raises:
        ModelError: something in the module cannot be exported; names the line.
        UsageError: an opset that the function bodies cannot be written in.

    """
    if not contract.MIN_OPSET <= opset <= contract.MAX_OPSET:
        raise UsageError(f"opset {opset} is not supported.", hint=f"Use {contract.MIN_OPSET} to {contract.MAX_OPSET}.")
    register_schemas()
    baked: list[Baked] = []
    try:
        with quiet_exporter(), torch.no_grad(), sizes_stay_symbolic(flat.module), watch_baking() as baked:
            program = torch.export.export(
                flat, tuple(tensors), dynamic_shapes=(tuple(_dims(axes)),) if any(axes) else None, strict=False
            )
    except Exception as error:
        raise _explained(error, baked) from error
    kernels = _count_scans(program)
    try:
        with quiet_exporter(), torch.no_grad():
            exported = torch.onnx.export(
                program,
                dynamo=True,
                opset_version=opset,
                input_names=list(signature.inputs),
                output_names=[*signature.outputs, *taps],
                custom_translation_table={**translations(), torch.ops.aten.sort.stable: _sort},
                verbose=False,
            )
    except Exception as error:
        raise _unconverted(error) from error
    assert exported is not None
    model = finish(exported.model_proto, len(signature.outputs))
    _name_dimensions(model, axes)
    return Traced(model, baked, kernels)


def _sort(values: Any, stable: Any = None, dim: int = -1, descending: bool = False) -> Any:
    """Sort by TopK: onnxscript knows no stable sort. Equal values may come in another order than torch's."""
    from onnxscript import opset20 as op

    size = op.Shape(values, start=dim) if dim == -1 else op.Shape(values, start=dim, end=dim + 1)
    return op.TopK(values, size, axis=dim, largest=int(descending), sorted=1)


def _dims(axes: Sequence[Axes]) -> list[dict[int, Any] | None]:
    known: dict[str, Any] = {}

    def dim(axis: Axis) -> Any:
        if axis.name not in known:
            root = torch.export.Dim(axis.name if axis.multiple == 1 else f"_{axis.name}", min=1, max=1 << 16)
            known[axis.name] = root if axis.multiple == 1 else axis.multiple * root
        return known[axis.name]

    return [{i: dim(axis) for i, axis in own.items()} or None for own in axes]


def _name_dimensions(model: onnx.ModelProto, axes: Sequence[Axes]) -> None:
    """Give the symbolic dimensions of the inputs their own names: the exporter writes ``32*_height``."""
    written: dict[str, str] = {}
    for value, own in zip(model.graph.input, axes, strict=True):
        for index, axis in own.items():
            dim = value.type.tensor_type.shape.dim[index]
            if dim.dim_param:
                written[dim.dim_param] = axis.name
                dim.dim_param = axis.name
    # Inference does not look into the bodies of custom nodes: their types must stay in the file.
    custom = {name for node in model.graph.node if node.domain == contract.DOMAIN for name in node.output}
    kept = [value for value in model.graph.value_info if value.name in custom]
    for value in (*model.graph.output, *kept):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in written:
                dim.dim_param = written[dim.dim_param]
            elif dim.dim_param:
                dim.ClearField("dim_param")
    del model.graph.value_info[:]
    model.graph.value_info.extend(kept)


def _count_scans(program: torch.export.ExportedProgram) -> int:
    """Return how many scans reach the outputs. Callers receive states as well, and mostly drop them."""
    used: set[torch.fx.Node] = set()
    # Regions of their own, such as those without autocast, are graphs below the main one.
    graphs = [part.graph for part in program.graph_module.modules() if isinstance(part, torch.fx.GraphModule)]
    todo = [node for graph in graphs for node in graph.nodes if node.op == "output"]
    while todo:
        node = todo.pop()
        if node not in used:
            used.add(node)
            todo += node.all_input_nodes
    program.graph_module.graph.eliminate_dead_code()
    for node in used:
        if LAST_STATE in str(node.target):
            raise ModelError(
                "The last state of a scan (return_last_state, final states) is used by the model, and an exported file "
                "carries no states.",
                hint="Call the scan without return_last_state for inference over whole sequences.",
            )
    return sum("selective_scan_delta" in str(node.target) for node in used)


def _explained(error: Exception, baked: Sequence[Baked]) -> ModelError:
    from vimdeploy.errors import VimdeployError

    known: BaseException | None = error
    while known is not None and not isinstance(known, VimdeployError):
        known = known.__cause__ or known.__context__
    if isinstance(known, VimdeployError):
        return ModelError(known.message, hint=known.hint)
    text = str(error)
    where = users_line(error)
    first = next((line.strip() for line in text.splitlines() if line.strip()), type(error).__name__)
    if "Constraints violated" in text or "ConstraintViolation" in type(error).__name__:
        reasons = [line.strip(" -") for line in text.splitlines() if line.strip().startswith("-")]
        lines = "; ".join(b.in_words() for b in sorted(baked, key=lambda b: b.value is None)[:3])
        return ModelError(
            f"A size that was asked to be dynamic is fixed by the model: {' '.join(reasons)[:400] or first}"
            + (f" ({lines})" if lines else ""),
            hint="Write sizes with // on x.shape, or export that size fixed (leave it out of --dynamic).",
        )
    if "data-dependent" in text or "GuardOnDataDependent" in type(error).__name__:
        return ModelError(
            f"A shape or a branch depends on the values of a tensor{f' at {where}' if where else ''}.",
            hint="Export needs shapes that follow from the inputs' shapes alone; replace .item(), boolean indexing and "
            "`if tensor:` in the forward path.",
        )
    return ModelError(
        f"The model cannot be traced{f' at {where}' if where else ''}: {type(error).__name__}: {first[:300]}",
        hint="'vimdeploy export ... --report FILE' writes what is needed to look into it.",
    )


def _unconverted(error: Exception) -> ModelError:
    text = str(error)
    missing = next((line for line in text.splitlines() if "No ONNX function found" in line or "No decomp" in line), "")
    first = missing or next((line.strip() for line in text.splitlines() if line.strip()), type(error).__name__)
    return ModelError(
        f"An operation of the model has no form in ONNX: {first.strip()[:300]}",
        hint="Replace it in the forward path, or report it: 'vimdeploy export ... --report FILE'.",
    )
