"""Configuration of a Vision Mamba, in the argument names of the official constructor (hustvl/Vim, ``models_mamba.py``).

Combinations on which the official code crashes, or which are random by construction, are refused here with the reason.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, cast

from vimdeploy.errors import ModelError, UsageError, nearest
from vimdeploy.models.config import ModelConfig, OfficialArguments

POOL_TYPES = ("none", "mean", "max", "all")
BIMAMBA_TYPES = ("none", "v1", "v2")

IGNORED_ARGUMENTS = frozenset(
    {
        *("drop_rate", "drop_path_rate", "initializer_cfg", "device", "dtype", "ft_seq_len"),
        *("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"),  # added by timm's create_model
    }
)
"""Official arguments that do not change what a trained model computes."""
_IGNORED_SSM_ARGUMENTS = frozenset({"dt_min", "dt_max", "dt_init", "dt_scale", "dt_init_floor", "device", "dtype"})
_SSM_ARGUMENTS = frozenset({"d_conv", "expand", "dt_rank", "conv_bias", "bias", "use_fast_path"})
_MISSPELT = "if_devide_out"
_RANDOM_FORWARD_ARGUMENTS = ("if_random_cls_token_position", "if_random_token_rank")


@dataclass(frozen=True)
class VimConfig(ModelConfig):
    """What decides the graph of a Vision Mamba. Names and defaults are those of the official constructor.

    ``d_conv``, ``expand``, ``dt_rank``, ``conv_bias``, ``bias`` and ``use_fast_path`` live in its ``ssm_cfg``;
    ``bimamba_type`` already includes ``if_bimamba``.
    """

    img_size: tuple[int, int] = (224, 224)
    patch_size: tuple[int, int] = (16, 16)
    stride: int = 16
    depth: int = 24
    embed_dim: int = 192
    d_state: int = 16
    channels: int = 3
    num_classes: int = 1000
    norm_epsilon: float = 1e-5
    rms_norm: bool = True
    fused_add_norm: bool = True
    residual_in_fp32: bool = True
    pt_hw_seq_len: int = 14
    if_bidirectional: bool = False
    final_pool_type: str = "none"
    if_abs_pos_embed: bool = True
    if_rope: bool = False
    if_rope_residual: bool = False
    flip_img_sequences_ratio: float = -1.0
    bimamba_type: str = "v2"
    if_cls_token: bool = True
    if_divide_out: bool = True
    init_layer_scale: float | None = None
    use_double_cls_token: bool = False
    use_middle_cls_token: bool = True
    d_conv: int = 4
    expand: float = 2
    dt_rank: int = 0
    """0 stands for the official ``"auto"``: ceil(embed_dim / 16)."""
    conv_bias: bool = True
    bias: bool = False
    use_fast_path: bool = True

    def __post_init__(self) -> None:
        if self.dt_rank == 0:
            object.__setattr__(self, "dt_rank", math.ceil(self.embed_dim / 16))
        _check_values(self)
        _check_class_token(self)
        if self.if_rope:
            _check_rope(self)

    @property
    def family(self) -> str:
        """``vim``."""
        return "vim"

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return (
            (self.img_size[0] - self.patch_size[0]) // self.stride + 1,
            (self.img_size[1] - self.patch_size[1]) // self.stride + 1,
        )

    @property
    def num_patches(self) -> int:
        """Patches of one image (M)."""
        return self.grid[0] * self.grid[1]

    @property
    def class_tokens(self) -> tuple[int, ...]:
        """Positions of the class tokens in the sequence; empty without one."""
        if not self.if_cls_token:
            return ()
        if self.use_double_cls_token:
            return (0, self.num_patches + 1)
        return (self.num_patches // 2,) if self.use_middle_cls_token else (0,)

    @property
    def num_tokens(self) -> int:
        """Length of the sequence (L): patches and class tokens."""
        return self.num_patches + len(self.class_tokens)

    @property
    def d_inner(self) -> int:
        """Channels inside a mixer (E)."""
        return int(self.expand * self.embed_dim)

    @property
    def flips_sequence(self) -> bool:
        """Whether every sequence is reversed before the first layer (a ``flip_img_sequences_ratio`` above 1)."""
        return self.flip_img_sequences_ratio > 1

    def at_size(self, img_size: tuple[int, int]) -> VimConfig:
        """Return the same model for images of (height, width) pixels."""
        return replace(self, img_size=img_size)

    def official(self) -> dict[str, Any]:
        """Return the configuration as arguments of the official constructor."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        ssm = {name: values.pop(name) for name in sorted(_SSM_ARGUMENTS)}
        return {**values, "img_size": list(self.img_size), "patch_size": list(self.patch_size), "ssm_cfg": ssm}


def read_official_arguments(
    arguments: Mapping[str, Any], source: str, others: Collection[str] = ()
) -> OfficialArguments:
    """Translate arguments of the official constructor into fields of :class:`VimConfig`.

    Args:
        arguments: names and values as one would pass them to the official ``VisionMamba``; ``ssm_cfg`` may be nested
            or its members may stand beside the others.
        source: where they come from, for messages.
        others: names that the caller understands beside these, to suggest for a misspelt one.

    Returns:
        The fields that were given, and notes on those that the official code swallows.

    Raises:
        UsageError: a name or a type that the official constructor does not know.
        ModelError: a combination on which the official code crashes or is random.

    """
    given = dict(arguments)
    ssm = given.pop("ssm_cfg", None) or {}
    notes: list[str] = []
    if not isinstance(ssm, Mapping):
        raise UsageError(f"{source}: ssm_cfg must be a table, not {ssm!r}.")
    if "d_state" in ssm:
        raise ModelError(
            f"{source}: d_state inside ssm_cfg reaches the official mixer twice and crashes it.",
            hint="Give d_state beside ssm_cfg.",
        )
    if _MISSPELT in given:
        given.pop(_MISSPELT)
        notes.append(
            f"{source}: '{_MISSPELT}' is swallowed by the official code (the default if_divide_out = true applies); "
            "write if_divide_out to change it"
        )
    for name in _RANDOM_FORWARD_ARGUMENTS:
        if given.pop(name, False):
            raise ModelError(f"{source}: {name} draws random positions at inference; there is no function to export.")
    if given.pop("if_bimamba", False):
        given["bimamba_type"] = "v1"  # create_block overrides whatever bimamba_type says
    known = {f.name for f in fields(VimConfig)}
    values: dict[str, Any] = {}
    for name, value in [*given.items(), *ssm.items()]:
        if name in IGNORED_ARGUMENTS | _IGNORED_SSM_ARGUMENTS:
            continue
        if name not in known:
            accepted = known | IGNORED_ARGUMENTS | {"ssm_cfg", "if_bimamba"} | set(others)
            raise UsageError(f"{source}: unknown model argument '{name}'.", hint=nearest(name, accepted))
        values[name] = _convert(name, value, source)
    return OfficialArguments(values, tuple(notes))


def _convert(name: str, value: Any, source: str) -> Any:
    if name in ("img_size", "patch_size"):
        pair = [value, value] if isinstance(value, int) and not isinstance(value, bool) else value
        if isinstance(pair, (list, tuple)) and len(pair) == 2 and all(type(v) is int and v > 0 for v in pair):
            return tuple(pair)
        raise UsageError(f"{source}: {name} must be a positive integer or a pair (height, width), not {value!r}.")
    if name == "dt_rank" and value == "auto":
        return 0
    if name == "init_layer_scale" and value is None:
        return None
    default = next(f.default for f in fields(VimConfig) if f.name == name)
    kind: type | tuple[type, ...]
    if isinstance(default, bool):
        kind = bool
    elif isinstance(default, float) or name in ("expand", "init_layer_scale"):
        kind = (int, float)
    else:
        kind = type(default)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        expected = "number" if isinstance(kind, tuple) else kind.__name__
        raise UsageError(f"{source}: {name} must be a {expected}, not {value!r}.")
    if name == "stride" and not cast(int, value) > 0:
        raise UsageError(f"{source}: stride must be at least 1, not {value!r}.")
    return value


def _check_values(config: VimConfig) -> None:
    if config.final_pool_type not in POOL_TYPES:
        raise UsageError(
            f"final_pool_type '{config.final_pool_type}' does not exist.",
            hint=nearest(config.final_pool_type, POOL_TYPES),
        )
    if config.bimamba_type not in BIMAMBA_TYPES:
        raise UsageError(
            f"bimamba_type '{config.bimamba_type}' does not exist.", hint=nearest(config.bimamba_type, BIMAMBA_TYPES)
        )
    for name in ("stride", "embed_dim", "d_state", "channels", "d_conv", "dt_rank", "pt_hw_seq_len"):
        if getattr(config, name) < 1:
            raise UsageError(f"{name} must be at least 1, not {getattr(config, name)}.")
    if not 0 < config.norm_epsilon < math.inf:
        raise UsageError(f"norm_epsilon must be a positive number, not {config.norm_epsilon}.")
    if config.depth < 0 or config.num_classes < 0 or config.d_inner < 1:
        raise UsageError(
            f"depth {config.depth}, num_classes {config.num_classes} and expand {config.expand} must not be negative."
        )
    if min(config.grid) < 1:
        height, width = config.img_size
        raise ModelError(
            f"An image of {height} x {width} pixels is smaller than one patch of "
            f"{config.patch_size[0]} x {config.patch_size[1]}.",
            hint="Choose a larger image size.",
        )
    if 0 < config.flip_img_sequences_ratio <= 1:
        raise ModelError(
            f"flip_img_sequences_ratio {config.flip_img_sequences_ratio} reverses sequences at random, in eval mode "
            "too; there is no function to export.",
            hint="Pass flip_img_sequences_ratio -1 (never) or 2 (always) in --model-args.",
        )


def _check_class_token(config: VimConfig) -> None:
    if config.if_cls_token and config.final_pool_type == "max":
        raise ModelError(
            "final_pool_type 'max' with a class token takes the maximum over the classes, not the tokens: the "
            "official code returns one number per image.",
            hint="Use another final_pool_type, or if_cls_token false.",
        )


def _check_rope(config: VimConfig) -> None:
    patch, (height, width) = config.patch_size[0], config.img_size
    rotations = (height // patch) ** 2
    single = rotations == 1  # broadcast over any sequence; at position 0 it changes nothing
    reasons = [
        (config.if_cls_token and config.use_double_cls_token and not single, "two class tokens"),
        (config.patch_size[0] != config.patch_size[1], "a patch that is not square"),
        (height != width, f"an image that is not square ({height} x {width})"),
        (config.embed_dim % 4 != 0, f"an embed_dim that 4 does not divide ({config.embed_dim})"),
        (
            config.num_patches != rotations and not single,
            f"stride {config.stride} with patch {patch}: {config.num_patches} patches, rotations for {rotations}",
        ),
        (config.num_patches % 2 == 1 and not single, f"an odd number of patches ({config.num_patches})"),
    ]
    for crashes, why in reasons:
        if crashes:
            raise ModelError(
                f"The official rotary embedding (if_rope) crashes on {why}; there is nothing to reproduce.",
                hint="It serves square images with an even number of patches that do not overlap, and one class token.",
            )
