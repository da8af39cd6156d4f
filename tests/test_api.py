"""``import vimdeploy``: light, typed, in words where something is missing."""

from __future__ import annotations

import ast
import json
import os
import statistics
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from exports import DATA

import vimdeploy
from vimdeploy.errors import UsageError
from vimdeploy.progress import Reporter

ROOT = Path(__file__).parents[1]
HEAVY = ("torch", "onnx", "onnxruntime", "numpy", "pydantic", "typer", "rich", "PIL")

WITHOUT = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {absent!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Absent())
"""


def run(code: str, *arguments: object, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200"}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=env, cwd=folder)


def test_the_bare_import_brings_nothing_heavy_in() -> None:
    done = run(f"import sys, vimdeploy\nprint([name for name in {HEAVY!r} if name in sys.modules])")
    assert done.stdout.strip() == "[]", done.stderr


def test_the_bare_import_is_quick() -> None:
    """50 ms above the interpreter itself, in processor time of this import."""
    code = "import time; start = time.process_time(); import vimdeploy; print(time.process_time() - start)"
    times = [float(run(code).stdout) for _ in range(5)]
    assert min(times) < 0.05, statistics.median(times)


def test_every_name_has_one_home_and_one_line_for_type_checkers() -> None:
    tree = ast.parse((ROOT / "vimdeploy" / "__init__.py").read_text())
    (typed,) = [node for node in tree.body if isinstance(node, ast.If)]
    imports = [node for node in typed.body if isinstance(node, ast.ImportFrom)]
    homes = {alias.asname: node.module for node in imports for alias in node.names}
    assert homes == vimdeploy._HOME
    assert [*vimdeploy._HOME] == sorted(vimdeploy._HOME)
    for name in vimdeploy.__all__:
        assert getattr(vimdeploy, name) is not None
    assert set(vimdeploy.__all__) <= set(dir(vimdeploy))
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        vimdeploy.nothing  # noqa: B018


# Where something is missing

HOST = WITHOUT.format(absent=("torch", "onnx", "onnxscript", "onnx_ir", "safetensors"))
"""A deployment host: onnxruntime alone."""


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("export", "x.pth"), "vimdeploy export needs torch, onnx, onnxscript, onnx-ir, safetensors"),
        (("verify", "vim.onnx", "--checkpoint", "cls_tiny.pth"), "vimdeploy verify needs torch, onnx, safetensors"),
        (("convert", "vim.onnx"), "vimdeploy convert needs onnx, onnx-ir"),
        (("build-engine", "vim.onnx", "--runtime", "rtx"), "vimdeploy build-engine needs onnx, onnx-ir"),
        (("inspect", "vim.onnx"), "vimdeploy inspect needs onnx"),
        (("inspect", "cls_tiny.pth"), "vimdeploy inspect CHECKPOINT needs torch, safetensors"),
        (("demo",), "vimdeploy demo needs torch"),
        (("verify", "vim.onnx", "--ladder"), "vimdeploy verify needs onnx"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_a_host_without_torch_and_onnx_is_told_what_to_install(
    tiny: Path, tmp_path: Path, arguments: tuple[str, ...], words: str
) -> None:
    (tmp_path / "vim.onnx").write_bytes(tiny.read_bytes())
    (tmp_path / "vim.onnx.json").write_bytes(tiny.with_name("vim.onnx.json").read_bytes())
    (tmp_path / "cls_tiny.pth").write_bytes((DATA / "cls_tiny.pth").read_bytes())
    before = sorted(tmp_path.iterdir())
    code = HOST + f"sys.argv = {['vimdeploy', *arguments]!r}\nfrom vimdeploy.cli.app import main\nmain()"
    done = run(code, folder=tmp_path)
    assert done.returncode == 2, done.stderr
    assert words in done.stderr
    assert "-m pip install" in done.stderr
    assert "bug" not in done.stderr
    assert sorted(tmp_path.iterdir()) == before


def test_the_api_says_it_too() -> None:
    done = run(HOST + "import vimdeploy\ntry: vimdeploy.convert\nexcept vimdeploy.VimdeployError as e: print(e)")
    assert "vimdeploy convert needs onnx, onnx-ir" in done.stdout, done.stderr
    assert "'onnx>=1.18' 'onnx-ir>=0.1.12'" in done.stdout


def test_that_host_predicts_verifies_and_inspects_manifests(tiny: Path, tmp_path: Path) -> None:
    from PIL import Image

    Image.new("RGB", (64, 64), (200, 30, 60)).save(tmp_path / "red.png")
    code = HOST + textwrap.dedent(
        """
        import json, vimdeploy
        (row,) = vimdeploy.predict(sys.argv[1], [sys.argv[2]], top=1)
        facts = vimdeploy.inspect(sys.argv[1] + ".json").facts
        found = vimdeploy.verify(sys.argv[1])
        print(json.dumps([row.classes[0].label, facts["manifest"]["kind"], found.passed]))
        """
    )
    done = run(code, tiny, tmp_path / "red.png")
    assert done.returncode == 0, done.stderr
    label, kind, passed = json.loads(done.stdout)
    assert (int(label) in range(10), kind, passed) == (True, "onnx", True)


def test_a_missing_module_of_our_own_is_still_a_bug() -> None:
    from vimdeploy import needs

    assert needs.explain(ModuleNotFoundError("x", name="vimdeploy.nowhere")) is None
    with pytest.raises(ModuleNotFoundError), needs.in_words("export"):
        import vimdeploy.nowhere  # type: ignore[import-not-found]  # noqa: F401


# Opening files


@pytest.mark.parametrize(
    ("option", "value"), [("plugin", "libx.so"), ("graphs", 3), ("device", 1)], ids=["plugin", "graphs", "device"]
)
def test_an_option_of_plans_is_refused_for_an_onnx_file(tiny: Path, option: str, value: object) -> None:
    with pytest.raises(UsageError, match=f"is an ONNX file, which has no option '{option}'"):
        vimdeploy.load(tiny, **{option: value})  # type: ignore[arg-type]


@pytest.mark.parametrize(("option", "value"), [("threads", 2), ("ops", "native")])
def test_an_option_of_onnx_files_is_refused_for_a_plan(tmp_path: Path, option: str, value: object) -> None:
    plan = tmp_path / "vim.engine"
    plan.write_bytes(b"vtrt" + bytes(16))
    with pytest.raises(UsageError, match=f"is a TensorRT plan, which has no option '{option}'"):
        vimdeploy.load(plan, **{option: value})  # type: ignore[arg-type]


def test_options_that_both_have_are_taken(tiny: Path) -> None:
    import numpy as np

    images = np.zeros((3, 3, 64, 64), np.float32)
    with vimdeploy.load(tiny, contexts=2, graphs=0, threads=1, ops="body") as session:
        first, second = (session.submit({"images": images}) for _ in range(2))
        np.testing.assert_array_equal(first.result()["logits"], second.result()["logits"])
    with pytest.raises(UsageError, match="contexts = 0"):
        vimdeploy.load(tiny, contexts=0)


# Progress


def test_a_reporter_hears_of_every_stage_and_parts_are_one_way(tmp_path: Path) -> None:
    heard: list[str] = []
    steps: list[float] = []

    class Heard(Reporter):
        def stage(self, text: str) -> None:
            heard.append(text)
            steps.clear()

        def progress(self, done: int, total: int) -> None:
            steps.append(done / total)

        def note(self, text: str) -> None:
            heard.append(text)

    reporter = Heard()
    made = vimdeploy.export(DATA / "cls_tiny.pth", tmp_path / "vim.onnx", reporter=reporter)
    assert made.report is not None
    assert heard[0] == "Reading cls_tiny.pth"
    assert heard[-2:] == ["Verifying in ONNX Runtime", "Writing"]
    vimdeploy.verify(tmp_path / "vim.onnx", samples=2, reporter=reporter)
    assert steps == sorted(steps)
    assert steps[-1] == 1
    part = reporter.part(1, 2)
    part.stage("half-way")
    part.progress(1, 2)
    part.note("a note")
    assert (heard[-2:], steps) == (["half-way", "a note"], [0.75])
