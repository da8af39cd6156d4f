"""The part of ``vimdeploy export`` that takes a module of the user's: its options, and how it is exported."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vimdeploy.cli.options import Group

if TYPE_CHECKING:
    from vimdeploy.commands.export_entry import ExportedEntry

_PANEL = "A module of your own"


def _option(help_text: str, *names: str) -> Any:
    return typer.Option(*names, help=help_text, rich_help_panel=_PANEL)


@dataclass(frozen=True)
class ModuleGroup(Group):
    """What only a module of the user's has."""

    import_path: Annotated[list[Path] | None, _option("Folder to import the module from; may be repeated.")] = None
    kwargs: Annotated[str | None, _option("Arguments of the function that builds it, as a JSON object.")] = None
    module_checkpoint: Annotated[
        Path | None, _option("Its weights; loaded strictly, never executed.", "--checkpoint")
    ] = None
    key: Annotated[str | None, _option("Entry of the checkpoint that holds the weights.")] = None
    inputs: Annotated[
        list[str] | None, _option("An input, [NAME=]1x3x224x224[:TYPE]; repeated for several.", "--input")
    ] = None
    dynamic: Annotated[
        str | None, _option("Sizes that stay free, such as batch,size=32: batch, size, length, frames.")
    ] = None
    rewrite: Annotated[
        list[str] | None, _option("Only these rewrites of the graph; may be repeated; 'none' for none.")
    ] = None
    stub: Annotated[list[str] | None, _option("An absent package that it imports and never calls.")] = None
    report: Annotated[Path | None, _option("Write versions and the failing line, no weights, for a bug report.")] = None


def is_entry(text: str) -> bool:
    """Return whether ``text`` names a function, ``package.module:function``, and is no file."""
    if ":" not in text:
        return False
    from vimdeploy.commands.export_entry import is_entry as named

    return named(text)


def export(entry: str, output: Path | None, of_module: ModuleGroup, *, opset: int, verify: bool) -> ExportedEntry:
    """Export an entry point, as :func:`vimdeploy.commands.export_entry.export_entry` does."""
    from vimdeploy.commands.export_entry import export_entry, parse_dynamic, parse_kwargs
    from vimdeploy.commands.module_worker import ModuleRequest

    own = of_module
    return export_entry(
        ModuleRequest(
            entry=entry,
            output=str(output or f"{entry.partition(':')[2].rpartition('.')[2]}.onnx"),
            inputs=tuple(own.inputs or ()),
            kwargs=parse_kwargs(own.kwargs),
            import_paths=tuple(map(str, own.import_path or ())),
            dynamic=parse_dynamic(own.dynamic),
            checkpoint=str(own.module_checkpoint) if own.module_checkpoint else None,
            key=own.key,
            opset=opset,
            verify=verify,
            rewrites=tuple(r for r in own.rewrite if r != "none") if own.rewrite else None,
            stubs=tuple(own.stub or ()),
            report=str(own.report) if own.report else None,
        )
    )
