"""The rungs of one exported model, for :func:`vimdeploy.parity.ladder.climb`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vimdeploy.artifacts.engine_manifest import read_engine_manifest
from vimdeploy.artifacts.manifest import Manifest
from vimdeploy.artifacts.onnx_file import fixed_batch
from vimdeploy.backends.base import Array, Backend, filled
from vimdeploy.backends.onnxruntime import OnnxBackend
from vimdeploy.backends.session import open_engine
from vimdeploy.errors import ArtifactError, MissingDependencyError, VerificationError, VimdeployError
from vimdeploy.graph.check import check_model
from vimdeploy.graph.policy import Policy
from vimdeploy.parity.departure import first_departing_node
from vimdeploy.parity.half import half_form
from vimdeploy.parity.ladder import Rung
from vimdeploy.progress import SILENT, Reporter

if TYPE_CHECKING:
    import onnx

    from vimdeploy.models.family import FamilyModel


@dataclass(frozen=True)
class Subject:
    """What is verified: an exported float32 model, in a half precision, down to its engines."""

    model: onnx.ModelProto
    manifest: Manifest
    torch_model: FamilyModel | None
    """None leaves the PyTorch rungs out, with the reason below."""
    torch_missing: str = ""
    precision: str = "fp16"
    policy: Policy | None = None
    """None takes what ``convert`` and ``build-engine`` do: the policy with the recipe's exclusions, and the blocks in
    float32 without which the contract cannot be kept."""
    engines: tuple[Path, ...] = ()


def make_rungs(subject: Subject, images: Array, reporter: Reporter = SILENT) -> list[Rung]:
    """Return the ladder: torch float32, torch half, ONNX float32, ONNX half, engine float32, engine half."""
    task, half = subject.manifest.model.task, subject.precision
    batch = fixed_batch(subject.model)
    form = half_form(subject.model, subject.manifest, images, half, subject.policy, reporter)
    note = f"{', '.join(form.kept)} in float32" if form.kept else ""
    bound = subject.manifest.contract[half].relative_rms or 1e-2

    def torch_rung(precision: str) -> Backend:
        if subject.torch_model is None:
            raise MissingDependencyError(subject.torch_missing or "the checkpoint is not at hand")
        from vimdeploy.backends.torch import TorchBackend

        if precision == "fp32":
            return TorchBackend(subject.torch_model, task)
        from vimdeploy.parity.torch_policy import lowered

        return TorchBackend(lowered(subject.torch_model, precision, keep=form.kept), task)

    def half_rung() -> Backend:
        # What is emulated is float32: a type that an op does not take would go unseen.
        try:
            check_model(form.model, f"the {half} model", allow_reversal=True)
        except ArtifactError as error:
            raise VerificationError(error.message) from error
        return OnnxBackend(form.emulated, ops="body")

    def departs(samples: Array) -> str:
        found = first_departing_node(subject.model, form.emulated, filled(samples, batch or 2), bound)
        return found.in_words() if found else "no single node departs from the float32 model"

    return [
        Rung("torch float32", "fp32", lambda: torch_rung("fp32")),
        Rung(f"torch {half}", half, lambda: torch_rung(half), note=note),
        Rung("ONNX float32", "fp32", lambda: OnnxBackend(subject.model, ops="body")),
        Rung(f"ONNX {half}", half, half_rung, departs, note),
        Rung("engine fp32", "fp32", lambda: open_engine(subject.engines, "fp32")),
        Rung(f"engine {half}", half, lambda: open_engine(subject.engines, half)),
    ]


def engine_source(plan: Path) -> Path:
    """Return the ONNX file that a plan was built from, beside it; VimdeployError where it is not there."""
    manifest = read_engine_manifest(plan)
    source = plan.parent / manifest.onnx_file
    if not source.is_file():
        raise VimdeployError(
            f"{source}: the ONNX file that {plan.name} was built from is not there.",
            hint="Copy it beside the plan; it is what the plan is verified against.",
        )
    from vimdeploy.artifacts.files import sha256_file

    if sha256_file(source) != manifest.onnx_sha256:
        raise ArtifactError(
            f"{source}: is not the file that {plan.name} was built from (SHA-256 differs).",
            hint="Build the engine again from it.",
        )
    return source
