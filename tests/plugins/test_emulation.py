"""The real kernel sources, run on the host against a float64 reference, under sanitizers, and with planted faults.

The gate runs every test here in a few minutes on two cores. VIMDEPLOY_FULL_GRID=1 adds the full grid (every N,
E to 130, L to 140, whole models), three seeds of thread order under every sanitizer, every mutant under each of them.
"""

from __future__ import annotations

import os
import subprocess

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


MUTANTS = emulation.mutants()


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_planted_fault_is_caught(mutant: emulation.Mutant) -> None:
    done = emulation.run(emulation.program_for(mutant.caught_by, mutant), "--grid", "small", "--types", "scan float16")
    assert done.returncode != 0, f"{mutant.fault}: not caught by {mutant.caught_by}"
    assert mutant.sign in done.stdout + done.stderr, _summary(done)


def test_the_same_cases_pass_without_a_fault() -> None:
    """Or the mutants would prove nothing."""
    for flavour in emulation.FLAVOURS:
        done = emulation.run(emulation.program_for(flavour), "--grid", "small", "--types", "scan float16")
        assert done.returncode == 0, _summary(done)


if FULL:

    def test_matrix_of_mutants() -> None:
        """Which run catches which fault: printed for the record, and no fault escapes all of them."""
        escaped = []
        for mutant in MUTANTS:
            caught = []
            for flavour in emulation.FLAVOURS:
                program = emulation.program_for(flavour, mutant)
                if emulation.run(program, "--grid", "small", "--types", "scan float16").returncode != 0:
                    caught.append(flavour)
            print(f"{mutant.fault}: {', '.join(caught)}")
            if not caught:
                escaped.append(mutant.fault)
        assert not escaped
