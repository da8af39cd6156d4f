from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vimdeploy.ops import recurrence
from vimdeploy.ops.scan_delta import (
    selective_scan_delta,
    selective_scan_delta_differentiable,
    selective_scan_delta_reference,
)

pytestmark = pytest.mark.usefixtures("computed_by")


CLOSE = {"atol": 1e-5, "rtol": 1e-4}
NAMES = ("u", "delta", "A", "B", "C", "D", "delta_bias", "z")


def make(
    batch=2, length=7, size=3, groups=2, d_state=4, *, gated=True, softplus=True, reverse=False, seed=0,
    dtype=torch.float32,
):  # fmt: skip
    """Return the arguments of the op in order; A, D and delta_bias stay float32 as the contract wants."""
    random = torch.Generator().manual_seed(seed)
    channels = size * groups
    exact = torch.float64 if dtype == torch.float64 else torch.float32

    def draw(*shape, dtype=dtype):
        return torch.randn(shape, generator=random, dtype=torch.float64).to(dtype)

    delta = draw(batch, length, channels)
    if not softplus:
        delta = delta.abs() * 0.3
    return [
        draw(batch, length, channels),
        delta,
        -torch.exp(0.5 * draw(channels, d_state, dtype=exact)),
        draw(batch, length, groups, d_state),
        draw(batch, length, groups, d_state),
        draw(channels, dtype=exact),
        draw(channels, dtype=exact) - 2 if softplus else torch.zeros(channels, dtype=exact),
        draw(batch, length, channels) if gated else None,
        softplus,
        reverse,
    ]


@st.composite
def cases(draw):
    sizes = [draw(st.integers(1, high)) for high in (3, 9, 4, 4, 5)]
    flags = {name: draw(st.booleans()) for name in ("gated", "softplus", "reverse")}
    return make(*sizes, **flags, seed=draw(st.integers(0, 99)))


@settings(max_examples=60, deadline=None)
@given(cases(), st.sampled_from((1, 400, 1 << 20)))
def test_the_op_and_its_differentiable_form_equal_the_loop_wherever_the_chunks_end(case, chunk_bytes):
    expected = selective_scan_delta_reference(*case)
    with mock.patch.object(recurrence, "CHUNK_BYTES", chunk_bytes):
        torch.testing.assert_close(selective_scan_delta(*case), expected, **CLOSE)
        torch.testing.assert_close(selective_scan_delta_differentiable(*case), expected, **CLOSE)


def test_a_group_is_the_op_on_its_own_channels():
    u, delta, A, B, C, D, bias, z, *flags = make(size=3, groups=2)
    whole = selective_scan_delta(u, delta, A, B, C, D, bias, z, *flags)
    for g in range(2):
        part, own = slice(3 * g, 3 * g + 3), slice(g, g + 1)
        alone = selective_scan_delta(
            u[..., part], delta[..., part], A[part], B[:, :, own], C[:, :, own], D[part], bias[part], z[..., part],
            *flags,
        )  # fmt: skip
        torch.testing.assert_close(whole[..., part], alone)


def test_walking_backward_is_walking_the_reversed_tokens_forward():
    case = make()
    turned = [v.flip(1) if i in (0, 1, 3, 4, 7) else v for i, v in enumerate(case)]
    torch.testing.assert_close(selective_scan_delta(*case[:-1], True), selective_scan_delta(*turned).flip(1))


@pytest.mark.parametrize("part", range(8), ids=NAMES)
def test_every_input_matters(part):
    case = make()
    before = selective_scan_delta(*case)
    case[part] = case[part] * 1.5
    assert not torch.allclose(selective_scan_delta(*case), before, atol=1e-3)


def test_swapped_b_and_c_give_something_else():
    case = make()
    swapped = [*case[:3], case[4], case[3], *case[5:]]
    assert not torch.allclose(selective_scan_delta(*case), selective_scan_delta(*swapped), atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("gated", [True, False], ids=["gate", "no gate"])
def test_half_precision_keeps_the_state_in_float32_and_rounds_once(dtype, gated):
    case = make(length=40, dtype=dtype, gated=gated)
    result = selective_scan_delta(*case)
    exact = selective_scan_delta(*(v.float() if isinstance(v, torch.Tensor) else v for v in case))
    assert result.dtype == (dtype if gated else torch.float32)
    assert torch.equal(result, exact.to(result.dtype))


def test_the_gradients_are_those_of_numerical_differentiation():
    case = make(1, 3, 2, 2, 2, dtype=torch.float64)
    tensors = [v.requires_grad_() for v in case[:8]]
    assert torch.autograd.gradcheck(lambda *v: selective_scan_delta(*v, True, False), tensors)
    assert torch.autograd.gradcheck(lambda *v: selective_scan_delta(*v[:7], None, False, True), tensors[:7])


@pytest.mark.parametrize("gated", [True, False], ids=["gate", "no gate"])
def test_the_op_keeps_torchs_rules_for_custom_ops(gated):
    case = make(gated=gated)
    tensors = [v.requires_grad_() if isinstance(v, torch.Tensor) else v for v in case]
    torch.library.opcheck(torch.ops.vimdeploy.selective_scan_delta.default, tuple(tensors))


@pytest.mark.parametrize("part", range(8), ids=NAMES)
def test_a_shape_that_does_not_fit_is_named(part):
    case = make()
    case[part] = torch.cat([case[part], case[part]], dim=-1)
    with pytest.raises(ValueError, match=r"selective_scan_delta: "):
        selective_scan_delta(*case)


def test_inputs_of_different_types_are_refused_by_name():
    case = make()
    case[3] = case[3].half()
    with pytest.raises(ValueError, match=r"B is torch\.float16, u is torch\.float32"):
        selective_scan_delta(*case)
