"""The adapter to the official kernels, with stand-ins of their documented semantics where the kernels need a GPU."""

import sys
import types

import pytest
import torch
import torch.nn.functional as F

from vimdeploy.errors import MissingDependencyError, UsageError
from vimdeploy.ops import causal_conv1d_reference, selective_scan_reference
from vimdeploy.ops.arguments import Scan
from vimdeploy.ops.dispatch import VARIABLE, implementation, using
from vimdeploy.ops.official import official_causal_conv1d, official_selective_scan


def causal_conv1d_fn(x, weight, bias, activation=None):
    """causal_conv1d's documented function: x (B, E, L), weight (E, K)."""
    y = F.conv1d(F.pad(x, (weight.shape[1] - 1, 0)), weight[:, None], bias, groups=len(weight))
    return F.silu(y) if activation == "silu" else y


def selective_scan_fn(u, delta, A, B, C, D, z=None, delta_bias=None, delta_softplus=False):
    """mamba-ssm's documented function: u, delta (B, E, L), A (E, N), B and C (B, N, L)."""
    assert z is None
    delta = delta + delta_bias[:, None]
    delta = F.softplus(delta) if delta_softplus else delta
    h = torch.zeros(*u.shape[:2], A.shape[1])
    out = []
    for t in range(u.shape[2]):
        h = torch.exp(delta[:, :, t, None] * A) * h + (delta[:, :, t] * u[:, :, t])[..., None] * B[:, None, :, t]
        out.append((h * C[:, None, :, t]).sum(-1) + D * u[:, :, t])
    return torch.stack(out, -1)


@pytest.fixture
def official_packages(monkeypatch):
    for name, functions in {
        "causal_conv1d": {"causal_conv1d_fn": causal_conv1d_fn},
        "mamba_ssm": {},
        "mamba_ssm.ops": {},
        "mamba_ssm.ops.selective_scan_interface": {"selective_scan_fn": selective_scan_fn},
    }.items():
        module = types.ModuleType(name)
        module.__spec__ = types.SimpleNamespace(name=name)
        vars(module).update(functions)
        monkeypatch.setitem(sys.modules, name, module)


@pytest.mark.usefixtures("official_packages")
@pytest.mark.parametrize("activation", ["silu", "none"])
def test_convolution_in_both_directions_equals_the_loop(activation):
    x, weight, bias = torch.randn(2, 7, 5), torch.randn(2, 5, 4), torch.randn(2, 5)
    got = official_causal_conv1d(x, weight, bias, [1, -1], activation)
    torch.testing.assert_close(got, causal_conv1d_reference(x, weight, bias, [1, -1], activation))


@pytest.mark.usefixtures("official_packages")
@pytest.mark.parametrize("gated", [True, False])
def test_scan_in_four_walks_equals_the_loop(gated):
    directions, column_major, height = [1, 1, -1, -1], [0, 1, 0, 1], 2
    u, x_dbl = torch.randn(1, 2, 6, 5), torch.randn(4, 2, 6, 3 + 8)
    weights = (-torch.rand(4, 5, 4), torch.randn(4, 5), torch.randn(4, 5, 3), torch.randn(4, 5))
    z = torch.randn(2, 6, 5) if gated else None
    rows = torch.arange(6)
    columns = torch.tensor([0, 3, 1, 4, 2, 5])
    orders = [rows, columns, rows.flip(0), columns.flip(0)]
    scan = Scan(u, x_dbl, *weights, z, directions, column_major, height, 0.5)
    got = official_selective_scan(scan, orders)
    want = selective_scan_reference(*scan)
    torch.testing.assert_close(got, want)


@pytest.mark.usefixtures("official_packages")
def test_an_implementation_is_chosen_by_block_before_environment(monkeypatch):
    assert implementation() == "kernels"
    monkeypatch.setenv(VARIABLE, "mamba-ssm")
    assert implementation() == "mamba-ssm"
    with using("torch"):
        assert implementation() == "torch"
    assert implementation() == "mamba-ssm"


def test_a_missing_package_is_named_with_the_command_that_brings_it():
    with pytest.raises(
        MissingDependencyError, match=r"needs mamba_ssm and causal_conv1d.*\n.*pip install causal-conv1d mamba-ssm"
    ):
        using("mamba-ssm").__enter__()


def test_an_unknown_implementation_suggests_the_nearest():
    with pytest.raises(UsageError, match="Did you mean 'mamba-ssm'"):
        using("mamba_ssm").__enter__()
