"""The plan for a rented GPU: every command line is one that the suite takes, and they fit the time that is lent."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.gpu_suite import cli, plan, smoke
from vimdeploy.errors import MissingDependencyError


def test_every_command_is_one_that_the_suite_takes_and_fits_its_time() -> None:
    parts = []
    for step in plan.steps():
        assert step.seconds <= plan.LONGEST
        limits = 0
        for arguments in plan.suite_arguments(step):
            options = cli._parser().parse_args(arguments)
            limits += sum(options.seconds for part in options.part if part != "report")
            parts += options.part
        assert limits < step.seconds, f"{step.title}: the parts' own limits leave no time to build"
    assert sum(step.seconds for step in plan.steps()) <= plan.ALL
    assert set(parts) == set(cli.PARTS)


def test_the_plan_is_printed_and_needs_no_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--plan"]) == 0
    said = capsys.readouterr().out
    for wanted in ("pydantic-core", "mamba-ssm", "--part sanitizer", "benchmarks.gpu_suite.smoke", '"$OUT/"'):
        assert wanted in said


def test_what_engine_lacks_is_said_before_anything_starts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    from benchmarks.gpu_suite import engine

    monkeypatch.setattr(engine, "NEEDED", ("pydantic_that_is_not_here",))
    assert cli.main(["--part", "engine", "--out", str(tmp_path / "out")]) == MissingDependencyError.exit_code
    assert "part engine will measure nothing: pydantic_that_is_not_here not installed" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_profilers_csv_is_read_and_judged() -> None:
    said = "\n".join([
        "==PROF== Connected to process 1",
        '"ID","Kernel Name","Metric Name","Metric Unit","Metric Value"',
        '"0","scanKernel","smsp__inst_executed_pipe_xu.sum","inst","5,447,000"',
    ])  # fmt: skip
    values = smoke.read(said)
    assert values == {"smsp__inst_executed_pipe_xu.sum": 5447000.0}
    per = smoke.warp_tokens(64)
    assert per == 64 * 197 * 2 * 12
    exponentials, slots = smoke.COUNTERS[0], smoke.COUNTERS[1]
    assert "18.0 per warp and token" in smoke.verdict(exponentials, values[exponentials.name], per)
    assert "as predicted" in smoke.verdict(exponentials, values[exponentials.name], per)
    assert "NOT as predicted" in smoke.verdict(exponentials, 40 * per, per)
    assert "not measured" in smoke.verdict(slots, None, per)
    assert smoke.read("nothing of a profiler") == {}


def test_the_smoke_run_drives_the_emulated_kernels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert smoke.main(["--dry-run", "--out", str(tmp_path)]) == 0
    assert "1 problems on emulated" in (tmp_path / "smoke_1.csv").read_text()
    assert "issue slots" in capsys.readouterr().out
    assert "regex:scanKernel" in smoke.command("ncu", Path("driver"), Path("problems"))
