"""Where ONNX Runtime spends its time, by op and by block."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vimdeploy.artifacts.images import synthetic_images
from vimdeploy.artifacts.manifest import read_manifest
from vimdeploy.artifacts.onnx_file import fixed_batch, read_onnx
from vimdeploy.backends.onnxruntime import profiled
from vimdeploy.errors import UsageError

_SUFFIX = "_kernel_time"
_OUTSIDE = "before and after the blocks"


@dataclass(frozen=True)
class Share:
    """What one op or block took."""

    name: str
    calls: int
    """Kernels per run."""
    microseconds: float
    """Per run, without what ran inside it."""
    share: float
    """Of the whole."""


@dataclass(frozen=True)
class Profile:
    """Time of one run in ONNX Runtime on the CPU, with the portable bodies of the custom ops."""

    batch: int
    runs: int
    by_op: tuple[Share, ...]
    """Largest first."""
    by_block: tuple[Share, ...]
    """In the order of the model; nodes that ONNX Runtime fused count to the block that ran before them."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)


def profile(path: Path, *, batch: int = 1, runs: int = 5) -> Profile:
    """Run an exported model on synthetic images under ONNX Runtime's profiler.

    Args:
        path: ONNX file with its manifest.
        batch: images a run; a fixed batch of the file goes first.
        runs: after one that warms up.

    Raises:
        UsageError: a model that takes no images.
        MissingDependencyError: onnxruntime is not installed.

    """
    model, manifest = read_onnx(path), read_manifest(path)
    if manifest.preprocessing is None:
        raise UsageError(f"{path}: takes no images; only models of images are profiled.")
    batch = fixed_batch(model) or batch
    images = synthetic_images(batch, manifest.preprocessing).astype(manifest.input.dtype)
    events = profiled(path, {manifest.input.name: images}, runs)
    return summarise(events, _blocks_by_node(model), batch, runs)


def summarise(events: list[dict[str, Any]], blocks: dict[str, str], batch: int, runs: int) -> Profile:
    """Add up the profiler's events of the runs after the first one.

    Args:
        events: as ONNX Runtime writes them.
        blocks: block of the model's nodes, by name.
        batch: images a run.
        runs: how many of the last runs count.

    """
    begins = sorted(e["ts"] for e in events if e.get("name") == "model_run")[-runs:]
    since = begins[0] if begins else 0
    kernels = [e for e in events if e.get("cat") == "Node" and e["name"].endswith(_SUFFIX) and e["ts"] >= since]
    kernels.sort(key=lambda e: (e["ts"], -e["dur"]))
    own = _own_times(kernels)
    ops: dict[str, list[float]] = defaultdict(list)
    parts: dict[str, list[float]] = defaultdict(list)
    current = _OUTSIDE
    for event, duration in zip(kernels, own, strict=True):
        name = event["name"].removesuffix(_SUFFIX)
        current = blocks.get(name, current)
        ops[event["args"].get("op_name", "?")].append(duration)
        parts[current].append(duration)
    total = sum(own) or 1.0

    def shares(found: dict[str, list[float]]) -> list[Share]:
        return [Share(n, len(t) // runs, round(sum(t) / runs, 1), sum(t) / total) for n, t in found.items()]

    order = {name: index for index, name in enumerate(dict.fromkeys(blocks.values()))}
    by_block = sorted(shares(parts), key=lambda share: order.get(share.name, -1))
    return Profile(batch, runs, tuple(sorted(shares(ops), key=lambda s: (-s.microseconds, s.name))), tuple(by_block))


def _own_times(kernels: list[dict[str, Any]]) -> list[float]:
    """Return the time of each event without that of the events inside it: a Scan's body is events of its own."""
    own = [float(event["dur"]) for event in kernels]
    open_events: list[int] = []
    for index, event in enumerate(kernels):
        while open_events and _ends(kernels[open_events[-1]]) < _ends(event):
            open_events.pop()
        if open_events:
            own[open_events[-1]] -= event["dur"]
        open_events.append(index)
    return [max(time, 0.0) for time in own]


def _ends(event: dict[str, Any]) -> float:
    return float(event["ts"] + event["dur"])


def _blocks_by_node(model: Any) -> dict[str, str]:
    """Return the block of every node: from one block's residual to the next one's, as the exporter names them."""
    found, current = {}, _OUTSIDE
    for node in model.graph.node:
        found[node.name] = current
        for output in node.output:
            if output.startswith("block.") and output.count(".") == 2:
                current = f"block {output.split('.')[1]}"
    last = max((int(name.split()[1]) for name in found.values() if name != _OUTSIDE), default=-1)
    if last >= 0:  # what follows the last block's output is the head
        marker = f"block.{last}.hidden"
        after = False
        for node in model.graph.node:
            if after:
                found[node.name] = _OUTSIDE
            after = after or marker in node.output
    return found
