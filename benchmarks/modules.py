"""Export public models built on Mamba's kernels, unmodified, with `vimdeploy export`, and log what came of it.

It fetches nothing: FOLDER holds copies of the repositories that benchmarks/modules.toml names, each with a file
NAME.commit beside it, or as a git checkout. Run it where what the models require (timm, einops, ...) is installed:

    python -m benchmarks.modules FOLDER --output docs/modules.md
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

HERE = Path(__file__).parent
BEGIN, END = "<!-- log -->", "<!-- end of log -->"


@dataclass(frozen=True)
class Row:
    """What came of one model."""

    repository: str
    commit: str
    model: str
    dynamic: str
    nodes: int = 0
    custom: str = ""
    error: float | None = None
    seconds: float = 0.0
    failure: str = ""


def commit_of(folder: Path) -> str:
    """Return the commit of a copy: from NAME.commit beside it, or from git."""
    note = folder.with_name(f"{folder.name}.commit")
    if note.is_file():
        return note.read_text().strip()[:12]
    found = subprocess.run(["git", "-C", str(folder), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return found.stdout.strip()[:12] or "unknown"


def export(case: dict[str, Any], folder: Path, work: Path) -> Row:
    """Export one model by the command line."""
    copy, entry = folder / case["folder"], case["entry"]
    start = {
        "repository": case["repository"],
        "commit": commit_of(copy),
        "model": entry.replace("module_entries:", ""),
        "dynamic": case["dynamic"],
    }
    if not copy.is_dir():
        return Row(**start, failure="no copy of it in the folder")
    output = work / "model.onnx"
    output.unlink(missing_ok=True)
    command = [sys.executable, "-m", "vimdeploy", "export", entry, "-o", str(output), "--input", case["input"]]
    command += ["--dynamic", case["dynamic"], "--kwargs", json.dumps(case.get("kwargs", {})), "--json"]
    for path in (*(copy / p for p in case["paths"]), HERE):
        command += ["--import-path", str(path)]
    began = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - began
    if done.returncode:
        reasons = [line for line in done.stderr.splitlines() if line.startswith("error")] or done.stderr.splitlines()[
            -3:
        ]
        return Row(**start, seconds=seconds, failure=" ".join(reasons)[:600].replace(str(folder), ""))
    made = json.loads(done.stdout)
    errors = [result["relative_rms"] for result in made["parity"]["results"]]
    custom = ", ".join(f"{n} {name}" for name, n in made["onnx"]["custom_ops"].items())
    return Row(**start, nodes=made["onnx"]["nodes"], custom=custom, error=max(errors), seconds=seconds)


def table(rows: Sequence[Row]) -> str:
    """Return the log as Markdown."""
    lines = [
        "| repository | commit | class | free sizes | nodes | custom nodes | largest relative difference | seconds |",
        "| --- | --- | --- | --- | ---: | --- | ---: | ---: |",
    ]
    for row in rows:
        done = f"{row.nodes} | {row.custom} | {row.error:.1e}" if row.error is not None else f"| {row.failure} |"
        lines.append(
            f"| {row.repository} | `{row.commit}` | `{row.model}` | {row.dynamic} | {done} | {row.seconds:.0f} |"
        )
    exported = sum(row.error is not None for row in rows)
    return "\n".join([*lines, "", f"{exported} of {len(rows)} exported."])


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("folder", type=Path, help="holds one copy of every repository")
    parser.add_argument("--only", action="append", help="part of a repository's name; may be repeated")
    parser.add_argument("--output", type=Path, help="Markdown file whose log is replaced")
    parser.add_argument("--json", type=Path, help="file for the same as JSON")
    options = parser.parse_args()
    cases = tomllib.loads((HERE / "modules.toml").read_text())["model"]
    if options.only:
        cases = [c for c in cases if any(part.lower() in c["repository"].lower() for part in options.only)]
    rows = []
    with tempfile.TemporaryDirectory() as work:
        for case in cases:
            rows.append(export(case, options.folder.resolve(), Path(work)))
            print(rows[-1], file=sys.stderr, flush=True)
    print(table(rows))
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")
    if options.output:
        before, _, rest = options.output.read_text().partition(BEGIN)
        options.output.write_text(f"{before}{BEGIN}\n\n{table(rows)}\n\n{END}{rest.partition(END)[2]}")


if __name__ == "__main__":
    main()
