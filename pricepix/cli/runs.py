"""Commands that run a whole configuration, and the demo."""

from __future__ import annotations

import sys
from typing import Any

import click

from pricepix.cli.group import echo, main, result, say
from pricepix.cli.options import choice_option, progress, repeated, scheduler, several, workers


@main.command("init-config")
@click.argument("path")
@choice_option(
    "--like", "jkx", "image_trading", "cnn_for_trading", default="jkx", help="Whose work it reproduces."
)
def init_config(path: str, like: str) -> None:
    """Write a commented configuration to the file PATH."""
    from pricepix.workflow.templates import init_config as run

    run(like, path)
    say(f"{path}: edit it, then pricepix-cli run {path}", path=path)


@main.command()
@click.argument("config")
@click.option("--data", help="The bars, in place of those that another project's CONFIG names.")
@click.option("--out", help="Folder of the run, in place of the one that another project's CONFIG names.")
@progress
def run(config: str, data: str | None, out: str | None, progress: bool) -> None:
    """Execute the YAML file CONFIG: build, train, score, evaluate; what is done already is skipped.

    CONFIG may be one of ImageTrading or CNN-for-Trading: it is translated, and the translation printed and
    saved beside the results.
    """
    from pricepix.workflow.other_projects import run_file

    made = run_file(config, data=data, out=out, echo=echo, progress=progress)
    say("", made=made)


@main.command()
@click.argument("config")
@click.option("--now", help="The time, in the zone of the market, in place of the clock's.")
@scheduler
@progress
def update(config: str, now: str | None, scheduler: str | None, progress: bool) -> None:
    """Bring the images and the factor of the YAML file CONFIG up to the newest bars.

    Run it every evening: what is done already is left alone, and a revised history is an error (exit code 4) unless
    CONFIG lets it pass. Exit code 8: done, but a limit of its section update.health is passed.
    """
    from pricepix.build.cluster import client_of
    from pricepix.workflow.update import update as run

    with client_of(scheduler) as client:
        found = run(config, now=now, client=client, progress=progress)
    result(found)
    if found.alarms:
        sys.exit(8)


@main.command("warm-up")
@repeated(
    "--preset", "presets", callback=several, help="Compile only the renderer of this preset (default: all)"
)
@repeated(
    "--part",
    "parts",
    callback=several,
    help="Besides renderers, compile only this, e.g. stores (default: all)",
)
@workers
def warm_up(**options: Any) -> None:
    """Compile everything once, into Numba's cache (NUMBA_CACHE_DIR), in parallel processes."""
    from pricepix.workflow.warm_up import warm_up as run

    result(run(**options, echo=echo))


@main.command()
@click.argument("folder", default="demo")
def demo(folder: str) -> None:
    """Run everything end to end on sample data, into FOLDER."""
    from pricepix.workflow.demo import demo as run_demo

    say("", made=run_demo(folder, echo=echo))
