from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vimdeploy.ops import recurrence
from vimdeploy.ops.scan import selective_scan, selective_scan_differentiable, selective_scan_reference

pytestmark = pytest.mark.usefixtures("computed_by")


CLOSE = {"atol": 1e-5, "rtol": 1e-4}
HALF = {torch.float16: 2e-3, torch.bfloat16: 2e-2}


def make(
    batch=2, rows=2, columns=3, channels=3, d_state=4, rank=2, directions=(1, -1), column_major=None, *,
    shared_u=False, shared_x=False, gated=True, scale=0.5, seed=0, dtype=torch.float32,
):  # fmt: skip
    """Return the arguments of the op in order; A, D and dt_bias stay float32 as the contract wants."""
    random = torch.Generator().manual_seed(seed)
    groups, length = len(directions), rows * columns
    exact = torch.float64 if dtype == torch.float64 else torch.float32

    def draw(*shape, dtype=dtype):
        return torch.randn(shape, generator=random, dtype=torch.float64).to(dtype)

    u = draw(1 if shared_u else groups, batch, length, channels)
    x_dbl = draw(1 if shared_x else groups, batch, length, rank + 2 * d_state)
    A = -torch.exp(0.5 * draw(groups, channels, d_state, dtype=exact))
    D, dt_bias = draw(groups, channels, dtype=exact), draw(groups, channels, dtype=exact) - 2
    z = draw(batch, length, channels) if gated else None
    walks = list(column_major or [0] * groups)
    return [u, x_dbl, A, D, draw(groups, channels, rank), dt_bias, z, list(directions), walks, rows, scale]


@st.composite
def cases(draw):
    groups = draw(st.integers(1, 4))
    sizes = [draw(st.integers(1, high)) for high in (3, 4, 4, 5, 5, 3)]
    directions = draw(st.lists(st.sampled_from((1, -1)), min_size=groups, max_size=groups))
    walks = draw(st.lists(st.sampled_from((0, 1)), min_size=groups, max_size=groups))
    flags = {name: draw(st.booleans()) for name in ("shared_u", "shared_x", "gated")}
    scale, seed = draw(st.sampled_from((0.5, 1.0))), draw(st.integers(0, 99))
    return make(*sizes, directions, walks, **flags, scale=scale, seed=seed)


@settings(max_examples=60, deadline=None)
@given(cases(), st.sampled_from((1, 400, 1 << 20)))
def test_the_op_and_its_differentiable_form_equal_the_loop_wherever_the_chunks_end(case, chunk_bytes):
    expected = selective_scan_reference(*case)
    with mock.patch.object(recurrence, "CHUNK_BYTES", chunk_bytes):
        torch.testing.assert_close(selective_scan(*case), expected, **CLOSE)
        torch.testing.assert_close(selective_scan_differentiable(*case), expected, **CLOSE)


@pytest.mark.parametrize("direction", [1, -1])
def test_a_token_is_seen_by_itself_and_those_its_group_visits_later(direction):
    case = make(rows=1, columns=6, directions=(direction,))
    before = selective_scan(*case)
    case[0][:, :, 2] += 1
    changed = (selective_scan(*case) != before).any(-1).any(0).tolist()
    assert changed == [t >= 2 if direction == 1 else t <= 2 for t in range(6)]


def test_a_backward_group_is_the_forward_one_on_the_reversed_sequence():
    u, x_dbl, *rest, z, _, walks, rows, scale = make(directions=(1,))
    forward = selective_scan(u.flip(2), x_dbl.flip(2), *rest, z.flip(1), [1], walks, rows, scale).flip(1)
    torch.testing.assert_close(selective_scan(u, x_dbl, *rest, z, [-1], walks, rows, scale), forward)


def test_a_column_major_group_is_the_row_major_one_on_the_transposed_grid():
    u, x_dbl, *rest, z, directions, _, rows, scale = make(rows=2, columns=3, directions=(1,))

    def turn(v, h):
        return v.unflatten(-2, (h, -1)).transpose(-3, -2).flatten(-3, -2)

    turned = selective_scan(turn(u, 2), turn(x_dbl, 2), *rest, turn(z, 2), directions, [0], 1, scale)
    torch.testing.assert_close(selective_scan(u, x_dbl, *rest, z, directions, [1], rows, scale), turn(turned, 3))


def test_groups_are_summed_and_scaled():
    u, x_dbl, A, D, w, b, z, directions, walks, rows, scale = make()
    parts = [
        selective_scan(u[g : g + 1], x_dbl[g : g + 1], A[g : g + 1], D[g : g + 1], w[g : g + 1], b[g : g + 1], z,
                       [d], [0], rows, 1.0)
        for g, d in enumerate(directions)
    ]  # fmt: skip
    torch.testing.assert_close(
        selective_scan(u, x_dbl, A, D, w, b, z, directions, walks, rows, scale), scale * sum(parts)
    )


@pytest.mark.parametrize("part", [0, 1, 2, 3, 4, 5, 6], ids=["u", "x_dbl", "A", "D", "dt_weight", "dt_bias", "z"])
def test_every_input_matters(part):
    case = make()
    before = selective_scan(*case)
    case[part] = case[part] * 1.5
    assert not torch.allclose(selective_scan(*case), before, atol=1e-3)


def test_a_large_dt_goes_through_softplus_unchanged():
    case = make(seed=3)
    case[5] = torch.full_like(case[5], 90.0)  # exp(90) is beyond float32's softplus without its threshold
    torch.testing.assert_close(selective_scan(*case), selective_scan_reference(*case), **CLOSE)
    assert selective_scan(*case).isfinite().all()


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_half_precision_keeps_the_state_in_float32_and_rounds_once(dtype):
    case = make(rows=1, columns=40, dtype=dtype)
    result = selective_scan(*case)
    exact = selective_scan(*(v.float() if isinstance(v, torch.Tensor) else v for v in case))
    assert result.dtype == dtype
    assert torch.equal(result, exact.to(dtype))
    torch.testing.assert_close(result, selective_scan_reference(*case), atol=HALF[dtype], rtol=HALF[dtype])


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_without_a_gate_the_result_is_float32_whatever_goes_in(dtype):
    case = make(gated=False, dtype=dtype)
    result = selective_scan(*case)
    assert result.dtype == torch.float32
    assert selective_scan(*(v.to("meta") if isinstance(v, torch.Tensor) else v for v in case)).dtype == torch.float32
    torch.testing.assert_close(result, selective_scan_reference(*case), **CLOSE)


@pytest.mark.parametrize("gated", [True, False])
def test_the_differentiable_form_has_the_gradients_of_the_function(gated):
    case = make(1, 2, 2, 2, 2, 1, (1, -1), (0, 1), shared_x=True, gated=gated, dtype=torch.float64)
    tensors = [v.requires_grad_() for v in case[:7] if v is not None]
    rest = case[7:] if gated else [None, *case[7:]]
    assert torch.autograd.gradcheck(lambda *a: selective_scan_differentiable(*a, *rest), tensors)


@pytest.mark.parametrize("gated", [True, False])
def test_torch_accepts_the_registration_of_the_op(gated):
    torch.library.opcheck(torch.ops.vimdeploy.selective_scan.default, tuple(make(gated=gated)))


def test_non_contiguous_inputs_give_the_same():
    case = make()
    strided = [v.mT.contiguous().mT if isinstance(v, torch.Tensor) and v.dim() > 2 else v for v in case]
    assert not strided[0].is_contiguous()
    torch.testing.assert_close(selective_scan(*strided), selective_scan(*case))


def test_inputs_are_left_as_they_were():
    case = make()
    copies = [v.clone() for v in case[:7]]
    selective_scan(*case)
    assert all(torch.equal(a, b) for a, b in zip(case[:7], copies, strict=True))


def test_a_compiled_function_holds_the_op_in_one_graph():
    def mix(*tensors):
        return selective_scan(*tensors, [1, -1], [0, 0], 1, 0.5) + 1

    tensors = make(rows=1)[:7]
    compiled = torch.compile(mix, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*tensors), mix(*tensors))


NAMES = ("u", "x_dbl", "A", "D", "dt_weight", "dt_bias", "z", "directions", "column_major", "height", "scale")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"u": torch.zeros(2, 6, 3)}, "u"),
        ({"u": torch.zeros(3, 2, 6, 3)}, "u has 3 groups"),
        ({"u": torch.zeros(2, 2, 6, 4)}, "u has shape|x_dbl|channels"),
        ({"x_dbl": torch.zeros(2, 2, 6, 9)}, "x_dbl has shape"),
        ({"x_dbl": torch.zeros(2, 2, 5, 10)}, "x_dbl has shape"),
        ({"x_dbl": torch.zeros(3, 2, 6, 10)}, "x_dbl has 3 groups"),
        ({"A": torch.zeros(3, 4)}, "A"),
        ({"D": torch.zeros(2, 4)}, "D has shape"),
        ({"dt_weight": torch.zeros(1, 3, 2)}, "dt_weight has shape"),
        ({"dt_bias": torch.zeros(3)}, "dt_bias has shape"),
        ({"z": torch.zeros(2, 5, 3)}, "z has shape"),
        ({"directions": [1]}, "directions"),
        ({"directions": [1, 3]}, "directions"),
        ({"column_major": [0]}, "column_major"),
        ({"column_major": [0, 2]}, "column_major"),
        ({"column_major": [0, 1], "height": 4}, "grid of height 4"),
        ({"column_major": [0, 1], "height": 0}, "grid of height 0"),
    ],
)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_what_does_not_fit_the_contract_is_refused_in_eager_and_in_tracing(change, words, device):
    arguments = dict(zip(NAMES, make(), strict=True)) | change
    arguments = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in arguments.items()}
    with pytest.raises(ValueError, match=words):
        selective_scan(**arguments)
