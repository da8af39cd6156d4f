"""Which dimensions of which inputs are symbolic, and example inputs of other sizes to prove it with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from vimdeploy.errors import UsageError, nearest
from vimdeploy.graph.trace import Axes, Axis

_WORDS = {
    "batch": "the first dimension of every input",
    "size": "height and width, the last two dimensions of every input of four or more",
    "length": "the tokens, the second dimension of every input of three",
    "frames": "the third dimension of every input of five",
}
"""What may be said instead of naming inputs and dimensions."""


def make_axes(dynamic: Mapping[str, Any] | None, names: Sequence[str], tensors: Sequence[Tensor]) -> list[Axes]:
    """Return the symbolic dimensions of every input.

    Args:
        dynamic: from a word of ``batch``, ``size``, ``length``, ``frames`` to True or to the number that the size is a
            multiple of; or from the name of an input to a mapping of dimensions to a name or (name, multiple).
        names: of the inputs.
        tensors: example inputs.

    Raises:
        UsageError: a word, input or dimension that does not exist, or a multiple that is no positive number.

    """
    axes: list[dict[int, Axis]] = [{} for _ in names]
    for key, value in (dynamic or {}).items():
        if key in _WORDS and (key not in names or not isinstance(value, Mapping)):
            multiple = _multiple(key, value)
            if multiple is not None:
                _apply_word(key, multiple, axes, tensors)
        elif key in names and isinstance(value, Mapping):
            own, tensor = axes[names.index(key)], tensors[names.index(key)]
            for dim, what in value.items():
                name, multiple = (what, 1) if isinstance(what, str) else what
                if not -tensor.dim() <= int(dim) < tensor.dim():
                    raise UsageError(f"dynamic: input '{key}' has {tensor.dim()} dimensions, there is no {dim}.")
                own[int(dim) % tensor.dim()] = Axis(name, int(multiple))
        else:
            raise UsageError(
                f"dynamic: '{key}' is neither an input nor one of {', '.join(_WORDS)}.",
                hint=nearest(key, (*_WORDS, *names)),
            )
    return list(axes)


def _multiple(key: str, value: Any) -> int | None:
    if value is False or value is None:
        return None
    if isinstance(value, int) and value >= 1:
        return int(value)
    raise UsageError(f"dynamic: {key}={value!r} must be True or a positive number.")


def _apply_word(key: str, multiple: int, axes: list[dict[int, Axis]], tensors: Sequence[Tensor]) -> None:
    found = False
    first = next((t.shape[0] for t in tensors if t.dim()), None)
    for own, tensor in zip(axes, tensors, strict=True):
        rank, dims = tensor.dim(), {}
        if key == "batch" and rank and tensor.shape[0] == first:
            dims = {0: "batch"}
        elif key == "size" and rank >= 4:
            dims = {rank - 2: "height", rank - 1: "width"}
        elif key == "length" and rank == 3:
            dims = {1: "length"}
        elif key == "frames" and rank == 5:
            dims = {2: "frames"}
        own.update({dim: Axis(name, multiple) for dim, name in dims.items()})
        found |= bool(dims)
    if not found:
        raise UsageError(f"dynamic: '{key}' is {_WORDS[key]}, and no input has it.")


def sizes_of(axes: Sequence[Axes], tensors: Sequence[Tensor]) -> dict[str, int]:
    """Return the size of every symbolic dimension by its name."""
    return {axis.name: t.shape[dim] for own, t in zip(axes, tensors, strict=True) for dim, axis in own.items()}


def traceable_sizes(axes: Sequence[Axes], tensors: Sequence[Tensor]) -> dict[str, int]:
    """Return sizes to trace with: at least twice the multiple, or torch takes 1 for a fact.

    Raises:
        UsageError: an example is not a multiple of what its size shall be a multiple of.

    """
    sizes = sizes_of(axes, tensors)
    for axis in (axis for own in axes for axis in own.values()):
        if sizes[axis.name] % axis.multiple:
            raise UsageError(
                f"the example's {axis.name} is {sizes[axis.name]}, which is no multiple of {axis.multiple}.",
                hint="Give an example input of a size that the model takes.",
            )
        sizes[axis.name] = max(sizes[axis.name], 2 * axis.multiple)
    return sizes


def sized(tensors: Sequence[Tensor], axes: Sequence[Axes], sizes: Mapping[str, int], seed: int = 0) -> list[Tensor]:
    """Return examples of other sizes: values repeated or cut, and floats changed a little so that no two are equal."""
    generator = torch.Generator().manual_seed(seed)
    result = []
    for tensor, own in zip(tensors, axes, strict=True):
        value = tensor.detach().cpu()
        for dim, axis in own.items():
            value = value.index_select(dim, torch.arange(sizes[axis.name]) % value.shape[dim])
        if value.is_floating_point() and own:
            spread = float(tensor.float().std()) if tensor.numel() > 1 else 1.0
            value = value + (0.25 * spread * torch.randn(value.shape, generator=generator)).to(value.dtype)
        result.append(value.contiguous())
    return result


def other_sizes(axes: Sequence[Axes], sizes: Mapping[str, int]) -> list[dict[str, int]]:
    """Return the sizes a file is proven at beside the example's: batch 1, 2 and 3, and a second size of the rest."""
    known = {axis.name: axis.multiple for own in axes for axis in own.values()}
    cases: list[dict[str, int]] = []
    if "batch" in known:
        cases += [{**sizes, "batch": batch * known["batch"]} for batch in (1, 2, 3)]
    rest = [name for name in known if name != "batch"]
    if rest:
        larger = {name: sizes[name] + (i + 1) * known[name] for i, name in enumerate(rest)}
        cases.append({**sizes, **larger, **({"batch": known["batch"]} if "batch" in known else {})})
    return [case for i, case in enumerate(cases) if case != sizes and case not in cases[:i]]
