"""Where an exported file came from: its checkpoint, and how to load the same model again."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from vimdeploy.artifacts.manifest import referenced_checkpoint
from vimdeploy.errors import UsageError

if TYPE_CHECKING:
    from vimdeploy.artifacts.manifest import Manifest
    from vimdeploy.models.load import ModelRequest


def find_checkpoint(path: Path, manifest: Manifest, named: Path | None) -> Path | None:
    """Return the checkpoint of an exported file: the one that the user named, or where its manifest says.

    Args:
        path: the exported file.
        manifest: its manifest.
        named: the checkpoint, where the manifest's path no longer leads to it.

    Returns:
        None where the weights were random.

    Raises:
        UsageError: it is not there.

    """
    if manifest.checkpoint.weights == "random":
        if named is not None:
            raise UsageError(f"{path}: was exported with random weights, not from {named}.", hint="Leave it out.")
        return None
    checkpoint = named or referenced_checkpoint(manifest, path)
    if named is None and not manifest.checkpoint.file:
        raise UsageError(
            f"{path}: its manifest is missing, and the file itself does not say where its checkpoint lies.",
            hint=f"Pass the checkpoint with --checkpoint; its SHA-256 is {manifest.checkpoint.sha256}.",
        )
    if named is None and not checkpoint.is_file():
        raise UsageError(
            f"{checkpoint}: the checkpoint that {path.name} was exported from is not there.",
            hint=f"Pass it with --checkpoint; its SHA-256 is {manifest.checkpoint.sha256}.",
        )
    if not checkpoint.exists():
        raise UsageError(
            f"{checkpoint}: the checkpoint that {path.name} was exported from is not there.",
            hint=f"Pass it with --checkpoint; its SHA-256 is {manifest.checkpoint.sha256}.",
        )
    return checkpoint


def request_of(manifest: Manifest) -> ModelRequest:
    """Return what loads the same model again."""
    from vimdeploy.models.load import ModelRequest

    if manifest.checkpoint.weights == "random":
        return ModelRequest(arch=manifest.model.recipe, img_size=manifest.model.img_size)
    return ModelRequest(
        model_args=manifest.model.arguments,
        weights=manifest.checkpoint.weights,
        img_size=manifest.model.img_size,
        official_pos_resize=manifest.model.official_pos_resize,
        task=manifest.model.task,
    )
