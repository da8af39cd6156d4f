"""250 malformed inputs: see tests/support/malformed.py, which runs as many as wanted."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_malformed_inputs_end_in_words_and_cost_little():
    paths = (ROOT, ROOT / "tests" / "support", ROOT / "tests" / "data")
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "support" / "malformed.py"), "--count", "250", "--seed", "0"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths))},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert done.stdout.endswith("250 cases, 0 went wrong\n")
