"""Resizing absolute position embeddings to another image size."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vimdeploy.errors import ModelError
from vimdeploy.models.vim.config import VimConfig


def resize_pos_embed(pos_embed: Tensor, old: VimConfig, new: VimConfig) -> Tensor:
    """Interpolate the patches' rows bicubically and put the class tokens' rows where they belong.

    Args:
        pos_embed: (1, L, D) for ``old``.
        old: the model the embeddings were trained for.
        new: the same model at another image size.

    Returns:
        (1, L', D) for ``new``.

    """
    patches = [t for t in range(old.num_tokens) if t not in old.class_tokens]
    resized = _interpolate(pos_embed[:, patches], old.grid, new.grid)
    for source, target in zip(old.class_tokens, new.class_tokens, strict=True):
        row = pos_embed[:, source : source + 1]
        resized = torch.cat([resized[:, :target], row, resized[:, target:]], dim=1)
    return resized


def resize_pos_embed_officially(pos_embed: Tensor, old: VimConfig, new: VimConfig) -> Tensor:
    """Resize as the official code does (``vim/main.py``), which takes the first rows for the class tokens' rows.

    With a class token in the middle that is wrong: a patch's row is kept as it is, the class token's row is
    interpolated among the patches and half the grid shifts by one. Use it only to reproduce a model that was
    fine-tuned that way.

    Raises:
        ModelError: an image that is not square, which the official code cannot resize.

    """
    if old.grid[0] != old.grid[1] or new.grid[0] != new.grid[1]:
        raise ModelError(
            "The official resize of position embeddings handles square images only.",
            hint="Leave out --official-pos-resize.",
        )
    extra = len(old.class_tokens)
    resized = _interpolate(pos_embed[:, extra:], old.grid, new.grid)
    return torch.cat([pos_embed[:, :extra], resized], dim=1)


def _interpolate(rows: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    image = rows.reshape(1, *old, -1).permute(0, 3, 1, 2)
    image = F.interpolate(image, size=new, mode="bicubic", align_corners=False)
    return image.permute(0, 2, 3, 1).flatten(1, 2)
