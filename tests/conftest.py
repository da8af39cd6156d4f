"""Exports are slow, so tests share them: one per model and options in a session."""

from functools import cache

import onnx
import pytest
from goldens import golden

from vimdeploy.graph.export import export_onnx


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
