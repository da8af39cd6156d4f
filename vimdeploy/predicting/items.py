"""What is predicted, one after the other: a key that names it for ever, and how to get its bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np

from vimdeploy.artifacts.images import SUFFIXES

IMAGE_SUFFIXES = tuple(sorted(SUFFIXES))
TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
PARQUET_SUFFIXES = (".parquet", ".pq")
LIST_SUFFIXES = (".txt", ".lst", ".list")


@dataclass(frozen=True, slots=True)
class Item:
    """One image that has not been read yet."""

    key: str
    """Its path; inside a tar ``shard.tar/member``, inside parquet ``file#row``."""
    read: Callable[[], bytes]
    """Returns the bytes of the image file; VimdeployError in words where they cannot be had."""
    label: str | None = None
    """What its source says it shows."""


class Seen:
    """Tells keys that came before, at 8 bytes a key.

    Of n keys, a new one is taken for one of them with probability n / 2^64: 5e-13 at ten million.
    """

    _RECENT = 1 << 16

    def __init__(self) -> None:
        self._recent: set[int] = set()
        self._sorted = np.empty(0, np.uint64)

    def add(self, key: str) -> bool:
        """Note a key; return whether it is new."""
        digest = int.from_bytes(blake2b(key.encode("utf-8", "surrogateescape"), digest_size=8).digest(), "little")
        place = int(np.searchsorted(self._sorted, np.uint64(digest)))
        if digest in self._recent or (place < len(self._sorted) and int(self._sorted[place]) == digest):
            return False
        self._recent.add(digest)
        if len(self._recent) >= self._RECENT:
            new = np.fromiter(self._recent, np.uint64, len(self._recent))
            self._sorted = np.sort(np.concatenate([self._sorted, new]))
            self._recent.clear()
        return True


def once_each(items: Iterable[Item], repeated: Callable[[str], None]) -> Iterator[Item]:
    """Yield every key once; ``repeated`` is told the keys that were given again."""
    seen = Seen()
    for item in items:
        if seen.add(item.key):
            yield item
        else:
            repeated(item.key)
