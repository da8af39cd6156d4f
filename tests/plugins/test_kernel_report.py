"""Registers, spills and issue slots of the compiled kernels: what ptxas and the machine code say, no GPU needed."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from pathlib import Path
from types import ModuleType

import pytest

TOOL = Path(__file__).parents[2] / "plugins" / "tools" / "kernel_report.py"
MAX_SLOTS = 7.0
"""Issue slots per (token, channel, state) of the 16-state variant's inner loop; measured: 6.1 on sm_90."""


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    if shutil.which("nvcc") is None:
        pytest.skip("nvcc is not installed: the kernels cannot be compiled")
    spec = importlib.util.spec_from_file_location("kernel_report", TOOL)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["kernel_report"] = module
    spec.loader.exec_module(module)
    return module


# The oldest and the newest everyday architectures and, for all types, the one the slots are stated for. All eight:
# python plugins/tools/kernel_report.py --arch sm_75 --arch sm_80 ...
COMPILED = [("sm_75", "float16"), ("sm_89", "bfloat16"), ("sm_90", "float32"), ("sm_90", "float16")]


@pytest.mark.parametrize(("arch", "type_name"), COMPILED)
def test_no_hot_variant_spills_and_the_inner_loop_is_lean(tool: ModuleType, arch: str, type_name: str) -> None:
    kernels = tool.report([type_name], [arch], tool.find_nvdisasm())
    assert len(kernels) == 11, "a variant is missing from the report"
    assert tool.complaints(kernels, MAX_SLOTS) == []
    assert all(kernel.registers <= 128 for kernel in kernels), "four blocks no longer fit an SM"
    if tool.find_nvdisasm() is None:
        pytest.skip(
            "spills were checked; nvdisasm is not installed (pip install nvidia-cuda-nvdisasm): no slots counted"
        )
    for kernel in kernels:  # the loop was found, or the bound on its length would hold of nothing
        if kernel.states_per_thread > 1:
            assert kernel.loop_elements >= kernel.states_per_thread
            assert kernel.slots >= 4, f"{kernel.name}: fewer instructions than the recurrence has"


def test_a_spill_and_a_long_loop_are_complained_about(tool: ModuleType) -> None:
    spilled = tool.Kernel("sm_90", "float16", 16, 16, False, spill_loads=4, loop_instructions=113, loop_elements=16)
    spilled.slots = 7.06
    assert len(tool.complaints([spilled], MAX_SLOTS)) == 2
