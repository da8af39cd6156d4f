"""Predicts many small images through SIGKILLs, and holds memory and processor time to their bounds.

    python -m benchmarks.predict_scale                       # 20,000 images, three kills
    python -m benchmarks.predict_scale --images 2000 --kills 1 --output -

Writes benchmarks/results/predict_scale.json: rows, keys, what was resumed, the peak of memory at a tenth of the images
and at all of them, and processor time against a bare loop over the session in the same run.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks" / "results" / "predict_scale.json"

RUN = """
import json, resource, sys, time
from vimdeploy.predicting.run import Request, Run
model, source, output, rows = sys.argv[1:5]
started = time.process_time()
summary = Run(model, [source], Request(batch=32, workers=2, shard_rows=int(rows))).write(output)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(json.dumps({"cpu": time.process_time() - started, "peak_mib": peak, "rows": summary.rows,
                  "resumed": summary.resumed, "shards": summary.shards}))
"""
BARE = """
import json, sys, time
from pathlib import Path
import numpy as np
import vimdeploy
from vimdeploy.artifacts.images import load_image
from vimdeploy.artifacts.manifest import read_manifest
model, source = sys.argv[1:3]
started = time.process_time()
spec = read_manifest(Path(model)).preprocessing
paths = sorted(Path(source).rglob("*.png"))
with vimdeploy.load(model) as session:
    for start in range(0, len(paths), 32):
        session(np.stack([load_image(path, spec) for path in paths[start : start + 32]]))
print(json.dumps({"cpu": time.process_time() - started}))
"""


def child(code: str, *arguments: object) -> subprocess.Popen[str]:
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True)


def finished(process: subprocess.Popen[str]) -> dict[str, Any]:
    out, _ = process.communicate()
    if process.returncode != 0:
        raise SystemExit(f"a run ended with {process.returncode}")
    found: dict[str, Any] = json.loads(out)
    return found


def make_images(folder: Path, count: int) -> None:
    """Write held-back digits of 64 x 64 pixels, in folders of 1,000."""
    with np.load(ROOT / "examples" / "digits" / "held_out.npz") as file:
        digits = [Image.fromarray(image).resize((64, 64)) for image in file["images"]]
    for index in range(count):
        path = folder / f"{index // 1000:03d}" / f"{index:06d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        digits[index % len(digits)].save(path)


def killed_runs(model: Path, images: Path, output: Path, rows: int, kills: int, draw: random.Random) -> list[int]:
    """Start runs and kill each after a shard or more of its own and a random while; returns the shards they left."""
    left = []
    for _ in range(kills):
        process, before = child(RUN, model, images, output, rows), len(list(output.glob("part-*")))
        while process.poll() is None and len(list(output.glob("part-*"))) <= before:
            time.sleep(0.01)
        time.sleep(draw.uniform(0, 2))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        left.append(len(list(output.glob("part-*.parquet"))))
    return left


def measure(count: int, kills: int) -> dict[str, Any]:
    import pyarrow.parquet as pq

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        model = folder / "digits.onnx"
        checkpoint = ROOT / "examples" / "digits" / "vim_digits.pth"
        command = [sys.executable, "-m", "vimdeploy", "export", str(checkpoint), "-o", str(model), "--no-verify"]
        subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True)
        make_images(folder / "all", count)
        make_images(folder / "tenth", count // 10)
        rows = max(count // 20, 10)
        left = killed_runs(model, folder / "all", folder / "rows", rows, kills, random.Random(0))
        last = finished(child(RUN, model, folder / "all", folder / "rows", rows))
        keys = pq.read_table(folder / "rows", columns=["image"])["image"].to_pylist()
        whole = finished(child(RUN, model, folder / "all", folder / "whole", rows))
        tenth = finished(child(RUN, model, folder / "tenth", folder / "tenth_rows", rows))
        bare = finished(child(BARE, model, folder / "all"))
        return {
            "images": count,
            "kills": kills,
            "shards_left_by_each_kill": left,
            "resumed_rows": last["resumed"],
            "rows": len(keys),
            "distinct_keys": len(set(keys)),
            "peak_mib": {str(count): whole["peak_mib"], str(count // 10): tenth["peak_mib"]},
            "peak_ratio": whole["peak_mib"] / tenth["peak_mib"],
            "cpu_seconds": {"predict": whole["cpu"], "bare loop": bare["cpu"]},
            "cpu_ratio": whole["cpu"] / bare["cpu"],
            "machine": {"cores": os.cpu_count(), "load_average": os.getloadavg()[0]},
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--output", default=str(RESULT), help="JSON file, or - for standard output")
    options = parser.parse_args()
    text = json.dumps(measure(options.images, options.kills), indent=1) + "\n"
    if options.output == "-":
        sys.stdout.write(text)
    else:
        Path(options.output).write_text(text)


if __name__ == "__main__":
    main()
