"""Latency and throughput of a session: against ONNX Runtime, TensorRT's other Python runner, and its own overhead.

    python benchmarks/engine.py                          # the digits model, on whatever this machine has
    python benchmarks/engine.py --onnx vim.onnx --engine vim.engine
    python benchmarks/engine.py --no-conversion          # without Vim-B, which takes minutes to export

Without a GPU the TensorRT rows say 'not measured'; with one and no --engine, a plan is built here. Two rows need none:
the overhead is the time that Python takes from the call to the launch, on a device that does nothing; the conversion is
the precision pass over Vim-B, of random weights. Results go to benchmarks/results/engine.json and engine.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

import vimdeploy
from vimdeploy.artifacts.tensors import Tensor
from vimdeploy.errors import MissingDependencyError, VimdeployError
from vimdeploy.runtime.cuda import CudaDevice, Device
from vimdeploy.runtime.device_session import DeviceSession
from vimdeploy.runtime.onnx_session import OnnxSession
from vimdeploy.runtime.plan_session import PlanSession

RESULTS = Path(__file__).parent / "results"
DIGITS = Path(__file__).parents[1] / "examples" / "digits" / "vim_digits.pth"
BATCHES = (1, 8, 64)
SECONDS = 1.0


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure sessions on this machine.")
    parser.add_argument("--onnx", type=Path, help="exported model; default: the digits model, exported now")
    parser.add_argument("--engine", type=Path, help="plan of the same model")
    parser.add_argument("--conversion", action=argparse.BooleanOptionalAction, default=True, help="time it on Vim-B")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        onnx = args.onnx or export_digits(Path(folder))
        rows = [*overhead(), *(conversion(Path(folder)) if args.conversion else ()), *onnx_runtime(onnx)]
        rows += tensorrt_rows(onnx, args.engine, Path(folder))
    results = {"machine": machine(), "model": onnx.name, "rows": rows}
    (args.out / "engine.json").write_text(json.dumps(results, indent=1) + "\n")
    (args.out / "engine.md").write_text(table(results))
    print(table(results))


def export_digits(folder: Path) -> Path:
    return vimdeploy.export(DIGITS, folder / "digits.onnx", verify=False).path


def conversion(folder: Path) -> list[dict[str, Any]]:
    """Time the FP32 -> FP16 pass over Vim-B at 224 pixels: from a float32 model in memory to a half one."""
    import onnx

    from vimdeploy.graph.policy import PRECISIONS, Policy
    from vimdeploy.graph.precision import convert_model

    exported = vimdeploy.export(output=folder / "vim_base.onnx", arch="vim_base_patch16_224", verify=False)
    model = onnx.load(exported.path)
    times = []
    for _ in range(5):
        start = time.perf_counter()
        convert_model(model, PRECISIONS["fp16"], Policy())
        times.append(time.perf_counter() - start)
    p50, p90, p99 = (float(np.percentile(times, q)) * 1e6 for q in (50, 90, 99))
    what = {"what": "Precision pass", "how": "Vim-B to FP16", "batch": "-"}
    return [{**what, "p50_us": p50, "p90_us": p90, "p99_us": p99, "n": len(times)}]


def machine() -> dict[str, Any]:
    try:
        gpu = CudaDevice().facts()[0]
    except VimdeployError:
        gpu = None
    return {
        "processor": platform.machine(),
        "cores": os.cpu_count(),
        "gpu": gpu,
        "python": platform.python_version(),
        "onnxruntime": version("onnxruntime"),
        "load_average": os.getloadavg()[0],
    }


def measure(call: Callable[[], Any], images: int, seconds: float = SECONDS) -> dict[str, float]:
    """Return percentiles of the latency in microseconds, and images per second."""
    for _ in range(5):
        call()
    times = []
    until = time.perf_counter() + seconds
    while time.perf_counter() < until or len(times) < 10:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    p50, p90, p99 = (float(np.percentile(times, q)) * 1e6 for q in (50, 90, 99))
    return {
        "p50_us": p50,
        "p90_us": p90,
        "p99_us": p99,
        "images_per_s": images / float(np.median(times)),
        "n": len(times),
    }


class NullDevice(Device):
    """A device that does nothing, at once: what is left is Python's own time."""

    dlpack_device = (2, 0)

    def __init__(self) -> None:
        self._memory: list[Any] = []

    def allocate_host(self, nbytes: int) -> int:
        self._memory.append(np.zeros(nbytes, np.uint8))
        return int(self._memory[-1].ctypes.data)

    def allocate(self, nbytes: int, stream: int) -> int:
        return self.allocate_host(nbytes)

    def capture(self, stream: int, launch: Callable[[], None]) -> Any:
        return 1

    def create_stream(self) -> int:
        return 1

    def create_event(self) -> int:
        return 1

    def is_done(self, event: int) -> bool:
        return True

    def active(self) -> AbstractContextManager[None]:
        return nullcontext()

    def nothing(self, *_: Any) -> None:
        pass

    destroy_stream = free = free_host = copy = launch = release = destroy_event = record = wait = order = nothing


class NullContext:
    def set_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        return True

    def shape(self, name: str) -> tuple[int, ...]:
        return (1, 10)

    def bind(self, name: str, address: int) -> bool:
        return True

    def enqueue(self, stream: int) -> bool:
        return True


class OnDevice:
    """An array that says it is in device memory."""

    def __init__(self, array: np.ndarray, address: int | None = None) -> None:
        self._array = array
        data = (array.ctypes.data if address is None else address, False)
        self.__cuda_array_interface__ = {"shape": array.shape, "typestr": "<f4", "data": data, "version": 3}


def overhead() -> list[dict[str, Any]]:
    """Time from the call to the launch of a captured graph, for a batch of one."""
    tensors = [Tensor("images", "float32", (-1, 3, 32, 32), True), Tensor("logits", "float32", (-1, 10), False)]
    profile = {"images": ((1, 3, 32, 32), (8, 3, 32, 32), (64, 3, 32, 32))}
    x, y = np.zeros((1, 3, 32, 32), np.float32), np.zeros((1, 10), np.float32)
    rows = []
    with DeviceSession(NullContext, NullDevice(), tensors, profile) as session:
        cases: dict[str, Callable[[], Any]] = {
            "host to host": lambda: session.submit({"images": x}, {"logits": y}).result(),
            "device to device": lambda: session.submit({"images": device_x}, {"logits": device_y}).result(),
        }
        device_x, device_y = OnDevice(x), OnDevice(y)
        for name, call in cases.items():
            rows.append(row("Session's own overhead", f"{name}, graph", 1, call))
    return rows


def row(what: str, how: str, batch: int, call: Callable[[], Any]) -> dict[str, Any]:
    return {"what": what, "how": how, "batch": batch, **measure(call, batch)}


def onnx_runtime(path: Path) -> list[dict[str, Any]]:
    import onnxruntime as ort

    rows = []
    raw = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    with OnnxSession(path) as session:
        name = session.inputs[0].name
        for batch in BATCHES:
            x = images(session.inputs[0], batch)
            rows.append(row("ONNX Runtime", "InferenceSession.run", batch, partial(raw.run, None, {name: x})))
            rows.append(row("ONNX Runtime", "OnnxSession", batch, partial(session, x)))
    return rows


def build_plan(onnx: Path, folder: Path) -> Path:
    """Build an FP16 plan for the GPU of this machine, by TensorRT or else TensorRT-RTX.

    Raises:
        MissingDependencyError: neither is installed, or there is no GPU.
        VimdeployError: the build failed, or the plan does not compute what it should.

    """
    from vimdeploy.commands.build_engine import build_engine
    from vimdeploy.tensorrt import api as trt
    from vimdeploy.tensorrt.options import BuildOptions

    capability = CudaDevice().facts()[1]
    found = [f for f in (trt.Flavour.TENSORRT, trt.Flavour.RTX) if trt.installed_version(f)]
    owner = trt.load(found[0] if found else trt.Flavour.TENSORRT)
    is_rtx = owner.flavour is trt.Flavour.RTX
    if is_rtx and capability not in owner.known_compute_capabilities:
        raise MissingDependencyError(f"TensorRT-RTX has no target for this GPU ({capability})")
    options = BuildOptions(owner.flavour, (1, 8, 64), compute_capabilities=(capability,) if is_rtx else ())
    return build_engine(onnx, folder / "bench.engine", options=options, precision="fp16").path


def tensorrt_rows(onnx: Path, engine: Path | None, folder: Path) -> list[dict[str, Any]]:
    """Measure a plan, built here where none is given; one row says why where that cannot be."""
    try:
        return tensorrt(engine or build_plan(onnx, folder))
    except VimdeployError as error:
        return [{"what": "TensorRT", "how": f"not measured: {error.message}", "batch": "-"}]


def tensorrt(engine: Path) -> list[dict[str, Any]]:
    device = CudaDevice()
    sessions = {f"graph {'on' if g else 'off'}": PlanSession(engine, graphs=g) for g in (8, 0)}
    rows = []
    for how, session in sessions.items():
        for batch in sorted({1, *(b for b in BATCHES if b <= session.largest_batch), session.largest_batch}):
            x = images(session.inputs[0], batch)
            feeds = {session.inputs[0].name: resident(device, x)}
            rows.append(row("Session", f"{how}, host to host", batch, partial(session, x)))
            rows.append(row("Session", f"{how}, device to device", batch, partial(session.run, feeds)))
        session.close()
    return rows + polygraphy(engine)


def polygraphy(engine: Path) -> list[dict[str, Any]]:
    try:
        from polygraphy.backend.common import BytesFromPath
        from polygraphy.backend.trt import EngineFromBytes, TrtRunner
    except ImportError:
        return [{"what": "polygraphy TrtRunner", "how": "not measured: not installed", "batch": "-"}]
    with vimdeploy.load(engine) as session:
        tensor, largest = session.inputs[0], session.largest_batch
    rows = []
    with TrtRunner(EngineFromBytes(BytesFromPath(str(engine)))) as runner:
        for batch in (b for b in BATCHES if b <= largest):
            feeds = {tensor.name: images(tensor, batch)}
            rows.append(row("polygraphy TrtRunner", "host to host", batch, partial(runner.infer, feeds)))
    return rows


def resident(device: CudaDevice, x: np.ndarray) -> Any:
    """Return a copy of ``x`` in device memory."""
    stream = device.create_stream()
    address = device.allocate(x.nbytes, stream)
    device.copy(address, x.ctypes.data, x.nbytes, stream)
    event = device.create_event()
    device.record(event, stream)
    device.wait(event)
    return OnDevice(x, address)


def images(tensor: Tensor, batch: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(batch, *tensor.shape[1:])).astype(tensor.dtype)


def table(results: dict[str, Any]) -> str:
    m = results["machine"]
    lines = [
        f"# Sessions on {m['gpu'] or 'a machine without GPU'} ({m['cores']} cores, load {m['load_average']:.1f})",
        "",
        f"Model: {results['model']}. Microseconds per call.",
        "",
        "| what | how | batch | p50 | p90 | p99 | images/s |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for row in results["rows"]:
        numbers = [f"{row[k]:.1f}" if k in row else "" for k in ("p50_us", "p90_us", "p99_us", "images_per_s")]
        lines.append(f"| {row['what']} | {row['how']} | {row['batch']} | {' | '.join(numbers)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
