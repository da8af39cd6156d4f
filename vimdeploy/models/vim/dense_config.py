"""Configuration of the dense Vision Mamba backbones (hustvl/Vim, ``seg/backbone/vim.py`` and ``.../backbone/vim.py``).

What the official backbones crash on or leave out in silence is refused here with the reason.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vimdeploy.errors import ModelError, UsageError, nearest
from vimdeploy.models.config import OfficialArguments
from vimdeploy.models.vim.config import VimConfig, read_official_arguments

LAST_LAYER_PROCESSES = ("none", "add", "add & norm")
DENSE_ARGUMENTS = ("kind", "out_indices", "if_fpn", "use_residual_as_feature", "last_layer_process", "out_feature")
NOT_OF_DETECTION: dict[str, Any] = {"out_indices": (), "if_fpn": False, "use_residual_as_feature": False}
"""Fields that a detection backbone has only in name: its official constructor takes them and never reads them."""
_IGNORED_ARGUMENTS = ("use_checkpoint", "type", "final_pool_type", "flip_img_sequences_ratio")
"""What the dense forward never reads."""


@dataclass(frozen=True)
class VimDenseConfig(VimConfig):
    """A Vision Mamba as a backbone: ``kind`` is ``seg`` (feature maps of some layers) or ``det`` (of the last).

    There is never a class token: the official backbones delete it, and its row of the position embeddings.
    """

    kind: str = "seg"
    num_classes: int = 0
    if_cls_token: bool = False
    out_indices: tuple[int, ...] = (3, 5, 7, 11)
    """Layers whose output is returned (``seg``)."""
    if_fpn: bool = True
    """Whether four small networks turn the features into a pyramid (``seg``)."""
    use_residual_as_feature: bool = False
    last_layer_process: str = "none"
    out_feature: str = "last_feat"
    """Name of the feature map (``det``)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.last_layer_process not in LAST_LAYER_PROCESSES:
            raise UsageError(
                f"last_layer_process '{self.last_layer_process}' does not exist.",
                hint=nearest(self.last_layer_process, LAST_LAYER_PROCESSES),
            )
        if self.if_cls_token:
            raise UsageError("A dense backbone has no class token; leave if_cls_token out.")
        if not self.if_abs_pos_embed:
            raise ModelError("if_abs_pos_embed false: the official dense backbones crash without position embeddings.")
        if self.last_layer_process == "add" and not self.runs_layers:
            raise ModelError(
                f"last_layer_process 'add' with depth {self.depth}: no layer runs (if_bidirectional runs pairs), and "
                "the official code crashes on the residual that is not there."
            )
        if self.kind == "seg":
            _check_features(self)
            return
        for name, value in NOT_OF_DETECTION.items():
            object.__setattr__(self, name, value)
        if self.last_layer_process == "add & norm":
            raise ModelError(
                "last_layer_process 'add & norm': the official detection backbone deletes its last norm and crashes."
            )

    @property
    def family(self) -> str:
        """``vim_dense``."""
        return "vim_dense"

    @property
    def is_backbone(self) -> bool:
        """True: feature maps, no logits."""
        return True

    @property
    def runs_layers(self) -> bool:
        """Whether any layer runs; a pair of them is one step of ``if_bidirectional``."""
        return self.depth >= (2 if self.if_bidirectional else 1)

    @property
    def layers_out(self) -> tuple[int, ...]:
        """``out_indices`` in the order in which the official code returns them: that of the layers, each once."""
        return tuple(sorted(set(self.out_indices)))

    @property
    def feature_names(self) -> tuple[str, ...]:
        """Names of the outputs: p2, p3, ... by stride for a pyramid, feat_<layer> for plain features."""
        if self.kind == "det":
            return (self.out_feature,)
        if not self.if_fpn:
            return tuple(f"feat_{i}" for i in self.layers_out)
        finest = self.stride.bit_length() - 1 - (2 if self.patch_size[0] == 16 else 1)
        count = 4 if len(self.layers_out) == 1 else len(self.layers_out)
        return tuple(f"p{finest + i}" if finest >= 0 else f"level_{i}" for i in range(count))

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know about the official code here."""
        notes = []
        if self.img_size[0] != self.img_size[1]:
            notes.append(
                "the official dense backbones serve square images only; the map is laid out as the patches are"
            )
        if self.out_indices != self.layers_out:
            notes.append(
                f"out_indices {list(self.out_indices)}: as officially, the features come in the layers' order, each "
                f"once: {list(self.layers_out)}"
            )
        return tuple(notes)

    def official(self) -> dict[str, Any]:
        """Return the configuration as arguments of the official constructor (``kind`` names the class)."""
        values = super().official()
        values["in_chans"] = values.pop("channels")
        values["out_indices"] = list(self.out_indices)
        unused = ("out_feature",) if self.kind == "seg" else ("out_indices", "use_residual_as_feature")
        return {name: value for name, value in values.items() if name not in unused}


def quarters(depth: int) -> tuple[int, ...]:
    """Return the last layer of each quarter: the ``out_indices`` of every shipped configuration."""
    return tuple(sorted({max(depth * (i + 1) // 4 - 1, 0) for i in range(4)}))


def read_dense_arguments(arguments: Mapping[str, Any], source: str) -> OfficialArguments:
    """Translate arguments of the official ``VisionMambaSeg`` or ``VisionMambaDet`` into fields.

    Args:
        arguments: names and values; ``kind`` (``seg`` or ``det``) may stand among them.
        source: where they come from, for messages.

    Raises:
        UsageError: a name or a type that the official constructors do not know.
        ModelError: a combination on which the official code crashes.

    """
    given = {name: value for name, value in arguments.items() if name not in _IGNORED_ARGUMENTS}
    if "in_chans" in given:
        given["channels"] = given.pop("in_chans")
    own = {name: given.pop(name) for name in DENSE_ARGUMENTS if name in given}
    if given.pop("use_double_cls_token", False) and given.get("if_cls_token", True):
        raise ModelError(f"{source}: use_double_cls_token crashes the official dense backbones.")
    given.pop("if_cls_token", None)
    read = read_official_arguments(given, source, DENSE_ARGUMENTS)
    return OfficialArguments({**read.values, **{k: _convert(k, v, source) for k, v in own.items()}}, read.notes)


def _convert(name: str, value: Any, source: str) -> Any:
    if name == "out_indices":
        if isinstance(value, (list, tuple)) and all(type(v) is int for v in value):
            return tuple(value)
        raise UsageError(f"{source}: out_indices must be a list of integers, not {value!r}.")
    kind = bool if name in ("if_fpn", "use_residual_as_feature") else str
    if type(value) is not kind:
        raise UsageError(f"{source}: {name} must be a {kind.__name__}, not {value!r}.")
    if name == "kind" and value not in ("seg", "det"):
        raise UsageError(f"{source}: kind must be 'seg' or 'det', not {value!r}.")
    return value


def _check_features(config: VimDenseConfig) -> None:
    indices, last = config.out_indices, config.depth - 1
    if not indices or any(not 0 <= i <= last for i in indices):
        raise ModelError(
            f"out_indices {list(indices)}: there are layers 0 to {last}; the official code skips others in silence.",
            hint=f"Name layers of this model, for example {list(quarters(config.depth))}.",
        )
    if config.use_residual_as_feature and last in indices and indices[-1] != last:
        raise ModelError(
            f"out_indices {list(indices)} with use_residual_as_feature: the official code loses the feature of layer "
            f"{last} in silence, unless {last} stands last.",
            hint=f"Write out_indices {list(config.layers_out)}.",
        )
    if config.if_bidirectional and (config.layers_out != (last,) or not config.use_residual_as_feature):
        raise ModelError(
            "if_bidirectional: the official segmentation backbone then collects no features but the last residual.",
            hint=f"Only out_indices [{last}] with use_residual_as_feature true gives an output.",
        )
    if config.if_fpn:
        _check_pyramid(config)


def _check_pyramid(config: VimDenseConfig) -> None:
    patch = config.patch_size
    if patch not in ((16, 16), (8, 8)):
        raise ModelError(f"if_fpn has no layers for patch_size {patch[0]} x {patch[1]}: the official code crashes.")
    if len(config.layers_out) > 4:
        raise ModelError(f"if_fpn has four levels, out_indices {len(config.layers_out)}: the official code crashes.")
    levels = len(config.feature_names)
    divisor = ([1, 1, 1, 2] if patch[0] == 16 else [1, 1, 2, 4])[levels - 1]
    if min(config.grid) < divisor:
        raise ModelError(
            f"An image of {config.img_size[0]} x {config.img_size[1]} pixels has {config.grid[0]} x {config.grid[1]} "
            f"patches: too few for the coarsest level of the pyramid, which divides them by {divisor}.",
            hint=f"Choose an image of at least {divisor} patches per side.",
        )
