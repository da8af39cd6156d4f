"""Recipes: one TOML per published model, stating what is exported and what parity it owes.

The files live in ``export/`` of the repository and ship inside the package.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from vimdeploy.artifacts.structured import read_toml
from vimdeploy.errors import UsageError, nearest

_PACKAGED = Path(__file__).parents[1] / "_export"
_CHECKOUT = Path(__file__).parents[2] / "export"

_MOST_FIELDS = 12
Positive = Annotated[int, Field(gt=0)]
Side = Annotated[int, Field(gt=0, le=16384)]
"""Pixels. A million tokens at patch 16, beyond what any machine runs; larger numbers are slips or lies."""
Batch = Annotated[int, Field(gt=0, le=65536)]
Number = Annotated[float, Field(allow_inf_nan=False, ge=-1e6, le=1e6)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class InputSpec(_Strict):
    """How an image file becomes a tensor: resize, centre crop, scale to [0, 1], normalise."""

    size: tuple[Side, Side]
    """(height, width) in pixels."""
    channels: Annotated[int, Field(gt=0, le=1024)] = 3
    mean: tuple[Number, ...] = (0.485, 0.456, 0.406)
    std: tuple[Annotated[Number, Field(gt=0)], ...] = (0.229, 0.224, 0.225)
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"] = "bicubic"
    crop_ratio: Annotated[float, Field(ge=0.05, le=1)] = 0.875
    """The shorter side is resized to size / crop_ratio, and the centre is cut out."""

    @model_validator(mode="after")
    def _one_for_each_channel(self) -> InputSpec:
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != self.channels:
                raise ValueError(f"{name} has {len(values)} values for {self.channels} channels")
        return self


class Classes(_Strict):
    """What the logits stand for."""

    count: Annotated[int, Field(ge=0, le=10_000_000)]
    names: str | tuple[str, ...] | None = None
    """The names themselves, or the stem of a file in ``export/classes`` with one name per line."""

    def labels(self) -> tuple[str, ...] | None:
        """Return one name per class, or None where the names are not known.

        Raises:
            UsageError: the file of names is missing, or there are more or fewer names than classes.

        """
        names = self.names
        if isinstance(names, str):
            names = _read_names(recipe_folder() / "classes" / f"{names}.txt")
        if names is not None and len(names) != self.count:
            raise UsageError(f"There are {self.count} classes and {len(names)} class names.")
        return names


class Precision(_Strict):
    """What the engine computes in, and which nodes stay float32 beyond the policy."""

    engine: Literal["fp32", "fp16", "bf16"] = "fp16"
    keep_fp32: tuple[str, ...] = ()
    """Patterns of node names."""


class BatchProfile(_Strict):
    """Batch sizes of the optimization profile."""

    min: Batch = 1
    opt: Batch = 8
    max: Batch = 64


class ParityContract(_Strict):
    """Bounds that a converted model has to keep against the PyTorch model; None leaves a bound out."""

    atol: float | None = None
    rtol: float | None = None
    """|a - b| <= atol + rtol * |b| for every output element b of the reference; both or neither."""
    relative_rms: float | None = None
    """rms(a - b) / rms(b)"""
    cosine: float | None = None
    """Smallest cosine similarity of any sample."""
    top1: float | None = None
    """Share of samples whose best class is the same, among those decided by more than the numerical noise."""


class Parity(_Strict):
    """One contract per precision."""

    fp32: ParityContract = ParityContract(atol=1e-4, rtol=1e-4, relative_rms=1e-4, cosine=0.99999, top1=1.0)
    fp16: ParityContract = ParityContract(relative_rms=5e-3, cosine=0.9999, top1=0.999)
    bf16: ParityContract = ParityContract(relative_rms=4e-2, cosine=0.999, top1=0.99)

    def __getitem__(self, precision: str) -> ParityContract:
        """Return the contract of ``fp32``, ``fp16`` or ``bf16``."""
        return {"fp32": self.fp32, "fp16": self.fp16, "bf16": self.bf16}[precision]


class Recipe(_Strict):
    """One published model."""

    name: str
    title: str
    family: str
    official_name: str | None = None
    checkpoint: str | None = None
    """File name under which the weights are published."""
    source: str | None = None
    parameters: int
    model: dict[str, Any]
    """Arguments of the official constructor."""
    input: InputSpec
    classes: Classes
    precision: Precision = Precision()
    batch: BatchProfile = BatchProfile()
    parity: Parity = Parity()


def recipe_folder() -> Path:
    """Return the folder with the recipes: inside an installed package, or beside it in a checkout."""
    return _PACKAGED if _PACKAGED.is_dir() else _CHECKOUT


@cache
def recipes() -> dict[str, Recipe]:
    """Return all recipes by name."""
    return {recipe.name: recipe for recipe in map(read_recipe, sorted(recipe_folder().glob("*.toml")))}


def read_recipe(path: Path) -> Recipe:
    """Read one recipe.

    ``extends`` takes what is not said from another recipe: a published one's name, or a TOML file beside this one.
    Class names may be the stem of a file beside the recipe.

    Raises:
        UsageError: the file is missing or no TOML; names every field that is wrong or missing, at once.

    """
    data = _extended(path, ())
    try:
        recipe = Recipe.model_validate(data)
    except ValidationError as error:
        found = [f"{'.'.join(map(str, each['loc'])) or 'recipe'}: {each['msg']}" for each in error.errors()]
        more = f" and {len(found) - _MOST_FIELDS} more" if len(found) > _MOST_FIELDS else ""
        raise UsageError(
            f"{path}: {'; '.join(found[:_MOST_FIELDS])}{more}.",
            hint='A recipe of a published model is a start: extends = "vim_tiny_patch16_224" takes its values.',
        ) from error
    names = recipe.classes.names
    beside = path.parent / f"{names}.txt"
    if isinstance(names, str) and Path(names).name == names and beside.is_file():
        told = recipe.classes.model_copy(update={"names": _read_names(beside)})
        return recipe.model_copy(update={"classes": told})
    return recipe


def _extended(path: Path, below: tuple[Path, ...]) -> dict[str, Any]:
    """Return the table of a recipe over that of the one it extends."""
    data = read_toml(path)
    base = data.pop("extends", None)
    if base is None:
        return data
    if not isinstance(base, str):
        raise UsageError(f"{path}: extends: must be the name of a recipe.")
    other = path.parent / base if base.endswith(".toml") else recipe_folder() / f"{base}.toml"
    if not base.endswith(".toml") and base not in recipes():
        raise UsageError(f"{path}: extends: there is no recipe '{base}'.", hint=nearest(base, recipes()))
    if other in below or len(below) > _MOST_FIELDS:
        raise UsageError(f"{path}: extends: the recipes extend each other in a circle.")
    return _over(_extended(other, (*below, path)), data)


def _over(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for name, value in above.items():
        inner = merged.get(name)
        merged[name] = _over(inner, value) if isinstance(inner, dict) and isinstance(value, dict) else value
    return merged


def _read_names(path: Path) -> tuple[str, ...]:
    try:
        return tuple(path.read_text(encoding="utf-8").splitlines())
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: the class names cannot be read ({error}).") from error


def find_recipe(name: str) -> Recipe:
    """Return the recipe of a name, an official model name, or a TOML file; raises UsageError with the nearest name."""
    if name.endswith(".toml"):
        return read_recipe(Path(name))
    known = recipes()
    if name in known:
        return known[name]
    for recipe in known.values():
        if name == recipe.official_name:
            return recipe
    raise UsageError(f"There is no recipe '{name}'.", hint=f"{nearest(name, known)} `vimdeploy recipes` lists them.")
