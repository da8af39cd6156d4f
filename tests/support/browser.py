"""A page in headless chromium: what its console says, and what is wider than its window."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

_PROBE = """
<script>
const frame = document.querySelector("iframe");
frame.addEventListener("load", () => setTimeout(() => {
  const page = frame.contentDocument, wide = [];
  for (const element of page.querySelectorAll("body, body *")) {
    if (element.closest(".scroll") && !element.matches(".scroll")) continue;
    const box = element.getBoundingClientRect();
    if (box.right > frame.clientWidth + 1 || box.left < -1) wide.push(element.tagName + " " + element.className);
  }
  const background = frame.contentWindow.getComputedStyle(page.body).backgroundColor;
  document.body.dataset.found = JSON.stringify({ wide, background, text: page.body.innerText.slice(0, 400),
    scroll: page.documentElement.scrollWidth, client: frame.clientWidth });
}, 300));
</script>
"""


def look(page: bytes, folder: Path, *, width: int, dark: bool = False) -> tuple[dict[str, Any], list[str]]:
    """Open a page in a window of some width.

    Returns:
        What is wider than the window and what is seen, and the lines of the console.

    """
    program = shutil.which("chromium")
    assert program is not None, "chromium is not installed: .ci/system-packages brings it"
    outer = folder / "outer.html"
    frame = f'<iframe width="{width}" height="2000" style="border:0" srcdoc="{html.escape(page.decode())}"></iframe>'
    outer.write_text(f"<!doctype html><meta charset=utf-8><body>{frame}{_PROBE}</body>")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--virtual-time-budget=4000"]
    options += [
        f"--user-data-dir={folder / 'profile'}",
        f"--window-size={max(width, 500) + 40},2100",
        "--hide-scrollbars",
    ]
    options += [f"--blink-settings=preferredColorScheme={0 if dark else 1}"]
    done = subprocess.run(
        [program, *options, "--dump-dom", outer.as_uri()], capture_output=True, text=True, check=False, timeout=120
    )
    found = re.search(r'data-found="([^"]*)"', done.stdout)
    assert found is not None, done.stderr[-2000:]
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return json.loads(html.unescape(found[1])), console
