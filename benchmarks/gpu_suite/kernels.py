"""Part ``kernels``: the scan of Vim's layers against the peer and against what the device can do at most."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu_suite import peers
from benchmarks.gpu_suite.cases import VIM_SHAPES, ScanCase, ScanInputs, scan_inputs, vim_case
from benchmarks.gpu_suite.ceilings import floor, scan_bytes
from benchmarks.gpu_suite.correctness import relative_error
from benchmarks.gpu_suite.library import VARIANTS, Kernels
from benchmarks.gpu_suite.store import Store
from benchmarks.gpu_suite.timing import input_sets, measure

BATCHES = (64, 1, 8, 128)
"""The goals' batches first: a run cut short has them."""
AGREEMENT = 2e-2
"""Largest difference between our result and the peer's, relative to the largest value; the peer rounds delta and both
directions to float16, ours neither."""
Timer = Callable[[Callable[[int], Any]], "dict[str, Any] | None"]
"""Runs a call over its sets of inputs and returns what it took; None in a dry run."""
_DRY_SHAPES = ((64, 19), (64, 33))


def key(channels: int, length: int, batch: int) -> str:
    """Return the name of a case in the results."""
    return f"E={channels} L={length} B={batch}"


def timed_cases(*, dry_run: bool) -> Iterator[ScanCase]:
    """Yield the cases in the order of their weight in the goals; small stand-ins for a dry run."""
    if dry_run:
        yield from (vim_case(channels, length, 1) for channels, length in _DRY_SHAPES)
        return
    for batch in BATCHES:
        yield from (vim_case(channels, length, batch) for channels, length in VIM_SHAPES)


def run(
    kernels: Kernels, peer: peers.Peer, store: Store, *, ceilings: Callable[[], dict[str, float]] | None, seed: int,
    device: str, deadline: float,
) -> bool:  # fmt: skip
    """Run the part; returns whether every result that was timed agrees with the peer's, as far as it came.

    Args:
        ceilings: measures them; None in a dry run, which runs each call once and times nothing.
    """
    store.notes |= {"peer": peer.name, "peer_notes": peer.notes}
    store.notes.setdefault("seed", seed)
    if ceilings is not None and "ceilings" not in store.notes:
        store.notes["ceilings"] = ceilings()
        store.save()
    for index, case in enumerate(timed_cases(dry_run=ceilings is None)):
        name = key(case.channels, case.length, case.batch)
        if name in store.cases and store.cases[name]["peer"]["name"] == peer.name:
            continue
        if time.monotonic() > deadline:
            break
        store.put(name, time_case(kernels, peer, case, store, store.notes["seed"] + index, device))
        if device != "cpu":
            torch.cuda.empty_cache()
    else:
        store.save(complete=True)
    return all(result["agreement"] <= AGREEMENT for result in store.cases.values())


def time_case(
    kernels: Kernels, peer: peers.Peer, case: ScanCase, store: Store, seed: int, device: str
) -> dict[str, Any]:
    """Time one case: every variant of ours; of the peer the launches, with flips and adds, and all that is needed."""
    dry_run = store.environment["dry_run"]
    sets = 1 if dry_run else input_sets(scan_bytes(case), store.environment["l2_bytes"])
    timer: Timer = _once if dry_run else partial(measure, sets=sets)
    inputs = [scan_inputs(case, seed + 1000 * i, device) for i in range(sets)]
    ours, result = _time_ours(kernels, case, inputs, timer, device)
    problems = [peers.prepare(case, values) for values in inputs]
    theirs = peers.run_whole(peer, case, problems[0]).transpose(1, 2)
    return {
        "seed": seed,
        "input_sets": sets,
        "ours": result,
        "peer": {
            "name": peer.name,
            "kernels": timer(lambda i: peers.run_kernels(peer, problems[i])),
            "flips": timer(lambda i: peers.run_flips(peer, problems[i])),
            "whole": timer(lambda i: peers.run_whole(peer, case, problems[i])),
        },
        "agreement": relative_error(ours, theirs.double()),
        "floor": None if dry_run else floor(case, store.notes["ceilings"]),
    }


def _time_ours(
    kernels: Kernels, case: ScanCase, inputs: list[ScanInputs], timer: Timer, device: str
) -> tuple[Tensor, dict[str, Any]]:
    """Time every variant; return the chosen one's output for the first inputs, and the results."""
    y = [torch.empty(case.batch, case.length, case.channels, dtype=case.out_dtype, device=device) for _ in inputs]

    def time_variant(variant: int) -> dict[str, Any] | None:
        workspace = torch.empty(kernels.workspace_size(case, variant), dtype=torch.uint8, device=device)
        return timer(lambda i: kernels.scan(case, inputs[i], y[i], workspace, variant))

    variants = {VARIANTS[variant]: time_variant(variant) for variant in kernels.variants(case)}
    plan = kernels.plan(case)
    workspace = torch.empty(kernels.workspace_size(case), dtype=torch.uint8, device=device)
    kernels.scan(case, inputs[0], y[0], workspace)
    return y[0], {"chosen": VARIANTS[plan["variant"]], "launches": plan["launches"], "variants": variants}


def _once(call: Callable[[int], Any]) -> None:
    """Run and time nothing: a dry run has no number to give."""
    call(0)
