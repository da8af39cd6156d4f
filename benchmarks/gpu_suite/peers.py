"""The other side of the comparison: mamba-ssm's scan, or a baseline named as such, and all that Vim needs around it."""

from __future__ import annotations

import importlib.util
import sys
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.gpu_suite.cases import ScanCase, ScanInputs
from vimdeploy.errors import MissingDependencyError, UsageError

Scan = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
"""(u, delta, A, B, C, D, z, delta_bias) -> gated output; (B, E, L) each, A (E, N), B and C (B, 1, N, L)."""


@dataclass(frozen=True)
class Peer:
    """A scan of one direction, in mamba-ssm's layout."""

    name: str
    scan: Scan
    notes: str = ""


def find_peer(source: Path | None, build_folder: Path, device: str) -> Peer:
    """Return mamba-ssm's kernel if it is installed or can be built from ``source``, else the Triton baseline.

    Args:
        source: mamba-ssm's unpacked source package, or its ``.tar.gz``; None if there is none.
        build_folder: where it is built.
        device: ``"cpu"`` returns a stand-in for a dry run.
    """
    if device == "cpu":
        return Peer("torch loop (dry run)", torch_scan)
    reason = "no source package was given (--mamba-ssm)"
    if importlib.util.find_spec("selective_scan_cuda") is not None:
        import selective_scan_cuda

        return Peer(f"mamba-ssm {_installed_version()} selective_scan_fwd", _official(selective_scan_cuda))
    if source is not None:
        try:
            module, version = build_official(source, build_folder)
            return Peer(f"mamba-ssm {version} selective_scan_fwd", _official(module), "built from its source package")
        except Exception as error:  # whatever a foreign build throws, the reason is reported and the baseline serves
            reason = f"its source package could not be built: {str(error)[-1500:]}"
    from benchmarks.gpu_suite import triton_kernels

    note = f"mamba-ssm is not installed, and {reason}"
    return Peer("Triton baseline after selective_scan_fwd (not mamba-ssm)", triton_kernels.scan, note)


def _official(module: Any) -> Scan:
    def scan(
        u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, delta_bias: Tensor
    ) -> Tensor:
        gated: Tensor = module.fwd(u, delta, A, B, C, D, z, delta_bias, True)[2]
        return gated

    return scan


def _installed_version() -> str:
    try:
        return metadata.version("mamba-ssm")
    except metadata.PackageNotFoundError:
        return "(version unknown)"


_FORWARD = """#include "selective_scan_fwd_kernel.cuh"
template void selective_scan_fwd_cuda<at::Half, float>(SSMParamsBase&, cudaStream_t);
"""
_REST = """#include <c10/util/Exception.h>
#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>
#include <c10/util/complex.h>
#include <cuda_runtime_api.h>
#include "selective_scan.h"
// The interface refers to every type and to the backward pass; only the forward pass in half precision is compared.
template <typename I, typename W> void selective_scan_fwd_cuda(SSMParamsBase&, cudaStream_t)
{
    TORCH_CHECK(false, "built for half precision only");
}
template <typename I, typename W> void selective_scan_bwd_cuda(SSMParamsBwd&, cudaStream_t)
{
    TORCH_CHECK(false, "built without the backward pass");
}
#define FWD(I, W) template void selective_scan_fwd_cuda<I, W>(SSMParamsBase&, cudaStream_t);
#define BWD(I, W) template void selective_scan_bwd_cuda<I, W>(SSMParamsBwd&, cudaStream_t);
FWD(at::Half, c10::complex<float>)
FWD(at::BFloat16, float) FWD(at::BFloat16, c10::complex<float>)
FWD(float, float) FWD(float, c10::complex<float>)
BWD(at::Half, float) BWD(at::Half, c10::complex<float>)
BWD(at::BFloat16, float) BWD(at::BFloat16, c10::complex<float>)
BWD(float, float) BWD(float, c10::complex<float>)
"""
_NVCC_FLAGS = [
    *("-O3", "-U__CUDA_NO_HALF_OPERATORS__", "-U__CUDA_NO_HALF_CONVERSIONS__"),
    *("-U__CUDA_NO_BFLOAT16_OPERATORS__", "-U__CUDA_NO_BFLOAT16_CONVERSIONS__", "-U__CUDA_NO_BFLOAT162_OPERATORS__"),
    *("-U__CUDA_NO_BFLOAT162_CONVERSIONS__", "--expt-relaxed-constexpr", "--expt-extended-lambda"),
    *("--use_fast_math", "-lineinfo"),
]
"""Those of its setup.py; torch adds the C++ standard that its headers want."""


def unpack_official(source: Path, folder: Path) -> tuple[Path, str]:
    """Return the folder with the kernels' sources and the version, unpacking a ``.tar.gz`` into ``folder``.

    Raises:
        UsageError: ``source`` holds no such sources.
    """
    if source.is_file():
        try:
            with tarfile.open(source) as archive:
                archive.extractall(folder, filter="data")
        except (tarfile.TarError, OSError) as error:
            raise UsageError(f"{source} cannot be unpacked: {error}") from error
        source = folder
    found = sorted(source.glob("**/csrc/selective_scan/selective_scan_fwd_kernel.cuh"))
    if not found:
        raise UsageError(
            f"{source} holds no csrc/selective_scan", hint="Give mamba-ssm's source package, unpacked or as .tar.gz."
        )
    root = found[0].parents[2]
    version = "(version unknown)"
    init = root / "mamba_ssm" / "__init__.py"
    if init.is_file():
        line = next((line for line in init.read_text().splitlines() if line.startswith("__version__")), "")
        version = line.partition("=")[2].strip(" \"'") or version
    return found[0].parent, version


def build_official(source: Path, folder: Path) -> tuple[Any, str]:
    """Build ``selective_scan_fwd`` for half precision from mamba-ssm's own sources and flags, for this device only."""
    folder.mkdir(parents=True, exist_ok=True)
    sources, version = unpack_official(source, folder)
    for name, text in (("forward_half.cu", _FORWARD), ("rest.cpp", _REST)):
        if not (folder / name).is_file() or (folder / name).read_text() != text:
            (folder / name).write_text(text)
    if importlib.util.find_spec("ninja") is None and not _on_path("ninja"):
        raise MissingDependencyError("building torch extensions needs ninja")
    from torch.utils.cpp_extension import load

    module = load(
        name="selective_scan_cuda",
        sources=[str(sources / "selective_scan.cpp"), str(folder / "forward_half.cu"), str(folder / "rest.cpp")],
        extra_include_paths=[str(sources)],
        extra_cflags=["-O3"],
        extra_cuda_cflags=_NVCC_FLAGS,
        build_directory=str(folder),
        with_cuda=True,
    )
    sys.modules.pop("selective_scan_cuda", None)
    return module, version


def _on_path(tool: str) -> bool:
    import shutil

    return shutil.which(tool) is not None


def torch_scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, delta_bias: Tensor
) -> Tensor:
    """Compute what the peer computes as a loop over tokens: its stand-in in a dry run."""
    value, step = u.float(), F.softplus(delta.float() + delta_bias[:, None])
    h = value.new_zeros(*u.shape[:2], A.shape[1])
    outputs = []
    for t in range(u.shape[2]):
        h = torch.exp(step[:, :, t, None] * A) * h + (step * value)[:, :, t, None] * B[:, 0, :, t].float()[:, None]
        outputs.append((h * C[:, 0, :, t].float()[:, None]).sum(-1))
    y = torch.stack(outputs, dim=-1) + D[:, None] * value
    return (y * F.silu(z.float())).to(u.dtype)


@dataclass(frozen=True)
class PeerProblem:
    """The inputs of a bidirectional scan as Vim's code has them, with all that a partial timing needs."""

    xz: Tensor
    """(B, 2E, L): what in_proj emits; the backward branch starts with its flip."""
    u: tuple[Tensor, Tensor]
    """(B, E, L) each, the second in reversed order."""
    x_dbl: tuple[Tensor, Tensor]
    """(B * L, R + 2N)"""
    weights: ScanInputs
    delta: tuple[Tensor, Tensor]
    BC: tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]
    z: tuple[Tensor, Tensor]


def prepare(case: ScanCase, inputs: ScanInputs) -> PeerProblem:
    """Bring the contract's inputs (channels last) into the peer's layout."""
    assert inputs.z is not None
    z = inputs.z.transpose(1, 2)
    xz = torch.cat([inputs.u[0].transpose(1, 2), z], dim=1).contiguous()
    u = (inputs.u[0].transpose(1, 2).contiguous(), inputs.u[1].flip(1).transpose(1, 2).contiguous())
    x_dbl = (inputs.x_dbl[0].flatten(0, 1), inputs.x_dbl[1].flip(1).flatten(0, 1))
    delta, BC = zip(*(_project(case, x_dbl[g], inputs.dt_weight[g]) for g in range(2)), strict=True)
    halves = (xz.chunk(2, dim=1)[1], xz.flip(-1).chunk(2, dim=1)[1])
    return PeerProblem(xz, u, x_dbl, inputs, delta, BC, halves)


def _project(case: ScanCase, x_dbl: Tensor, dt_weight: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """dt_proj and the layout of B and C, as in ``MambaInnerFnNoOutProj.forward``."""
    R, N = case.rank, case.states
    delta = (dt_weight @ x_dbl[:, :R].t()).view(case.channels, case.batch, case.length).transpose(0, 1)
    B, C = (
        part.view(case.batch, case.length, N).transpose(1, 2)[:, None].contiguous()
        for part in (x_dbl[:, R : R + N], x_dbl[:, R + N :])
    )
    return delta, (B, C)


def run_kernels(peer: Peer, p: PeerProblem) -> tuple[Tensor, Tensor]:
    """The two launches alone; their outputs (B, E, L), the second in reversed order."""
    first, second = (
        peer.scan(p.u[g], p.delta[g], p.weights.A[g], *p.BC[g], p.weights.D[g], p.z[g], p.weights.dt_bias[g])
        for g in range(2)
    )
    return first, second


def run_flips(peer: Peer, p: PeerProblem) -> Tensor:
    """The launches, the flips before and after, the addition and the halving."""
    flipped = p.xz.flip(-1).chunk(2, dim=1)[1]
    w = p.weights
    forward = peer.scan(p.u[0], p.delta[0], w.A[0], *p.BC[0], w.D[0], p.z[0], w.dt_bias[0])
    backward = peer.scan(p.u[1], p.delta[1], w.A[1], *p.BC[1], w.D[1], flipped, w.dt_bias[1])
    return (forward + backward.flip(-1)) / 2


def run_whole(peer: Peer, case: ScanCase, p: PeerProblem) -> Tensor:
    """All that the fused operation replaces: dt_proj and the copies of B and C as well. Returns (B, E, L)."""
    w = p.weights
    flipped = p.xz.flip(-1).chunk(2, dim=1)[1]
    outputs = []
    for g, z in enumerate((p.z[0], flipped)):
        delta, (B, C) = _project(case, p.x_dbl[g], w.dt_weight[g])
        outputs.append(peer.scan(p.u[g], delta, w.A[g], B, C, w.D[g], z, w.dt_bias[g]))
    return (outputs[0] + outputs[1].flip(-1)) / 2
