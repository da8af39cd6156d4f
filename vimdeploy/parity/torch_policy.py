"""The PyTorch model under the half-precision policy: what FP16 costs before any conversion is involved."""

from __future__ import annotations

import copy
from collections.abc import Collection
from typing import Any

import torch
from torch import nn

from vimdeploy.graph.policy import FLOAT32_INPUTS
from vimdeploy.models.family import FamilyModel, FoldedMixer, fold
from vimdeploy.parity.sensitivity import HEAD

_DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}


def lowered(model: FamilyModel, precision: str, *, keep: Collection[str] = ()) -> FamilyModel:
    """Return a folded copy that computes matrix products, convolutions and custom ops in half precision.

    Norms, the residual stream, pooling, A, D and dt_bias stay float32, as in :data:`vimdeploy.graph.policy.POLICY`.
    Scans whose norm follows at once (VMamba's) stay float32 here as well.

    Args:
        model: in eval mode, float32; it is not changed.
        precision: ``fp16`` or ``bf16``.
        keep: blocks that stay float32, as :func:`vimdeploy.parity.sensitivity.fit` names them.

    """
    folded = copy.deepcopy(fold(model))
    kept = _kept_modules(folded, keep)
    for module in folded.modules():
        product = isinstance(module, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d))
        if (product or (isinstance(module, FoldedMixer) and module.half_as_one)) and module not in kept:
            _lower(module, _DTYPES[precision])
    return folded


def _kept_modules(model: FamilyModel, keep: Collection[str]) -> set[nn.Module]:
    """Return every module inside the named blocks. What is in no block belongs to the first one or to the head."""
    blocks = {f"block.{i}": tap.module for i, tap in enumerate(model.taps())}
    inside = {module for block in blocks.values() for module in block.modules()}
    kept = {module for name in keep if name in blocks for module in blocks[name].modules()}
    for name, module in model.named_modules():
        if module not in inside:
            stem = any(part.startswith("patch_embed") for part in name.split("."))
            if (HEAD if not stem else "block.0") in keep:
                kept.add(module)
    return kept


def _lower(module: nn.Module, dtype: torch.dtype) -> None:
    """Let a module compute in ``dtype`` between float32 neighbours."""
    for name, value in (*module.named_buffers(recurse=False), *module.named_parameters(recurse=False)):
        if name not in FLOAT32_INPUTS and value.is_floating_point():
            value.data = value.data.to(dtype)

    def down(_module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(value.to(dtype) for value in inputs)

    def up(_module: nn.Module, _inputs: tuple[Any, ...], output: Any) -> Any:
        return output.float()

    module.register_forward_pre_hook(down)
    module.register_forward_hook(up)
