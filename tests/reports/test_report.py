"""`vimdeploy report`: the page says what was measured, fits every window, asks nobody else, and is always the same."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import pytest
from browser import look
from commandline import refuse, succeed
from fleet import export_digits, write_digits

from vimdeploy.reports import html
from vimdeploy.reports.profile import summarise


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    export_digits(folder)
    write_digits(folder / "photos", 10)
    (folder / "bench.json").write_text(json.dumps({"rows": [{"batch": 1, "images_per_s": 123.456}]}))
    options = ["--images", folder / "photos", "--benchmark", folder / "bench.json"]
    succeed("report", folder / "digits.onnx", "-o", folder / "first.html", *options)
    succeed("report", folder / "digits.onnx", "-o", folder / "second.html", *options)
    return folder


def test_two_renders_are_the_same_bytes_and_small(folder):
    first = (folder / "first.html").read_bytes()
    assert first == (folder / "second.html").read_bytes()
    assert len(first) < html.LARGEST


def test_the_page_asks_nobody_else(folder):
    page = (folder / "first.html").read_text()
    assert not re.findall(r"""(?:src|href|url\()\s*=?\s*["']?(?!data:)(?:https?:)?//""", page)
    assert all(source.startswith("data:image/png;base64,") for source in re.findall(r'src="([^"]*)"', page))
    assert "<script" not in page


def test_what_was_measured_and_what_was_not_is_said(folder):
    page = (folder / "first.html").read_text()
    assert "keeps its contract" in page
    for form in ("torch float32", "ONNX float32", "ONNX fp16", "engine fp32"):
        assert form in page
    assert "no NVIDIA GPU" in page
    assert "Where time goes was not measured" in page
    assert "123.5" in page, "the benchmark's row"
    assert "polyline" in page
    assert page.count('src="data:image/png') == 8
    manifest = json.loads((folder / "digits.onnx.json").read_text())
    assert manifest["checkpoint"]["sha256"] in page
    assert "{'" not in page, "no dictionary is printed raw"


@pytest.mark.parametrize(("width", "dark"), [(390, False), (1280, False), (390, True)])
def test_in_a_browser_nothing_overflows_and_the_console_is_silent(folder, tmp_path, width, dark):
    seen, console = look((folder / "first.html").read_bytes(), tmp_path, width=width, dark=dark)
    assert seen["wide"] == []
    assert seen["scroll"] <= seen["client"]
    assert console == []
    assert "keeps its contract" in seen["text"]
    assert seen["background"] == ("rgb(21, 24, 27)" if dark else "rgb(255, 255, 255)")


def test_a_page_that_is_too_wide_or_speaks_is_caught(tmp_path):
    """The planted faults of the test above."""
    wide = b"<!doctype html><body><div style='width:2000px'>x</div><script>console.error('spoken')</script>"
    seen, console = look(wide, tmp_path, width=390)
    assert seen["wide"]
    assert any("spoken" in line for line in console)


def test_the_drop_page_of_the_service_fits_too(tmp_path):
    page = files("vimdeploy.serving").joinpath("page.html").read_bytes()
    seen, console = look(page, tmp_path, width=390)
    assert (seen["wide"], console) == ([], [])


def test_bad_input_is_refused_before_the_work(folder, tmp_path):
    model = folder / "digits.onnx"
    refuse("report", tmp_path / "missing.onnx", words=["missing.onnx"])
    refuse("report", model, "-o", tmp_path / "nowhere" / "r.html", words=["nowhere", "mkdir -p"])
    (tmp_path / "no.json").write_text("{}")
    refuse("report", model, "-o", tmp_path / "r.html", "--benchmark", tmp_path / "no.json", words=["no rows"])
    assert not (tmp_path / "r.html").exists()


def test_names_from_a_strangers_manifest_are_text_not_markup(folder):
    from vimdeploy.artifacts.manifest import read_manifest
    from vimdeploy.reports.collect import ReportData

    manifest = read_manifest(folder / "digits.onnx")
    ladder = {"passed": True, "verdict": "fine", "rungs": []}
    data = ReportData("<script>alert(1)</script>", manifest, ladder, (), "torch", (), (), (), ("a", "b"), 0, True)
    assert b"<script" not in html.render(data)
    with pytest.raises(Exception, match="more than"):
        html.render(replace(data, title="x" * html.LARGEST))


def test_time_inside_a_scan_counts_once_and_to_the_block_that_runs_it():
    def event(name, op, ts, dur):
        return {"cat": "Node", "name": f"{name}_kernel_time", "ts": ts, "dur": dur, "args": {"op_name": op}}

    events = [
        {"name": "model_run", "ts": 0, "dur": 50},
        event("warm", "Add", 10, 5),
        {"name": "model_run", "ts": 100, "dur": 100},
        event("a", "Scan", 110, 60),
        event("inner", "Add", 120, 20),
        event("inner", "Add", 145, 20),
        event("b", "Gemm", 175, 20),
    ]
    found = summarise(events, {"a": "block 0", "b": "head"}, 1, 1)
    assert [(s.name, s.calls, s.microseconds) for s in found.by_op] == [
        ("Add", 2, 40),
        ("Gemm", 1, 20),
        ("Scan", 1, 20),
    ]
    assert [(s.name, s.microseconds) for s in found.by_block] == [("block 0", 60), ("head", 20)]
    assert sum(s.share for s in found.by_op) == pytest.approx(1)
