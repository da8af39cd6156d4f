"""Arrays as a runtime needs them: an address, a shape, a dtype, a device; from numpy, DLPack or CUDA's interface.

Nothing is copied here, and no framework is imported: torch, CuPy and JAX tensors all speak DLPack.
"""

from __future__ import annotations

import ctypes
import math
from typing import Any, NamedTuple

import numpy as np

from vimdeploy.errors import UsageError
from vimdeploy.runtime import dlpack


class View(NamedTuple):
    """Borrowed memory; ``owner`` keeps it alive."""

    address: int
    shape: tuple[int, ...]
    dtype: str
    on_device: bool
    contiguous: bool
    owner: Any
    device_id: int = -1
    """Number of the GPU; -1 where the producer does not say."""
    read_only: bool = False
    stream: int | None = None
    """CUDA stream whose work has to be waited for before this memory is touched; None where there is none."""

    @property
    def nbytes(self) -> int:
        """Bytes of a C-contiguous array of this shape."""
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]


ITEM_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "int64": 8, "int32": 4, "int8": 1, "uint8": 1, "bool": 1}


_NAMES = {np.dtype(name): name for name in ITEM_BYTES if name != "bfloat16"}


def view(name: str, value: Any, *, stream: int | None = None, role: str = "input") -> View:
    """Look at an array without copying it.

    Args:
        name: of the input or output, for messages.
        value: numpy array, or anything with ``__dlpack__`` or ``__cuda_array_interface__``.
        stream: CUDA stream that will read it; DLPack makes the producer's work visible to it.
        role: ``input`` or ``output``, for messages.

    Raises:
        UsageError: it is none of these, on a device that is neither the CPU nor a CUDA GPU, or its library refuses.

    """
    if isinstance(value, np.ndarray):
        # A view costs microseconds per call if the dtype's name is spelt out and the address goes through ctypes.
        dtype = _NAMES.get(value.dtype) or str(value.dtype)
        address: int = value.__array_interface__["data"][0]
        flags = value.flags
        return View(address, value.shape, dtype, False, flags.c_contiguous, value, read_only=not flags.writeable)
    try:
        if hasattr(value, "__dlpack_device__"):
            return _from_dlpack(f"{role} '{name}'", value, stream)
        if hasattr(value, "__cuda_array_interface__"):
            return _from_cuda(f"{role} '{name}'", value)
    except (BufferError, RuntimeError, TypeError, ValueError, KeyError, AttributeError) as error:
        # Its own library will not share it: sparse, of another device, a view that DLPack cannot describe.
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise UsageError(
            f"{role} '{name}' is a {type(value).__name__} that cannot be shared: {reason}",
            hint="Pass a plain dense array: numpy.ascontiguousarray(x) or x.contiguous().",
        ) from error
    raise UsageError(
        f"{role} '{name}' is a {type(value).__name__}, not an array",
        hint="Pass a numpy array, a torch tensor or anything else with __dlpack__.",
    )


def _from_dlpack(what: str, value: Any, stream: int | None) -> View:
    kind, index = (int(v) for v in value.__dlpack_device__())
    if kind not in (dlpack.CPU, dlpack.CUDA, dlpack.PINNED, dlpack.MANAGED):
        raise UsageError(f"{what} is on DLPack device type {kind}", hint="Move it to the CPU or a CUDA GPU.")
    if getattr(value, "requires_grad", False):
        value = value.detach()
    on_device = kind in (dlpack.CUDA, dlpack.MANAGED)
    capsule = value.__dlpack__(stream=stream) if on_device and stream is not None else value.__dlpack__()
    # The capsule is not renamed: it stays the owner, and its destructor releases the memory when the view is gone.
    tensor = dlpack.borrow(capsule)
    shape = tuple(tensor.shape[i] for i in range(tensor.ndim))
    strides = tuple(tensor.strides[i] for i in range(tensor.ndim)) if tensor.strides else None
    code = dlpack.NAMES.get(tensor.dtype.code, "unknown")
    dtype = "bool" if code == "bool" else f"{code}{tensor.dtype.bits}"
    if tensor.dtype.lanes > 1:
        dtype = f"{dtype}x{tensor.dtype.lanes}"
    address = (tensor.data or 0) + tensor.byte_offset
    contiguous = dlpack.is_contiguous(shape, strides)
    return View(address, shape, dtype, on_device, contiguous, capsule, index if on_device else -1)


def _from_cuda(what: str, value: Any) -> View:
    interface = value.__cuda_array_interface__
    if interface.get("mask") is not None:
        raise UsageError(f"{what} is a masked array", hint="Fill in the masked values first.")
    shape = tuple(interface["shape"])
    dtype = np.dtype(interface["typestr"])
    strides = interface.get("strides")
    elements = None if strides is None else tuple(s // dtype.itemsize for s in strides)
    address, read_only = interface["data"]
    contiguous = dlpack.is_contiguous(shape, elements)
    stream = interface.get("stream")  # version 3; 1 and 2 are CUDA's own names of its default streams
    name = _NAMES.get(dtype) or str(dtype)
    return View(address, shape, name, True, contiguous, value, read_only=bool(read_only), stream=stream)


def host_array(array: View) -> np.ndarray[Any, Any]:
    """Return a numpy array over the host memory of a C-contiguous view; writes go through."""
    buffer = (ctypes.c_uint8 * array.nbytes).from_address(array.address)
    return np.frombuffer(memoryview(buffer), dtype=numpy_dtype(array.dtype)).reshape(array.shape)


def numpy_dtype(name: str) -> np.dtype[Any]:
    """Return the numpy dtype of a tensor; bfloat16 arrives as its raw 16 bits, which numpy cannot name."""
    return np.dtype(np.uint16) if name == "bfloat16" else np.dtype(name)


def validate(
    name: str, array: View, *, dtype: str, shape: tuple[int, ...], least: tuple[int, ...], most: tuple[int, ...]
) -> None:
    """Hold an input to what the model takes.

    Args:
        name: of the input.
        array: what the caller passed.
        dtype: what the model takes.
        shape: the model's shape, -1 where free; dimension 0 is the batch, which the caller splits.
        least: smallest shape of the profile.
        most: largest shape of the profile.

    Raises:
        UsageError: dtype, rank, a dimension or the memory layout does not fit.

    """
    wanted = "x".join("N" if d < 0 else str(d) for d in shape)
    got = "x".join(str(d) for d in array.shape) or "a scalar"
    if array.dtype != dtype and not (dtype == "bfloat16" and array.dtype == "uint16"):
        raise UsageError(f"input '{name}' is {array.dtype}, the model takes {dtype}", hint=f"Convert it to {dtype}.")
    if len(array.shape) != len(shape):
        raise UsageError(f"input '{name}' has shape {got}, the model takes {wanted}", hint=_LAYOUT)
    for axis in range(1, len(shape)):
        if not least[axis] <= array.shape[axis] <= most[axis]:
            raise UsageError(f"input '{name}' has shape {got}, the model takes {wanted}", hint=_LAYOUT)
    if array.shape[0] < 1:
        raise UsageError(f"input '{name}' is an empty batch", hint="Pass at least one image.")
    if not array.contiguous:
        raise UsageError(
            f"input '{name}' is not contiguous: its memory is not in the order of its shape",
            hint="Call numpy.ascontiguousarray(x) or x.contiguous() on it first.",
        )


_LAYOUT = "Images are N x channels x height x width, of the size that the model was exported for."
