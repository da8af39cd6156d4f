"""The command: which parts run, where results go, what is said last."""

from __future__ import annotations

import argparse
import secrets
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vimdeploy.errors import MissingDependencyError, VimdeployError

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("correctness", "sanitizer", "kernels", "models", "engine", "report")
PART_SECONDS = {"correctness": 200, "sanitizer": 180, "kernels": 260, "models": 380, "engine": 150}
"""The five stay under twenty minutes with the build; a part that runs out leaves its last cases `not measured`, and the
same command continues with them."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the suite; returns 0, 1 for a wrong result, 2 where something is missing, 3 when a part ran out of time."""
    options = _parser().parse_args(arguments)
    if options.plan:
        from benchmarks.gpu_suite import plan

        print(plan.text())
        return 0
    try:
        return _run(options)
    except VimdeployError as error:
        print(f"gpu_suite: {error}", file=sys.stderr)
        return error.exit_code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="gpu_suite", description="What can only be known on a GPU, in one command.")
    parser.add_argument("--part", choices=PARTS, action="append", help="run this part alone (may be repeated)")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "gpu_suite", help="folder of the results")
    parser.add_argument("--seed", type=int, help="seed of the random inputs; a fresh one by default")
    parser.add_argument("--seconds", type=int, help="time limit of each part")
    parser.add_argument("--fresh", action="store_true", help="forget earlier results instead of continuing them")
    parser.add_argument("--mamba-ssm", type=Path, help="mamba-ssm's source package, to build the peer from")
    parser.add_argument(
        "--dry-run", action="store_true", help="without a GPU: the kernels emulated on the host, small sizes, no timing"
    )
    parser.add_argument("--plan", action="store_true", help="print the commands for half an hour without a network")
    parser.add_argument("--build", type=Path, help="folder of what is compiled; below build/ by default")
    return parser


def _run(options: argparse.Namespace) -> int:
    chosen = options.part or list(PARTS)
    if "engine" in chosen:
        _say_what_engine_lacks(alone=set(chosen) <= {"engine", "report"})
    options.out.mkdir(parents=True, exist_ok=True)
    fine = complete = True
    if any(part != "report" for part in chosen):
        suite = _Suite(options, needs_kernels=any(part not in ("engine", "report") for part in chosen))
        for part in PARTS[:-1]:
            if part not in chosen:
                continue
            right, finished = suite.run(part)
            fine, complete = fine and right, complete and finished
            if part == "correctness" and not right:
                print("[gpu_suite] correctness failed: what is wrong is not timed", flush=True)
                break
    from benchmarks.gpu_suite import report

    page = report.write(options.out)
    print(page)
    print(report.summary(options.out))
    return 1 if not fine else 0 if complete else 3


def _say_what_engine_lacks(*, alone: bool) -> None:
    """Say before anything starts, not at its end, what part ``engine`` will miss."""
    from benchmarks.gpu_suite import engine

    absent = engine.absent("pytest", *engine.NEEDED)
    if not absent:
        return
    text = f"part engine will measure nothing: {', '.join(absent)} not installed"
    hint = "Without a network: carry the wheels (--plan prints the commands)."
    if alone:
        raise MissingDependencyError(text, hint=hint)
    print(f"[gpu_suite] {text}. {hint}", flush=True)


class _Suite:
    """What the parts share: the built libraries, the device, the stores."""

    def __init__(self, options: argparse.Namespace, *, needs_kernels: bool = True) -> None:
        import torch

        from benchmarks.gpu_suite import build
        from benchmarks.gpu_suite.store import environment

        self.options = options
        self.dry_run: bool = options.dry_run
        self.device = "cpu" if self.dry_run else "cuda"
        if not self.dry_run and not torch.cuda.is_available():
            raise MissingDependencyError(
                "torch sees no GPU, and nothing can be measured without one",
                hint="--dry-run exercises the suite on the host.",
            )
        self.environment = environment(dry_run=self.dry_run, sources=build.sources_digest())
        self._peer: Any = None
        if needs_kernels:
            self._build()

    def _build(self) -> None:
        """Compile the kernels, for the GPU at hand or emulated on the host."""
        import torch

        from benchmarks.gpu_suite import build
        from benchmarks.gpu_suite.library import Kernels

        start = time.monotonic()
        if self.dry_run:
            self.folder: Path = (self.options.build or ROOT / "build" / "emulation").resolve()
            self.built = build.build_emulated(self.folder)
        else:
            major, minor = torch.cuda.get_device_capability()
            self.folder = (self.options.build or ROOT / "build" / "gpu_suite" / "libraries").resolve()
            self.built = build.build(self.folder, f"{major}.{minor}")
        self.kernels = Kernels(self.built.kernels)
        expected = "emulated" if self.dry_run else "cuda"
        if self.kernels.backend != expected:
            raise MissingDependencyError(f"{self.built.kernels} runs on {self.kernels.backend}, not {expected}")
        self._say(f"{self.environment['device']}: kernels built in {time.monotonic() - start:.0f} s")

    def _say(self, text: str) -> None:
        print(f"[gpu_suite] {text}", flush=True)

    @property
    def peer(self) -> Any:
        if self._peer is None:
            from benchmarks.gpu_suite.peers import find_peer

            self._peer = find_peer(self.options.mamba_ssm, self.folder / "peer", self.device)
            self._say(f"peer: {self._peer.name}. {self._peer.notes}")
        return self._peer

    def run(self, part: str) -> tuple[bool, bool]:
        """Run a part within its time; returns whether what it found is right, and whether it finished."""
        from benchmarks.gpu_suite.store import Store

        store = Store.open(self.options.out, part, self.environment, fresh=self.options.fresh)
        if part in ("kernels", "models"):
            _ = self.peer  # its build counts against no part
        seed = secrets.randbelow(2**31) if self.options.seed is None else self.options.seed
        start = time.monotonic()
        deadline = start + (self.options.seconds or PART_SECONDS[part])
        earlier = len(store.cases)
        store.notes.pop("error", None)
        try:
            fine: bool = getattr(self, f"_{part}")(store, seed, deadline)
        except RuntimeError as error:  # a CUDA error, mostly: what was found before it stays
            traceback.print_exc()
            store.notes["error"] = f"{type(error).__name__}: {error}"[:1000]
            store.save()
            fine = False
        state = "complete" if store.complete else "unfinished: run it again to continue"
        self._say(
            f"{part}: {'right' if fine else 'WRONG'}, {len(store.cases) - earlier} "
            f"cases in {time.monotonic() - start:.0f} s, {state}"
        )
        return fine, store.complete

    def _correctness(self, store: Any, seed: int, deadline: float) -> bool:
        from benchmarks.gpu_suite import correctness

        return correctness.run(
            self.kernels, store, seed=seed, device=self.device, small=self.dry_run, deadline=deadline
        )

    def _sanitizer(self, store: Any, seed: int, deadline: float) -> bool:
        from benchmarks.gpu_suite import sanitizer

        return sanitizer.run(self.kernels, self.built.driver, store, dry_run=self.dry_run, deadline=deadline)

    def _kernels(self, store: Any, seed: int, deadline: float) -> bool:
        from benchmarks.gpu_suite import ceilings, kernels

        library = self.built.ceilings
        return kernels.run(
            self.kernels, self.peer, store, seed=seed, device=self.device, deadline=deadline,
            ceilings=None if library is None else lambda: ceilings.measure_ceilings(library),
        )  # fmt: skip

    def _models(self, store: Any, seed: int, deadline: float) -> bool:
        from benchmarks.gpu_suite import models

        return models.run(
            self.built.kernels, self.peer, store, seed=seed, device=self.device, deadline=deadline, dry_run=self.dry_run
        )

    def _engine(self, store: Any, seed: int, deadline: float) -> bool:
        from benchmarks.gpu_suite import engine

        return engine.run(store, dry_run=self.dry_run, deadline=deadline)
