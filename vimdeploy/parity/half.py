"""An exported model in half precision, as ``convert`` and ``build-engine`` make it, for those that compare."""

from __future__ import annotations

from dataclasses import dataclass

import onnx

from vimdeploy.artifacts.manifest import Manifest
from vimdeploy.artifacts.onnx_file import fixed_batch
from vimdeploy.backends.base import Array
from vimdeploy.graph.emulate import emulate
from vimdeploy.graph.policy import PRECISIONS, Policy
from vimdeploy.graph.precision import Report, convert_model
from vimdeploy.parity.ranges import measure
from vimdeploy.parity.sensitivity import Task, fit
from vimdeploy.progress import SILENT, Reporter

_IMAGES = 4
"""What a model of any batch is fitted on."""


@dataclass(frozen=True)
class HalfForm:
    """A model in half precision and how it came about."""

    model: onnx.ModelProto
    emulated: onnx.ModelProto
    """Float32, each value rounded as a GPU would; see :func:`vimdeploy.graph.emulate.emulate`."""
    report: Report
    kept: tuple[str, ...] = ()
    """Blocks that stay float32, or the contract would be broken."""


def half_form(
    model: onnx.ModelProto,
    manifest: Manifest,
    images: Array,
    precision: str,
    policy: Policy | None = None,
    reporter: Reporter = SILENT,
) -> HalfForm:
    """Convert an exported float32 model.

    Args:
        model: float32, as ``vimdeploy export`` wrote it.
        manifest: of it.
        images: (N, C, H, W) float32; the first of them are what it is fitted on.
        precision: ``fp16`` or ``bf16``.
        policy: None takes the policy with the recipe's exclusions, and the blocks in float32 without which the
            contract cannot be kept; another one is applied as it is.
        reporter: told where measuring begins, and how far it is.

    """
    images = images[: fixed_batch(model) or _IMAGES]
    ranges = measure(model, images)
    if policy is not None:
        converted, report = convert_model(model, PRECISIONS[precision], policy, ranges=ranges)
        return HalfForm(converted, emulate(converted), report)
    task = Task(model, images, manifest.contract[precision], manifest.model.task == "classify", ranges)
    fitted = fit(task, PRECISIONS[precision], Policy(keep=manifest.precision.keep_fp32), reporter)
    return HalfForm(fitted.model, emulate(fitted.model), fitted.report, fitted.kept)
