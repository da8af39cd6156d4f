"""The command line is the API: the same names, the same defaults, the same words."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Any

import click
import pytest
import typer.main

import vimdeploy
from vimdeploy.cli.app import app
from vimdeploy.cli.module import ModuleGroup
from vimdeploy.cli.options import DType, Ops, Runtime, Task
from vimdeploy.commands.demo import run_demo
from vimdeploy.commands.serve import serve
from vimdeploy.commands.serve_repo import RepositoryOptions, serve_repo
from vimdeploy.predicting.run import Request
from vimdeploy.tensorrt.options import BuildOptions

COMMANDS: dict[str, tuple[Callable[..., Any], type | None, dict[str, str | None]]] = {
    # Command: its function, the record that groups some of its arguments, and where an option is called otherwise:
    # by the name of the argument, or None for what only the screen needs.
    "export": (
        vimdeploy.export,
        None,
        dict.fromkeys([f.name for f in dataclasses.fields(ModuleGroup)]),
    ),
    "verify": (vimdeploy.verify, None, {"output": None}),
    "inspect": (vimdeploy.inspect, None, {}),
    "demo": (run_demo, None, {}),
    "benchmark": (vimdeploy.benchmark, None, {"backend": "backends", "batch": "batch"}),
    "serve": (serve, None, {}),
    "serve-repo": (serve_repo, RepositoryOptions, {"timeout_ms": "timeout_us"}),
    "convert": (
        vimdeploy.convert,
        None,
        {"fp16": "precision", "bf16": "precision", **dict.fromkeys(("policy", "portable", "plugin_only"))},
    ),
    "build-engine": (
        vimdeploy.build_engine,
        BuildOptions,
        {
            **dict.fromkeys(("fp16", "bf16", "fp32"), "precision"),
            **dict.fromkeys(("min_batch", "opt_batch", "max_batch"), "batch"),
            "profile": "profiles",
            "compute_capability": "compute_capabilities",
            "runtime": "flavour",
            "layers": None,
        },
    ),
    "predict": (
        vimdeploy.predict,
        Request,
        {**dict.fromkeys(("column", "key", "label_column"), "columns"), "output": None, "form": None},
    ),
}
OWN_SYNTAX = {"model_args", "img_size", "checkpoint"}
"""What text says otherwise than a value does: the words differ in that."""


def command(name: str) -> click.Command:
    group = typer.main.get_command(app)
    assert isinstance(group, click.Group) or hasattr(group, "commands")
    return group.commands[name]


def arguments(name: str) -> dict[str, inspect.Parameter]:
    """Return every argument of a function and of the record that groups the rest of them."""
    function, record, _ = COMMANDS[name]
    found = dict(inspect.signature(function).parameters)
    for grouped in ("reporter", "options", "opened"):
        found.pop(grouped, None)
    if record is not None:
        found |= dict(inspect.signature(record).parameters)
    return found


def words(function: Callable[..., Any]) -> dict[str, str]:
    """Return what a docstring says of each argument."""
    text = inspect.getdoc(function) or ""
    section = text.partition("Args:\n")[2].partition("\n\n")[0]
    entries = re.findall(r"^    (\w+): ((?:.*\n?)(?:^ {8}.*\n?)*)", section, flags=re.MULTILINE)
    return {name: plain(said) for name, said in entries}


def plain(text: str) -> str:
    return " ".join(text.replace("`", "").split())


def value(default: object) -> object:
    """Return a default as both sides can be compared: an enum by its value, nothing given as None."""
    if isinstance(default, Enum):
        return default.value
    if isinstance(default, Path):
        return str(default)
    if default in ((), [], (None, None, None)) or default is inspect.Parameter.empty:
        return None
    return default


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_an_argument_of_the_function_and_the_other_way_round(name: str) -> None:
    renamed = COMMANDS[name][2]
    options = {p.name: renamed.get(str(p.name), p.name) for p in command(name).params if p.name != "as_json"}
    assert {called for called in options.values() if called} == set(arguments(name))


@pytest.mark.parametrize("name", COMMANDS)
def test_defaults_are_the_same(name: str) -> None:
    renamed, known = COMMANDS[name][2], arguments(name)
    for option in command(name).params:
        if option.name in known and option.name not in renamed:
            default = option.default() if callable(option.default) else option.default
            assert value(default) == value(known[str(option.name)].default), option.name


@pytest.mark.parametrize("name", [name for name in COMMANDS if name not in ("predict", "serve-repo")])
def test_help_is_what_the_docstring_says(name: str) -> None:
    function, _, renamed = COMMANDS[name]
    said = words(function)
    assert set(said) == set(inspect.signature(function).parameters), "every argument is explained"
    for option in command(name).params:
        if option.name in said and option.name not in renamed and option.name not in OWN_SYNTAX:
            shown = plain(getattr(option, "help", "") or "").partition(" [")[0]
            assert shown == said[str(option.name)], option.name


def test_choices_are_those_of_the_rooms_that_know_them() -> None:
    from typing import get_args

    from vimdeploy.graph.policy import PRECISIONS
    from vimdeploy.models.family import TASKS
    from vimdeploy.runtime.ort import Ops as Known
    from vimdeploy.tensorrt.api import Flavour

    assert {t.value for t in Task} == set(TASKS)
    assert [d.value for d in DType] == ["fp32", *PRECISIONS]
    assert {o.value for o in Ops} == set(get_args(Known))
    assert {r.value for r in Runtime} == {f.value for f in Flavour} - {"lean"}


def test_records_of_arguments_are_frozen() -> None:
    for record in (BuildOptions, Request):
        assert dataclasses.fields(record)
        assert record.__dataclass_params__.frozen  # type: ignore[attr-defined]
