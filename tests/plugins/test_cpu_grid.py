"""The CPU kernels (plugins/cpu) against float64: all instruction sets, sanitizers, an emulated ARM, planted faults."""

import platform
import re
import shutil
import subprocess

import pytest
from native import needed, run

from vimdeploy.native.ops_library import _FLAGS, _UNITS, ops_sources

SOURCES = ops_sources()
COMMON = ("cpu/op.cpp", "cpu/ops.cpp", "cpu/signature.cpp", "cpu/dispatch.cpp", "cpu/c_api.cpp", "cpu/tests/grid.cpp")
STRICT = (
    *("-Wpedantic", "-Wshadow", "-Wconversion", "-Wsign-conversion", "-Wold-style-cast", "-Wnon-virtual-dtor"),
    *("-Woverloaded-virtual", "-Werror"),
)


def build(folder, *flags, compiler="g++", machine=None, sources=SOURCES, optimise="-O1"):
    """Compile the grid, in parts that do not change between builds of the same flags."""
    folder.mkdir(exist_ok=True)
    special = _UNITS.get(machine or platform.machine(), {})
    objects = []
    started = []
    for unit in (*COMMON, "cpu/isa_base.cpp", *special):
        objects.append(folder / f"{unit.replace('/', '_')}.o")
        options = [*_FLAGS, optimise, "-g1", *STRICT, *special.get(unit, ()), *flags]
        command = [compiler, *options, "-I", sources, "-c", sources / unit, "-o", objects[-1]]
        started.append(subprocess.Popen([str(word) for word in command], stderr=subprocess.PIPE, text=True))
    for process in started:
        _, error = process.communicate()
        assert process.returncode == 0, error[-3000:]
    run(compiler, *flags, *objects, "-o", folder / "grid", "-pthread")
    return folder / "grid"


def last_line(done):
    return done.stdout.strip().splitlines()[-1]


@pytest.mark.parametrize("flavour", ["address,undefined", "thread"])
def test_every_case_is_within_its_bound_under_sanitizers(flavour, tmp_path):
    needed("g++", "g++")
    flags = (f"-fsanitize={flavour}", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer")
    program = build(tmp_path / "grid", *flags)
    done = run(program, "--quick", "--descriptors", 20000 if flavour != "thread" else 0)
    assert last_line(done).endswith(", 0 failed")
    assert int(last_line(done).split()[0]) >= 150
    if flavour != "thread":
        accepted = int(re.search(r"(\d+) of 20000 nonsensical", done.stdout)[1])
        assert 500 < accepted < 10000  # both sides of every check are met


def test_the_whole_grid_in_every_type(tmp_path):
    """Without sanitizers: float16 and bfloat16 too, every combination of sizes."""
    done = run(build(tmp_path / "grid"))
    assert last_line(done).endswith(", 0 failed")
    assert int(last_line(done).split()[0]) >= 1000


@pytest.mark.skipif(platform.machine() != "x86_64", reason="on ARM the tests above run the NEON kernels")
def test_neon_under_emulation(tmp_path):
    compiler = needed("aarch64-linux-gnu-g++", "g++-aarch64-linux-gnu")
    emulator = needed("qemu-aarch64", "qemu-user")
    program = build(tmp_path / "grid", "-static", compiler=compiler, machine="aarch64")
    done = run(emulator, program, "--quick", "--descriptors", 2000)
    assert last_line(done).endswith(", 0 failed")
    assert int(last_line(done).split()[0]) >= 2100


FAULTS = {
    "the walk not reversed": ("cpu/scan.inl", "walk.length - 1 - step", "step"),
    "rows and columns swapped": ("cpu/scan.inl", "(t % walk.height) * width + t / walk.height", "t"),
    "a token of the tile forgotten": ("cpu/scan.inl", "for (; t < count; ++t)", "for (; t + 1 < count; ++t)"),
    "the gate on every group": ("cpu/scan.inl", "rows.last = g == task.groups - 1;", "rows.last = true;"),
    "the states not cleared": ("cpu/scan.inl", "state[i] = Vec{};", "(void) state[i];"),
    "the neighbour's states": ("cpu/scan.inl", "projections.c[t] = xRows[t] + rank + states;",
                               "projections.c[t] = xRows[t] + rank + states - 1;"),
    "the channels of the tail": ("cpu/scan.inl", "left < kLANES ? left : kLANES};\n                Vec delta",
                                 "kLANES};\n                Vec delta"),
    "a term of 2^x left out": ("cpu/coefficients.h", "0.0013264727F", "0.0F"),
    "log2(1 + e) in place of log1p": ("cpu/simd.inl", "polynomial(kLOG1P, e) * e", "polynomial(kLOG1P, e) * e * 1.0001F"),  # noqa: E501
    "the last tap left out": ("cpu/conv.inl", "k < lastTap", "k + 1 < lastTap"),
    "halves cut in place of rounded": ("cpu/convert.inl", "(magnitude + 0xFFFU + ((magnitude >> 13) & 1U)", "(magnitude"),  # noqa: E501
    "a shape taken as it comes": ("cpu/signature.cpp", "mBound[symbol] && mValues[symbol] != size", "false"),
}  # fmt: skip


BASE = ("-DVIMDEPLOY_ONLY_BASE", "-fsanitize=address", "-Wno-error")
"""The faults are planted in the portable unit: the wide ones compute the same source."""


@pytest.fixture(scope="module")
def honest(tmp_path_factory):
    """Folder with the objects of a build without a fault, which passes, or the faults would prove nothing."""
    folder = tmp_path_factory.mktemp("honest") / "grid"
    done = run(build(folder, *BASE, machine="none"), "--quick", "--descriptors", "2000")
    assert last_line(done).endswith(", 0 failed")
    return folder


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_caught(fault, honest, tmp_path):
    file, true, planted = FAULTS[fault]
    shutil.copytree(SOURCES / "cpu", tmp_path / "cpu")
    text = (tmp_path / file).read_text()
    assert true in text, "the sources no longer have what the fault changes"
    (tmp_path / file).write_text(text.replace(true, planted))
    unit = file if file.endswith(".cpp") else "cpu/isa_base.cpp"
    faulty = tmp_path / "faulty.o"
    run("g++", *_FLAGS, "-O1", *BASE, "-I", tmp_path, "-c", tmp_path / unit, "-o", faulty)
    name = f"{unit.replace('/', '_')}.o"
    rest = [path for path in honest.glob("*.o") if path.name != name]
    run("g++", *BASE, *rest, faulty, "-o", tmp_path / "grid", "-pthread")
    quick = [] if "halves" in fault else ["--quick"]
    done = subprocess.run(
        [tmp_path / "grid", *quick, "--descriptors", "2000"], capture_output=True, text=True, check=False
    )
    assert done.returncode != 0, f"{fault}: not caught"


def test_units_of_wide_instruction_sets_share_no_function_with_the_rest(tmp_path):
    """The linker keeps one copy of an inline function: it must not be one that only a newer processor can run."""
    for unit, options in _UNITS.get(platform.machine(), {}).items():
        made = tmp_path / "unit.o"
        run("g++", *_FLAGS, *options, "-I", SOURCES, "-c", SOURCES / unit, "-o", made)
        weak = [line for line in run("nm", "-C", made).stdout.splitlines() if re.search(r" [WVu] ", line)]
        assert not weak
