"""CudaDevice against a stand-in for ``cuda.bindings.runtime``: which device, which way to allocate."""

from __future__ import annotations

import sys
import types
from enum import IntEnum
from typing import Any

import pytest

from vimdeploy.errors import MissingDependencyError, UsageError
from vimdeploy.runtime.cuda import CudaDevice


class Attribute(IntEnum):
    cudaDevAttrMemoryPoolsSupported = 115  # noqa: N815  # CUDA's name


class Cuda(types.ModuleType):
    """Two GPUs; the second, as some virtual ones, without memory pools."""

    cudaDeviceAttr = Attribute  # noqa: N815  # CUDA's name

    def __init__(self, count: int = 2) -> None:
        super().__init__("cuda.bindings.runtime")
        self.count = count
        self.current = 0
        self.calls: list[str] = []

    def cudaGetDeviceCount(self) -> tuple[int, int]:  # noqa: N802
        return (0, self.count) if self.count else (100, 0)

    def cudaGetErrorString(self, error: int) -> tuple[int, bytes]:  # noqa: N802
        return 0, b"no CUDA-capable device is detected"

    def cudaGetDevice(self) -> tuple[int, int]:  # noqa: N802
        return 0, self.current

    def cudaSetDevice(self, number: int) -> tuple[int]:  # noqa: N802
        self.current = number
        return (0,)

    def cudaDeviceGetAttribute(self, attribute: Attribute, number: int) -> tuple[int, int]:  # noqa: N802
        return 0, int(number == 0)

    def __getattr__(self, name: str) -> Any:
        def call(*_: object) -> tuple[int, int]:
            self.calls.append(name)
            return 0, 4096

        return call


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Cuda:
    made = Cuda()
    package = types.ModuleType("cuda.bindings")
    package.runtime = made  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "cuda.bindings", package)
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", made)
    return made


def test_the_device_is_the_current_one_or_the_one_asked_for(cuda: Cuda) -> None:
    assert CudaDevice().dlpack_device == (2, 0)
    device = CudaDevice(1)
    assert device.dlpack_device == (2, 1)
    with device.active():
        assert cuda.current == 1
    assert cuda.current == 0
    for number in (-1, 2):
        with pytest.raises(UsageError, match=f"there is no GPU {number}: CUDA shows 2") as caught:
            CudaDevice(number)
        assert "CUDA_VISIBLE_DEVICES" in caught.value.hint
    cuda.count = 0
    with pytest.raises(MissingDependencyError, match="no NVIDIA GPU can be used here"):
        CudaDevice(1)


def test_a_gpu_without_memory_pools_allocates_at_once(cuda: Cuda) -> None:
    for number, wanted in ((0, ["cudaMallocAsync", "cudaFreeAsync"]), (1, ["cudaMalloc", "cudaFree"])):
        cuda.calls.clear()
        device = CudaDevice(number)
        device.free(device.allocate(100, 7), 7)
        assert cuda.calls == wanted
