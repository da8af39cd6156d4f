"""The sidecar beside every artifact: ``vim.onnx`` is accompanied by ``vim.onnx.json``.

Everything downstream reads it, on machines that have neither torch nor the checkpoint.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from vimdeploy.artifacts.files import sha256_file, sidecar_of
from vimdeploy.artifacts.recipe import BatchProfile, Classes, InputSpec, Parity, Precision
from vimdeploy.errors import ArtifactError

SCHEMA_VERSION = 1
PLAN_SUFFIXES = (".engine", ".plan", ".trt")
"""Names of TensorRT plans. Their manifest is :class:`vimdeploy.artifacts.engine_manifest.EngineManifest`."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TensorInfo(_Section):
    """One input or output; a symbolic dimension is its name."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


class ModelInfo(_Section):
    """What was exported."""

    family: str
    task: str
    recipe: str | None
    parameters: int
    arguments: dict[str, Any]
    """Arguments of the official constructor, as trained."""
    img_size: tuple[int, int]
    """(height, width) as exported; differs from the arguments' where position embeddings were resized."""
    official_pos_resize: bool
    sources: dict[str, str]
    """Where each argument came from."""


class CheckpointInfo(_Section):
    """Where the weights came from."""

    file: str
    """Relative to the artifact's folder; empty for random weights."""
    sha256: str
    weights: str
    """``model``, ``ema`` or ``random``."""


class OnnxInfo(_Section):
    """The file that this manifest belongs to."""

    sha256: str
    opset: int
    op_contract: int
    """Version of the custom ops' contract."""
    custom_ops: dict[str, int]
    nodes: int


class Manifest(_Section):
    """Everything that is known about an exported ONNX file."""

    schema_version: Literal[1] = 1
    kind: Literal["onnx"] = "onnx"
    tools: dict[str, str]
    """Versions of vimdeploy and the libraries that made the file."""
    model: ModelInfo
    checkpoint: CheckpointInfo
    onnx: OnnxInfo
    preprocessing: InputSpec
    classes: Classes
    input: TensorInfo
    outputs: tuple[TensorInfo, ...]
    precision: Precision
    batch: BatchProfile
    contract: Parity
    parity: dict[str, Any] | None
    """Report of the verification at export; None if it was left out."""
    notes: tuple[str, ...]
    conversion: dict[str, Any] | None = None
    """What `vimdeploy convert` changed; None for a file as exported."""

    def bounded(self, *, precision: str, max_error: float | None) -> Manifest:
        """Return it with ``max_error`` as the bound on a precision's relative RMS error; None keeps the recipe's."""
        if max_error is None:
            return self
        contract = self.contract[precision].model_copy(update={"relative_rms": max_error})
        return self.model_copy(update={"contract": self.contract.model_copy(update={precision: contract})})

    def to_bytes(self) -> bytes:
        """Return the JSON text of the sidecar."""
        return (self.model_dump_json(indent=2) + "\n").encode()


def manifest_path(artifact: Path) -> Path:
    """Return where the manifest of an artifact lies."""
    return artifact.with_name(artifact.name + ".json")


def read_manifest(artifact: Path) -> Manifest:
    """Read the manifest beside an artifact.

    Raises:
        ArtifactError: it is missing, not JSON, of a newer schema, or not a manifest.

    """
    path = sidecar_of(artifact, manifest_path(artifact))
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ArtifactError(
            f"{path}: the manifest of {artifact.name} is missing.",
            hint="Copy it along with the model, or export the model again.",
        ) from error
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ArtifactError(f"{path}: not a readable JSON file: {error}.", hint="Export the model again.") from error
    return parse_manifest(data, path)


def parse_manifest(data: Any, path: Path) -> Manifest:
    """Validate the content of a manifest; see :func:`read_manifest`."""
    version = data.get("schema_version") if isinstance(data, dict) else None
    if not isinstance(version, int):
        raise ArtifactError(f"{path}: is not a vimdeploy manifest.", hint="Export the model again.")
    if version > SCHEMA_VERSION:
        raise ArtifactError(
            f"{path}: has manifest schema {version}; this vimdeploy reads up to {SCHEMA_VERSION}.",
            hint="Upgrade vimdeploy: pip install --upgrade vimdeploy",
        )
    try:
        return Manifest.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ArtifactError(f"{path}: {where}: {first['msg']}.", hint="Export the model again.") from error


def is_stale(manifest: Manifest, artifact: Path) -> bool:
    """Whether the file is not the one that the manifest describes."""
    return sha256_file(artifact) != manifest.onnx.sha256
