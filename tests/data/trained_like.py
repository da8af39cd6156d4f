"""Weights that are random but spread like trained ones, from numpy's frozen RandomState stream.

Every key has a stream of its own, so the weights of a model follow from its keys and shapes, on every machine.
"""

import math
import zlib
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Shape = tuple[int, ...]

_GAINS = {"out_proj": 2.0, "in_proj": 1.2, "x_proj": 1.5, "x_proj_b": 1.5, "head": 1.2, "proj": 1.0}


def _stream(key: str, seed: int) -> np.random.RandomState:
    return np.random.RandomState((zlib.crc32(key.encode()) + 7919 * seed) % (2**32))


def trained_like_one(key: str, shape: Shape, seed: int = 0) -> Array:
    """Return the float32 weights of one key."""
    if key.endswith("num_batches_tracked"):
        return np.array(1, dtype=np.int64)
    values = _draw(_stream(key, seed), key, shape)
    return np.ascontiguousarray(values, dtype=np.float32).reshape(shape)


def _draw(stream: np.random.RandomState, key: str, shape: Shape) -> Array:  # noqa: PLR0911
    last = key.rsplit(".", 1)[-1]
    parent = key.rsplit(".", 2)[-2] if "." in key else ""

    def normal(std: float, mean: float = 0.0) -> Array:
        return mean + std * stream.standard_normal(shape)

    if last in ("A_log", "A_b_log", "A_logs"):
        return np.log(np.arange(1, shape[-1] + 1, dtype=np.float64))[None, :] + normal(0.3)
    if last in ("D", "D_b", "Ds"):
        return normal(0.2, 1.0)
    if (parent in ("dt_proj", "dt_proj_b") and last == "bias") or last == "dt_projs_bias":
        dt = np.exp(stream.uniform(size=shape) * (math.log(0.1) - math.log(0.001)) + math.log(0.001))
        return dt + np.log(-np.expm1(-dt)) + 0.5 * stream.standard_normal(shape)
    if (parent in ("dt_proj", "dt_proj_b") and last == "weight") or last == "dt_projs_weight":
        made: Array = stream.uniform(-1, 1, size=shape) * shape[-1] ** -0.5 * 1.5
        return made
    if last == "pos_embed" or last.startswith("cls_token"):
        return normal(0.5)
    if last == "gamma":
        return normal(0.2, 0.5)
    if last == "running_mean":
        return normal(0.2)
    if last == "running_var":
        return stream.uniform(0.5, 1.5, size=shape)
    if parent.startswith("conv1d"):
        return normal(0.5) if last == "weight" else normal(0.2)
    if parent == "conv2d":
        return normal(0.4) if last == "weight" else normal(0.2)
    if last == "x_proj_weight":
        return normal(1.2 / math.sqrt(shape[-1]))
    if len(shape) == 1:
        return normal(0.2, 1.0) if last == "weight" else normal(0.2)
    return normal(_GAINS.get(parent, 1.0) / math.sqrt(int(np.prod(shape[1:]))))


def trained_like(
    shapes: Mapping[str, Shape], seed: int = 0, keep: Collection[str] = ("rope.freqs_cos", "rope.freqs_sin")
) -> dict[str, Array]:
    """Return {key: weights} for {key: shape}, without the keys in ``keep``, which are no free parameters."""
    return {key: trained_like_one(key, tuple(shape), seed) for key, shape in shapes.items() if key not in keep}


def image(name: str, shape: tuple[int, int, int, int], seed: int = 0) -> Array:
    """Return images (B, C, H, W): low frequencies and noise, about as spread as normalised photographs."""
    stream = _stream("img:" + name, seed)
    batch, channels, height, width = shape
    rows, columns = np.mgrid[0:height, 0:width] / max(height, width)
    out = np.zeros(shape)
    for i in range(batch):
        for j in range(channels):
            f = stream.uniform(0.5, 6, size=(3, 2))
            phase = stream.uniform(0, 6.28, size=3)
            waves = (np.sin(6.28 * (f[k, 0] * columns + f[k, 1] * rows) + phase[k]) for k in range(3))
            out[i, j] = sum(waves) * 0.6
    return (out + 0.5 * stream.standard_normal(shape)).astype(np.float32)
