"""`vimdeploy serve-repo` as a function."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vimdeploy.serving.triton_repository import Repository, RepositoryOptions, ServedModel, write_repository

__all__ = ["Repository", "RepositoryOptions", "ServedModel", "serve_repo"]


def serve_repo(
    models: Sequence[str | Path], output: str | Path, options: RepositoryOptions | None = None
) -> Repository:
    """Write or extend a model repository for Triton; see :func:`.write_repository`."""
    return write_repository([Path(model) for model in models], Path(output), options or RepositoryOptions())
