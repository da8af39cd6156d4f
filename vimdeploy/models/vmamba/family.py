"""VMamba (MzeroMiko/VMamba, arXiv 2401.10166) as a family: classifiers, and backbones of detectors and segmentors."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from vimdeploy.errors import UsageError
from vimdeploy.models.checkpoint.reading import Checkpoint
from vimdeploy.models.evidence import GUESS
from vimdeploy.models.family import Family, Given, Recognised, Resized, change_of_size
from vimdeploy.models.vmamba.config import VmambaConfig, read_vmamba_arguments
from vimdeploy.models.vmamba.layers2d import make_norm
from vimdeploy.models.vmamba.model import adapt_state, make_vmamba
from vimdeploy.models.vmamba.recognise import recognise_vmamba


def read_config(arguments: Mapping[str, Any], source: str) -> VmambaConfig:
    """Return the configuration that arguments of the official ``VSSM`` or ``Backbone_VSSM`` ask for."""
    return VmambaConfig(**read_vmamba_arguments(arguments, source).values)


def recognise(checkpoint: Checkpoint, given: Given) -> tuple[Checkpoint, Recognised]:
    """Find out which classifier or backbone a checkpoint holds; see :func:`vimdeploy.models.registry.recognise`."""
    checkpoint = replace(checkpoint, state=adapt_state(checkpoint.state))
    recognised = recognise_vmamba(checkpoint, given)
    config = recognised.config
    assert isinstance(config, VmambaConfig)
    return _norm_features(checkpoint, config, given) if config.is_backbone else checkpoint, recognised


def resize(state: Mapping[str, Tensor], old: VmambaConfig, new: VmambaConfig, official: bool) -> Resized:
    """Leave the weights as they are: the model resizes its position embeddings, if any, while it is loaded."""
    del official
    how = "resized" if old.posembed else "image size changed"
    return Resized(dict(state), f"{how} {change_of_size(old, new)}")


def _norm_features(checkpoint: Checkpoint, config: VmambaConfig, given: Given) -> Checkpoint:
    """Turn a VMamba classifier's weights into its backbone's, which norms each feature map, where the user asks."""
    if any(key.startswith("outnorm") for key in checkpoint.state):
        return checkpoint
    if not given.dense:
        raise UsageError(
            f"{checkpoint.path}: its backbone has no norms of the feature maps (outnorm), which a trained one has.",
            hint="--task dense takes it with untrained norms (weight 1, bias 0), as the official code starts from.",
        )
    state = {key: value for key, value in checkpoint.state.items() if not key.startswith("classifier.")}
    for i in sorted(set(config.out_indices)):
        norm = make_norm(config.norm_layer, config.dims[i])
        state.update({f"outnorm{i}.{key}": value for key, value in norm.state_dict().items()})
    note = GUESS + "a classifier taken as a backbone: its feature maps get untrained norms (weight 1, bias 0)"
    return replace(checkpoint, state=state, notes=(*checkpoint.notes, note))


VMAMBA = Family(
    title="VMamba",
    keys=re.compile(r"layers\.\d+\.blocks\.\d+\."),
    configs={"vmamba": read_config, "vmamba_dense": read_config},
    recognise=recognise,
    build=make_vmamba,
    resize=resize,
)
