"""Which image size and stride a Vision Mamba was trained at: its position embeddings tell their product alone.

The same number of patches comes from a small image at stride 8 and from a large one at stride 16. A wrong reading
computes without a complaint, and parity cannot see it, because the reference would share it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from vimdeploy.errors import UsageError
from vimdeploy.models.checkpoint.reading import Checkpoint
from vimdeploy.models.evidence import FILE_NAME, GUESS, MODEL_ARGS, OWN, Layer, Shapes, show_value

_SQUARE = "position embeddings, taken as a square"
_USUAL = 16
"""Sides of images are multiples of this, whatever the stride."""


def settle_img_size(
    checkpoint: Checkpoint,
    shapes: Shapes,
    layers: Sequence[Layer],
    values: dict[str, Any],
    sources: dict[str, str],
    notes: list[str],
) -> None:
    """Set ``img_size`` and ``stride`` so that they give as many patches as there are position embeddings.

    The user's size and stride must fit, and so must the size in the checkpoint's own arguments, at the stride of its
    model, at the patch size or at half of it. Then the first other source that fits is taken, then the square image.
    Where another reading fits as well, a note names both.

    Raises:
        UsageError: a size that is said does not fit, or the patches form no square.

    """
    if "pos_embed" not in shapes:
        return
    class_tokens = (2 if values.get("use_double_cls_token") else 1) if values["if_cls_token"] else 0
    patches, patch = shapes["pos_embed"][1] - class_tokens, values["patch_size"]
    said = dict(layers)
    stride = said.get(MODEL_ARGS, {}).get("stride")
    reading = _fitting(checkpoint, layers, patches, patch, stride)
    if reading is None:
        reading = (*_square(checkpoint, patches, patch, stride), f"{patches} {_SQUARE}")
        if stride is None and patch[0] % 2 == 0 and "stride8" in checkpoint.path.name.lower().replace("_", ""):
            reading = (*_square(checkpoint, patches, patch, patch[0] // 2), FILE_NAME)
    size, chosen, source = reading
    values.update(img_size=size, stride=chosen)
    sources["img_size"] = source
    sources["stride"] = MODEL_ARGS if stride else ("the patch size" if _SQUARE in source else source)
    if source not in (MODEL_ARGS, OWN) and stride is None and (other := _other_reading(size, chosen, patch, patches)):
        other_size, other_stride = other
        text = f'{{"img_size": {other_size[0]}, "stride": {other_stride}}}'
        notes.append(
            f"{GUESS}{patches} patches are read as {show_value(size)} pixels at stride {chosen} (from {source}); "
            f"{show_value(other_size)} at stride {other_stride} fits as well: then --model-args '{text}'"
        )


def _fitting(
    checkpoint: Checkpoint, layers: Sequence[Layer], patches: int, patch: tuple[int, int], stride: int | None
) -> tuple[tuple[int, int], int, str] | None:
    """Return size, stride and source of the first source whose size fits."""
    for source, layer in layers:
        if "img_size" not in layer:
            continue
        size = layer["img_size"]
        strides = [stride] if stride else [layer.get("stride", patch[0])]
        if source == OWN and not stride:
            strides = list(dict.fromkeys((*strides, patch[0], max(patch[0] // 2, 1))))
        for candidate in strides:
            if _patches(size, patch, candidate) == patches:
                return size, candidate, source
        if source in (MODEL_ARGS, OWN):
            found = " and ".join(f"{_patches(size, patch, s)} patches at stride {s}" for s in strides)
            raise UsageError(
                f"{checkpoint.path}: {source} says img_size = {show_value(size)}, which gives {found}; the "
                f"checkpoint's position embeddings have {patches}.",
                hint='--model-args \'{"img_size": N, "stride": N}\' says what it was trained at; to export at another '
                "size, add --img-size.",
            )
    return None


def _square(checkpoint: Checkpoint, patches: int, patch: tuple[int, int], stride: int | None) -> tuple[Any, int]:
    side = math.isqrt(max(patches, 0))
    if side * side != patches or not side:
        raise UsageError(
            f"{checkpoint.path}: {patches} patches do not form a square image.",
            hint="Pass the size it was trained at: --model-args '{\"img_size\": [height, width]}'.",
        )
    stride = stride or patch[0]
    return tuple((side - 1) * stride + p for p in patch), stride


def _other_reading(
    size: tuple[int, int], stride: int, patch: tuple[int, int], patches: int
) -> tuple[tuple[int, int], int] | None:
    """Return the usual size at the other usual stride that gives as many patches, if there is one."""
    other = patch[0] // 2 if stride == patch[0] else patch[0]
    rows, columns = ((s - p) // stride + 1 for s, p in zip(size, patch, strict=True))
    pixels = ((rows - 1) * other + patch[0], (columns - 1) * other + patch[1])
    usual = other > 0 and other != stride and all(side % _USUAL == 0 for side in pixels)
    return (pixels, other) if usual and rows * columns == patches else None


def _patches(size: tuple[int, int], patch: tuple[int, int], stride: int) -> int:
    rows, columns = ((s - p) // stride + 1 for s, p in zip(size, patch, strict=True))
    return max(rows, 0) * max(columns, 0)
