"""stub to be written"""

from __future__ import annotations

from collections.abc import Sequence

import onnx


def rewrite_model(model: onnx.ModelProto, names: Sequence[str] | None = None) -> tuple[onnx.ModelProto, dict[str, int]]:
    return model, {}
