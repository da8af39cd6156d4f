"""Arrays as a runtime needs them: an address, a shape, a dtype, a device; from numpy, DLPack or CUDA's interface.

Nothing is copied here, and no framework is imported: torch, CuPy and JAX tensors all speak DLPack.
"""

from __future__ import annotations

import ctypes
import math
from typing import Any, NamedTuple

import numpy as np

from vimdeploy.errors import UsageError

CPU, CUDA, PINNED = 1, 2, 3
"""DLPack's device types; pinned host memory counts as host memory here."""


class View(NamedTuple):
    """Borrowed memory; ``owner`` keeps it alive."""

    address: int
    shape: tuple[int, ...]
    dtype: str
    on_device: bool
    device_id: int
    contiguous: bool
    owner: Any

    @property
    def nbytes(self) -> int:
        """Bytes of a C-contiguous array of this shape."""
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]


ITEM_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "int64": 8, "int32": 4, "int8": 1, "uint8": 1, "bool": 1}


_NAMES = {np.dtype(name): name for name in ITEM_BYTES if name != "bfloat16"}


class _Device(ctypes.Structure):
    _fields_ = (("type", ctypes.c_int32), ("id", ctypes.c_int32))


class _DataType(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16))


class _Tensor(ctypes.Structure):
    """DLTensor of dlpack.h, the first member of DLManagedTensor."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device", _Device),
        ("ndim", ctypes.c_int32),
        ("dtype", _DataType),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


_KINDS = {0: "int", 1: "uint", 2: "float", 4: "bfloat", 6: "bool"}
_capsule_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_capsule_pointer.restype = ctypes.c_void_p
_capsule_pointer.argtypes = (ctypes.py_object, ctypes.c_char_p)


def view(name: str, value: Any, *, stream: int | None = None) -> View:
    """Look at an array without copying it.

    Args:
        name: of the input, for messages.
        value: numpy array, or anything with ``__dlpack__`` or ``__cuda_array_interface__``.
        stream: CUDA stream that will read it; DLPack makes the producer's work visible to it.

    Raises:
        UsageError: it is none of these, or on a device that is neither the CPU nor a CUDA GPU.

    """
    if isinstance(value, np.ndarray):
        # A view costs microseconds per call if the dtype's name is spelt out and the address goes through ctypes.
        dtype = _NAMES.get(value.dtype) or str(value.dtype)
        address: int = value.__array_interface__["data"][0]
        return View(address, value.shape, dtype, False, 0, value.flags.c_contiguous, value)
    if hasattr(value, "__dlpack_device__"):
        return _from_dlpack(name, value, stream)
    if hasattr(value, "__cuda_array_interface__"):
        return _from_cuda(value)
    raise UsageError(
        f"input '{name}' is a {type(value).__name__}, not an array",
        hint="Pass a numpy array, a torch tensor or anything else with __dlpack__.",
    )


def _from_dlpack(name: str, value: Any, stream: int | None) -> View:
    kind, index = (int(v) for v in value.__dlpack_device__())
    if kind not in (CPU, CUDA, PINNED):
        raise UsageError(f"input '{name}' is on DLPack device type {kind}", hint="Move it to the CPU or a CUDA GPU.")
    if getattr(value, "requires_grad", False):
        value = value.detach()
    capsule = value.__dlpack__(stream=stream) if kind == CUDA and stream is not None else value.__dlpack__()
    # The capsule is not renamed: it stays the owner, and its destructor releases the memory when the view is gone.
    tensor = _Tensor.from_address(_capsule_pointer(capsule, b"dltensor"))
    shape = tuple(tensor.shape[i] for i in range(tensor.ndim))
    strides = tuple(tensor.strides[i] for i in range(tensor.ndim)) if tensor.strides else None
    code = _KINDS.get(tensor.dtype.code, "unknown")
    dtype = "bool" if code == "bool" else f"{code}{tensor.dtype.bits}"
    address = (tensor.data or 0) + tensor.byte_offset
    return View(address, shape, dtype, kind == CUDA, index, _is_contiguous(shape, strides), capsule)


def _from_cuda(value: Any) -> View:
    interface = value.__cuda_array_interface__
    shape = tuple(interface["shape"])
    dtype = np.dtype(interface["typestr"])
    strides = interface.get("strides")
    elements = None if strides is None else tuple(s // dtype.itemsize for s in strides)
    return View(interface["data"][0], shape, str(dtype), True, 0, _is_contiguous(shape, elements), value)


def _is_contiguous(shape: tuple[int, ...], strides: tuple[int, ...] | None) -> bool:
    if strides is None:
        return True
    expected = 1
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True


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
