"""Which module names get which substitutes: everything that models built on Mamba's kernels import."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from vimdeploy.interop import conv, inner, mamba, norms, scan, ssd
from vimdeploy.interop.refusal import refuse
from vimdeploy.interop.stubs import StubModule


class DepthwiseFunction:
    """Spatial-Mamba's depthwise 2-D convolution (``Dwconv``), as its autograd function is called."""

    @staticmethod
    def apply(x: Tensor, weight: Tensor, bias: Tensor | None, pad_h: int, pad_w: int, is_bf16: bool = False) -> Tensor:
        """Convolve (B, C, H, W) channel by channel."""
        del is_bf16
        return F.conv2d(x, weight, bias, padding=(pad_h, pad_w), groups=weight.shape[0])


def _no_step(*_arguments: Any, **_named: Any) -> Any:
    raise refuse("selective_state_update", "inference one token at a time")


def _extension(name: str) -> dict[str, Any]:
    return {"fwd": scan.kernel_fwd(name), "bwd": scan.kernel_bwd(name)}


_SCANS = {
    "selective_scan_fn": scan.selective_scan_fn,
    "selective_scan_ref": scan.selective_scan_fn,
    "mamba_inner_fn": inner.mamba_inner_fn,
    "mamba_inner_ref": inner.mamba_inner_fn,
    "mamba_inner_fn_no_out_proj": inner.mamba_inner_fn_no_out_proj,
    "bimamba_inner_fn": inner.bimamba_inner_fn,
    "bimamba_inner_ref": inner.bimamba_inner_fn,
}
_NORMS = {
    "RMSNorm": norms.RMSNorm,
    "layer_norm_fn": norms.layer_norm_fn,
    "rms_norm_fn": norms.rms_norm_fn,
    "layer_norm_ref": norms.layer_norm_ref,
    "rms_norm_ref": norms.rms_norm_fn,
    "_layer_norm_fwd": norms.layer_norm_fwd,
}
_CONVS = {
    "causal_conv1d_fn": conv.causal_conv1d_fn,
    "causal_conv1d_ref": conv.causal_conv1d_fn,
    "causal_conv1d_update": conv.causal_conv1d_update,
}
_GATED_NORMS = {
    "RMSNorm": norms.RMSNormGated,
    "LayerNorm": norms.LayerNormGated,
    "rmsnorm_fn": norms.rmsnorm_fn,
    "rms_norm_ref": norms.rmsnorm_fn,
    "layernorm_fn": norms.gated_layernorm_fn,
}
_SSD = {
    "mamba_chunk_scan_combined": ssd.mamba_chunk_scan_combined,
    "mamba_chunk_scan": ssd.mamba_chunk_scan_combined,
    "mamba_split_conv1d_scan_combined": ssd.mamba_split_conv1d_scan_combined,
}
_STEP = {"selective_state_update": _no_step, "selective_state_update_ref": _no_step}

TRITON_NORMS = "mamba_ssm.ops.triton"

EXTENSIONS: dict[str, dict[str, Any]] = {
    **{
        name: _extension(name)
        for name in (
            "selective_scan_cuda",
            "selective_scan_cuda_core",
            "selective_scan_cuda_nrow",
            "selective_scan_cuda_oflex",
        )
    },
    "selective_scan_cuda_ndstate": {"fwd": scan.one_state_fwd},
    "selective_scan_cuda_oflex_rh": {"fwd": scan.state_fwd, "bwd": scan.state_bwd},
    "selective_scan": {
        "selective_scan_fn": scan.selective_scan_ungated,
        "selective_scan_ref": scan.selective_scan_ungated,
    },
    "selective_scan_vmamba": {},
    "selective_scan_vmamba.selective_scan_cuda_core": _extension("selective_scan_cuda_core"),
    "causal_conv1d_cuda": {
        "causal_conv1d_fwd": conv.causal_conv1d_fwd,
        "causal_conv1d_bwd": conv.causal_conv1d_bwd,
        "causal_conv1d_update": conv.causal_conv1d_update,
    },
    "causal_conv1d": {**_CONVS, "__version__": "1.4.0"},
    "causal_conv1d.causal_conv1d_interface": _CONVS,
    "causal_conv1d.cpp_functions": {
        "causal_conv1d_fwd_function": conv.causal_conv1d_fwd,
        "causal_conv1d_bwd_function": conv.causal_conv1d_bwd,
        "causal_conv1d_update_function": conv.causal_conv1d_update,
    },
    "Dwconv": {},
    "Dwconv.dwconv_layer": {"DepthwiseFunction": DepthwiseFunction},
    TRITON_NORMS: {},
    f"{TRITON_NORMS}.layernorm": _NORMS,
    f"{TRITON_NORMS}.layer_norm": _NORMS,
    f"{TRITON_NORMS}.layernorm_gated": _GATED_NORMS,
    f"{TRITON_NORMS}.selective_state_update": _STEP,
    f"{TRITON_NORMS}.ssd_combined": _SSD,
}
"""Compiled extensions and Triton code, always substituted: forks of mamba_ssm keep their own Python."""

PACKAGE: dict[str, dict[str, Any]] = {
    "mamba_ssm": {**_SCANS, "Mamba": mamba.Mamba, "Mamba2": mamba.Mamba2, "__version__": "2.2.4"},
    "mamba_ssm.ops": {},
    "mamba_ssm.ops.selective_scan_interface": _SCANS,
    "mamba_ssm.modules": {},
    "mamba_ssm.modules.mamba_simple": {**_SCANS, **_NORMS, **_CONVS, "Mamba": mamba.Mamba, "Block": mamba.Block},
    "mamba_ssm.modules.mamba2": {"Mamba2": mamba.Mamba2},
    "mamba_ssm.modules.block": {"Block": mamba.Block},
    "mamba_ssm.modules.mlp": {"GatedMLP": mamba.GatedMLP},
}
"""The package mamba_ssm itself, for repositories that carry no copy of it where none is installed."""

HOLLOW = ("mamba_ssm.ops.triton", "mamba_ssm.ops.tilelang", "mamba_ssm.ops.cute", "mamba_ssm.modules.mamba3")
"""Names below which everything that the tables do not have is a stub."""
HOLLOW_PACKAGE = ("mamba_ssm.models", "mamba_ssm.utils", "mamba_ssm.distributed", "mamba_ssm.modules")
"""The same, where the package is substituted as a whole."""

STUBS = (
    "accimage", "acvl_utils", "batchgenerators", "batchgeneratorsv2", "cuda", "cutlass", "cv2", "einops_exts",
    "fvcore", "hf_xet", "imageio", "ipdb", "lmdb", "matplotlib", "medpy", "mmcls", "mmcv", "mmdet", "mmengine",
    "mmpretrain", "mmseg", "monai", "nibabel", "pandas", "prettytable", "ptflops", "quack", "scipy", "seaborn",
    "SimpleITK", "skimage", "sklearn", "submitit", "tensorboard", "tensorboardX", "termcolor", "thop",
    "tifffile", "tilelang", "torchaudio", "torchmetrics", "torchvision", "tqdm", "transformers", "tvm", "wandb",
    "wget", "yacs",
)  # fmt: skip
"""Packages that model files import and models seldom call. Only absent ones are stubbed."""


def build(name: str, contents: dict[str, Any]) -> ModuleType:
    """Return the module ``name`` with its substitutes; where it is hollow, the rest of it is stubs."""
    hollow = any(name == root or name.startswith(f"{root}.") for root in (*HOLLOW, *HOLLOW_PACKAGE, "mamba_ssm.ops"))
    module = StubModule(name) if hollow else ModuleType(name)
    module.__dict__.update(contents)
    module.__path__ = []
    return module
