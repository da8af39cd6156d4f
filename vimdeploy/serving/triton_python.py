"""Models for Triton's python backend; the ``model.py`` that :mod:`.triton_repository` writes import them.

Triton owns the process: it calls ``initialize`` once, ``execute`` with the requests that its batcher joined, and
``finalize``. A request that cannot be served gets its own error; the others in the batch get their answers.
"""

from __future__ import annotations

import json
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from vimdeploy.artifacts.images import load_image
from vimdeploy.artifacts.manifest import Manifest, parse_manifest
from vimdeploy.errors import VimdeployError
from vimdeploy.runtime.session import load

MODEL_FILE, MANIFEST_FILE = "model.onnx", "manifest.json"


class RuntimeModel:
    """Runs an ONNX file through :func:`vimdeploy.load`: tensors in, tensors out."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open the model of this version; ``args`` are Triton's."""
        self._session = load(_folder(args) / MODEL_FILE)

    def execute(self, requests: list[Any]) -> list[Any]:
        """Run the joined requests as one batch."""
        import triton_python_backend_utils as pb

        name = self._session.inputs[0].name
        arrays = [pb.get_input_tensor_by_name(request, name).as_numpy() for request in requests]
        try:
            found = self._session.run({name: np.ascontiguousarray(np.concatenate(arrays))})
        except VimdeployError as error:
            return [_refusal(pb, error) for _ in requests]
        answers, start = [], 0
        for array in arrays:
            rows = slice(start, start + len(array))
            tensors = [_tensor(pb, t.name, found[t.name][rows]) for t in self._session.outputs]
            answers.append(pb.InferenceResponse(output_tensors=tensors))
            start = rows.stop
        return answers

    def finalize(self) -> None:
        """Give the session back."""
        self._session.close()


class PreprocessModel:
    """Turns the bytes of image files into the tensor that a model takes, as ``vimdeploy predict`` does."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read the manifest of this version; ``args`` are Triton's."""
        path = _folder(args) / MANIFEST_FILE
        self._manifest: Manifest = parse_manifest(json.loads(path.read_text(encoding="utf-8")), path)

    def execute(self, requests: list[Any]) -> list[Any]:
        """Decode the images of each request."""
        import triton_python_backend_utils as pb

        answers = []
        for request in requests:
            files = pb.get_input_tensor_by_name(request, "image_file").as_numpy().reshape(-1)
            try:
                images = np.stack([self._image(place, content) for place, content in enumerate(files)])
            except VimdeployError as error:
                answers.append(_refusal(pb, error))
                continue
            images = images.astype(self._manifest.input.dtype, copy=False)
            answers.append(pb.InferenceResponse(output_tensors=[_tensor(pb, self._manifest.input.name, images)]))
        return answers

    def _image(self, place: int, content: bytes) -> Any:
        return load_image(BytesIO(content), self._manifest.image_input(), name=f"image {place} of the request")


def _folder(args: dict[str, str]) -> Path:
    return Path(args["model_repository"]) / args["model_version"]


def _tensor(pb: Any, name: str, array: Any) -> Any:
    return pb.Tensor(name, np.ascontiguousarray(array))


def _refusal(pb: Any, error: VimdeployError) -> Any:
    return pb.InferenceResponse(output_tensors=[], error=pb.TritonError(str(error), pb.TritonError.INVALID_ARG))
