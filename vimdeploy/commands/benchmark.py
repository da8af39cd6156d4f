"""`vimdeploy benchmark`: how fast models run here, on every backend, side by side.

Each contender runs in a process of its own; they take turns, so that what else the machine does meets all of them
alike, and ratios mean more than seconds.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

from vimdeploy.errors import UsageError, VimdeployError, nearest
from vimdeploy.progress import SILENT, Reporter

BACKENDS = ("onnxruntime", "onnxruntime-body", "torch", "openvino", "tensorrt")
"""``onnxruntime`` uses the native ops where they are here, ``onnxruntime-body`` the function bodies."""
_PLANS = (".plan", ".engine")


@dataclass(frozen=True)
class Contender:
    """A model on a backend."""

    model: str
    """A file, or ``arch:NAME`` (``arch:NAME@SIZE``) for random weights."""
    backend: str
    env: Mapping[str, str] = field(default_factory=dict)
    """Environment variables of its process."""
    label: str = ""

    @property
    def name(self) -> str:
        """What tables call it."""
        return self.label or f"{Path(self.model).name} {self.backend}"


@dataclass(frozen=True)
class Timing:
    """What was measured of one contender at one batch size. Seconds are of one batch."""

    name: str
    backend: str
    batch: int
    threads: int
    runs: int
    p50: float
    p90: float
    p99: float
    cpu: float
    """Median processor seconds, of all threads."""
    images_per_second: float
    load_seconds: float
    added_mib: float
    """Peak memory that running adds to what is resident once the model is loaded."""
    loaded_mib: float
    ratio: float
    """Processor time of the first contender over this one's: above 1 it is faster."""


@dataclass(frozen=True)
class Benchmark:
    """All timings, and how noisy the machine was."""

    timings: tuple[Timing, ...]
    not_run: Mapping[str, str]
    """Contenders that could not run, with the reason."""
    load_average: float
    noise: float
    """Median over the contenders of p90 / p50 - 1 of processor time: how much equal runs differed."""
    waiting: float
    """Share of the wall time in which a contender of one thread was not running."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)


class Worker:
    """A contender's process.

    Args:
        contender: what to open.
        threads: of its backend.

    Raises:
        VimdeployError: it cannot be opened here.

    """

    def __init__(self, contender: Contender, threads: int) -> None:
        request = json.dumps([contender.backend, contender.model, threads])
        self._process = subprocess.Popen(
            [sys.executable, "-m", "vimdeploy.commands.benchmark_worker", request],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": str(threads), **contender.env},
        )
        try:
            self.opened = self._answer()
        except BaseException:
            self.close()
            raise

    def run(self, batch: int) -> dict[str, float]:
        """Run one batch and return its wall and processor seconds and the peak so far."""
        stdin = self._pipe(self._process.stdin)
        try:
            stdin.write(f"{batch}\n")
            stdin.flush()
        except BrokenPipeError:
            pass  # what it died of follows
        return self._answer()

    def close(self) -> None:
        """End the process."""
        self._pipe(self._process.stdin).close()
        self._pipe(self._process.stdout).close()
        self._process.wait()

    def _answer(self) -> dict[str, Any]:
        line = self._pipe(self._process.stdout).readline()
        if not line:
            raise VimdeployError(f"its process ended with status {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise VimdeployError(answer["error"], hint=answer["hint"])
        return answer

    @staticmethod
    def _pipe(pipe: IO[str] | None) -> IO[str]:
        assert pipe is not None
        return pipe


def benchmark(
    models: Sequence[str],
    *,
    backends: Sequence[str] = (),
    against: Sequence[str] = (),
    batch: Sequence[int] = (1,),
    threads: int = 1,
    seconds: float = 3.0,
    reporter: Reporter = SILENT,
) -> Benchmark:
    """Measure models on backends, in turns.

    Args:
        models: ONNX files, plans, checkpoints, or arch:NAME for random weights of a recipe.
        backends: onnxruntime, onnxruntime-body, torch, openvino, tensorrt; default: what runs each file.
        against: Further models to compare with, on the same backends.
        batch: Batch sizes.
        threads: Threads of each backend.
        seconds: How long each contender runs at each batch size.
        reporter: Told what is measured.

    Raises:
        UsageError: an unknown backend, or none that runs a model.
        VimdeployError: no contender can run; says why.

    """
    if unknown := next((b for b in backends if b not in BACKENDS), None):
        raise UsageError(f"There is no backend '{unknown}'.", hint=nearest(unknown, BACKENDS))
    if not models or min((*batch, threads)) < 1 or seconds <= 0:
        raise UsageError("Name a model; batch sizes, threads and seconds must be positive.")
    with tempfile.TemporaryDirectory() as folder:
        contenders = [c for m in (*models, *against) for c in _contenders(m, backends, Path(folder), reporter)]
        return measure(contenders, batch, threads, seconds, reporter)


def measure(
    contenders: Sequence[Contender],
    batches: Sequence[int],
    threads: int,
    seconds: float,
    reporter: Reporter = SILENT,
) -> Benchmark:
    """Measure contenders in turns; see :func:`benchmark` for the arguments and errors."""
    load_average = os.getloadavg()[0]
    not_run: dict[str, str] = {}
    timings: list[Timing] = []
    noise: list[float] = []
    waiting: list[float] = []
    with ExitStack() as stack:
        workers: dict[str, tuple[Contender, Worker]] = {}
        for contender in contenders:
            reporter.stage(f"Opening {contender.name}")
            try:
                worker = Worker(contender, threads)
            except VimdeployError as error:
                not_run[contender.name] = f"{error.message} {error.hint}".strip()
                continue
            stack.callback(worker.close)
            workers[contender.name] = (contender, worker)
        if not workers:
            raise VimdeployError(f"Nothing could be measured: {'; '.join(f'{k}: {v}' for k, v in not_run.items())}")
        for batch in batches:
            runs = _turns(workers, batch, seconds, reporter)
            first = None
            for name, (contender, worker) in workers.items():
                walls, processor = (sorted(run[key] for run in runs[name]) for key in ("wall", "cpu"))
                median = statistics.median(processor)
                first = first or median
                noise.append(_quantile(processor, 0.9) / median - 1)
                waiting.append(max(0.0, 1 - median / statistics.median(walls)) if threads == 1 else 0.0)
                timings.append(
                    Timing(
                        name=name,
                        backend=contender.backend,
                        batch=batch,
                        threads=threads,
                        runs=len(walls),
                        p50=statistics.median(walls),
                        p90=_quantile(walls, 0.9),
                        p99=_quantile(walls, 0.99),
                        cpu=median,
                        images_per_second=batch / statistics.median(walls),
                        load_seconds=worker.opened["load_seconds"],
                        added_mib=runs[name][-1]["added_mib"],
                        loaded_mib=worker.opened["loaded_mib"],
                        ratio=first / median,
                    )
                )
    return Benchmark(
        tuple(timings), not_run, round(load_average, 2), statistics.median(noise), statistics.median(waiting)
    )


def _turns(
    workers: Mapping[str, tuple[Contender, Worker]], batch: int, seconds: float, reporter: Reporter
) -> dict[str, list[dict[str, float]]]:
    """Let everyone warm up, then run in turns until each has run ``seconds``; at least three times, at most 200."""
    reporter.stage(f"Batch {batch}: warming up")
    for _, worker in workers.values():
        worker.run(batch)
    reporter.stage(f"Batch {batch}: in turns")
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in workers}
    spent = dict.fromkeys(workers, 0.0)
    for turn in range(200):
        for name, (_, worker) in workers.items():
            if turn < 3 or spent[name] < seconds:
                runs[name].append(worker.run(batch))
                spent[name] += runs[name][-1]["cpu"]
        reporter.progress(int(100 * min(1.0, min(spent.values()) / seconds)), 100)
        if turn >= 2 and min(spent.values()) >= seconds:
            break
    return runs


def _quantile(ordered: Sequence[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, round(share * (len(ordered) - 1)))]


def _contenders(model: str, backends: Sequence[str], folder: Path, reporter: Reporter) -> list[Contender]:
    """Return a model on every backend asked for; a checkpoint is exported first where a backend wants ONNX."""
    if model.endswith(_PLANS):
        return [Contender(model, "tensorrt")]
    if model.endswith(".onnx"):
        from vimdeploy.runtime.ort import has_custom_ops

        forms = ("onnxruntime", "onnxruntime-body") if has_custom_ops(Path(model)) else ("onnxruntime",)
        return [Contender(model, b) for b in backends or forms]
    contenders = []
    exported = ""
    for backend in backends or ("torch", "onnxruntime", "onnxruntime-body"):
        if backend != "torch" and not exported:
            exported = _export(model, folder, reporter)
        contenders.append(Contender(exported if backend != "torch" else model, backend, label=f"{model} {backend}"))
    return contenders


def _export(model: str, folder: Path, reporter: Reporter) -> str:
    from vimdeploy.commands.export import export

    reporter.stage(f"Exporting {model}")
    output = folder / f"{abs(hash(model))}.onnx"
    if model.startswith("arch:"):
        name, _, size = model.removeprefix("arch:").partition("@")
        export(None, output, arch=name, img_size=(int(size), int(size)) if size else None, verify=False)
    else:
        export(model, output, verify=False)
    return str(output)
