"""One face for everything that can compute a model: numpy images in, named numpy arrays out."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from vimdeploy.errors import ArtifactError
from vimdeploy.runtime.ort import open_session

if TYPE_CHECKING:
    import onnx

    from vimdeploy.models.registry import FamilyModel
    from vimdeploy.runtime.device_session import Face

Array = npt.NDArray[np.float32]


class Backend(Protocol):
    """Computes a model."""

    @property
    def name(self) -> str:
        """What computes it, for tables."""
        ...

    def run(self, images: Array) -> dict[str, Array]:
        """Map (B, C, H, W) float32 images to the outputs by name, the task's first."""
        ...


def joined(outputs: Mapping[str, Array]) -> Array:
    """Return one array per batch: the only output, or all of them flattened behind each other, (B, values)."""
    arrays = list(outputs.values())
    return arrays[0] if len(arrays) == 1 else np.concatenate([a.reshape(len(a), -1) for a in arrays], axis=1)


class TorchBackend:
    """The PyTorch model, float32, with the custom ops of this package, on a GPU where there is one."""

    name = "torch"

    def __init__(self, model: FamilyModel, task: str, *, taps: bool = False) -> None:
        """Hold a model in eval mode.

        Args:
            model: with the official parameters.
            task: one of :data:`vimdeploy.models.tasks.TASKS`.
            taps: also return the inner values of every block.

        """
        import torch

        from vimdeploy.graph.export import TappedModel
        from vimdeploy.models.folding import fold

        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        if self._device == "cuda":
            model = copy.deepcopy(model).to(self._device)  # the caller's model stays where it is
        # Inner values are those of the folded form, which is what is exported; the plain form is the better reference.
        self._model = TappedModel(fold(model) if taps else model, task)
        self._names = [*self._model.outputs, *(self._model.taps if taps else [])]

    def run(self, images: Array) -> dict[str, Array]:
        """Compute the outputs; see :class:`Backend`."""
        import torch

        batch = torch.from_numpy(np.ascontiguousarray(images)).to(self._device)
        # A reference in TF32, cuDNN's default for convolutions, would be no reference.
        with torch.no_grad(), torch.backends.cudnn.flags(allow_tf32=False):
            outputs = self._model(batch)
        return {name: output.float().cpu().numpy() for name, output in zip(self._names, outputs, strict=False)}


class OnnxBackend:
    """An ONNX file in ONNX Runtime on the CPU."""

    name = "onnxruntime"

    def __init__(self, model: Path | onnx.ModelProto, *, taps: Sequence[str] = ()) -> None:
        """Open a session.

        Args:
            model: a file, or a model in memory.
            taps: names of inner values to return as well, as far as the model has them.

        Raises:
            MissingDependencyError: onnxruntime is not installed.
            ArtifactError: the file is missing, corrupt or not runnable.

        """
        source = str(model) if isinstance(model, Path) else "the exported model"
        whole = model if isinstance(model, Path) and not taps else None
        self._session = open_session(whole or _with_outputs(model, taps).SerializeToString(), source)
        self._source = source
        self._input = self._session.get_inputs()[0].name
        # A model converted with half-precision inputs and outputs keeps the float32 face here.
        self._dtype = np.float16 if self._session.get_inputs()[0].type == "tensor(float16)" else np.float32
        self._outputs = [output.name for output in self._session.get_outputs()]

    @property
    def input_shape(self) -> list[int | str]:
        """Shape of the images; a symbolic dimension is its name."""
        return list(self._session.get_inputs()[0].shape)

    def run(self, images: Array) -> dict[str, Array]:
        """Compute the outputs; see :class:`Backend`."""
        try:
            outputs = self._session.run(self._outputs, {self._input: images.astype(self._dtype, copy=False)})
        except Exception as error:
            raise ArtifactError(
                f"{self._source}: ONNX Runtime cannot run it on {images.shape}: {str(error).splitlines()[0]}"
            ) from error
        return {n: y.astype(np.float32, copy=False) for n, y in zip(self._outputs, outputs, strict=True)}


class SessionBackend:
    """A session (``vimdeploy.load``): a TensorRT plan, or an ONNX file with the same face."""

    def __init__(self, session: Face, name: str = "TensorRT") -> None:
        """Hold an open session; it stays the caller's to close."""
        self.name = name
        self._session = session

    def run(self, images: Array) -> dict[str, Array]:
        """Compute the outputs in the session's own types; see :class:`Backend`."""
        tensor = self._session.inputs[0]
        if tensor.dtype == "bfloat16":
            import ml_dtypes

            outputs = self._session.run({tensor.name: images.astype(ml_dtypes.bfloat16).view(np.uint16)})
        else:
            outputs = self._session.run({tensor.name: np.ascontiguousarray(images.astype(tensor.dtype, copy=False))})
        return {t.name: _as_float(outputs[t.name], t.dtype) for t in self._session.outputs}


def _as_float(array: Any, dtype: str) -> Array:
    if dtype == "bfloat16":
        import ml_dtypes

        array = array.view(ml_dtypes.bfloat16)
    result: Array = array.astype(np.float32, copy=False)
    return result


def read_onnx(path: Path) -> onnx.ModelProto:
    """Read an ONNX file.

    Raises:
        ArtifactError: it is missing, empty or not an ONNX model.

    """
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load(path)
    except FileNotFoundError as error:
        raise ArtifactError(f"{path}: there is no such file.") from error
    except (OSError, DecodeError, onnx.checker.ValidationError) as error:
        raise ArtifactError(
            f"{path}: is not a readable ONNX file ({error}).", hint="Export the model again."
        ) from error
    if not model.graph.node or not model.graph.input or not model.graph.output:
        raise ArtifactError(f"{path}: is not an ONNX model: it has no graph.", hint="Export the model again.")
    return model


def _with_outputs(model: Path | onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """Return a copy with inner values as outputs, as far as the model has them."""
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(read_onnx(model) if isinstance(model, Path) else model)
    known = {name for node in copy.graph.node for name in node.output} - {o.name for o in copy.graph.output}
    # Without a type, ONNX Runtime takes the one it infers: float16 inside a converted model.
    copy.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names if name in known)
    return copy
