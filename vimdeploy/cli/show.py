"""How results look to people: tables and lines on standard output, notes on standard error."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vimdeploy.cli.screen import note, result, table, warn

if TYPE_CHECKING:
    from vimdeploy.artifacts.manifest import ModelInfo
    from vimdeploy.artifacts.recipe import Recipe
    from vimdeploy.artifacts.tensors import Profile
    from vimdeploy.commands.build_engine import BuiltEngine
    from vimdeploy.commands.convert import Converted
    from vimdeploy.commands.demo import Demo
    from vimdeploy.commands.export import Exported
    from vimdeploy.commands.export_entry import ExportedEntry
    from vimdeploy.commands.inspect import Inspected
    from vimdeploy.commands.verify import Verified
    from vimdeploy.tensorrt.boundary import Layer


def exported(made: Exported) -> None:
    """Show what was recognised, how it compares, and what was written."""
    _architecture(made.manifest.model)
    for text in made.manifest.notes:
        note(text)
    if made.manifest.parity:
        _parity(made.manifest.parity)
    result(f"wrote {made.path} ({made.path.stat().st_size / 1e6:.1f} MB) and {made.manifest_path}")


def exported_entry(made: ExportedEntry) -> None:
    """Show how a module of the user's compares, and what was written."""
    manifest = made.manifest
    for text in made.notes:
        note(text)
    if manifest.parity:
        _parity(manifest.parity)
    custom = ", ".join(f"{n} {name}" for name, n in manifest.onnx.custom_ops.items()) or "none"
    result(f"{manifest.onnx.nodes} nodes, custom: {custom}")
    result(f"wrote {made.path} ({made.path.stat().st_size / 1e6:.1f} MB), its manifest and its golden outputs")


def verified(found: Verified) -> None:
    """Show a comparison or a ladder, and its verdict where it passed."""
    for text in found.notes:
        warn(text)
    report = found.report.to_dict()
    if "rungs" in report:
        _ladder(found.path, report)
        verdict = report["verdict"]
    else:
        _parity(report)
        verdict = f"{found.path} computes what the PyTorch model computes."
    if found.passed:
        result(verdict)


def write_report(path: Path, found: Verified) -> None:
    """Write a report as JSON, whole or not at all."""
    from vimdeploy.artifacts.files import write_all

    write_all({path: (json.dumps(found.to_dict(), indent=2) + "\n").encode()})
    note(f"wrote {path}")


def inspected(found: Inspected) -> None:
    """Show one table a section."""
    for section, content in found.facts.items():
        rows = content.items() if isinstance(content, dict) else [("", content)]
        table(section, ("what", "value"), [(key, _short(value)) for key, value in rows])
    if found.layers is not None:
        columns = tuple(found.layers[0]) if found.layers else ()
        table("layers", columns, [tuple(row.values()) for row in found.layers])
    if found.profile is not None:
        for title, shares in (("time by op", found.profile.by_op), ("time by block", found.profile.by_block)):
            lines = [(s.name, s.calls, f"{s.microseconds / 1000:.3f}", f"{s.share:.1%}") for s in shares]
            table(f"{title}, batch {found.profile.batch}", ("what", "kernels", "ms", "share"), lines)


def recipes(known: Iterable[Recipe]) -> None:
    """Show one line a recipe."""
    rows = [
        (r.name, r.title, f"{r.parameters:,}", " x ".join(map(str, r.input.size)), r.classes.count, r.checkpoint or "")
        for r in known
    ]
    table("Recipes", ("name", "model", "parameters", "image", "classes", "checkpoint"), rows)


def demo(made: Demo) -> None:
    """Show accuracies, a few images, where everything lies, and what to do next."""
    rows: list[tuple[object, object]] = [
        ("held-back digits", made.held_out),
        ("accuracy, PyTorch", f"{made.accuracy['torch']:.2%}"),
        ("accuracy, ONNX Runtime", f"{made.accuracy['onnxruntime']:.2%}"),
        ("same best class", f"{made.agreement:.2%}"),
        ("largest difference of a logit", f"{made.metrics.max_abs:.1e}"),
    ]
    table("On digits that training never saw", ("measured", "value"), rows)
    seen = [(Path(p.image).name, *(f"{c.label}  {c.probability:.1%}" for c in p.classes)) for p in made.predictions]
    table("Classified by the ONNX model", ("image", "best", "second"), seen)
    rows = [
        ("checkpoint", made.checkpoint),
        ("ONNX model", made.exported.path),
        ("manifest", made.exported.manifest_path),
        ("images", made.images),
    ]
    table("Where everything lies", ("what", "where"), rows)
    result(f"Next: vimdeploy predict {made.exported.path} {made.images / Path(made.predictions[0].image).name}")


def converted(made: Converted) -> None:
    """Show what stayed float32, what it costs, and what was written."""
    report, metrics = made.half.report, made.half.metrics
    _kept((f"{k.node} ({k.op})", k.reason) for k in report.kept)
    if metrics:
        numbers = f"relative RMS {metrics.relative_rms:.2e}, cosine {metrics.cosine:.7f}"
        result(f"{numbers} against float32, over {metrics.samples} images")
    share = report.half_weight_bytes / max(report.half_weight_bytes + report.float_weight_bytes, 1)
    types = f"{report.nodes} nodes in {report.precision}, {share:.0%} of the weight bytes, {report.casts} casts"
    result(f"wrote {made.path}: {types}")


def policy() -> None:
    """Show which ops go down to half precision and which stay."""
    from vimdeploy.commands.convert import policy_table

    table("Policy", ("op", "inputs in half", "output", "why"), policy_table())


def built(made: BuiltEngine) -> None:
    """Show what the engine is, and what was written."""
    manifest, network = made.manifest, made.manifest.network
    _kept(entry.partition(": ")[::2] for entry in manifest.kept_float32)
    for text in made.notes:
        note(text)
    rows = [
        ("precision", manifest.precision + (", TF32 allowed" if manifest.tf32 else "")),
        ("layers parsed", f"{network['layers']}, of which {network['plugin_layers']} plugins"),
        ("compute layers in half", f"{network['half_compute_share']:.0%} of {network['compute_layers']}"),
        ("weight bytes in half", f"{network['half_weight_share']:.0%}"),
        ("profiles", "; ".join(map(_profile, manifest.profiles)) or "fixed shapes"),
        ("for", ", ".join(manifest.target.compute_capabilities)),
        ("built by", f"{manifest.tensorrt.flavour} {manifest.tensorrt.version} in {made.seconds:.1f} s"),
    ]
    if manifest.inspector:
        i = manifest.inspector
        rows.append(("layers built", f"{i['layers']}, {i['fused_layers']} fused, {i['reformats']} reformats"))
    table("Engine", ("what", "value"), rows)
    result(f"wrote {made.path} ({manifest.plan_bytes / 1e6:.1f} MB) and {made.manifest_path}")


def layers(parsed: Sequence[Layer], inspector: dict[str, Any] | None) -> None:
    """Show what was parsed by kind and type, then the engine's layers where they could be read."""
    counts = Counter((layer.kind, layer.dtype) for layer in parsed)
    weights: Counter[tuple[str, str]] = Counter()
    for layer in parsed:
        weights[layer.kind, layer.dtype] += layer.weight_bytes
    rows = [(kind, dtype, n, weights[kind, dtype]) for (kind, dtype), n in counts.most_common()]
    table("Network as parsed", ("layer", "type", "count", "weight bytes"), rows)
    if inspector:
        from vimdeploy.tensorrt.proof import engine_layers

        table("Engine as built", ("layer", "name", "tactic"), engine_layers(inspector))


def _architecture(model: ModelInfo) -> None:
    """Show what was seen, and what was inferred from where."""
    by_source: dict[str, list[str]] = {}
    flat = {**model.arguments, **model.arguments.get("ssm_cfg", {})}
    for name, source in model.sources.items():
        by_source.setdefault(source, []).append(f"{name}={_short(flat.get(name))}")
    title = f"Architecture: {model.family}, {f'recipe {model.recipe}' if model.recipe else 'no recipe fits'}"
    table(title, ("known from", "values"), [(s, ", ".join(v)) for s, v in by_source.items()])


def _parity(report: Mapping[str, Any]) -> None:
    """Show a comparison, as manifests keep it."""
    rows = [
        (
            r["batch"],
            r["output"],
            r["ops"],
            r["samples"],
            _number(r["max_abs"], ".2e"),
            _number(r["relative_rms"], ".2e"),
            _number(r["cosine"], ".7f"),
            "" if r["top1"] is None else f"{r['top1']:.2%} of {r['decided']}",
            _share(r["top5"]),
            "yes" if r["passed"] else "NO",
        )
        for r in report["results"]
    ]
    columns = (
        "batch",
        "output",
        "ops",
        "images",
        "max abs",
        "relative RMS",
        "cosine",
        "top-1",
        "top-5",
        "within contract",
    )
    table(f"{report['candidate']} against {report['reference']}", columns, rows)


def _ladder(path: Path, report: Mapping[str, Any]) -> None:
    rows = []
    for rung in report["rungs"]:
        a, b = rung["against_first"], rung["against_previous"]
        numbers = ("", "", "")
        if a:
            numbers = (_number(a["relative_rms"], ".1e"), _number(a["cosine"], ".6f"), _share(a["top1"]))
        step = _number(b["relative_rms"], ".1e") if b else ""
        rows.append((rung["name"], rung["status"], *numbers, step, rung["reason"]))
    columns = ("rung", "status", "rel. RMS", "cosine", "top-1", "to the one before", "")
    table(f"{path} on {report['samples']} images, against the first rung", columns, rows)


def _profile(profile: Profile) -> str:
    """Return a profile in words: ``images 1, 8, 64 x 3 x 224 x 224``."""
    rows = []
    for name, (least, best, most) in profile.items():
        rest = " x ".join(map(str, most[1:]))
        same = least[1:] == best[1:] == most[1:]
        shapes = f"{least[0]}, {best[0]}, {most[0]} x {rest}" if same else f"{least}, {best}, {most}"
        rows.append(f"{name} {shapes}")
    return "; ".join(rows)


def _kept(kept: Iterable[tuple[str, str]]) -> None:
    """Say which nodes stay float32 and why; the nodes of a block have their reason in common."""
    by_reason: dict[str, list[str]] = {}
    for node, reason in kept:
        by_reason.setdefault(reason, []).append(node)
    for reason, nodes in by_reason.items():
        who = f"{nodes[0]} stays" if len(nodes) == 1 else f"{len(nodes)} nodes stay"
        note(f"{who} float32: {reason}")


def _number(value: float | None, form: str) -> str:
    """Return a number, which is None where it was NaN or infinite: JSON has neither."""
    return "not finite" if value is None else format(value, form)


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.2%}"


def _short(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return ", ".join(f"{k}: {_short(v)}" for k, v in value.items())
    if isinstance(value, (list, tuple)):
        shown = ", ".join(_short(v) for v in value[:12])
        return f"[{shown}{', ...' if len(value) > 12 else ''}]"
    return str(value)
