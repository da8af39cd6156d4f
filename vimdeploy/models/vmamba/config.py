"""Configuration of a VMamba, in the argument names of the official constructor (MzeroMiko/VMamba, ``vmamba.py``).

Options that do not exist, that are not served, or on which the official code crashes, are refused here with the reason.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from vimdeploy.errors import ModelError, UsageError, nearest
from vimdeploy.models.config import ModelConfig, OfficialArguments

ACTIVATION_NAMES = ("silu", "gelu", "relu", "sigmoid")
NORM_NAMES = ("ln", "ln2d", "bn")
IGNORED_ARGUMENTS = frozenset({"pretrained", "ssm_rank_ratio", "type"})
"""Official arguments, and keys of its configuration files, that do not change what a trained model computes."""

_WALKS: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "cross2d": ((1, 1, -1, -1), (0, 1, 0, 1)),
    "unidi": ((1, 1, 1, 1), (0, 0, 0, 0)),
    "bidi": ((1, 1, -1, -1), (0, 0, 0, 0)),
}
_SCAN_MODES = {
    # These differ in the kernel that computes them and in where half precision is widened, not in what is computed.
    **dict.fromkeys(("v0", "v0seq", "v01", "v02", "v03", "v04", "v05", "v3"), "cross2d"),
    "v051d": "unidi",
    "v052d": "bidi",
}
_REFUSED = {
    "v2": "the official code asserts on it (its scan backend 'core' is gone); checkpoints of its time are 'v05'",
    "v052dc": "the official code adds the reversed scans without turning them back",
    "v052d3": "it is a debugging aid of the official code",
}
_OUT_NORMS = ("none", "dwconv3", "cnorm", "softmax", "sigmoid")


@dataclass(frozen=True)
class ForwardType:
    """What the official ``forward_type`` string says, e.g. ``v05_onsoftmax_noz``."""

    name: str
    base: str
    """``v0``, ``v05``, ``v052d``, ..."""
    directions: tuple[int, ...]
    """Per scan 1 or -1."""
    column_major: tuple[int, ...]
    """Per scan 1 where it walks down the columns."""
    gated: bool
    gate_activated: bool
    out_norm: str
    """``layernorm``, ``none``, ``dwconv3``, ``cnorm``, ``softmax`` or ``sigmoid``."""
    out_activated: bool

    @property
    def original(self) -> bool:
        """Whether it is the first release's block, which ignores most options (official ``SS2Dv0``)."""
        return self.base in ("v0", "v0seq")

    @classmethod
    def parse(cls, name: str) -> ForwardType:
        """Read a ``forward_type``.

        Raises:
            ModelError: the type does not exist, crashes in the official code, or is not served.

        """
        base = name
        flags = {}
        for tag in ("_no32", "_oact", "_noz", "_nozact"):  # the order in which the official code peels them off
            flags[tag] = base.endswith(tag)
            base = base.removesuffix(tag)
        out_norm = next((norm for norm in _OUT_NORMS if base.endswith("_on" + norm)), "layernorm")
        base = base.removesuffix("_on" + out_norm)
        if base.startswith("xv"):
            raise ModelError(f"forward_type '{name}': the xv blocks (another projection) are not served.")
        if base.startswith("m"):
            raise ModelError(f"forward_type '{name}': the mamba2 blocks are another scan (SSD) and are not served.")
        if base in _REFUSED:
            raise ModelError(f"forward_type '{name}' is not served: {_REFUSED[base]}.")
        if base not in _SCAN_MODES:
            raise ModelError(
                f"forward_type '{name}' does not exist: the official model has no forward for '{base}'.",
                hint=f"{nearest(base, _SCAN_MODES)} Suffixes, in order: _on<norm>, _nozact, _noz, _oact, _no32.",
            )
        if base in ("v0", "v0seq") and name != base:
            raise ModelError(f"forward_type '{name}': v0 takes no suffix, the official code crashes on it. Use v05.")
        directions, column_major = _WALKS[_SCAN_MODES[base]]
        return cls(
            name,
            base,
            directions,
            column_major,
            gated=not flags["_noz"],
            gate_activated=not flags["_nozact"],
            out_norm=out_norm,
            out_activated=flags["_oact"],
        )


@dataclass(frozen=True)
class VmambaConfig(ModelConfig):
    """What decides the graph of a VMamba. Names and defaults are the official ones, but two.

    ``forward_type`` defaults to ``v05``, as the official default (``v2``) crashes; ``out_indices`` (of the official
    backbone) is empty for a classifier.
    """

    patch_size: int = 4
    in_chans: int = 3
    num_classes: int = 1000
    depths: tuple[int, ...] = (2, 2, 9, 2)
    dims: tuple[int, ...] = (96, 192, 384, 768)
    ssm_d_state: int = 16
    ssm_ratio: float = 2.0
    ssm_dt_rank: int = 0
    """0 stands for the official ``"auto"``: ceil(channels / 16)."""
    ssm_act_layer: str = "silu"
    ssm_conv: int = 3
    ssm_conv_bias: bool = True
    ssm_drop_rate: float = 0.0
    ssm_init: str = "v0"
    forward_type: str = "v05"
    mlp_ratio: float = 4.0
    mlp_act_layer: str = "gelu"
    mlp_drop_rate: float = 0.0
    gmlp: bool = False
    drop_path_rate: float = 0.1
    patch_norm: bool = True
    norm_layer: str = "ln"
    downsample_version: str = "v2"
    patchembed_version: str = "v1"
    use_checkpoint: bool = False
    posembed: bool = False
    imgsize: tuple[int, int] = (224, 224)
    out_indices: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name, known in (
            ("norm_layer", NORM_NAMES),
            ("ssm_act_layer", ACTIVATION_NAMES),
            ("mlp_act_layer", ACTIVATION_NAMES),
            ("ssm_init", ("v0", "v1", "v2")),
            ("patchembed_version", ("v1", "v2")),
            ("downsample_version", ("v1", "v2", "v3", "none")),
        ):
            _check_choice(name, getattr(self, name), known)
        _check_numbers(self)
        if self.downsample_version == "none":
            raise ModelError("downsample_version 'none' leaves a hole between the stages; the official model crashes.")
        kind = self.kind
        if kind.original and self.norm_layer != "ln":
            raise ModelError(f"forward_type '{kind.name}' needs norm_layer 'ln': the official code asserts it.")
        if not kind.original and self.ssm_conv > 1 and self.ssm_conv % 2 == 0:
            raise ModelError(
                f"ssm_conv {self.ssm_conv}: an even convolution shrinks the image; the official code crashes."
            )
        if wrong := [i for i in self.out_indices if not 0 <= i < len(self.depths)]:
            raise ModelError(
                f"out_indices {wrong} do not exist: there are stages 0 to {len(self.depths) - 1}.",
                hint=f"Name stages of this model, for example {list(range(len(self.depths)))}.",
            )
        if self.posembed:
            self._check_posembed()

    @property
    def family(self) -> str:
        """``vmamba_dense`` for feature maps, else ``vmamba``."""
        return "vmamba_dense" if self.is_backbone else "vmamba"

    @property
    def is_backbone(self) -> bool:
        """Whether it gives feature maps, not logits."""
        return bool(self.out_indices)

    @property
    def img_size(self) -> tuple[int, int]:
        """``imgsize``, under the name that it has in Vim."""
        return self.imgsize

    @property
    def channels(self) -> int:
        """``in_chans``, under the name that it has in Vim."""
        return self.in_chans

    @property
    def kind(self) -> ForwardType:
        """``forward_type``, read."""
        return ForwardType.parse(self.forward_type)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches that the stem makes of an image of ``imgsize``."""
        if self.patchembed_version == "v1":
            return self.imgsize[0] // self.patch_size, self.imgsize[1] // self.patch_size
        stride = self.patch_size // 2
        height, width = (((size + 1) // stride + 1) // stride for size in self.imgsize)
        return height, width

    @property
    def feature_names(self) -> tuple[str, ...]:
        """Names of a backbone's outputs: p2 at stride 4, p3 at stride 8, ..."""
        stride = self.patch_size if self.patchembed_version == "v1" else (self.patch_size // 2) ** 2
        first = stride.bit_length() - 1
        return tuple(f"p{first + i}" for i in sorted(set(self.out_indices)))

    @property
    def notes(self) -> tuple[str, ...]:
        """What the official code ignores among these options, in words for the user."""
        notes = []
        fixed = {"ssm_act_layer": "silu", "ssm_conv": 3, "ssm_conv_bias": True, "ssm_init": "v0"}
        for name, value in fixed.items() if self.kind.original else ():
            if getattr(self, name) != value:
                notes.append(
                    f"{name} = {getattr(self, name)} is ignored: forward_type {self.kind.name} always has {value}"
                )
        if self.posembed and self.out_indices:
            notes.append("the official backbone holds position embeddings but never adds them; neither does this one")
        return tuple(notes)

    def dt_rank(self, channels: int) -> int:
        """Return R of a block with that many channels."""
        return self.ssm_dt_rank or math.ceil(channels / 16)

    def at_size(self, img_size: tuple[int, int]) -> VmambaConfig:
        """Return the same model for images of (height, width) pixels."""
        return replace(self, imgsize=img_size)

    def official(self) -> dict[str, Any]:
        """Return the configuration as arguments of the official constructor."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        values = {name: list(v) if isinstance(v, tuple) else v for name, v in values.items()}
        values["ssm_dt_rank"] = self.ssm_dt_rank or "auto"
        if not self.out_indices:
            values.pop("out_indices")
        return values

    def check_image(self) -> None:
        """Raise ModelError where images of ``imgsize`` have too few pixels for a stage, or an odd map that v1 refuses.

        A model without position embeddings takes other sizes than ``imgsize``, so this is asked where a size is meant.
        """
        sizes = self.grid
        for stage in range(max(self.out_indices, default=len(self.depths) - 1) + 1):
            if stage and self.downsample_version == "v1" and self.norm_layer != "ln" and any(n % 2 for n in sizes):
                raise ModelError(
                    f"downsample_version 'v1' with norm_layer '{self.norm_layer}' on a {sizes[0]} x {sizes[1]} map: "
                    "the official code pads the wrong axes of an odd map and crashes.",
                    hint="Choose an image size whose maps stay even.",
                )
            if stage:
                odd = 0 if self.downsample_version == "v2" else 1
                sizes = ((sizes[0] + odd) // 2, (sizes[1] + odd) // 2)
            if min(sizes) < 1:
                raise ModelError(
                    f"An image of {self.imgsize[0]} x {self.imgsize[1]} pixels is too small: nothing is left of it in "
                    f"stage {stage} of {len(self.depths)}.",
                    hint="Choose a larger image size with --img-size.",
                )

    def _check_posembed(self) -> None:
        official = (self.imgsize[0] // self.patch_size, self.imgsize[1] // self.patch_size)
        if self.grid != official and not self.out_indices:
            raise ModelError(
                f"Images of {self.imgsize[0]} x {self.imgsize[1]} pixels make {self.grid} patches, but the official "
                f"position embedding would be {official}: it crashes.",
                hint=f"Choose a multiple of {self.patch_size}.",
            )


def read_vmamba_arguments(arguments: Mapping[str, Any], source: str) -> OfficialArguments:
    """Translate arguments of the official ``VSSM`` or ``Backbone_VSSM`` into fields of :class:`VmambaConfig`.

    Args:
        arguments: names and values as one would pass them to the official constructor.
        source: where they come from, for messages.

    Raises:
        UsageError: a name or a type that the official constructor does not know (it would swallow the name).

    """
    known = {f.name: f.default for f in fields(VmambaConfig)}
    values: dict[str, Any] = {}
    for name, value in arguments.items():
        if name in IGNORED_ARGUMENTS:
            continue
        if name not in known:
            raise UsageError(f"{source}: unknown model argument '{name}'.", hint=nearest(name, known))
        values[name] = _convert(name, value, known[name], source)
    if isinstance(values.get("dims"), int):
        stages = len(values.get("depths", known["depths"]))
        values["dims"] = tuple(values["dims"] * 2**i for i in range(stages))
    return OfficialArguments(values, ())


def _convert(name: str, value: Any, default: Any, source: str) -> Any:
    wanted: str
    if name == "ssm_dt_rank" and value == "auto":
        return 0
    if isinstance(default, tuple):
        if name == "dims" and type(value) is int:
            return value
        if name == "imgsize" and type(value) is int:
            value = (value, value)
        whole = isinstance(value, (list, tuple)) and all(type(v) is int for v in value)
        if name == "imgsize":
            if whole and len(value) == 2 and min(value) > 0:
                return tuple(value)
            raise UsageError(f"{source}: imgsize must be a positive integer or a pair (height, width), not {value!r}.")
        if whole:
            return tuple(value)
        wanted = "list of integers"
    else:
        if isinstance(default, float) and type(value) is int:
            return float(value)
        if type(value) is type(default):
            return value.lower() if isinstance(value, str) and name != "forward_type" else value
        wanted = type(default).__name__
    raise UsageError(f"{source}: {name} must be a {wanted}, not {value!r}.")


def _check_choice(name: str, value: str, known: Collection[str]) -> None:
    if value not in known:
        raise UsageError(f"{name} '{value}' does not exist.", hint=nearest(value, known))


def _check_numbers(config: VmambaConfig) -> None:
    if len(config.dims) != len(config.depths) or not config.depths:
        raise UsageError(f"depths {list(config.depths)} and dims {list(config.dims)} need one entry per stage each.")
    for name in ("patch_size", "in_chans", "ssm_d_state"):
        if getattr(config, name) < 1:
            raise UsageError(f"{name} must be at least 1, not {getattr(config, name)}.")
    if min(config.dims) < 1 or min(config.depths) < 0 or config.num_classes < 0 or config.ssm_dt_rank < 0:
        raise UsageError(
            f"dims {list(config.dims)}, depths {list(config.depths)}, num_classes {config.num_classes} and ssm_dt_rank "
            f"{config.ssm_dt_rank} must be positive."
        )
    if config.patchembed_version == "v2" and config.patch_size < 2:
        raise ModelError(
            f"patchembed_version 'v2' makes its two strides of patch_size // 2: {config.patch_size} is too small."
        )
