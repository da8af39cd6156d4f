"""Where two forms of a model part: the block of an exported model, the node of a converted one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vimdeploy.artifacts.recipe import ParityContract
from vimdeploy.backends.base import Array
from vimdeploy.backends.onnxruntime import OnnxBackend
from vimdeploy.parity.metrics import relative_rms

if TYPE_CHECKING:
    import onnx

    from vimdeploy.models.family import FamilyModel

_CHUNK = 200
"""Inner values read in one run; all of a large model at once would hold gigabytes."""


@dataclass(frozen=True)
class Departure:
    """A node whose output departs although its inputs do not."""

    node: str
    op: str
    error: float
    """Relative RMS of its output."""
    largest: float
    """Largest absolute value of its output in the original."""

    def in_words(self) -> str:
        """Say where and how."""
        if not np.isfinite(self.error):
            what = f"overflows (values reach {self.largest:.3g})"
        else:
            what = f"departs by relative RMS {self.error:.1e} (values reach {self.largest:.3g})"
        return f"node '{self.node}' ({self.op}) {what}"


def first_departing_node(
    original: onnx.ModelProto, candidate: onnx.ModelProto, images: Array, bound: float
) -> Departure | None:
    """Compare every value that both models have, in order of computation.

    Args:
        original: float32.
        candidate: float32 as well; a half-precision model goes through :func:`vimdeploy.graph.emulate.emulate`.
        images: a batch that both take.
        bound: relative RMS above which a value has departed.

    Returns:
        The first node with an output beyond ``bound``; else the one after which the error grew most; None where no
        value differs.

    """
    shared = [(node, name) for node in original.graph.node for name in node.output if name in _outputs(candidate)]
    worst: Departure | None = None
    growth, before = 1.0, 1e-7
    for start in range(0, len(shared), _CHUNK):
        names = [name for _, name in shared[start : start + _CHUNK]]
        a, b = OnnxBackend(candidate, taps=names).run(images), OnnxBackend(original, taps=names).run(images)
        for node, name in shared[start : start + _CHUNK]:
            if a[name].dtype.kind != "f" or a[name].shape != b[name].shape:
                continue
            found = Departure(node.name, node.op_type, _error(a[name], b[name]), float(np.abs(b[name]).max()))
            if not found.error <= bound:
                return found
            if found.error > before * growth:
                worst, growth = found, found.error / before
            before = max(before, found.error)
    return worst


def _outputs(model: onnx.ModelProto) -> frozenset[str]:
    return frozenset(name for node in model.graph.node for name in node.output)


def _error(a: Array, b: Array) -> float:
    if not np.isfinite(a).all() and np.isfinite(b).all():
        return float("inf")
    return relative_rms(a, b)


def first_departing_block(
    onnx_model: Path | onnx.ModelProto,
    model: FamilyModel,
    task: str,
    images: Array,
    contract: ParityContract,
    ops: str = "body",
) -> str:
    """Return where two models first differ by more than rounding, in words that follow "they part"."""
    from vimdeploy.backends.torch import TorchBackend

    reference = TorchBackend(model, task, taps=True).run(images)
    candidate = OnnxBackend(onnx_model, taps=list(reference), ops=ops).run(images)
    taps = [name for name in reference if name.startswith("block.")]
    bound = max(contract.relative_rms or 0.0, 1e-4)
    # Values that are equal by construction (the residual input of both layers of a pair) are one value in the file.
    known = [tap for tap in taps if tap in candidate]
    if not known:
        return "at a place that is not known: the file does not name its inner values"
    for tap in known:
        a, b = candidate[tap], reference[tap]
        if a.shape != b.shape or not relative_rms(a, b) <= bound:
            return _place(tap)
    outputs = ", ".join(name for name in reference if name not in taps)
    return f"after the last block: final norm, choice of tokens or head ({outputs})"


def _place(tap: str) -> str:
    """Say which value ``block.3.hidden`` is."""
    _, block, what = tap.split(".")
    if what == "residual" and block == "0":
        return "before block 0: patch embedding, class token or position embeddings"
    value = {"residual": "its residual input", "hidden": "the output of its mixer", "output": "its output"}[what]
    return f"in block {block}, {value}"
