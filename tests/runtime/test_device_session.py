"""Batches, threads, graphs and memory of a session, on a device that runs nothing until somebody waits."""

from __future__ import annotations

import gc
import threading
from typing import Any

import numpy as np
import pytest
from fake_device import TENSORS, WORKING_BYTES, FakeContext, FakeDevice, OnDevice, at, contexts, expected

from vimdeploy.errors import UsageError, VimdeployError
from vimdeploy.runtime import dlpack
from vimdeploy.runtime.device_array import DeviceArray
from vimdeploy.runtime.device_session import DeviceSession
from vimdeploy.runtime.slot import Contexts

PROFILE = {"images": ((2, 3, 2, 2), (4, 3, 2, 2), (8, 3, 2, 2))}


def session(device: FakeDevice, **options: Any) -> DeviceSession:
    return DeviceSession(contexts(device), device, TENSORS, PROFILE, **options)


def images(batch: int, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).normal(size=(batch, 3, 2, 2)).astype(np.float32)


@pytest.mark.parametrize("graphs", [0, 2, 8])
@pytest.mark.parametrize("batch", [1, 2, 3, 7, 8, 9, 16, 21, 65])
def test_any_batch_gives_the_rows_in_order(batch: int, graphs: int) -> None:
    device = FakeDevice()
    with session(device, graphs=graphs) as s:
        for seed in range(4):
            x = images(batch, seed)
            np.testing.assert_array_equal(s.run({"images": x})["logits"], expected(x))
            np.testing.assert_array_equal(s(x), expected(x))
    assert not device.memory, "memory was not given back"
    assert set(device.streams) == {0}
    assert not device.events


def test_a_size_is_captured_when_it_comes_again_and_then_only_launched() -> None:
    device = FakeDevice()
    with session(device) as s:
        for _ in range(5):
            s(images(4))
        assert device.counts["capture"] == 1
        assert device.counts["launch"] == 3
        launches = device.counts["enqueue"]
        s(images(4))
        assert device.counts["enqueue"] == launches
        s(images(3))
        assert device.counts["launch"] == 5, "three images are served by the graph of four"
        assert "rows 3" not in device.counts
        s(images(2))
        assert device.counts["rows 2"] == 1, "two of four would waste half: they run as they are"
        x = images(4, 9)
        np.testing.assert_array_equal(s(x), expected(x))


def test_the_graph_least_recently_used_goes_first() -> None:
    device = FakeDevice()
    with session(device, graphs=2) as s:
        for batch in (8, 8, 2, 2, 8, 5, 5):
            s(images(batch))
        assert s._pool.slots[0].captured() == [8, 5]
        assert device.counts["release"] == 1


def test_an_engine_that_cannot_be_captured_runs_without_graphs(caplog: pytest.LogCaptureFixture) -> None:
    device = FakeDevice(capturable=False)
    with session(device) as s:
        for seed in range(4):
            np.testing.assert_array_equal(s(images(4, seed)), expected(images(4, seed)))
    assert caplog.text.count("it runs without") == 1


@pytest.mark.parametrize("batch", [2, 5, 8])
def test_device_inputs_are_not_copied(batch: int) -> None:
    device = FakeDevice()
    x = images(batch)
    with session(device) as s:
        for _ in range(4):
            y = s(OnDevice(device, x))
            assert isinstance(y, DeviceArray)
            np.testing.assert_array_equal(at(y.address, (batch, 4)), expected(x))
            assert y.__cuda_array_interface__["shape"] == (batch, 4)
        assert "copy" not in device.counts
        held = OnDevice(device, x)
        out = OnDevice(device, np.zeros((batch, 4), np.float32))
        before = device.counts.get("allocate", 0)
        for _ in range(4):
            assert s.run({"images": held}, {"logits": out})["logits"] is out
        assert device.counts.get("allocate", 0) == before
        assert device.counts["capture"] >= 1, "the same addresses again: worth a graph"


@pytest.mark.parametrize("batch", [1, 20, 65])
def test_rows_that_tensorrt_would_refuse_go_through_aligned_memory(batch: int) -> None:
    """Below the profile, or split where a part starts off TensorRT's 256 bytes."""
    device = FakeDevice()
    with session(device) as s:
        for seed in range(3):
            x = images(batch, seed)
            y = s(OnDevice(device, x))
            assert isinstance(y, DeviceArray)
            np.testing.assert_array_equal(at(y.address, (batch, 4)), expected(x))
            inside = OnDevice(device, np.concatenate([images(1), x]))
            inside.address, inside.shape = inside.address + 48, (batch, 3, 2, 2)
            np.testing.assert_array_equal(s(inside).numpy(), expected(x))


def test_work_that_fills_an_input_is_waited_for() -> None:
    """CUDA's array interface names the stream, DLPack's producer is told ours; the device runs nothing by itself."""
    device = FakeDevice()
    theirs = device.create_stream()
    with session(device, contexts=2) as s:
        for graphs in range(3):
            x = images(4, graphs)
            np.testing.assert_array_equal(s(OnDevice(device, x, stream=theirs)).numpy(), expected(x))
        assert device.counts["order"] == 3
        x, told = images(4, 9), []

        class Producer(DeviceArray):
            def __dlpack__(self, *, stream: int | None = None, **options: Any) -> Any:
                told.append(stream)
                return super().__dlpack__(stream=stream, **options)

        with device.active():
            held = Producer(device, x.shape, "float32", theirs)
        at(held.address, x.shape)[:] = x
        pending = s.submit({"images": held})
        assert told == [s._pool.slots[1].stream]
        np.testing.assert_array_equal(pending.result()["logits"].numpy(), expected(x))
        out = OnDevice(device, np.zeros((4, 4), np.float32), stream=theirs)
        s.run({"images": held}, {"logits": out})
        np.testing.assert_array_equal(at(out.address, (4, 4)), expected(x), "overwritten by its own earlier work")


def test_arrays_of_another_gpu_are_refused() -> None:
    device, other = FakeDevice(), FakeDevice()
    other.dlpack_device = (dlpack.CUDA, 1)
    with other.active():
        held = DeviceArray(other, (2, 3, 2, 2), "float32", 0)
    with session(device) as s, pytest.raises(UsageError, match="on GPU 1, this session on GPU 0"):
        s(held)


def watched_contexts(device: FakeDevice, most: int = 1000) -> tuple[list[FakeContext], Contexts]:
    """Return a maker of contexts, which has no memory for more than ``most``, and the list of those it made."""
    made: list[FakeContext] = []

    def make(memory: int) -> FakeContext:
        if len(made) == most:
            raise VimdeployError("TensorRT has no memory for an execution context")
        made.append(FakeContext(device, memory))
        return made[-1]

    return made, Contexts(make, WORKING_BYTES)


@pytest.mark.parametrize("batch", [4, 20])
def test_a_failure_half_way_waits_before_memory_goes_away(batch: int) -> None:
    device = FakeDevice()
    made, make = watched_contexts(device)
    with DeviceSession(make, device, TENSORS, PROFILE) as s:
        made[0].fail_on = 6 if batch == 20 else 4  # the last of 7, 7 and 6 images, or the only one
        with pytest.raises(VimdeployError, match=r"launching the engine.*scan_3.*the launch failed"):
            s(OnDevice(device, images(batch)))
        assert not any(device.streams.values()), "still at work on memory that the caller got back"
        made[0].fail_on = 0
        np.testing.assert_array_equal(s(images(4)), expected(images(4)))


def test_no_memory_for_one_more_context_costs_only_the_graph(caplog: pytest.LogCaptureFixture) -> None:
    device = FakeDevice()
    _, make = watched_contexts(device, most=2)
    with DeviceSession(make, device, TENSORS, PROFILE) as s:
        for batch in (4, 4, 4, 8, 8, 8):
            np.testing.assert_array_equal(s(images(batch, batch)), expected(images(batch, batch)))
        assert device.counts["release"] == 1, "the graph captured before is given back"
    assert caplog.text.count("it runs without") == 1


def test_a_session_that_cannot_be_opened_leaves_nothing() -> None:
    device = FakeDevice()
    _, make = watched_contexts(device, most=1)
    with pytest.raises(VimdeployError, match="no memory"):
        DeviceSession(make, device, TENSORS, PROFILE, contexts=2)
    assert set(device.streams) == {0}
    assert not device.events
    assert not device.memory


def test_no_memory_to_work_in_leaves_nothing() -> None:
    device = FakeDevice(capacity=WORKING_BYTES)
    with pytest.raises(VimdeployError, match="out of memory"):
        session(device, contexts=2)
    assert set(device.streams) == {0}
    assert not device.events
    assert not device.memory


def test_every_graph_of_a_slot_works_in_the_same_memory() -> None:
    """A context of its own for every graph would otherwise cost the engine's whole activations, nine times over."""
    device = FakeDevice()
    made, make = watched_contexts(device)
    with DeviceSession(make, device, TENSORS, PROFILE, contexts=2) as s:
        for batch in (2, 2, 4, 4, 8, 8):
            np.testing.assert_array_equal(s(images(batch, batch)), expected(images(batch, batch)))
        assert len(made) == 2 + device.counts["capture"] == 5
        assert len({context.memory for context in made}) == 2
    assert not device.memory


def test_outputs_may_be_preallocated_on_the_host() -> None:
    device = FakeDevice()
    with session(device) as s:
        x, out = images(9), np.zeros((9, 4), np.float32)
        assert s.run({"images": x}, {"logits": out})["logits"] is out
        np.testing.assert_array_equal(out, expected(x))
        locked = np.zeros((9, 4), np.float32)
        locked.flags.writeable = False
        for wrong in (np.zeros((8, 4), np.float32), np.zeros((9, 4)), np.zeros((4, 9), np.float32).T, locked):
            with pytest.raises(UsageError, match=r"out\['logits'\]"):
                s.run({"images": x}, {"logits": wrong})
        with pytest.raises(UsageError, match="out names 'logit'; the model gives: logits"):
            s.run({"images": x}, {"logit": out})
        with pytest.raises(UsageError, match="output 'logits' is a list, not an array"):
            s.run({"images": x}, {"logits": [1.0]})
        np.testing.assert_array_equal(s(x), expected(x))


def test_submit_returns_before_the_work_is_done() -> None:
    device = FakeDevice()
    with session(device, contexts=2) as s:
        a, b = images(3, 1), images(4, 2)
        first, second = s.submit({"images": a}), s.submit({"images": b})
        assert not first.done()
        np.testing.assert_array_equal(second.result()["logits"], expected(b))
        np.testing.assert_array_equal(first.result()["logits"], expected(a))
        assert first.done()
        assert first.result() is first.result()


def test_a_result_nobody_asks_for_gives_its_context_back() -> None:
    device = FakeDevice()
    with session(device) as s:
        s.submit({"images": images(3)})
        gc.collect()
        np.testing.assert_array_equal(s(images(2)), expected(images(2)))


def test_a_result_may_be_asked_for_after_closing() -> None:
    device = FakeDevice()
    with session(device) as s:
        pending = s.submit({"images": images(3)})
    np.testing.assert_array_equal(pending.result()["logits"], expected(images(3)))


def test_closing_waits_for_a_result_nobody_asked_for() -> None:
    device = FakeDevice()
    with session(device) as s:
        s.submit({"images": images(3)})
    assert not device.memory


def test_one_thread_may_start_more_calls_than_there_are_contexts() -> None:
    device = FakeDevice()
    with session(device, contexts=2) as s:
        batches = [images(1 + i % 11, i) for i in range(20)]
        pending = [s.submit({"images": x}) for x in batches]
        for x, call in zip(batches, pending, strict=True):
            np.testing.assert_array_equal(call.result()["logits"], expected(x))


def test_closing_wakes_who_waits_for_a_context_and_waits_for_who_has_one() -> None:
    device = FakeDevice()
    started, go_on = threading.Event(), threading.Event()

    class Slow(FakeContext):
        def enqueue(self, stream: int) -> bool:
            started.set()
            assert go_on.wait(10)
            return super().enqueue(stream)

    make = Contexts(lambda memory: Slow(device, memory), WORKING_BYTES)
    s = DeviceSession(make, device, TENSORS, PROFILE)
    results: list[object] = []

    def call() -> None:
        try:
            results.append(s(images(4)))
        except UsageError as error:
            results.append(error.message)

    threads = [threading.Thread(target=call) for _ in range(2)]
    threads[0].start()
    assert started.wait(10)
    threads[1].start()
    closing = threading.Thread(target=s.close)
    closing.start()
    threads[1].join(10)
    assert results == ["this session is closed"]
    assert closing.is_alive(), "closed under a call"
    go_on.set()
    for thread in (threads[0], closing):
        thread.join(10)
    np.testing.assert_array_equal(results[1], expected(images(4)))
    assert not device.memory


def test_closing_while_others_start_calls() -> None:
    for _ in range(20):
        device = FakeDevice()
        s = session(device, contexts=2)
        failures: list[BaseException] = []

        def work(s: DeviceSession = s, failures: list[BaseException] = failures) -> None:
            try:
                while True:
                    s.submit({"images": images(3)})
            except UsageError:
                pass
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        s.close()
        for thread in threads:
            thread.join(10)
            assert not thread.is_alive()
        assert not failures, failures[0]
        gc.collect()
        assert not device.memory


def test_a_session_nobody_closes_gives_its_memory_back() -> None:
    device = FakeDevice()
    pending = session(device).submit({"images": images(3)})
    gc.collect()
    np.testing.assert_array_equal(pending.result()["logits"], expected(images(3)))
    assert not device.memory


def test_a_graph_is_not_destroyed_while_it_runs() -> None:
    device = FakeDevice()
    profile = {"images": ((2, 3, 2, 2), (16, 3, 2, 2), (16, 3, 2, 2))}
    x = images(32)
    both, to_both = OnDevice(device, x), OnDevice(device, np.zeros((32, 4), np.float32))
    half, to_half = OnDevice(device, x[:16]), OnDevice(device, np.zeros((16, 4), np.float32))
    half.address, to_half.address = both.address, to_both.address
    with DeviceSession(contexts(device, largest=16), device, TENSORS, profile, graphs=1) as s:
        s.run({"images": both}, {"logits": to_both})
        s.run({"images": half}, {"logits": to_half})  # the first half is captured
        assert (device.counts["capture"], device.counts.get("launch")) == (1, None)
        s.run({"images": both}, {"logits": to_both})  # it is launched; the second half's graph takes its place
        assert (device.counts["capture"], device.counts["launch"], device.counts["release"]) == (2, 1, 1)
        np.testing.assert_array_equal(at(to_both.address, (32, 4)), expected(x))


@pytest.mark.parametrize("contexts", [1, 3])
def test_threads_share_a_session(contexts: int) -> None:
    device = FakeDevice()
    failures: list[BaseException] = []
    with session(device, contexts=contexts) as s:

        def work(seed: int) -> None:
            try:
                for i in range(30):
                    x = images(1 + (seed + i) % 11, seed * 100 + i)
                    np.testing.assert_array_equal(s(x), expected(x))
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not failures, failures[0]
    assert not device.memory


def test_a_failed_launch_raises_and_leaves_the_session_usable() -> None:
    device = FakeDevice()
    made, make = watched_contexts(device)
    with DeviceSession(make, device, TENSORS, PROFILE) as s:
        made[0].fail = True
        with pytest.raises(VimdeployError, match=r"launching the engine.*scan_3.*the launch failed"):
            s(images(4))
        made[0].fail = False
        np.testing.assert_array_equal(s(images(4)), expected(images(4)))


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "inputs given: none; the model takes: images"),
        ({"image": images(2)}, "inputs given: image"),
        ({"images": images(2).astype(np.float64)}, "is float64, the model takes float32"),
        ({"images": images(2)[0]}, "has shape 3x2x2, the model takes Nx3x2x2"),
        ({"images": np.zeros((2, 3, 4, 4), np.float32)}, "has shape 2x3x4x4"),
        ({"images": np.zeros((0, 3, 2, 2), np.float32)}, "an empty batch"),
        ({"images": images(2).transpose(0, 1, 3, 2)}, "is not contiguous"),
        ({"images": [[1.0]]}, "is a list, not an array"),
    ],
)
def test_inputs_that_do_not_fit_are_named(inputs: dict[str, Any], message: str) -> None:
    with session(FakeDevice()) as s, pytest.raises(UsageError) as caught:
        s.run(inputs)
    assert message in caught.value.message
    assert caught.value.hint


def test_a_closed_session_says_so() -> None:
    s = session(FakeDevice())
    s.close()
    s.close()
    with pytest.raises(UsageError, match="closed"):
        s(images(2))
