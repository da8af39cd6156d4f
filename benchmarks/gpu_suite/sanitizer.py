"""Part ``sanitizer``: compute-sanitizer over a small grid, through a driver of exact allocations and no Python."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.gpu_suite.cases import WALKS, ConvCase, ScanCase, vim_case
from benchmarks.gpu_suite.library import Kernels
from benchmarks.gpu_suite.store import NOT_MEASURED, Store

TOOLS = ("memcheck", "racecheck", "synccheck", "initcheck")
_DTYPES = {"float32": 0, "float16": 1, "bfloat16": 2}
_PLACES = ("/usr/local/cuda/bin", "/usr/local/cuda/compute-sanitizer")
_TOOL_SECONDS = 130


def sanitizer_cases() -> Iterator[ScanCase | ConvCase]:
    """Yield every walk, type and number of states at shapes that are a multiple of nothing, and one Vim layer's."""
    for index, facts in enumerate(WALKS.values()):
        dtype = list(_DTYPES)[index % 3]
        for states in (1, 8, 16, 24):
            yield ScanCase(2, 99, 19, states, 5, dtype, height=9, **facts)
    yield vim_case(72, 197, 1)
    yield ScanCase(1, 3, 40, rank=128, dtype="float32")
    for width in (2, 3, 4):
        yield ConvCase(2, 21, 19, width, list(_DTYPES)[width - 2])
        yield ConvCase(1, 1, 24, width, "float16", (1, -1, 1, -1), silu=False)


def lines(kernels: Kernels) -> list[str]:
    """Return the driver's input: every case, scans once per variant."""
    text = []
    for case in sanitizer_cases():
        if isinstance(case, ConvCase):
            numbers = [_DTYPES[case.dtype], case.batch, case.length, case.channels, case.width, int(case.silu)]
            text.append(" ".join(map(str, ["conv", *numbers, len(case.directions), *case.directions])))
            continue
        for variant in kernels.variants(case):
            numbers = [variant, _DTYPES[case.dtype], case.batch, case.length, case.channels, case.states, case.rank]
            numbers += [int(case.shared_u), int(case.shared_x), int(case.gated), case.height, case.groups]
            text.append(" ".join(map(str, ["scan", *numbers, *case.directions, *case.column_major])))
    return text


def find_tool() -> str | None:
    """Return compute-sanitizer's path, or None."""
    found = shutil.which("compute-sanitizer")
    return found or next((str(p) for place in _PLACES if (p := Path(place, "compute-sanitizer")).is_file()), None)


def run(kernels: Kernels, driver: Path, store: Store, *, dry_run: bool, deadline: float) -> bool:
    """Run the part; returns whether nothing was found, as far as it came.

    Without the tool the driver still runs, and that is said.
    """
    problems = lines(kernels)
    tool = None if dry_run else find_tool()
    store.notes |= {"problems": len(problems), "tool": tool or NOT_MEASURED}
    listing = store.path.with_name("sanitizer_problems.txt")
    listing.write_text("\n".join(problems) + "\n")
    target = [str(driver), str(listing)]
    if "driver" not in store.cases:
        store.put("driver", _call(target, len(problems), _TOOL_SECONDS))
    for name in TOOLS if tool else ():
        if store.cases.get(name, {}).get("status") in ("clean", "found"):
            continue
        left = deadline - time.monotonic()
        if left < 5:
            return _is_clean(store)
        command = [str(tool), "--tool", name, "--error-exitcode", "9", "--print-limit", "10", *target]
        store.put(name, _call(command, len(problems), min(_TOOL_SECONDS, left)))
    store.save(complete=True)
    return _is_clean(store)


def _is_clean(store: Store) -> bool:
    return all(result["status"] != "found" for result in store.cases.values())


def _call(command: list[str], problems: int, seconds: float) -> dict[str, Any]:
    start = time.monotonic()
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=seconds)
    except subprocess.TimeoutExpired:
        return {"status": f"{NOT_MEASURED}: longer than {seconds:.0f} s"}
    text = done.stdout + done.stderr
    if "Device not supported" in text or "Failed to initialize" in text:
        return {"status": f"{NOT_MEASURED}: the tool refuses this machine", "output": text[-2000:]}
    found = done.returncode != 0 or f"{problems} problems on " not in done.stdout
    result: dict[str, Any] = {"status": "found" if found else "clean", "seconds": round(time.monotonic() - start, 1)}
    return {**result, "output": text[-6000:]} if found else result
