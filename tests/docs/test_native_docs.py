"""What docs/native.md says runs."""

import numpy as np
import onnxruntime
import pytest
from goldens import TOLERANCE, golden
from pages import commands, examples, make_checkout, run

import vimdeploy

PAGE = "docs/native.md"


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    folder = make_checkout(tmp_path_factory.mktemp("native"), "examples", "export")
    run("vimdeploy export examples/digits/vim_digits.pth -o digits.onnx --no-verify", folder)
    return folder


@pytest.mark.parametrize("command", commands(PAGE))
def test_command_runs(command, checkout):
    run(command, checkout)


def test_the_one_line_for_python_makes_any_session_native(exported):
    (line,) = examples(PAGE)
    options = onnxruntime.SessionOptions()
    exec(line, {"options": options, "vimdeploy": vimdeploy})
    session = onnxruntime.InferenceSession(exported("cls_tiny").SerializeToString(), options)
    arrays = golden("cls_tiny").arrays
    np.testing.assert_allclose(session.run(None, {"images": arrays["images"]})[0], arrays["logits"], **TOLERANCE)
