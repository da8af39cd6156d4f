"""Part ``report``: what the other parts wrote, as a page of tables. What was not measured says so, without a number."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu_suite import goals, models, networks
from benchmarks.gpu_suite.cases import VIM_SHAPES, geometric_mean
from benchmarks.gpu_suite.correctness import failures
from benchmarks.gpu_suite.kernels import BATCHES, key
from benchmarks.gpu_suite.store import FORMAT, NOT_MEASURED, read_json, write_json

PARTS = ("correctness", "sanitizer", "kernels", "models", "engine")
Part = dict[str, Any]


def load(folder: Path) -> dict[str, Part]:
    """Read the parts that a folder holds. Parts of another device or of other sources than the newest are left out."""
    found = {part: data for part in PARTS if (data := read_json(folder / f"{part}.json"))}
    if not found:
        return {}
    newest = max(found.values(), key=lambda data: data["environment"]["started"])["identity"]
    same = ("dry_run", "device", "sources")
    return {name: p for name, p in found.items() if all(p["identity"][k] == newest[k] for k in same)}


def write(folder: Path) -> str:
    """Write ``report.md`` and ``report.json`` beside the parts; returns the page."""
    parts = load(folder)
    page = render(parts)
    (folder / "report.md").write_text(page)
    verdicts = goals.verdicts(measured_cases(parts.get("kernels")))
    table = [{"goal": v.goal, "needed": v.needed, "value": v.value, "text": v.text} for v in verdicts]
    environment = next(iter(parts.values()))["environment"] if parts else None
    write_json(folder / "report.json", {"format": FORMAT, "environment": environment, "goals": table})
    return page


def measured_cases(part: Part | None) -> dict[str, Any]:
    """Return the cases of a part that ran on a GPU; a dry run has none, whatever its file says."""
    return {} if part is None or part["identity"]["dry_run"] else part["cases"]


def render(parts: dict[str, Part]) -> str:
    """Return the page as Markdown."""
    lines = ["# GPU suite", "", *_header(parts), "", *_checks(parts), "", "## Scan, both directions, float16", ""]
    lines += [*_kernels(parts.get("kernels")), "", "## Whole networks, float16", "", *_models(parts.get("models"))]
    lines += ["", "## Sessions and engines", "", *_engine(parts.get("engine"))]
    lines += ["", "## Goals", "", *_goals(parts.get("kernels"))]
    return "\n".join(lines) + "\n"


def _header(parts: dict[str, Part]) -> list[str]:
    if not parts:
        return [f"Device: {NOT_MEASURED}. No results are here; `python -m benchmarks.gpu_suite` makes them on a GPU."]
    facts = next(iter(parts.values()))["environment"]
    if facts["dry_run"]:
        return [
            f"DRY RUN on {facts['device']}: the suite's own code was exercised at small sizes; nothing was timed.",
            f"Sources {facts['sources']}, torch {facts['torch']}, Python {facts['python']}.",
        ]
    packages = ", ".join(f"{name} {version}" for name, version in facts["packages"].items())
    return [
        f"Device: {facts['device']}, compute capability {facts['compute_capability']}, {facts['sm_count']} SMs, "
        f"{facts['l2_bytes'] / 2**20:.0f} MiB L2; driver {facts['driver']}, nvcc {facts['nvcc']}.",
        f"Started {facts['started']}; sources {facts['sources']}; Python {facts['python']}; {packages}.",
    ]


def _checks(parts: dict[str, Part]) -> list[str]:
    lines = []
    part = parts.get("correctness")
    if part is None:
        lines.append(f"- correctness: {NOT_MEASURED}")
    else:
        failed = failures(part["cases"])
        worst: dict[str, float] = {}
        for name, case in part["cases"].items():
            dtype = name.split()[1]
            worst[dtype] = max([worst.get(dtype, 0.0), *case["errors"].values()])
        errors = ", ".join(f"{dtype} {error:.1e}" for dtype, error in worst.items())
        state = "" if part["complete"] else " (UNFINISHED)"
        where = " on the host emulation" if part["identity"]["dry_run"] else ""
        lines.append(
            f"- correctness{where}{state}: {len(part['cases']) - len(failed)} of {len(part['cases'])} cases right, "
            f"seed {part['notes'].get('seed')}; largest error, of the maximum: {errors}"
        )
        lines += [f"  - WRONG {name}: {'; '.join(wrong)}" for name, wrong in list(failed.items())[:8]]
        lines += [f"  - {part['notes']['far']}"] if "far" in part["notes"] else []
    part = parts.get("sanitizer")
    found = {} if part is None else part["cases"]
    tools = [f"{name} {found[name]['status'] if name in found else NOT_MEASURED}" for name in _tools()]
    lines.append(f"- compute-sanitizer: {', '.join(tools)}")
    errors = {name: p["notes"]["error"] for name, p in parts.items() if "error" in p["notes"]}
    return lines + [f"- part {name} ended early: {error.splitlines()[0]}" for name, error in errors.items()]


def _tools() -> tuple[str, ...]:
    from benchmarks.gpu_suite.sanitizer import TOOLS

    return TOOLS


def _kernels(part: Part | None) -> list[str]:
    cases = measured_cases(part)
    if not cases:
        return [f"{NOT_MEASURED.capitalize()}."]
    lines = []
    if part is not None:
        ceilings = part["notes"]["ceilings"]
        lines += [
            f"Peer: {part['notes']['peer']}. {part['notes']['peer_notes']}".strip(),
            f"Ceilings: copy {ceilings['copy_bytes_per_s'] / 1e12:.2f} TB/s (read and written), exp "
            f"{ceilings['exp_per_s'] / 1e12:.2f} T/s.",
            "",
        ]
    header = ("E", "L", "B", "ours us", "variant", "fastest", "peer kernels us", "peer whole us")
    rows = []
    for batch in sorted(BATCHES):
        for channels, length in VIM_SHAPES:
            case = cases.get(key(channels, length, batch))
            rows.append((str(channels), str(length), str(batch), *_kernel_row(case)))
    lines += _table((*header, "kernels", "whole", "floor us", "of floor"), rows)
    ratios = [r for case in cases.values() if (r := goals.ratio(case, "whole"))]
    if ratios:
        lines += ["", f"Geometric mean of the whole operation: {geometric_mean(ratios):.2f}x of {len(ratios)} cases."]
    return lines


def _kernel_row(case: dict[str, Any] | None) -> tuple[str, ...]:
    ours = goals.our_time(case) if case else None
    best = goals.best_variant(case) if case else None
    if case is None or ours is None or best is None:
        return (NOT_MEASURED, *[""] * 8)
    peer, floor = case["peer"], case["floor"]
    return (
        f"{ours:.1f}",
        case["ours"]["chosen"],
        "chosen" if best[0] == case["ours"]["chosen"] else f"{best[0]} {best[1]:.1f}",
        *(_us(peer[what]) for what in ("kernels", "whole")),
        *(_times(goals.ratio(case, what)) for what in ("kernels", "whole")),
        f"{floor['us']:.1f} ({floor['bound']})" if floor else NOT_MEASURED,
        f"{100 * share:.0f} %" if (share := goals.floor_share(case)) else NOT_MEASURED,
    )


def _models(part: Part | None) -> list[str]:
    cases = measured_cases(part)
    if not cases:
        return [f"{NOT_MEASURED.capitalize()}."]
    names = {
        "vim": "Vim, ours",
        "vim-kept": "Vim, ours, 5 blocks in float32",
        "vim-peer": "Vim, peer",
        "deit": "DeiT",
        "deit-plain": "DeiT, plain attention",
    }
    lines = []
    if part is not None:
        lines += [f"Images per second and peak memory, CUDA graph. Peer: {part['notes']['peer']}.", ""]
    rows = []
    for batch in sorted(models.BATCHES):
        for size in networks.SIZES:
            for pixels in models.PIXELS:
                found = [cases.get(models.key(size, pixels, batch, network)) for network in names]
                rows.append((size, str(pixels), str(batch), *(_model_cell(case) for case in found)))
    lines += _table(("size", "pixels", "B", *names.values()), rows)
    wrong = {n: c["logits_error"] for n, c in cases.items() if c.get("logits_error", 0) > models.LOGITS_TOLERANCE}
    lines += [f"WRONG {name}: off by {error:.1e} of the largest" for name, error in wrong.items()]
    return lines


def _model_cell(case: dict[str, Any] | None) -> str:
    if case is None:
        return NOT_MEASURED
    if case["status"] != "measured":
        return str(case["status"])
    return f"{case['images_per_s']:.0f}/s {case['peak_bytes'] / 2**30:.2f} GiB"


def _engine(part: Part | None) -> list[str]:
    cases = measured_cases(part)
    if not cases:
        return [f"{NOT_MEASURED.capitalize()}."]
    tests = cases.get("tests", {"status": NOT_MEASURED})
    counts = ", ".join(f"{len(tests[what])} {what}" for what in ("passed", "failed", "skipped") if what in tests)
    lines = [f"- tests on the GPU: {tests['status']}{f' ({counts})' if counts else ''}"]
    lines += [f"  - FAILED {name}: {reason.splitlines()[0]}" for name, reason in tests.get("failed", {}).items()]
    lines += [f"  - not run: {reason}" for reason in sorted(set(tests.get("skipped", {}).values()))]
    sessions = cases.get("sessions", {"status": NOT_MEASURED})
    lines += [f"- sessions: {sessions['status']}"]
    timed = [row for row in sessions.get("rows", ()) if "p50_us" in row]
    if timed and sessions["status"] == "measured":
        rows = [
            (row["what"], row["how"], str(row["batch"]), *(f"{row[k]:.1f}" for k in ("p50_us", "p99_us")))
            for row in timed
        ]
        lines += ["", *_table(("what", "how", "B", "p50 us", "p99 us"), rows)]
    return lines


def _goals(part: Part | None) -> list[str]:
    cases = measured_cases(part)
    against = f" (peer: {part['notes']['peer']})" if part is not None and cases else ""
    return [f"- {verdict.goal}{against}: {verdict.text}" for verdict in goals.verdicts(cases)]


def _us(timing: dict[str, Any] | None) -> str:
    return f"{timing['median_us']:.1f}" if timing else NOT_MEASURED


def _times(value: float | None) -> str:
    return f"{value:.2f}x" if value else NOT_MEASURED


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]

    def line(row: Sequence[str]) -> str:
        return "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"

    return [line(header), "|" + "|".join("-" * (width + 2) for width in widths) + "|", *(line(row) for row in rows)]


def summary(folder: Path) -> str:
    """Return the few lines that are printed last: the goals, and where the rest is."""
    data = json.loads((folder / "report.json").read_text())
    rows = [(row["goal"], row["text"]) for row in data["goals"]]
    return "\n".join([*_table(("goal", "result"), rows), f"All of it: {folder / 'report.md'}"])
