"""The real kernel sources, run on the host against a float64 reference, under sanitizers, and with planted faults.

The gate runs every test here in a few minutes on two cores. VIMDEPLOY_FULL_GRID=1 adds the full grid (every N,
E to 130, L to 140, whole models), three seeds of thread order under every sanitizer, every mutant under each of them.
"""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass

import emulated_kernels as emulation
import pytest

FULL = os.environ.get("VIMDEPLOY_FULL_GRID") == "1"
SEEDS = (1, 2, 3) if FULL else (1,)


def _summary(done: subprocess.CompletedProcess[str]) -> str:
    return f"status {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("flavour", emulation.FLAVOURS)
def test_every_case_is_within_its_bound(flavour: str, seed: int) -> None:
    """All variants, types, walks, lengths across tile edges, extreme data: each relative to the maximum."""
    grid = "full" if FULL and flavour == "plain" else "gate"
    far = ["--far"] if flavour == "plain" else []  # past 2^31 elements; sanitizers have no room for so large a map
    done = emulation.run(emulation.program_for(flavour), "--grid", grid, "--seed", str(seed), *far)
    assert done.returncode == 0, _summary(done)
    last = done.stdout.strip().splitlines()[-1]
    assert last.endswith(", 0 failed"), last
    assert int(last.split()[0]) >= 500


@dataclass(frozen=True)
class Mutant:
    """A planted fault (VIMDEPLOY_MUTANT) and what tells it apart."""

    number: int
    fault: str
    caught_by: str  # the flavour that the gate runs
    sign: str  # what that run says


MUTANTS = (
    Mutant(1, "a barrier dropped", "tsan", "data race"),
    Mutant(2, "a tile one token short", "plain", "FAIL"),
    Mutant(3, "the direction swapped", "plain", "FAIL"),
    Mutant(4, "the neighbour's row read", "plain", "FAIL"),
    Mutant(5, "no guard at the tail", "asan", "heap-buffer-overflow"),
    Mutant(6, "shared memory 4 bytes short", "asan", "heap-buffer-overflow"),
    Mutant(7, "the state kept in T", "plain", "FAIL"),
    Mutant(8, "asynchronous copies not waited for", "plain", "had not waited for"),
    Mutant(9, "partial sums rounded to T", "plain", "FAIL"),
    Mutant(10, "a warp barrier dropped", "tsan", "data race"),
    Mutant(11, "log2(1 + e) in place of log1p", "plain", "FAIL"),
    Mutant(12, "a barrier in one branch", "plain", "different barriers"),
)
# Where the sources plant them; the table must name them all.
PLANTED = range(1, 13)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: f"{mutant.number}-{mutant.fault.replace(' ', '-')}")
def test_planted_fault_is_caught(mutant: Mutant) -> None:
    done = emulation.run(
        emulation.program_for(mutant.caught_by, mutant.number), "--grid", "small", "--types", "scan float16"
    )
    assert done.returncode != 0, f"{mutant.fault}: not caught by {mutant.caught_by}"
    assert mutant.sign in done.stdout + done.stderr, _summary(done)


def test_the_same_cases_pass_without_a_fault() -> None:
    """Or the mutants would prove nothing."""
    for flavour in emulation.FLAVOURS:
        done = emulation.run(emulation.program_for(flavour), "--grid", "small", "--types", "scan float16")
        assert done.returncode == 0, _summary(done)


def test_every_planted_fault_is_in_the_table() -> None:
    sources = [*(emulation.EMULATION.parent / "kernels").glob("*/*.cu*")]
    planted = {
        int(line.rsplit(None, 1)[-1])
        for source in sources
        for line in source.read_text().splitlines()
        if line.startswith("#if VIMDEPLOY_MUTANT")
    }
    assert planted == {mutant.number for mutant in MUTANTS} == set(PLANTED)


if FULL:

    def test_matrix_of_mutants() -> None:
        """Which run catches which fault: printed for the record, and no fault escapes all of them."""
        escaped = []
        for mutant in MUTANTS:
            caught = []
            for flavour in emulation.FLAVOURS:
                program = emulation.program_for(flavour, mutant.number)
                if emulation.run(program, "--grid", "small", "--types", "scan float16").returncode != 0:
                    caught.append(flavour)
            print(f"{mutant.number:2d} {mutant.fault}: {', '.join(caught)}")
            if not caught:
                escaped.append(mutant.fault)
        assert not escaped
