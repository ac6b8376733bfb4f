"""The group that every command of the command line joins, and how it prints results and errors."""

from __future__ import annotations

import shlex
import sys
import traceback
from typing import Any, Final

import click

from pricepix._checks import printable
from pricepix._version import __version__

CLEAN_ERRORS: Final = (ValueError, TypeError, KeyError, OSError, ImportError, MemoryError)
_GIVEN: Final = "pricepix.given"
# Commands that take long: those that resume by another value of an option, `train`, and those that are given again.
_BY_MODE: Final = ("build-store", "build-market", "import-jkx")
_AGAIN: Final = ("append", "score", "evaluate", "run", "verify", "audit", "demo", "preview")


class Group(click.Group):
    """Turn the library's errors, which are written for people, into one line and exit code 1."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            # The reader of the output, `head` for instance, has enough: click ends quietly.
            raise
        except CLEAN_ERRORS as error:
            if ctx.params.get("traceback"):
                echo(traceback.format_exc(), err=True)
                sys.exit(1)
            text = error.args[0] if isinstance(error, KeyError) and error.args else error
            raise click.ClickException(printable(str(text))) from error
        except KeyboardInterrupt as error:
            why = "; ".join([*(str(part) for part in error.args), *getattr(error, "__notes__", ())])
            echo(f"interrupted: {why}" if why else "interrupted", err=True)
            command = ctx.find_root().meta.get(_GIVEN, [])
            if command and command[0] in (*_BY_MODE, "train", *_AGAIN):
                echo(f"resume with: {_resuming(command, getattr(error, 'out', None))}", err=True)
            sys.exit(130)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        words = list(args)
        ctx.meta[_GIVEN] = words[next((i for i, word in enumerate(words) if not word.startswith("-")), 0) :]
        return super().parse_args(ctx, args)


def _resuming(command: list[str], out: str | None) -> str:
    """Return the command line that resumes a command; `out` is the folder that it made a name for itself."""
    added: dict[str, str | None] = {"--mode": "resume"} if command[0] in _BY_MODE else {}
    if command[0] == "train" and out is not None:
        added = {"--resume": None, "--out": out}
    words: list[str] = []
    given = iter(command)
    for word in given:
        name, equals, _ = word.partition("=")
        if name not in added:
            words.append(word)
        elif not equals and added[name] is not None:
            next(given, None)
    for name, value in added.items():
        words += [name] if value is None else [name, value]
    return shlex.join(["pricepix-cli", *words])


def echo(text: Any, err: bool = False) -> None:
    """Print a line or several; names out of files cannot command the terminal."""
    click.echo(printable(str(text)), err=err)


@click.group(
    cls=Group,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100, "show_default": True},
)
@click.version_option(__version__, prog_name="pricepix")
@click.option("--traceback", is_flag=True, help="Show the whole traceback of an error.")
def main(traceback: bool) -> None:
    """Price history in, exact chart images out."""
