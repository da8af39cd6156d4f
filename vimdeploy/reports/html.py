"""The page: one self-contained file, the same bytes for the same data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

from vimdeploy.errors import UsageError
from vimdeploy.reports.collect import ReportData

LARGEST = 1_000_000
"""Bytes of a page."""
_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP = 900, 300, 62, 96, 14
_COLOURS = ("--c1", "--c2", "--c3", "--c4")


def render(data: ReportData) -> bytes:
    """Return the page; raises UsageError where it would be larger than a megabyte."""
    from jinja2 import Environment, StrictUndefined

    template = files("vimdeploy.reports").joinpath("report.html.j2").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["sci"] = _scientific
    contract = data.manifest.contract
    bounds = [(name, contract[name].relative_rms) for name in ("fp32", "fp16") if contract[name].relative_rms]
    page = environment.from_string(template).render(
        d=data,
        m=data.manifest,
        chart=line_chart(data.places, [(f.name, f.errors) for f in data.forms], bounds),
        facts=_flat(data.manifest.model.arguments),
        not_run=[rung for rung in data.ladder["rungs"] if rung["status"] == "not run"],
    )
    content = page.encode()
    if len(content) > LARGEST:
        raise UsageError(f"The report has {len(content)} bytes, more than {LARGEST}.", hint="Show fewer images.")
    return content


def line_chart(
    places: Sequence[str], lines: Sequence[tuple[str, Sequence[float]]], bounds: Sequence[tuple[str, float | None]]
) -> dict[str, Any]:
    """Return the coordinates of a chart with a logarithmic axis.

    Args:
        places: names along the axis.
        lines: name and values of each; NaN leaves a gap, zero is drawn at the bottom.
        bounds: horizontal lines, by name.

    """
    values = [v for _, line in lines for v in line if math.isfinite(v) and v > 0] + [b for _, b in bounds if b]
    low = math.floor(math.log10(min(values, default=1e-8)))
    high = max(math.ceil(math.log10(max(values, default=1.0))), low + 1)

    def y(value: float) -> float:
        height = _HEIGHT - _TOP - _BOTTOM
        share = (math.log10(max(value, 10.0**low)) - low) / (high - low)
        return round(_TOP + height * (1 - min(share, 1.0)), 1)

    def x(index: int) -> float:
        return round(_LEFT + 12 + (_WIDTH - _LEFT - 24) * index / max(len(places) - 1, 1), 1)

    drawn = []
    for number, (name, line) in enumerate(lines):
        points = [(x(i), y(v), v) for i, v in enumerate(line) if math.isfinite(v)]
        path = " ".join(f"{a},{b}" for a, b, _ in points)
        drawn.append({"name": name, "colour": _COLOURS[number % len(_COLOURS)], "path": path, "points": points})
    step = max(1, -(-len(places) // 30))
    return {
        "width": _WIDTH,
        "height": _HEIGHT,
        "left": _LEFT,
        "right": _WIDTH - 6,
        "bottom": _HEIGHT - _BOTTOM,
        "ticks": [(y(10.0**power), f"1e{power}") for power in range(low, high + 1)],
        "labels": [(x(i), place) for i, place in enumerate(places) if i % step == 0 or i == len(places) - 1],
        "lines": drawn,
        "bounds": [(y(bound), name) for name, bound in bounds if bound],
    }


def _scientific(value: float | None) -> str:
    return "" if value is None else f"{value:.1e}"


def _flat(arguments: dict[str, Any]) -> list[tuple[str, str]]:
    """Return arguments as rows; nothing is printed as a dictionary."""
    rows = []
    for name, value in arguments.items():
        if isinstance(value, dict):
            rows += [(f"{name}.{inner}", what) for inner, what in _flat(value)]
        else:
            text = " x ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
            rows.append((name, text))
    return rows
