"""The group that every command of the command line joins, and how it prints results and errors."""

from __future__ import annotations

import errno
import json
import logging
import re
import shlex
import sys
import traceback
import uuid
from pathlib import Path
from typing import Any, Final

import click

from pricepix._checks import BadBarsError, RevisedHistoryError, printable
from pricepix._version import __version__
from pricepix.cli.help_pages import Command, write_commands

CLEAN_ERRORS: Final = (ValueError, TypeError, KeyError, OSError, ImportError, MemoryError)
_GIVEN: Final = "pricepix.given"
# Commands that take long: those that resume by another value of an option, `train`, and those that are given again.
_BY_MODE: Final = ("build-store", "build-market", "import-jkx")
_AGAIN: Final = (
    "append", "score", "evaluate", "run", "update", "replicate", "export", "verify", "audit", "demo", "preview",
)  # fmt: skip

EXIT_CODES: Final = {
    0: "done, or nothing to do",
    1: "refused, as the message says; of verify and audit: a fault was found",
    2: "bad arguments of the command line",
    3: "bad bars: faults in them, or a feed that is not whole; run again when it is",
    4: "the history of the bars was revised, and the configuration does not let that pass",
    5: "locked: another process writes the same store, cache or folder; run again later",
    6: "the network, or a server behind it, failed; run again later",
    7: "the disk is full, or a quota is used up",
    8: "done, but a limit of the section update.health is passed: look at the alarms",
    130: "interrupted; the same call resumes",
}
"""What a scheduler can tell from an exit code."""

_HANDLER: Final = "pricepix-cli"
_FULL: Final = (errno.ENOSPC, errno.EDQUOT)
_NETWORK: Final = (
    errno.ECONNREFUSED, errno.ECONNRESET, errno.ECONNABORTED, errno.ENETUNREACH, errno.EHOSTUNREACH,
    errno.ETIMEDOUT, errno.EPIPE,
)  # fmt: skip
# A keyword argument in a message of the library.
_KEYWORD: Final = re.compile(r"\b([a-z_]+)=(?!\()('[^']*'|\"[^\"]*\"|\.\.\.|[\w.:-]*[\w])?")


class Group(click.Group):
    """Turn the library's errors, which are written for people, into one line and the exit code of their kind."""

    command_class = Command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        write_commands(self, ctx, formatter)

    def invoke(self, ctx: click.Context) -> Any:
        settings = Output.of(ctx)
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            # The reader of the output, `head` for instance, has enough: click ends quietly.
            raise
        except CLEAN_ERRORS as error:
            code = exit_code(error)
            text = error.args[0] if isinstance(error, KeyError) and error.args else error
            command = self.get_command(ctx, ctx.invoked_subcommand or "")
            message = printable(spelled(str(text), command))
            log = logging.getLogger("pricepix")
            # Without a log, Python would print the record beside the error.
            if log.hasHandlers():
                log.error(message, extra={"exit_code": code})
            if settings.json:
                click.echo(json.dumps({"error": message, "kind": type(error).__name__, "exit_code": code}))
            if ctx.params.get("traceback"):
                echo(traceback.format_exc(), err=True)
                sys.exit(code)
            raise _Refusal(message, code) from error
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


class _Refusal(click.ClickException):
    """An error with an exit code of its own."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.exit_code = code  # type: ignore[misc]


def exit_code(error: BaseException) -> int:
    """Return the exit code of an error, one of `EXIT_CODES`."""
    if isinstance(error, BadBarsError):
        return 3
    if isinstance(error, RevisedHistoryError):
        return 4
    if isinstance(error, BlockingIOError):
        return 5
    if isinstance(error, OSError) and error.errno in _FULL:
        return 7
    if isinstance(error, ConnectionError | TimeoutError) or (
        isinstance(error, OSError) and (error.errno in _NETWORK or "cannot be reached or used" in str(error))
    ):
        return 6
    return 1


def spelled(message: str, command: click.Command | None) -> str:
    """Return a message of the library with keyword arguments written as the options of a command.

    ``mode='resume'`` becomes ``--mode resume``, ``append=True`` becomes ``--append``, ``panel=`` becomes ``--panel``.
    What is no option of the command stays.
    """
    options = {} if command is None else {p.name: p for p in command.params if isinstance(p, click.Option)}

    def option(found: re.Match[str]) -> str:
        known = options.get(found[1])
        if known is None:
            return found[0]
        value = (found[2] or "").strip("'\"")
        if known.is_flag:
            names = known.secondary_opts if value == "False" else known.opts
            return names[0] if names else found[0]
        return known.opts[0] if value in ("", "...") else f"{known.opts[0]} {value}"

    return _KEYWORD.sub(option, message)


class Output:
    """How this call of the command line talks: for people or as JSON, how much, and to which log."""

    def __init__(self, json: bool, quiet: bool) -> None:
        self.json, self.quiet = json, quiet

    @classmethod
    def of(cls, ctx: click.Context | None) -> Output:
        """Return the settings of the group that a command belongs to."""
        given = {} if ctx is None else ctx.find_root().params
        return cls(bool(given.get("json_output")), bool(given.get("quiet")))


def echo(text: Any, err: bool = False) -> None:
    """Print a line or several; names out of files cannot command the terminal."""
    settings = Output.of(click.get_current_context(silent=True))
    if (settings.quiet or settings.json) and not err:
        return
    click.echo(printable(str(text)), err=err)


def result(found: Any) -> None:
    """Print what a command came to: its text, or with ``--json`` what its method ``to_dict`` returns, on a line."""
    if Output.of(click.get_current_context(silent=True)).json:
        click.echo(json.dumps(found.to_dict(), default=str))
    else:
        echo(str(found).rstrip())


def say(text: Any, **values: Any) -> None:
    """Print what a command came to: a text, or with ``--json`` these values on a line."""
    if Output.of(click.get_current_context(silent=True)).json:
        click.echo(json.dumps(values, default=str))
    elif text != "":
        echo(text)


class _JsonLines(logging.Formatter):
    """A log record as a line of JSON, with the run's id and the version in each."""

    def __init__(self, run: str) -> None:
        super().__init__()
        self.run = run

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, Any] = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"), "level": record.levelname.lower(),
            "logger": record.name, "message": record.getMessage(), "run": self.run, "version": __version__,
        }  # fmt: skip
        for name in ("counts", "result", "exit_code", "windows"):
            if hasattr(record, name):
                entry[name] = getattr(record, name)
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        return json.dumps(entry, default=str)


def _start_log(level: str, form: str, path: str | None) -> None:
    """Send the log of the library to a file, or to the terminal where a level was asked for."""
    log = logging.getLogger("pricepix")
    for earlier in [handler for handler in log.handlers if handler.name == _HANDLER]:
        log.removeHandler(earlier)
        earlier.close()
    run = uuid.uuid4().hex[:12]
    handler: logging.Handler
    if path is not None:
        Path(path).absolute().parent.mkdir(parents=True, exist_ok=True)
        handler = logging.FileHandler(path, encoding="utf-8")
    else:
        handler = logging.StreamHandler(sys.stderr)
    plain = f"%(asctime)s %(levelname)s %(name)s [{run} {__version__}] %(message)s"
    handler.setFormatter(_JsonLines(run) if form == "json" else logging.Formatter(plain))
    handler.setLevel(level.upper())
    handler.name = _HANDLER
    log.addHandler(handler)
    log.setLevel(level.upper())


@click.group(
    cls=Group,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100, "show_default": True},
)
@click.version_option(__version__, prog_name="pricepix")
@click.option("--traceback", is_flag=True, help="Show the whole traceback of an error.")
@click.option("--json", "json_output", is_flag=True, help="Print results and errors as JSON, a line each.")
@click.option("--quiet", is_flag=True, help="Print errors only.")
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    help="Write a log of this level and above; info with --log-file.",
)
@click.option("--log-format", type=click.Choice(["text", "json"]), default="text", help="Lines of the log.")
@click.option("--log-file", help="Append the log to this file, not to the terminal.")
def main(
    traceback: bool,
    json_output: bool,
    quiet: bool,
    log_level: str | None,
    log_format: str,
    log_file: str | None,
) -> None:
    """Price history in, exact chart images out.

    \b
    Exit codes: 0 done, 1 refused or a fault was found, 2 bad arguments, 3 bad bars, 4 revised history, 5 locked,
    6 network, 7 disk full, 8 done with an alarm, 130 interrupted.
    """
    if log_level is not None or log_file is not None:
        _start_log(log_level or "info", log_format, log_file)
