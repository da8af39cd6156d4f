"""``python -m benchmarks.gpu_suite.smoke``: the scan under Nsight Compute, beside what its machine code predicts.

Two launches of Vim-Ti's layer (batch 64 and 1, 197 tokens, float16), each through the C++ driver, so that the profiler
meets one kernel. The predictions are per warp and token: exponentials are counted in the source, wavefronts of the scan
by plugins/tools/bank_conflicts.py, its issue slots by plugins/tools/kernel_report.py.
"""

from __future__ import annotations

import argparse
import csv
import io
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.gpu_suite import build
from vimdeploy.errors import MissingDependencyError, VimdeployError

CHANNELS, LENGTH, RANK, STATES, SIDES = 384, 197, 12, 16, 2
BATCHES = (64, 1)
_PLACES = ("/usr/local/cuda/bin/ncu", "/opt/nvidia/nsight-compute/ncu")


@dataclass(frozen=True)
class Counter:
    """A hardware counter, and what it should come to per warp and token; None where only a bound is known."""

    name: str
    what: str
    low: float | None
    high: float | None


COUNTERS = (
    Counter("smsp__inst_executed_pipe_xu.sum", "operations of the exp unit", 18.0, 20.0),
    Counter("smsp__inst_executed.sum", "issue slots (the scan's loop alone: 73)", 73.0, 160.0),
    Counter("l1tex__data_pipe_lsu_wavefronts_mem_shared.sum", "shared-memory wavefronts (the scan: 19)", 19.0, 32.0),
    Counter("l1tex__data_bank_conflicts_pipe_lsu_mem_shared.sum", "of them conflicts", 0.0, 5.0),
    Counter("smsp__issue_active.avg.pct_of_peak_sustained_active", "issue slots in use, %", None, None),
)


def problem(batch: int) -> str:
    """Return a line of the driver's input: float16, both directions, gated, the variant of one thread per channel."""
    return f"scan 1 1 {batch} {LENGTH} {CHANNELS} {STATES} {RANK} 0 0 1 1 2 1 -1 0 0"


def warp_tokens(batch: int) -> float:
    """Return how often a warp works on a token in such a launch."""
    return batch * LENGTH * SIDES * CHANNELS / 32


def command(tool: str, driver: Path, problems: Path) -> list[str]:
    """Return the profiler's command line."""
    metrics = ",".join(counter.name for counter in COUNTERS)
    return [tool, "--csv", "--metrics", metrics, "-k", "regex:scanKernel", "-c", "1", str(driver), str(problems)]


def read(text: str) -> dict[str, float]:
    """Return the value of every counter in the profiler's CSV, whose header follows lines of other output."""
    lines = text.splitlines()
    start = next((i for i, line in enumerate(lines) if '"Metric Name"' in line), None)
    if start is None:
        return {}
    rows = csv.DictReader(io.StringIO("\n".join(lines[start:])))
    return {row["Metric Name"]: float(row["Metric Value"].replace(",", "")) for row in rows if row.get("Metric Value")}


def verdict(counter: Counter, value: float | None, per: float) -> str:
    """Return a line: measured per warp and token, and whether that is what was predicted."""
    if value is None:
        return f"{counter.what}: not measured"
    if counter.low is None or counter.high is None:
        return f"{counter.what}: {value:.1f}"
    share = value / per
    fits = "as predicted" if counter.low <= share <= counter.high else "NOT as predicted"
    return f"{counter.what}: {share:.1f} per warp and token, {counter.low:g} to {counter.high:g} predicted: {fits}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Profile both launches; 2 where a tool is missing."""
    parser = argparse.ArgumentParser(prog="gpu_suite.smoke", description=str(__doc__).splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("build", "gpu_suite"))
    parser.add_argument("--dry-run", action="store_true", help="the driver on the host, no profiler")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    try:
        return _profile(options.out, dry_run=options.dry_run)
    except VimdeployError as error:
        print(f"gpu_suite.smoke: {error}", file=sys.stderr)
        return error.exit_code


def _profile(out: Path, *, dry_run: bool) -> int:
    if dry_run:
        driver = build.build_emulated(Path(__file__).resolve().parents[2] / "build" / "emulation").driver
    else:
        import torch

        major, minor = torch.cuda.get_device_capability()
        driver = build.build(out / "libraries", f"{major}.{minor}").driver
    tool = shutil.which("ncu") or next((place for place in _PLACES if Path(place).is_file()), None)
    if tool is None and not dry_run:
        raise MissingDependencyError("Nsight Compute (ncu) is not here", hint="Go on with the next step without it.")
    for batch in BATCHES[1:] if dry_run else BATCHES:
        problems = out / f"smoke_{batch}.txt"
        problems.write_text(problem(batch) + "\n")
        line = [str(driver), str(problems)] if dry_run else command(str(tool), driver, problems)
        done = subprocess.run(line, capture_output=True, text=True, check=False, timeout=120)
        (out / f"smoke_{batch}.csv").write_text(done.stdout + done.stderr)
        if done.returncode != 0:
            print(f"batch {batch}: status {done.returncode}: {(done.stderr or done.stdout).strip()[-500:]}")
            continue
        values = read(done.stdout)
        for counter in COUNTERS:
            print(f"batch {batch}: {verdict(counter, values.get(counter.name), warp_tokens(batch))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
