"""Every command of docs/serving.md runs, one after the other."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

from fleet import ROOT, clean_environment


def test_the_commands_run_in_order(tmp_path: Path) -> None:
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    blocks = re.findall(r"```console\n(.*?)```", (ROOT / "docs" / "serving.md").read_text(), flags=re.DOTALL)
    commands = [line[2:] for block in blocks for line in block.splitlines() if line.startswith("$ ")]
    assert len(commands) >= 6
    for command in commands:
        program, *arguments = shlex.split(command)
        assert program == "vimdeploy"
        done = subprocess.run(
            [sys.executable, "-m", "vimdeploy", *arguments],
            cwd=tmp_path,
            env=clean_environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, (command, done.stderr)
    assert (tmp_path / "rows" / "part-00000.parquet").exists()
    assert (tmp_path / "models" / "digits_image" / "config.pbtxt").exists()
    assert (tmp_path / "digits.report.html").exists()
