"""Reading a torch file whose weights have company: histories, configurations and paths of training frameworks.

``torch.load(weights_only=True)`` reads tensors and plain containers and refuses every other name. Training loops save
more: mmengine its ``message_hub`` with ``HistoryBuffer`` objects over numpy arrays, detectron2 and VMamba a
configuration, others a path. Only the weights are needed here, so objects of these packages are replaced, while the
file is read, by :class:`Unread`, which takes everything and does nothing. Neither the packages nor any code of theirs
is imported; every other name is refused.
"""

from __future__ import annotations

import argparse
import pickletools
import re
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

_FRAMEWORKS = (
    *("mmengine", "mmcv", "mmdet", "mmseg", "mmpretrain", "mmcls", "detectron2", "fvcore", "iopath", "timm"),
    *("yacs", "addict", "easydict", "omegaconf", "ml_collections", "lightning", "pytorch_lightning", "accelerate"),
)
"""Packages whose objects stand beside weights."""
_PLAIN = re.compile(
    r"numpy\.(ndarray|dtype|dtypes\.\w+|_?core\.(multiarray|numeric)\.\w+|(float|u?int|bool)\w*)"
    r"|pathlib\.\w+|datetime\.\w+|collections\.(defaultdict|deque)|copyreg\._reconstructor"
    r"|builtins\.(getattr|object|slice|range|frozenset|list|dict|tuple|int|float|bool|str|bytes)"
    r"|torch\.torch_version\.TorchVersion"
)
"""Names of the standard library and numpy in such objects. ``getattr`` is how a pickle names a method of a class."""
_MAPPINGS = re.compile(r".*\.(Dict|EasyDict|CfgNode|ConfigDict|DictConfig)")
"""Classes whose pickles set items, which torch allows on plain mappings alone."""
_PICKLES_OF_A_LEGACY_FILE = 4
"""Magic number, protocol, system and the object itself: what precedes the tensors' bytes in a file of torch < 1.6."""
_PYTHON_2 = {"__builtin__": "builtins", "copy_reg": "copyreg"}
"""Names that pickle protocol 2, torch's default, writes for these modules."""


class Unread:
    """Stands for an object that is not read, and for every call, method and attribute on the way to it."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Unread:
        """Take the arguments of whatever it stands for."""
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Forget them."""

    def __setstate__(self, state: object) -> None:
        """Forget the state."""


def _mapping(*args: Any) -> OrderedDict[Any, Any]:
    """Return the mapping for ``defaultdict(factory)``: the factory is not kept."""
    return OrderedDict(*(arg for arg in args if isinstance(arg, dict)))


def _sequence(*args: Any) -> list[Any]:
    """Return the list for ``deque(items, length)``, which a pickle fills afterwards."""
    return []


_FILLED_AFTERWARDS = {"collections.defaultdict": _mapping, "collections.deque": _sequence}


_DTYPES = [type(np.dtype(code)) for code in "?bBhHiIlLqQefd"]
"""Classes of the numeric types of numpy, which a pickled array restores."""


def _arrays(name: str) -> Any:
    """Return what makes a numeric array of numpy, by any of the names that its versions give it; None for the rest."""
    if name == "numpy.ndarray":
        return np.ndarray
    if name == "numpy.dtype":
        return _numeric_dtype
    if name.endswith(".multiarray._reconstruct"):
        return _reconstruct
    return None


def _numeric_dtype(code: Any, *_: Any) -> Any:
    # A copy: its byte order is set next, and numpy's own objects are shared by the whole process.
    dtype = np.dtype(code, False, True) if isinstance(code, str) else None
    return dtype if type(dtype) in _DTYPES else Unread()


def _reconstruct(*_: Any) -> Any:
    """Return an empty array, whose state follows; the pickle's own arguments could ask for any size."""
    return np.ndarray((0,), np.int8)


def load_weights_only(path: Path) -> tuple[Any, tuple[str, ...]]:
    """Read a file that ``torch.save`` wrote; nothing in it is executed.

    Args:
        path: zip or legacy format, pickle protocol 2.

    Returns:
        The content, with :class:`Unread` for what is not read, and the frameworks that such objects belong to.

    Raises:
        Exception: the file is damaged, or names something unknown; ``torch.load`` raises a dozen types.

    """
    names = {name for name in named_globals(path) if is_company(name)}
    harmless: list[Any] = [argparse.Namespace, *_DTYPES]
    for name in names:
        if array := _arrays(name):
            harmless.append((array, name))
            continue
        other = OrderedDict if _MAPPINGS.fullmatch(name) else Unread
        harmless.append((_FILLED_AFTERWARDS.get(name, other), name))
    with torch.serialization.safe_globals(harmless), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch about pickle protocols
        with path.open("rb") as file:  # by its path, torch would tell the format by the suffix
            content = torch.load(file, map_location="cpu", weights_only=True)
    return content, tuple(sorted({name.partition(".")[0] for name in names} & set(_FRAMEWORKS)))


def named_globals(path: Path) -> Iterator[str]:
    """Yield the dotted names that a file's pickles would import; nothing for what is no pickle. Executes nothing."""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                record = next(name for name in archive.namelist() if name.endswith("data.pkl"))
                with archive.open(record) as file:
                    yield from _globals_of_one(file)
            return
        with path.open("rb") as file:
            for _ in range(_PICKLES_OF_A_LEGACY_FILE):
                yield from _globals_of_one(file)
    except Exception:  # damaged bytes fail here in as many ways as in torch.load, and then name nothing more
        return


def is_company(name: str) -> bool:
    """Whether a dotted name belongs to what stands beside weights and is not read."""
    return name.partition(".")[0] in _FRAMEWORKS or _PLAIN.fullmatch(name) is not None


def _globals_of_one(file: IO[bytes]) -> Iterator[str]:
    """Yield the names in the pickle that begins at the file's position, and leave the file behind its end."""
    strings = ["", ""]
    memo: dict[int, str] = {}
    for opcode, argument, _ in pickletools.genops(file):
        if opcode.name in ("GLOBAL", "INST", "STACK_GLOBAL"):
            module, name = argument.split(" ", 1) if isinstance(argument, str) else strings[-2:]
            yield f"{_PYTHON_2.get(module, module)}.{name}"
        elif opcode.name.endswith(("PUT", "MEMOIZE")):
            memo[len(memo) if argument is None else int(argument)] = strings[-1]
        elif opcode.name.endswith("GET"):
            strings.append(memo.get(int(argument or 0), ""))
        elif isinstance(argument, str):
            strings.append(argument)
