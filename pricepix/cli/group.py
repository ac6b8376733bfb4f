"""The group that every command of the command line joins, and how it prints results and errors."""

from __future__ import annotations

import sys
import traceback
from typing import Any, Final

import click

from pricepix._checks import printable
from pricepix._version import __version__

CLEAN_ERRORS: Final = (ValueError, TypeError, KeyError, OSError, ImportError, MemoryError)


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
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
            sys.exit(130)


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
