"""What the device can do at most, measured, and the floor that puts under a scan."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_suite.cases import DTYPES, ScanCase
from benchmarks.gpu_suite.timing import measure

_COPY_BYTES = 2 << 30


def measure_ceilings(library: Path) -> dict[str, float]:
    """Return bytes per second of a copy (read plus written) and exponentials per second."""
    copy = _measure_copy()
    torch.cuda.empty_cache()
    exponentials = ctypes.CDLL(str(library))
    chains = exponentials.gpu_suite_exp_chains()
    blocks = torch.cuda.get_device_properties(0).multi_processor_count * 32
    iterations = 4096
    out = torch.empty(blocks * 256, device="cuda")

    def queue(_: int) -> None:
        stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
        code = exponentials.gpu_suite_exp_rate(ctypes.c_void_p(out.data_ptr()), blocks, iterations, stream)
        if code != 0:
            raise RuntimeError(f"the exp kernel could not be launched: CUDA error {code}")

    rate = measure(queue, 2)
    return {
        "copy_bytes_per_s": 2 * _COPY_BYTES / copy["median_us"] * 1e6,
        "exp_per_s": blocks * 256 * chains * iterations / rate["median_us"] * 1e6,
    }


def _measure_copy() -> dict[str, Any]:
    source = torch.randint(0, 255, (2, _COPY_BYTES), dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return measure(lambda i: target[i].copy_(source[i]), 2)


def scan_bytes(case: ScanCase) -> int:
    """Return the fewest bytes a scan moves: every input read once, y written once. Partial sums are not counted."""
    width = DTYPES[case.dtype].itemsize
    tokens = case.batch * case.length
    u = (1 if case.shared_u else case.groups) * tokens * case.channels * width
    x = (1 if case.shared_x else case.groups) * tokens * (case.rank + 2 * case.states) * width
    parameters = case.groups * case.channels * (case.states * 4 + 8 + case.rank * width)
    y = tokens * case.channels * (width if case.gated else 4)
    return u + x + parameters + y + (tokens * case.channels * width if case.gated else 0)


def scan_exponentials(case: ScanCase) -> int:
    """Return the operations of the exp unit: N decays and a softplus (1; its logarithm is a polynomial) per group, a
    sigmoid (2: an exponential and a reciprocal) for the gate."""
    return case.batch * case.length * case.channels * (case.groups * (case.states + 1) + (2 if case.gated else 0))


def floor(case: ScanCase, ceilings: dict[str, float]) -> dict[str, Any]:
    """Return the times below which no version can run, in microseconds, and which of the two binds."""
    memory = scan_bytes(case) / ceilings["copy_bytes_per_s"] * 1e6
    exponentials = scan_exponentials(case) / ceilings["exp_per_s"] * 1e6
    return {
        "memory_us": memory,
        "exp_us": exponentials,
        "us": max(memory, exponentials),
        "bound": "memory" if memory > exponentials else "exp",
    }
