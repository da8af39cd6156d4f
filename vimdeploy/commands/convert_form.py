"""ONNX -> the same model for other readers: without functions, or without custom ops."""

from __future__ import annotations

from pathlib import Path

from vimdeploy import needs
from vimdeploy.artifacts.files import check_writable, write_all
from vimdeploy.artifacts.onnx_file import read_onnx
from vimdeploy.commands.arguments import default_output
from vimdeploy.errors import UsageError, nearest

FORMS = ("portable", "plugin-only")


def convert_form(model: str | Path, output: str | Path | None = None, *, form: str) -> Path:
    """Write another form of an exported ONNX file; it computes the same, and gets no manifest.

    Args:
        model: ONNX file that `vimdeploy export` or `convert` wrote.
        output: file to write; default: MODEL.portable.onnx or MODEL.plugin-only.onnx.
        form: ``portable`` (standard operators only, for OpenVINO and others) or ``plugin-only`` (custom nodes without
            function bodies, for trtexec).

    Returns:
        The file written.

    Raises:
        ArtifactError: the file is missing or corrupt, or cannot be written.
        UsageError: there is no such form, or the output is the input.

    """
    needs.require("convert")
    from vimdeploy.graph import forms

    if form not in FORMS:
        raise UsageError(f"There is no form '{form}'.", hint=nearest(form, FORMS))
    path = Path(model)
    target = default_output(path, f".{form}.onnx") if output is None else Path(output)
    check_writable(target)
    if target.resolve() == path.resolve():
        raise UsageError(f"{target}: is the file to convert.", hint="Choose another name with -o.")
    source = read_onnx(path)
    made = forms.portable(source) if form == "portable" else forms.plugin_only(source)
    write_all({target: made.SerializeToString(deterministic=True)})
    return target
