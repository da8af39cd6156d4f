"""What the API takes: one or several, numbers that make sense, and paths without a name."""

from __future__ import annotations

from pathlib import Path

import pytest
from commandline import refuse

from vimdeploy.commands.arguments import at_least, default_output, several
from vimdeploy.errors import UsageError


def test_a_text_or_a_path_or_a_number_is_one_value() -> None:
    assert several("ab") == ("ab",)
    assert several(Path("ab")) == (Path("ab"),)
    assert several(3) == (3,)
    assert several(["ab", "c"]) == ("ab", "c")
    assert several(()) == ()


def test_numbers_have_a_least_value_and_nan_has_none() -> None:
    at_least(1, samples=1, batch=None)
    for wrong in (0, -3, float("nan")):
        with pytest.raises(UsageError, match=f"--max-error {wrong}: must be at least 1"):
            at_least(1, max_error=wrong)


def test_a_result_goes_beside_what_it_is_made_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert default_output(Path("a/vim.v2.pth"), ".onnx") == Path("a/vim.v2.onnx")
    assert default_output(Path("."), ".onnx") == tmp_path.with_suffix(".onnx")
    with pytest.raises(UsageError, match="names no file"):
        default_output(Path("/"), ".onnx")


@pytest.mark.parametrize("command", [["export"], ["convert"], ["convert", "--portable"], ["inspect"]], ids=" ".join)
@pytest.mark.parametrize("path", [".", "..", "/"])
def test_a_folder_without_a_name_ends_in_words(
    command: list[str], path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "inside").mkdir()
    monkeypatch.chdir(tmp_path / "inside")
    refuse(*command, path, folder=tmp_path)
