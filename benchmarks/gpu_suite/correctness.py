"""Part ``correctness``: every variant against float64, before anything is timed.

A call gets an output and a workspace that lie between guards. It runs twice: once over NaN bits (what it does not
write, or reads before writing, shows), once over other bits; both results must agree bit for bit, or something was read
that nobody wrote, or threads race. Errors are relative to the largest value of the reference, and NaN never passes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from benchmarks.gpu_suite import cases as problems
from benchmarks.gpu_suite.cases import ConvCase, ScanCase, ScanInputs
from benchmarks.gpu_suite.library import VARIANTS, KernelError
from benchmarks.gpu_suite.reference import conv_reference, scan_reference
from benchmarks.gpu_suite.store import Store

TOLERANCES = {"float32": 1e-5, "float16": 2e-3, "bfloat16": 2e-2}
"""Largest error, relative to the largest value (issue and op contract)."""
GUARD_BYTES = 4096
_GUARD = 0xA5
_POISONS = (0xFF, 0x3C)
"""NaN in every type; and about 0.01 to 1.06 in every type."""


class ScanAndConv(Protocol):
    """What is under test: :class:`benchmarks.gpu_suite.library.Kernels`, or one with a fault, planted by a test."""

    def variants(self, case: ScanCase) -> list[int]: ...

    def plan(self, case: ScanCase, variant: int = 0) -> dict[str, int]: ...

    def workspace_size(self, case: ScanCase, variant: int = 0) -> int: ...

    def scan(self, case: ScanCase, inputs: ScanInputs, y: Tensor, workspace: Tensor, variant: int = 0) -> None: ...

    def conv(self, case: ConvCase, x: Tensor, weight: Tensor, bias: Tensor, u: Tensor) -> None: ...


@dataclass
class _Guarded:
    """Bytes between two guards. ``offset`` moves them off their alignment."""

    size: int
    device: str
    offset: int = 0

    def __post_init__(self) -> None:
        self.buffer = torch.full((2 * GUARD_BYTES + self.size + self.offset,), _GUARD, dtype=torch.uint8).to(
            self.device
        )
        self.first = GUARD_BYTES + self.offset

    @property
    def payload(self) -> Tensor:
        return self.buffer[self.first : self.first + self.size]

    def poison(self, byte: int) -> None:
        self.payload.fill_(byte)

    def is_intact(self) -> bool:
        before, after = self.buffer[: self.first], self.buffer[self.first + self.size :]
        return bool((before == _GUARD).all() and (after == _GUARD).all())


def relative_error(got: Tensor, reference: Tensor) -> float:
    """Return the largest error over the largest value of the reference; NaN if any element is."""
    worst = (got.double() - reference).abs().max()
    return float(worst / reference.abs().max().clamp(min=1e-30))


def _judge(got: Tensor, reference: Tensor, dtype: str) -> tuple[float, str]:
    error = relative_error(got, reference)
    if error <= TOLERANCES[dtype]:
        return error, ""
    unwritten = int(torch.isnan(got).sum())
    if unwritten:
        return error, f"{unwritten} elements are NaN (not written, or computed from what nobody wrote)"
    return error, f"error {error:.2e} of the maximum, {TOLERANCES[dtype]:.0e} allowed"


def _run_twice(
    call: Callable[[Tensor, Tensor], None],
    shape: tuple[int, ...],
    dtype: torch.dtype,
    workspace: int,
    *,
    case: Any,
    device: str,
) -> tuple[Tensor, str]:
    """Call with both poisons; return the first result and what is wrong with how it came about."""
    elements = int(torch.Size(shape).numel())
    out = _Guarded(elements * dtype.itemsize, device, dtype.itemsize if case.misaligned else 0)
    scratch = _Guarded(workspace, device)
    results = []
    for poison in _POISONS:
        out.poison(poison)
        scratch.poison(poison)
        call(out.payload.view(dtype).view(shape), scratch.payload)
        if device != "cpu":
            torch.cuda.synchronize()
        results.append(out.payload.clone())
        if not out.is_intact():
            return results[0].view(dtype).view(shape), "wrote outside its output"
        if not scratch.is_intact():
            return results[0].view(dtype).view(shape), "wrote outside its workspace"
    moved = "" if torch.equal(*results) else "two runs on the same inputs differ: a race, or a read of unwritten memory"
    return results[0].view(dtype).view(shape), moved


def check_scan(kernels: ScanAndConv, case: ScanCase, seed: int, device: str) -> dict[str, Any]:
    """Check every variant that can run the case. Returns errors by variant and, under ``wrong``, what failed."""
    inputs = problems.scan_inputs(case, seed, device)
    kept = inputs.map(torch.clone)
    reference = scan_reference(case, inputs)
    errors: dict[str, float] = {}
    wrong: list[str] = []
    for variant in kernels.variants(case):
        name = VARIANTS.get(variant, str(variant))

        def call(y: Tensor, workspace: Tensor, variant: int = variant) -> None:
            kernels.scan(case, inputs, y, workspace, variant)

        try:
            y, problem = _run_twice(
                call,
                tuple(reference.shape),
                case.out_dtype,
                kernels.workspace_size(case, variant),
                case=case,
                device=device,
            )
        except KernelError as error:
            wrong.append(f"{name}: {error}")
            continue
        errors[name], inexact = _judge(y, reference, case.dtype)
        wrong += [f"{name}: {text}" for text in (inexact, problem) if text]
    if any(not torch.equal(a, b) for a, b in zip(_tensors(inputs), _tensors(kept), strict=True)):
        wrong.append("an input was changed")
    return {"seed": seed, "errors": errors, "wrong": wrong}


def check_conv(kernels: ScanAndConv, case: ConvCase, seed: int, device: str) -> dict[str, Any]:
    """Check one convolution; returns as :func:`check_scan`."""
    tensors = problems.conv_inputs(case, seed, device)
    reference = conv_reference(case, *tensors)

    def call(u: Tensor, _: Tensor) -> None:
        kernels.conv(case, *tensors, u)

    try:
        u, problem = _run_twice(call, tuple(reference.shape), tensors[0].dtype, 0, case=case, device=device)
    except KernelError as refusal:
        return {"seed": seed, "errors": {}, "wrong": [str(refusal)]}
    error, inexact = _judge(u, reference, case.dtype)
    return {"seed": seed, "errors": {"conv": error}, "wrong": [text for text in (inexact, problem) if text]}


def check_far(kernels: ScanAndConv, case: ScanCase, seed: int, device: str) -> dict[str, Any]:
    """Check a case past 2^31 elements on its first and last sample (samples do not touch each other)."""
    inputs = problems.scan_inputs(case, seed, device)
    variant = kernels.plan(case)["variant"]
    workspace = torch.full((kernels.workspace_size(case),), 0xFF, dtype=torch.uint8, device=device)
    y = torch.full((case.batch, case.length, case.channels), float("nan"), dtype=case.out_dtype, device=device)
    kernels.scan(case, inputs, y, workspace)
    torch.cuda.synchronize()
    ends = [0, case.batch // 2, case.batch - 1]
    part = ScanInputs(
        inputs.u[:, ends],
        inputs.x_dbl[:, ends],
        inputs.A,
        inputs.D,
        inputs.dt_weight,
        inputs.dt_bias,
        None if inputs.z is None else inputs.z[ends],
    )
    reference = scan_reference(replace(case, batch=len(ends)), part)
    error, inexact = _judge(y[ends], reference, case.dtype)
    missing = "" if bool(torch.isfinite(y).all()) else "elements of other samples are not finite"
    name = VARIANTS.get(variant, str(variant))
    return {"seed": seed, "errors": {name: error}, "wrong": [text for text in (inexact, missing) if text]}


def _check(kernels: ScanAndConv, case: ScanCase | ConvCase, seed: int, device: str) -> dict[str, Any]:
    if isinstance(case, ScanCase):
        return check_scan(kernels, case, seed, device)
    return check_conv(kernels, case, seed, device)


def run(kernels: ScanAndConv, store: Store, *, seed: int, device: str, small: bool, deadline: float) -> bool:
    """Run the part; returns whether nothing was wrong, as far as it came."""
    store.notes = {"seed": seed, "tolerances": TOLERANCES, **store.notes}
    seed = store.notes["seed"]  # a continued run keeps the seed its cases were drawn from
    for index, case in enumerate(problems.correctness_cases(seed, small=small)):
        if case.name in store.cases:
            continue
        if time.monotonic() > deadline:
            store.save()
            return not failures(store.cases)
        try:
            store.cases[case.name] = _check(kernels, case, seed + index, device)
        except RuntimeError as error:  # an asynchronous CUDA error: the device is lost to this process
            store.put(case.name, {"seed": seed + index, "errors": {}, "wrong": [f"ended the run: {error}"[:500]]})
            return False
        if index % 20 == 0:
            store.save()
    if device != "cpu":
        torch.cuda.empty_cache()
        far = problems.far_case(torch.cuda.mem_get_info()[0])
        if far is None:
            store.notes["far"] = "past 2^31 elements: not checked, the device has too little memory"
        elif far.name not in store.cases:
            store.put(far.name, check_far(kernels, far, seed, device))
            torch.cuda.empty_cache()
    store.save(complete=True)
    return not failures(store.cases)


def failures(results: dict[str, Any]) -> dict[str, list[str]]:
    """Return what failed, by case."""
    return {name: result["wrong"] for name, result in results.items() if result["wrong"]}


def _tensors(inputs: ScanInputs) -> list[Tensor]:
    return [value for value in vars(inputs).values() if value is not None]
