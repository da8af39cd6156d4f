"""One contender of a benchmark in a process of its own: opens it, then runs a batch for each line it is sent.

Its memory is its own, and the parent decides whose turn it is; see :class:`.benchmark.Worker`.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vimdeploy.errors import MissingDependencyError, UsageError, VimdeployError
from vimdeploy.runtime.session import Session

Images = npt.NDArray[np.float32]
Run = Callable[[Images], object]


def opened(backend: str, model: str, threads: int) -> tuple[Run, tuple[int, ...]]:
    """Return a function that runs a batch on a contender, and the shape of one image.

    Args:
        backend: one of :data:`vimdeploy.commands.benchmark.BACKENDS`.
        model: file, or ``arch:NAME`` or ``arch:NAME@SIZE`` for random weights in torch.
        threads: of the backend.

    Raises:
        UsageError: the backend does not run such a file.
        VimdeployError: the file cannot be opened here.

    """
    if backend == "torch":
        return _torch(model, threads)
    if backend == "openvino":
        return _openvino(model, threads)
    if backend.startswith("onnxruntime"):
        from vimdeploy.runtime.onnx_session import OnnxSession

        ops = "body" if backend == "onnxruntime-body" else "auto"
        session: Session = OnnxSession(model, threads=threads, batch=None, ops=ops)
    else:
        from vimdeploy.runtime.session import load

        session = load(model)
    tensor = session.inputs[0]
    shape = tuple(224 if size < 0 else size for size in tensor.shape[1:])
    return lambda images: session.run({tensor.name: images.astype(tensor.dtype, copy=False)}), shape


def _torch(model: str, threads: int) -> tuple[Run, tuple[int, ...]]:
    import torch

    from vimdeploy.models.family import fold
    from vimdeploy.models.load import ModelRequest, load_model

    torch.set_num_threads(threads)
    if model.startswith("arch:"):
        name, _, size = model.removeprefix("arch:").partition("@")
        request = ModelRequest(arch=name, img_size=(int(size), int(size)) if size else None)
        loaded = load_model(None, request)
    elif model.endswith((".onnx", ".plan", ".engine")):
        raise UsageError(f"{model}: torch runs checkpoints.", hint="Name the checkpoint it was exported from.")
    else:
        loaded = load_model(Path(model), ModelRequest())
    folded = fold(loaded.model)

    def run(images: Images) -> object:
        with torch.inference_mode():
            return folded(torch.from_numpy(images))

    height, width = loaded.input.size if hasattr(loaded.input, "size") else loaded.config.img_size
    return run, (3, height, width)


def _openvino(model: str, threads: int) -> tuple[Run, tuple[int, ...]]:
    try:
        import openvino
    except ImportError as error:
        raise MissingDependencyError(
            f"the backend openvino needs openvino: {error}", hint="pip install 'vimdeploy[openvino]'"
        ) from error
    core = openvino.Core()
    settings = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32", "NUM_STREAMS": 1}
    try:
        compiled = core.compile_model(model, "CPU", settings)
    except RuntimeError as error:
        raise UsageError(
            f"{model}: OpenVINO cannot compile it: {str(error).splitlines()[0]}",
            hint="Give it the portable form: vimdeploy convert MODEL.onnx --portable",
        ) from error
    shape = tuple(size.get_length() for size in list(compiled.input(0).partial_shape)[1:])
    request = compiled.create_infer_request()
    return lambda images: request.infer({0: images}), shape


def resident_mib(field: str) -> float:
    """Return a field of this process's memory, ``VmRSS`` or ``VmHWM``, in MiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) / 1024
    return 0.0


def forget_peak() -> None:
    """Start the peak anew from what is resident now, where the system allows it."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def main() -> None:
    """Serve one parent on standard input and output."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is not an answer

    def say(**values: Any) -> None:
        answers.write(json.dumps(values) + "\n")
        answers.flush()

    backend, model, threads = json.loads(sys.argv[1])
    try:
        started = time.perf_counter()
        run, shape = opened(backend, model, threads)
        load_seconds = time.perf_counter() - started
    except VimdeployError as error:
        say(error=error.message, hint=error.hint)
        return
    random = np.random.default_rng(0)
    images: Images = np.empty((0, *shape), np.float32)
    loaded = resident_mib("VmRSS")
    say(load_seconds=load_seconds, loaded_mib=loaded, shape=shape)
    forget_peak()
    for line in sys.stdin:
        batch = int(line)
        if len(images) != batch:
            images = random.standard_normal((batch, *shape), dtype=np.float32)
        wall, processor = time.perf_counter(), time.process_time()
        run(images)
        say(
            wall=time.perf_counter() - wall,
            cpu=time.process_time() - processor,
            added_mib=resident_mib("VmHWM") - loaded,
        )


if __name__ == "__main__":
    main()
