"""Modules as others write them, one for every way in which Mamba's kernels are called: tokens (B, L, 8) in and out.

Imported inside ``vimdeploy.substitute_mamba_ssm()`` only. What the styles imitate: forks of mamba_ssm, VMamba and its
descendants, Spatial-Mamba, VM-UNet, U-Mamba, Vim, VideoMamba, LocalMamba, Mamba-2.
"""

import causal_conv1d_cuda
import selective_scan_cuda
import selective_scan_cuda_core
import selective_scan_cuda_ndstate
import selective_scan_cuda_oflex
import selective_scan_cuda_oflex_rh
import torch
import torch.nn.functional as F
import triton
from causal_conv1d import causal_conv1d_fn
from causal_conv1d.cpp_functions import causal_conv1d_fwd_function
from mamba_ssm import Mamba, Mamba2
from mamba_ssm.ops.selective_scan_interface import (
    bimamba_inner_fn,
    mamba_inner_fn,
    mamba_inner_fn_no_out_proj,
    selective_scan_fn,
)
from mamba_ssm.ops.triton.layer_norm import RMSNorm, layer_norm_fn, rms_norm_fn
from mamba_ssm.ops.triton.layernorm_gated import RMSNorm as RMSNormGated
from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined, mamba_split_conv1d_scan_combined
from torch import nn

D, N, R, K = 8, 4, 2, 3


@triton.jit
def triton_local_scan():
    pass


class Parts(nn.Module):
    """Projections and parameters that all styles share."""

    def __init__(self, groups=1, states=N):
        super().__init__()
        self.groups, self.states = groups, states
        self.x_proj = nn.Linear(D, R + 2 * groups * states, bias=False)
        self.dt_proj = nn.Linear(R, D)
        self.conv1d = nn.Conv1d(D, D, K, groups=D, padding=K - 1)
        self.in_proj, self.out_proj = nn.Linear(D, 2 * D, bias=False), nn.Linear(D, D, bias=False)
        self.A_log = nn.Parameter(torch.rand(D, states))
        self.A_b_log = nn.Parameter(torch.rand(D, states))
        self.D = nn.Parameter(torch.randn(D))

    def parts(self, x):
        """Return u, delta, A, B, C (channels first, B and C with groups), D and the bias."""
        dt, B, C = self.x_proj(x).split([R, self.groups * self.states, self.groups * self.states], dim=-1)
        dt = F.linear(dt, self.dt_proj.weight).transpose(1, 2)
        B, C = (v.transpose(1, 2).unflatten(1, (self.groups, self.states)).contiguous() for v in (B, C))
        return x.transpose(1, 2), dt, -torch.exp(self.A_log.float()), B, C, self.D.float(), self.dt_proj.bias.float()

    def weights(self):
        return self.conv1d.weight, self.conv1d.bias, self.x_proj.weight, self.dt_proj.weight


class GatedScanFn(torch.autograd.Function):
    @staticmethod
    def forward(ctx, u, delta, A, B, C, D, z, bias):
        out, x, *rest = selective_scan_cuda.fwd(u, delta, A, B, C, D, z, bias, True)
        ctx.last_state = x[:, :, -1, 1::2]
        ctx.save_for_backward(u, delta, A, B, C, D, z, bias, x, out)
        return rest[0]


class KernelWithGate(Parts):
    def forward(self, x):
        u, dt, A, B, C, D, bias = self.parts(x)
        z = self.in_proj(x).chunk(2, dim=-1)[1].transpose(1, 2)
        return GatedScanFn.apply(u, dt, A, B, C, D, z, bias).transpose(1, 2)


class KernelCore(Parts):
    def forward(self, x):
        u, dt, A, B, C, D, bias = self.parts(x)
        return selective_scan_cuda_core.fwd(u, dt, A, B, C, D, bias, True, 1)[0].transpose(1, 2)


class KernelOflex(Parts):
    def __init__(self):
        super().__init__(groups=2)

    def forward(self, x):
        u, dt, A, B, C, D, bias = self.parts(x)
        y = selective_scan_cuda_oflex.fwd(u, dt, A, B, C, D, bias, True, 1, True)[0]
        return y.transpose(1, 2).to(x.dtype)


class KernelWithoutC(Parts):
    def __init__(self):
        super().__init__(states=1)

    def forward(self, x):
        u, dt, A, B, _, D, bias = self.parts(x)
        h = selective_scan_cuda_oflex_rh.fwd(u, dt, A, B, D, bias, True, 1, True)[0]
        return h.squeeze(2).transpose(1, 2).to(x.dtype)


class KernelOfOneState(Parts):
    def __init__(self):
        super().__init__(states=1)

    def forward(self, x):
        u, dt, A, B, C, D, bias = self.parts(x)
        y = selective_scan_cuda_ndstate.fwd(u, dt, A[:, 0], B[:, :, 0], C[:, :, 0], D, bias, True, 1)[0]
        return y.transpose(1, 2)


class ScanFn(Parts):
    def forward(self, x):
        u, dt, A, B, C, D, bias = self.parts(x)
        y = selective_scan_fn(u, dt, A, B.squeeze(1), C.squeeze(1), D, delta_bias=bias, delta_softplus=True)
        return y.transpose(1, 2)


class ScanFnWithGroups(Parts):
    def __init__(self):
        super().__init__(groups=4)

    def forward(self, x):
        u, dt, A, B, C, D, bias = self.parts(x)
        y = selective_scan_fn(u, dt, A, B, C, D, z=None, delta_bias=bias, delta_softplus=True, return_last_state=False)
        return y.transpose(1, 2)


class ScanFnWithoutSoftplus(Parts):
    def forward(self, x):
        u, dt, A, B, C, _, bias = self.parts(x)
        dt = F.softplus(dt + bias[None, :, None])
        return selective_scan_fn(u, dt, A, B[:, 0], C[:, 0], z=u).transpose(1, 2)


class InnerFn(Parts):
    def forward(self, x):
        xz, A = self.in_proj(x).transpose(1, 2), -torch.exp(self.A_log.float())
        return mamba_inner_fn(
            xz, *self.weights(), self.out_proj.weight, None, A, None, None, self.D.float(),
            delta_bias=self.dt_proj.bias.float(), delta_softplus=True,
        )  # fmt: skip


class TwoDirections(Parts):
    def branch(self, xz, A_log):
        return mamba_inner_fn_no_out_proj(
            xz, *self.weights(), -torch.exp(A_log.float()), None, None, self.D.float(),
            delta_bias=self.dt_proj.bias.float(), delta_softplus=True,
        )  # fmt: skip

    def forward(self, x):
        xz = self.in_proj(x).transpose(1, 2)
        y = self.branch(xz, self.A_log) + self.branch(xz.flip([-1]), self.A_b_log).flip([-1])
        return self.out_proj(y.transpose(1, 2))


class BimambaInnerFn(Parts):
    def forward(self, x):
        A, A_b = -torch.exp(self.A_log.float()), -torch.exp(self.A_b_log.float())
        return bimamba_inner_fn(
            self.in_proj(x).transpose(1, 2), *self.weights(), self.out_proj.weight, None, A, A_b, None, None,
            self.D.float(), delta_bias=self.dt_proj.bias.float(), delta_softplus=True,
        )  # fmt: skip


class ConvKernel(Parts):
    def forward(self, x):
        weight = self.conv1d.weight.squeeze(1)
        u = causal_conv1d_cuda.causal_conv1d_fwd(x.transpose(1, 2), weight, self.conv1d.bias, None, None, None, True)
        u, dt, A, B, C, D, bias = self.parts(u.transpose(1, 2))
        return selective_scan_cuda_core.fwd(u, dt, A, B, C, D, bias, True, 1)[0].transpose(1, 2)


class ConvFn(Parts):
    def forward(self, x):
        u = causal_conv1d_fn(x.transpose(1, 2), self.conv1d.weight.squeeze(1), self.conv1d.bias, activation="silu")
        return ScanFn.forward(self, u.transpose(1, 2))


class ConvFunction(Parts):
    def forward(self, x):
        u = causal_conv1d_fwd_function(
            x.transpose(1, 2), self.conv1d.weight.squeeze(1), self.conv1d.bias, None, None, None, True
        )
        return ScanFn.forward(self, u.transpose(1, 2))


class PlainConv(Parts):
    """Without the fused convolution: what Mamba's slow path does."""

    def forward(self, x):
        u = F.silu(self.conv1d(x.transpose(1, 2))[..., : x.shape[1]])
        return ScanFn.forward(self, u.transpose(1, 2))


class ModuleMamba(Parts):
    def __init__(self):
        super().__init__()
        self.mixer = Mamba(D, d_state=N, expand=1)

    def forward(self, x):
        return x + self.mixer(x)


class ModuleMamba2(Parts):
    def __init__(self):
        super().__init__()
        self.mixer = Mamba2(D, d_state=N, headdim=4, ngroups=2)

    def forward(self, x):
        return x + self.mixer(x)


class ChunkScan(Parts):
    def forward(self, x):
        dt, B, C = self.x_proj(x).split([R, N, N], dim=-1)
        y = mamba_chunk_scan_combined(
            x.unflatten(-1, (2, 4)), dt, -torch.exp(self.A_log[:2, 0]), B[:, :, None], C[:, :, None], 16,
            D=self.D[:2], z=None, dt_bias=self.dt_proj.bias[:2], dt_softplus=True,
        )  # fmt: skip
        return y.flatten(2)


class SplitScan(Parts):
    def __init__(self):
        super().__init__()
        self.in_proj = nn.Linear(D, 2 * D + 2 * N + 2)
        self.conv1d = nn.Conv1d(D + 2 * N, D + 2 * N, K, groups=D + 2 * N)
        self.norm = RMSNormGated(D)

    def forward(self, x):
        return mamba_split_conv1d_scan_combined(
            self.in_proj(x), self.conv1d.weight.squeeze(1), self.conv1d.bias, self.dt_proj.bias[:2],
            -torch.exp(self.A_log[:2, 0]), self.D[:2], 16, rmsnorm_weight=self.norm.weight, headdim=4,
            outproj_weight=self.out_proj.weight, norm_before_gate=False,
        )  # fmt: skip


class TritonNorms(Parts):
    def __init__(self):
        super().__init__()
        self.norm, self.layer, self.mixer = RMSNorm(D), nn.LayerNorm(D), Mamba(D, d_state=N, expand=1)

    def forward(self, x):
        hidden, residual = rms_norm_fn(x, self.norm.weight, None, None, prenorm=True, residual_in_fp32=True)
        hidden = self.mixer(hidden)
        return layer_norm_fn(hidden, self.layer.weight, self.layer.bias, residual=residual, eps=1e-5)


class GatedNorm(Parts):
    def __init__(self):
        super().__init__()
        self.norm = RMSNormGated(D, norm_before_gate=False)

    def forward(self, x):
        return self.norm(ScanFn.forward(self, x), self.in_proj(x).chunk(2, dim=-1)[1])


class LocalScan(Parts):
    """Four by L / 4 pixels, walked window by window through a Triton kernel."""

    def forward(self, x):
        image = x.transpose(1, 2).unflatten(-1, (4, -1))
        height, width = image.shape[2:]
        walked = image.new_empty(x.shape[0], D, height * width)
        triton_local_scan[(1, 1, 1)](image, walked, 2, 0, 1, 4, 4, D, height, width, 1, 1)
        return ScanFn.forward(self, walked.transpose(1, 2))


STYLES = (
    KernelWithGate, KernelCore, KernelOflex, KernelWithoutC, KernelOfOneState, ScanFn, ScanFnWithGroups,
    ScanFnWithoutSoftplus, InnerFn, TwoDirections, BimambaInnerFn, ConvKernel, ConvFn, ConvFunction, PlainConv,
    ModuleMamba, ModuleMamba2, ChunkScan, SplitScan, TritonNorms, GatedNorm, LocalScan,
)  # fmt: skip
KERNELS = {
    "TwoDirections": 2, "BimambaInnerFn": 2,
}  # fmt: skip
"""How many scans a style calls, where it is not one."""


def make(name):
    """Return a style by name, with weights that do not depend on the machine."""
    torch.manual_seed(0)
    return next(style for style in STYLES if style.__name__ == name)()
