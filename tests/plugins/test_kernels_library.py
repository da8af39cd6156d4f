"""The plain C entry points, called through ctypes as PyTorch calls them, on the library that runs on the host."""

from __future__ import annotations

import ctypes
import itertools
from typing import Any

import emulated_kernels
import numpy as np
import pytest

FLOAT32, FLOAT16 = 0, 1
INVALID, TOO_SMALL = -1, -2
Array = np.ndarray[Any, Any]


class ScanArgs(ctypes.Structure):
    _fields_ = [
        ("struct_size", ctypes.c_uint64),
        *((name, ctypes.c_int64) for name in ("batch", "length")),
        *(
            (name, ctypes.c_int32)
            for name in ("channels", "states", "rank", "groups", "shared_u", "shared_x_dbl", "gated", "dtype")
        ),
        ("directions", ctypes.c_int32 * 4),
        ("column_major", ctypes.c_int32 * 4),
        ("height", ctypes.c_int32),
        ("scale", ctypes.c_float),
        ("variant", ctypes.c_int32),
        ("sm_count", ctypes.c_int32),
        *((name, ctypes.c_void_p) for name in ("u", "x_dbl", "a", "d", "dt_weight", "dt_bias", "z", "y", "workspace")),
        ("workspace_size", ctypes.c_uint64),
        ("stream", ctypes.c_void_p),
    ]


class ConvArgs(ctypes.Structure):
    _fields_ = [
        ("struct_size", ctypes.c_uint64),
        *((name, ctypes.c_int64) for name in ("batch", "length")),
        *((name, ctypes.c_int32) for name in ("channels", "width", "groups", "silu", "dtype")),
        ("directions", ctypes.c_int32 * 4),
        ("reserved", ctypes.c_int32),
        *((name, ctypes.c_void_p) for name in ("x", "weight", "bias", "u", "stream")),
    ]


class ScanPlan(ctypes.Structure):
    _fields_ = [
        ("struct_size", ctypes.c_uint64),
        *((name, ctypes.c_int32) for name in ("variant", "tile_length", "chunks", "launches")),
        *((name, ctypes.c_int64) for name in ("chunk_length", "shared_bytes")),
    ]


@pytest.fixture(scope="module")
def library() -> ctypes.CDLL:
    loaded = ctypes.CDLL(str(emulated_kernels.kernels_library()))
    loaded.vimdeploy_kernels_backend.restype = ctypes.c_char_p
    loaded.vimdeploy_last_error.restype = ctypes.c_char_p
    return loaded


def scan_args(**fields: Any) -> ScanArgs:
    args = ScanArgs(batch=1, length=9, channels=8, states=16, rank=4, groups=2, gated=1, dtype=FLOAT32, scale=0.5)
    args.struct_size = ctypes.sizeof(ScanArgs)
    args.directions[:] = (1, -1, 1, 1)
    for name, value in fields.items():
        setattr(args, name, value)
    return args


def workspace_size(library: ctypes.CDLL, args: ScanArgs) -> int:
    size = ctypes.c_uint64()
    assert library.vimdeploy_scan_workspace_size(ctypes.byref(args), ctypes.byref(size)) == 0
    return size.value


def scan_inputs(args: ScanArgs, dtype: type) -> dict[str, Array]:
    random = np.random.default_rng(0)
    g, b, t, e, n, r = args.groups, args.batch, args.length, args.channels, args.states, args.rank
    return {
        "u": random.standard_normal((g, b, t, e)).astype(dtype),
        "x_dbl": (0.5 * random.standard_normal((g, b, t, r + 2 * n))).astype(dtype),
        "a": -np.tile(np.arange(1, n + 1, dtype=np.float32), (g, e, 1)),
        "d": random.standard_normal((g, e)).astype(np.float32),
        "dt_weight": random.standard_normal((g, e, r)).astype(dtype),
        "dt_bias": (random.standard_normal((g, e)) - 2).astype(np.float32),
        "z": random.standard_normal((b, t, e)).astype(dtype),
    }


def reference(args: ScanArgs, inputs: dict[str, Array]) -> Array:
    """The contract in float64, for row-major walks."""
    x = {name: value.astype(np.float64) for name, value in inputs.items()}
    n, r = args.states, args.rank
    total = np.zeros(x["z"].shape)
    for g in range(args.groups):
        low, into, out = np.split(x["x_dbl"][g], [r, r + n], axis=-1)
        delta = np.logaddexp(0, low @ x["dt_weight"][g].T + x["dt_bias"][g])
        state = np.zeros((args.batch, args.channels, n))
        steps = range(args.length) if args.directions[g] > 0 else reversed(range(args.length))
        for t in steps:
            decay = np.exp(delta[:, t, :, None] * x["a"][g])
            state = decay * state + (delta[:, t] * x["u"][g][:, t])[..., None] * into[:, t, None, :]
            total[:, t] += (state * out[:, t, None, :]).sum(-1) + x["d"][g] * x["u"][g][:, t]
    return np.asarray(args.scale * total * x["z"] / (1 + np.exp(-x["z"])))


def call_scan(library: ctypes.CDLL, args: ScanArgs, inputs: dict[str, Array], dtype: type) -> Array:
    y = np.full(inputs["z"].shape, np.nan, dtype)
    workspace = np.full(workspace_size(library, args), 0xFF, np.uint8)
    for name, value in inputs.items():
        setattr(args, name, value.ctypes.data)
    args.y, args.workspace, args.workspace_size = y.ctypes.data, workspace.ctypes.data, workspace.size
    assert library.vimdeploy_scan(ctypes.byref(args)) == 0, library.vimdeploy_last_error()
    return y


def test_says_what_it_runs_on(library: ctypes.CDLL) -> None:
    assert library.vimdeploy_kernels_backend() == b"emulated"
    assert library.vimdeploy_kernels_abi() == 2


@pytest.mark.parametrize(("code", "dtype", "bound"), [(FLOAT32, np.float32, 1e-5), (FLOAT16, np.float16, 2e-3)])
@pytest.mark.parametrize("length", [1, 9, 150])
def test_every_variant_of_the_scan_agrees_with_numpy(
    library: ctypes.CDLL, code: int, dtype: type, bound: float, length: int
) -> None:
    args = scan_args(length=length, dtype=code)
    inputs = scan_inputs(args, dtype)
    expected = reference(args, inputs)
    variants = (ctypes.c_int32 * 8)()
    count = library.vimdeploy_scan_variants(ctypes.byref(args), variants, 8)
    assert count == 4
    for variant in [0, *variants[:count]]:
        args.variant = variant
        y = call_scan(library, args, inputs, dtype)
        error = np.abs(y.astype(np.float64) - expected).max() / np.abs(expected).max()
        assert error <= bound, f"variant {variant}"


def test_convolution_agrees_with_numpy(library: ctypes.CDLL) -> None:
    random = np.random.default_rng(1)
    b, t, e, k = 2, 11, 12, 4
    x = random.standard_normal((b, t, e)).astype(np.float32)
    weight = random.standard_normal((2, e, k)).astype(np.float32)
    bias = random.standard_normal((2, e)).astype(np.float32)
    u = np.full((2, b, t, e), np.nan, np.float32)
    args = ConvArgs(batch=b, length=t, channels=e, width=k, groups=2, silu=1, dtype=FLOAT32)
    args.struct_size = ctypes.sizeof(ConvArgs)
    args.directions[:] = (1, -1, 1, 1)
    args.x, args.weight, args.bias, args.u = (array.ctypes.data for array in (x, weight, bias, u))
    assert library.vimdeploy_conv(ctypes.byref(args)) == 0, library.vimdeploy_last_error()
    padded = np.pad(x.astype(np.float64), ((0, 0), (k - 1, k - 1), (0, 0)))
    for group, shift in enumerate((0, k - 1)):
        taps = [padded[:, shift + i : shift + i + t] * weight[group, :, i] for i in range(k)]
        total = bias[group] + np.sum(taps, axis=0)
        expected = total / (1 + np.exp(-total))
        assert np.abs(u[group] - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"struct_size": 8}, "another version"),
        ({"states": 65}, "states (d_state) is 65"),
        ({"rank": 129}, "rank (dt_rank) is 129"),
        ({"groups": 3}, "groups is 3"),
        ({"length": 0}, "length is 0"),
        ({"channels": 0}, "channels is 0"),
        ({"batch": -1}, "batch is -1"),
        ({"dtype": 7}, "type is 7"),
        ({"variant": 4}, "variant 4 cannot run 16 states"),
        ({"directions": (ctypes.c_int32 * 4)(1, 2, 1, 1)}, "directions is 2"),
        ({"column_major": (ctypes.c_int32 * 4)(1, 0, 0, 0), "height": 2}, "height is 2"),
    ],
)
def test_what_is_wrong_is_named(library: ctypes.CDLL, fields: dict[str, Any], words: str) -> None:
    args = scan_args(**fields)
    assert library.vimdeploy_scan(ctypes.byref(args)) == INVALID
    assert words in library.vimdeploy_last_error().decode()


def test_a_short_workspace_is_refused_before_the_launch(library: ctypes.CDLL) -> None:
    args = scan_args(dtype=FLOAT16)
    assert workspace_size(library, args) > 0
    assert library.vimdeploy_scan(ctypes.byref(args)) == TOO_SMALL
    assert "are needed" in library.vimdeploy_last_error().decode()


def test_a_missing_tensor_is_refused(library: ctypes.CDLL) -> None:
    args = scan_args()
    assert library.vimdeploy_scan(ctypes.byref(args)) == INVALID
    assert "null" in library.vimdeploy_last_error().decode()


def test_workspace_never_shrinks_with_batch_or_length(library: ctypes.CDLL) -> None:
    """TensorRT asks once, for the largest shape of a profile."""
    variant = 6  # chunked, the one that keeps more than the float32 sums
    for states in (16, 8, 1, 20):
        for length in (1, 33, 197, 1025, 6085):
            sizes = [
                workspace_size(library, scan_args(states=states, variant=variant, batch=b, length=length, channels=384))
                for b in (1, 2, 3, 7, 8, 64, 65, 128)
            ]
            assert sizes == sorted(sizes)
        sizes = [
            workspace_size(library, scan_args(states=states, variant=variant, length=t, channels=384))
            for t in (1, 32, 33, 64, 197, 400, 1025, 6085)
        ]
        assert sizes == sorted(sizes)


def test_plans_fit_every_device(library: ctypes.CDLL) -> None:
    """Shared memory of an AMPERE_PLUS engine, tiles that cover the sequence, chunks that cover it once."""
    shapes = itertools.product((1, 8, 16, 64), (1, 12, 48, 128), (1, 197, 6085), (1, 64), (FLOAT32, FLOAT16), (8, 132))
    for states, rank, length, batch, dtype, sm_count in shapes:
        args = scan_args(
            states=states, rank=rank, length=length, batch=batch, channels=384, dtype=dtype, sm_count=sm_count
        )
        variants = (ctypes.c_int32 * 8)()
        count = library.vimdeploy_scan_variants(ctypes.byref(args), variants, 8)
        for variant in [0, *variants[:count]]:
            args.variant = variant
            plan = ScanPlan(struct_size=ctypes.sizeof(ScanPlan))
            assert library.vimdeploy_scan_plan_query(ctypes.byref(args), ctypes.byref(plan)) == 0
            assert 0 < plan.shared_bytes <= 48 * 1024
            assert plan.chunk_length % plan.tile_length == 0
            assert (plan.chunks - 1) * plan.chunk_length < length <= plan.chunks * plan.chunk_length


@pytest.mark.parametrize(
    ("batch", "length", "variant"), [(64, 197, 1), (8, 197, 3), (1, 197, 3), (64, 6085, 1), (1, 6085, 6), (1, 1025, 6)]
)
def test_the_table_of_choices(library: ctypes.CDLL, batch: int, length: int, variant: int) -> None:
    """Vim-Ti (E = 384, N = 16) on 132 SMs."""
    args = scan_args(batch=batch, length=length, channels=384, rank=12, dtype=FLOAT16, sm_count=132)
    plan = ScanPlan(struct_size=ctypes.sizeof(ScanPlan))
    assert library.vimdeploy_scan_plan_query(ctypes.byref(args), ctypes.byref(plan)) == 0
    assert plan.variant == variant
