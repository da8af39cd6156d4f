"""The native ops on a CPU: against the function bodies, against DeiT, against the arithmetic's floor.

    python benchmarks/native.py                 # everything, some ten minutes on a calm machine
    python benchmarks/native.py --quick --out /tmp/quick

Random weights, one thread, processor seconds; contenders take turns in processes of their own, so that the ratios of
one run hold on a busy machine too. Needs `pip install 'vimdeploy[export,ort,deit]' matplotlib`, and openvino for the
fastest DeiT-Ti. Results go to `benchmarks/results/native.json`, `native.md` and `native.png`.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from vimdeploy.commands.benchmark import Contender, measure
from vimdeploy.commands.export import export

RESULTS = Path(__file__).parent / "results"
VIM, DEIT, VMAMBA = "vim_tiny_patch16_224", "deit_tiny_patch16_224", "vmamba_tiny_s1l8"
LAYERS, WIDTH, INNER, STATES, RANK, GROUPS = 24, 192, 384, 16, 12, 2
BODY_SIZES = (224, 512, 1248)
SIZES = (224, 448, 512, 1024, 1248, 2048)
TARGETS = (
    # (name, what it is, bound, whether it must be at least the bound)
    ("body_224", "Vim-Ti 224: native against body", 4.0, True),
    ("body_512", "Vim-Ti 512: native against body", 4.0, True),
    ("body_1248", "Vim-Ti 1248: native against body", 3.5, True),
    ("deit_512", "512: against DeiT-Ti in ONNX Runtime", 1.0, True),
    ("deit_1248", "1248: against DeiT-Ti in ONNX Runtime", 3.5, True),
    ("deit_memory_1248", "1248: DeiT-Ti's added memory against Vim-Ti's", 8.0, True),
    ("fastest_deit_1248", "1248: against the fastest DeiT-Ti of any runtime here", 2.5, True),
    ("batch8", "Vim-Ti 224, batch 8: native against body", 3.3, True),
    ("vmamba", "VMamba-T 224: native against body", 2.2, True),
    ("torch", "Vim-Ti 224 in torch: native kernels against vectorised", 3.8, True),
    ("floor", "Vim-Ti 224: share of the floor", 0.85, True),
    ("two_threads", "Vim-Ti 512: two threads against one, wall time", 1.7, True),
    ("avx2", "Vim-Ti 224, AVX2 forced: against body", 3.2, True),
    ("exponent", "512 to 2048 pixels: cost grows as tokens to the", 1.06, False),
)


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the native ops on a CPU.")
    parser.add_argument("--quick", action="store_true", help="small sizes only, to see that it runs")
    parser.add_argument("--seconds", type=float, default=3.0, help="processor seconds of every contender")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for the results")
    args = parser.parse_args()
    results = run(args.quick, args.seconds)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "native.json").write_text(json.dumps(results, indent=1) + "\n")
    (args.out / "native.md").write_text(table(results))
    plot(results["scaling"], args.out / "native.png")
    print(table(results))


def run(quick: bool, seconds: float) -> dict[str, Any]:  # noqa: PLR0915 (a list of measurements)
    load = os.getloadavg()[0]
    found: dict[str, float] = {}
    scaling: list[dict[str, Any]] = []
    timings: list[dict[str, Any]] = []
    not_run: dict[str, str] = {}
    sizes = (224, 512) if quick else SIZES

    def turns(contenders: Sequence[Contender], batch: int = 1, threads: int = 1, tag: str = "") -> dict[str, Any]:
        result = measure(contenders, [batch], threads, seconds)
        not_run.update(result.not_run)
        rows = {t.name: t for t in result.timings}
        timings.extend({"of": tag, **vars(t)} for t in result.timings)
        return rows

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for size in sizes:
            vim, deit = exported(VIM, size, folder), exported(DEIT, size, folder)
            contenders = [
                Contender(vim, "onnxruntime", label="native"),
                Contender(deit, "onnxruntime", label="DeiT-Ti"),
            ]
            if size in BODY_SIZES:
                contenders.append(Contender(vim, "onnxruntime-body", label="body"))
            if size == 224:
                slower = {"VIMDEPLOY_CPU_ISA": "avx2"}
                contenders.append(Contender(vim, "onnxruntime", slower, label="native, AVX2"))
            if size == 1248:
                contenders.append(Contender(f"arch:{DEIT}@{size}", "torch", label="DeiT-Ti torch"))
                contenders.append(Contender(deit, "openvino", label="DeiT-Ti OpenVINO"))
            if size == 2048:
                contenders = contenders[:1]  # DeiT-Ti would hold 10 GiB of attention
            rows = turns(contenders, tag=f"{size} pixels")
            scaling.extend(
                {"size": size, "tokens": tokens(size), "name": n, "cpu": t.cpu, "added_mib": t.added_mib}
                for n, t in rows.items()
            )
            native = rows["native"]
            if "body" in rows:
                found[f"body_{size}"] = rows["body"].cpu / native.cpu
            if "DeiT-Ti" in rows:
                found[f"deit_{size}"] = rows["DeiT-Ti"].cpu / native.cpu
            if size == 224:
                found["floor"] = floor(tokens(size)) / native.cpu
                if "native, AVX2" in rows:
                    found["avx2"] = rows["body"].cpu / rows["native, AVX2"].cpu
            if size == 1248:
                found["deit_memory_1248"] = rows["DeiT-Ti"].added_mib / max(1.0, native.added_mib)
                found["fastest_deit_1248"] = min(t.cpu for n, t in rows.items() if n.startswith("DeiT")) / native.cpu
        vim = exported(VIM, 224, folder)
        both = [Contender(vim, b, label=n) for n, b in (("native", "onnxruntime"), ("body", "onnxruntime-body"))]
        rows = turns(both, batch=8, tag="batch 8")
        found["batch8"] = rows["body"].cpu / rows["native"].cpu
        vmamba = exported(VMAMBA, 224, folder)
        both = [Contender(vmamba, c.backend, label=c.label) for c in both]
        rows = turns(both, tag="VMamba-T")
        found["vmamba"] = rows["body"].cpu / rows["native"].cpu
        arch = f"arch:{VIM}"
        in_torch = [
            Contender(arch, "torch", label="torch, native kernels"),
            Contender(arch, "torch", {"VIMDEPLOY_OPS": "torch"}, label="torch, vectorised"),
        ]
        rows = turns(in_torch, tag="torch")
        found["torch"] = rows["torch, vectorised"].cpu / rows["torch, native kernels"].cpu
        large = exported(VIM, 512, folder)
        walls = [
            turns([Contender(large, "onnxruntime", label="native")], threads=n, tag=f"{n} threads")["native"].p50
            for n in (1, 2)
        ]
        found["two_threads"] = walls[0] / walls[1]
    native = {row["size"]: row["cpu"] for row in scaling if row["name"] == "native"}
    if 2048 in native:
        found["exponent"] = math.log(native[2048] / native[512]) / math.log(tokens(2048) / tokens(512))
    return {
        "what": "random weights, float32, batch 1, one thread unless said otherwise; processor seconds of a batch",
        "machine": {"processor": processor(), "load_at_start": round(load, 2), "python": platform.python_version()},
        "versions": versions("onnxruntime", "torch", "openvino", "numpy"),
        "found": found,
        "scaling": scaling,
        "timings": timings,
        "not_run": not_run,
    }


def exported(arch: str, size: int, folder: Path) -> str:
    path = folder / f"{arch}-{size}.onnx"
    if not path.exists():
        export(None, path, arch=arch, img_size=size, verify=False)
    return str(path)


def tokens(size: int) -> int:
    return (size // 16) ** 2 + 1


def floor(length: int) -> float:
    """Return the seconds that the multiply-adds of Vim-Ti take at ONNX Runtime's rate, and its exponentials at ours."""
    per_token = WIDTH * 2 * INNER + GROUPS * INNER * (RANK + 2 * STATES) + INNER * WIDTH
    patches = 3 * 16 * 16 * WIDTH
    rate = products_per_second(length)
    exponentials = LAYERS * GROUPS * length * INNER * STATES
    return length * (LAYERS * per_token + patches) / rate + exponentials / exponentials_per_second()


def products_per_second(length: int) -> float:
    """Return the multiply-adds per second of one MatMul of the size of in_proj, on one thread."""
    import onnx
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    weight = np.random.default_rng(0).standard_normal((WIDTH, 2 * INNER), dtype=np.float32)
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [length, WIDTH])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [length, 2 * INNER])
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], "g", [x], [y], [numpy_helper.from_array(weight, "w")]
    )
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    feed = {"x": np.ones((length, WIDTH), np.float32)}
    return length * WIDTH * 2 * INNER / fastest(lambda: session.run(None, feed))


def exponentials_per_second() -> float:
    from vimdeploy.ops.cpu_kernels import cpu_kernels

    kernels = cpu_kernels()
    assert kernels is not None
    x = np.linspace(-20, 0, 1 << 17, dtype=np.float32)  # so many that the call itself costs nothing
    return x.size / fastest(lambda: kernels.function(kernels.isa, "exp2", x))


def fastest(run: Any) -> float:
    """Return the median processor seconds of a call, over batches of calls that a clock can tell apart."""
    seconds = []
    for _ in range(21):
        started = time.process_time()
        for _ in range(20):
            run()
        seconds.append((time.process_time() - started) / 20)
    return statistics.median(seconds)


def versions(*names: str) -> dict[str, str]:
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def table(results: dict[str, Any]) -> str:
    machine, found = results["machine"], results["found"]
    lines = [
        "# Native ops on a CPU",
        "",
        f"{results['what']}, on {machine['processor']} (load {machine['load_at_start']} at the start); ONNX Runtime "
        f"{results['versions']['onnxruntime']}. Made by `benchmarks/native.py`.",
        "",
        "| measured | found | wanted | |",
        "|---|---:|---:|---|",
    ]
    for name, what, bound, least in TARGETS:
        if name in found:
            kept = found[name] >= bound if least else found[name] <= bound
            sign = "at least" if least else "at most"
            lines.append(f"| {what} | {found[name]:.2f} | {sign} {bound:g} | {'kept' if kept else '**missed**'} |")
        else:
            lines.append(f"| {what} | not measured | | |")
    lines += ["", "| pixels | tokens | model | CPU s | added MiB |", "|---:|---:|---|---:|---:|"]
    lines += [
        f"| {r['size']} | {r['tokens']:,} | {r['name']} | {r['cpu']:.4f} | {r['added_mib']:.0f} |"
        for r in results["scaling"]
    ]
    lines += [f"\nNot run: {name}: {reason}" for name, reason in results["not_run"].items()]
    return "\n".join(lines) + "\n"


def plot(rows: list[dict[str, Any]], file: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10, 4.2), constrained_layout=True)
    style = {"native": ("tab:green", "-"), "body": ("tab:green", "--"), "DeiT-Ti": ("tab:orange", "-")}
    labels = {"native": "Vim-Ti, native ops", "body": "Vim-Ti, function bodies", "DeiT-Ti": "DeiT-Ti"}
    for axis, (key, label) in zip(axes, (("cpu", "processor s per image"), ("added_mib", "added MiB")), strict=True):
        for name, (colour, dashes) in style.items():
            chosen = [row for row in rows if row["name"] == name]
            x, y = [row["tokens"] for row in chosen], [max(row[key], 1e-3) for row in chosen]
            axis.plot(x, y, dashes, color=colour, marker="o", markersize=4, label=labels[name])
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        known = sorted({(row["tokens"], row["size"]) for row in rows})
        axis.set_xticks([t for t, _ in known], [f"{size}" for _, size in known], rotation=45)
        axis.minorticks_off()
        axis.set_xlabel("image side in pixels, one thread of ONNX Runtime")
        axis.set_ylabel(label)
        axis.grid(visible=True, alpha=0.3)
    axes[0].legend(frameon=False)
    figure.savefig(file, dpi=110)


if __name__ == "__main__":
    main()
