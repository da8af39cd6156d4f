"""What the user says about images and classes in place of a recipe: names, mean, deviation, crop, interpolation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from vimdeploy.artifacts.recipe import InputSpec
from vimdeploy.errors import UsageError

if TYPE_CHECKING:
    from vimdeploy.models.load import LoadedModel

_ASSUMED = "ImageNet's mean, standard deviation and crop are the preprocessing"
_OPTIONS = {"crop_ratio": "--crop"}


def with_preprocessing(loaded: LoadedModel, classes: str | Path | None, **said: Any) -> LoadedModel:
    """Return a model with the preprocessing and the class names that the user said.

    Args:
        loaded: as recognised.
        classes: file of class names, one a line.
        said: fields of :class:`InputSpec` by name; None leaves a field as it is.

    Raises:
        UsageError: a value that images cannot have, or other than one name for each class.

    """
    given = {
        name: tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else value
        for name, value in said.items()
        if value is not None
    }
    labels = loaded.labels if classes is None else _names(Path(classes), loaded)
    try:
        spec = InputSpec.model_validate({**loaded.input.model_dump(), **given})
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0]) if first["loc"] else next(iter(given))
        raise UsageError(f"{_OPTIONS.get(name, f'--{name}')}: {first['msg']}.") from error
    told_all = {"mean", "std", "crop_ratio"} <= given.keys()
    notes = tuple(note for note in loaded.notes if not (told_all and _ASSUMED in note))
    notes = tuple(note for note in notes if classes is None or not note.endswith(": no names"))
    return replace(loaded, input=spec, labels=labels, notes=notes)


def _names(path: Path, loaded: LoadedModel) -> tuple[str, ...]:
    try:
        names = tuple(line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip())
    except FileNotFoundError as error:
        raise UsageError(f"{path}: there is no such file.", hint="Name a file with one class name a line.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: the class names cannot be read ({error}).") from error
    count = 0 if loaded.config.is_backbone else loaded.config.num_classes
    if len(names) != count:
        raise UsageError(
            f"{path}: has {len(names)} class names, the model has {count} classes.", hint="One name a line, in order."
        )
    return names
