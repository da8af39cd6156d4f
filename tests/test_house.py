"""The rooms of the package: arrows between them point down and are few, and a deployment host needs no torch.

CONTRIBUTING.md says what each room is for.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from rooms import arrows, foreign, modules, room_of

FLOORS = (
    ("version", "errors", "progress", "contract"),
    ("needs",),
    ("artifacts", "native"),
    ("ops",),
    ("models", "interop"),
    ("graph",),
    ("tensorrt",),
    ("runtime",),
    ("backends",),
    ("parity", "predicting"),
    ("serving",),
    ("reports",),
    ("commands", "doctor"),
    ("__init__",),
    ("cli",),
    ("__main__",),
)
"""From the ground up; rooms on one floor do not know each other."""

HEIGHT = {room: height for height, floor in enumerate(FLOORS) for room in floor}
MOST_ARROWS = 89


def test_every_room_has_its_floor() -> None:
    rooms = {room_of(name) for name in modules()}
    assert rooms <= set(HEIGHT), "give a new room its floor in FLOORS"


def test_arrows_point_down() -> None:
    wrong = {
        f"{source} -> {target}": places
        for (source, target), places in arrows().items()
        if HEIGHT[target] >= HEIGHT[source]
    }
    assert not wrong, wrong


def test_there_are_few_arrows() -> None:
    found = arrows()
    assert len(found) <= MOST_ARROWS, sorted(found)


@pytest.mark.parametrize(
    ("rooms", "never"),
    [
        (("tensorrt", "runtime", "serving", "artifacts", "native", "needs", "contract", "errors"), {"torch"}),
        (("runtime", "serving"), {"onnx", "onnx_ir", "onnxscript"}),
        (("ops", "models", "interop"), {"onnx", "onnx_ir", "onnxscript", "tensorrt", "onnxruntime"}),
    ],
)
def test_what_a_room_never_imports(rooms: tuple[str, ...], never: set[str]) -> None:
    wrong = {module: names & never for module, names in foreign().items() if room_of(module) in rooms}
    assert not any(wrong.values()), wrong


def test_one_module_imports_tensorrt() -> None:
    flavours = {"tensorrt", "tensorrt_rtx", "tensorrt_lean", "tensorrt_dispatch"}
    assert {module for module, names in foreign().items() if names & flavours} <= {"vimdeploy.tensorrt.api"}


def test_the_rooms_of_a_deployment_host_load_without_torch() -> None:
    names = [name for name in modules() if room_of(name) in ("tensorrt", "runtime", "serving")]
    code = (
        "import importlib, sys\n"
        "never = ('torch',)\n"
        "for name in never:\n"
        "    sys.modules[name] = None\n"
        f"for name in {names!r}:\n"
        "    try:\n"
        "        importlib.import_module(name)\n"
        "    except ModuleNotFoundError as error:  # of an extra that is not installed: not what is asked here\n"
        "        if error.name.split('.')[0] in (*never, 'vimdeploy'):\n"
        "            raise\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def plant(package: Path, **texts: str) -> Path:
    for name, text in texts.items():
        path = package.joinpath(*name.split("__")).with_suffix(".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return package


def test_every_way_to_import_is_an_arrow(tmp_path: Path) -> None:
    package = plant(
        tmp_path / "vimdeploy",
        low__a="",
        mid__b="def f():\n    from vimdeploy.low.a import x",
        top__c="from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from vimdeploy.mid import b",
        top__d="import vimdeploy.low.a",
        ground="import tensorrt.foreign",
        tensorrt__api="",
        low__e="from vimdeploy import ground",
        high__f="from vimdeploy import __version__",
        __init__="__version__ = '1'",
    )
    assert {pair: [Path(place).name for place in places] for pair, places in arrows(package).items()} == {
        ("mid", "low"): ["b.py:2"],
        ("top", "mid"): ["c.py:3"],
        ("top", "low"): ["d.py:1"],
        ("low", "ground"): ["e.py:1"],
        ("high", "__init__"): ["f.py:1"],
    }
    assert foreign(package)["vimdeploy.ground"] == {"tensorrt"}
