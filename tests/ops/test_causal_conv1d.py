import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vimdeploy.ops.conv import causal_conv1d, causal_conv1d_differentiable, causal_conv1d_reference

pytestmark = pytest.mark.usefixtures("computed_by")


HALF = {torch.float16: 2e-3, torch.bfloat16: 2e-2}


def make(batch=2, length=5, channels=3, width=4, groups=2, *, seed=0, dtype=torch.float32):
    random = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(shape, generator=random, dtype=torch.float64).to(dtype)

    return draw(batch, length, channels), draw(groups, channels, width), draw(groups, channels)


@st.composite
def cases(draw):
    groups = draw(st.integers(1, 4))
    shape = [draw(st.integers(1, high)) for high in (3, 9, 5, 5)]
    directions = draw(st.lists(st.sampled_from((1, -1)), min_size=groups, max_size=groups))
    tensors = make(*shape, groups, seed=draw(st.integers(0, 99)))
    return (*tensors, directions, draw(st.sampled_from(("silu", "none"))))


@settings(max_examples=60, deadline=None)
@given(cases())
def test_the_op_and_its_differentiable_form_equal_the_loop(case):
    expected = causal_conv1d_reference(*case)
    torch.testing.assert_close(causal_conv1d(*case), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(causal_conv1d_differentiable(*case), expected, atol=1e-5, rtol=1e-5)


def test_a_forward_group_sees_no_later_token_and_a_backward_group_no_earlier_one():
    x, weight, bias = make(length=7)
    before = causal_conv1d(x, weight, bias, [1, -1], "none")
    x[:, 3] += 1
    changed = (causal_conv1d(x, weight, bias, [1, -1], "none") != before).any(-1).any(1)
    assert changed.tolist() == [[t in range(3, 7) for t in range(7)], [t in range(4) for t in range(7)]]


def test_a_backward_group_is_the_forward_one_on_the_reversed_sequence_with_the_flipped_kernel():
    x, weight, bias = make(groups=1)
    backward = causal_conv1d(x, weight.flip(-1), bias, [-1], "silu")
    torch.testing.assert_close(backward, causal_conv1d(x.flip(1), weight, bias, [1], "silu").flip(2))


def test_it_is_the_depthwise_convolution_of_torch_cut_to_the_sequence():
    x, weight, bias = make(length=6, groups=1)
    conv = torch.nn.functional.conv1d(x.transpose(1, 2), weight[0][:, None], bias[0], padding=3, groups=3)
    torch.testing.assert_close(causal_conv1d(x, weight, bias, [1], "none")[0], conv[..., :6].transpose(1, 2))


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_half_precision_is_accumulated_in_float32_and_rounded_once(dtype):
    x, weight, bias = make(length=9, dtype=dtype)
    result = causal_conv1d(x, weight, bias, [1, -1], "silu")
    exact = causal_conv1d(x.float(), weight.float(), bias.float(), [1, -1], "silu")
    assert result.dtype == dtype
    assert torch.equal(result, exact.to(dtype))
    torch.testing.assert_close(
        result, causal_conv1d_reference(x, weight, bias, [1, -1], "silu"), atol=HALF[dtype], rtol=HALF[dtype]
    )


def test_the_differentiable_form_has_the_gradients_of_the_function():
    tensors = [t.requires_grad_() for t in make(batch=1, length=4, channels=2, width=3, dtype=torch.float64)]
    assert torch.autograd.gradcheck(lambda *a: causal_conv1d_differentiable(*a, [1, -1], "silu"), tensors)


def test_torch_accepts_the_registration_of_the_op():
    torch.library.opcheck(torch.ops.vimdeploy.causal_conv1d.default, (*make(), [1, -1], "silu"))


def test_non_contiguous_inputs_give_the_same():
    x, weight, bias = make()
    strided = x.transpose(0, 1).contiguous().transpose(0, 1)
    assert not strided.is_contiguous()
    assert torch.equal(
        causal_conv1d(strided, weight, bias, [1, -1], "silu"), causal_conv1d(x, weight, bias, [1, -1], "silu")
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"x": torch.zeros(5, 3)}, "expected x"),
        ({"x": torch.zeros(2, 5, 4)}, "x has shape"),
        ({"weight": torch.zeros(2, 4, 4)}, "x has shape"),
        ({"weight": torch.zeros(3, 4)}, "expected x"),
        ({"bias": torch.zeros(1, 3)}, "bias has shape"),
        ({"directions": [1]}, "directions"),
        ({"directions": [1, 0]}, "directions"),
        ({"directions": [1, 2]}, "directions"),
        ({"activation": "relu"}, "activation"),
    ],
)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_what_does_not_fit_the_contract_is_refused_in_eager_and_in_tracing(change, words, device):
    x, weight, bias = make()
    arguments = {"x": x, "weight": weight, "bias": bias, "directions": [1, -1], "activation": "silu"} | change
    arguments = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in arguments.items()}
    with pytest.raises(ValueError, match=words):
        causal_conv1d(**arguments)
