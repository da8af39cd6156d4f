"""The CUDA kernels of ``plugins/`` behind the torch ops: the same ones that run inside a TensorRT engine.

``libvimdeploy_kernels`` has plain C entry points (``plugins/c_api/vimdeploy_kernels.h``), so that no build of it is
tied to a build of torch. Calls queue on torch's current stream; nothing synchronises. Where there is no library, or it
does not serve a shape, the ops compute in torch as they do on a CPU.
"""

from __future__ import annotations

import ctypes
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from vimdeploy.errors import ArtifactError
from vimdeploy.native.libraries import KERNELS_KIND, PACKAGE, libraries
from vimdeploy.native.locate import has_code
from vimdeploy.ops.arguments import Scan, ScanDelta
from vimdeploy.ops.cpu_kernels import CpuKernels, cpu_kernels

ENVIRONMENT = KERNELS_KIND.environment
"""Environment variable with the path of a kernels library."""

_ABI = 2
_MAX_GROUPS = 4
_DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}


class _ScanArgs(ctypes.Structure):
    """``vimdeploy_scan_args``."""

    _fields_ = (
        ("struct_size", ctypes.c_uint64),
        ("batch", ctypes.c_int64),
        ("length", ctypes.c_int64),
        ("channels", ctypes.c_int32),
        ("states", ctypes.c_int32),
        ("rank", ctypes.c_int32),
        ("groups", ctypes.c_int32),
        ("shared_u", ctypes.c_int32),
        ("shared_x_dbl", ctypes.c_int32),
        ("gated", ctypes.c_int32),
        ("dtype", ctypes.c_int32),
        ("directions", ctypes.c_int32 * _MAX_GROUPS),
        ("column_major", ctypes.c_int32 * _MAX_GROUPS),
        ("height", ctypes.c_int32),
        ("scale", ctypes.c_float),
        ("variant", ctypes.c_int32),
        ("sm_count", ctypes.c_int32),
        ("u", ctypes.c_void_p),
        ("x_dbl", ctypes.c_void_p),
        ("a", ctypes.c_void_p),
        ("d", ctypes.c_void_p),
        ("dt_weight", ctypes.c_void_p),
        ("dt_bias", ctypes.c_void_p),
        ("z", ctypes.c_void_p),
        ("y", ctypes.c_void_p),
        ("workspace", ctypes.c_void_p),
        ("workspace_size", ctypes.c_uint64),
        ("stream", ctypes.c_void_p),
    )


class _ScanDeltaArgs(ctypes.Structure):
    """``vimdeploy_scan_delta_args``."""

    _fields_ = (
        ("struct_size", ctypes.c_uint64),
        ("batch", ctypes.c_int64),
        ("length", ctypes.c_int64),
        ("channels", ctypes.c_int32),
        ("states", ctypes.c_int32),
        ("channel_groups", ctypes.c_int32),
        ("delta_softplus", ctypes.c_int32),
        ("reverse", ctypes.c_int32),
        ("gated", ctypes.c_int32),
        ("dtype", ctypes.c_int32),
        ("variant", ctypes.c_int32),
        ("sm_count", ctypes.c_int32),
        ("reserved", ctypes.c_int32),
        ("u", ctypes.c_void_p),
        ("delta", ctypes.c_void_p),
        ("a", ctypes.c_void_p),
        ("b", ctypes.c_void_p),
        ("c", ctypes.c_void_p),
        ("d", ctypes.c_void_p),
        ("delta_bias", ctypes.c_void_p),
        ("z", ctypes.c_void_p),
        ("y", ctypes.c_void_p),
        ("workspace", ctypes.c_void_p),
        ("workspace_size", ctypes.c_uint64),
        ("stream", ctypes.c_void_p),
    )


class _ConvArgs(ctypes.Structure):
    """``vimdeploy_conv_args``."""

    _fields_ = (
        ("struct_size", ctypes.c_uint64),
        ("batch", ctypes.c_int64),
        ("length", ctypes.c_int64),
        ("channels", ctypes.c_int32),
        ("width", ctypes.c_int32),
        ("groups", ctypes.c_int32),
        ("silu", ctypes.c_int32),
        ("dtype", ctypes.c_int32),
        ("directions", ctypes.c_int32 * _MAX_GROUPS),
        ("reserved", ctypes.c_int32),
        ("x", ctypes.c_void_p),
        ("weight", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("u", ctypes.c_void_p),
        ("stream", ctypes.c_void_p),
    )


class Kernels:
    """One loaded library.

    Args:
        path: of ``libvimdeploy_kernels.so``.

    Raises:
        ArtifactError: the file is missing, does not load, or has another interface than this package.
    """

    def __init__(self, path: Path) -> None:
        try:
            library = ctypes.CDLL(str(path))
            abi = library.vimdeploy_kernels_abi()
        except (OSError, AttributeError) as error:
            raise ArtifactError(f"{path} is no kernels library: {error}") from error
        if abi != _ABI:
            raise ArtifactError(
                f"{path} has interface {abi}, this package needs {_ABI}", hint="Build it again: vimdeploy build-plugin"
            )
        library.vimdeploy_kernels_backend.restype = ctypes.c_char_p
        library.vimdeploy_last_error.restype = ctypes.c_char_p
        self.path = path
        self.device_type = "cuda" if library.vimdeploy_kernels_backend() == b"cuda" else "cpu"
        self._library = library

    def selective_scan(self, s: Scan) -> Tensor | None:
        """Compute :func:`vimdeploy.ops.scan.selective_scan` of checked arguments; None if not served."""
        groups, channels, d_state = s.A.shape
        u = s.u
        if u.dtype not in _DTYPES or groups > _MAX_GROUPS:
            return None
        _, batch, length, _ = u.shape
        shape, dtype = s.result
        y = u.new_empty(shape, dtype=dtype)
        args = _ScanArgs(
            struct_size=ctypes.sizeof(_ScanArgs),
            batch=batch,
            length=length,
            channels=channels,
            states=d_state,
            rank=s.dt_weight.shape[-1],
            groups=groups,
            shared_u=u.shape[0] == 1 and groups > 1,
            shared_x_dbl=s.x_dbl.shape[0] == 1 and groups > 1,
            gated=s.z is not None,
            dtype=_DTYPES[u.dtype],
            directions=_padded(s.directions, 1),
            column_major=_padded(s.column_major, 0),
            height=s.height,
            scale=s.scale,
        )
        if self._library.vimdeploy_scan_variants(ctypes.byref(args), (ctypes.c_int32 * 16)(), 16) <= 0:
            return None
        inputs = {
            "u": u.contiguous(),
            "x_dbl": s.x_dbl.to(u.dtype).contiguous(),
            "a": s.A.float().contiguous(),
            "d": s.D.float().contiguous(),
            "dt_weight": s.dt_weight.to(u.dtype).contiguous(),
            "dt_bias": s.dt_bias.float().contiguous(),
        }
        if s.z is not None:
            inputs["z"] = s.z.to(u.dtype).contiguous()
        self._scan("vimdeploy_scan", args, {**inputs, "y": y})
        return y

    def selective_scan_delta(self, s: ScanDelta) -> Tensor | None:
        """Compute :func:`vimdeploy.ops.scan_delta.selective_scan_delta` of checked arguments; None if not served."""
        u = s.u
        if u.dtype not in _DTYPES:
            return None
        batch, length, channels = u.shape
        shape, dtype = s.result
        y = u.new_empty(shape, dtype=dtype)
        args = _ScanDeltaArgs(
            struct_size=ctypes.sizeof(_ScanDeltaArgs),
            batch=batch,
            length=length,
            channels=channels,
            states=s.A.shape[1],
            channel_groups=s.B.shape[2],
            delta_softplus=s.delta_softplus,
            reverse=s.reverse,
            gated=s.z is not None,
            dtype=_DTYPES[u.dtype],
        )
        if self._library.vimdeploy_scan_delta_variants(ctypes.byref(args), (ctypes.c_int32 * 16)(), 16) <= 0:
            return None
        inputs = {"u": u, "delta": s.delta.to(u.dtype), "b": s.B.to(u.dtype), "c": s.C.to(u.dtype)}
        inputs |= {"a": s.A.float(), "d": s.D.float(), "delta_bias": s.delta_bias.float()}
        if s.z is not None:
            inputs["z"] = s.z.to(u.dtype)
        dense = {name: tensor.contiguous() for name, tensor in inputs.items()}
        self._scan("vimdeploy_scan_delta", args, {**dense, "y": y})
        return y

    def _scan(self, name: str, args: ctypes.Structure, tensors: dict[str, Tensor]) -> None:
        """Ask for the workspace of a scan, allocate it and launch."""
        u = tensors["u"]
        with self._placed(u):
            size = ctypes.c_uint64()
            self._check(getattr(self._library, f"{name}_workspace_size")(ctypes.byref(args), ctypes.byref(size)))
            workspace = u.new_empty(size.value, dtype=torch.uint8)
            _point(args, {**tensors, "workspace": workspace})
            args.workspace_size = size.value
            args.stream = self._stream(u)
            self._check(getattr(self._library, name)(ctypes.byref(args)))

    def causal_conv1d(
        self, x: Tensor, weight: Tensor, bias: Tensor, directions: Sequence[int], activation: str
    ) -> Tensor | None:
        """Compute :func:`vimdeploy.ops.conv`, whose checks the arguments have passed; None if not served."""
        groups, channels, width = weight.shape
        if x.dtype not in _DTYPES or groups not in (1, 2, 4) or width not in (2, 3, 4) or 0 in x.shape:
            return None
        batch, length, _ = x.shape
        u = x.new_empty(groups, batch, length, channels)
        args = _ConvArgs(
            struct_size=ctypes.sizeof(_ConvArgs),
            batch=batch,
            length=length,
            channels=channels,
            width=width,
            groups=groups,
            silu=activation == "silu",
            dtype=_DTYPES[x.dtype],
            directions=_padded(directions, 1),
        )
        inputs = {
            "x": x.contiguous(),
            "weight": weight.to(x.dtype).contiguous(),
            "bias": bias.to(x.dtype).contiguous(),
        }
        with self._placed(x):
            _point(args, {**inputs, "u": u})
            args.stream = self._stream(x)
            self._check(self._library.vimdeploy_conv(ctypes.byref(args)))
        return u

    @contextmanager
    def _placed(self, tensor: Tensor) -> Iterator[None]:
        """Make the tensor's device the current one: a launch goes to the current device, whatever its pointers are."""
        if tensor.is_cuda:
            with torch.cuda.device(tensor.device):
                yield
        else:
            yield

    def _stream(self, tensor: Tensor) -> int:
        # Temporaries above live in torch's caching allocator, which reuses their memory only behind this stream.
        return torch.cuda.current_stream(tensor.device).cuda_stream if tensor.is_cuda else 0

    def _check(self, code: int) -> None:
        if code != 0:
            raise RuntimeError(f"{self.path.name}: {self._library.vimdeploy_last_error().decode()}")


def _padded(values: Sequence[int], filler: int) -> ctypes.Array[ctypes.c_int32]:
    return (ctypes.c_int32 * _MAX_GROUPS)(*values, *[filler] * (_MAX_GROUPS - len(values)))


def _point(args: ctypes.Structure, tensors: dict[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        setattr(args, name, tensor.data_ptr() or None)


_CHOSEN: dict[str, Kernels | CpuKernels | None] = {}
"""The library per device type; a CPU has one only inside :func:`using`, which tests use with the emulated kernels."""


def kernels_for(tensor: Tensor) -> Kernels | CpuKernels | None:
    """Return the library that serves the device of ``tensor``, looking for it once; None computes in torch.

    Raises:
        ArtifactError: VIMDEPLOY_KERNELS names a file that is missing or no kernels library.
    """
    device = tensor.device.type
    if device not in _CHOSEN:
        _CHOSEN[device] = _find(tensor.device) if device == "cuda" else cpu_kernels() if device == "cpu" else None
    return _CHOSEN[device]


@contextmanager
def using(path: Path) -> Iterator[Kernels]:
    """Use the library at ``path`` for the device type it runs on, inside the block."""
    kernels = Kernels(path)
    before = dict(_CHOSEN)
    _CHOSEN[kernels.device_type] = kernels
    try:
        yield kernels
    finally:
        _CHOSEN.clear()
        _CHOSEN.update(before)


def _find(device: torch.device) -> Kernels | None:
    named = os.environ.get(ENVIRONMENT)
    if named:
        return Kernels(Path(named))
    capability = torch.cuda.get_device_capability(device)
    for path in candidates(capability):
        try:
            kernels = Kernels(path)
        except ArtifactError:
            continue  # of another version: the next may fit
        if kernels.device_type == "cuda":
            return kernels
    warnings.warn(
        "vimdeploy's CUDA kernels are not built, so its ops run in plain torch, which is slow and uses much memory. "
        "Build them once with `vimdeploy build-plugin --kernels-only --arch native`.",
        stacklevel=2,
    )
    return None


def candidates(compute_capability: tuple[int, int]) -> list[Path]:
    """Return the usable kernels libraries that may have code for a GPU, in the order in which they are tried."""
    return [
        found.path
        for found in libraries(KERNELS_KIND)
        if not found.problem
        and (found.source == PACKAGE or has_code(found.architectures, compute_capability))
        and found.source != KERNELS_KIND.environment
    ]
