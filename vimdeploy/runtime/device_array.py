"""Outputs in device memory, which other libraries take over without a copy."""

from __future__ import annotations

import math
from contextlib import suppress
from typing import Any

import numpy as np

from vimdeploy.errors import VimdeployError
from vimdeploy.runtime import dlpack
from vimdeploy.runtime.arrays import ITEM_BYTES, numpy_dtype
from vimdeploy.runtime.cuda import Device


class DeviceArray:
    """An output in device memory, C-contiguous, freed with the last array that shares it.

    ``torch.from_dlpack(y)``, CuPy, JAX and numba take it without a copy; :meth:`numpy` brings it to the host. It is
    complete when the call that made it has returned, so readers have no stream to wait for. As with every array that
    libraries share, whoever reads it on a stream other than the default one keeps it until that work is done.

    Args:
        device: where it lies.
        shape: in elements.
        dtype: as in :data:`vimdeploy.runtime.arrays.ITEM_BYTES`.
        stream: allocates in the order of this CUDA stream, which has to be waited for before anybody else reads.

    """

    def __init__(self, device: Device, shape: tuple[int, ...], dtype: str, stream: int) -> None:
        self.shape = shape
        self.dtype = dtype
        self._device = device
        self.address = device.allocate(self.nbytes, stream)

    @property
    def nbytes(self) -> int:
        """Bytes of the array."""
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]

    def numpy(self) -> np.ndarray[Any, Any]:
        """Copy it to the host; blocks. ``bfloat16`` comes as ``uint16``, its raw bits."""
        host = np.empty(self.shape, numpy_dtype(self.dtype))
        self._copy_to(host.ctypes.data)
        return host

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """CUDA's array interface, version 3, which has no bfloat16: it shows as ``uint16``, its raw bits."""
        typestr = numpy_dtype(self.dtype).str
        data = (self.address, False)
        return {"shape": self.shape, "typestr": typestr, "data": data, "version": 3, "strides": None, "stream": None}

    def __dlpack_device__(self) -> tuple[int, int]:
        """Return DLPack's device type and number."""
        return self._device.dlpack_device

    def __dlpack__(
        self,
        *,
        stream: int | None = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any:
        """Return a capsule; see the array API standard.

        Args:
            stream: of the consumer. The array is complete already: there is nothing that it has to wait for.
            max_version: newest DLPack that the consumer knows.
            dl_device: where the consumer wants it: here, or on the CPU, which takes a copy.
            copy: True for memory of the consumer's own; False refuses what would need a copy.

        Raises:
            BufferError: it would have to be copied and must not be, or is wanted on another GPU.

        """
        wanted = None if dl_device is None else (int(dl_device[0]), int(dl_device[1]))
        if wanted is None or wanted == self.__dlpack_device__():
            owner = self._clone() if copy else self
            return dlpack.export(owner.address, self.shape, self.dtype, self.__dlpack_device__(), owner, max_version)
        if wanted[0] != dlpack.CPU:
            raise BufferError(f"this array is on device {self.__dlpack_device__()}, it cannot be shared with {wanted}")
        if copy is False:
            raise BufferError("this array is in device memory: the CPU cannot read it without a copy")
        host = self.numpy()
        return dlpack.export(host.ctypes.data, self.shape, self.dtype, (dlpack.CPU, 0), host, max_version)

    def _clone(self) -> DeviceArray:
        with self._device.active():
            made = DeviceArray(self._device, self.shape, self.dtype, 0)
        self._copy_to(made.address)
        return made

    def _copy_to(self, address: int) -> None:
        device = self._device
        with device.active():
            event = device.create_event()
            try:
                device.copy(address, self.address, self.nbytes, 0)
                device.record(event, 0)
                device.wait(event)
            finally:
                device.destroy_event(event)

    def __del__(self) -> None:
        if hasattr(self, "address"):
            with suppress(VimdeployError), self._device.active():  # CUDA may be gone when the interpreter ends
                self._device.free(self.address, 0)
