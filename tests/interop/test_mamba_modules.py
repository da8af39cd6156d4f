"""Mamba and Mamba2 for repositories without a copy of mamba_ssm: official keys, official mathematics."""

import mathematics
import pytest
import torch
import torch.nn.functional as F

from vimdeploy.interop.mamba import Block, GatedMLP, Mamba, Mamba2
from vimdeploy.interop.norms import RMSNorm

MAMBA_KEYS = {
    "A_log", "D", "in_proj.weight", "conv1d.weight", "conv1d.bias", "x_proj.weight", "dt_proj.weight", "dt_proj.bias",
    "out_proj.weight",
}  # fmt: skip
BACK = {
    "A_b_log", "D_b", "conv1d_b.weight", "conv1d_b.bias", "x_proj_b.weight", "dt_proj_b.weight", "dt_proj_b.bias"
}  # fmt: skip


def make(kind="none", **options):
    torch.manual_seed(0)
    module = Mamba(8, 4, bimamba_type=kind, **options)
    for name, parameter in module.named_parameters():
        if name.startswith("D"):
            parameter.data.normal_()
    return module


def branch(module, xz, suffix=""):
    part = {n: getattr(module, n + suffix) for n in ("conv1d", "x_proj", "dt_proj", "D")}
    A = -torch.exp(getattr(module, f"A{suffix}_log"))
    return mathematics.mixer(
        xz, part["conv1d"].weight, part["conv1d"].bias, part["x_proj"].weight, part["dt_proj"].weight, A, part["D"],
        part["dt_proj"].bias,
    )  # fmt: skip


def test_keys_are_the_official_ones():
    assert set(make().state_dict()) == MAMBA_KEYS
    assert set(make("v1").state_dict()) == MAMBA_KEYS | {"A_b_log"}
    assert set(make("v2").state_dict()) == MAMBA_KEYS | BACK
    assert set(make("v3").state_dict()) == MAMBA_KEYS | BACK | {k.replace("_b", "_s", 1) for k in BACK}
    assert set(make(bias=True, conv_bias=False, init_layer_scale=0.1).state_dict()) == (
        MAMBA_KEYS - {"conv1d.bias"} | {"in_proj.bias", "out_proj.bias", "gamma"}
    )
    assert set(Mamba2(32, 8, headdim=16).state_dict()) == {
        "dt_bias", "A_log", "D", "in_proj.weight", "conv1d.weight", "conv1d.bias", "norm.weight", "out_proj.weight"
    }  # fmt: skip


@pytest.mark.parametrize(("kind", "divide"), [("none", False), ("v2", True), ("v2", False), ("v3", False)])
def test_mamba_is_the_mixer_between_its_projections(kind, divide):
    module, x = make(kind, if_divide_out=divide, nslices=3), torch.randn(2, 9, 8)
    with torch.no_grad():
        xz = module.in_proj(x).transpose(1, 2).double()
        y = branch(module, xz)
        if kind != "none":
            y = y + branch(module, xz.flip(-1), "_b").flip(-1)
        if kind == "v3":
            order = torch.arange(9).view(3, 3).T.reshape(-1)
            turned = branch(module, xz[..., order], "_s")
            y = y + turned[..., order.argsort()]
        expected = torch.einsum("de,bel->bld", module.out_proj.weight.double(), y / 2 if divide else y)
        torch.testing.assert_close(module(x).double(), expected, rtol=1e-4, atol=1e-5)


def test_mamba_2_is_the_masked_product_between_its_projections():
    torch.manual_seed(0)
    module, x = Mamba2(32, 8, headdim=16, ngroups=2), torch.randn(2, 9, 32)
    module.norm.weight.data.normal_()
    with torch.no_grad():
        z, xbc, dt = module.in_proj(x).split([64, 64 + 32, 4], dim=-1)
        xbc = mathematics.convolution(xbc.transpose(1, 2), module.conv1d.weight, module.conv1d.bias, silu=True)
        inner, B, C = xbc.transpose(1, 2).split([64, 16, 16], dim=-1)
        heads, pairs = (2, 9, 4, 16), (2, 9, 2, 8)
        y, _ = mathematics.duality(
            inner.reshape(heads), dt, -module.A_log.exp(), B.reshape(pairs), C.reshape(pairs), module.D, None,
            module.dt_bias, True,
        )  # fmt: skip
        gated = y.flatten(2) * F.silu(z.double())
        normed = mathematics.norm(gated.unflatten(-1, (2, 32)), torch.ones(32), None, 1e-5, rms=True).flatten(-2)
        expected = (normed * module.norm.weight.double()) @ module.out_proj.weight.double().T
        torch.testing.assert_close(module(x).double(), expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(module(x.flatten(0, 1), seqlen=9), module(x).flatten(0, 1))


@pytest.mark.parametrize("fused", [True, False])
def test_a_block_adds_norms_and_mixes(fused):
    block = Block(8, lambda dim: torch.nn.Linear(dim, dim), lambda dim: GatedMLP(dim, 16), RMSNorm, fused, True)
    x, residual = torch.randn(2, 3, 8), torch.randn(2, 3, 8)
    hidden, kept = block(x, residual)
    total = x + residual
    mixed = block.mixer(block.norm(total))
    assert kept.dtype == torch.float32
    torch.testing.assert_close(kept, total + mixed)
    torch.testing.assert_close(hidden, block.mlp(block.norm2(total + mixed)))
    assert Block(8, torch.nn.Identity, RMSNorm).mlp is None  # before 2.0 the norm stood in the third place


def test_training_reaches_every_parameter():
    for module in (make("v2"), make("v1"), Mamba2(32, 8, headdim=16)):
        width = module.d_model
        module(torch.randn(2, 5, width)).square().sum().backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in module.parameters())
