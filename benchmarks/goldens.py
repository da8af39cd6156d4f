"""Every golden of the official code, in every form: function bodies, native ops, portable in ONNX Runtime and OpenVINO.

    python benchmarks/goldens.py        # a minute or two; needs 'vimdeploy[export,ort,openvino]'

Prints the largest difference of each golden's logits in each form; ends with status 1 if one is too large.
Run it from a checkout: goldens and their weights are made in tests/.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests" / "support"), str(ROOT / "tests" / "data")]

# What the tests share is importable from here on only.
import goldens  # noqa: E402
import vmamba_cases  # noqa: E402

from vimdeploy.graph.export import export_onnx  # noqa: E402
from vimdeploy.graph.forms import portable  # noqa: E402
from vimdeploy.runtime.ort import open_session  # noqa: E402

BOUND = 1e-4


def cases() -> dict[str, Callable[[], tuple[Any, Any, Any]]]:
    """Return, by name, what makes (model, images, the official logits)."""

    def vim(name: str) -> tuple[Any, Any, Any]:
        golden = goldens.golden(name)
        return golden.model(), golden.arrays["images"], golden.arrays["logits"]

    def vmamba(name: str) -> tuple[Any, Any, Any]:
        model, arrays = vmamba_cases.golden(name)
        return model, arrays["images"], arrays["logits"]

    found = {name: lambda name=name: vim(name) for name in (*goldens.NAMES, goldens.FULL)}
    return {**found, **{name: lambda name=name: vmamba(name) for name in vmamba_cases.GOLDENS}}


def in_openvino(content: bytes, images: Any) -> Any:
    import openvino

    core = openvino.Core()
    model = core.compile_model(core.read_model(io.BytesIO(content)), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return model(images)[0]


def outputs(model: Any, images: Any, name: str) -> list[Any]:
    """Return what every form of the exported model computes, in the order of the table."""
    exported = export_onnx(model)
    content, plain = exported.SerializeToString(), portable(exported).SerializeToString()
    sessions = (open_session(content, name, ops="body"), open_session(content, name, ops="native"))
    in_runtime = [s.run(None, {"images": images})[0] for s in (*sessions, open_session(plain, name, ops="body"))]
    return [*in_runtime, in_openvino(plain, images)]


def main() -> None:
    worst = 0.0
    print("| golden | bodies | native ops | portable, ONNX Runtime | portable, OpenVINO |\n|---|---|---|---|---|")
    for name, make in cases().items():
        model, images, logits = make()
        errors = [
            float(np.max(np.abs(output - logits) / (1 + np.abs(logits)))) for output in outputs(model, images, name)
        ]
        worst = max(worst, *errors)
        print(f"| {name} | {' | '.join(f'{error:.1e}' for error in errors)} |", flush=True)
    print(f"worst {worst:.1e}, bound {BOUND:.0e}")
    sys.exit(worst > BOUND)


if __name__ == "__main__":
    main()
