"""The README's table of speed is that of the committed run."""

from __future__ import annotations

import json
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
RESULTS = json.loads((ROOT / "benchmarks" / "results" / "native.json").read_text())
ROWS = {(row["size"], row["name"]): row for row in RESULTS["scaling"]}


def test_the_readmes_numbers_are_those_of_the_committed_run() -> None:
    text = (ROOT / "README.md").read_text()
    lines = re.findall(
        r"^\| (\d+) \| [\d,]+ \| ([\d.]+) s \| ([\d.]*) ?\| ([\d.]+) \| (\d+) MiB \| (\d+) MiB \|$", text, re.M
    )
    assert [int(line[0]) for line in lines] == [224, 448, 512, 1024, 1248]
    for size, seconds, ratio, against_deit, added, deit_added in lines:
        native, deit = ROWS[int(size), "native"], ROWS[int(size), "DeiT-Ti"]
        assert abs(float(seconds) - native["cpu"]) < 1e-3
        assert abs(float(against_deit) - deit["cpu"] / native["cpu"]) < 0.06
        assert (int(added), int(deit_added)) == (round(native["added_mib"]), round(deit["added_mib"]))
        if ratio:
            assert abs(float(ratio) - ROWS[int(size), "body"]["cpu"] / native["cpu"]) < 0.06
