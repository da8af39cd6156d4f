"""Every example of docs/api.md runs, one after the other, and its table names what the package has."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

import vimdeploy

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "api.md").read_text()


def test_every_example_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    examples = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    assert len(examples) == PAGE.count("```python") >= 9
    for example in examples:
        exec(example, names)
    printed = capsys.readouterr().out
    assert "examples/digits/3.png [('3'," in printed
    assert "Verifying in ONNX Runtime" in printed
    assert "which has no option 'plugin'" in printed


def test_every_function_is_on_the_page() -> None:
    functions = {name for name in vimdeploy.__all__ if inspect.isroutine(getattr(vimdeploy, name))}
    listed = set(re.findall(r"^\| \[?`(\w+)`", PAGE, flags=re.MULTILINE))
    assert functions <= listed, functions - listed
    assert set(re.findall(r"^## (\w+)$", PAGE, flags=re.MULTILINE)) - {"Progress", "Errors"} <= functions


def test_the_options_of_load_are_on_the_page() -> None:
    section = PAGE.partition("## load")[2].partition("## Progress")[0]
    options = set(inspect.signature(vimdeploy.load).parameters) - {"path"}
    assert options == set(re.findall(r"`(\w+)`", "".join(re.findall(r"^\| (`[^|]*)\|", section, flags=re.MULTILINE))))
