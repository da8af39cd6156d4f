"""Cost against resolution on a CPU: Vim-Ti, whose cost grows with the tokens, beside DeiT-Ti, whose cost outgrows them.

    python benchmarks/scaling.py                        # 512 to 2048 pixels, some twenty minutes
    python benchmarks/scaling.py --sizes 128 256 --out /tmp/quick

Both models have random weights and run in torch and, exported by ``vimdeploy export --arch``, in ONNX Runtime; batch 1.
DeiT runs in torch with fused attention (scaled_dot_product_attention), which never holds the L x L matrix, and in ONNX
Runtime without it. Time is processor time of one thread, which other work on the machine hardly changes; every
measurement runs in a process of its own, whose peak memory is its own.
Needs `pip install 'vimdeploy[export,ort,deit]' matplotlib psutil`.
Results go to `benchmarks/results/scaling.json`, `scaling.md` and `scaling.png`.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from cpu import RESULTS, peak_mib

SIZES = (512, 1024, 2048)
MODELS = {"vim": "vim_tiny_patch16_224", "deit": "deit_tiny_patch16_224"}
TITLES = {"vim": "Vim-Ti", "deit": "DeiT-Ti"}
BACKENDS = {"torch": "torch", "onnxruntime": "ONNX Runtime"}
PATCH = 16
DEIT_HEADS = 3
SEED = 0


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure Vim-Ti and DeiT-Ti from small to large images.")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="image sizes in pixels")
    parser.add_argument("--turns", type=int, default=1, help="turns of every model at each size")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for the results")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(**json.loads(args.measure))))
        return
    results = run_all(args.sizes, args.turns)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "scaling.json").write_text(json.dumps(results, indent=1) + "\n")
    (args.out / "scaling.md").write_text(table(results))
    plot(results, args.out / "scaling.png")
    print(table(results))


# ---- one measurement, in a process of its own


def measure(model: str, backend: str, size: int, file: str) -> dict[str, Any]:
    """Run a model until three seconds have passed, at least once beyond a first run that took less than five."""
    run = prepare(model, backend, size, file)
    before = peak_mib()
    seconds = [timed(run)]
    if seconds[0] < 5:
        seconds = [timed(run)]  # the first was a warm-up
        while sum(seconds) < 3 and len(seconds) < 20:
            seconds.append(timed(run))
    return {"seconds": statistics.median(seconds), "peak_mib": round(peak_mib() - before, 1)}


def timed(run: Callable[[], object]) -> float:
    """Return the processor seconds of one run."""
    started = time.process_time()
    run()
    return time.process_time() - started


def prepare(model: str, backend: str, size: int, file: str) -> Callable[[], object]:
    """Return a function that runs the model once on one image, in one thread."""
    if backend == "onnxruntime":
        import numpy as np
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        session = ort.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        image = np.random.default_rng(SEED).standard_normal((1, 3, size, size), dtype=np.float32)
        return lambda: session.run(None, {"images": image})

    import torch

    from vimdeploy.models.family import fold
    from vimdeploy.models.load import ModelRequest, load_model

    torch.set_num_threads(1)
    folded = fold(load_model(None, ModelRequest(arch=MODELS[model], img_size=(size, size))).model)
    tensor = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(SEED))

    def run() -> object:
        with torch.inference_mode():
            return folded(tensor)

    return run


# ---- all measurements


def run_all(sizes: list[int], turns: int) -> dict[str, Any]:
    load = os.getloadavg()[0]
    rows = []
    for size in sizes:
        with tempfile.TemporaryDirectory() as folder:
            files = {model: export(model, size, Path(folder)) for model in MODELS}
            for backend in BACKENDS:
                for model in MODELS:
                    row: dict[str, Any] = {"model": model, "backend": backend, "size": size, "tokens": tokens(size)}
                    if reason := too_large(model, backend, size):
                        row |= {"seconds": None, "peak_mib": None, "not_run": reason}
                    else:
                        runs = [child(model, backend, size, files[model]) for _ in range(turns)]
                        row["seconds"] = round(min(run["seconds"] for run in runs), 4)
                        row["peak_mib"] = max(run["peak_mib"] for run in runs)
                    rows.append(row)
                    print(json.dumps(row), file=sys.stderr, flush=True)
    packages = ("torch", "onnx", "onnxruntime", "transformers", "numpy")
    return {
        "what": "Vim-Ti and DeiT-Ti, random weights, batch 1, float32, one thread",
        "machine": {"processor": processor(), "load_at_start": round(load, 2), "python": platform.python_version()},
        "versions": {name: version(name) for name in packages},
        "turns": turns,
        "measurements": rows,
    }


def tokens(size: int) -> int:
    return (size // PATCH) ** 2 + 1


def too_large(model: str, backend: str, size: int) -> str:
    """Say why a run must be left out: unfused attention holds three L x L matrices per head at once, or a bit less."""
    if (model, backend) != ("deit", "onnxruntime"):
        return ""
    import psutil

    needed = 3 * DEIT_HEADS * tokens(size) ** 2 * 4 / 2**30
    available = psutil.virtual_memory().available / 2**30
    return f"would need about {needed:.0f} of {available:.0f} GiB" if needed > available / 2 else ""


def export(model: str, size: int, folder: Path) -> str:
    file = folder / f"{model}.onnx"
    command = [sys.executable, "-m", "vimdeploy", "export", "--arch", MODELS[model], "--img-size", str(size)]
    subprocess.run([*command, "--no-verify", "-o", str(file)], check=True, capture_output=True)
    return str(file)


def child(model: str, backend: str, size: int, file: str) -> dict[str, Any]:
    request = {"model": model, "backend": backend, "size": size, "file": file}
    done = subprocess.run(
        [sys.executable, __file__, "--measure", json.dumps(request)], check=True, capture_output=True, text=True
    )
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


# ---- what a reader sees


def pick(results: dict[str, Any], model: str, backend: str) -> list[dict[str, Any]]:
    return [row for row in results["measurements"] if (row["model"], row["backend"]) == (model, backend)]


def growth(rows: list[dict[str, Any]], key: str) -> float:
    """Return the exponent p of cost ~ tokens^p between the smallest and the largest image that ran."""
    ran = [row for row in rows if row[key]]
    first, last = ran[0], ran[-1]
    return math.log(last[key] / first[key]) / math.log(last["tokens"] / first["tokens"])


def table(results: dict[str, Any]) -> str:
    machine = results["machine"]
    lines = [
        "# Cost against resolution: Vim-Ti and DeiT-Ti on a CPU",
        "",
        f"{results['what']}, on {machine['processor']} beside other work (load {machine['load_at_start']} at the "
        "start): processor seconds per image. Memory is what a run adds to the process's peak. Made by "
        "`benchmarks/scaling.py`.",
        "",
        "![Seconds and peak memory against tokens](scaling.png)",
        "",
    ]
    for backend, title in BACKENDS.items():
        vim, deit = pick(results, "vim", backend), pick(results, "deit", backend)
        lines += [
            f"## {title}",
            "",
            "| image | tokens | Vim-Ti s | DeiT-Ti s | faster | Vim-Ti MiB | DeiT-Ti MiB | smaller |",
            "|---|---|---|---|---|---|---|---|",
            *(line(v, d) for v, d in zip(vim, deit, strict=True)),
        ]
        powers = [growth(rows, key) for key in ("seconds", "peak_mib") for rows in (vim, deit)]
        lines += [
            "",
            f"From the smallest image to the largest, time grows as tokens^{powers[0]:.2f} for Vim-Ti and tokens^"
            f"{powers[1]:.2f} for DeiT-Ti, memory as tokens^{powers[2]:.2f} and tokens^{powers[3]:.2f}.",
            "",
        ]
    return "\n".join(lines)


def line(vim: dict[str, Any], deit: dict[str, Any]) -> str:
    cells = [str(vim["size"]), f"{vim['tokens']:,}"]
    for key, form in (("seconds", ".3g"), ("peak_mib", ",.0f")):
        if deit[key] is None:
            cells += [f"{vim[key]:{form}}", deit["not_run"], "Vim-Ti"]
        else:
            cells += [f"{vim[key]:{form}}", f"{deit[key]:{form}}", winner(vim[key], deit[key])]
    return f"| {' | '.join(cells)} |"


def winner(vim: float, deit: float) -> str:
    name, ratio = ("Vim-Ti", deit / vim) if vim < deit else ("DeiT-Ti", vim / deit)
    return f"{name} {ratio:.1f}x"


def plot(results: dict[str, Any], file: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10, 4.2), constrained_layout=True)
    style = {"vim": ("tab:green", "o"), "deit": ("tab:orange", "s")}
    for axis, (key, label) in zip(
        axes, (("seconds", "processor seconds per image"), ("peak_mib", "peak memory, MiB")), strict=True
    ):
        for model, (colour, marker) in style.items():
            for backend, dashes in (("torch", "-"), ("onnxruntime", "--")):
                rows = [row for row in pick(results, model, backend) if row[key]]
                label_text = f"{TITLES[model]}, {BACKENDS[backend]}"
                x, y = [row["tokens"] for row in rows], [row[key] for row in rows]
                axis.plot(x, y, dashes, color=colour, marker=marker, markersize=4, label=label_text)
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        sizes = pick(results, "vim", "torch")
        axis.set_xticks([row["tokens"] for row in sizes], [f"{row['tokens']:,}\n{row['size']} px" for row in sizes])
        axis.minorticks_off()
        axis.set_xlabel("tokens")
        axis.set_ylabel(label)
        axis.grid(visible=True, alpha=0.3)
    axes[0].legend(frameon=False)
    figure.savefig(file, dpi=110)


if __name__ == "__main__":
    main()
