"""What a file holds, as plain values: any artifact of the toolkit, and checkpoints."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vimdeploy import needs
from vimdeploy.artifacts.manifest import PLAN_SUFFIXES
from vimdeploy.errors import ArtifactError, UsageError, VimdeployError

if TYPE_CHECKING:
    import onnx

    from vimdeploy.reports.profile import Profile

_OTHERS = (".onnx", ".json", ".toml", *PLAN_SUFFIXES)
"""Everything else is held to be a checkpoint, which is told by its content: a folder, .ckpt, no suffix at all."""


@dataclass(frozen=True)
class Inspected:
    """What a file holds, in sections of plain values."""

    path: Path
    facts: dict[str, Any]
    layers: list[dict[str, str]] | None = None
    """Nodes of an ONNX file, layers of a plan; None where they were not asked for."""
    profile: Profile | None = None
    """Where ONNX Runtime spends its time; None where it was not asked for."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        layers = {} if self.layers is None else {"layers": self.layers}
        profile = {} if self.profile is None else {"profile": self.profile.to_dict()}
        return {**self.facts, **layers, **profile}


def inspect(file: str | Path, *, layers: bool = False, profile: bool = False) -> Inspected:
    """Say what a file holds: architecture, shapes, operators, types, sizes, manifest.

    Args:
        file: A checkpoint, an ONNX file, a plan, a manifest or a recipe.
        layers: Also list an ONNX file's nodes, or, on its GPU, a plan's layers.
        profile: Also run an ONNX file in ONNX Runtime and measure where time goes, by op and by block.

    Raises:
        VimdeployError: the file is missing, corrupt, of a kind that the toolkit does not know, or without layers.

    """
    path = Path(file)
    facts = _facts(path)
    return Inspected(path, facts, inspect_layers(path) if layers else None, _profile(path) if profile else None)


def _profile(path: Path) -> Profile:
    from vimdeploy.reports.profile import profile

    if path.suffix != ".onnx":
        raise UsageError(f"{path}: is no ONNX file; --profile runs one in ONNX Runtime.")
    return profile(path)


def _facts(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise ArtifactError(f"{path}: there is no such file.")
    if path.is_dir() or path.suffix not in _OTHERS or path.name.endswith(".index.json"):
        return _inspect_checkpoint(path)
    if path.suffix == ".onnx":
        return _inspect_onnx(path)
    if path.suffix == ".json":
        return _inspect_manifest(path)
    if path.suffix in PLAN_SUFFIXES:
        return _inspect_plan(path)
    from vimdeploy.artifacts.recipe import read_recipe

    return {"recipe": read_recipe(path).model_dump(mode="json")}


def inspect_layers(path: Path) -> list[dict[str, str]]:
    """Return the nodes of an ONNX file (name, op, type and shape of the output), or the layers of a plan as built.

    Raises:
        UsageError: a file without layers.
        ArtifactError: this machine cannot load the plan; says why.

    """
    if path.suffix in PLAN_SUFFIXES:
        return _plan_layers(path)
    if path.suffix != ".onnx":
        raise UsageError(f"{path}: has no layers to list.", hint="--layers is for .onnx files and plans.")
    needs.require("inspect")
    import onnx

    from vimdeploy.artifacts.onnx_file import read_onnx, tensor_info

    model = read_onnx(path)
    graph = onnx.shape_inference.infer_shapes(model).graph
    known = {value.name: tensor_info(value) for value in (*graph.value_info, *graph.output)}
    rows = []
    for node in model.graph.node:
        output = known.get(node.output[0])
        op = f"{node.domain}::{node.op_type}" if node.domain else node.op_type
        shape = "" if output is None else " x ".join(map(str, output.shape))
        rows.append({"name": node.name, "op": op, "type": output.dtype if output else "", "shape": shape})
    return rows


def _plan_layers(path: Path) -> list[dict[str, str]]:
    from vimdeploy.runtime.plan_session import load_plan
    from vimdeploy.tensorrt.proof import engine_layers

    _, engine, _ = load_plan(path)
    return [{"layer": kind, "name": name, "tactic": tactic} for kind, name, tactic in engine_layers(engine.inspect())]


def _inspect_checkpoint(path: Path) -> dict[str, Any]:
    needs.require("inspect CHECKPOINT")
    from vimdeploy.models.checkpoint.reading import read_checkpoint
    from vimdeploy.models.registry import recognise

    checkpoint = read_checkpoint(path)
    tensors = checkpoint.state.values()
    facts: dict[str, Any] = {
        "checkpoint": {
            "file": str(path),
            "bytes": path.stat().st_size,
            "sha256": checkpoint.sha256,
            "weights": checkpoint.weights,
            "tensors": len(checkpoint.state),
            "values": sum(tensor.numel() for tensor in tensors),
            "trained as": checkpoint.arguments.get("model", "not said"),
        }
    }
    try:
        _, recognised = recognise(checkpoint, {}, None, dense=False)
    except VimdeployError as error:
        facts["architecture"] = {"not recognised": str(error)}
        return facts
    facts["architecture"] = {
        "family": recognised.config.family,
        "recipe": recognised.recipe.name if recognised.recipe else "none",
        **recognised.config.official(),
    }
    return facts


def _inspect_onnx(path: Path) -> dict[str, Any]:
    needs.require("inspect")
    from vimdeploy.artifacts.files import sidecar_of
    from vimdeploy.artifacts.manifest import is_stale, manifest_path, read_manifest
    from vimdeploy.artifacts.onnx_file import read_onnx, tensor_info

    model = read_onnx(path)
    facts: dict[str, Any] = {
        "file": {
            "file": str(path),
            "bytes": path.stat().st_size,
            "opsets": {entry.domain or "ai.onnx": entry.version for entry in model.opset_import},
            "producer": f"{model.producer_name} {model.producer_version}".strip(),
            "nodes": len(model.graph.node),
            "functions": [f"{f.domain}::{f.name}{f.overload and ':' + f.overload}" for f in model.functions],
        },
        "operators": dict(
            Counter(f"{n.domain}::{n.op_type}" if n.domain else n.op_type for n in model.graph.node).most_common()
        ),
        "inputs": {t.name: f"{t.dtype} {list(t.shape)}" for t in map(tensor_info, model.graph.input)},
        "outputs": {t.name: f"{t.dtype} {list(t.shape)}" for t in map(tensor_info, model.graph.output)},
        "weights": _weights_by_type(model),
    }
    if not sidecar_of(path, manifest_path(path)).exists():
        facts["manifest"] = {"": "missing"}
        return facts
    manifest = read_manifest(path)
    facts["manifest"] = {
        **manifest.model_dump(mode="json", exclude={"parity", "input", "outputs"}),
        "describes this file": not is_stale(manifest, path),
        "verified at export": manifest.parity is not None,
    }
    return facts


def _inspect_plan(path: Path) -> dict[str, Any]:
    """Read a plan's manifest; the layers in it were read from the network and, on a GPU, from the built engine."""
    from vimdeploy.artifacts.engine_manifest import read_engine_manifest
    from vimdeploy.artifacts.files import sha256_file

    manifest = read_engine_manifest(path)
    plain = manifest.model_dump(mode="json", exclude={"network", "inspector", "source"})
    return {
        "file": {"file": str(path), "bytes": path.stat().st_size},
        "manifest": {**plain, "describes this file": sha256_file(path) == manifest.plan_sha256},
        "network as parsed": manifest.network,
        "engine as built": manifest.inspector or {"": "not read: built without a GPU"},
        "model": manifest.source.model.model_dump(mode="json") if manifest.source else {"": "no manifest of the ONNX"},
    }


def _inspect_manifest(path: Path) -> dict[str, Any]:
    from vimdeploy.artifacts.manifest import parse_manifest

    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ArtifactError(f"{path}: not a readable JSON file: {error}.") from error
    if isinstance(data, dict) and data.get("kind") == "engine":
        from vimdeploy.artifacts.engine_manifest import read_engine_manifest

        return {"manifest": read_engine_manifest(path.with_suffix("")).model_dump(mode="json")}
    return {"manifest": parse_manifest(data, path).model_dump(mode="json")}


def _weights_by_type(model: onnx.ModelProto) -> dict[str, str]:
    import numpy as np
    import onnx

    values: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    for tensor in model.graph.initializer:
        dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type))
        count = int(np.prod(tensor.dims))
        values[dtype.name] += count
        sizes[dtype.name] += count * dtype.itemsize
    return {name: f"{values[name]:,} values, {sizes[name] / 1e6:.2f} MB" for name in values}
