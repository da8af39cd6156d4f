"""The kernels behind the torch ops. Without a GPU the same sources run emulated on host tensors, through the same C
entry points, so that every field, pointer and stride of a call is checked; with one, the CUDA library does."""

import os
from pathlib import Path

import emulated_kernels
import pytest
import torch
from native import elf

from vimdeploy.errors import ArtifactError
from vimdeploy.native.locate import KERNELS, cache_folder, plugin_sources, source_hash
from vimdeploy.ops import causal_conv1d, causal_conv1d_reference, kernels, selective_scan, selective_scan_reference
from vimdeploy.ops.arguments import Scan
from vimdeploy.ops.dispatch import using

TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}
"""Of the largest value; the issue's bounds for the kernels."""


@pytest.fixture
def emulated():
    with kernels.using(emulated_kernels.kernels_library()) as library:
        yield library


def scan_inputs(
    groups=2, batch=2, length=13, channels=10, states=16, rank=3, dtype=torch.float32, shared="", gated=True
):
    generator = torch.Generator().manual_seed(7)

    def randn(*shape):
        return torch.randn(*shape, generator=generator)

    u = randn(1 if "u" in shared else groups, batch, length, channels).to(dtype)
    x_dbl = randn(1 if "x" in shared else groups, batch, length, rank + 2 * states).to(dtype)
    A = -torch.rand(groups, channels, states, generator=generator) * 4
    dt_weight = (0.3 * randn(groups, channels, rank)).to(dtype)
    z = randn(batch, length, channels).to(dtype) if gated else None
    return [u, x_dbl, A, randn(groups, channels), dt_weight, randn(groups, channels) - 2, z]


def assert_close(got, want):
    assert got.dtype == want.dtype
    assert got.shape == want.shape
    error = ((got.float() - want.float()).abs().max() / want.float().abs().max()).item()
    assert error <= TOLERANCE[got.dtype], error


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(
    ("groups", "directions", "column_major", "height"),
    [(1, [-1], [0], 1), (2, [1, -1], [0, 0], 1), (4, [1, 1, -1, -1], [0, 1, 0, 1], 3)],
)
@pytest.mark.parametrize("gated", [True, False])
def test_scan_equals_the_loop(emulated, dtype, groups, directions, column_major, height, gated):
    inputs = scan_inputs(groups, length=15, dtype=dtype, gated=gated)
    got = selective_scan(*inputs, directions, column_major, height, 0.5)
    assert_close(got, selective_scan_reference(*inputs, directions, column_major, height, 0.5))


@pytest.mark.parametrize("states", [1, 5, 8, 64])
@pytest.mark.parametrize("shared", ["u", "x", "ux"])
def test_scan_of_every_kind_of_state_and_sharing(emulated, states, shared):
    inputs = scan_inputs(states=states, shared=shared)
    got = selective_scan(*inputs, [1, -1], [0, 0], 1, 1.0)
    assert_close(got, selective_scan_reference(*inputs, [1, -1], [0, 0], 1, 1.0))


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("width", [2, 3, 4])
@pytest.mark.parametrize("activation", ["silu", "none"])
def test_convolution_equals_the_loop(emulated, dtype, width, activation):
    generator = torch.Generator().manual_seed(3)
    x, weight, bias = (
        torch.randn(*shape, generator=generator).to(dtype) for shape in ((2, 11, 6), (2, 6, width), (2, 6))
    )
    got = causal_conv1d(x, weight, bias, [1, -1], activation)
    assert_close(got, causal_conv1d_reference(x, weight, bias, [1, -1], activation))


def test_strided_inputs_and_other_types_of_parameters_are_taken(emulated):
    inputs = scan_inputs(dtype=torch.float16)
    plain = selective_scan(*inputs, [1, -1], [0, 0], 1, 0.5)
    bent = [
        torch.cat([inputs[0], inputs[0]], dim=-1)[..., : inputs[0].shape[-1]],
        inputs[1].transpose(1, 2).contiguous().transpose(1, 2),
        inputs[2].double(),
        inputs[3],
        inputs[4].float(),
        inputs[5],
        inputs[6].flip(1).contiguous().flip(1),
    ]
    assert torch.equal(selective_scan(*bent, [1, -1], [0, 0], 1, 0.5), plain)


def test_what_the_kernels_do_not_serve_is_computed_in_torch(emulated):
    for inputs in (scan_inputs(states=70, rank=2), [t.double() for t in scan_inputs()]):
        arguments = (*inputs, [1, -1], [0, 0], 1, 0.5)
        assert emulated.selective_scan(Scan(*arguments)) is None
        with using("torch"):
            want = selective_scan(*arguments)
        assert torch.equal(selective_scan(*arguments), want)
    wide = (torch.randn(2, 11, 6), torch.randn(2, 6, 7), torch.randn(2, 6), [1, -1], "silu")
    assert emulated.causal_conv1d(*wide) is None
    assert_close(causal_conv1d(*wide), causal_conv1d_reference(*wide))


def test_torch_is_computed_where_torch_is_asked_for(emulated, monkeypatch):
    def fail(*_):
        raise AssertionError("the kernels were called")

    monkeypatch.setattr(emulated, "selective_scan", fail)
    arguments = (*scan_inputs(), [1, -1], [0, 0], 1, 0.5)
    with using("torch"):
        selective_scan(*arguments)
    with pytest.raises(AssertionError, match="the kernels were called"):
        selective_scan(*arguments)


def test_a_refusal_of_the_library_is_an_error_with_its_words(emulated, monkeypatch):
    monkeypatch.setattr(emulated, "_stream", lambda _: 0)
    monkeypatch.setattr(kernels, "_point", lambda *_: None)
    with pytest.raises(RuntimeError, match=r"libvimdeploy_kernels_emulated\.so: \w+"):
        selective_scan(*scan_inputs(), [1, -1], [0, 0], 1, 0.5)


def test_without_a_library_a_cpu_computes_in_torch(monkeypatch):
    monkeypatch.setattr(kernels, "_CHOSEN", {})
    monkeypatch.setattr(kernels, "cpu_kernels", lambda: None)
    assert kernels.kernels_for(torch.zeros(1)) is None


def test_a_file_that_is_no_library_is_named(tmp_path):
    with pytest.raises(ArtifactError, match=r"gone\.so is no kernels library"):
        kernels.Kernels(tmp_path / "gone.so")
    with pytest.raises(ArtifactError, match="is no kernels library"):
        kernels.Kernels(Path("libc.so.6"))


def test_of_several_builds_those_for_the_gpu_and_these_sources_come_first(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    digest = source_hash(plugin_sources())
    ages = {
        f"{digest}-trt10-cuda13.0-sm75-89": 3,
        f"{digest}-kernels-cuda13.0-sm89": 2,
        "0123456789ab-kernels-cuda13.0-sm89": 1,
        f"{digest}-kernels-cuda13.0-sm120": 0,
        ".build-abc-sm89": 0,
        "something": 0,
    }
    for name, age in ages.items():
        file = cache_folder() / name / KERNELS
        file.parent.mkdir(parents=True)
        file.write_bytes(elf())
        os.utime(file, (1000 - age, 1000 - age))
    names = [path.parent.name for path in kernels.candidates((8, 9))]
    assert names == [
        f"{digest}-kernels-cuda13.0-sm89",
        f"{digest}-trt10-cuda13.0-sm75-89",
        "0123456789ab-kernels-cuda13.0-sm89",
    ]
    assert [path.parent.name for path in kernels.candidates((7, 5))] == [f"{digest}-trt10-cuda13.0-sm75-89"]
    assert kernels.candidates((7, 0)) == []


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(
    ("groups", "states", "softplus", "reverse", "gated"),
    [(1, 16, True, False, True), (2, 16, True, True, False), (4, 1, False, True, True), (3, 24, True, False, True)],
)
def test_scan_with_delta_equals_the_loop(emulated, dtype, groups, states, softplus, reverse, gated):
    from vimdeploy.ops.scan_delta import selective_scan_delta, selective_scan_delta_reference

    generator = torch.Generator().manual_seed(3)

    def randn(*shape):
        return torch.randn(*shape, generator=generator)

    batch, length, channels = 2, 41, 12
    u, delta = randn(batch, length, channels).to(dtype), (0.3 * randn(batch, length, channels)).abs().to(dtype)
    A = -4 * torch.rand(channels, states, generator=generator)
    B, C = randn(batch, length, groups, states).to(dtype), randn(batch, length, groups, states).to(dtype)
    z = randn(batch, length, channels).to(dtype) if gated else None
    inputs = [u, delta, A, B, C, randn(channels), 0.1 * torch.rand(channels, generator=generator), z, softplus, reverse]
    assert_close(selective_scan_delta(*inputs), selective_scan_delta_reference(*inputs))
    calls = []
    emulated._library = Recorder(emulated._library, calls)
    selective_scan_delta(*inputs)
    assert calls == ["vimdeploy_scan_delta_variants", "vimdeploy_scan_delta_workspace_size", "vimdeploy_scan_delta"]


class Recorder:
    """Passes calls on and remembers their names."""

    def __init__(self, library, calls):
        self.library, self.calls = library, calls

    def __getattr__(self, name):
        self.calls.append(name)
        return getattr(self.library, name)
