"""`vimdeploy report` as a function."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from vimdeploy.artifacts.files import check_writable, write_all
from vimdeploy.artifacts.images import find_images
from vimdeploy.artifacts.manifest import read_manifest
from vimdeploy.artifacts.onnx_file import read_onnx
from vimdeploy.artifacts.structured import read_json
from vimdeploy.commands.arguments import default_output
from vimdeploy.commands.ladder import climb_ladder, torch_reference
from vimdeploy.commands.samples import sample_inputs
from vimdeploy.errors import ArtifactError, UsageError
from vimdeploy.progress import SILENT, Reporter

_MOST_ROWS = 200


def report(
    model: str | Path,
    output: str | Path | None = None,
    *,
    images: str | Path | None = None,
    samples: int = 8,
    checkpoint: str | Path | None = None,
    engine: tuple[Path, ...] = (),
    profile: bool = False,
    benchmark: str | Path | None = None,
    reporter: Reporter = SILENT,
) -> Path:
    """Write one self-contained page about a model: parity, decisions, speed, provenance, and what was not run.

    Args:
        model: the exported float32 ONNX file.
        output: the page; None puts it beside the model.
        images: folder of image files; None takes ``samples`` synthetic ones.
        samples: how many synthetic images.
        checkpoint: where the manifest's path no longer leads to it.
        engine: plans of that file.
        profile: also measure where ONNX Runtime spends its time.
        benchmark: JSON file that a benchmark wrote; its rows are shown.
        reporter: told what begins.

    Returns:
        The page.

    Raises:
        ArtifactError: a file is missing or corrupt, or the page cannot be written.
        UsageError: the model takes no images, or is in half precision already.

    """
    from vimdeploy.needs import require

    require("report")
    from vimdeploy.reports import collect, html
    from vimdeploy.reports.profile import profile as measure_time

    path = Path(model)
    target = Path(output) if output else default_output(path, ".report.html")
    proto, manifest = read_onnx(path), read_manifest(path)
    if manifest.preprocessing is None:
        raise UsageError(f"{path}: takes no images; there is a report for models of images only.")
    check_writable(target)
    table = _table(Path(benchmark)) if benchmark else None
    folder = Path(images) if images else None
    named = Path(checkpoint) if checkpoint else None
    ladder, wrong = climb_ladder(path, engine, named, folder, samples, "fp16", reporter)
    if wrong is not None:
        raise wrong
    reference = None
    torch_model, _ = torch_reference(path, manifest, named, reporter)
    if torch_model is not None:
        from vimdeploy.backends.torch import TorchBackend

        reference = TorchBackend(torch_model, manifest.model.task, taps=True)
    names = [str(file.relative_to(folder)) for file in find_images(folder)] if folder else []
    tensors = sample_inputs(manifest, path, folder, samples)
    data = collect.collect(path, proto, manifest, reference, ladder, tensors, names, reporter)
    if profile:
        reporter.stage("Measuring where time goes")
        data = replace(data, profile=measure_time(path))
    write_all({target: html.render(replace(data, benchmark=table))})
    return target


def _table(path: Path) -> dict[str, Any]:
    """Return the rows of a benchmark's JSON as a table: the first list of records in it."""
    try:
        content = read_json(path, hint="Pass the JSON that a benchmark wrote.")
    except FileNotFoundError as error:
        raise ArtifactError(f"{path}: there is no such file.") from error
    lists = [content] if isinstance(content, list) else list(content.values()) if isinstance(content, Mapping) else []
    rows = next((v for v in lists if isinstance(v, list) and v and all(isinstance(r, Mapping) for r in v)), None)
    if rows is None:
        raise ArtifactError(f"{path}: holds no rows of a benchmark.", hint="Pass the JSON that a benchmark wrote.")
    columns = list(dict.fromkeys(str(key) for row in rows for key in row))
    cells = [[_cell(row.get(column)) for column in columns] for row in rows[:_MOST_ROWS]]
    return {"columns": columns, "rows": cells}


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return "" if value is None else value if isinstance(value, str) else json.dumps(value)
