"""Part ``models``: images per second and peak memory of whole networks, the figure of the Vim paper."""

from __future__ import annotations

import gc
import importlib.util
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.gpu_suite import networks
from benchmarks.gpu_suite.correctness import relative_error
from benchmarks.gpu_suite.networks import Float32Mixer, HalfVim, PeerMixer
from benchmarks.gpu_suite.peers import Peer
from benchmarks.gpu_suite.store import NOT_MEASURED, Store
from benchmarks.gpu_suite.timing import measure
from vimdeploy.models.family import fold
from vimdeploy.models.vim.mamba import Mamba
from vimdeploy.models.vim.model import VisionMamba
from vimdeploy.ops import dispatch as implementation
from vimdeploy.ops import kernels as package_kernels

PIXELS = (224, 512, 1024, 1248)
BATCHES = (64, 1, 8)
NETWORKS = ("vim", "vim-kept", "vim-peer", "deit", "deit-plain")
"""Vim with our ops; with its first blocks in float32; with the peer's ops; DeiT with fused attention; with the plain
attention of its time."""
KEPT = 5
"""Blocks in float32 of ``vim-kept``: what FP16 within 2e-3 took in benchmarks/results/precision.md."""
LOGITS_BATCH = 2
LOGITS_TOLERANCE = 3e-2
"""Of the float16 logits, relative to the largest of the float32 ones."""


def key(size: str, pixels: int, batch: int, network: str) -> str:
    """Return the name of a case in the results."""
    return f"{size} {pixels} B={batch} {network}"


def run(library: Path, peer: Peer, store: Store, *, seed: int, device: str, deadline: float, dry_run: bool) -> bool:
    """Run the part; returns whether the networks compute what the float32 model does, as far as it came.

    Args:
        library: our kernels, which the package's ops then use.
        peer: the other Vim's scan.
        store: of this part.
        seed: of weights and images.
        device: where the networks run.
        deadline: on the monotonic clock; nothing is begun after it.
        dry_run: run each network once, small, and time nothing.
    """
    conv_name, conv = networks.find_conv()
    store.notes |= {"peer": peer.name, "peer_conv": conv_name}
    store.notes.setdefault("seed", seed)
    bench = _Bench(store, peer, conv, device, deadline, dry_run)
    sizes, sides = (("tiny",), (64,)) if dry_run else (tuple(networks.SIZES), PIXELS)
    batches = (1,) if dry_run else BATCHES
    with package_kernels.using(library):
        for size in sizes:
            for pixels in sides:
                for network in NETWORKS:
                    names = {key(size, pixels, batch, network): batch for batch in batches}
                    if network.startswith("vim") and pixels == sides[0]:
                        names[f"logits {size} {pixels} {network}"] = LOGITS_BATCH
                    bench.run(network, size, pixels, names)
    wanted = [key(s, p, b, n) for s in sizes for p in sides for b in batches for n in NETWORKS]
    store.save(complete=all(name in store.cases for name in wanted))
    found = store.cases.values()
    return all(c.get("logits_error", 0.0) <= LOGITS_TOLERANCE and c.get("status") != "failed" for c in found)


@dataclass
class _Bench:
    """What all networks of a run share."""

    store: Store
    peer: Peer
    conv: networks.Conv
    device: str
    deadline: float
    dry_run: bool

    def run(self, network: str, size: str, pixels: int, names: dict[str, int]) -> None:
        """Measure one network at the batches of ``names``, as far as they are not yet in the store."""
        missing = {name: batch for name, batch in names.items() if name not in self.store.cases}
        if not missing or time.monotonic() > self.deadline:
            return
        if network.startswith("deit") and importlib.util.find_spec("timm") is None:
            for name in missing:
                self.store.put(name, {"status": f"{NOT_MEASURED}: timm is not installed"})
            return
        self._forget()
        torch.manual_seed(self.store.notes["seed"])
        model, float32 = self._make(network, size, pixels)
        with torch.inference_mode():
            for name, batch in missing.items():
                if time.monotonic() > self.deadline:
                    break
                if name.startswith("logits ") and float32 is not None:
                    self.store.put(name, {"logits_error": self._logits_error(model, float32, pixels, batch)})
                else:
                    self.store.put(name, self._measure(model, pixels, batch))
        del model
        self._forget()

    def _make(self, network: str, size: str, pixels: int) -> tuple[nn.Module, VisionMamba | None]:
        """Return the network in half precision on the device, and the same Vim in float32 on the host."""
        dtype = torch.float16
        with torch.device(self.device):
            if network.startswith("deit"):
                model = networks.deit(size, pixels, fused_attention=network == "deit")
                return model.to(self.device, dtype), None
            vim = VisionMamba(networks.vim_config(size, pixels, small=self.dry_run)).eval().requires_grad_(False)

            kept = {block.mixer for block in list(vim.layers)[: KEPT if network == "vim-kept" else 0]}

            def mixer(mamba: Mamba) -> nn.Module:
                if mamba in kept:
                    return Float32Mixer(mamba)
                if network != "vim-peer":
                    return networks.fused_mixer(mamba, dtype)
                return PeerMixer(mamba, self.peer, self.conv, dtype)

            half = HalfVim(vim, mixer, dtype)
        return half.to(self.device), vim.cpu()

    def _measure(self, model: nn.Module, pixels: int, batch: int) -> dict[str, Any]:
        images = torch.randn(batch, 3, pixels, pixels, device=self.device, dtype=torch.float16)
        if self.dry_run:
            logits: Tensor = model(images)
            return {"status": f"{NOT_MEASURED}: dry run", "finite": bool(torch.isfinite(logits).all())}
        try:
            self._forget()
            torch.cuda.reset_peak_memory_stats()
            model(images)
            torch.cuda.synchronize()
            peak = torch.cuda.max_memory_allocated()
            timing = measure(lambda _: model(images), 1, seconds=0.6)
        except torch.OutOfMemoryError:
            return {"status": "out of memory"}
        except RuntimeError as error:
            return {"status": "failed", "error": f"{type(error).__name__}: {error}"[:500]}
        finally:
            self._forget()
        speed = batch / timing["median_us"] * 1e6
        return {"status": "measured", "timing": timing, "images_per_s": speed, "peak_bytes": peak}

    def _logits_error(self, model: nn.Module, float32: VisionMamba, pixels: int, batch: int) -> float:
        """Return the error against the project's float32 model on its torch ops, of the largest logit."""
        images = torch.randn(batch, 3, pixels, pixels, device=self.device)
        reference = fold(float32).to(self.device)
        with implementation.using("torch"):
            wanted: Tensor = reference(images)
        return relative_error(model(images.half()), wanted.double())

    def _forget(self) -> None:
        """Give back what the allocator keeps, so that it counts in no peak."""
        if self.device != "cpu":
            gc.collect()
            torch.cuda.empty_cache()
