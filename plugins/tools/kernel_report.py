"""Compile the kernels and report registers, spills and the issue slots of the scan's inner loop, from machine code.

    python plugins/tools/kernel_report.py [--arch sm_90] [--arch ...] [--types float16] [--max-slots 7] [--json FILE]

ptxas tells registers and local memory (`nvcc --resource-usage`); nvdisasm (on PATH, or the wheel
`nvidia-cuda-nvdisasm`) tells the instructions. The inner loop is the innermost one with the most `MUFU.EX2`: in it
every such instruction is one decay, that is one (token, channel, state) element, and each other instruction is an issue
slot shared among them (with one state per thread the loop is no longer than what surrounds it, and is not counted).
Exit status 1: a hot variant spills, or the 16-state variant needs more than --max-slots.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

PLUGINS = Path(__file__).parents[1]
TYPES = ("float32", "float16", "bfloat16")
HOT_STATES = (16, 8, 1)
"""Variants that may not touch local memory: every specialised N, in both passes."""


@dataclass
class Kernel:
    """What the machine code of one instantiation says."""

    arch: str
    type: str
    states: int
    states_per_thread: int
    states_only: bool
    registers: int = 0
    stack: int = 0
    spill_stores: int = 0
    spill_loads: int = 0
    loop_instructions: int | None = None
    loop_elements: int | None = None
    slots: float | None = None

    @property
    def name(self) -> str:
        """The variant in words."""
        n = f"N={self.states}" if self.states else "generic"
        return f"{self.type} {n} S={self.states_per_thread}{' states-only' if self.states_only else ''}"


def _variant(mangled: str) -> tuple[int, int, bool] | None:
    found = re.search(r"scanKernelI.*?Li(\d+)ELi(\d+)ELb([01])E", mangled)
    return (int(found[1]), int(found[2]), found[3] == "1") if found else None


def find_nvdisasm() -> str | None:
    """The disassembler on PATH, or the one of its wheel."""
    wheel = Path(sysconfig.get_paths()["purelib"]) / "nvidia" / "cu13" / "bin" / "nvdisasm"
    return shutil.which("nvdisasm") or (str(wheel) if wheel.exists() else None)


def compile_type(type_name: str, arch: str, cubin: Path) -> list[Kernel]:
    """Compile one translation unit; registers and spills as ptxas reports them."""
    source = PLUGINS / "kernels" / "selective_scan" / f"kernel_{type_name}.cu"
    command = [
        "nvcc",
        "-std=c++17",
        f"-arch={arch}",
        "-cubin",
        "--resource-usage",
        "-I",
        str(PLUGINS),
        str(source),
        "-o",
        str(cubin),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"nvcc failed:\n{done.stdout}{done.stderr}")
    kernels: list[Kernel] = []
    for line in (done.stdout + done.stderr).splitlines():
        if "Compiling entry function" in line and (variant := _variant(line)):
            kernels.append(Kernel(arch, type_name, *variant))
        elif kernels and (found := re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+)", line)):
            kernels[-1].stack, kernels[-1].spill_stores, kernels[-1].spill_loads = map(int, found.groups())
        elif kernels and (found := re.search(r"Used (\d+) registers", line)):
            kernels[-1].registers = int(found[1])
    return kernels


def innermost_loops(lines: list[str]) -> list[list[str]]:
    """The instructions of every loop that contains no other, in program order."""
    labels = {line.rstrip(":"): i for i, line in enumerate(lines) if re.fullmatch(r"\.L_x_\d+:", line)}
    spans = []
    for i, line in enumerate(lines):
        if (found := re.search(r"\bBRA.*`\((\.L_x_\d+)\)", line)) and labels.get(found[1], i) < i:
            spans.append((labels[found[1]], i))
    inner = [s for s in spans if not any(o != s and s[0] <= o[0] and o[1] <= s[1] for o in spans)]
    return [[ln for ln in lines[a : b + 1] if "/*" in ln and not re.search(r"\bNOP\b", ln)] for a, b in inner]


def count_slots(kernels: list[Kernel], cubin: Path, nvdisasm: str) -> None:
    """Fill in the inner loop of each kernel."""
    text = subprocess.run([nvdisasm, "-c", str(cubin)], capture_output=True, text=True, check=True).stdout
    for section in re.split(r"\n(?=\.text\.)", text):
        head, _, body = section.partition("\n")
        variant = _variant(head) if head.startswith(".text.") else None
        if variant is None:
            continue
        lines = [line.strip() for line in body.splitlines()]
        loops = innermost_loops(lines)
        loop = max(loops, key=lambda ln: sum("MUFU.EX2" in x for x in ln), default=[])
        elements = sum("MUFU.EX2" in line for line in loop)
        for kernel in kernels:
            matches = (kernel.states, kernel.states_per_thread, kernel.states_only) == variant
            if elements and matches and kernel.states_per_thread > 1:
                kernel.loop_instructions, kernel.loop_elements = len(loop), elements
                kernel.slots = round(len(loop) / elements, 2)


def complaints(kernels: list[Kernel], max_slots: float) -> list[str]:
    """What the report may not show."""
    wrong = []
    for kernel in kernels:
        if kernel.states in HOT_STATES and kernel.stack + kernel.spill_stores + kernel.spill_loads > 0:
            wrong.append(f"{kernel.arch} {kernel.name}: {kernel.spill_stores} bytes spilled, {kernel.stack} of stack")
        widest = (kernel.states, kernel.states_per_thread, kernel.states_only) == (16, 16, False)
        if widest and kernel.slots is not None and not kernel.slots <= max_slots:
            wrong.append(f"{kernel.arch} {kernel.name}: {kernel.slots} slots per element, {max_slots} allowed")
    return wrong


def report(types: list[str], archs: list[str], nvdisasm: str | None) -> list[Kernel]:
    """Compile and count."""
    kernels: list[Kernel] = []
    with tempfile.TemporaryDirectory() as folder:
        for arch in archs:
            for type_name in types:
                cubin = Path(folder) / f"{type_name}.{arch}.cubin"
                compiled = compile_type(type_name, arch, cubin)
                if nvdisasm is not None:
                    count_slots(compiled, cubin, nvdisasm)
                kernels += compiled
    return kernels


def main() -> int:
    """Print the table; see the module's docstring for the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", action="append", help="default sm_90")
    parser.add_argument("--types", action="append", choices=TYPES, help="default all three")
    parser.add_argument("--max-slots", type=float, default=7.0)
    parser.add_argument("--nvdisasm", default=find_nvdisasm(), help="the disassembler; without it no slots are counted")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.nvdisasm is None:
        print("nvdisasm was not found: issue slots are not counted (pip install nvidia-cuda-nvdisasm)")
    kernels = report(options.types or list(TYPES), options.arch or ["sm_90"], options.nvdisasm)
    print(
        "| architecture | kernel | registers | spilled bytes | instructions / elements | slots |\n"
        "|---|---|---|---|---|---|"
    )
    for k in kernels:
        loop = f"{k.loop_instructions} / {k.loop_elements} | {k.slots}" if k.slots else "- | -"
        print(f"| {k.arch} | {k.name} | {k.registers} | {k.spill_stores + k.spill_loads} | {loop} |")
    if options.json:
        options.json.write_text(json.dumps([asdict(k) for k in kernels], indent=1) + "\n")
    wrong = complaints(kernels, options.max_slots)
    print("\n".join(wrong) or "no spill in a hot variant, slots within their bound")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
