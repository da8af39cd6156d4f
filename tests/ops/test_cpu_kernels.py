"""The native kernels behind the torch ops: that they are used, held to the contract, and equal everywhere."""

import numpy as np
import pytest
import torch

from vimdeploy import contract
from vimdeploy.errors import ArtifactError
from vimdeploy.native.ops_library import OPS, ops_library
from vimdeploy.ops import causal_conv1d, cpu_kernels, dispatch, selective_scan
from vimdeploy.ops.arguments import Scan, ScanDelta
from vimdeploy.ops.cpu_kernels import CpuKernels

ISAS = ("avx512", "avx2", "neon", "base")
BEST = CpuKernels(ops_library())
HERE = [isa for isa in ISAS if BEST.has_isa(isa)]


def scan(channels=37, length=29, states=16, rank=3, groups=2, dtype=torch.float32, gated=True):
    torch.manual_seed(0)
    draw = torch.randn
    return Scan(
        draw(groups, 2, length, channels).to(dtype),
        draw(1, 2, length, rank + 2 * states).to(dtype),
        -torch.exp(0.5 * draw(groups, channels, states)),
        draw(groups, channels),
        draw(groups, channels, rank).to(dtype),
        draw(groups, channels) - 3,
        draw(2, length, channels).to(dtype) if gated else None,
        [1, -1, 1, -1][:groups],
        [0] * groups,
        1,
        0.5,
    )


def test_they_are_what_runs_on_a_cpu(monkeypatch):
    s = scan()
    monkeypatch.setattr(CpuKernels, "selective_scan", lambda self, s: torch.full(s.result[0], 7.0))
    assert selective_scan(*s).unique().tolist() == [7.0]
    with dispatch.using("torch"):
        assert selective_scan(*s).unique().numel() > 1


def test_the_best_of_this_machine_is_used():
    assert BEST.isa == HERE[0]
    assert "base" in HERE


@pytest.mark.parametrize("isa", HERE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_every_instruction_set_agrees_with_float64(isa, dtype):
    s = scan(dtype=dtype)
    wide = Scan(*(v.double() if isinstance(v, torch.Tensor) else v for v in s))
    with dispatch.using("torch"):
        expected = selective_scan(*wide)
    found = CpuKernels(ops_library(), isa).selective_scan(s)
    assert found.dtype == dtype
    bound = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}[dtype]
    assert (found.double() - expected).abs().max() <= bound * expected.abs().max()


def test_float64_is_computed_in_torch():
    s = Scan(*(v.double() if isinstance(v, torch.Tensor) else v for v in scan()))
    assert BEST.selective_scan(s) is None
    assert selective_scan(*s).dtype == torch.float64


@pytest.mark.parametrize("threads", [2, 3])
def test_threads_do_not_change_a_bit(threads):
    s = scan(channels=300, length=200)
    x, weight, bias = torch.randn(2, 200, 300), torch.randn(2, 300, 4), torch.randn(2, 300)
    before = torch.get_num_threads()
    results = []
    try:
        for n in (1, threads):
            torch.set_num_threads(n)
            results.append((BEST.selective_scan(s), BEST.causal_conv1d(x, weight, bias, [1, -1], "silu")))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, many) for one, many in zip(*results, strict=True))


@pytest.mark.parametrize("isa", HERE)
def test_a_nan_is_not_lost(isa):
    kernels = CpuKernels(ops_library(), isa)
    for name in ("u", "x_dbl", "dt_weight", "dt_bias", "D", "A", "z"):
        s = scan()
        getattr(s, name).view(-1)[0] = torch.nan
        assert kernels.selective_scan(s).isnan().any(), name


@pytest.mark.parametrize("isa", HERE)
def test_decays_that_grow_and_steps_of_any_size_are_computed_as_in_float64(isa):
    """No clamp shows: A may be positive where a caller's is, and a step may be large."""
    s = scan(length=6)
    s.A[:, :3] = 0.5
    s.dt_bias[:, 3:9] = 60.0
    wide = Scan(*(v.double() if isinstance(v, torch.Tensor) else v for v in s))
    with dispatch.using("torch"):
        expected = selective_scan(*wide)
    found = CpuKernels(ops_library(), isa).selective_scan(s).double()
    largest = expected.abs().amax(dim=(0, 1))
    assert ((found - expected).abs().amax(dim=(0, 1)) <= 3e-5 * largest).all()


def test_subnormal_states_cost_nothing_and_the_mode_is_put_back():
    tiny = torch.tensor([1e-40])
    assert (tiny * 0.5).item() > 0
    BEST.selective_scan(scan())
    assert (tiny * 0.5).item() > 0


@pytest.mark.parametrize("isa", HERE)
@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("exp2", np.exp2),
        ("softplus", lambda x: np.logaddexp(0, x)),
        ("silu", lambda x: x / (1 + np.exp(-x))),
    ],
)
def test_functions_of_one_variable_are_good_to_a_few_ulps(isa, name, function):
    largest = {"exp2": 126, "softplus": 80, "silu": 80}[name]
    x = np.linspace(-largest, largest, 1 << 16, dtype="f4")
    found, expected = BEST.function(isa, name, x), function(x.astype("f8"))
    assert np.max(np.abs(found - expected) / np.abs(expected)) < 5 * 2**-24


@pytest.mark.parametrize("op", contract.OPS.values(), ids=lambda op: op.name)
def test_the_library_has_the_signatures_of_the_contract(op):
    inputs = "; ".join(f"{t.name} {t.dtype} {','.join(t.shape)}" for t in op.inputs)
    assert BEST.signature(op.name) == f"{inputs}; -> {op.output.dtype} {','.join(op.output.shape)}"


def test_what_does_not_fit_is_refused_by_name():
    s = scan()
    with pytest.raises(ValueError, match=r"SelectiveScan: D has shape \(2, 36\), expected \(2, 37\)"):
        BEST.selective_scan(s._replace(D=s.D[:, :36]))
    delta = ScanDelta(
        torch.randn(1, 4, 6), torch.randn(1, 4, 6), -torch.ones(6, 2), torch.randn(1, 4, 4, 2),
        torch.randn(1, 4, 4, 2), torch.zeros(6), torch.zeros(6), None, True, False,
    )  # fmt: skip
    with pytest.raises(ValueError, match="6 channels do not fall into 4 groups"):
        BEST.selective_scan_delta(delta)


def test_another_file_is_refused(tmp_path):
    (tmp_path / OPS).write_bytes(b"no library")
    with pytest.raises(ArtifactError, match="is no library of native ops"):
        CpuKernels(tmp_path / OPS)


def test_nothing_of_this_is_traced_into_an_export():
    assert causal_conv1d._opoverload is torch.ops.vimdeploy.causal_conv1d.default
    assert cpu_kernels.cpu_kernels().path == ops_library()
