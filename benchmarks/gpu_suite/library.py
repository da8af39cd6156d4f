"""The kernels' C interface (plugins/c_api/vimdeploy_kernels.h) on tensors, with every choice left to the caller.

The package's own ops pick the variant and the workspace themselves; a check of every variant with a poisoned workspace
needs to say both.
"""

from __future__ import annotations

import ctypes
from ctypes import POINTER, byref, c_int32, c_int64, c_uint64
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.gpu_suite.cases import ConvCase, ScanCase, ScanInputs
from vimdeploy.errors import ArtifactError
from vimdeploy.ops.kernels import _ConvArgs as ConvArgs
from vimdeploy.ops.kernels import _ScanArgs as ScanArgs

ABI = 2
VARIANTS = {1: "thread-16", 2: "thread-8", 3: "thread-4", 4: "thread-1", 5: "generic", 6: "chunked"}
_TYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}


class KernelError(RuntimeError):
    """The library refused a call; the message is its own."""


class _ScanPlan(ctypes.Structure):
    _fields_ = [
        ("struct_size", c_uint64),
        *((name, c_int32) for name in ("variant", "tile_length", "chunks", "launches")),
        *((name, c_int64) for name in ("chunk_length", "shared_bytes")),
    ]


class Kernels:
    """A loaded library. Calls queue on torch's current stream where the tensors are on a GPU."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._library = ctypes.CDLL(str(path))
        abi = self._library.vimdeploy_kernels_abi()
        if abi != ABI:
            raise ArtifactError(f"{path} has interface version {abi}; this suite speaks {ABI}")
        for name, result in (("kernels_backend", ctypes.c_char_p), ("last_error", ctypes.c_char_p)):
            getattr(self._library, f"vimdeploy_{name}").restype = result
        for name, argument in (("scan", ScanArgs), ("conv", ConvArgs)):
            getattr(self._library, f"vimdeploy_{name}").argtypes = [POINTER(argument)]

    @property
    def backend(self) -> str:
        """``"cuda"`` or ``"emulated"``."""
        return str(self._library.vimdeploy_kernels_backend().decode())

    def variants(self, case: ScanCase) -> list[int]:
        """Return the variants able to run a shape."""
        found = (c_int32 * 16)()
        count = self._check(self._library.vimdeploy_scan_variants(byref(_describe(case)), found, 16))
        return list(found[:count])

    def plan(self, case: ScanCase, variant: int = 0) -> dict[str, int]:
        """Return what the library decides for a shape; ``variant`` 0 lets it choose."""
        plan = _ScanPlan(struct_size=ctypes.sizeof(_ScanPlan))
        self._check(self._library.vimdeploy_scan_plan_query(byref(_describe(case, variant)), byref(plan)))
        return {field[0]: getattr(plan, field[0]) for field in _ScanPlan._fields_[1:]}

    def workspace_size(self, case: ScanCase, variant: int = 0) -> int:
        """Return the bytes of workspace that a shape takes."""
        size = c_uint64()
        self._check(self._library.vimdeploy_scan_workspace_size(byref(_describe(case, variant)), byref(size)))
        return int(size.value)

    def scan(self, case: ScanCase, inputs: ScanInputs, y: Tensor, workspace: Tensor, variant: int = 0) -> None:
        """Compute y (B, L, E); ``workspace`` holds bytes."""
        args = _describe(case, variant)
        args.u, args.x_dbl = inputs.u.data_ptr(), inputs.x_dbl.data_ptr()
        args.a, args.d = inputs.A.data_ptr(), inputs.D.data_ptr()
        args.dt_weight, args.dt_bias = inputs.dt_weight.data_ptr(), inputs.dt_bias.data_ptr()
        args.z = None if inputs.z is None else inputs.z.data_ptr()
        args.y = y.data_ptr()
        args.workspace, args.workspace_size = workspace.data_ptr() or None, workspace.numel()
        args.stream = _stream(y)
        self._check(self._library.vimdeploy_scan(byref(args)))

    def conv(self, case: ConvCase, x: Tensor, weight: Tensor, bias: Tensor, u: Tensor) -> None:
        """Compute u (G, B, L, E)."""
        args = ConvArgs(struct_size=ctypes.sizeof(ConvArgs))
        args.batch, args.length, args.channels, args.width = case.batch, case.length, case.channels, case.width
        args.groups, args.silu, args.dtype = len(case.directions), int(case.silu), _TYPES[x.dtype]
        args.directions[: args.groups] = case.directions
        args.x, args.weight, args.bias, args.u = (t.data_ptr() for t in (x, weight, bias, u))
        args.stream = _stream(u)
        self._check(self._library.vimdeploy_conv(byref(args)))

    def _check(self, code: int) -> int:
        if code < 0:
            raise KernelError(self._library.vimdeploy_last_error().decode())
        return code


def _describe(case: ScanCase, variant: int = 0) -> ScanArgs:
    args = ScanArgs(struct_size=ctypes.sizeof(ScanArgs), variant=variant)
    for name in ("batch", "length", "channels", "states", "rank", "groups", "height", "scale"):
        setattr(args, name, getattr(case, name))
    args.shared_u, args.shared_x_dbl, args.gated = int(case.shared_u), int(case.shared_x), int(case.gated)
    args.dtype = _TYPES[getattr(torch, case.dtype)]
    args.directions[: case.groups] = case.directions
    args.column_major[: case.groups] = case.column_major
    return args


def _stream(values: Tensor) -> int | None:
    return torch.cuda.current_stream().cuda_stream if values.is_cuda else None
