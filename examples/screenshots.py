"""Makes the pictures of docs/serving.md: python examples/screenshots.py (needs chromium)."""

from __future__ import annotations

import subprocess
import tempfile
from importlib.resources import files
from pathlib import Path

import vimdeploy

ROOT = Path(__file__).parents[1]


def shoot(page: Path, picture: Path, height: int) -> None:
    """Write what headless chromium shows of a page, 900 pixels wide."""
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--window-size=900,{height}"]
    subprocess.run(["chromium", *options, f"--screenshot={picture}", page.as_uri()], check=True, capture_output=True)


def main() -> None:
    """Export the example, report on it, and look at the report and at the page of `vimdeploy serve`."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        digits = ROOT / "examples" / "digits"
        vimdeploy.export(digits / "vim_digits.pth", folder / "digits.onnx", verify=False)
        page = vimdeploy.report(folder / "digits.onnx", images=digits)
        shoot(page, ROOT / "docs" / "images" / "report.png", 1750)
        drop = folder / "page.html"
        drop.write_bytes(files("vimdeploy.serving").joinpath("page.html").read_bytes())
        shoot(drop, ROOT / "docs" / "images" / "page.png", 360)


if __name__ == "__main__":
    main()
