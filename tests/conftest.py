"""Exports are slow, so tests share them: one per model and options in a session."""

import signal
from functools import cache

import onnx
import pytest
from goldens import golden

from vimdeploy.graph.export import export_onnx

# A shell ignores SIGINT for what it starts in the background, and every child inherits that: the tests that press
# Ctrl-C on commands would then test the shell.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@cache
def _exported(name, options):
    return export_onnx(golden(name).model(), **dict(options))


@pytest.fixture(scope="session")
def exported():
    """Return a function from a golden's name and options of the export to a model that the test may change."""

    def export(name, **options):
        copy = onnx.ModelProto()
        copy.CopyFrom(_exported(name, tuple(sorted(options.items()))))
        return copy

    return export
