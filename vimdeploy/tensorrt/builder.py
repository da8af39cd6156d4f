"""ONNX -> plan: one path for TensorRT 10, 11 and RTX. What is built is proven from the parsed network first."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnx.helper
import onnx.inliner

from vimdeploy import contract
from vimdeploy.artifacts.tensors import Profile
from vimdeploy.errors import ArtifactError, UsageError
from vimdeploy.graph import bodies
from vimdeploy.tensorrt import proof, translate
from vimdeploy.tensorrt.api import Network, TensorRt
from vimdeploy.tensorrt.boundary import Built, Config, Layer, Messages, Progress, TimingCacheHandle
from vimdeploy.tensorrt.options import BuildOptions, batch_profile, parse_profile
from vimdeploy.tensorrt.progress import Tracker, interruptible


@dataclass(frozen=True)
class Parsed:
    """A network that TensorRT took, and what it is."""

    network: Network
    layers: list[Layer]
    summary: proof.NetworkSummary
    messages: Messages


@dataclass(frozen=True)
class Plan:
    """A built plan and how it came about."""

    content: bytes
    profiles: tuple[Profile, ...]
    timing_cache: TimingCacheHandle | None
    seconds: float


def prepare(model: onnx.ModelProto, owner: TensorRt, source: str) -> bytes:
    """Return the model as this TensorRT wants it.

    With plugins: without function bodies, and with the attributes by which the parser finds the plugin on every custom
    node. TensorRT-RTX takes no plugins: its custom ops are inlined.

    Raises:
        ArtifactError: an opset, an operator or an op version that cannot be built.

    """
    refuse_foreign(model, source)
    if not owner.takes_plugins:
        if bodies.custom_nodes(model) and not model.functions:
            bodies.add_functions(model)
        return bytes(onnx.inliner.inline_local_functions(model).SerializeToString())
    refuse_unserved(model, source)
    stripped = bodies.strip_functions(model)
    for node in bodies.custom_nodes(stripped):
        present = {attribute.name for attribute in node.attribute}
        values = (contract.PLUGIN_VERSION, contract.PLUGIN_NAMESPACE)
        for name, value in zip(contract.PLUGIN_ATTRIBUTES, values, strict=True):
            if name not in present:
                node.attribute.append(onnx.helper.make_attribute(name, value))
    return bytes(stripped.SerializeToString())


def refuse_foreign(model: onnx.ModelProto, source: str) -> None:
    """Raise ArtifactError for what TensorRT would misread: an opset, an operator or an op version it does not know."""
    again = "Export the model again with this version of 'vimdeploy export'."
    versions = {entry.domain: entry.version for entry in model.opset_import}
    opset = versions.get("", versions.get("ai.onnx", 0))
    if not contract.MIN_OPSET <= opset <= contract.MAX_OPSET:
        raise ArtifactError(
            f"{source}: uses opset {opset}; {contract.MIN_OPSET} to {contract.MAX_OPSET} can be built", hint=again
        )
    custom = versions.get(contract.DOMAIN)
    if custom is not None and custom != contract.OP_VERSION:
        raise ArtifactError(
            f"{source}: uses version {custom} of the custom ops; this vimdeploy builds version {contract.OP_VERSION}",
            hint=again,
        )
    for node in model.graph.node:
        known = node.domain in ("", "ai.onnx") or (node.domain == contract.DOMAIN and node.op_type in contract.OPS)
        if not known:
            raise ArtifactError(
                f"{source}: node '{node.name}' is {node.domain}::{node.op_type}, which is neither ONNX nor one of "
                f"{', '.join(sorted(contract.OPS))}",
                hint=again,
            )


def refuse_unserved(model: onnx.ModelProto, source: str) -> None:
    """Raise ArtifactError for custom nodes that the plugin does not serve, before anything is built."""
    shapes = bodies.initializer_shapes(model)
    for node in bodies.custom_nodes(model):
        states = shapes.get(node.input[2], (0,))[-1] if node.op_type != contract.CAUSAL_CONV1D.name else 0
        reason = ""
        if node.op_type not in contract.PLUGIN_OPS:
            reason = f"the TensorRT plugin has no {node.op_type}; it serves {', '.join(contract.PLUGIN_OPS)}"
        elif states > contract.PLUGIN_MAX_STATE:
            reason = f"it has {states} states, the TensorRT plugin serves up to {contract.PLUGIN_MAX_STATE}"
        if reason:
            raise ArtifactError(
                f"{source}: node '{node.name}' cannot be built: {reason}.",
                hint="Build with --runtime rtx, which takes the op's portable body, or run the file in ONNX Runtime.",
            )


def parse(model: onnx.ModelProto, owner: TensorRt, source: str, precision: str, *, kept_blocks: bool = False) -> Parsed:
    """Parse a model and prove what TensorRT made of it.

    Args:
        model: in the types that the engine shall have.
        owner: the TensorRT to build with; its plugins, where it takes any, are loaded.
        source: the model's file name, for messages.
        precision: ``fp32``, ``fp16`` or ``bf16``: what the network is held to.
        kept_blocks: whole blocks stay float32, because the contract could not be kept otherwise.

    Raises:
        ArtifactError: TensorRT cannot take it, plugin layers are missing, or almost nothing is in half precision.

    """
    content = prepare(model, owner, source)
    messages = Messages()
    network, problems = owner.parse(content, messages)
    if network is None:
        raise translate.parse_error(source, problems)
    layers = network.layers()
    summary = proof.summarise(layers)
    plugins = len(bodies.custom_nodes(model)) if owner.takes_plugins else 0
    proof.require(summary, precision=precision, plugins=plugins, kept_blocks=kept_blocks)
    return Parsed(network, layers, summary, messages)


def input_shapes(model: onnx.ModelProto) -> dict[str, tuple[int | None, ...]]:
    """Return the shape of every graph input, None where free."""
    weights = {tensor.name for tensor in model.graph.initializer}
    return {
        value.name: tuple(d.dim_value if d.HasField("dim_value") else None for d in value.type.tensor_type.shape.dim)
        for value in model.graph.input
        if value.name not in weights
    }


def make_profiles(model: onnx.ModelProto, options: BuildOptions, recipe: tuple[int, int, int]) -> tuple[Profile, ...]:
    """Return the optimisation profiles that the options ask for; none where the model has no free dimension."""
    inputs = input_shapes(model)
    if options.profiles:
        return tuple(parse_profile(text, inputs) for text in options.profiles)
    profile = batch_profile(inputs, options.batch, recipe)
    return (profile,) if profile else ()


def build(
    parsed: Parsed,
    options: BuildOptions,
    profiles: tuple[Profile, ...],
    source: str,
    *,
    plugin: Path | None = None,
    timing_cache: bytes | None = None,
    tracker: Tracker | None = None,
) -> Plan:
    """Build the plan of a parsed network; Ctrl-C stops it.

    Raises:
        VimdeployError: TensorRT failed; in words, with what to do.
        KeyboardInterrupt: after TensorRT has stopped.

    """
    config = Config(
        profiles=profiles,
        compute_capabilities=options.compute_capabilities,
        workspace=options.workspace,
        optimization_level=options.optimization_level,
        version_compatible=options.version_compatible,
        hardware_compatible=options.hardware_compatible,
        embed_plugins=(str(plugin),) if options.embed_plugin and plugin else (),
        same_compute_capability=options.same_compute_capability,
        tf32=options.tf32,
        timing_cache=timing_cache,
    )
    tracker = tracker or Tracker()
    started = time.perf_counter()

    def work(progress: Progress) -> Built:
        return parsed.network.build(config, progress)

    built = interruptible(work, tracker)
    if tracker.cancelled:
        raise KeyboardInterrupt
    if built.bad_profile:
        raise UsageError(
            f"{source}: TensorRT refuses the profile {_show(profiles)}",
            hint="Give --min-batch <= --opt-batch <= --max-batch.",
        )
    if built.plan is None:
        raise translate.runtime_error(f"{source}: building", parsed.messages.errors())
    return Plan(built.plan, profiles, built.timing_cache, time.perf_counter() - started)


def _show(profiles: tuple[Profile, ...]) -> str:
    return "; ".join(
        f"{name} {', '.join('x'.join(map(str, s)) for s in shapes)}" for p in profiles for name, shapes in p.items()
    )
