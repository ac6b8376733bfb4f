"""``--help``: every command in a section, options in sections, and examples that the command takes."""

from __future__ import annotations

import shlex

import click
import pytest
from click.testing import CliRunner

from pricepix.cli import main
from pricepix.cli.help_pages import COMMANDS, EXAMPLES, OPTIONS, READING


def page(*words: str) -> str:
    found = CliRunner().invoke(main, [*words, "--help"])
    assert found.exit_code == 0, found.output
    return found.output


def test_every_command_stands_in_one_section() -> None:
    found = page()
    sections = [name for section in COMMANDS.values() for name in section]
    assert len(sections) == len(set(sections))
    assert set(sections) <= set(main.commands)
    at = [found.index(f"\n{title}:\n") for title in COMMANDS]
    assert at == sorted(at)
    for name in main.commands:
        assert f"\n  {name} " in found
    # A command that no section names is still listed.
    assert ("\nMore:\n" in found) == bool(set(main.commands) - set(sections))


@pytest.mark.parametrize("name", sorted(main.commands))
def test_every_option_is_listed_once_and_an_example_follows(name: str) -> None:
    found = page(name)
    found = found[min(at for title in (*OPTIONS, "Options") if (at := found.find(f"\n{title}:\n")) > 0) :]
    command = main.commands[name]
    for option in command.params:
        if isinstance(option, click.Option) and not option.hidden:
            lines = [line for line in found.splitlines() if line.startswith(f"  {option.opts[0]}")]
            starts = [line for line in lines if line[2 + len(option.opts[0])] in " ,"] if lines else []
            assert len(starts) == 1, f"{option.opts[0]}: {lines}"
    assert found.count("--help") == 1
    assert "Example" in found
    assert f"pricepix-cli {'--json ' if name == 'update' else ''}" in found


@pytest.mark.parametrize(
    ("name", "line"), [(name, line) for name, lines in EXAMPLES.items() for line in lines]
)
def test_examples_are_calls_that_the_command_takes(name: str, line: str) -> None:
    words = shlex.split(line)
    at = words.index(name)
    main.make_context("pricepix-cli", words[:at] or ["--version"], resilient_parsing=True)
    main.commands[name].make_context(name, words[at + 1 :])


def test_sections_of_options_name_options() -> None:
    known = {option.name for command in main.commands.values() for option in command.params}
    assert {name for names in OPTIONS.values() for name in names} <= known
    found = page("build-store")
    at = [
        found.index(f"\n{title}:\n")
        for title in ("The image", "Which windows", "Forward returns", "Options", READING)
    ]
    assert at == sorted(at)
