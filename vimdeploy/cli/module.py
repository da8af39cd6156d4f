"""The part of ``vimdeploy export`` that takes a module of the user's: its options, and what it shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vimdeploy.cli.screen import note, print_json, result, table
from vimdeploy.errors import UsageError

if TYPE_CHECKING:
    from vimdeploy.commands.export_entry import ExportedEntry

_PANEL = "A module of your own"


def _option(help_text: str, *names: str) -> Any:
    return typer.Option(*names, help=help_text, rich_help_panel=_PANEL)


ImportPaths = Annotated[
    list[Path] | None, _option("Folder to import the module from; may be repeated.", "--import-path")
]
Kwargs = Annotated[str | None, _option("Arguments of the function that builds it, as a JSON object.", "--kwargs")]
Checkpoint = Annotated[Path | None, _option("Its weights; loaded strictly, never executed.", "--checkpoint")]
Key = Annotated[str | None, _option("Entry of the checkpoint that holds the weights.", "--key")]
Inputs = Annotated[list[str] | None, _option("An input, [NAME=]1x3x224x224[:TYPE]; repeated for several.", "--input")]
Dynamic = Annotated[
    str | None, _option("Sizes that stay free, such as batch,size=32: batch, size, length, frames.", "--dynamic")
]
Rewrites = Annotated[
    list[str] | None, _option("Only these rewrites of the graph; may be repeated; 'none' for none.", "--rewrite")
]
Stubs = Annotated[list[str] | None, _option("An absent package that it imports and never calls.", "--stub")]
Report = Annotated[
    Path | None, _option("Write versions and the failing line, no weights, for a bug report.", "--report")
]


def is_entry(text: str) -> bool:
    """Return whether ``text`` names a function, ``package.module:function``, and is no file."""
    from vimdeploy.commands.export_entry import is_entry as named

    return named(text)


def refuse_without_entry(options: Mapping[str, Any]) -> None:
    """Raise UsageError for options that only a module of the user's can have."""
    given = [name for name, value in options.items() if value]
    if given:
        raise UsageError(
            f"{', '.join(given)}: only for a module of your own.",
            hint="Name the function that builds it: vimdeploy export package.module:function ...",
        )


def export(
    entry: str,
    output: Path | None,
    import_path: Sequence[Path] | None,
    kwargs: str | None,
    checkpoint: Path | None,
    key: str | None,
    inputs: Sequence[str] | None,
    dynamic: str | None,
    rewrites: Sequence[str] | None,
    stubs: Sequence[str] | None,
    report: Path | None,
    opset: int,
    verify: bool,
    as_json: bool,
) -> None:
    """Export an entry point and show what was made."""
    from vimdeploy.commands.export_entry import export_entry, parse_dynamic, parse_kwargs
    from vimdeploy.commands.module_worker import ModuleRequest

    request = ModuleRequest(
        entry=entry,
        output=str(output or f"{entry.partition(':')[2].rpartition('.')[2]}.onnx"),
        inputs=tuple(inputs or ()),
        kwargs=parse_kwargs(kwargs),
        import_paths=tuple(map(str, import_path or ())),
        dynamic=parse_dynamic(dynamic),
        checkpoint=str(checkpoint) if checkpoint else None,
        key=key,
        opset=opset,
        verify=verify,
        rewrites=tuple(r for r in rewrites if r != "none") if rewrites else None,
        stubs=tuple(stubs or ()),
        report=str(report) if report else None,
    )
    made = export_entry(request)
    if as_json:
        print_json({"path": str(made.path), **made.manifest.model_dump(mode="json"), "notes": list(made.notes)})
        return
    _show(made)


def _show(made: ExportedEntry) -> None:
    manifest = made.manifest
    for text in made.notes:
        note(text)
    rows = [
        (
            r["batch"],
            r["output"],
            r.get("ops", ""),
            f"{r['max_abs']:.2e}",
            f"{r['relative_rms']:.2e}",
            "yes" if r["passed"] else "NO",
        )
        for r in (manifest.parity or {}).get("results", ())
    ]
    table("ONNX Runtime against torch", ("batch", "output", "ops", "max abs", "relative RMS", "within contract"), rows)
    custom = ", ".join(f"{n} {name}" for name, n in manifest.onnx.custom_ops.items()) or "none"
    result(f"{manifest.onnx.nodes} nodes, custom: {custom}")
    result(f"wrote {made.path} ({made.path.stat().st_size / 1e6:.1f} MB), its manifest and its golden outputs")
