"""Part ``models``: images per second and peak memory of whole networks, the figure of the Vim paper."""

from __future__ import annotations

import gc
import importlib.util
import time
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from benchmarks.gpu_suite import networks
from benchmarks.gpu_suite.correctness import relative_error
from benchmarks.gpu_suite.library import Kernels
from benchmarks.gpu_suite.networks import FusedMixer, HalfVim, PeerMixer
from benchmarks.gpu_suite.peers import Peer
from benchmarks.gpu_suite.store import NOT_MEASURED, Store
from benchmarks.gpu_suite.timing import measure
from vimdeploy.models.vim import VisionMamba, fold

PIXELS = (224, 512, 1024, 1248)
BATCHES = (64, 1, 8)
NETWORKS = ("vim", "vim-peer", "deit", "deit-plain")
"""Vim with our ops; with the peer's; DeiT with fused attention; with the plain attention of its time."""
LOGITS_TOLERANCE = 3e-2
"""Of the float16 logits, relative to the largest of the float32 ones."""


def key(size: str, pixels: int, batch: int, network: str) -> str:
    """Return the name of a case in the results."""
    return f"{size} {pixels} B={batch} {network}"


def run(kernels: Kernels, peer: Peer, store: Store, *, seed: int, device: str, deadline: float, dry_run: bool) -> bool:
    """Run the part; returns whether the networks compute what the float32 model does, as far as it came."""
    conv_name, conv = networks.find_conv()
    store.notes |= {"peer": peer.name, "peer_conv": conv_name}
    store.notes.setdefault("seed", seed)
    sizes, sides, batches = (("tiny",), (64,), (1,)) if dry_run else (tuple(networks.SIZES), PIXELS, BATCHES)
    for size in sizes:
        for pixels in sides:
            for network in NETWORKS:
                names = [key(size, pixels, batch, network) for batch in batches]
                check = f"logits {size} {pixels} {network}"
                if network.startswith("vim") and pixels == sides[0] and check not in store.cases:
                    names.append(check)
                if all(name in store.cases for name in names):
                    continue
                if time.monotonic() > deadline:
                    continue

                def make(size: str = size, pixels: int = pixels, network: str = network) -> nn.Module:
                    torch.manual_seed(store.notes["seed"])
                    return _make(network, size, pixels, kernels, peer, conv, device, dry_run=dry_run)

                _run_network(store, network, names, make, pixels, device, deadline, dry_run=dry_run)
    wanted = [key(s, p, b, n) for s in sizes for p in sides for b in batches for n in NETWORKS]
    store.save(complete=all(name in store.cases for name in wanted))
    return all(case.get("logits_error", 0.0) <= LOGITS_TOLERANCE for case in store.cases.values())


def _make(
    network: str, size: str, pixels: int, kernels: Kernels, peer: Peer, conv: networks.Conv, device: str, *,
    dry_run: bool,
) -> nn.Module:  # fmt: skip
    dtype = torch.float16
    with torch.device(device):
        if network.startswith("deit"):
            return networks.deit(size, pixels, fused_attention=network == "deit").to(device, dtype)
        model = VisionMamba(networks.vim_config(size, pixels, small=dry_run)).eval().requires_grad_(False)
        return _half(model, network, kernels, peer, conv, dtype).to(device)


def _half(
    model: VisionMamba, network: str, kernels: Kernels, peer: Peer, conv: networks.Conv, dtype: torch.dtype
) -> HalfVim:
    if network == "vim":
        half = HalfVim(model, lambda mamba: FusedMixer(mamba.fold(), kernels, dtype), dtype)
    else:
        half = HalfVim(model, lambda mamba: PeerMixer(mamba, peer, conv, dtype), dtype)
    half.float32 = [model]  # type: ignore[assignment]  # in a list, so that .to() and the memory count pass it by
    return half


def _run_network(
    store: Store, network: str, names: list[str], make: Callable[[], nn.Module], pixels: int, device: str,
    deadline: float, *, dry_run: bool,
) -> None:  # fmt: skip
    if network.startswith("deit") and importlib.util.find_spec("timm") is None:
        for name in names:
            store.put(name, {"status": f"{NOT_MEASURED}: timm is not installed"})
        return
    _forget(device)
    model = make()
    with torch.inference_mode():
        for name in names:
            if name in store.cases:
                continue
            if name.startswith("logits "):
                store.put(name, {"logits_error": _logits_error(model, pixels, device)})
                continue
            if time.monotonic() > deadline:
                return
            batch = int(name.split("B=")[1].split()[0])
            store.put(name, _measure(model, pixels, batch, device, dry_run=dry_run))
    del model
    _forget(device)


def _measure(model: nn.Module, pixels: int, batch: int, device: str, *, dry_run: bool) -> dict[str, Any]:
    images = torch.randn(batch, 3, pixels, pixels, device=device, dtype=torch.float16)
    if dry_run:
        logits = model(images)
        return {"status": f"{NOT_MEASURED}: dry run", "finite": bool(torch.isfinite(logits).all())}
    reference = getattr(model, "float32", None)
    if reference is not None:
        reference[0].to("cpu")
    try:
        _forget(device)
        torch.cuda.reset_peak_memory_stats()
        model(images)
        torch.cuda.synchronize()
        peak = torch.cuda.max_memory_allocated()
        timing = measure(lambda _: model(images), 1, seconds=0.6)
    except torch.OutOfMemoryError:
        return {"status": "out of memory"}
    finally:
        _forget(device)
    return {
        "status": "measured",
        "timing": timing,
        "images_per_s": batch / timing["median_us"] * 1e6,
        "peak_bytes": peak,
    }


def _logits_error(model: nn.Module, pixels: int, device: str) -> float:
    """Return the error of the half network against the project's float32 model on its torch ops, same weights."""
    images = torch.randn(2, 3, pixels, pixels, device=device)
    reference = cast("list[VisionMamba]", model.float32)[0].to(device)
    wanted = _on_torch_ops(fold(reference), images)
    return relative_error(model(images.half()), wanted.double())


def _on_torch_ops(model: VisionMamba, images: Tensor) -> Tensor:
    """Compute the logits with the ops written in torch, whatever kernels the package would pick on this device."""
    from unittest.mock import patch

    from vimdeploy.models import mamba
    from vimdeploy.ops.causal_conv1d import causal_conv1d_differentiable
    from vimdeploy.ops.selective_scan import selective_scan_differentiable

    with (
        patch.object(mamba, "causal_conv1d", causal_conv1d_differentiable),
        patch.object(mamba, "selective_scan", selective_scan_differentiable),
    ):
        return cast(Tensor, model(images))


def _forget(device: str) -> None:
    if device != "cpu":
        gc.collect()
        torch.cuda.empty_cache()
