"""Which blocks half precision hurts most, and the fewest of them to keep in float32 so that a contract is kept.

Half precision rounds everywhere alike, but what is rounded early passes through every later block: on a network that
amplifies errors, a few blocks cause most of what arrives at the output. They are found by measuring, one block at a
time in half precision, on sample images.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx

from vimdeploy.artifacts.recipe import ParityContract
from vimdeploy.backends.base import Array, Inputs, joined, run_batched
from vimdeploy.backends.onnxruntime import OnnxBackend
from vimdeploy.graph.emulate import emulate
from vimdeploy.graph.policy import Policy, Precision
from vimdeploy.graph.precision import Report, convert_model
from vimdeploy.parity.metrics import Metrics, compare
from vimdeploy.progress import SILENT, Reporter

HEAD = "head"
"""What follows the last block: final norm, choice of tokens, classifier."""
_BLOCK = re.compile(r"(block\.\d+)\.(hidden|output)")
"""How 'vimdeploy export' names the last value of a block."""
_COSTED_IMAGES = 2
"""Images for the costs of single blocks, which only have to be ranked; the result is held to the contract on all."""


@dataclass(frozen=True)
class Block:
    """Nodes of a model between the end of the block before and its own; ``block.0`` holds the patch embedding too."""

    name: str
    nodes: frozenset[str]


@dataclass(frozen=True)
class Cost:
    """The relative RMS error of the output with only this block in half precision; infinite where it overflows."""

    block: Block
    error: float


@dataclass(frozen=True)
class Fitted:
    """A converted model, how it compares with the float32 one, and the blocks that had to stay float32 for it."""

    model: onnx.ModelProto
    report: Report
    metrics: Metrics
    kept: tuple[str, ...] = ()
    costs: tuple[Cost, ...] = ()
    """Of every block, in the order of the model; empty where the policy alone keeps the contract."""


@dataclass(frozen=True)
class Task:
    """What is converted and what it is held to.

    Args:
        model: float32, with the names that 'vimdeploy export' gives.
        images: (N, C, H, W) samples, or the named inputs of a module.
        contract: what the converted model owes.
        classes: the output is logits.
        ranges: largest absolute value of tensors, by :func:`vimdeploy.parity.ranges.measure`.
        half_io: inputs and outputs go down as well.

    """

    model: onnx.ModelProto
    images: Inputs
    contract: ParityContract
    classes: bool
    ranges: Mapping[str, float]
    half_io: bool = False


def blocks(model: onnx.ModelProto) -> list[Block]:
    """Return the blocks in the order of the model, the head last; one block for all where nothing is named."""
    found: list[Block] = []
    nodes: list[str] = []
    for node in model.graph.node:
        nodes.append(node.name)
        ends = next(filter(None, map(_BLOCK.fullmatch, node.output)), None)
        if ends:
            found.append(Block(ends[1], frozenset(nodes)))
            nodes = []
    return [*found, Block(HEAD, frozenset(nodes))]


def fit(task: Task, precision: Precision, policy: Policy, reporter: Reporter = SILENT) -> Fitted:
    """Convert under ``policy``; where that breaks the contract, keep the costliest blocks in float32 until it holds.

    At most half of the blocks are kept: beyond that the result would be float32 by another name. The metrics of the
    result then still have their violations.

    Args:
        task: what is converted and what it is held to.
        precision: to go down to.
        policy: what goes down; what it keeps stays kept.
        reporter: told where measuring begins, and how far it is.

    """
    trials = _Trials(task)
    model, report = trials.convert(precision, policy)
    fitted = Fitted(model, report, trials.metrics(model))
    parts = blocks(task.model)
    if fitted.metrics.passed or len(parts) < 3:
        return fitted
    name = precision.name.upper()
    told = f"{name} everywhere costs relative RMS {fitted.metrics.relative_rms:.1e}: measuring it block by block"
    reporter.stage(told)
    costs = _costs(trials, precision, policy, parts, reporter)
    ranked = sorted(costs, key=lambda cost: -cost.error)
    bound, most = task.contract.relative_rms, len(parts) // 2
    start = 1 if bound is None else _fewest(ranked, bound, fitted.metrics.relative_rms)
    for count in range(min(start, most), most + 1):
        kept = ranked[:count]
        held = {
            node: f"{cost.block.name} alone in {name} costs relative RMS {cost.error:.1e} at the output"
            for cost in kept
            for node in cost.block.nodes
        }
        model, report = trials.convert(precision, replace(policy, held={**policy.held, **held}))
        names = {cost.block.name for cost in kept}
        order = tuple(part.name for part in parts if part.name in names)
        fitted = Fitted(model, report, trials.metrics(model), order, tuple(costs))
        if fitted.metrics.passed:
            break
    return fitted


def _costs(
    trials: _Trials, precision: Precision, policy: Policy, parts: Sequence[Block], reporter: Reporter
) -> list[Cost]:
    everything = {node: "not measured" for part in parts for node in part.nodes}
    costs = []
    for index, part in enumerate(parts):
        others = {node: reason for node, reason in everything.items() if node not in part.nodes}
        model, _ = trials.convert(precision, replace(policy, held={**policy.held, **others}))
        error = trials.metrics(model, _COSTED_IMAGES).relative_rms
        costs.append(Cost(part, error if np.isfinite(error) else float("inf")))
        reporter.progress(index + 1, len(parts))
    return costs


def _fewest(ranked: Sequence[Cost], bound: float, together: float) -> int:
    """Return how many of the costliest blocks have to be kept, at least one, if their errors add up as independent.

    ``together`` is what all of them were measured to cost: it says how far that holds for this model.
    """
    squares = [cost.error**2 for cost in ranked]
    scale = together**2 / (sum(squares) or np.inf)
    if not 0 < scale < np.inf:
        scale = 1.0
    return next((n for n in range(1, len(squares)) if scale * sum(squares[n:]) <= bound**2), len(squares))


class _Trials:
    """Runs candidates against one reference that is computed once."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._reference = _run(task.model, task.images)

    def convert(self, precision: Precision, policy: Policy) -> tuple[onnx.ModelProto, Report]:
        task = self._task
        return convert_model(task.model, precision, policy, ranges=task.ranges, half_io=task.half_io)

    def metrics(self, converted: onnx.ModelProto, images: int | None = None) -> Metrics:
        """Compare a converted model, rounded as a GPU would, on the first ``images`` (all of them by default)."""
        output = _run(emulate(converted), self._task.images[:images])
        return compare(output, self._reference[:images], self._task.contract, classes=self._task.classes)


def _run(model: onnx.ModelProto, images: Inputs) -> Array:
    return joined(run_batched(OnnxBackend(model), images))
