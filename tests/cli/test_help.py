"""What `--help` says: two examples of every command, which are commands indeed, and the exit codes."""

import shlex

import pytest
import typer.main
from commandline import succeed

from vimdeploy.cli.app import app
from vimdeploy.cli.examples import EXAMPLES, EXIT_CODES

COMMANDS = typer.main.get_command(app).commands


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_help_of_a_command_ends_with_examples_and_exit_codes(name):
    shown = succeed(name, "--help").stdout
    for words in (*EXAMPLES[name], *EXIT_CODES.values()):
        assert f" {words}\n" in shown


@pytest.mark.parametrize("example", [example for pair in EXAMPLES.values() for example in pair])
def test_an_example_is_a_command_that_exists(example):
    program, name, *arguments = shlex.split(example)
    assert program == "vimdeploy"
    COMMANDS[name].make_context(name, arguments)


def test_a_shell_can_complete_commands():
    assert "--install-completion" in succeed("--help").stdout
