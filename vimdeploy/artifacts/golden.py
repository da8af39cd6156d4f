"""Inputs and outputs of a module as it was exported, stored beside the file: what proves it without the module's code.

``m.onnx.golden.npz`` holds a few cases, each a full set of inputs and the outputs that PyTorch gave for them.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vimdeploy.artifacts.files import sha256_file
from vimdeploy.errors import ArtifactError

AnyArray = npt.NDArray[Any]


class Samples:
    """Named inputs of one batch size; indexed like one array along the batch."""

    def __init__(self, arrays: Mapping[str, AnyArray]) -> None:
        self.arrays = dict(arrays)

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values())))

    def __getitem__(self, part: Any) -> Samples:
        return Samples({name: array[part] for name, array in self.arrays.items()})


@dataclass(frozen=True)
class Case:
    """One set of inputs with the outputs that belong to it."""

    inputs: Samples
    outputs: dict[str, AnyArray]


def golden_path(artifact: Path) -> Path:
    """Return where the golden cases of an ONNX file lie."""
    return artifact.with_name(f"{artifact.name}.golden.npz")


def pack(cases: Sequence[Case]) -> bytes:
    """Return the content of a golden file; equal cases give equal bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for index, case in enumerate(cases):
            for kind, arrays in (("in", case.inputs.arrays), ("out", case.outputs)):
                for name, array in arrays.items():
                    part = io.BytesIO()
                    np.lib.format.write_array(part, np.ascontiguousarray(array), allow_pickle=False)
                    # A fixed date, so that the same export gives the same file.
                    entry = zipfile.ZipInfo(f"{index}/{kind}/{name}.npy", (1980, 1, 1, 0, 0, 0))
                    archive.writestr(entry, part.getvalue(), zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


def read_golden(artifact: Path, sha256: str) -> list[Case]:
    """Read the golden cases of an ONNX file.

    Args:
        artifact: the ONNX file.
        sha256: what its manifest says the golden file's hash is; files a conversion made share the original's content.

    Raises:
        ArtifactError: the file is missing, damaged or another one than the manifest says.

    """
    path = golden_path(artifact)
    if not path.is_file():
        raise ArtifactError(
            f"{path}: the golden inputs and outputs of {artifact.name} are missing.",
            hint="Copy them along with the model, or export it again.",
        )
    if sha256_file(path) != sha256:
        raise ArtifactError(
            f"{path}: is not the file that the manifest of {artifact.name} names (SHA-256 differs).",
            hint="Copy the right one, or export the model again.",
        )
    parts: dict[int, dict[str, dict[str, AnyArray]]] = {}
    try:
        with np.load(path, allow_pickle=False) as content:
            for key in content.files:
                index, kind, name = key.split("/", 2)
                parts.setdefault(int(index), {"in": {}, "out": {}})[kind][name] = content[key]
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise ArtifactError(f"{path}: cannot be read: {error}.", hint="Export the model again.") from error
    return [Case(Samples(parts[i]["in"]), parts[i]["out"]) for i in sorted(parts)]
