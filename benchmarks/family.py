"""The table of models in `docs/models.md`: what was run, per recipe, and with what result.

    python benchmarks/family.py                              # every recipe that has no row yet; hours on two cores
    python benchmarks/family.py --only vmamba_tiny_s1l8 --rtx

Each model is made with random weights (``--arch``), exported at its recipe's size and compared at batch 1: ONNX Runtime
with torch, and FP16 (rounded as a GPU would) with float32. ``torch`` is the largest difference of our modules from the
official code's outputs on the golden of that kind. Rows are kept in `benchmarks/results/family.json`, so that a run can
be continued; what was not run says so.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "family.json"
PAGE = ROOT / "docs" / "models.md"
GOLDENS = {"vim": "full_tiny224", "seg": "seg_fpn", "det": "det_rope", "v0": "vmamba_v0", "v05_noz": "vmamba_v05"}


def main() -> None:
    parser = argparse.ArgumentParser(description="Run the models of the recipes and write docs/models.md.")
    parser.add_argument("--only", nargs="+", help="names of recipes; default: all without a row")
    parser.add_argument("--rtx", action="store_true", help="also build FP16 plans with TensorRT-RTX for sm_89")
    parser.add_argument(
        "--folder", type=Path, help="keep exported files and plans there, and take those that are there"
    )
    parser.add_argument("--table", action="store_true", help="write the page from the rows there are, run nothing")
    args = parser.parse_args()
    from vimdeploy.artifacts.recipe import recipes

    rows: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for name in [] if args.table else args.only or [name for name in recipes() if name not in rows]:
        with tempfile.TemporaryDirectory() as folder:
            rows[name] = run(name, args.folder or Path(folder), rtx=args.rtx)
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(dict(sorted(rows.items())), indent=1) + "\n")
        print(name, rows[name], flush=True)
    PAGE.write_text(page(rows))


def run(name: str, folder: Path, *, rtx: bool) -> dict[str, Any]:
    """Export one recipe's model and compare its forms."""
    from vimdeploy.artifacts.images import synthetic_images
    from vimdeploy.artifacts.manifest import read_manifest
    from vimdeploy.artifacts.onnx_file import read_onnx
    from vimdeploy.backends.base import joined
    from vimdeploy.backends.onnxruntime import OnnxBackend
    from vimdeploy.backends.torch import TorchBackend
    from vimdeploy.graph.emulate import emulate
    from vimdeploy.graph.policy import FP16
    from vimdeploy.graph.precision import convert_model
    from vimdeploy.models.load import ModelRequest, load_model
    from vimdeploy.parity.metrics import relative_rms

    file = folder / f"{name}.onnx"
    if not file.exists():
        vimdeploy("export", "--arch", name, "--no-verify", "-o", file)
    manifest, model = read_manifest(file), read_onnx(file)
    images = synthetic_images(1, manifest.preprocessing)
    reference = joined(OnnxBackend(model).run(images))
    torch_output = joined(
        TorchBackend(load_model(None, ModelRequest(arch=name)).model, manifest.model.task).run(images)
    )
    half, report = convert_model(model, FP16)
    row = {
        "task": manifest.model.task,
        "nodes": manifest.onnx.nodes,
        "custom_ops": manifest.onnx.custom_ops,
        "mb": round(file.stat().st_size / 1e6, 1),
        "onnx": relative_rms(reference, torch_output),
        "fp16": relative_rms(joined(OnnxBackend(emulate(half)).run(images)), reference),
        "casts": report.casts,
        "rtx": build_rtx(file) if rtx or file.with_suffix(".rtx.engine").exists() else None,
    }
    assert np.isfinite(reference).all()
    return row


def build_rtx(file: Path) -> dict[str, Any]:
    """Build an FP16 plan ahead of time; return its size, or the reason why there is none."""
    plan = file.with_suffix(".rtx.engine")
    options = ("--fp16", "--no-verify", "--runtime", "rtx", "--compute-capability", "sm_89", "--opt-batch", "1")
    try:
        if not plan.exists():
            vimdeploy("build-engine", file, *options, "--max-batch", "1", "-o", plan)
    except subprocess.CalledProcessError as error:
        said = error.stderr.strip().splitlines()
        return {"failed": next((line for line in said if line.startswith("error:")), said[-1])}
    return {"mb": round(plan.stat().st_size / 1e6, 1)}


def vimdeploy(*arguments: object) -> None:
    command = [sys.executable, "-m", "vimdeploy", *map(str, arguments)]
    subprocess.run(command, check=True, capture_output=True, text=True)


def golden_differences() -> dict[str, float]:
    """Return the largest absolute difference from the official outputs, per golden."""
    import torch

    sys.path[:0] = [str(ROOT / "tests" / "support"), str(ROOT / "tests" / "data")]
    import dense_cases
    import goldens
    import vmamba_cases

    differences = {}
    with torch.no_grad():
        for name in GOLDENS.values():
            if name == goldens.FULL:
                case = goldens.golden(name)
                outputs, expected = [case.model()(case.images)], [case.arrays["logits"]]
            elif name in vmamba_cases.GOLDENS:
                model, arrays = vmamba_cases.golden(name)
                outputs, expected = [model(torch.from_numpy(arrays["images"]))], [arrays["logits"]]
            else:
                model, images, expected = dense_cases.golden(name)
                outputs = list(model(images))
            gaps = [np.abs(a.numpy() - b).max() for a, b in zip(outputs, expected, strict=True)]
            differences[name] = float(max(gaps))
    return differences


def page(rows: dict[str, Any]) -> str:
    """Return the page from the recipes and the rows."""
    from vimdeploy.artifacts.recipe import recipes

    differences = golden_differences()
    lines = [
        "# Models",
        "",
        "Generated by `benchmarks/family.py` from the recipes in `export/` and the runs in "
        "`benchmarks/results/family.json`: random weights, batch 1, the recipe's image size. *torch* is the largest "
        "difference of our modules from the official code's outputs (of a small model of that kind); *ONNX* and *FP16* "
        "are relative RMS differences, of ONNX Runtime from torch and of FP16 rounded as on a GPU from float32; *RTX* "
        "is a TensorRT-RTX plan in FP16 for sm_89, built ahead of time and not run.",
        "",
        "| recipe | model | parameters | task | torch | ONNX | FP16 | RTX build | nodes | ONNX MB |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, recipe in recipes().items():
        row = rows.get(name)
        kind = recipe.model.get("forward_type", recipe.model.get("kind", recipe.family))
        torch_cell = f"{differences[GOLDENS[kind]]:.0e}" if kind in GOLDENS else "transformers' own"
        cells = [f"`{name}`", recipe.title, f"{recipe.parameters:,}"]
        if row is None:
            cells += ["", torch_cell, "not run", "not run", "not run", "", ""]
        else:
            numbers = [f"{row['onnx']:.0e}", f"{row['fp16']:.0e}", rtx_cell(row["rtx"]), str(row["nodes"])]
            cells += [row["task"], torch_cell, *numbers, f"{row['mb']:,.1f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def rtx_cell(rtx: dict[str, Any] | None) -> str:
    if rtx is None:
        return "not run"
    return f"failed: {rtx['failed']}" if "failed" in rtx else f"yes, {rtx['mb']:.0f} MB"


if __name__ == "__main__":
    main()
