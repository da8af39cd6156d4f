"""The model that an engine is built from: read, held to its manifest, in the precision that was asked for."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from vimdeploy.artifacts.files import sidecar_of
from vimdeploy.artifacts.manifest import Manifest, is_stale, manifest_path, read_manifest
from vimdeploy.artifacts.onnx_file import read_onnx
from vimdeploy.commands.convert import HalfOptions, to_half
from vimdeploy.errors import ArtifactError, UsageError
from vimdeploy.graph.policy import PRECISIONS
from vimdeploy.progress import Reporter
from vimdeploy.tensorrt.options import BuildOptions

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True)
class Request:
    """What :func:`vimdeploy.build_engine` was asked for beside the model."""

    options: BuildOptions = field(default_factory=BuildOptions)
    precision: str | None = None
    io_dtype: str = "fp32"
    keep: tuple[str, ...] = ()
    max_error: float | None = None
    images: Path | None = None
    timing_cache: Path | None = None
    verify: bool = True


@dataclass(frozen=True)
class Source:
    """A model to build."""

    path: Path
    model: onnx.ModelProto
    manifest: Manifest | None
    precision: str = "fp32"
    kept: tuple[str, ...] = ()
    """Nodes that a conversion kept in float32, each with the reason."""
    kept_blocks: bool = False
    """Whole blocks stay float32, because the contract could not be kept otherwise."""


def read_source(path: Path) -> Source:
    """Read a model and its manifest, if it has one.

    Raises:
        ArtifactError: no ONNX model, or not the one that its manifest describes.

    """
    model = read_onnx(path)
    if not sidecar_of(path, manifest_path(path)).exists():
        return Source(path, model, None)
    manifest = read_manifest(path)
    if is_stale(manifest, path):
        raise ArtifactError(
            f"{path}: is not the file that its manifest describes (SHA-256 differs).",
            hint="Export the model again, or delete the manifest to build without it.",
        )
    return Source(path, model, manifest)


def held_precision(model: onnx.ModelProto) -> str | None:
    """Return the half precision that a model's weights are in, or None where they are float32."""
    types = {tensor.data_type for tensor in model.graph.initializer}
    return next((p.name for p in PRECISIONS.values() if p.dtype.value in types), None)


def in_precision(source: Source, request: Request, reporter: Reporter) -> Source:
    """Return the source in the types to build.

    Raises:
        UsageError: the file is in another half precision, or an option would not be read.
        VerificationError: half precision does not keep the contract.

    """
    held, manifest = held_precision(source.model), source.manifest
    wanted = request.precision or held or (manifest.precision.engine if manifest else "fp32")
    if held is not None and wanted != held:
        raise UsageError(
            f"{source.path}: is in {held} already, so it cannot be built as {wanted}.",
            hint=f"Leave --{wanted} out, or build the float32 file that 'vimdeploy export' wrote.",
        )
    _refuse_idle(source, replace(request, precision=wanted), held)
    if held:
        kept_blocks = bool(manifest and (manifest.conversion or {}).get("kept_blocks"))
        return replace(source, precision=held, kept_blocks=kept_blocks)
    if wanted == "fp32":
        return source
    options = HalfOptions(wanted, request.io_dtype, request.keep, request.max_error, request.images, request.verify)
    bounded = manifest.bounded(precision=wanted, max_error=request.max_error) if manifest else None
    half = to_half(source.model, bounded, options, str(source.path), reporter)
    kept = tuple(f"{k.node}: {k.reason}" for k in half.report.kept)
    return Source(source.path, half.model, bounded, wanted, kept, bool(half.blocks))


def _refuse_idle(source: Source, request: Request, held: str | None) -> None:
    """Raise UsageError for an option that nothing would read, ``held`` being the precision that the file is in."""
    converts = held is None and request.precision != "fp32"
    for_half = {
        "--keep": bool(request.keep),
        "--max-error": request.max_error is not None,
        "--io-dtype": request.io_dtype != "fp32",
    }
    if not converts and (name := next((name for name, given in for_half.items() if given), None)):
        raise UsageError(
            f"{name} is for converting to half precision, and "
            f"{f'{source.path} is in {held} already' if held else 'the engine is built in float32'}.",
            hint="Leave it out, or give it to 'vimdeploy convert'." if held else "Leave it out, or add --fp16.",
        )
    if request.images is None:
        return
    why = ""
    if held:
        why = f"is in {held} already"
    elif source.manifest is None:
        why = "has no manifest, which says how images become tensors"
    elif not (converts or request.verify):
        why = "is neither converted nor verified"
    if why:
        raise UsageError(f"--images would not be used: {source.path} {why}.", hint="Leave it out.")
