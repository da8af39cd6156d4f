"""api.py under the rules that TensorRT's types do not state: lifetimes of loggers, order of calls, who hears what."""

from __future__ import annotations

import gc
import subprocess
import sys
import textwrap
import threading
import types

import pytest
import trt_double
from trt_strict import LAYERS_10, LAYERS_11, WORKING_BYTES, DeadLoggerError, Process, strict

from vimdeploy.errors import VimdeployError
from vimdeploy.tensorrt import api as trt
from vimdeploy.tensorrt.boundary import KEPT, Messages
from vimdeploy.tensorrt.proof import engine_layers, summarise_engine


@pytest.fixture
def process(monkeypatch: pytest.MonkeyPatch) -> Process:
    """A TensorRT with the real classes of TensorRT-RTX's bindings, in a process that has not met a logger yet."""
    import tensorrt_rtx

    monkeypatch.setattr(trt, "_LOGS", {})
    return strict(trt_double.double(tensorrt_rtx, {}))


@pytest.fixture
def owner(process: Process) -> trt.TensorRt:
    return trt.TensorRt(trt.Flavour.RTX, process.api)


def load_nothing(api: types.ModuleType) -> None:
    api.IPluginRegistry.__new__(api.IPluginRegistry).load_library("nothing.so")


def test_the_double_dies_of_a_dead_logger(process: Process) -> None:
    """Or the next test would prove nothing."""
    api = process.api

    class Logger(api.ILogger):  # type: ignore[misc,name-defined]
        def log(self, severity: object, msg: str) -> None:
            pass

    runtime = api.Runtime(Logger())
    load_nothing(api)
    del runtime
    gc.collect()
    with pytest.raises(DeadLoggerError):
        load_nothing(api)


def test_the_first_logger_outlives_whoever_brought_it(process: Process, owner: trt.TensorRt) -> None:
    for _ in range(3):
        assert owner.runtime(Messages()).engine(b"plan") is not None
        gc.collect()
        load_nothing(process.api)
    assert trt.TensorRt(trt.Flavour.RTX, process.api)._log is owner._log, "one per flavour, however often it is loaded"


SWAP = """
    import gc
    from vimdeploy.tensorrt import api
    from vimdeploy.tensorrt.boundary import Messages

    rtx = api.load("rtx")
    old = rtx.runtime(Messages())
    new = rtx.runtime(heard := Messages())
    del old
    gc.collect()
    assert rtx.api.get_plugin_registry().load_library("/nonexistent/library.so") is None
    print(len(heard.errors()))
"""


def test_the_real_library_writes_through_a_living_logger() -> None:
    """TensorRT-RTX itself, as sessions are swapped: with a logger per session this was a segmentation fault."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(SWAP)], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) >= 1, "and who listens now hears of it"


def test_what_fails_is_told_by_who_met_it(owner: trt.TensorRt) -> None:
    messages, others = Messages(), Messages()
    engine = owner.runtime(messages).engine(b"plan")
    other = owner.runtime(others).engine(b"plan")
    assert engine is not None
    assert other is not None
    context, foreign = engine.context(4096), other.context(4096)
    assert not foreign.set_shape("images", (9, 3, 4, 4))
    assert foreign.complaints() == ["setInputShape: Static dimension mismatch while setting input shape for images"]
    assert not context.enqueue(7)
    assert context.complaints() == ["enqueueV3: Not all shapes are specified: images"]
    assert context.set_shape("images", (2, 3, 4, 4))
    assert context.complaints() == []
    assert not context.enqueue(7)
    assert context.complaints() == ["enqueueV3: Address is not set for tensor images"]
    assert not context.bind("images", 17)
    assert context.bind("images", 256)
    assert context.bind("logits", 512)
    assert context.enqueue(7)
    assert context.complaints() == []


def test_a_context_works_in_memory_of_the_caller(owner: trt.TensorRt) -> None:
    engine = owner.runtime(Messages()).engine(b"plan")
    assert engine is not None
    assert engine.context_bytes() == WORKING_BYTES
    context = engine.context(100)  # not aligned, so TensorRT does not take it
    assert context.complaints()
    context.set_shape("images", (2, 3, 4, 4))
    for name in ("images", "logits"):
        assert context.bind(name, 256)
    assert not context.enqueue(7)
    assert context.complaints() == ["enqueueV3: the context has no device memory"]


def test_a_context_that_cannot_be_made_says_why(
    owner: trt.TensorRt, process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = owner.runtime(Messages()).engine(b"plan")
    assert engine is not None

    def fail(this: object, strategy: object) -> None:
        process.log("IExecutionContext: Error Code 2: OutOfMemory (no further information)")

    monkeypatch.setattr(process.api.ICudaEngine, "create_execution_context", fail)
    with pytest.raises(VimdeployError, match="creating an execution context: TensorRT ran out of memory"):
        engine.context(4096)


def test_profilers_are_not_told_every_layer_at_every_launch(owner: trt.TensorRt, process: Process) -> None:
    engine = owner.runtime(Messages()).engine(b"plan")
    assert engine is not None
    assert engine.context(4096)._context.nvtx_verbosity is process.api.ProfilingVerbosity.NONE


def test_messages_of_another_thread_and_of_long_ago_are_not_ours() -> None:
    messages = Messages()
    messages.add("error", "before")
    mark = messages.mark()
    other = threading.Thread(target=messages.add, args=("error", "another thread's"))
    other.start()
    other.join()
    messages.add("warning", "no error")
    messages.add("internal_error", "ours")
    assert messages.own_since(mark) == ["ours"]
    assert messages.errors() == ["before", "another thread's", "ours"]
    for number in range(2 * KEPT):
        messages.add("error", str(number))
    assert len(messages.errors()) == KEPT
    assert messages.errors()[-1] == str(2 * KEPT - 1)


@pytest.mark.parametrize("report", [LAYERS_10, LAYERS_11], ids=["TensorRT 10", "TensorRT 11"])
def test_both_dialects_of_the_inspector_are_read(report: dict[str, object]) -> None:
    summary = summarise_engine(report)
    assert (summary.layers, summary.reformats, summary.fused_layers) == (2, 1, 1)
    assert summary.reformat_bytes == 2 * 3 * 4 * 4 * 2, "two bytes each: the reformat makes it half"
    assert engine_layers(report)[1] == ("PluginV3", "scan_3", "0x1")
