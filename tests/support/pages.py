"""The documentation as tests read it: its commands, its examples, its links."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def text(page: str) -> str:
    """Return a page by its path from the root of the checkout."""
    return (ROOT / page).read_text(encoding="utf-8")


def commands(page: str) -> list[str]:
    """Return the lines that start with ``$`` in the console blocks of a page."""
    blocks = re.findall(r"```console\n(.*?)```", text(page), flags=re.DOTALL)
    return [line[2:] for block in blocks for line in block.splitlines() if line.startswith("$ ")]


def examples(page: str) -> list[str]:
    """Return the Python blocks of a page."""
    return re.findall(r"```python\n(.*?)```", text(page), flags=re.DOTALL)


def broken_links(page: str) -> list[str]:
    """Return the links of a page into the checkout that lead nowhere."""
    folder = (ROOT / page).parent
    return [target for target in re.findall(r"\]\((?!http)([^)#]+)\)", text(page)) if not (folder / target).exists()]


def make_checkout(folder: Path, *names: str) -> Path:
    """Let a folder look like the root of a checkout to commands, and take their output."""
    for name in names:
        (folder / name).symlink_to(ROOT / name)
    return folder


def run(command: str, folder: Path) -> str:
    """Run a ``vimdeploy`` command of a page in a folder, as a user would; it must succeed. Returns what it says."""
    program, *arguments = shlex.split(command)
    assert program == "vimdeploy", command
    done = subprocess.run(
        [sys.executable, "-m", "vimdeploy", *arguments],
        cwd=folder,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "HOME": str(folder), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
