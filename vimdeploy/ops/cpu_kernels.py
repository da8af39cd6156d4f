"""The native CPU kernels behind the torch ops: the same ones that run in ONNX Runtime.

``libvimdeploy_ops`` has plain C entry points (``plugins/cpu/c_api.h``), so that no build of it is tied to a build of
torch. Where there is no library, or it does not serve a type, the ops compute in torch.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vimdeploy.errors import ArtifactError
from vimdeploy.native.ops_library import ops_library
from vimdeploy.ops.arguments import Scan, ScanDelta

_ABI = 1
_ELEMENTS = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
_MESSAGE = 400
_SMALL = 1 << 16
"""Elements of the output below which starting threads costs more than they save."""


class _Tensor(ctypes.Structure):
    """``vimdeploy_ops_tensor``."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("dims", ctypes.POINTER(ctypes.c_int64)),
        ("rank", ctypes.c_int64),
        ("element", ctypes.c_int64),
    )


class _Call(ctypes.Structure):
    """``vimdeploy_ops_call``."""

    _fields_ = (
        ("struct_size", ctypes.c_uint64),
        ("op", ctypes.c_char_p),
        ("isa", ctypes.c_char_p),
        ("threads", ctypes.c_int64),
        ("inputs", ctypes.POINTER(_Tensor)),
        ("input_count", ctypes.c_uint64),
        ("output", ctypes.c_void_p),
        ("output_size", ctypes.c_uint64),
        ("directions", ctypes.POINTER(ctypes.c_int64)),
        ("column_major", ctypes.POINTER(ctypes.c_int64)),
        ("groups", ctypes.c_uint64),
        ("height", ctypes.c_int64),
        ("scale", ctypes.c_float),
        ("silu", ctypes.c_int32),
        ("delta_softplus", ctypes.c_int32),
        ("reverse", ctypes.c_int32),
    )


class CpuKernels:
    """One loaded library.

    Args:
        path: of ``libvimdeploy_ops.so``.
        isa: instruction set to use; None for the machine's best.

    Raises:
        ArtifactError: the file does not load, or has another interface than this package.

    """

    def __init__(self, path: Path, isa: str | None = None) -> None:
        try:
            self._library = ctypes.CDLL(str(path))
            abi = self._library.vimdeploy_ops_abi()
        except (OSError, AttributeError) as error:
            raise ArtifactError(f"{path} is no library of native ops: {error}") from error
        if abi != _ABI:
            raise ArtifactError(f"{path} has interface {abi}, this package needs {_ABI}", hint="Reinstall vimdeploy.")
        self._library.vimdeploy_ops_isa.restype = ctypes.c_char_p
        self.path = path
        self.isa: str = isa or self._library.vimdeploy_ops_isa().decode()

    def has_isa(self, name: str) -> bool:
        """Whether this machine runs the kernels of that name."""
        return bool(self._library.vimdeploy_ops_has_isa(name.encode()))

    def signature(self, op: str) -> str:
        """Return the inputs and the output of an op as the library has them."""
        text = ctypes.create_string_buffer(_MESSAGE)
        self._library.vimdeploy_ops_signature(op.encode(), text, ctypes.c_uint64(_MESSAGE))
        return text.value.decode()

    def function(self, isa: str, name: str, x: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Return ``exp2``, ``softplus`` or ``silu`` of a multiple of 16 values, as the kernels of ``isa`` do."""
        y = np.empty_like(x)
        pointers = (ctypes.c_void_p(x.ctypes.data), ctypes.c_void_p(y.ctypes.data))
        if self._library.vimdeploy_ops_function(isa.encode(), name.encode(), *pointers, ctypes.c_uint64(x.size)):
            raise ValueError(f"there is no {name} of {isa}")
        return y

    def selective_scan(self, s: Scan) -> Tensor | None:
        """Compute :func:`vimdeploy.ops.selective_scan` of checked arguments; None if they are not served."""
        dtype = s.u.dtype
        inputs = [s.u, s.x_dbl.to(dtype), s.A.float(), s.D.float(), s.dt_weight.to(dtype), s.dt_bias.float()]
        call = _Call(height=s.height, scale=s.scale)
        name = "SelectiveScan"
        return self._run(call, name, inputs, s.z, s.result, (s.directions, s.column_major))

    def selective_scan_delta(self, s: ScanDelta) -> Tensor | None:
        """Compute :func:`vimdeploy.ops.selective_scan_delta` of checked arguments; None if they are not served."""
        dtype = s.u.dtype
        inputs = [s.u, s.delta.to(dtype), s.A.float(), s.B.to(dtype), s.C.to(dtype), s.D.float(), s.delta_bias.float()]
        call = _Call(delta_softplus=s.delta_softplus, reverse=s.reverse)
        return self._run(call, "SelectiveScanDelta", inputs, s.z, s.result, ())

    def causal_conv1d(
        self, x: Tensor, weight: Tensor, bias: Tensor, directions: Sequence[int], activation: str
    ) -> Tensor | None:
        """Compute :func:`vimdeploy.ops.causal_conv1d` of checked arguments; None if they are not served."""
        inputs = [x, weight.to(x.dtype), bias.to(x.dtype)]
        result = (torch.Size((len(weight), *x.shape)), x.dtype)
        return self._run(_Call(silu=activation == "silu"), "CausalConv1d", inputs, None, result, (directions,))

    def _run(
        self,
        call: _Call,
        op: str,
        inputs: list[Tensor],
        gate: Tensor | None,
        result: tuple[torch.Size, torch.dtype],
        per_group: tuple[Sequence[int], ...],
    ) -> Tensor | None:
        dtype = inputs[0].dtype
        if dtype not in _ELEMENTS:
            return None
        if gate is not None:
            inputs.append(gate.to(dtype))
        elif op != "CausalConv1d":
            op += "NoGate"
        tensors = [t.detach().contiguous() for t in inputs]
        dims = [(ctypes.c_int64 * t.dim())(*t.shape) for t in tensors]
        described = (_Tensor * len(tensors))(
            *(
                _Tensor(t.data_ptr(), ctypes.cast(d, ctypes.POINTER(ctypes.c_int64)), t.dim(), _ELEMENTS[t.dtype])
                for t, d in zip(tensors, dims, strict=True)
            )
        )
        output = torch.empty(result[0], dtype=result[1])
        call.struct_size = ctypes.sizeof(_Call)
        call.op, call.isa = op.encode(), self.isa.encode()
        call.threads = 1 if output.numel() < _SMALL else torch.get_num_threads()
        call.inputs, call.input_count = described, len(tensors)
        call.output, call.output_size = output.data_ptr(), output.nbytes
        for field, values in zip(("directions", "column_major"), per_group, strict=False):
            setattr(call, field, (ctypes.c_int64 * len(values))(*values))
            call.groups = len(values)
        text = ctypes.create_string_buffer(_MESSAGE)
        if self._library.vimdeploy_ops_run(ctypes.byref(call), text, ctypes.c_uint64(_MESSAGE)):
            raise ValueError(text.value.decode())
        return output


@cache
def cpu_kernels() -> CpuKernels | None:
    """Return the library in use; None where it cannot be had, which standard error was told once."""
    path = ops_library()
    return None if path is None else CpuKernels(path)
