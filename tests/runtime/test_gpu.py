"""The device part of a session, on a real GPU: memory, streams, graphs; and plans where some TensorRT is installed."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
from fake_device import TENSORS

import vimdeploy
from vimdeploy.backends.onnxruntime import OnnxBackend
from vimdeploy.commands.build_engine import build_engine
from vimdeploy.errors import MissingDependencyError
from vimdeploy.runtime.cuda import CudaDevice
from vimdeploy.runtime.device_array import DeviceArray
from vimdeploy.runtime.device_session import DeviceSession
from vimdeploy.tensorrt import api as trt
from vimdeploy.tensorrt.boundary import Messages
from vimdeploy.tensorrt.options import BuildOptions

pytestmark = pytest.mark.gpu
PROFILE = {"images": ((2, 3, 2, 2), (4, 3, 2, 2), (8, 3, 2, 2))}


@pytest.fixture(scope="module")
def device() -> CudaDevice:
    try:
        return CudaDevice()
    except MissingDependencyError as error:
        pytest.skip(f"needs an NVIDIA GPU: {error.message}")


class CopyContext:
    """An engine that copies the first four values of each image: real CUDA work without TensorRT."""

    def __init__(self, device: CudaDevice) -> None:
        self.device = device
        self.rows = 0
        self.addresses: dict[str, int] = {}

    def set_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.rows = shape[0]
        return True

    def shape(self, name: str) -> tuple[int, ...]:
        return (self.rows, 4)

    def bind(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def enqueue(self, stream: int) -> bool:
        for row in range(self.rows):
            source = self.addresses["images"] + row * 48
            self.device.copy(self.addresses["logits"] + row * 16, source, 16, stream)
        return True


def images(batch: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(batch, 3, 2, 2)).astype(np.float32)


def expected(x: np.ndarray) -> np.ndarray:
    return x.reshape(len(x), -1)[:, :4]


@pytest.mark.parametrize("graphs", [0, 4])
def test_batches_of_any_size_from_the_host(device: CudaDevice, graphs: int) -> None:
    with DeviceSession(lambda: CopyContext(device), device, TENSORS, PROFILE, graphs=graphs) as session:
        for repeat in range(4):
            for batch in (1, 2, 3, 8, 9, 65):
                x = images(batch, repeat)
                np.testing.assert_array_equal(session(x), expected(x))
        assert bool(session._pool.slots[0].captured()) == bool(graphs)


def test_threads_share_contexts(device: CudaDevice) -> None:
    failures: list[BaseException] = []
    with DeviceSession(lambda: CopyContext(device), device, TENSORS, PROFILE, contexts=3) as session:

        def work(seed: int) -> None:
            try:
                for i in range(50):
                    x = images(1 + (seed + i) % 11, seed * 100 + i)
                    np.testing.assert_array_equal(session(x), expected(x))
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not failures, failures[0]


def test_torch_tensors_stay_on_the_device(device: CudaDevice) -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("needs a torch that sees the GPU")
    with DeviceSession(lambda: CopyContext(device), device, TENSORS, PROFILE) as session:
        for batch in (1, 4, 8, 20):
            for repeat in range(3):
                x = torch.from_numpy(images(batch, repeat)).cuda()
                y = session(x)
                assert isinstance(y, DeviceArray)
                np.testing.assert_array_equal(
                    torch.as_tensor(y, device="cuda").cpu().numpy(), expected(images(batch, repeat))
                )
                np.testing.assert_array_equal(y.numpy(), expected(images(batch, repeat)))
                taken = torch.from_dlpack(y)
                assert taken.is_cuda
                assert taken.data_ptr() == y.address
                del y
                np.testing.assert_array_equal(taken.cpu().numpy(), expected(images(batch, repeat)))
        out = torch.empty(4, 4, device="cuda")
        x = torch.from_numpy(images(4)).cuda()
        for _ in range(4):
            assert session.run({"images": x}, {"logits": out})["logits"] is out
        np.testing.assert_array_equal(out.cpu().numpy(), expected(images(4)))


def test_inputs_that_another_stream_is_still_filling(device: CudaDevice) -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("needs a torch that sees the GPU")
    x = torch.from_numpy(images(8)).cuda()
    with DeviceSession(lambda: CopyContext(device), device, TENSORS, PROFILE) as session:
        for _ in range(5):
            stream = torch.cuda.Stream()
            with torch.cuda.stream(stream):
                late = torch.zeros_like(x)
                torch.cuda._sleep(20_000_000)
                late.copy_(x)
                y = session(late)
            np.testing.assert_array_equal(y.numpy(), expected(images(8)))


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_an_engine_computes_what_onnx_runtime_does(
    device: CudaDevice, tiny: Path, tmp_path: Path, precision: str
) -> None:
    flavour = next((f for f in (trt.Flavour.TENSORRT, trt.Flavour.RTX) if trt.installed_version(f)), None)
    if flavour is None:
        pytest.skip("needs TensorRT or TensorRT-RTX")
    owner, capability = trt.load(flavour), device.facts()[1]
    if flavour is trt.Flavour.RTX and capability not in owner.known_compute_capabilities:
        pytest.skip(f"TensorRT-RTX has no target for this GPU ({capability})")
    targets = (capability,) if flavour is trt.Flavour.RTX else ()
    options = BuildOptions(flavour, (1, 4, 8), compute_capabilities=targets)
    built = build_engine(tiny, tmp_path / "vim.engine", options=options, precision=precision)
    assert built.manifest.parity is not None
    assert built.manifest.parity["passed"]
    assert built.manifest.inspector is not None
    assert built.manifest.inspector["layers"] > 0
    x = np.random.default_rng(0).normal(size=(20, 3, 64, 64)).astype(np.float32)
    reference = OnnxBackend(tiny).run(x)["logits"]
    with vimdeploy.load(built.path) as session:
        for _ in range(3):
            np.testing.assert_allclose(session(x), reference, atol=1e-3 if precision == "fp32" else 5e-2)


def test_a_plan_that_was_cut_is_refused_in_words(device: CudaDevice) -> None:
    flavour = next((f for f in (trt.Flavour.TENSORRT, trt.Flavour.RTX) if trt.installed_version(f)), None)
    if flavour is None:
        pytest.skip("needs TensorRT or TensorRT-RTX")
    messages = Messages()
    assert trt.load(flavour).runtime(messages).engine(b"vtrt" + bytes(1000)) is None
    assert messages.errors()
