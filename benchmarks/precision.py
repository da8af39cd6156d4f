"""What half precision costs at the output, where it comes from, and what a tighter bound takes.

    python benchmarks/precision.py                       # all of it, about ten minutes on two cores
    python benchmarks/precision.py --only vim_digits

Each model is compared with itself in float32, as relative RMS of the logits over a few images:

- *weights*: only the weights are rounded, everything is computed in float32: no choice of op types goes below it;
- *policy*: everything that the policy names is rounded, as on a GPU (`vimdeploy.graph.emulate`);
- *autocast*: PyTorch's own mixed precision on the same model, as the official code evaluates with on a GPU; here on a
  CPU, where it rounds for matrix products and convolutions and leaves the scan in float32;
- *kept*: the blocks that stay float32 for a bound (`vimdeploy.parity.sensitivity`), and the error that is left.

The digits model was trained; the others have the weights of `tests/data/trained_like.py`: random, but spread like
trained ones. Results go to `benchmarks/results/precision.json` and, as tables, `precision.md`.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper

import vimdeploy
from vimdeploy.artifacts.images import synthetic_images
from vimdeploy.artifacts.manifest import read_manifest
from vimdeploy.artifacts.recipe import ParityContract
from vimdeploy.backends.base import joined
from vimdeploy.backends.onnxruntime import OnnxBackend
from vimdeploy.backends.torch import TorchBackend
from vimdeploy.graph.emulate import emulate
from vimdeploy.graph.policy import BF16, FP16, Policy, Precision
from vimdeploy.graph.precision import convert_model
from vimdeploy.models.load import ModelRequest, load_model
from vimdeploy.parity.metrics import relative_rms
from vimdeploy.parity.ranges import measure
from vimdeploy.parity.sensitivity import Task, fit

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
DIGITS = ROOT / "examples" / "digits" / "vim_digits.pth"
MODELS = {
    "vim_digits": "Vim for digits, trained",
    "keys_tiny": "Vim-Ti",
    "keys_small": "Vim-S",
    "keys_vmamba_tiny_s1l8": "VMamba-T[s1l8]",
}
BOUNDS = ((FP16, 5e-3), (FP16, 2e-3), (BF16, 4e-2))
IMAGES = 4


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure what half precision costs.")
    parser.add_argument("--only", nargs="+", choices=list(MODELS), default=list(MODELS), help="models to measure again")
    args = parser.parse_args()
    file = RESULTS / "precision.json"
    rows: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    for name in args.only:
        with tempfile.TemporaryDirectory() as folder:
            rows[name] = run(name, Path(folder))
        rows = {known: rows[known] for known in MODELS if known in rows}
        file.write_text(json.dumps(rows, indent=1) + "\n")
        (RESULTS / "precision.md").write_text(table(rows))
        print(name, rows[name], flush=True)


def run(name: str, folder: Path) -> dict[str, Any]:
    """Measure one model."""
    file = folder / "model.onnx"
    checkpoint = DIGITS if name == "vim_digits" else trained_like(name, folder / "model.pth")
    vimdeploy.export(checkpoint, file, verify=False)
    model, manifest = onnx.load(file), read_manifest(file)
    images = synthetic_images(IMAGES, manifest.preprocessing)
    ranges = measure(model, images)
    exact = logits(model, images)
    torch_model = load_model(checkpoint, ModelRequest()).model
    row: dict[str, Any] = {"images": IMAGES, "precisions": {}, "bounds": []}
    for precision in (FP16, BF16):
        converted, _ = convert_model(model, precision, ranges=ranges)
        row["precisions"][precision.name] = {
            "weights": relative_rms(logits(with_rounded_weights(model, converted, precision), images), exact),
            "policy": relative_rms(logits(emulate(converted), images), exact),
            "autocast": autocast(torch_model, precision, images),
        }
    for precision, bound in BOUNDS:
        task = Task(model, images, ParityContract(relative_rms=bound), classes=True, ranges=ranges)
        found = fit(task, precision, Policy(), lambda _: None)
        assert found.metrics.passed, (name, precision.name, bound)
        row["bounds"].append(
            {
                "precision": precision.name,
                "bound": bound,
                "kept": list(found.kept),
                "error": found.metrics.relative_rms,
                "casts": found.report.casts,
                "costs": {cost.block.name: cost.error for cost in found.costs},
            }
        )
    return row


def trained_like(keys: str, path: Path) -> Path:
    """Save the weights that `tests/data/trained_like.py` makes for the keys of a released model."""
    data = ROOT / "tests" / "data"
    sys.path.insert(0, str(data))
    from trained_like import trained_like as make

    shapes = {}
    for line in (data / f"{keys}.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            key, shape, _ = line.split("\t")
            shapes[key] = tuple(int(size) for size in shape.strip("()[]").split(",") if size.strip())
    torch.save({"model": {key: torch.from_numpy(np.array(value)) for key, value in make(shapes).items()}}, path)
    return path


def logits(model: onnx.ModelProto, images: np.ndarray) -> np.ndarray:
    return joined(OnnxBackend(model).run(images))


def with_rounded_weights(model: onnx.ModelProto, converted: onnx.ModelProto, precision: Precision) -> onnx.ModelProto:
    """Return the float32 model with the weights that ``converted`` holds in half precision rounded, as float32."""
    rounded = onnx.ModelProto()
    rounded.CopyFrom(model)
    suffix = f"_{precision.name}"
    half = {t.name.removesuffix(suffix) for t in converted.graph.initializer if t.data_type == precision.dtype.value}
    for tensor in rounded.graph.initializer:
        if tensor.name in half:
            value = numpy_helper.to_array(tensor).astype(precision.dtype.numpy()).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
    return rounded


def autocast(model: Any, precision: Precision, images: np.ndarray) -> float:
    """Return what torch.autocast costs the model that holds the official parameters."""
    backend = TorchBackend(model, "classify")
    exact = joined(backend.run(images))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with torch.autocast(device, dtype={"fp16": torch.float16, "bf16": torch.bfloat16}[precision.name]):
        mixed = joined(backend.run(images))
    return relative_rms(mixed.astype(np.float32), exact)


def table(rows: dict[str, Any]) -> str:
    lines = [
        "# What half precision costs",
        "",
        f"Relative RMS of the logits against float32, over {IMAGES} images. Made by `benchmarks/precision.py`, which "
        "says what the columns are; all but the digits model have random weights, spread like trained ones.",
        "",
        "| model | type | weights | policy | autocast |",
        "|---|---|---:|---:|---:|",
    ]
    for name, row in rows.items():
        for precision, errors in row["precisions"].items():
            numbers = " | ".join(f"{errors[key]:.1e}" for key in ("weights", "policy", "autocast"))
            lines.append(f"| {MODELS[name]} | {precision.upper()} | {numbers} |")
    lines += [
        "",
        "Blocks that stay float32 so that a bound is kept:",
        "",
        "| model | type | bound | blocks in float32 | error left |",
        "|---|---|---:|---|---:|",
    ]
    for name, row in rows.items():
        for found in row["bounds"]:
            kept = ranges(found["kept"]) or "none"
            what = f"{MODELS[name]} | {found['precision'].upper()} | {found['bound']:.0e}"
            lines.append(f"| {what} | {kept} | {found['error']:.1e} |")
    costs = rows.get("keys_tiny", {}).get("bounds", [{}, {}])[1].get("costs", {})
    if costs:
        lines += [
            "",
            "Vim-Ti, one block at a time in FP16: what is rounded early is amplified by every later block.",
            "",
        ]
        names = list(costs)
        for start in range(0, len(names), 9):
            part = names[start : start + 9]
            head = [f"| {' | '.join(part)} |", f"|{'---:|' * len(part)}"]
            lines += [*head, f"| {' | '.join(f'{costs[n]:.1e}' for n in part)} |", ""]
        lines.pop()
    return "\n".join([*lines, ""])


def ranges(names: Sequence[str]) -> str:
    """Write ``block.0, block.1, block.2`` as ``block.0 to block.2``."""
    numbers = [int(name.removeprefix("block.")) for name in names if name.startswith("block.")]
    if len(numbers) > 2 and numbers == list(range(numbers[0], numbers[-1] + 1)):
        return ", ".join([f"block.{numbers[0]} to block.{numbers[-1]}", *names[len(numbers) :]])
    return ", ".join(names)


if __name__ == "__main__":
    main()
