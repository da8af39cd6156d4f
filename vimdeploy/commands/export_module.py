"""``export_module``: any torch module built on Mamba's kernels becomes a verified ONNX file with a manifest."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vimdeploy import contract
from vimdeploy.artifacts.files import check_writable, sha256_bytes, write_all
from vimdeploy.artifacts.golden import Case, golden_path, pack
from vimdeploy.artifacts.manifest import (
    CheckpointInfo,
    Manifest,
    ModelInfo,
    ModuleInfo,
    OnnxInfo,
    TensorInfo,
    manifest_path,
)
from vimdeploy.artifacts.onnx_file import tensor_info
from vimdeploy.artifacts.recipe import BatchProfile, Classes, InputSpec, Parity, Precision
from vimdeploy.commands import module_proof as proof
from vimdeploy.commands.module_source import load_weights
from vimdeploy.errors import UsageError, VerificationError
from vimdeploy.graph.axes import make_axes, sized, sizes_of, traceable_sizes
from vimdeploy.graph.check import check_model
from vimdeploy.graph.export import serialize
from vimdeploy.graph.rewrite import rewrite_model
from vimdeploy.graph.trace import Axes, FlatModule, Signature, Traced, name_leaves, trace
from vimdeploy.interop.context import Substitution, substitute_mamba_ssm
from vimdeploy.parity.compare import Report
from vimdeploy.progress import SILENT, Reporter
from vimdeploy.version import __version__


@dataclass(frozen=True)
class ExportedModule:
    """What an export made."""

    path: Path
    manifest: Manifest
    report: Report | None
    substitution: Substitution
    notes: tuple[str, ...]
    traced_nodes: int
    """Nodes before the rewrites."""


@dataclass(frozen=True)
class _Request:
    """Arguments of :func:`export_module` that the parts of it need."""

    dynamic: Mapping[str, Any] | None
    names: Mapping[str, Sequence[str]]
    opset: int
    verify: bool
    rewrites: Sequence[str] | None
    preprocessing: InputSpec | None
    classes: Sequence[str] | None
    entry: str | None
    entry_kwargs: Mapping[str, Any]
    import_paths: Sequence[Path]


def export_module(
    module: nn.Module,
    example_inputs: Any,
    path: str | Path,
    *,
    example_kwargs: Mapping[str, Any] | None = None,
    dynamic: Mapping[str, Any] | None = None,
    names: Mapping[str, Sequence[str]] | None = None,
    checkpoint: str | Path | None = None,
    key: str | None = None,
    preprocessing: InputSpec | Mapping[str, Any] | None = None,
    classes: Sequence[str] | None = None,
    opset: int = contract.DEFAULT_OPSET,
    verify: bool = True,
    rewrites: Sequence[str] | None = None,
    stubs: Sequence[str] = (),
    entry: str | None = None,
    entry_kwargs: Mapping[str, Any] | None = None,
    import_paths: Sequence[Path] = (),
    reporter: Reporter = SILENT,
) -> ExportedModule:
    """Export a module to an ONNX file that is proven equal, with its manifest and golden inputs and outputs beside it.

    The module runs in eval mode on the CPU, with mamba_ssm substituted; its own state is put back afterwards. Nothing
    is written before everything is proven; all files appear together, or none.

    Args:
        module: any module; its inputs and outputs may be nested lists, tuples and dictionaries of tensors, and None.
        example_inputs: one tensor, or a tuple or list of positional arguments.
        path: ONNX file to write.
        example_kwargs: named arguments of ``forward``.
        dynamic: symbolic sizes: ``{"batch": True, "size": 32}`` (height and width, multiples of 32), ``length``,
            ``frames``, or by input: ``{"x": {0: "batch", 2: ("height", 32)}}``. None fixes every size.
        names: ``{"inputs": [...], "outputs": [...]}``; by default those of the arguments and of the result's keys.
        checkpoint: weights to load first, strictly and without executing code.
        key: entry of the checkpoint that holds them, where it is not found by itself.
        preprocessing: how image files become the input, as in a recipe's ``[input]``; for ``predict``.
        classes: names of the classes, for a classifier of images.
        opset: of the standard ONNX operators.
        verify: compare in ONNX Runtime at several sizes; the other checks are always made.
        rewrites: names of the rewrites of the graph to apply; None applies all of them.
        stubs: further packages to stub where they are absent.
        entry: how to build the module again, ``package.module:function``, for the manifest.
        entry_kwargs: arguments of the entry.
        import_paths: folders that the entry is imported from.
        reporter: told what begins.

    Raises:
        ModelError: the module is random, bakes a size in, depends on values for its shapes, or cannot be traced.
        VerificationError: the file computes something else than the module.
        VimdeployError: bad input; see the kinds in ``errors.py``.

    """
    target = Path(path)
    if target.suffix != ".onnx":
        raise UsageError(f"{target}: an exported module is an .onnx file.", hint=f"Use {target.with_suffix('.onnx')}.")
    check_writable(target)
    args = example_inputs if isinstance(example_inputs, (tuple, list)) else (example_inputs,)
    spec = InputSpec(**preprocessing) if isinstance(preprocessing, Mapping) else preprocessing
    request = _Request(
        dynamic,
        dict(names or {}),
        opset,
        verify,
        rewrites,
        spec,
        classes,
        entry,
        dict(entry_kwargs or {}),
        import_paths,
    )
    loaded = load_weights(module, Path(checkpoint), key) if checkpoint else None
    with substitute_mamba_ssm(stubs=stubs) as substitution, proof.in_eval_mode(module):
        return _export(module, args, dict(example_kwargs or {}), target, request, loaded, substitution, reporter)


def _export(
    module: nn.Module,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    target: Path,
    request: _Request,
    loaded: CheckpointInfo | None,
    substitution: Substitution,
    reporter: Reporter,
) -> ExportedModule:
    names, tensors = _inputs(module, args, kwargs, request)
    axes = make_axes(request.dynamic, names, tensors)
    sizes = traceable_sizes(axes, tensors)
    if sizes != sizes_of(axes, tensors):
        tensors = sized(tensors, axes, sizes)
    flat = FlatModule(module, args, kwargs)
    reporter.stage("Running the model twice in PyTorch")
    observed = proof.observe(flat, tensors)
    signature = Signature(tuple(names), _output_names(flat, observed.outputs, request, tensors))
    taps = {f"block.{i}.output": tap.path for i, tap in enumerate(observed.taps)}
    reporter.stage("Tracing it")
    tapped = FlatModule(module, args, kwargs, observed.taps)
    traced = trace(tapped, tensors, axes, signature, list(taps), request.opset)
    notes = [*_explain(observed, signature), *proof.check_kernels(traced, observed)]
    proof.check_symbolic(traced, axes)
    before = len(traced.model.graph.node)
    plain = traced.model
    reporter.stage("Rewriting the graph")
    traced.model, rewrites = rewrite_model(plain, request.rewrites)
    reporter.stage("Checking the graph")
    check_model(traced.model, str(target), allow_reversal=True)
    parity, report = Parity(), None
    if request.verify:
        reporter.stage("Verifying in ONNX Runtime")
        report, cases = proof.prove(flat, traced, tensors, axes, signature, parity.fp32, reporter)
        if not report.passed and rewrites:
            notes.append(f"left as traced: with the rewrites {', '.join(rewrites)} the file computed something else")
            traced.model, rewrites = plain, {}
            report, cases = proof.prove(flat, traced, tensors, axes, signature, parity.fp32, reporter)
        if not report.passed:
            departs = proof.first_departure(traced.model, tapped, tensors, cases[0], taps)
            raise VerificationError(
                f"{target}: ONNX Runtime does not compute what the module computes: "
                f"{'; '.join(report.violations[:3])}. They part {departs}.",
                hint="Nothing was written. Please report it: 'vimdeploy export ... --report FILE'.",
            )
    else:
        cases = [proof.make_case(flat, tensors, signature)]
        notes.append("not verified: --no-verify")
    reporter.stage("Writing")
    golden = pack([cases[0], *cases[-1:]] if len(cases) > 1 else cases)
    content = serialize(traced.model)
    info = ModuleInfo(
        entry=request.entry,
        kwargs=dict(request.entry_kwargs),
        import_paths=tuple(os.path.relpath(folder, target.parent) for folder in request.import_paths),
        inputs=tuple(tensor_info(value) for value in traced.model.graph.input),
        golden_sha256=sha256_bytes(golden),
        blocks=tuple(taps.values()),
        substituted=substitution.substituted,
        stubbed=substitution.stubbed,
        rewrites=rewrites,
        profile=_profile(axes, tensors, names),
    )
    manifest = _manifest(module, traced, content, request, info, loaded, target, report, notes, cases[0])
    write_all({golden_path(target): golden, manifest_path(target): manifest.to_bytes(), target: content})
    return ExportedModule(target, manifest, report, substitution, tuple(manifest.notes), before)


def _inputs(
    module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], request: _Request
) -> tuple[list[str], list[Tensor]]:
    """Return names and values of the tensors among the example inputs, on the CPU."""
    import inspect

    positional = [p.name for p in inspect.signature(module.forward).parameters.values() if p.kind < p.VAR_POSITIONAL]
    known = [*positional, *(f"input_{i}" for i in range(len(positional), len(args)))]
    names, leaves = name_leaves({**dict(zip(known, args, strict=False)), **kwargs}, "input")
    pairs = [(name, leaf) for name, leaf in zip(names, leaves, strict=True) if isinstance(leaf, Tensor)]
    if not pairs:
        raise UsageError("The example inputs hold no tensor.", hint="Pass example inputs as forward takes them.")
    given = request.names.get("inputs")
    if given is not None and len(given) != len(pairs):
        raise UsageError(
            f"There are {len(pairs)} input tensors ({', '.join(n for n, _ in pairs)}), {len(given)} names."
        )
    if given is None and _takes_images([leaf for _, leaf in pairs]):
        given = ["images"]
    return list(given or (name for name, _ in pairs)), [leaf.detach().cpu() for _, leaf in pairs]


def _takes_images(tensors: Sequence[Tensor]) -> bool:
    first = tensors[0]
    return len(tensors) == 1 and first.dim() == 4 and first.is_floating_point() and first.shape[1] in (1, 3, 4)


def _output_names(
    flat: FlatModule, outputs: Sequence[Tensor], request: _Request, tensors: Sequence[Tensor]
) -> tuple[str, ...]:
    given = request.names.get("outputs")
    if given is not None:
        if len(given) != len(outputs):
            raise UsageError(f"The model has {len(outputs)} output tensors, {len(given)} names were given.")
        return tuple(given)
    if _is_classifier(tensors, outputs):
        return ("logits",)
    return tuple(flat.output_names)


def _is_classifier(tensors: Sequence[Tensor], outputs: Sequence[Tensor]) -> bool:
    return (
        _takes_images(tensors)
        and len(outputs) == 1
        and outputs[0].dim() == 2
        and outputs[0].shape[0] == tensors[0].shape[0]
        and outputs[0].shape[1] > 1
    )


def _explain(observed: proof.Observed, signature: Signature) -> list[str]:
    kernels = ", ".join(f"{n}x {name}" for name, n in observed.calls.items())
    found = [f"kernels called: {kernels}"] if kernels else []
    if len(set(signature.outputs)) < len(signature.outputs):
        raise UsageError(f"Two outputs have one name: {', '.join(signature.outputs)}.", hint="Pass names for them.")
    return found


def _profile(axes: Sequence[Axes], tensors: Sequence[Tensor], names: Sequence[str]) -> dict[str, Any]:
    """Return the shapes of an optimization profile: batch 1 to 8, other sizes from the example's to twice as much."""

    def shape(tensor: Tensor, own: Axes, batch: int, factor: int) -> tuple[int, ...]:
        return tuple(
            size if dim not in own else own[dim].multiple * batch if own[dim].name == "batch" else size * factor
            for dim, size in enumerate(tensor.shape)
        )

    if not any(axes):
        return {}
    return {
        name: (shape(t, own, 1, 1), shape(t, own, 1, 1), shape(t, own, 8, 2))
        for name, t, own in zip(names, tensors, axes, strict=True)
    }


def _manifest(
    module: nn.Module,
    traced: Traced,
    content: bytes,
    request: _Request,
    info: ModuleInfo,
    loaded: CheckpointInfo | None,
    target: Path,
    report: Report | None,
    notes: list[str],
    case: Case,
) -> Manifest:
    graph = traced.model.graph
    arrays, outputs = list(case.inputs.arrays.values()), list(case.outputs.values())
    images = _takes_images([torch.from_numpy(a) for a in arrays])
    classifies = images and len(outputs) == 1 and outputs[0].ndim == 2 and outputs[0].shape[1] > 1
    spec = request.preprocessing
    if spec is None and images:
        channels, *size = arrays[0].shape[1:]
        spec = InputSpec(size=(size[0], size[1]), channels=channels, **({} if channels == 3 else _UNIT(channels)))
        notes.append(f"preprocessing was not given: {'ImageNet' if channels == 3 else 'a'} mean and spread are assumed")
    count = outputs[0].shape[1] if classifies else 0
    names = [node.op_type for node in graph.node if node.domain == contract.DOMAIN]
    file = os.path.relpath(loaded.file, target.parent) if loaded else ""
    fixed = not any(d.dim_param for d in graph.input[0].type.tensor_type.shape.dim[:1])
    batch = int(arrays[0].shape[0]) if fixed and arrays[0].ndim else 0
    return Manifest(
        tools={"vimdeploy": __version__, **{name: version(name) for name in ("torch", "onnx", "onnxscript")}},
        model=ModelInfo(
            family="module",
            task="classify" if classifies else "module",
            recipe=None,
            parameters=sum(p.numel() for p in module.parameters()),
            arguments={"class": f"{type(module).__module__}.{type(module).__qualname__}"},
            img_size=(arrays[0].shape[2], arrays[0].shape[3]) if images else None,
            official_pos_resize=False,
            sources={},
        ),
        checkpoint=loaded.model_copy(update={"file": file})
        if loaded
        else CheckpointInfo(file="", sha256="", weights="own"),
        onnx=OnnxInfo(
            sha256=sha256_bytes(content),
            opset=request.opset,
            op_contract=contract.OP_VERSION,
            custom_ops=dict(sorted(Counter(names).items())),
            nodes=len(graph.node),
        ),
        preprocessing=spec,
        classes=Classes(count=count, names=tuple(request.classes) if request.classes else None),
        input=info.inputs[0],
        outputs=tuple(_named(value) for value in graph.output),
        precision=Precision(),
        batch=BatchProfile(min=batch, opt=batch, max=batch) if batch else BatchProfile(),
        contract=Parity(),
        parity=report.to_dict() if report else None,
        notes=tuple(notes),
        module=info,
    )


def _UNIT(channels: int) -> dict[str, Any]:  # noqa: N802
    return {"mean": (0.5,) * channels, "std": (0.5,) * channels}


def _named(value: Any) -> TensorInfo:
    """Return an output's type; a dimension that follows from others has no name of its own and gets one."""
    info = tensor_info(value)
    return info.model_copy(update={"shape": tuple(d or f"{info.name}_{i}" for i, d in enumerate(info.shape))})
