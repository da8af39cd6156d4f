"""Compute the shared-memory wavefronts of the scan kernel's accesses, from their addresses.

    python plugins/tools/bank_conflicts.py [--rank 12] [--table]

Shared memory has 32 banks of four bytes. A warp's access takes one wavefront per phase (32 lanes of 4 bytes, 16 of 8,
8 of 16) plus one for every further word that a bank has to give in that phase; lanes that read the same word share it.
Of 8- and 16-byte accesses whose lanes are equal in pairs (i and i ^ 1, or i and i ^ 2) two phases become one. Each
access below is written as the kernel writes it; the strides are those of ``kernels/selective_scan/layout.h``.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass

WARP = 32
BANKS = 32
WORD = 4
SIDE_THREADS = 64
STATES = 16
HALF = 2
"""Bytes of an element of float16 or bfloat16, the types of the tensor-core path."""

Address = Callable[[int], int]


@dataclass(frozen=True)
class Access:
    """One instruction of a warp: the byte address of every lane, and how many bytes each moves."""

    what: str
    width: int
    address: Address

    @property
    def fewest(self) -> int:
        """Wavefronts without any conflict, if every lane wants words of its own."""
        return self.width // WORD


def wavefronts(access: Access) -> int:
    """Return how many wavefronts a warp's access takes."""
    addresses = [access.address(lane) for lane in range(WARP)]
    per_phase = WARP * WORD // access.width
    paired = any(all(addresses[i] == addresses[i ^ step] for i in range(WARP)) for step in (1, 2))
    if access.width > WORD and paired:
        per_phase *= 2
    total = 0
    for start in range(0, WARP, per_phase):
        words: dict[int, set[int]] = {}
        for address in addresses[start : start + per_phase]:
            for offset in range(0, access.width, WORD):
                word = (address + offset) // WORD
                words.setdefault(word % BANKS, set()).add(word)
        total += max(len(wanted) for wanted in words.values())
    return total


def accesses(lanes: int, rank: int = 12, *, padded: bool = True, packed: bool = True) -> Iterator[Access]:
    """Yield the accesses of a variant with ``lanes`` threads per channel, in the order of the kernel.

    Args:
        lanes: 1, 2 or 4 threads that share a channel of 16 states.
        rank: of the dt projection.
        padded: rows of the raw tile of u are 16 bytes longer than their channels.
        packed: the sums of a warp lie in consecutive words (lanes == 1).
    """
    channels = SIDE_THREADS // lanes
    per_thread = STATES // lanes
    row = channels * HALF + (16 if padded else 0)
    group, pair = (lambda lane: lane >> 2), (lambda lane: (lane & 3) * 2)
    row_x = (rank + 2 * STATES) * HALF
    yield Access("dt projection: dt_low, a word", 4, lambda i: group(i) * row_x + pair(i) * HALF)
    yield Access(
        "dt projection: weights, a word", 4, lambda i: ((pair(i) // 4 * channels + group(i)) * 4 + pair(i) % 4) * HALF
    )
    yield Access("dt projection: u, a word", 4, lambda i: group(i) * row + pair(i) * HALF)
    yield Access("dt projection: slots, stored", 16, lambda i: (group(i) * channels + pair(i)) * 8)
    yield Access("scan: slot", 8, lambda i: i // lanes * 8)
    yield Access("scan: B and C, four states", 16, lambda i: i % lanes * per_thread * WORD)
    if lanes == 1 and packed:
        yield Access("scan: sum, stored", 4, lambda i: i * WORD)
        # Four channels of a row per lane; a warp covers two rows of 64 channels.
        yield Access("epilogue: sums of four channels", 16, lambda i: i // 16 * channels * 8 + _packed(i % 16 * 4))
        return
    yield Access("scan: sum, stored", 4, lambda i: i // lanes * 8 + i % lanes % 2 * WORD)
    per_row = channels // 4
    yield Access("epilogue: sums of two channels", 16, lambda i: (i // per_row * channels + i % per_row * 4) * 8)


def _packed(column: int) -> int:
    return (column // 32 * 64 + column % 32) * WORD


def table(rank: int) -> str:
    """Return the table of KERNELS.md."""
    rows = {lanes: {a.what: wavefronts(a) for a in accesses(lanes, rank)} for lanes in (1, 2, 4)}
    fewest = {a.what: a.fewest for lanes in rows for a in accesses(lanes, rank)}
    lines = ["| access | 1 thread per channel | 2 | 4 | without conflict |", "|---|---|---|---|---|"]
    for what, least in fewest.items():
        cells = [str(rows[lanes].get(what, "-")) for lanes in rows]
        lines.append(f"| {what} | {' | '.join(cells)} | {least} |")
    return "\n".join(lines)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--rank", type=int, default=12)
    print(table(parser.parse_args().rank))


if __name__ == "__main__":
    main()
