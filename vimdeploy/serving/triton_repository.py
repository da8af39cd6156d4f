"""`vimdeploy serve-repo`: a model repository for Triton from exported files and their manifests alone.

For ``digits.onnx`` it holds the model ``digits`` (tensors in, logits out), ``digits_preprocess`` (image files in,
tensors out) and the ensemble ``digits_image`` of both, each with one more version for every call.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from vimdeploy.artifacts.engine_manifest import EngineManifest, read_engine_manifest
from vimdeploy.artifacts.files import sha256_file, write_all
from vimdeploy.artifacts.manifest import PLAN_SUFFIXES, Manifest, TensorInfo, read_manifest
from vimdeploy.errors import ArtifactError, UsageError
from vimdeploy.serving.triton_config import Batching, TensorConfig, ensemble_config, model_config
from vimdeploy.serving.triton_python import MANIFEST_FILE, MODEL_FILE

Backend = Literal["auto", "onnxruntime", "python"]
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_LABELS = "labels.txt"


@dataclass(frozen=True)
class RepositoryOptions:
    """How the models are served; the defaults are the recommended way."""

    backend: Backend = "auto"
    """For ONNX files: ``onnxruntime`` is Triton's own, ``python`` runs :func:`vimdeploy.load`; auto takes the first."""
    instances: int = 1
    delay_us: int = 500
    queue: int = 256
    timeout_us: int = 10_000_000
    keep_versions: int = 1
    warmup: bool = True
    images: bool = True
    """Also write the ensemble that takes image files."""
    native_ops: Path | None = None
    """Library of native CPU ops that ONNX Runtime loads."""
    python_path: tuple[str, ...] = ()
    """Folders that the python backend imports from first, where vimdeploy is not in the server's own Python."""


@dataclass(frozen=True)
class ServedModel:
    """One artifact in the repository."""

    name: str
    version: int
    backend: str
    source: str
    models: tuple[str, ...]
    """Every model that was written for it."""
    largest_batch: int


@dataclass
class Repository:
    """What was written, and how to start a server on it."""

    folder: Path
    models: list[ServedModel] = field(default_factory=list)
    backend_options: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def command(self) -> str:
        """The line that starts the server."""
        return " ".join(["tritonserver", f"--model-repository={self.folder}", *self.backend_options])


@dataclass(frozen=True)
class _Artifact:
    path: Path
    name: str
    manifest: Manifest
    """Of the ONNX file; what a plan was built from."""
    plan: EngineManifest | None
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    largest_batch: int
    """0 where the batch is fixed."""


def write_repository(models: Sequence[Path], folder: Path, options: RepositoryOptions) -> Repository:
    """Write or extend a repository.

    Each model appears whole: a new version is complete in a folder beside the repository before it takes its name, so
    that a server which polls never sees half of one.

    Raises:
        ArtifactError: a model or its manifest is missing, foreign or changed; the folder cannot be written.
        UsageError: two models of one name, or one that Triton cannot serve.

    """
    artifacts = [_read(path) for path in models]
    names = [artifact.name for artifact in artifacts]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UsageError(f"Two models would be called '{twice}'.", hint="Rename one of the files.")
    repository = Repository(folder)
    for artifact in artifacts:
        repository.models.append(_write(artifact, folder, options))
        _note(artifact, repository)
    if any(model.backend == "python" or len(model.models) > 1 for model in repository.models):
        repository.notes.append("the server's Python needs vimdeploy with its extra [ort]: see docs/serving.md")
    return repository


def _note(artifact: _Artifact, repository: Repository) -> None:
    plugin = artifact.plan.plugin if artifact.plan else None
    if plugin and not plugin.embedded:
        option = f"--backend-config=tensorrt,plugins={plugin.file}"
        if option not in repository.backend_options:
            repository.backend_options.append(option)
        repository.notes.append(
            f"{artifact.name} needs the plugin library {plugin.file} (version {plugin.version}): copy it to the server "
            "and give its path there"
        )
    if artifact.plan and artifact.plan.tensorrt.flavour == "rtx":
        repository.notes.append(f"{artifact.name} is a plan of TensorRT-RTX, which Triton's tensorrt backend refuses")


def _read(path: Path) -> _Artifact:
    if not path.is_file():
        raise ArtifactError(f"{path}: there is no such file.")
    name = path.name.removesuffix(path.suffix)
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{path}: '{name}' is no name for a model.", hint="Rename it: letters, digits, '_', '-' and '.' only."
        )
    if path.suffix in PLAN_SUFFIXES:
        return _read_plan(path, name)
    manifest = read_manifest(path)
    if sha256_file(path) != manifest.onnx.sha256:
        raise ArtifactError(
            f"{path}: is not the file that its manifest describes.", hint="Copy both together, or export again."
        )
    if (manifest.conversion or {}).get("precision") == "bf16":
        raise UsageError(f"{path}: is in BF16, which ONNX Runtime does not run.", hint="Build an engine from it.")
    largest = 0 if isinstance(manifest.input.shape[0], int) else manifest.batch.max
    return _Artifact(path, name, manifest, None, (manifest.input,), manifest.outputs, largest)


def _read_plan(path: Path, name: str) -> _Artifact:
    plan = read_engine_manifest(path)
    if sha256_file(path) != plan.plan_sha256:
        raise ArtifactError(
            f"{path}: is not the plan that its manifest describes.", hint="Copy both together, or build it again."
        )
    if plan.source is None:
        raise ArtifactError(
            f"{path}: was built from a file without a manifest: its preprocessing and classes are not known.",
            hint="Build it again from a file that `vimdeploy export` wrote, with its manifest beside it.",
        )
    largest = 0
    if plan.profiles:
        least, _, most = next(iter(plan.profiles[0].values()))
        if least[0] > 1:
            raise UsageError(
                f"{path}: takes batches of {least[0]} and more, a server gets single images.",
                hint="Build it again with a profile that begins at 1.",
            )
        largest = most[0]
    return _Artifact(path, name, plan.source, plan, plan.inputs, plan.outputs, largest)


def _write(artifact: _Artifact, folder: Path, options: RepositoryOptions) -> ServedModel:
    backend = "tensorrt" if artifact.plan else "onnxruntime" if options.backend == "auto" else options.backend
    batching = Batching(artifact.largest_batch, options.delay_us, options.queue, options.timeout_us)
    skip = 1 if artifact.largest_batch else 0
    labels = artifact.manifest.classes.labels() if artifact.manifest.model.task == "classify" else None
    inputs = [_tensor(info, skip) for info in artifact.inputs]
    outputs = [_tensor(info, skip, _LABELS if labels else None) for info in artifact.outputs]
    top = {_LABELS: "\n".join(labels).encode() + b"\n"} if labels else {}
    names = [artifact.name, f"{artifact.name}_preprocess", f"{artifact.name}_image"]
    version = 1 + max((_newest(folder / name) for name in names), default=0)
    config = model_config(
        artifact.name,
        _backend_fields(backend, options),
        inputs,
        outputs,
        batching,
        instances=options.instances,
        gpu=artifact.plan is not None,
        keep_versions=options.keep_versions,
        warmup=options.warmup,
        extra=_native_ops(backend, options),
    )
    _add_version(folder, artifact.name, version, config, top, _version_files(artifact, backend, options))
    written = [artifact.name]
    if options.images and artifact.largest_batch:
        written += _write_image_models(artifact, folder, version, options, batching, outputs, top)
    return ServedModel(artifact.name, version, backend, str(artifact.path), tuple(written), artifact.largest_batch)


def _write_image_models(
    artifact: _Artifact,
    folder: Path,
    version: int,
    options: RepositoryOptions,
    batching: Batching,
    outputs: Sequence[TensorConfig],
    top: Mapping[str, bytes],
) -> list[str]:
    before, whole = f"{artifact.name}_preprocess", f"{artifact.name}_image"
    tensor = _tensor(artifact.inputs[0], 1)
    file = TensorConfig("image_file", "bytes", (1,))
    config = model_config(
        before,
        {"backend": "python"},
        [file],
        [tensor],
        batching,
        instances=options.instances,
        gpu=False,
        keep_versions=options.keep_versions,
        warmup=False,
    )
    # The tensor's type is that of the model as served: a plan may take half precision where the ONNX file did not.
    manifest = artifact.manifest.model_copy(update={"input": artifact.inputs[0]})
    files = {"model.py": _model_py("PreprocessModel", options), MANIFEST_FILE: manifest.to_bytes()}
    _add_version(folder, before, version, config, {}, files)
    steps = [
        (before, {"image_file": "image_file"}, {tensor.name: "preprocessed"}),
        (artifact.name, {tensor.name: "preprocessed"}, {output.name: output.name for output in outputs}),
    ]
    config = ensemble_config(whole, steps, [file], outputs, batching, keep_versions=options.keep_versions)
    _add_version(folder, whole, version, config, top, {})
    return [before, whole]


def _backend_fields(backend: str, options: RepositoryOptions) -> dict[str, str]:
    return {"platform": "tensorrt_plan"} if backend == "tensorrt" else {"backend": backend}


def _native_ops(backend: str, options: RepositoryOptions) -> dict[str, object]:
    if backend != "onnxruntime" or options.native_ops is None:
        return {}
    return {"model_operations": {"op_library_filename": [options.native_ops.name]}}


def _version_files(artifact: _Artifact, backend: str, options: RepositoryOptions) -> dict[str, Path | bytes]:
    if backend == "tensorrt":
        return {"model.plan": artifact.path}
    files: dict[str, Path | bytes] = {MODEL_FILE: artifact.path, f"{MODEL_FILE}.json": artifact.manifest.to_bytes()}
    if backend == "python":
        files["model.py"] = _model_py("RuntimeModel", options)
    elif options.native_ops is not None:
        files[options.native_ops.name] = options.native_ops
    return files


def _model_py(model: str, options: RepositoryOptions) -> bytes:
    lines = [f'"""Served by vimdeploy.serving.triton_python.{model}."""', ""]
    if options.python_path:
        lines += ["import sys", "", f"sys.path[:0] = {list(options.python_path)!r}", ""]
    lines += [f"from vimdeploy.serving.triton_python import {model} as TritonPythonModel  # noqa: F401"]
    return ("\n".join(lines) + "\n").encode()


def _tensor(info: TensorInfo, skip: int, label_file: str | None = None) -> TensorConfig:
    dims = tuple(-1 if isinstance(size, str) or size < 0 else size for size in info.shape[skip:])
    return TensorConfig(info.name, info.dtype, dims, label_file)


def _newest(model: Path) -> int:
    if not model.is_dir():
        return 0
    return max((int(entry.name) for entry in model.iterdir() if entry.name.isdecimal()), default=0)


def _add_version(
    folder: Path,
    name: str,
    version: int,
    config: str,
    top: Mapping[str, bytes],
    files: Mapping[str, Path | bytes],
) -> None:
    """Add a version to a model: complete under a pending name beside the repository, then renamed."""
    pending = folder.parent / f".part.{os.getpid()}.{folder.name}.{name}"
    try:
        try:
            new = not (folder / name).exists()
            target = pending / str(version) if new else pending
            target.mkdir(parents=True)
            for file, content in files.items():
                if isinstance(content, Path):
                    shutil.copyfile(content, target / file)
                else:
                    (target / file).write_bytes(content)
            for file, content in (*top.items(), ("config.pbtxt", config.encode())):
                if new:
                    (pending / file).write_bytes(content)
                else:
                    write_all({folder / name / file: content})
            folder.mkdir(parents=True, exist_ok=True)
            pending.rename(folder / name if new else folder / name / str(version))
        finally:
            with suppress(OSError):
                shutil.rmtree(pending)
    except OSError as error:
        raise ArtifactError(
            f"{folder}: cannot be written: {error.strerror or error}.",
            hint="Free some space or choose another folder with -o; models that were there are as before.",
        ) from error
