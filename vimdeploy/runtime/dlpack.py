"""DLPack's structures and its capsules: how tensors of one library reach another without a copy.

Source: https://dmlc.github.io/dlpack/latest/python_spec.html and dlpack.h 1.1. cuda-core's StridedMemoryView exports
tensors too, but asks a driver about every address, needs ml_dtypes for bfloat16 and adds a compiled package of 17 MB.
"""

from __future__ import annotations

import ctypes
import itertools
from typing import Any, Final

import numpy as np

CPU: Final = 1
CUDA: Final = 2
PINNED: Final = 3
"""Pinned host memory, which counts as host memory here."""
MANAGED: Final = 13
"""CUDA's unified memory, which counts as device memory here."""

NAMES: Final = {0: "int", 1: "uint", 2: "float", 4: "bfloat", 6: "bool"}
"""DLPack's type codes."""
_DTYPES = {
    "float32": (2, 32),
    "float16": (2, 16),
    "bfloat16": (4, 16),
    "int64": (0, 64),
    "int32": (0, 32),
    "int8": (0, 8),
    "uint8": (1, 8),
    "bool": (6, 8),
}


class Device(ctypes.Structure):
    """DLDevice."""

    _fields_ = (("type", ctypes.c_int32), ("id", ctypes.c_int32))


class DataType(ctypes.Structure):
    """DLDataType."""

    _fields_ = (("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16))


class Tensor(ctypes.Structure):
    """DLTensor; the first member of DLManagedTensor."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device", Device),
        ("ndim", ctypes.c_int32),
        ("dtype", DataType),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


class Versioned(ctypes.Structure):
    """DLManagedTensorVersioned, from DLPack 1.0 on."""

    _fields_ = (
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("manager", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
        ("flags", ctypes.c_uint64),
        ("tensor", Tensor),
    )


_UNVERSIONED, _VERSIONED = b"dltensor", b"dltensor_versioned"
"""A capsule's name until somebody takes its tensor and prefixes it with ``used_``."""
_pointer_of = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)


class _Memory:
    """Memory as numpy is told of it. Nothing here or in numpy reads what lies there."""

    def __init__(self, address: int, shape: tuple[int, ...], typestr: str, owner: Any) -> None:
        self.owner = owner
        self.__array_interface__ = {"shape": shape, "typestr": typestr, "data": (address, False), "version": 3}


def export(
    address: int,
    shape: tuple[int, ...],
    dtype: str,
    device: tuple[int, int],
    owner: Any,
    max_version: tuple[int, int] | None = None,
) -> Any:
    """Return a capsule of C-contiguous memory that is ready to be read.

    numpy makes it, for memory that it believes to be the host's; device and type are then put right. So numpy's code,
    in C, frees it: a consumer may let go in any thread, or drop the capsule while it raises, where Python must not run.

    Args:
        address: of the first element.
        shape: in elements.
        dtype: as in :data:`vimdeploy.runtime.arrays.ITEM_BYTES`.
        device: DLPack's device type and number.
        owner: kept alive until the consumer lets go of the tensor, or until the capsule dies unused.
        max_version: newest DLPack that the consumer knows; None for the form from before versions.

    """
    code, bits = _DTYPES[dtype]
    typestr = np.dtype(np.uint16 if dtype == "bfloat16" else dtype).str
    array = np.asarray(_Memory(address, shape, typestr, owner))
    is_versioned = max_version is not None and max_version[0] >= 1 and _KNOWS_VERSIONS
    capsule = array.__dlpack__(max_version=(1, 0)) if is_versioned else array.__dlpack__()
    tensor = _versioned(capsule).tensor if is_versioned else borrow(capsule)
    tensor.device = Device(*device)
    tensor.dtype = DataType(code, bits, 1)
    return capsule


_KNOWS_VERSIONS = np.lib.NumpyVersion(np.__version__) >= "2.1.0"


def _versioned(capsule: Any) -> Versioned:
    return Versioned.from_address(_pointer_of(capsule, _VERSIONED))


def borrow(capsule: Any) -> Tensor:
    """Return the tensor of an unversioned capsule without taking it: it lives as long as the capsule does."""
    return Tensor.from_address(_pointer_of(capsule, _UNVERSIONED))


def is_contiguous(shape: tuple[int, ...], strides: tuple[int, ...] | None) -> bool:
    """Return whether strides, in elements, are those of a C-contiguous array; None stands for that."""
    if strides is None:
        return True
    expected = itertools.accumulate(reversed(shape), lambda a, b: a * b, initial=1)
    return all(
        size == 1 or stride == step
        for size, stride, step in zip(reversed(shape), reversed(strides), expected, strict=False)
    )
