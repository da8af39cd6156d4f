"""Problems and their random inputs. Nothing here knows how they are computed."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class ScanCase:
    """One selective scan of the op contract. ``data`` says how the inputs are drawn (:func:`scan_inputs`)."""

    batch: int
    length: int
    channels: int
    states: int = 16
    rank: int = 12
    dtype: str = "float16"
    directions: tuple[int, ...] = (1, -1)
    column_major: tuple[int, ...] = (0, 0)
    height: int = 1
    shared_u: bool = False
    shared_x: bool = False
    gated: bool = True
    scale: float = 0.5
    data: str = "usual"
    misaligned: bool = False

    @property
    def groups(self) -> int:
        return len(self.directions)

    @property
    def out_dtype(self) -> torch.dtype:
        return DTYPES[self.dtype] if self.gated else torch.float32

    @property
    def name(self) -> str:
        walks = "".join(
            ("+" if d > 0 else "-") + "rc"[c] for d, c in zip(self.directions, self.column_major, strict=True)
        )
        flags = [n for n in ("shared_u", "shared_x", "gated", "misaligned") if getattr(self, n)]
        return (
            f"scan {self.dtype} B={self.batch} L={self.length} E={self.channels} N={self.states} R={self.rank} {walks}"
            f" H={self.height} {self.data} {' '.join(flags)}".strip()
        )


@dataclass(frozen=True)
class ConvCase:
    """One causal convolution of the op contract."""

    batch: int
    length: int
    channels: int
    width: int = 4
    dtype: str = "float16"
    directions: tuple[int, ...] = (1, -1)
    silu: bool = True
    misaligned: bool = False

    @property
    def name(self) -> str:
        walks = "".join("+" if d > 0 else "-" for d in self.directions)
        flags = [n for n in ("silu", "misaligned") if getattr(self, n)]
        return (
            f"conv {self.dtype} B={self.batch} L={self.length} E={self.channels} K={self.width} {walks} "
            f"{' '.join(flags)}".strip()
        )


@dataclass(frozen=True)
class ScanInputs:
    """Tensors of one scan, shapes as in the op contract."""

    u: Tensor
    x_dbl: Tensor
    A: Tensor
    D: Tensor
    dt_weight: Tensor
    dt_bias: Tensor
    z: Tensor | None

    def map(self, function: Any) -> ScanInputs:
        """Apply ``function`` to every tensor."""
        values = (getattr(self, f.name) for f in fields(self))
        return ScanInputs(*(None if value is None else function(value) for value in values))  # type: ignore[arg-type]


def scan_inputs(case: ScanCase, seed: int, device: str) -> ScanInputs:
    """Draw inputs like those of a trained model, or harder ones.

    ``small_dt`` has steps of 1e-4 and no skip, which would hide their errors; ``large_dt`` has steps on both sides of
    20, where softplus turns linear.
    """
    generator = torch.Generator(device).manual_seed(seed)
    dtype = DTYPES[case.dtype]
    G, E, N, R = case.groups, case.channels, case.states, case.rank

    def normal(*shape: int, as_type: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(shape, generator=generator, device=device, dtype=as_type)

    step = {"usual": 0.001 * 100 ** torch.rand((G, E), generator=generator, device=device)}
    step["small_dt"] = torch.full((G, E), 1e-4, device=device)
    step["large_dt"] = 15 + 10 * step["usual"].mul(10).clamp(max=1)
    dt = step[case.data]
    rows = torch.arange(1, N + 1, device=device, dtype=torch.float32)
    tokens = (case.batch, case.length)
    inputs = ScanInputs(
        u=normal(1 if case.shared_u else G, *tokens, E, as_type=dtype),
        x_dbl=normal(1 if case.shared_x else G, *tokens, R + 2 * N, as_type=dtype),
        A=-rows * torch.exp(0.2 * normal(G, E, N)),
        D=normal(G, E) * (case.data != "small_dt"),
        dt_weight=((2 * torch.rand((G, E, R), generator=generator, device=device) - 1) * R**-0.5).to(dtype),
        dt_bias=dt + torch.log(-torch.expm1(-dt)),
        z=normal(*tokens, E, as_type=dtype) if case.gated else None,
    )
    return inputs.map(_off_by_one) if case.misaligned else inputs


def conv_inputs(case: ConvCase, seed: int, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """Draw x (B, L, E), weight (G, E, K) and bias (G, E)."""
    generator = torch.Generator(device).manual_seed(seed)
    shapes = (
        (case.batch, case.length, case.channels),
        (len(case.directions), case.channels, case.width),
        (len(case.directions), case.channels),
    )
    x, weight, bias = (
        torch.randn(shape, generator=generator, device=device, dtype=DTYPES[case.dtype]) for shape in shapes
    )
    return (_off_by_one(x), _off_by_one(weight), _off_by_one(bias)) if case.misaligned else (x, weight, bias)


def _off_by_one(values: Tensor) -> Tensor:
    """Copy to an address that is a multiple of the element size and of nothing larger."""
    buffer = values.new_empty(values.numel() + 1)
    moved = buffer[1:].view(values.shape)
    moved.copy_(values)
    return moved


WALKS: dict[str, dict[str, Any]] = {
    "mamba": {"directions": (1,), "column_major": (0,), "scale": 1.0},
    "reversed": {"directions": (-1,), "column_major": (0,), "scale": 1.0},
    "vim": {"directions": (1, -1), "column_major": (0, 0)},
    "vim_v1": {"directions": (1, -1), "column_major": (0, 0), "shared_u": True, "shared_x": True, "scale": 1.0},
    "two_walks": {"directions": (1, -1), "column_major": (0, 1)},
    "vmamba": {"directions": (1, 1, -1, -1), "column_major": (0, 1, 0, 1), "shared_u": True, "gated": False},
    "v052d": {"directions": (1, 1, -1, -1), "column_major": (0, 0, 0, 0), "shared_u": True, "gated": False},
    "mixed": {"directions": (-1, 1, 1, 1), "column_major": (1, 0, 0, 0)},
}
"""Ways in which known models walk their tokens, and pairings that none of them uses."""

VIM_SHAPES = ((384, 197), (384, 730), (384, 1025), (384, 6085), (768, 197), (1536, 197))
"""(E, L) of Vim-Ti at 224 (stride 16 and 8), 512 and 1248 pixels, of Vim-S and of Vim-B at 224."""


def vim_case(channels: int, length: int, batch: int, dtype: str = "float16") -> ScanCase:
    """Return the scan of a Vim layer: D = E / 2, R = D / 16, N = 16."""
    return ScanCase(batch, length, channels, rank=channels // 32, dtype=dtype)


def correctness_cases(seed: int, *, small: bool) -> Iterator[ScanCase | ConvCase]:
    """Yield the cases to check; ``small`` is for the host emulation, which takes seconds for one Vim layer."""
    yield from _models(small=small)
    yield from _walks(small=small)
    yield from _edges(small=small)
    yield from _random_cases(seed, count=6 if small else 60, small=small)
    yield from _convolutions(small=small)


def _models(*, small: bool) -> Iterator[ScanCase]:
    if small:
        yield from (vim_case(64, 19, 1, dtype) for dtype in DTYPES)
        return
    for dtype in DTYPES:
        yield from (vim_case(channels, length, 3, dtype) for channels, length in VIM_SHAPES)
    yield vim_case(384, 197, 64)
    yield ScanCase(8, 56 * 56, 192, 1, 6, height=56, **WALKS["vmamba"])
    yield ScanCase(8, 28 * 28, 384, 16, 12, height=28, **WALKS["vmamba"])


def _walks(*, small: bool) -> Iterator[ScanCase]:
    length, height = (35, 5) if small else (437, 19)
    for index, (walk, facts) in enumerate(WALKS.items()):
        for dtype in list(DTYPES)[index % 3 : index % 3 + 1] if small else DTYPES:
            for states in (16,) if small else (1, 5, 8, 16, 24, 64):
                yield ScanCase(2, length, 27 if small else 203, states, 7, dtype, height=height, **facts)
                if walk in ("mamba", "vim") and not small:
                    ungated = {**facts, "gated": False}
                    yield ScanCase(2, length, 203, states, 7, dtype, height=height, **ungated)


def _edges(*, small: bool) -> Iterator[ScanCase]:
    for length in (1, 2, 33) if small else (*range(1, 9), *range(13, 20), 31, 32, 33, 63, 64, 65, 127, 128, 129, 257):
        yield ScanCase(2, length, 40, dtype=list(DTYPES)[length % 3])
    for data in ("small_dt", "large_dt"):
        yield ScanCase(1, 40 if small else 400, 24 if small else 72, data=data)
    for rank in (1,) if small else (1, 6, 24, 48, 127, 128):
        yield ScanCase(1, 19, 40, rank=rank, dtype="float32")
    for dtype in DTYPES:
        yield ScanCase(2, 21, 24, dtype=dtype, misaligned=True)


def _random_cases(seed: int, count: int, *, small: bool) -> Iterator[ScanCase]:
    """Shapes nobody thought of; a fresh seed brings others."""
    generator = torch.Generator().manual_seed(seed)

    def between(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=generator))

    for _ in range(count):
        walk = list(WALKS.values())[between(0, len(WALKS) - 1)]
        height = between(1, 4 if small else 24)
        length = height * between(1, 9 if small else 60)
        channels, states = between(1, 40 if small else 300), (1, 8, 16, between(1, 64))[between(0, 3)]
        rank, dtype = between(1, 16 if small else 128), list(DTYPES)[between(0, 2)]
        yield ScanCase(between(1, 2 if small else 5), length, channels, states, rank, dtype, height=height, **walk)


def _convolutions(*, small: bool) -> Iterator[ConvCase]:
    groups = ((1,), (-1,), (1, -1), (1, -1, 1, -1))
    for width in (2, 3, 4):
        for index, directions in enumerate(groups):
            dtypes = list(DTYPES)
            for dtype in (dtypes[(width + index) % 3],) if small else dtypes:
                yield ConvCase(2, 19 if small else 197, 24 if small else 384, width, dtype, directions)
                yield ConvCase(1, width - 1, 7, width, dtype, directions, silu=False, misaligned=True)


def far_case(free_bytes: int) -> ScanCase | None:
    """Return a case whose tensors hold more than 2^31 elements, where the memory allows one."""
    case = ScanCase(1400, 1025, 1536, rank=48)
    elements = case.batch * case.length * case.channels
    # u of two groups, z and y in float16, partial sums in float32, and what drawing and judging them takes.
    return case if free_bytes > elements * 20 and elements > 2**31 else None


def geometric_mean(values: list[float]) -> float:
    """Return the geometric mean of positive numbers."""
    return math.exp(sum(math.log(value) for value in values) / len(values))
