"""The import hook: what is served inside the context, what stays away from it, and that nothing outlives it."""

import importlib
import sys

import pytest
import torch

import vimdeploy
from vimdeploy.interop.refusal import UnsupportedCallError
from vimdeploy.interop.stubs import StubCalledError

NAMES = (
    "selective_scan_cuda", "selective_scan_cuda_core", "selective_scan_cuda_oflex", "selective_scan_cuda_oflex_rh",
    "causal_conv1d", "causal_conv1d_cuda", "causal_conv1d.cpp_functions", "mamba_ssm", "mamba_ssm.modules.mamba_simple",
    "mamba_ssm.ops.selective_scan_interface", "mamba_ssm.ops.triton.layer_norm", "mamba_ssm.ops.triton.layernorm",
    "mamba_ssm.ops.triton.ssd_combined", "mamba_ssm.modules.mamba2", "triton", "triton.language",
)  # fmt: skip


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Return a function that writes modules below a new package and puts it on the path."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(**modules):
        for name, text in modules.items():
            path = tmp_path / f"{name}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        importlib.invalidate_caches()

    return write


def test_nothing_outlives_the_context(package):
    package(
        their_model="import torch\nfrom mamba_ssm import Mamba\nimport triton\nimport torchaudio\n", plain="x = 1\n"
    )
    before, finders = set(sys.modules), list(sys.meta_path)
    with vimdeploy.substitute_mamba_ssm() as substitution:
        for name in NAMES:
            importlib.import_module(name)
        import plain
        import their_model

        model = their_model.Mamba(8)
    assert set(substitution.substituted) >= {n for n in NAMES if "triton" not in n.partition(".")[0]}
    assert {"triton", "torchaudio"} <= set(substitution.stubbed)
    assert "mamba_ssm" in substitution.in_words()
    assert "torchaudio" in substitution.in_words()
    left = {n for n in set(sys.modules) - before if not n.startswith(("torch.", "vimdeploy.", "sympy", "mpmath"))}
    assert {"their_model", *NAMES}.isdisjoint(left)
    assert "plain" in left
    assert sys.meta_path == finders
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("selective_scan_cuda")
    assert model(torch.zeros(1, 3, 8)).shape == (1, 3, 8)  # what was built keeps working
    del sys.modules["plain"], plain


def test_an_error_inside_leaves_nothing_behind():
    finders = list(sys.meta_path)
    with pytest.raises(RuntimeError), vimdeploy.substitute_mamba_ssm():  # noqa: PT012
        importlib.import_module("mamba_ssm")
        raise RuntimeError
    assert "mamba_ssm" not in sys.modules
    assert sys.meta_path == finders


def test_a_fork_keeps_its_own_python_and_gets_the_compiled_parts(package):
    own = {}
    own["mamba_ssm/__init__"] = "from mamba_ssm.ops.own import own_fn, scan\nMINE = True\n"
    own["mamba_ssm/ops/__init__"] = own["mamba_ssm/ops/triton/__init__"] = ""
    own["mamba_ssm/ops/triton/layernorm"] = "raise RuntimeError('needs a GPU')\n"
    own["mamba_ssm/ops/own"] = (
        "import selective_scan_cuda as scan\nfrom mamba_ssm.ops.triton.layernorm import RMSNorm\n"
        "def own_fn():\n    return 'own'\n"
    )
    package(**own)
    with vimdeploy.substitute_mamba_ssm():
        import mamba_ssm

        assert mamba_ssm.MINE
        assert mamba_ssm.own_fn() == "own"
        assert mamba_ssm.scan.fwd
    assert "mamba_ssm" not in sys.modules


def test_only_named_absent_packages_are_stubbed(package):
    package(wants_more="import torchaudio, a_package_nobody_has\n")
    with vimdeploy.substitute_mamba_ssm(), pytest.raises(ModuleNotFoundError, match="a_package_nobody_has"):
        importlib.import_module("wants_more")
    with vimdeploy.substitute_mamba_ssm(stubs=("a_package_nobody_has",)) as substitution:
        importlib.import_module("wants_more")
    assert "a_package_nobody_has" in substitution.stubbed


def test_an_import_whose_author_expects_it_to_fail_is_left_to_fail(package):
    package(guarded="try:\n    import torchaudio\nexcept ImportError:\n    torchaudio = None\n")
    with vimdeploy.substitute_mamba_ssm():
        assert importlib.import_module("guarded").torchaudio is None


def test_stubs_serve_at_import_and_raise_with_their_name_when_they_are_called(package):
    package(
        uses_stubs="import torchaudio\nfrom mmcv.runner import BaseModule\nfrom mmdet.models.builder import BACKBONES\n"
        "LIMIT = torchaudio.limits.LARGEST\n"
        "@BACKBONES.register_module()\nclass Model(BaseModule):\n    pass\n"
        "@torchaudio.decorated\ndef plain():\n    return 7\n"
        "def later():\n    return torchaudio.functional.resample(1, 2)\n"
    )
    with vimdeploy.substitute_mamba_ssm():
        module = importlib.import_module("uses_stubs")
        assert module.plain() == 7
        with pytest.raises(StubCalledError, match=r"torchaudio\.functional\.resample was called") as caught:
            module.later()
        assert "Install torchaudio" in caught.value.hint
        with pytest.raises(StubCalledError, match=r"mmcv\.runner\.BaseModule"):
            module.Model()


def test_a_triton_kernel_raises_with_its_name_when_it_is_launched(package):
    package(
        kernels="import triton\nimport triton.language as tl\n"
        "@triton.autotune(configs=[triton.Config({'B': 1})], key=['n'])\n@triton.jit\n"
        "def my_kernel(x, n: tl.constexpr):\n    pass\n"
    )
    with vimdeploy.substitute_mamba_ssm():
        module = importlib.import_module("kernels")
        with pytest.raises(UnsupportedCallError, match=r"kernels\.my_kernel"):
            module.my_kernel[(1,)](torch.zeros(1), 1)


@pytest.mark.parametrize("flip", [0, 1])
def test_local_mambas_window_kernels_move_values_as_theirs_do(package, flip):
    package(windows="import triton\n@triton.jit\ndef triton_local_scan():\n    pass\n@triton.jit\n"
                    "def triton_local_reverse():\n    pass\n")  # fmt: skip
    image = torch.arange(24.0).view(1, 1, 4, 6)
    order = [r * 6 + c for R in (0, 2) for C in (0, 2, 4) for r in (R, R + 1) for c in (C, C + 1)]
    with vimdeploy.substitute_mamba_ssm():
        module = importlib.import_module("windows")
        walked, back = torch.empty(1, 1, 24), torch.empty(1, 1, 4, 6)
        module.triton_local_scan[(1,)](image, walked, 2, flip, 1, 4, 6, 1, 4, 6, 1, 1)
        module.triton_local_reverse[(1,)](walked, back, 2, flip, 1, 4, 6, 1, 4, 6, 1, 1)
    assert walked.flatten().tolist() == (order[::-1] if flip else order)
    assert torch.equal(back, image)


def test_cuda_means_the_cpu():
    with vimdeploy.substitute_mamba_ssm():
        assert torch.zeros(2, device="cuda:0").device.type == "cpu"
        assert torch.zeros(2).to("cuda").cuda().device.type == "cpu"
        assert torch.nn.Linear(2, 2).cuda().to(torch.device("cuda")).weight.device.type == "cpu"
        with torch.cuda.device(0):
            torch.cuda.synchronize()
        assert torch.cuda.current_device() == 0
    with pytest.raises((AssertionError, RuntimeError)):
        torch.zeros(2, device="cuda:0")


def test_torch_sees_which_packages_are_really_there():
    from torch.utils._triton import has_triton_package

    really = has_triton_package()
    with vimdeploy.substitute_mamba_ssm():
        importlib.import_module("triton")
        assert has_triton_package() == really


def test_the_same_modules_are_served_in_an_inner_context():
    with vimdeploy.substitute_mamba_ssm() as outer:
        import mamba_ssm

        with vimdeploy.substitute_mamba_ssm() as inner:
            assert importlib.import_module("mamba_ssm") is mamba_ssm
        assert sys.modules["mamba_ssm"] is mamba_ssm
        assert inner.finder is outer.finder
