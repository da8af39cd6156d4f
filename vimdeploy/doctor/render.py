"""The report as tables for people."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from vimdeploy.doctor.report import Facts, Report
from vimdeploy.native.libraries import PLUGIN_KIND

_MARKS = {"error": ("✗", "red"), "warning": ("!", "yellow"), "note": ("·", "cyan")}


def render(report: Report, console: Console) -> None:
    """Print what was found, which commands can run, and what to mend."""
    facts = report.facts
    console.print(f"[bold]vimdeploy {facts.vimdeploy}[/]  Python {facts.python}  {facts.system}", highlight=False)
    console.print(Text(facts.executable, style="dim"))
    _table(console, "Python packages", ("package", "version", ""), _packages(facts))
    _table(console, "TensorRT", ("what", "version", "where"), _tensorrt(facts))
    _table(console, "GPU", ("what", "version", ""), _gpu(facts))
    _table(console, "Building the plugin library", ("what", "version", "where"), _building(facts))
    rows = [
        (Text("✓", "green") if c.ready else Text("✗", "red"), Text(c.name, "bold"), Text("; ".join(c.missing), "dim"))
        for c in report.commands
    ]
    _table(console, "Commands on this machine", ("", "vimdeploy", "lacks"), rows)
    _findings(report, console)


def _findings(report: Report, console: Console) -> None:
    if not report.findings:
        console.print("\n[green]Nothing is missing.[/]")
        return
    console.print("\n[bold]To know and to mend[/]")
    for finding in report.findings:
        mark, style = _MARKS[finding.severity]
        console.print(Text.assemble((f"{mark} ", style), finding.message), soft_wrap=True)
        if finding.remedy:
            # A remedy is copied into a shell: never break its line.
            console.print(Text(f"    {finding.remedy}", "bold"), soft_wrap=True)


Row = Sequence[str | Text]


def _table(console: Console, title: str, columns: Sequence[str], rows: Iterable[Row]) -> None:
    # As a line of its own: a table's title is broken at the table's width.
    console.print(Text(title, "bold"))
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for index, column in enumerate(columns):
        table.add_column(column, overflow="fold", no_wrap=index < len(columns) - 1)
    for row in rows:
        table.add_row(*row)
    console.print(table)


def _packages(facts: Facts) -> Iterable[Row]:
    for package in facts.packages:
        detail = package.detail
        if package.name.startswith("onnxruntime") and facts.providers:
            detail = ", ".join(p.removesuffix("ExecutionProvider") for p in facts.providers)
        yield (package.name, package.version or Text("not installed", "dim"), detail)


def _tensorrt(facts: Facts) -> Iterable[Row]:
    for flavour in facts.flavours:
        note = f"does not import: {flavour.problem}" if flavour.problem else f"import {flavour.module}"
        yield (flavour.name, flavour.version, Text(note, "red" if flavour.problem else ""))
    for library in facts.libraries:
        where = f"{library.path} ({', '.join(library.sources)})"
        if library.problem:
            where = f"{where}: {library.problem}"
        yield (f"lib{library.family}", library.version or "?", Text(where, "red" if library.problem else ""))
    if not facts.flavours and not facts.libraries:
        yield (Text("none found", "dim"), "", "")


def _gpu(facts: Facts) -> Iterable[Row]:
    driver = facts.driver
    versions = " / ".join(v for v in (driver.version, f"CUDA {driver.cuda}" if driver.cuda else "") if v)
    yield ("driver", versions or Text("none", "dim"), driver.problem)
    for gpu in facts.gpus:
        yield (gpu.name, f"sm_{gpu.compute_capability.replace('.', '')}", f"{gpu.memory_mib} MiB")


def _building(facts: Facts) -> Iterable[Row]:
    tools = [*facts.nvcc, *([facts.compiler] if facts.compiler else [])]
    for tool in tools:
        yield (tool.name, tool.version or "?", _told(tool.path, tool.source, tool.problem))
    for headers in facts.headers:
        yield ("NvInfer.h", headers.version or "?", _told(headers.path, headers.source, headers.problem))
    for plugin in facts.plugins:
        built = f"for TensorRT {plugin.info.tensorrt}, CUDA {plugin.info.cuda}, " if plugin.info else ""
        code = f"sm {','.join(plugin.architectures)}" if plugin.architectures else ""
        yield (plugin.kind.title, "", _told(plugin.path, plugin.source, plugin.problem or f"{built}{code}"))
    if not facts.nvcc:
        yield ("nvcc", Text("not found", "dim"), "")
    if not facts.headers:
        yield ("NvInfer.h", Text("not found", "dim"), "")
    if not any(p.kind is PLUGIN_KIND for p in facts.plugins):
        yield ("plugin library", Text("not built", "dim"), "")


def _told(path: Path, source: str, what: str) -> str:
    return f"{path} ({source}){': ' if what else ''}{what}"
