"""The substitutes against the official functions' mathematics, in every argument order and in three types."""

import itertools

import mathematics
import pytest
import torch

from vimdeploy.interop import conv, inner, mamba, norms, scan, ssd
from vimdeploy.interop.refusal import UnsupportedCallError

# rtol and atol of mamba_ssm's own tests.
TOLERANCE = {torch.float32: (6e-4, 2e-3), torch.float16: (3e-3, 5e-3), torch.bfloat16: (3e-2, 5e-2)}
TYPES = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
BATCH, CHANNELS, STATES, LENGTH = 2, 6, 4, 11


def draw(*shape, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(shape, generator=generator).to(dtype)


def assert_like(actual, expected, dtype, times=1):
    rtol, atol = TOLERANCE[dtype]
    torch.testing.assert_close(actual.double(), expected, rtol=times * rtol, atol=times * atol)


def scan_case(dtype=torch.float32, *, groups=1, variable_b=True, variable_c=True, D=True, z=True, bias=True):
    def pair(variable, seed):
        shape = (BATCH, groups, STATES, LENGTH) if groups > 1 else (BATCH, STATES, LENGTH)
        return draw(*shape, seed=seed, dtype=dtype) if variable else draw(CHANNELS, STATES, seed=seed)

    tokens = (BATCH, CHANNELS, LENGTH)
    return {
        "u": draw(*tokens, dtype=dtype),
        "delta": 0.5 * draw(*tokens, seed=1, dtype=dtype),
        "A": -torch.exp(draw(CHANNELS, STATES, seed=2)),
        "B": pair(variable_b, 3),
        "C": pair(variable_c, 4),
        "D": draw(CHANNELS, seed=5) if D else None,
        "z": draw(*tokens, seed=6, dtype=dtype) if z else None,
        "delta_bias": draw(CHANNELS, seed=7) - 1 if bias else None,
    }


def expected_scan(case, softplus=True):
    values = dict(case)
    return mathematics.scan(
        values["u"], values["delta"], values["A"], values["B"], values["C"], values["D"], values["z"],
        values["delta_bias"], softplus,
    )  # fmt: skip


@TYPES
@pytest.mark.parametrize(
    ("D", "z", "bias", "softplus"), list(itertools.product((True, False), repeat=4)), ids=lambda v: "10"[not v]
)
def test_selective_scan_fn_in_its_sixteen_combinations(dtype, D, z, bias, softplus):
    case = scan_case(dtype, D=D, z=z, bias=bias)
    if not softplus:
        case["delta"] = case["delta"].abs() * 0.2
        case["delta_bias"] = None if case["delta_bias"] is None else case["delta_bias"].abs() * 0.1
    y, last = scan.selective_scan_fn(**case, delta_softplus=softplus, return_last_state=True)
    plain, gated, state = expected_scan(case, softplus)
    assert y.dtype == dtype
    assert_like(y, gated if z else plain, dtype)
    assert_like(last, state, dtype)


@TYPES
@pytest.mark.parametrize(("variable_b", "variable_c"), [(True, False), (False, True), (False, False)])
def test_constant_b_and_c(dtype, variable_b, variable_c):
    case = scan_case(dtype, variable_b=variable_b, variable_c=variable_c)
    assert_like(scan.selective_scan_fn(**case, delta_softplus=True), expected_scan(case)[1], dtype)


@TYPES
@pytest.mark.parametrize("groups", [2, 3])
def test_channels_read_the_group_they_belong_to(dtype, groups):
    case = scan_case(dtype, groups=groups)
    assert_like(scan.selective_scan_fn(**case, delta_softplus=True), expected_scan(case)[1], dtype)


def test_groups_of_b_and_c_may_differ():
    case = scan_case(groups=3) | {"C": draw(BATCH, STATES, LENGTH, seed=4)}
    assert_like(scan.selective_scan_fn(**case, delta_softplus=True), expected_scan(case)[1], torch.float32)


@TYPES
def test_the_kernel_gives_the_plain_and_the_gated_output_and_the_chunks_states(dtype):
    case = scan_case(dtype, groups=2)
    plain, gated, state = expected_scan(case)
    out, x, out_z = scan.kernel_fwd("selective_scan_cuda")(*case.values(), True)
    assert_like(out, plain, dtype)
    assert_like(out_z, gated, dtype)
    assert_like(x[:, :, -1, 1::2], state, dtype)


ORDERS = {
    "mamba_ssm": lambda u, dt, A, B, C, D, bias: (u, dt, A, B, C, D, None, bias, True),
    "mamba_ssm with nrows": lambda u, dt, A, B, C, D, bias: (u, dt, A, B, C, D, None, bias, True, 1),
    "VMamba core": lambda u, dt, A, B, C, D, bias: (u, dt, A, B, C, D, bias, True, 1),
    "VMamba core without nrows": lambda u, dt, A, B, C, D, bias: (u, dt, A, B, C, D, bias, True),
    "VMamba oflex": lambda u, dt, A, B, C, D, bias: (u, dt, A, B, C, D, bias, True, 1, False),
}


@TYPES
@pytest.mark.parametrize("order", ORDERS)
def test_every_argument_order_of_the_extensions(dtype, order):
    case = scan_case(dtype, groups=2, z=False)
    values = [case[name] for name in ("u", "delta", "A", "B", "C", "D", "delta_bias")]
    out, x = scan.kernel_fwd("selective_scan_cuda_core")(*ORDERS[order](*values))
    plain, _, state = expected_scan(case)
    assert out.dtype == dtype
    assert_like(out, plain, dtype)
    assert_like(x[:, :, -1, 1::2], state, dtype)


def test_oflex_gives_float32_where_it_is_asked_to():
    case = scan_case(torch.float16, z=False)
    arguments = [case[n] for n in ("u", "delta", "A", "B", "C", "D", "delta_bias")]
    assert scan.kernel_fwd("selective_scan_cuda_oflex")(*arguments, True, 1, True)[0].dtype == torch.float32


def test_one_state_and_no_c():
    case = scan_case(z=False) | {"A": -torch.exp(draw(CHANNELS, 1)), "B": draw(BATCH, 1, LENGTH, seed=3)}
    u, delta, A, B, D, bias = (case[n] for n in ("u", "delta", "A", "B", "D", "delta_bias"))
    expected = mathematics.scan(u, delta, A, B, torch.ones_like(B), D, None, bias, True)[0]
    out, _ = scan.state_fwd(u, delta, A, B[:, None], D, bias, True, 1, True)
    assert out.shape == (BATCH, CHANNELS, 1, LENGTH)
    assert_like(out[:, :, 0], expected, torch.float32)
    C = draw(BATCH, 1, LENGTH, seed=4)
    nd = scan.one_state_fwd(u, delta, A[:, 0], B, C, D, bias, True)[0]
    assert_like(nd, mathematics.scan(u, delta, A, B, C, D, None, bias, True)[0], torch.float32)


def test_planted_swapped_b_and_c_and_a_dropped_delta_bias_are_seen():
    case = scan_case()
    gated = expected_scan(case)[1]
    for wrong in ({"B": case["C"], "C": case["B"]}, {"delta_bias": None}):
        y = scan.selective_scan_fn(**(case | wrong), delta_softplus=True)
        with pytest.raises(AssertionError):
            assert_like(y, gated, torch.float32)


@pytest.mark.parametrize("gated", [True, False])
def test_gradients_of_the_scan_are_those_of_the_mathematics(gated):
    case = scan_case(groups=2, z=gated)
    tensors = {n: v.double().requires_grad_() for n, v in case.items() if v is not None}
    absent = {n: None for n in case if n not in tensors}
    weight = draw(BATCH, CHANNELS, LENGTH, seed=9).double()
    y = scan.selective_scan_fn(**tensors, **absent, delta_softplus=True)
    actual = torch.autograd.grad((y * weight).sum(), list(tensors.values()))
    plain, with_gate, _ = expected_scan(tensors | absent)
    expected = torch.autograd.grad(((with_gate if gated else plain) * weight).sum(), list(tensors.values()))
    for name, a, b in zip(tensors, actual, expected, strict=True):
        torch.testing.assert_close(a, b, msg=lambda text, name=name: f"{name}: {text}")


def test_the_kernels_backward_gives_the_gradients_in_its_own_order():
    case = scan_case(groups=2)
    names = ("u", "delta", "A", "B", "C", "D", "delta_bias", "z")
    dout = draw(BATCH, CHANNELS, LENGTH, seed=9)
    tensors = {n: case[n].requires_grad_() for n in names}
    y = scan.selective_scan_fn(**tensors, delta_softplus=True)
    expected = torch.autograd.grad(y, [tensors[n] for n in names], dout)
    u, dt, A, B, C, D, bias, z = (tensors[n].detach() for n in names)
    given = torch.empty_like(z)
    *actual, out_z = scan.kernel_bwd("selective_scan_cuda")(
        u, dt, A, B, C, D, z, bias, dout, None, None, given, True, True
    )
    for name, a, b in zip(names, actual, expected, strict=True):
        torch.testing.assert_close(a, b, msg=lambda text, name=name: f"{name}: {text}")
    assert torch.equal(given, actual[-1])
    torch.testing.assert_close(out_z, y.detach())
    core = scan.kernel_bwd("selective_scan_cuda_core")(u, dt, A, B, C, D, bias, dout, None, True, 1)
    plain = scan.selective_scan_fn(**(tensors | {"z": None}), delta_softplus=True)
    for a, b in zip(core, torch.autograd.grad(plain, [tensors[n] for n in names[:7]], dout), strict=True):
        torch.testing.assert_close(a, b)


CONV_ORDERS = {"0": (True,), "1": (None, True), "3": (None, None, None, True), "4": (None, None, None, None, True)}


@TYPES
@pytest.mark.parametrize("order", CONV_ORDERS)
def test_the_convolution_in_every_argument_order(dtype, order):
    x, weight, bias = draw(2, 6, 9, dtype=dtype), draw(6, 4, dtype=dtype), draw(6, dtype=dtype)
    y = conv.causal_conv1d_fwd(x, weight, bias, *CONV_ORDERS[order])
    assert_like(y, mathematics.convolution(x, weight, bias, silu=True), dtype)
    if order == "4":
        out = torch.empty_like(x)
        conv.causal_conv1d_fwd(x, weight, bias, None, None, out, None, True)
        assert torch.equal(out, y)


@pytest.mark.parametrize("activation", [None, "silu", "swish"])
@pytest.mark.parametrize("with_bias", [True, False])
def test_causal_conv1d_fn_and_its_first_release(activation, with_bias):
    x, weight, bias = draw(2, 6, 9), draw(6, 1, 3), draw(6) if with_bias else None
    expected = mathematics.convolution(x, weight, bias, silu=activation is not None)
    assert_like(conv.causal_conv1d_fn(x, weight, bias, activation=activation), expected, torch.float32)
    assert_like(conv.causal_conv1d_fn(x, weight, bias, activation), expected, torch.float32)


def test_gradients_of_the_convolution():
    x, weight, bias = (v.double().requires_grad_() for v in (draw(2, 6, 9), draw(6, 4), draw(6)))
    dout = draw(2, 6, 9, seed=3).double()
    expected = torch.autograd.grad(mathematics.convolution(x, weight, bias, silu=True), (x, weight, bias), dout)
    y = conv.causal_conv1d_fn(x, weight, bias, activation="silu")
    plain = [v.detach() for v in (x, weight, bias)]
    given = torch.empty_like(x)
    compiled = conv.causal_conv1d_bwd(*plain, dout, None, given, True)
    for a, b, c in zip(expected, torch.autograd.grad(y, (x, weight, bias), dout), compiled, strict=True):
        torch.testing.assert_close(b, a)
        torch.testing.assert_close(c, a)
    assert torch.equal(given, compiled[0])


def inner_case(dtype=torch.float32, rank=2):
    return [
        draw(BATCH, 2 * CHANNELS, LENGTH, dtype=dtype),
        draw(CHANNELS, 1, 4, dtype=dtype),
        draw(CHANNELS, dtype=dtype),
        0.5 * draw(rank + 2 * STATES, CHANNELS, dtype=dtype),
        draw(CHANNELS, rank, dtype=dtype),
    ]


@TYPES
def test_the_fused_functions_are_the_mixer(dtype):
    weights, out = inner_case(dtype), draw(5, CHANNELS, dtype=dtype)
    A, D, bias = -torch.exp(draw(CHANNELS, STATES)), draw(CHANNELS), draw(CHANNELS) - 1
    expected = mathematics.mixer(*weights, A, D, bias)
    # Projections round in half precision between the parts: five times the scan's own tolerance.
    y = inner.mamba_inner_fn_no_out_proj(*weights, A, None, None, D, delta_bias=bias, delta_softplus=True)
    assert_like(y, expected, dtype, times=5)
    y = inner.mamba_inner_fn(*weights, out, None, A, None, None, D, delta_bias=bias, delta_softplus=True)
    assert_like(y, torch.einsum("de,bel->bld", out.double(), expected), dtype, times=10)


def test_the_bidirectional_function_scans_the_convolved_tokens_again():
    weights, out = inner_case(), draw(5, CHANNELS)
    A, A_b, D, bias = (draw(CHANNELS, STATES, seed=s).exp().neg() for s in (1, 2)), None, draw(CHANNELS), draw(CHANNELS)
    A, A_b = A
    y = inner.bimamba_inner_fn(*weights, out, None, A, A_b, None, None, D, delta_bias=bias, delta_softplus=True)
    xz, conv_w, conv_b, x_proj, dt_proj = weights
    x, z = xz.chunk(2, dim=1)
    u = mathematics.convolution(x, conv_w, conv_b, silu=True)
    dt, B, C = torch.einsum("ke,bel->bkl", x_proj.double(), u).split([2, STATES, STATES], dim=1)
    delta = torch.einsum("er,brl->bel", dt_proj.double(), dt)
    forth = mathematics.scan(u, delta, A, B, C, D, z, bias, True)[1]
    back = mathematics.scan(*(v.flip(-1) for v in (u, delta)), A_b, B.flip(-1), C.flip(-1), D, z.flip(-1), bias, True)[
        1
    ]
    expected = torch.einsum("de,bel->bld", out.double(), forth + back.flip(-1))
    assert_like(y, expected, torch.float32)


@TYPES
@pytest.mark.parametrize("rms", [True, False], ids=["rms", "layer"])
@pytest.mark.parametrize("prenorm", [True, False])
@pytest.mark.parametrize("residual", ["float32", "none", "same"])
def test_norms_with_residual(dtype, rms, prenorm, residual):
    x, weight, bias = draw(2, 5, 8, dtype=dtype), draw(8, seed=1) + 2, draw(8, seed=2)
    kept = {"none": None, "float32": draw(2, 5, 8, seed=3), "same": draw(2, 5, 8, seed=3, dtype=dtype)}[residual]
    total = x.double() if kept is None else x.double() + kept.double()
    result = norms.layer_norm_fn(
        x, weight, bias, kept, eps=1e-5, prenorm=prenorm, residual_in_fp32=True, is_rms_norm=rms
    )
    y = result[0] if prenorm else result
    assert y.dtype == dtype
    assert_like(y, mathematics.norm(total, weight, bias, 1e-5, rms=rms), dtype)
    if prenorm:
        assert result[1].dtype == (kept.dtype if kept is not None else torch.float32)
        assert_like(result[1], total, dtype)


def test_norms_take_the_positions_of_their_first_releases():
    x, weight = draw(2, 5, 8), draw(8) + 2
    expected = mathematics.norm(x, weight, None, 1e-3, rms=True)
    for rest in ((None, 1e-3, True, True), (None, True, True, 1e-3)):
        y, _ = norms.rms_norm_fn(x, weight, None, *rest)
        assert_like(y, expected, torch.float32)
    assert_like(norms.layer_norm_fwd(x, weight, None, 1e-3, is_rms_norm=True)[0], expected, torch.float32)


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("group", [None, 4])
def test_the_gated_norm(before, group):
    x, weight, z = draw(2, 5, 8), draw(8) + 2, draw(2, 5, 8, seed=4)
    gate = torch.nn.functional.silu(z.double())
    source = x.double() if before else x.double() * gate
    parts = source.unflatten(-1, (-1, group or 8))
    expected = mathematics.norm(parts, torch.ones(group or 8), None, 1e-5, rms=True).flatten(-2) * weight.double()
    expected = expected * gate if before else expected
    assert_like(norms.rmsnorm_fn(x, weight, None, z, 1e-5, group, before), expected, torch.float32)
    module = norms.RMSNormGated(8, 1e-5, group, before)
    module.weight.data = weight
    assert_like(module(x, z), expected, torch.float32)


def ssd_case(dtype=torch.float32, heads=4, size=3, groups=2, states=8):
    return {
        "x": draw(BATCH, LENGTH, heads, size, dtype=dtype),
        "dt": draw(BATCH, LENGTH, heads, dtype=dtype),
        "A": -torch.exp(draw(heads)),
        "B": draw(BATCH, LENGTH, groups, states, seed=1, dtype=dtype),
        "C": draw(BATCH, LENGTH, groups, states, seed=2, dtype=dtype),
    }


@TYPES
@pytest.mark.parametrize("D", [None, 1, 2])
@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("limit", [None, (0.1, 0.5)])
def test_mamba_2s_scan_is_its_masked_product(dtype, D, gated, limit):
    case = ssd_case(dtype)
    bias = draw(4, seed=5)
    skip = None if D is None else draw(*((4,) if D == 1 else (4, 3)), seed=6)
    z = draw(BATCH, LENGTH, 4, 3, seed=7, dtype=dtype) if gated else None
    named = {} if limit is None else {"dt_limit": limit}
    y, final = ssd.mamba_chunk_scan_combined(
        **case, chunk_size=4, D=skip, z=z, dt_bias=bias, dt_softplus=True, return_final_states=True, **named
    )
    expected, state = mathematics.duality(*case.values(), skip, z, bias, True, limit)
    assert_like(y, expected, dtype, times=2)
    assert_like(final, state, dtype, times=2)


REFUSED = {
    "seq_idx": lambda: conv.causal_conv1d_fn(draw(1, 2, 3), draw(2, 2), None, torch.zeros(1, 3)),
    "initial_states": lambda: conv.causal_conv1d_fn(draw(1, 2, 3), draw(2, 2), initial_states=draw(1, 2, 1)),
    "complex A": lambda: scan.selective_scan_fn(**(scan_case() | {"A": torch.zeros(CHANNELS, STATES) * 1j})),
    "initial_states of SSD": lambda: ssd.mamba_chunk_scan_combined(**ssd_case(), initial_states=draw(1)),
    "cu_seqlens": lambda: ssd.mamba_chunk_scan_combined(**ssd_case(), cu_seqlens=draw(1)),
    "inference_params": lambda: mamba.Mamba(8)(draw(1, 3, 8), inference_params=object()),
    "step": lambda: conv.causal_conv1d_update(draw(1, 2)),
    "second branch": lambda: norms.layer_norm_fn(draw(1, 2), draw(2), None, x1=draw(1, 2)),
    "dropout": lambda: norms.layer_norm_fn(draw(1, 2), draw(2), None, dropout_p=0.1),
    "process_group": lambda: mamba.Mamba2(64, process_group=object()),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_supported_is_refused_by_name(case):
    with pytest.raises(UnsupportedCallError) as caught:
        REFUSED[case]()
    assert case.split()[0] in str(caught.value)
    assert caught.value.hint
