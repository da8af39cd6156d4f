"""The sidecar beside every artifact: ``vim.onnx`` is accompanied by ``vim.onnx.json``.

Everything downstream reads it, on machines that have neither torch nor the checkpoint.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vimdeploy.artifacts.files import sha256_bytes, sha256_file, sidecar_of
from vimdeploy.artifacts.onnx_facts import read_facts, take_digest, with_facts
from vimdeploy.artifacts.recipe import BatchProfile, Classes, InputSpec, Parity, Precision, Side
from vimdeploy.artifacts.structured import read_json
from vimdeploy.errors import ArtifactError, UsageError

SCHEMA_VERSION = 1
PLAN_SUFFIXES = (".engine", ".plan", ".trt")
"""Names of TensorRT plans. Their manifest is :class:`vimdeploy.artifacts.engine_manifest.EngineManifest`."""


_AGAIN = "Export the model again."

Count = Annotated[int, Field(ge=0, le=10**12)]
"""Of parameters, nodes, bytes."""
Dimension = Annotated[int, Field(ge=-1, le=2**31)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TensorInfo(_Section):
    """One input or output; a symbolic dimension is its name."""

    name: str
    dtype: str
    shape: Annotated[tuple[Dimension | str, ...], Field(max_length=16)]


class ModelInfo(_Section):
    """What was exported."""

    family: str
    task: str
    recipe: str | None
    parameters: Count
    arguments: dict[str, Any]
    """Arguments of the official constructor, as trained."""
    img_size: tuple[Side, Side] | None
    """(height, width) as exported; differs from the arguments' where position embeddings were resized. None for a
    module that takes no image."""
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


Shape = Annotated[tuple[Dimension, ...], Field(max_length=16)]


class ModuleInfo(_Section):
    """A module of the user's, exported by ``export_module``."""

    entry: str | None
    """How to build it again, ``package.module:function``; None where a module object was exported."""
    kwargs: dict[str, Any]
    """Arguments of the entry."""
    import_paths: tuple[str, ...] = ()
    """Folders that the entry is imported from, relative to the file's own."""
    inputs: tuple[TensorInfo, ...]
    golden_sha256: str
    """Of ``NAME.onnx.golden.npz``: inputs, and the outputs that PyTorch gave for them."""
    blocks: tuple[str, ...]
    """Paths in the module tree of what the file's values call ``block.0``, ``block.1``, ..."""
    substituted: tuple[str, ...]
    """Modules that substitutes stood in for."""
    stubbed: tuple[str, ...]
    """Absent packages that were stubbed."""
    rewrites: dict[str, int]
    """How often which rewrite of the graph applied."""
    profile: dict[str, tuple[Shape, Shape, Shape]]
    """Smallest, best and largest shape of every input for an optimization profile; empty where all are fixed."""


class OnnxInfo(_Section):
    """The file that this manifest belongs to."""

    sha256: str
    opset: Annotated[int, Field(ge=1, le=1000)]
    op_contract: Annotated[int, Field(ge=0, le=1000)]
    """Version of the custom ops' contract."""
    custom_ops: dict[str, Count]
    nodes: Count


class Manifest(_Section):
    """Everything that is known about an exported ONNX file."""

    schema_version: Literal[1] = 1
    kind: Literal["onnx"] = "onnx"
    tools: dict[str, str]
    """Versions of vimdeploy and the libraries that made the file."""
    model: ModelInfo
    checkpoint: CheckpointInfo
    onnx: OnnxInfo
    preprocessing: InputSpec | None
    """None for a module that takes no images."""
    classes: Classes
    input: TensorInfo
    outputs: tuple[TensorInfo, ...]
    precision: Precision
    batch: BatchProfile
    contract: Parity
    parity: dict[str, Any] | None
    """Report of the verification at export; None if it was left out."""
    notes: tuple[str, ...]
    golden_sha256: str | None = None
    """Of the file with stored inputs and outputs beside it; None for files from before there was one."""
    conversion: dict[str, Any] | None = None
    """What `vimdeploy convert` changed; None for a file as exported."""

    def bounded(self, *, precision: str, max_error: float | None) -> Manifest:
        """Return it with ``max_error`` as the bound on a precision's relative RMS error; None keeps the recipe's."""
        if max_error is None:
            return self
        contract = self.contract[precision].model_copy(update={"relative_rms": max_error})
        return self.model_copy(update={"contract": self.contract.model_copy(update={precision: contract})})

    module: ModuleInfo | None = None
    """None for a model of a family that vimdeploy knows."""

    def image_input(self) -> InputSpec:
        """Return how image files become the input; UsageError for a module that takes no images."""
        if self.preprocessing is None:
            raise UsageError(
                "this file takes no images: it is a module whose inputs are "
                f"{', '.join(t.name for t in self.module.inputs) if self.module else self.input.name}.",
                hint="Run it with vimdeploy.load(...), which takes arrays by name.",
            )
        return self.preprocessing

    def to_bytes(self) -> bytes:
        """Return the JSON text of the sidecar."""
        return (self.model_dump_json(indent=2) + "\n").encode()


def manifest_path(artifact: Path) -> Path:
    """Return where the manifest of an artifact lies."""
    return artifact.with_name(artifact.name + ".json")


def read_manifest(artifact: Path) -> Manifest:
    """Read the manifest beside an artifact, or, where it was left behind, the facts inside the ONNX file.

    Raises:
        ArtifactError: it is missing, not JSON, of a newer schema, or not a manifest.

    """
    path = sidecar_of(artifact, manifest_path(artifact))
    try:
        data = read_json(path, hint=_AGAIN)
    except FileNotFoundError as error:
        if (alone := _embedded_manifest(artifact)) is not None:
            return alone
        raise ArtifactError(
            f"{path}: the manifest of {artifact.name} is missing.",
            hint="Copy it along with the model, or export the model again.",
        ) from error
    return parse_manifest(data, path)


def sealed(content: bytes, manifest: Manifest) -> tuple[bytes, Manifest]:
    """Return an ONNX file that says of itself what its manifest says, and the manifest with the hash of that file.

    The file holds neither paths nor measurements.

    Args:
        content: serialised model.
        manifest: of it; its hash is replaced.

    """
    facts = manifest.model_dump(mode="json", exclude={"onnx": {"sha256"}, "checkpoint": {"file"}, "parity": True})
    content = with_facts(content, facts)
    info = manifest.onnx.model_copy(update={"sha256": sha256_bytes(content)})
    return content, manifest.model_copy(update={"onnx": info})


def _embedded_manifest(artifact: Path) -> Manifest | None:
    """Return the manifest of a file that travelled without its sidecar; None where it says nothing of itself."""
    facts = read_facts(artifact)
    if facts is None:
        return None
    sha256 = sha256_file(artifact) if take_digest(facts, artifact) else ""
    for section, more in (("onnx", {"sha256": sha256}), ("checkpoint", {"file": ""})):
        if isinstance(facts.get(section), dict):
            facts[section] |= more
    return parse_manifest({**facts, "parity": None}, artifact)


def parse_manifest(data: Any, path: Path) -> Manifest:
    """Validate the content of a manifest; see :func:`read_manifest`."""
    version = data.get("schema_version") if isinstance(data, dict) else None
    if not isinstance(version, int) or data.get("kind", "onnx") != "onnx":
        raise ArtifactError(f"{path}: is not a vimdeploy manifest.", hint=_AGAIN)
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
        raise ArtifactError(f"{path}: {where}: {first['msg']}.", hint=_AGAIN) from error


def is_stale(manifest: Manifest, artifact: Path) -> bool:
    """Whether the file is not the one that the manifest describes."""
    return sha256_file(artifact) != manifest.onnx.sha256


def refuse_modified(artifact: Path, manifest: Manifest, *, allow_modified: bool = False) -> None:
    """Raise ArtifactError if the file is not the one that the manifest describes, unless the user allows that."""
    if allow_modified or not is_stale(manifest, artifact):
        return
    facts = read_facts(artifact) or {}
    inside, beside = facts.get("model"), manifest.model.model_dump(mode="json")
    other = inside is not None and inside != beside
    what = "another model was put in its place" if other else "it was changed after the export"
    raise ArtifactError(
        f"{artifact}: is not the file that its manifest describes (SHA-256 differs): {what}.",
        hint="Copy model and manifest together, or export again. If the change is yours: --allow-modified, in Python "
        "allow_modified=True.",
    )


def refuse_modified_file(artifact: Path, *, allow_modified: bool = False) -> None:
    """Hold a file to its manifest if it has one, beside or inside it; see :func:`refuse_modified`."""
    if allow_modified:
        return
    if sidecar_of(artifact, manifest_path(artifact)).exists() or read_facts(artifact) is not None:
        refuse_modified(artifact, read_manifest(artifact))


def checkpoint_reference(checkpoint: Path, artifact: Path) -> str:
    """Return how a manifest names its checkpoint: relative to the artifact's real folder, where links lead.

    On another drive of Windows there is no such way, and the absolute path is named.
    """
    target, folder = checkpoint.resolve(), artifact.parent.resolve()
    try:
        return os.path.relpath(target, folder)
    except ValueError:
        return str(target)


def referenced_checkpoint(manifest: Manifest, artifact: Path) -> Path:
    """Return where the manifest's checkpoint should lie; see :func:`checkpoint_reference`.

    Whoever reads it asks first whether it is a file: a stranger's manifest may name anything.
    """
    return Path(os.path.normpath(artifact.parent.resolve() / manifest.checkpoint.file))


def moved(manifest: Manifest, source: Path, target: Path) -> Manifest:
    """Return a manifest for a file in another folder: its checkpoint is found from there."""
    if not manifest.checkpoint.file:
        return manifest
    reference = checkpoint_reference(referenced_checkpoint(manifest, source), target)
    checkpoint = manifest.checkpoint.model_copy(update={"file": reference})
    return manifest.model_copy(update={"checkpoint": checkpoint})
